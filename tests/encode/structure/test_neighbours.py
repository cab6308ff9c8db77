"""Neighbour lists, samples within the cap, steps of two hops, corruptions that are no training triple."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imf_core.encode.structure.neighbours import Corruption, Neighbours

TRIPLES = np.array([[0, 0, 1], [0, 1, 2], [3, 0, 0], [2, 1, 2]], dtype=np.int64)  # the last one a self-loop; entity 4 is alone


def edges_of(neighbours: Neighbours, nodes: np.ndarray, most: int, seed: int = 0) -> set[tuple[int, int, int]]:
    rows, places = neighbours.sample(nodes, most, np.random.default_rng(seed))
    triples = np.stack([nodes[rows], neighbours.relations[places], neighbours.others[places]], axis=1)
    return set(map(tuple, triples.tolist()))


def test_edges_go_both_ways() -> None:
    found = edges_of(Neighbours(TRIPLES, 5, 2), np.arange(5), 100)
    assert found == {(0, 0, 1), (1, 2, 0), (0, 1, 2), (2, 3, 0), (3, 0, 0), (0, 2, 3), (2, 1, 2), (2, 3, 2)}


def test_a_step_reaches_two_hops_and_no_further() -> None:
    chain = np.array([[i, 0, i + 1] for i in range(9)], dtype=np.int64)
    nodes, (first, second) = Neighbours(chain, 10, 1).step(np.array([4]), 100, np.random.default_rng(0))
    assert nodes.tolist() == [4, 3, 5, 2, 6]
    assert (first.size, second.size) == (3, 1)
    named = [nodes[hop.edges].T.tolist() for hop in (first, second)]
    assert sorted(named[1]) == [[4, 3], [4, 5]]
    assert sorted(named[0]) == [[3, 2], [3, 4], [4, 3], [4, 5], [5, 4], [5, 6]]
    assert second.types.tolist() == [0, 1]  # 4 -> 5 by the relation, 4 -> 3 by its inverse


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32))
def test_a_sample_is_distinct_and_of_the_wanted_size(most: int, degree: int, seed: int) -> None:
    star = np.array([[0, 0, i + 1] for i in range(degree)], dtype=np.int64)
    rows, places = Neighbours(star, degree + 1, 1).sample(np.array([0, 1]), most, np.random.default_rng(seed))
    assert np.bincount(rows, minlength=2).tolist() == [min(most, degree), 1]
    assert len(set(places.tolist())) == len(places)


def test_every_neighbour_is_equally_likely() -> None:
    star = np.array([[0, 0, i + 1] for i in range(7)], dtype=np.int64)
    neighbours, rng = Neighbours(star, 8, 1), np.random.default_rng(0)
    drawn = [neighbours.others[neighbours.sample(np.array([0]), 3, rng)[1]] for _ in range(4000)]
    shares = np.bincount(np.concatenate(drawn), minlength=8)[1:] / 4000
    np.testing.assert_allclose(shares, 3 / 7, atol=0.04)


def test_corruptions_change_one_end_and_are_no_training_triples() -> None:
    drawn, good = Corruption(TRIPLES, 5, 2).draw(TRIPLES, 50, np.random.default_rng(0))
    originals = np.repeat(TRIPLES, 50, axis=0)
    assert good.all()
    assert (drawn[:, 1] == originals[:, 1]).all()
    assert ((drawn != originals).sum(axis=1) == 1).all()
    assert not {tuple(row) for row in drawn.tolist()} & {tuple(row) for row in TRIPLES.tolist()}
    heads = int((drawn[:, 0] != originals[:, 0]).sum())
    assert 60 < heads < 140  # of 200: both ends are tried


def test_where_all_triples_are_true_no_corruption_counts() -> None:
    everything = np.array([[h, 0, t] for h in range(2) for t in range(2)], dtype=np.int64)
    _, good = Corruption(everything, 2, 1).draw(everything, 3, np.random.default_rng(0))
    assert not good.any()
