"""The notebooks of `examples/` run from top to bottom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LONG = ["quickstart"]  # a minute: it searches, as `tests/tune/test_interface.py` does


@pytest.mark.parametrize("file", [
    pytest.param(file, id=file.stem, marks=[pytest.mark.slow] if file.stem in LONG else []) for file in NOTEBOOKS
])
def test_a_notebook_shows_what_is_kept_in_its_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures may differ a little from processor to processor; what kind of thing a cell shows may not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):  # no kernel and no profile of the user's
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(file, as_version=4)
    stored = [kinds(cell) for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [kinds(cell) for cell in notebook.cells]
    assert sum(map(bool, shown)) >= 5
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    displayed = [output.data["text/html"] for output in outputs if output.output_type == "display_data"]
    assert not any(displayed)  # a quiet search shows nothing by itself
    assert [pair for pair in zip(shown, stored, strict=True) if pair[1] and pair[0] != pair[1]] == []


def kinds(cell: Any) -> list[str]:
    """What a cell shows: streams, and of each value its best form."""
    forms = [set(output.get("data", {output.get("name")})) for output in cell.get("outputs", [])]
    return sorted({form for each in forms for form in (each - {"text/plain", "image/jpeg"} or each)})
