"""A folder like site-packages with a package of one's own parts in it, found by its entry points."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imf_core.parts import registry

PACKAGE = Path(__file__).parent / "package"


def install_into(site: Path) -> Path:
    """What `pip install` leaves of the package there."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    shutil.copytree(PACKAGE / "rotate_part", site / "rotate_part", ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"rotate_part-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; not on the path."""
    return install_into(tmp_path_factory.mktemp("site"))


@contextmanager
def on_path(site: Path) -> Iterator[None]:
    """The package installed in this process, for a while."""
    sys.path.insert(0, str(site))
    try:
        with registry.scope():
            yield
    finally:
        sys.path.remove(str(site))
        for name in [name for name in sys.modules if name.partition(".")[0] == "rotate_part"]:
            del sys.modules[name]


@pytest.fixture
def installed(site: Path) -> Iterator[Path]:
    """The package installed in this process, for a test."""
    with on_path(site):
        yield site


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    with registry.scope():
        yield
