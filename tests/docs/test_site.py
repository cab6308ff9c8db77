"""The built pages in a real browser: they load nothing from elsewhere, and the search finds.

    IMF_SCREENSHOTS=results/img python -m pytest -m slow tests/docs/test_site.py

stores the pictures `docs-start.png`, `docs-guide.png` and `docs-api.png`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import WAIT, open_browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LOADED = "return performance.getEntriesByType('resource').map(entry => entry.name)"
PAGES = {  # picture -> page, and what it has to show
    "docs-start.png": ("", ("IMF Search", "From files to answers in ten minutes", "make demo")),
    "docs-guide.png": ("report/", ("Reading the report", "The first screen", "Course of the search")),
    "docs-api.png": ("api/", ("imf_core.prepare", "Raises:", "tune.search")),
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the site, built as `make docs` does."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("picture", PAGES)
def test_a_page_shows_itself_without_a_network(site: str, picture: str, tmp_path: Path) -> None:
    page, words = PAGES[picture]
    with open_browser(1280, 900) as browser:
        browser.get(site + page)
        text = browser.find_element("tag name", "body").text
        assert [word for word in words if word not in text] == []
        loaded = browser.execute_script(LOADED)
        assert len(loaded) >= 3
        assert [name for name in loaded if not name.startswith((site, "data:", "blob:"))] == []
        broken = "return [...document.images].filter(it => it.complete && !it.naturalWidth).map(it => it.src)"
        assert browser.execute_script(broken) == []
        target = Path(os.environ.get("IMF_SCREENSHOTS") or tmp_path) / picture
        target.parent.mkdir(parents=True, exist_ok=True)
        assert browser.save_screenshot(str(target)) and target.stat().st_size > 20_000


def test_the_search_finds_a_page(site: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    with open_browser(1280, 900) as browser:
        browser.get(site)
        browser.find_element("css selector", ".md-search__input").send_keys("pareto front")
        found = WebDriverWait(browser, WAIT).until(lambda it: it.find_elements("css selector", ".md-search-result__link"))
        assert any("searching/" in str(link.get_attribute("href")) for link in found)
