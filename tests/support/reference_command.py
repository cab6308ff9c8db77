"""The command of the reference table, as a test calls it."""

from __future__ import annotations

import sys

import pytest

from benchmarks.reference import reference


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """`python -m benchmarks.reference ARGUMENTS`; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["reference", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        reference.main()
    return int(ended.value.code or 0)
