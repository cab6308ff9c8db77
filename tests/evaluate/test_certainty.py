"""Scores that compare across questions, and probabilities whose reliability is measured on facts held back from the fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.evaluate.certainty import Score, calibrate_probability, corrupt, log_odds, reliability, shown

ENTITIES, FACTS = 60, 900


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    draw = np.random.default_rng(0)
    columns = [draw.integers(0, 40, FACTS), draw.integers(0, 3, FACTS), draw.integers(10, 55, FACTS)]
    triples = draw.permutation(np.unique(np.stack(columns, axis=1), axis=0))
    names = Vocabulary(tuple(f"e{i}" for i in range(ENTITIES))), Vocabulary(("a", "b", "c"), "relation")
    return KnowledgeGraph(*names, triples[:500], triples[500:])


def scorer(graph: KnowledgeGraph, strength: float, seed: int = 1) -> Score:
    """Scores that tell facts from others the better, the stronger: 0 is noise."""
    facts = {tuple(row) for row in np.concatenate([graph.train, graph.valid]).tolist()}

    def score(triples: np.ndarray) -> np.ndarray:
        true = np.array([tuple(row) in facts for row in triples.tolist()])
        return strength * (true - 0.5) + np.random.default_rng(seed).normal(size=len(triples))

    return score


@pytest.mark.parametrize(
    ("probability", "digits", "text"),
    [(0.9999, 3, "0.999"), (0.9994, 3, "0.999"), (1.0, 3, "1.000"), (0.99996, 4, "0.9999"), (0.5, 3, "0.500"),
     (0.0, 4, "0.0000")],
)
def test_only_certainty_is_shown_as_such(probability: float, digits: int, text: str) -> None:
    assert f"{shown(probability, digits):.{digits}f}" == text


def test_the_reliability_follows_the_scores(graph: KnowledgeGraph) -> None:
    fitted = [calibrate_probability(scorer(graph, strength), graph, graph.known()) for strength in (0.0, 2.0, 12.0)]
    noise, some, sure = fitted
    assert noise and some and sure
    assert noise.brier == pytest.approx(0.25, abs=0.02)
    assert sure.brier < 0.02 < some.brier < 0.2
    assert all(one.error < 0.1 for one in fitted)  # two numbers suffice for these scores
    assert noise.slope < some.slope
    assert f"Brier score is {some.brier:.3f}" in some.describe() and f"{some.facts:,} validation facts" in some.describe()


def test_what_it_says_is_what_happens(graph: KnowledgeGraph) -> None:
    """Among other triples, half of them facts, the share of facts at a probability is about that probability."""
    score = scorer(graph, 2.0)
    fitted = calibrate_probability(score, graph, graph.known())
    facts = graph.train
    wrong, _ = corrupt(graph, facts, graph.known(), np.random.default_rng(5))
    true = np.arange(2 * len(facts)) < len(facts)
    chances = fitted.probability(score(np.concatenate([facts, wrong])))
    assert reliability(chances, true)[1] < 0.08
    assert reliability(1 - chances, true)[1] > 0.3  # the measure can fail


def test_the_probability_rises_with_the_score(graph: KnowledgeGraph) -> None:
    fitted = calibrate_probability(scorer(graph, 2.0), graph, graph.known())
    chances = fitted.probability(np.linspace(-20, 14, 200))
    assert (np.diff(chances) >= 0).all() and chances[0] < 0.01 and chances[-1] > 0.99
    worse = calibrate_probability(scorer(graph, -2.0), graph, graph.known())
    assert worse.slope == 0  # a model that is worse than chance is not turned round


def test_too_few_facts_give_no_probability(graph: KnowledgeGraph) -> None:
    assert calibrate_probability(scorer(graph, 2.0), replace(graph, valid=graph.valid[:19]), graph.known()) is None
    assert calibrate_probability(scorer(graph, 2.0), replace(graph, valid=graph.valid[:40]), graph.known()) is not None


def test_corrupted_triples_differ_in_one_end_and_are_not_known(graph: KnowledgeGraph) -> None:
    facts = {tuple(row) for row in np.concatenate([graph.train, graph.valid]).tolist()}
    wrong, possible = corrupt(graph, graph.valid, graph.known(), np.random.default_rng(0))
    assert possible.all()
    assert not facts & {tuple(row) for row in wrong.tolist()}
    differs = wrong != graph.valid
    assert (differs.sum(axis=1) == 1).all() and not differs[:, 1].any()
    assert differs[::2, 2].all() and differs[1::2, 0].all()
    ends = {(column, r): set(graph.train[graph.train[:, 1] == r, column].tolist()) for column in (0, 2) for r in range(3)}
    changed = zip(wrong, np.where(differs[:, 0], 0, 2).tolist(), strict=True)
    drawn = [row[column] in ends[column, row[1]] for row, column in changed]
    assert np.mean(drawn) > 0.95  # from the ends of the relation, as long as one of them is free


def test_a_full_relation_cannot_be_corrupted() -> None:
    everything = np.array([(h, 0, t) for h in range(3) for t in range(3)])
    names = Vocabulary(("a", "b", "c")), Vocabulary(("r",), "relation")
    graph = KnowledgeGraph(*names, everything[:6], everything[6:])
    _, possible = corrupt(graph, graph.valid, graph.known(), np.random.default_rng(0))
    assert not possible.any()


def test_reliability_by_hand() -> None:
    brier, error = reliability(np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True]))
    assert brier == pytest.approx((0.0025 + 0.9025 + 0.0025 + 0) / 4)
    assert error == pytest.approx((abs(0.1 - 1) + abs(1.95 - 2)) / 4)


def test_log_odds_are_finite() -> None:
    assert log_odds(np.log([0.5, 0.9])) == pytest.approx([0.0, np.log(9)])
    assert np.isfinite(log_odds(np.array([0.0, -1e-12, -80.0]))).all()
