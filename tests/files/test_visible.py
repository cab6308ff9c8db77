"""Control characters of hostile names: shown, never sent to a terminal, and not in a page."""

from __future__ import annotations

import io
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table

from imf_core.commands.terminal import NameConsole
from imf_core.data.audit.audit import audit
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.files.visible import in_a_file, visible
from tune.report.pictures.plots import save_picture
from tune.report.verdict import shown

HOSTILE = "\x1b]0;owned\x07<img src=x onerror=alert(1)>\x9b31m"


def test_only_control_characters_change() -> None:
    assert visible("Zoë\tk\n\udcff é") == "Zoë\tk\n\udcff é"
    assert visible("a\x1b[0mb\x07\x7f\x9b\r") == "a␛[0mb␇␡\ufffd␍"
    assert len(visible(HOSTILE)) == len(HOSTILE)
    assert in_a_file("\x1b\udcff") == "␛\\udcff"


def test_a_terminal_gets_no_command_of_a_name() -> None:
    for terminal in (False, True):
        colours = "standard" if terminal else None
        console = NameConsole(file=io.StringIO(), width=100, force_terminal=terminal, color_system=colours)
        table = Table("name")
        table.add_row(f"[bold]x[/] {HOSTILE}")
        console.print(HOSTILE, table, style="bold", markup=False)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "\x07" not in text and "\x9b" not in text and "\x1b]" not in text
        assert "␛]0;owned" in text  # rich itself drops the bell
        assert ("\x1b[1m" in text) is terminal  # its own commands stay


def test_a_recorded_terminal_is_well_formed(tmp_path: Path) -> None:
    file = save_picture(lambda console: console.print(HOSTILE, markup=False), 100, tmp_path / "terminal.svg", HOSTILE)
    ElementTree.parse(file)
    assert "\x1b" not in file.read_text(encoding="utf-8")


def test_the_audit_in_a_report_has_no_markup_and_no_control_characters() -> None:
    triples, entities = np.array([[0, 0, 0], [0, 0, 1], [2, 0, 1]]), Vocabulary((HOSTILE, "b", f"{HOSTILE} "))
    raw = RawGraph(entities, Vocabulary((HOSTILE,), "relation"), triples, source=HOSTILE, notes=(HOSTILE,))
    text = audit(raw, baseline_splits=()).markdown()
    assert "\x1b" not in text and "\x07" not in text
    assert text.count("<img") == text.count("\\<img") > 0


def test_a_command_stays_on_its_line() -> None:
    assert shown("imf predict --head 'a\nb\x1b[0m'") == "imf predict --head 'a␊b␛[0m'"


@pytest.mark.parametrize("sign", ["\x1bP1;2|x\x1b\\", "\x9d8;;http://x\x9c", "\x1b_G\x1b\\", "a\x08b\x0c"])
def test_other_commands_to_a_terminal_are_shown_in_every_place(tmp_path: Path, sign: str) -> None:
    assert not any(unicodedata.category(one) == "Cc" for one in visible(sign))
    file = save_picture(lambda console: console.print(sign, markup=False), 100, tmp_path / "terminal.svg", sign)
    ElementTree.parse(file)
    raw = RawGraph(Vocabulary((sign, "b")), Vocabulary((sign,), "relation"), np.array([[0, 0, 1]]), source=sign, notes=(sign,))
    assert not any(unicodedata.category(one) == "Cc" and one != "\n" for one in audit(raw, baseline_splits=()).markdown())
