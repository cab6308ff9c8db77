"""`imf encode` when something is not as it should be: what is wrong is said at once, with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoding import draw, fails, run
from PIL import Image

from imf_core.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    ("option", "name", "meant"),
    [("--text", "minilmm", "minilm"), ("--text", "ngram", "ngrams"), ("--image", "efficientnet", "efficientnet-lite0"),
     ("--image", "vgg-16", "vgg16"), ("--image", "bitmaps", "bitmap")],
)
def test_a_slip_of_the_pen(graph: Path, models: tuple[str, str], option: str, name: str, meant: str) -> None:
    names = {"--text": models[0], "--image": models[1], option: name}
    error = fails(graph, *(part for pair in names.items() for part in pair))
    assert f"the model {name} is not in" in str(error)
    assert error.remedy.startswith(f"did you mean {meant}?")


def test_a_name_that_is_like_none_of_ours(graph: Path) -> None:
    assert "did you mean" not in fails(graph, "--text", "someone/other-model", "--image", "none").remedy
    for name in ("./nowhere", "../models/mine", "/no/such/folder", "~/nothing/here"):
        error = fails(graph, "--text", name, "--image", "none")
        assert f"no model folder {name}" in str(error)
        assert "config.json" in error.remedy


def test_both_encoders_are_looked_for_before_either_works(graph: Path, models: tuple[str, str], cache: Path) -> None:
    """Pictures come first: hours of them must not go by before a wrong text model shows."""
    fails(graph, "--text", "no-such-model", "--image", models[1])
    assert not (cache / "features").exists()
    assert list((graph / "modalities").iterdir()) == []


def test_nothing_asked_for(graph: Path) -> None:
    error = fails(graph, "--text", "none", "--image", "none")
    assert isinstance(error, DataError)
    assert "name an encoder" in error.remedy


def test_pictures_of_a_format_that_is_not_read_are_counted(graph: Path, models: tuple[str, str]) -> None:
    Image.new("RGB", (8, 8)).save(graph / "images" / "e1.tif")
    (graph / "images" / "e3").mkdir()
    (graph / "images" / "e3" / "1.svg").write_text("<svg/>")
    said = run(graph, "--text", "none", "--image", models[1])
    assert "files in images/ of a format that is not read: 2; convert them to PNG, JPEG, WebP, BMP or GIF" in said
    for path in (graph / "images").glob("*.png"):
        path.unlink()
    said = run(graph, "--text", "none", "--image", models[1])
    assert "there is no picture in images/" in said
    assert "not read: 2" in said


def test_pictures_and_texts_of_nobody(graph: Path, models: tuple[str, str]) -> None:
    for path in (graph / "images").iterdir():
        path.unlink()
    draw(graph / "images" / "stranger.png", 0)
    (graph / "descriptions.tsv").write_text("stranger\ta text\n")
    said = run(graph, "--text", models[0], "--image", models[1])
    assert "none of the 1 names of pictures in images/ is an entity" in said
    assert "describes none of the 5 entities (1 lines of unknown names)" in said
    assert list((graph / "modalities").iterdir()) == []


def test_a_line_without_a_tab_is_named(graph: Path, models: tuple[str, str]) -> None:
    (graph / "descriptions.tsv").write_text("e0\tfirst\ne1 second\n")
    error = fails(graph, "--text", models[0], "--image", "none")
    assert error.line == 2
    assert "found 'e1 second'" in str(error)
