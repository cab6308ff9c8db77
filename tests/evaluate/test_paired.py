"""Paired statistics of two models' ranks: known answers, exactness, symmetry, and how often nothing is called something."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from imf_core.errors import DataError, ImfError
from imf_core.evaluate import paired
from imf_core.evaluate.paired import Part, bootstrap_interval, compare_ranks, sign_flip


def random_ranks(seed: int, triples: int, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (2T,) of two models. Both queries of a triple share how hard it is and how lucky each model is with it."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(1.5, 1.0, triples)
    both = [
        np.exp(np.maximum(hard + generator.normal(0, 0.7, triples) + generator.normal(0, 0.3, (2, triples)) - lead, 0)).ravel()
        for lead in (gain, 0.0)
    ]
    return np.ceil(both[0]), np.ceil(both[1])


def enumerated(changes: np.ndarray) -> float:
    """p by the definition: all 2^n choices of signs, zeros included."""
    sums = [abs(float(np.dot(signs, changes))) for signs in itertools.product((-1.0, 1.0), repeat=len(changes))]
    return sum(value >= abs(float(changes.sum())) - 1e-9 for value in sums) / len(sums)


def test_the_same_ranks_differ_by_nothing() -> None:
    ranks, _ = random_ranks(0, 50)
    found = compare_ranks(ranks, ranks.copy())
    assert (found.p, found.all.difference, found.interval, found.real) == (1.0, 0.0, (0.0, 0.0), False)
    assert (found.all.better, found.all.equal, found.all.worse) == (0, 100, 0)


def test_figures_computed_by_hand() -> None:
    """Three triples, tails before heads: changes of a triple are the mean of both of its queries."""
    first, second = np.array([1.0, 2, 4, 1, 1, 5]), np.array([2.0, 2, 2, 1, 4, 10])
    found = compare_ranks(first, second, {"tail": np.arange(6) < 3, "none": np.zeros(6, dtype=bool)})
    assert found.all.first == pytest.approx((1 + 0.5 + 0.25 + 1 + 1 + 0.2) / 6)
    assert found.all.difference == pytest.approx((0.5 - 0.25 + 0.75 + 0.1) / 6)
    assert (found.all.better, found.all.equal, found.all.worse) == (3, 2, 1)
    tail = found.slices["tail"]
    assert (tail.count, tail.better, tail.equal, tail.worse) == (3, 1, 1, 1)
    assert tail.difference == pytest.approx((0.5 - 0.25) / 3)
    assert found.slices["none"] == Part(0, 0.0, 0.0, 0, 0, 0)
    # The changes are 0.25, 0.375 and -0.075: of eight sums two of each sign are at least as far from 0 as 0.55.
    assert (found.p, found.exact, found.least) == (0.5, True, 0.25)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_few_triples_are_enumerated(count: int) -> None:
    changes = np.random.default_rng(count).normal(0.1, 0.5, count)
    p, exact, least = sign_flip(np.append(changes, [0.0, 0.0]))
    assert exact and least == 2 / 2**count
    assert p == pytest.approx(enumerated(changes), abs=1e-12)
    assert p == pytest.approx(enumerated(np.append(changes, 0.0)), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_p_agrees_with_the_exact_one(seed: int) -> None:
    """12 triples have 4,096 assignments; 2,000 draws estimate p within four standard errors."""
    changes = np.random.default_rng(seed).normal(0.15, 0.4, 12)
    drawn, exact, least = sign_flip(changes, draws=2_000)
    wanted = enumerated(changes)
    assert not exact and least == 1 / 2_001
    assert drawn == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / 2_000) + 1 / 2_001)
    assert sign_flip(changes)[0] == pytest.approx(wanted, abs=1e-12)


def test_equal_changes_tie_with_the_observed_sum() -> None:
    """0.1 added in another order is not quite the same number; only both extreme sums are as far out as the observed one."""
    assert sign_flip(np.full(10, 0.1))[0] == 2 / 2**10
    assert sign_flip(np.full(10, -0.1))[0] == 2 / 2**10


def test_a_known_direction_is_found() -> None:
    found = compare_ranks(*random_ranks(1, 400, gain=0.5))
    assert found.all.difference > 0 and found.all.better > found.all.worse
    assert found.p == 1e-4 and found.real  # no draw is as far out
    assert 0 < found.interval[0] < found.all.difference < found.interval[1]


@pytest.mark.parametrize(("triples", "gain"), [(8, 0.3), (300, 0.1)])
def test_exchanged_models_give_the_mirror_image(triples: int, gain: float) -> None:
    first, second = random_ranks(3, triples, gain)
    there, back = compare_ranks(first, second), compare_ranks(second, first)
    assert back.p == there.p and back.exact == there.exact
    assert back.all.difference == -there.all.difference
    assert (back.all.better, back.all.worse) == (there.all.worse, there.all.better)
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-12)


def test_the_same_seed_gives_the_same_figures() -> None:
    ranks = random_ranks(4, 100, gain=0.1)
    assert compare_ranks(*ranks) == compare_ranks(*ranks)
    assert compare_ranks(*ranks).interval != compare_ranks(*ranks, seed=1).interval


def test_no_difference_is_called_real_in_about_one_of_twenty() -> None:
    """200 pairs of equally good models; their interval holds the true difference in about 95 of 100."""
    called, outside = 0, 0
    for seed in range(200):
        found = compare_ranks(*random_ranks(1_000 + seed, 120), draws=999)
        called += found.real
        outside += not found.interval[0] <= 0 <= found.interval[1]
    assert 0.01 <= called / 200 <= 0.10
    assert outside / 200 <= 0.12


def test_both_queries_of_a_triple_count_once() -> None:
    """Heads that repeat the tails are no new evidence: p and interval stay those of the tails alone."""
    tails = random_ranks(5, 40, gain=0.15)
    first, second = (np.tile(ranks[:40], 2) for ranks in tails)
    found = compare_ranks(first, second)
    alone = 1 / tails[0][:40] - 1 / tails[1][:40]
    assert found.p == sign_flip(alone)[0]
    assert found.interval == bootstrap_interval(alone)
    assert found.p > 2 * sign_flip(np.tile(alone, 2))[0]  # what counting them twice would have said


def test_blocks_of_memory_change_no_figure_beyond_their_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = np.random.default_rng(6).normal(0.02, 0.2, 64)
    whole = sign_flip(changes), bootstrap_interval(changes)
    few = sign_flip(changes[:10])
    monkeypatch.setattr(paired, "_NUMBERS", 640)
    assert sign_flip(changes[:10]) == few
    assert sign_flip(changes)[0] == pytest.approx(whole[0][0], abs=0.02)
    assert bootstrap_interval(changes) == pytest.approx(whole[1], abs=0.005)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ImfError, match="4 ranks cannot be paired with 2"):
        compare_ranks(np.ones(4), np.ones(2))
    with pytest.raises(ImfError, match="3 ranks cannot be paired"):
        compare_ranks(np.ones(3), np.ones(3))
    with pytest.raises(DataError, match="no triple to compare on"):
        compare_ranks(np.ones(0), np.ones(0))
