"""Text features: deterministic, similar for similar texts, honest about missing ones."""

from __future__ import annotations

import numpy as np
import pytest

from imf_core.encode.text.ngrams import NgramTextEncoder, readable

MARKS = ("acute", "grave", "circumflex", "diaeresis", "caron", "breve", "tilde", "ogonek")
CASES = ("small", "capital")
NAMES = [f"latin {case} letter {letter} with {mark}" for case in CASES for letter in "aeiou" for mark in MARKS]
NAMES += [f"box drawings {weight} {way}" for weight in ("light", "heavy", "double") for way in ("left", "right", "up", "down")]


def nearest(matrix: np.ndarray, row: int) -> list[int]:
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return [int(other) for other in np.argsort(-(unit @ unit[row])) if other != row]


def test_similar_names_are_neighbours():
    matrix, _ = NgramTextEncoder(width=32).encode(NAMES)
    row = NAMES.index("latin small letter e with acute")
    close = [NAMES[other] for other in nearest(matrix, row)[:4]]
    assert all(name.startswith("latin small letter") and name.endswith("acute") for name in close)
    assert all("latin" not in NAMES[other] for other in nearest(matrix, row)[-12:])


def test_same_bits_on_each_run():
    first, _ = NgramTextEncoder(width=32, seed=3).encode(NAMES)
    second, _ = NgramTextEncoder(width=32, seed=3).encode(NAMES)
    assert first.tobytes() == second.tobytes()


def test_shape_scale_and_mask():
    items = [None, *NAMES, "", " \t\n"]
    matrix, mask = NgramTextEncoder(width=32).encode(items)
    assert matrix.shape == (len(items), 32)
    assert matrix.dtype == np.float32
    assert mask.tolist() == [False] + [True] * len(NAMES) + [False, False]
    assert not matrix[~mask].any()
    assert (matrix[mask] ** 2).mean(axis=1) == pytest.approx(1.0, abs=1e-4)


def test_missing_texts_do_not_change_the_others():
    alone, _ = NgramTextEncoder(width=16).encode(NAMES)
    among, mask = NgramTextEncoder(width=16).encode([text for name in NAMES for text in (None, name)])
    assert np.array_equal(among[mask], alone)


@pytest.mark.parametrize(
    ("items", "width"),
    [
        ([], 0), ([None, " "], 0), (["one"], 1), (["a", None], 1), (["same", "same"], 2), (["。", "中"], 2),
        (["caf\udce9", "tea"], 2),
    ],
)
@pytest.mark.filterwarnings("error")
def test_few_items_give_a_narrower_matrix(items, width):
    matrix, mask = NgramTextEncoder(width=128).encode(items)
    assert matrix.shape == (len(items), width)
    assert mask.shape == (len(items),)
    assert np.isfinite(matrix).all()
    assert matrix[mask].any(axis=1).all()


def test_long_texts_are_cut():
    texts = ["the same beginning of a", "the same beginning of another one", "the same beginning of it", "other"]
    matrix, _ = NgramTextEncoder(width=4, max_chars=20).encode(texts)
    assert np.allclose(matrix[0], matrix[1])
    assert np.allclose(matrix[0], matrix[2])
    assert not np.allclose(matrix[0], matrix[3])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Gilles_Mbang_Ondo", "Gilles Mbang Ondo"),
        ("<http://dbpedia.org/resource/Foo_Bar>", "Foo Bar"),
        ("http://dbpedia.org/resource/Foo_Bar/", "Foo Bar"),
        ("http://www.w3.org/2002/07/owl#Thing", "Thing"),
        ("<http://dbpedia.org/resource/Z%C3%BCrich_(canton)>", "Zürich canton"),
        ("http://example.org/", "example.org"),
        ("/m/027rn", "m 027rn"),
        ("AC%2FDC", "AC DC"),
        ("C++", "C++"),
        ("100%", "100%"),
        ("St. John's", "St. John's"),
        ("LATIN SMALL LETTER E WITH ACUTE", "LATIN SMALL LETTER E WITH ACUTE"),
        ("caf\udce9_noir", "caf\udce9 noir"),
        ("___", "___"),
        ("", ""),
    ],
)
def test_readable(name, words):
    assert readable(name) == words
