"""The encoder of words: what a text begins with, apart from the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import imf_core as imf
from imf_core.encode.text.words import WordsTextEncoder, parted, words_of


@pytest.mark.parametrize(("text", "parts"), [
    ("dog, a member of the genus Canis", ("dog", ", a member of the ", "genus Canis")),
    ("land reform: a redistribution", ("land reform", ": a redistribution", "")),
    ("Douglas Adams (1952 - 2001) was a writer", ("Douglas Adams ", "(1952 - 2001) was a ", "writer")),
    ("St-Denis - a town", ("St-Denis", " - a town", "")),
    ("Ghana", ("Ghana", "", "")),
    ("Ghana is a country in the west of all Africa", ("Ghana is a country in ", "the west of all ", "Africa")),
    ("", ("", "", "")),
])
def test_a_text_begins_with_a_name(text: str, parts: tuple[str, ...]) -> None:
    assert parted(text) == parts


def test_words_lose_their_case_and_endings() -> None:
    assert words_of("Redistribution, redistributing; 42 DOGS") == ["redist", "redist", "42", "dogs"]


def test_parts_are_compared_word_by_word() -> None:
    items = ["canine, a carnivore", "dog, a tame canine", "wolf, a wild canine", "cat, a feline", None, "..."]
    matrix, mask = WordsTextEncoder().encode(items)
    assert mask.tolist() == [True] * 4 + [False] * 2 and not matrix[4:].any()
    name, rest, last = np.split(matrix, 3, axis=1)
    in_definition = rest @ name.T  # whose definition names whom
    assert in_definition[1, 0] > 0.4 and in_definition[2, 0] > 0.4
    assert not in_definition[0].any() and not in_definition[3].any()
    assert np.allclose(np.linalg.norm(name[:4], axis=1), 1, atol=1e-6)
    assert rest[1] @ rest[2] > rest[1] @ rest[3] > 0  # "a" is of little weight
    assert not last.any()


def test_projected_vectors_have_the_cosines_of_the_bags_of_words() -> None:
    rng = np.random.default_rng(0)
    items = [" ".join(f"w{n}" for n in rng.integers(0, 3000, 12)) for _ in range(400)]
    exact, small = (WordsTextEncoder(width).encode(items)[0] for width in (20_000, 1536))
    assert small.shape == (400, 1536) and exact.shape[1] > 6_000
    for part, other in zip(np.split(small, 3, axis=1), np.split(exact, 3, axis=1), strict=True):
        noise = part @ part.T - other @ other.T
        assert 0.5 < noise.std() * np.sqrt(512) < 2
    assert np.array_equal(small, WordsTextEncoder(1536).encode(items)[0])


def test_a_definition_finds_what_it_names_for_an_entity_that_training_lacks(tmp_path: Path) -> None:
    kinds = ("tree", "bird", "river", "metal", "dance", "bread", "boat", "star", "drum", "cloth")
    things = [f"t{number}" for number in range(100)]
    lines = [f"{kind}\t{kind}, a kind of thing" for kind in kinds]
    lines += [f"{name}\t{name}, a {kinds[number % 10]} of the land" for number, name in enumerate(things)]
    facts = [f"{name}\tis a\t{kinds[number % 10]}" for number, name in enumerate(things)]
    (tmp_path / "descriptions.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "train.tsv").write_text("\n".join(facts[:60]) + "\n")
    (tmp_path / "valid.tsv").write_text("\n".join(facts[60:]) + "\n")
    compared = {
        "data.text_encoder": "words", "model.fusion": "none",
        "model.heads": [{"view": "text", "scoring": "similarity", "parts": 3, "only": True}],
    }
    small = {"model.dim": 8, "model.relation_dim": 4, "train.lr": 0.03, "train.max_epochs": 20, "train.batch_size": 16}
    structure, words = (
        imf.train(tmp_path, {**small, **settings}) for settings in ({"data.text": "none"}, compared)
    )
    tail = imf.evaluate(words).slices["tail"]
    assert tail.mrr > 0.9 and tail.mrr > 3 * imf.evaluate(structure).slices["tail"].mrr
    assert words.model.branches == ("structure", "text_similarity")
