"""From a user's folder to what trials share: views built, notes told, no test triple on disk, damage found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from imf_core.config import DataConfig
from imf_core.data.features.modality import Modality
from imf_core.errors import DataError
from imf_core.prepare.link_data import LinkData, load_prepared, prepare, resolve, save_prepared

NAMES = ("Berlin", "Germany", "Paris", "France", "New York")


def picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small graph as a user would bring it: Berlin, Germany, Paris have pictures; all but New York a text."""
    root = tmp_path / "graph"
    (root / "images").mkdir(parents=True)
    (root / "modalities").mkdir()
    (root / "train.tsv").write_text("Berlin\tin\tGermany\nParis\tin\tFrance\nBerlin\tnear\tParis\n")
    (root / "valid.tsv").write_text("Paris\tnear\tBerlin\n")
    (root / "test.tsv").write_text("New York\tnear\tGermany\n")
    (root / "descriptions.tsv").write_text(
        "Berlin\tcapital of Germany\nGermany\ta country\nParis\tcapital of France\nFrance\ta country\nAtlantis\tsunk\n"
    )
    for seed, name in enumerate(("Berlin", "Germany", "Paris", "Atlantis")):
        picture(root / "images" / f"{name}.png", seed)
    present = np.array([True, False, False, True, True])
    features = Modality("x", np.arange(10, dtype=np.float32).reshape(5, 2), present)
    features.save(root / "modalities" / "x.safetensors", NAMES[::-1])
    return root


def made(folder: Path, **changed: object) -> LinkData:
    return prepare(DataConfig.model_validate({"path": str(folder), **changed}))


def test_views_of_a_folder(folder: Path) -> None:
    data = made(folder)
    assert sorted(data.graph.entities.names) == sorted(NAMES)
    image, text, other = data.modalities
    index = data.graph.entities.index
    assert (image.name, text.name, other.name) == ("image", "text", "x")
    assert {name for name in NAMES if image.mask[index[name]]} == {"Berlin", "Germany", "Paris"}
    assert {name for name in NAMES if text.mask[index[name]]} == {"Berlin", "Germany", "Paris", "France"}
    assert (image.unknown, text.unknown, other.unknown) == (1, 1, 0)
    # x was written for the names in reverse: New York, France, Paris, Germany, Berlin
    assert [other.matrix[index[name]].tolist() for name in ("New York", "Germany", "Berlin")] == [[0, 1], [6, 7], [8, 9]]
    assert not other.mask[index["Paris"]]
    assert not text.matrix[index["New York"]].any()
    assert data.notes == ()


def test_texts_are_read_by_a_second_encoder(folder: Path) -> None:
    data = made(folder, more_text_encoders=["words"])
    assert [modality.name for modality in data.modalities] == ["image", "text", "words", "x"]
    text, words = data.select(("text", "words"))
    assert np.array_equal(text.mask, words.mask) and (words.unknown, words.encoder) == (1, "words")
    assert words.width == 3 * len({"capita", "of", "german", "a", "countr", "france"})


def test_equal_texts_have_equal_features(folder: Path) -> None:
    data = made(folder)
    text, index = data.modalities[1].matrix, data.graph.entities.index
    assert np.allclose(text[index["Germany"]], text[index["France"]], atol=1e-5)
    assert not np.allclose(text[index["Germany"]], text[index["Paris"]], atol=1e-2)


def test_twice_the_same_bits(folder: Path) -> None:
    first, second = made(folder), made(folder)
    assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(first.modalities, second.modalities, strict=True))


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({}, ("image", "text", "x")),
        ({"images": "none"}, ("text", "x")),
        ({"text": "none"}, ("image", "x")),
        ({"text": "names"}, ("image", "text", "x")),
        ({"text": "none", "images": "none"}, ("x",)),
    ],
)
def test_views_can_be_switched_off(folder: Path, changed: dict[str, object], names: tuple[str, ...]) -> None:
    data = made(folder, **changed)
    assert tuple(modality.name for modality in data.modalities) == names
    if changed.get("text") == "names":
        assert data.select(("text",))[0].mask.all()


def test_damaged_and_repeated_pictures_are_told(folder: Path) -> None:
    (folder / "images" / "Paris.png").write_bytes(b"<html>")
    picture(folder / "images" / "Berlin.bmp", 9)
    data = made(folder)
    image, index = data.modalities[0], data.graph.entities.index
    assert not image.mask[index["Paris"]] and image.mask.sum() == 2
    assert data.notes[0] == "image: entities with several pictures: 1; the features are their mean"
    assert data.notes[1].startswith("image: 1 of 4 pictures cannot be read and count as missing (Paris.png: ")


def test_many_damaged_pictures_are_counted_not_listed(folder: Path) -> None:
    (folder / "train.tsv").write_text("".join(f"e{i}\tin\te{i + 1}\n" for i in range(9)))
    (folder / "valid.tsv").write_text("e0\tin\te5\n")
    picture(folder / "images" / "e8.png", 5)
    for i in range(8):
        (folder / "images" / f"e{i}.png").write_bytes(b"")
    (note,) = made(folder, text="none").notes
    assert note.startswith("image: 8 of 10 pictures cannot be read")
    assert note.count(".png: ") == 5
    assert note.endswith("; and 3 more)")


def test_when_every_picture_is_damaged_that_is_the_message(folder: Path) -> None:
    for name in ("Berlin", "Germany", "Paris"):
        (folder / "images" / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of the 3 pictures can be read \(first: Berlin.png: ") as caught:
        made(folder)
    assert "data.images=none" in caught.value.remedy
    assert [modality.name for modality in made(folder, images="none").modalities] == ["text", "x"]


def test_pictures_of_others_are_told(folder: Path) -> None:
    for name in ("Berlin", "Germany", "Paris"):
        (folder / "images" / f"{name}.png").rename(folder / "images" / f"{name}-1.png")
    data = made(folder)
    assert [modality.name for modality in data.modalities] == ["text", "x"]
    note, = data.notes
    assert note.startswith("image: none of the 4 names of pictures in images/ is an entity: name them as the entities")


def test_ready_made_features_replace_a_view(folder: Path) -> None:
    Modality("text", np.ones((5, 3), np.float32), np.ones(5, bool)).save(folder / "modalities" / "text.safetensors", NAMES)
    (folder / "modalities" / ".DS_Store").write_bytes(b"\x00")
    (folder / "descriptions.tsv").write_text("no tab: would be refused, were it read\n")
    data = made(folder)
    assert data.select(("text",))[0].width == 3
    assert data.notes == ("text: ready-made features are used, not descriptions.tsv",)
    assert [modality.name for modality in data.modalities] == ["image", "text", "x"]
    facts = {"encoder": "minilm", "key": "k"}
    Modality("text", np.ones((5, 3), np.float32), np.ones(5, bool)).save(
        folder / "modalities" / "text.safetensors", NAMES, facts
    )
    assert made(folder).notes == (
        "text: features that `imf encode` made from descriptions.tsv with minilm (run it again after a change there)",
    )


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        ("Berlin\ta\n\nBerlin\tb\n", "a second text for the entity (found 'Berlin')", 3),
        ("Berlin\ta\nParis b\n", "no tab between entity and text", 2),
        ("Atlantis\ta\n", "describes none of the 5 entities (1 lines of unknown names)", None),
        ("Berlin\t \n", "describes none of the 5 entities (0 lines of unknown names)", None),
    ],
)
def test_unusable_descriptions(folder: Path, content: str, message: str, line: int | None) -> None:
    (folder / "descriptions.tsv").write_text(content)
    with pytest.raises(DataError) as caught:
        made(folder)
    assert message in str(caught.value)
    assert "descriptions.tsv" in str(caught.value)
    if line is not None:
        assert caught.value.line == line


def test_descriptions_asked_for_and_missing(folder: Path) -> None:
    (folder / "descriptions.tsv").unlink()
    with pytest.raises(DataError, match=r"descriptions.tsv cannot be read"):
        made(folder, text="descriptions")
    assert [modality.name for modality in made(folder).modalities] == ["image", "x"]


def test_neither_folder_nor_bundled(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a folder nor a bundled data set") as caught:
        resolve(str(tmp_path / "nowhere"))
    assert "unicode" in caught.value.remedy


def test_select(folder: Path) -> None:
    data = made(folder)
    assert [modality.name for modality in data.select(("x", "image"))] == ["x", "image"]
    assert data.select(None) == data.modalities
    assert data.select(()) == ()
    with pytest.raises(DataError, match=r"modality 'sound' is not there; found: image, text, x"):
        data.select(("image", "sound"))


# --- the shared form ----------------------------------------------------------------------------------------------------


def test_round_trip(folder: Path, tmp_path: Path) -> None:
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    with (folder / "train.tsv").open("ab") as handle:
        handle.write(b"caf\xe9\tin\tFrance\n")
    (folder / "images" / "France.png").write_bytes(b"")
    data = made(folder)
    save_prepared(data, tmp_path / "prepared")
    again = load_prepared(tmp_path / "prepared")
    assert odd in again.graph.entities.names
    assert (again.graph.entities, again.graph.relations) == (data.graph.entities, data.graph.relations)
    assert (again.graph.notes, again.graph.source, again.notes) == (data.graph.notes, data.graph.source, data.notes)
    assert again.notes
    assert again.graph.fingerprint == data.graph.fingerprint
    for before, after in zip(data.modalities, again.modalities, strict=True):
        assert (before.name, before.unknown) == (after.name, after.unknown)
        assert np.array_equal(before.standardised(), after.standardised())
        assert np.array_equal(before.mask, after.mask)
        assert before.encoder == after.encoder


def test_the_test_split_is_not_in_it(folder: Path, tmp_path: Path) -> None:
    data = made(folder)
    triples = data.graph.open_test()
    save_prepared(data, tmp_path / "prepared")
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == ["arrays.safetensors", "vocabulary.json"]
    stored = load_file(tmp_path / "prepared" / "arrays.safetensors")
    assert sorted(stored) == sorted(
        ["train", "valid", *(f"{kind}.{name}" for name in ("image", "text", "x") for kind in ("matrix", "mask"))]
    )
    rows = {tuple(row) for split in ("train", "valid") for row in stored[split].tolist()}
    assert tuple(triples[0].tolist()) not in rows
    again = load_prepared(tmp_path / "prepared")
    assert again.graph.test_reader is None
    with pytest.raises(DataError, match="has no test split"):
        again.graph.open_test()


def stored(folder: Path, tmp_path: Path) -> Path:
    save_prepared(made(folder), tmp_path / "prepared")
    return tmp_path / "prepared"


@pytest.mark.parametrize("tensor", ["train", "valid", "matrix.text", "mask.x"])
def test_changed_arrays_are_found(folder: Path, tmp_path: Path, tensor: str) -> None:
    place = stored(folder, tmp_path)
    arrays = {name: value.copy() for name, value in load_file(place / "arrays.safetensors").items()}
    arrays[tensor].flat[0] = not arrays[tensor].flat[0]
    save_file(arrays, place / "arrays.safetensors")
    with pytest.raises(DataError, match="is damaged"):
        load_prepared(place)


def test_arrays_of_another_vocabulary_are_found(folder: Path, tmp_path: Path) -> None:
    place = stored(folder, tmp_path)
    described = json.loads((place / "vocabulary.json").read_text())
    described["entities"][:2] = described["entities"][1::-1]
    (place / "vocabulary.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match="is damaged: fingerprint"):
        load_prepared(place)


@pytest.mark.parametrize("part", ["arrays.safetensors", "vocabulary.json"])
@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_missing_and_cut_parts(folder: Path, tmp_path: Path, part: str, how: str) -> None:
    place = stored(folder, tmp_path)
    if how == "missing":
        (place / part).unlink()
    else:
        (place / part).write_bytes(b"" if how == "empty" else (place / part).read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged"):
        load_prepared(place)
