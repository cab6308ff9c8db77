"""The files around the source: exact versions, Makefile, licence, and no package host named anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Spelled so that this file does not match itself.
PACKAGE_HOST = re.compile(
    r"pypi\.(org|python)|python[h]osted\.|download\.pytorch|--(extra-)?index-url\b[ =]|--find-links\b[ =]", re.IGNORECASE
)
DIRECT = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def pins() -> dict[str, str]:
    """Name -> version of constraints.txt; anything but an exact pin is an error."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)==([^\s;@+]+)", line).groups()  # type: ignore[union-attr]
            assert canonicalize_name(name) not in found, f"{name} is pinned twice"
            found[canonicalize_name(name)] = version
    return found


def project_files() -> list[Path]:
    """Files of the repository: what git tracks or would track; all but hidden folders where this is no checkout."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    ) if (ROOT / ".git").exists() else None
    if listing is None or listing.returncode:
        inside = [file.relative_to(ROOT) for file in ROOT.rglob("*")]
        names = [file for file in inside if not file.parts[0].startswith(".")]
    else:
        names = [Path(os.fsdecode(name)) for name in listing.stdout.split(b"\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@pytest.mark.parametrize("dependency", DIRECT)
def test_direct_dependency_is_pinned_exactly(dependency) -> None:
    wanted = Requirement(dependency)
    assert Version(pins()[canonicalize_name(wanted.name)]) in wanted.specifier


def test_every_dependency_has_a_lower_bound() -> None:
    optional = [item for extra in PROJECT["optional-dependencies"].values() for item in extra]
    unbounded = [item for item in [*PROJECT["dependencies"], *optional] if ">=" not in item]
    assert unbounded == []


def test_console_script_is_imf_alone() -> None:
    assert PROJECT["scripts"] == {"imf": "imf_core.cli:main"}


def test_makefile_has_the_documented_targets() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):(?!=)", text, re.M))
    assert {"demo", "test", "slow", "bench", "lint", "types", "docs", "clean", "help"} <= targets


def test_ci_is_executable_and_runs_the_checks() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert [target for target in ("lint", "types", "docs", "test") if f"make {target}" not in text] == []


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("package", ["imf_core", "tune"])
def test_package_ships_its_types(package) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_links_between_the_pages_lead_somewhere() -> None:
    kept = set(project_files())
    links = [
        (page, target) for page in kept if page.suffix == ".md"
        for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 20
    lost = [
        f"{page.relative_to(ROOT)}: {target}" for page, target in links
        if (there := (page.parent / target).resolve()) not in kept and not any(there in file.parents for file in kept)
    ]
    assert lost == []


def test_the_readme_of_imf_core_names_the_spine_and_every_folder() -> None:
    core = ROOT / "imf_core"
    text = (core / "README.md").read_text(encoding="utf-8")
    spine = re.findall(r"^\| \d+ \| \[(.+?)\]\((.+?)\) \|", text, re.M)
    assert len(spine) == 16
    assert [name for name, target in spine if name != target or not (core / target).is_file()] == []
    named = set(re.findall(r"^\| `([a-z_/]+)/` \|", text, re.M))
    assert named == {file.parent.relative_to(core).as_posix() for file in core.glob("*/**/__init__.py")}


def test_no_package_host_is_named() -> None:
    named = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in project_files()
        if (match := PACKAGE_HOST.search(file.read_bytes().decode("utf-8", "ignore")))
    ]
    assert named == []


@pytest.mark.parametrize("line", ["https://pypi" + ".org/x", "--index-" + "url http://x", "DOWNLOAD." + "pytorch.org"])
def test_a_package_host_is_seen(line) -> None:
    assert PACKAGE_HOST.search(line)
