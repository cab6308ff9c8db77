"""The first screen of a study's page, as a reader sees it: in a real browser, 1280 x 800.

    IMF_SCREENSHOTS=results/img python -m pytest -m slow tests/tune/report/test_first_screen.py

stores the picture that the README shows, `report.png`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import open_browser
from small_study import Page, record, small_study

from tune.report.html import write_html
from tune.report.judgement import judgements

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

WIDTH, HEIGHT = 1280, 800
PLACE = "const box = arguments[0].getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]"


def look(page: Path, picture: Path) -> list[str]:
    """The sentences of the first screen, which must lie in it whole, as must the history and why validation and test differ."""
    with open_browser(WIDTH, HEIGHT) as browser:
        width, height = browser.execute_script("return [window.innerWidth, window.innerHeight]")
        browser.set_window_size(2 * WIDTH - width, 2 * HEIGHT - height)  # without the window's frame
        browser.get(page.as_uri())
        assert browser.execute_script("return [window.innerWidth, window.innerHeight]") == [WIDTH, HEIGHT]

        def seen(element: Any) -> bool:
            left, top, right, bottom = browser.execute_script(PLACE, element)
            return 0 <= left < right <= WIDTH and 0 <= top < bottom <= HEIGHT and bool(element.is_displayed())

        shown = browser.find_elements("css selector", "#judgement li")
        assert all(map(seen, shown))
        notes = browser.find_elements("css selector", "#judgement .note")
        assert any(note.text.startswith("Why validation and test differ:") and seen(note) for note in notes)
        assert seen(browser.find_element("css selector", ".first svg"))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= WIDTH
        sentences = [element.text for element in shown]
        picture.parent.mkdir(parents=True, exist_ok=True)
        assert browser.save_screenshot(str(picture)) and picture.stat().st_size > 20_000
        browser.set_window_size(500, 900)  # a narrow window: one below the other, nothing to the side
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    return sentences


def test_a_gain_a_loss_and_what_is_open_are_told_on_the_first_screen(tmp_path: Path) -> None:
    values = (0.41, 0.12, 0.44, 0.47, 0.2, 0.48, 0.31, 0.5, 0.36, 0.52, 0.28, 0.49)
    result = replace(
        small_study(tmp_path, None), without={"text": 0.47, "image": 0.513, "sound": 0.545},
        records=tuple(record(number, "completed", value, 6) for number, value in enumerate(values)),
        margins=dict.fromkeys(("text", "image", "sound", "structure alone"), (-0.006, 0.005)),
    )
    expected = [f"{it.subject[0].upper()}{it.subject[1:]}: {it.text}." for it in judgements(result)]
    assert {it.kind for it in judgements(result)} == {"good", "bad", "open"}
    assert look(write_html(result), tmp_path / "report.png") == expected


def test_the_page_of_a_search_judges_on_its_first_screen(searched: Any, tmp_path: Path) -> None:
    page = searched.folder / "report.html"
    sentences = look(page, Path(os.environ.get("IMF_SCREENSHOTS") or tmp_path) / "report.png")
    assert len(sentences) >= 3
    assert all(sentence in Page(page).text for sentence in sentences)
