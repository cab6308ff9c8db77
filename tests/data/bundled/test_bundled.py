"""The bundled data set: complete, split without leaks, the same on each run, safe to generate from several processes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imf_core.data.audit.leaks import text_leaks
from imf_core.data.bundled import unicode as bundled
from imf_core.data.bundled.unicode import BUNDLED, bundled_path, generator_version, write_unicode
from imf_core.data.formats.readers import read_raw
from imf_core.errors import DataError
from imf_core.files import cache

SPLITS = ("train", "valid", "test")
TEXT_FILES = ("train.tsv", "valid.tsv", "test.tsv", "entities.txt", "relations.txt", "descriptions.tsv")
# The content depends on the versions of Unicode and of the font: it is compared where a fingerprint of these is known.
FINGERPRINTS = {
    # Unicode 14.0.0 (Python 3.11), DejaVu Sans 2.37, fontTools 4.68.0
    "d083d4fab19a": "f620842d13d5a5d28df00787af4344ebe39d7d208d92ddccc4abf79739a3666f",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundled") / "unicode"
    write_unicode(target)
    return target


@pytest.fixture(scope="module")
def triples(folder: Path) -> dict[str, list[tuple[str, ...]]]:
    return {split: [tuple(line.split("\t")) for line in lines(folder / f"{split}.tsv")] for split in SPLITS}


def lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert "\r" not in text
    return text.split("\n")[:-1]


def fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in TEXT_FILES:
        digest.update((folder / file).read_bytes())
    return digest.hexdigest()


def test_fingerprint_is_the_recorded_one(folder):
    if generator_version() not in FINGERPRINTS:
        pytest.skip(f"no fingerprint recorded for {generator_version()}: {fingerprint(folder)}")
    assert fingerprint(folder) == FINGERPRINTS[generator_version()]


def test_second_generation_gives_the_same_bytes(folder, tmp_path):
    write_unicode(tmp_path)
    assert fingerprint(tmp_path) == fingerprint(folder)
    pictures = sorted(path.name for path in (folder / "images").iterdir())
    assert pictures == sorted(path.name for path in (tmp_path / "images").iterdir())
    for name in pictures[::500]:
        assert (tmp_path / "images" / name).read_bytes() == (folder / "images" / name).read_bytes()


def test_size_is_that_of_a_real_graph(folder, triples):
    total = sum(map(len, triples.values()))
    assert 26_000 < total < 29_000
    assert 5_900 < len(lines(folder / "entities.txt")) < 6_200
    assert 20 <= len(lines(folder / "relations.txt")) <= 40
    for split in ("valid", "test"):
        assert len(triples[split]) == pytest.approx(0.1 * total, abs=1)


def test_known_facts_are_there(triples):
    facts = {triple for split in SPLITS for triple in triples[split]}
    accented = "LATIN SMALL LETTER E WITH ACUTE"
    assert {
        (accented, "canonical_base", "LATIN SMALL LETTER E"),
        (accented, "canonical_mark", "COMBINING ACUTE ACCENT"),
        (accented, "category", "category: Ll"),
        (accented, "script", "script: Latin"),
        (accented, "block", "block: Latin-1 Supplement"),
        (accented, "bidirectional_class", "bidirectional class: L"),
        ("LATIN CAPITAL LETTER E WITH ACUTE", "lowercase", accented),
        ("GREEK SMALL LETTER FINAL SIGMA", "uppercase", "GREEK CAPITAL LETTER SIGMA"),
        ("SUPERSCRIPT TWO", "compatibility_super", "DIGIT TWO"),
        ("LATIN SMALL LIGATURE FI", "compatibility_compat", "LATIN SMALL LETTER F"),
        ("LATIN SMALL LIGATURE FI", "compatibility_next", "LATIN SMALL LETTER I"),
        ("VULGAR FRACTION ONE HALF", "fraction_denominator", "DIGIT TWO"),
        ("VULGAR FRACTION ONE HALF", "numeric_value", "numeric value: 1/2"),
        ("COMBINING ACUTE ACCENT", "combining_class", "combining class: 230"),
        ("LEFT PARENTHESIS", "mirrored", "RIGHT PARENTHESIS"),
    } <= facts


def test_names_are_listed_once_and_all_used_in_train(folder, triples):
    for file, columns in (("entities.txt", (0, 2)), ("relations.txt", (1,))):
        listed = lines(folder / file)
        assert len(set(listed)) == len(listed)
        assert {triple[column] for triple in triples["train"] for column in columns} == set(listed)


def test_no_triple_twice_and_no_loop(triples):
    everything = [triple for split in SPLITS for triple in triples[split]]
    assert len(set(everything)) == len(everything)
    assert all(head != tail for head, _, tail in everything)


def test_no_pair_of_a_held_out_triple_is_linked_anywhere_else(triples):
    links = Counter(frozenset((head, tail)) for split in SPLITS for head, _, tail in triples[split])
    assert max(links.values()) > 1  # there are such pairs, all in train
    for split in ("valid", "test"):
        assert all(links[frozenset((head, tail))] == 1 for head, _, tail in triples[split])


def test_held_out_triples_are_of_all_common_relations(triples):
    for relation, count in Counter(relation for _, relation, _ in triples["train"]).items():
        if count >= 100:
            for split in ("valid", "test"):
                assert any(triple[1] == relation for triple in triples[split]), relation


def test_each_entity_has_a_text(folder):
    rows = [line.split("\t") for line in lines(folder / "descriptions.tsv")]
    assert [name for name, _ in rows] == lines(folder / "entities.txt")
    texts = dict(rows)
    assert all(text.strip() for text in texts.values())
    assert texts["LATIN SMALL LETTER E WITH ACUTE"] == "latin small letter e with acute"
    assert texts["category: Lu"] == "general category uppercase letter"


def test_the_text_of_a_character_is_its_name_alone(folder):
    """Of a block only the names themselves tell, where it is called as their script: CYRILLIC SMALL LETTER A."""
    texts = dict(line.split("\t") for line in lines(folder / "descriptions.tsv"))
    characters = {name: text for name, text in texts.items() if ": " not in name}
    assert characters == {name: name.lower() for name in characters}
    leaks = text_leaks(read_raw(folder, test=True), texts)
    assert all(leak.share < 0.2 for leak in leaks if leak.relation == "block")
    assert not {"category", "bidirectional_class", "combining_class", "numeric_value"} & {leak.relation for leak in leaks}


def test_characters_with_ink_have_a_picture_and_attributes_have_none(folder):
    names = {path.stem for path in (folder / "images").iterdir()}
    entities = set(lines(folder / "entities.txt"))
    assert names < entities
    assert len(names) > 5_600
    assert not any(": " in name for name in names)
    assert "SPACE" not in names
    for name in sorted(names)[::200]:
        with Image.open(folder / "images" / f"{name}.png") as picture:
            assert (picture.size, picture.mode) == ((32, 32), "L")
            assert np.asarray(picture).min() < 200, name


def test_pictures_keep_the_height_of_the_glyph(folder):
    def ink_rows(name: str) -> np.ndarray:
        with Image.open(folder / "images" / f"{name}.png") as picture:
            return np.flatnonzero((np.asarray(picture) < 128).any(axis=1))

    assert ink_rows("APOSTROPHE").max() < ink_rows("COMMA").min()
    assert ink_rows("SUPERSCRIPT TWO").mean() < ink_rows("DIGIT TWO").mean() < ink_rows("SUBSCRIPT TWO").mean()


def test_path_is_generated_once(tmp_path, monkeypatch):
    monkeypatch.setenv("IMF_CACHE", str(tmp_path))
    first = bundled_path("unicode")
    assert first.parent == tmp_path
    monkeypatch.setattr(bundled, "write_unicode", lambda folder: pytest.fail("generated again"))
    assert bundled_path("unicode") == first
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_incomplete_folder_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("IMF_CACHE", str(tmp_path))
    target = tmp_path / f"unicode-{generator_version()}"
    (target / "images").mkdir(parents=True)
    (target / "train.tsv").write_text("what a cleaner of temporary files left\n")
    assert bundled_path("unicode") == target
    assert len(lines(target / "train.tsv")) > 20_000
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_processes_that_race_get_the_same_complete_folder(tmp_path):
    code = (
        "from imf_core.data.bundled.unicode import bundled_path; f = bundled_path('unicode'); "
        "print(f, len([*f.glob('images/*')]))"
    )
    root = Path(bundled.__file__).parents[3]
    environment = {**os.environ, "IMF_CACHE": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(answers) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_failed_generation_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(folder: Path) -> None:
        (folder / "train.tsv").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("IMF_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "write_unicode", full)
    with pytest.raises(DataError, match="No space left on device"):
        bundled_path("unicode")
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_names_the_known_ones():
    with pytest.raises(DataError, match=BUNDLED[0]) as caught:
        bundled_path("unikode")
    assert caught.value.value == "unikode"


def test_cache_folder_that_is_asked_for_must_be_usable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMF_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match="IMF_CACHE"):
        bundled_path("unicode")


@pytest.mark.parametrize(
    ("xdg", "home", "expected"),
    [
        ("caches", "home", "caches/imf-search"),
        (None, "home", "home/.cache/imf-search"),
        (None, "file/home", "spare/imf-search-"),
    ],
)
def test_cache_folder_follows_the_environment(tmp_path, monkeypatch, xdg, home, expected):
    (tmp_path / "file").write_text("no folder can be made below a file")
    (tmp_path / "spare").mkdir()
    monkeypatch.delenv("IMF_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "spare"))
    if xdg:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / xdg))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(cache.cache_root()).startswith(str(tmp_path / expected))
