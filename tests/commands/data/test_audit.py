"""`imf audit` as it is typed: text, JSON, exit status, repaired copies, explicit files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.errors import ConfigError, DataError

LEAKING = {
    "train.tsv": "a r1 b,c r1 d,e r1 f,a r1 b,g r1 g,a r3 c,c r1 d,b r4 d,d r4 f,f r4 a",
    "test.tsv": "b r4 d,b r2 a,d r2 c,f r2 e",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text("".join("\t".join(line.split()) + "\n" for line in text.split(",")))
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["audit", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_a_leaking_graph_is_told_and_strict_refuses_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "graph", LEAKING)
    status, said = run(folder)
    assert status == 0
    for fact in (
        "2 duplicates removed (8 left)", "1 self-loop kept", "1 single-triple relation", "1 overlap",
        "r2 looks like inverse of r1: 3 of 4 test triples", "no validation split",
    ):
        assert fact in said
    assert run(folder, "--strict")[0] == 1


def test_a_clean_graph_passes_strict(tmp_path: Path) -> None:
    folder = write(tmp_path / "graph", {"train.tsv": "a r b,b r c", "test.tsv": "a r z,z r y,a q b"})
    status, said = run(folder, "--strict")
    assert status == 0
    assert "2 unseen entities in 2 test triples; 1 unseen relation in 1" in said


def test_json_holds_everything_and_nothing_else_is_printed(tmp_path: Path) -> None:
    folder = write(tmp_path / "graph", LEAKING)
    status, said = run(folder, "--json", "--strict", "--repair", tmp_path / "out")
    told = json.loads(said)
    assert status == 1
    assert (told["test"]["lines"], told["test"]["in_train"], told["valid"]["present"]) == (4, 1, False)
    assert told["repair"]["train"]["in_test"] == 1


def test_the_repaired_copy_passes_and_keeps_test(tmp_path: Path) -> None:
    folder = write(tmp_path / "graph", LEAKING)
    status, said = run(folder, "--repair", tmp_path / "out")
    assert status == 0
    assert "Repair repaired copy:" in said
    assert (tmp_path / "out" / "test.tsv").read_text() == (folder / "test.tsv").read_text()
    assert run(tmp_path / "out", "--strict")[0] == 0
    with pytest.raises(DataError, match=r"there already"):
        run(folder, "--repair", tmp_path / "out")
    assert run(folder, "--repair", tmp_path / "small", "--valid-size", 1)[0] == 0
    assert len((tmp_path / "small" / "valid.tsv").read_text().splitlines()) == 1


def test_coverage_is_printed(tmp_path: Path) -> None:
    folder = write(tmp_path / "graph", {"train.tsv": "e0 r e1,e2 r e3,e4 r e0"})
    (folder / "descriptions.tsv").write_text("e0\tone\ne1\ttwo\ne2\tthree\ne3\t\n")
    (folder / "images").mkdir()
    for name in ("e0", "e2", "e4", "e9"):
        (folder / "images" / f"{name}.png").write_bytes(b"never opened")
    assert "coverage: images 3 of 5, text 3 of 5 (1 empty), 1 unknown id" in run(folder)[1]


def test_explicit_files_stand_in_for_those_of_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "graph", {"train.tsv": "a r b,b r c", "valid.tsv": "a r b"})
    other = write(tmp_path / "other", {"held.tsv": "b r a"})
    assert run(folder, "--strict")[0] == 1
    assert run(folder, "--valid", other / "held.tsv", "--strict")[0] == 0
    status, said = run("--train", folder / "train.tsv", "--test", other / "held.tsv", "--json")
    assert status == 0
    assert json.loads(said)["test"]["lines"] == 1


def test_nothing_to_audit() -> None:
    with pytest.raises(ConfigError, match=r"no graph to audit"):
        run()


def test_the_bundled_graph_is_clean() -> None:
    status, said = run("unicode", "--strict")
    assert status == 0
    assert "training and test are disjoint" in said
    assert "images 5," in said
