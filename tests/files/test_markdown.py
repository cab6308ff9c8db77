"""Tables whose cells cannot break out of them."""

from __future__ import annotations

from imf_core.files.markdown import escaped, one_line, table


def test_cells_are_text_unless_they_are_markup() -> None:
    lines = table(["name", "MRR", "a|b"], [["x|y\n<b>", "0.5", "*"]])
    assert lines == [r"| name | MRR | a\|b |", "| --- | ---: | ---: |", r"| x\|y\\n\<b\> | 0.5 | \* |", ""]
    assert table(["a", "b"], [["**x**", "1"]], left=2, markup=True) == ["| a | b |", "| --- | --- |", "| **x** | 1 |", ""]
    assert table(["a"], []) == ["| a |", "| --- |", ""]


def test_names_lose_their_markup_and_their_control_characters() -> None:
    assert escaped("[a](b) `c` *d*\n") == "\\[a\\](b) \\`c\\` \\*d\\*\n"
    assert one_line("a\tb\r\n\x85\u2028\udcff|") == "a\\\\tb\\\\r\\\\n\\\\x85\\\\u2028\\\\udcff\\|"
    assert one_line("Zoë 猫") == "Zoë 猫"
