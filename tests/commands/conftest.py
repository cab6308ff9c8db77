"""What the tests of `imf encode` share."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoding import write_graph
from tiny_models import tiny_bert, tiny_vit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A feature store of the test's own."""
    monkeypatch.setenv("IMF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a tiny text and a tiny image model."""
    root = tmp_path_factory.mktemp("models")
    return str(tiny_bert(root / "bert")), str(tiny_vit(root / "vit"))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """MM-1: five entities, three with a picture, four with a text of which one is empty."""
    return write_graph(tmp_path / "graph")
