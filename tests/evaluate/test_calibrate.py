"""Decision weights fitted to held-out triples: the cached score by hand, good branches preferred, fair candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from imf_core.config import Config
from imf_core.evaluate import calibrate as calibrate_module
from imf_core.evaluate.calibrate import CachedScores, cache_scores, cached_mrr, calibrate, fit_logits, folds
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model


def cached(
    values: Tensor, usable: Tensor | None = None, valid: Tensor | None = None, relations: Tensor | None = None
) -> CachedScores:
    queries, candidates, _ = values.shape
    return CachedScores(
        values,
        torch.ones_like(values) if usable is None else usable,
        torch.ones(queries, candidates, dtype=torch.bool) if valid is None else valid,
        torch.zeros(queries, dtype=torch.int64) if relations is None else relations,
        torch.arange(queries) % 2,
    )


# --- the score ----------------------------------------------------------------------------------------------------------

# Two queries, three candidates (the answer first), two branches.
VALUES = torch.tensor([[[-1.0, -5.0], [-2.0, -1.0], [-3.0, -5.0]], [[-4.0, -1.0], [-1.0, -2.0], [-4.0, -1.0]]])


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([50.0, 0.0], (1 / 1 + 1 / 2.5) / 2),  # first branch: rank 1; rank 2.5 (one above, one tie)
        ([0.0, 50.0], (1 / 2.5 + 1 / 1.5) / 2),  # second: -1 above and one tie; a tie at the top
        ([0.0, 0.0], (1 / 2 + 1 / 2.5) / 2),  # means -3 -1.5 -4; -2.5 -1.5 -2.5
    ],
)
def test_cached_mrr_by_hand(logits: list[float], expected: float) -> None:
    assert cached_mrr(cached(VALUES), torch.tensor([logits])) == pytest.approx(expected)


def test_cached_mrr_leaves_out_what_does_not_compete() -> None:
    valid = torch.tensor([[True, False, True], [True, True, False]])
    # first branch: the second query's tie is gone: rank 2
    assert cached_mrr(cached(VALUES, valid=valid), torch.tensor([[50.0, 0.0]])) == pytest.approx((1 + 1 / 2) / 2)
    assert cached_mrr(cached(VALUES, valid=valid), torch.tensor([[0.0, 50.0]])) == pytest.approx((1 / 1.5 + 1) / 2)


def test_cached_mrr_renormalises_where_a_modality_is_missing() -> None:
    usable = torch.ones_like(VALUES)
    usable[0, 1, 1] = 0.0  # the strong wrong candidate of the first query lacks the second branch: -2 instead of -1.5
    usable[0, 0, 1] = 0.0  # so does the answer: -1 instead of -3
    assert cached_mrr(cached(VALUES, usable), torch.tensor([[0.0, 0.0]])) == pytest.approx((1 + 1 / 2.5) / 2)


def test_cached_mrr_of_weights_by_relation() -> None:
    logits = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert cached_mrr(cached(VALUES, relations=torch.tensor([0, 1])), logits) == pytest.approx((1 + 1 / 1.5) / 2)
    assert cached_mrr(cached(VALUES, relations=torch.tensor([1, 0])), logits) == pytest.approx((1 / 2.5 + 1 / 2.5) / 2)


# --- fitting ------------------------------------------------------------------------------------------------------------


def drawn(loss: str, good: int, queries: int = 120, candidates: int = 20, branches: int = 3, seed: int = 0) -> Tensor:
    """Random scores; the branch `good` has the answer on top."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(queries, candidates, branches, generator=generator)
    raw[:, 0, good] += 5.0
    return torch.log_softmax(raw, dim=1) if loss == "ce" else torch.sigmoid(raw)


def test_branches_that_are_equally_good_keep_equal_weights() -> None:
    """What one of many weights gains by chance, it loses on other queries."""
    changed = []
    for seed in range(20):
        raw = torch.randn(400, 20, 3, generator=torch.Generator().manual_seed(seed))
        raw[:, 0] += 1.5
        changed.append(bool(fit_logits(cached(torch.log_softmax(raw, dim=1)), "ce", 1).any()))
    assert sum(changed) <= 3, changed


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_perfect_branch_is_preferred(loss: str, good: int) -> None:
    scores = cached(drawn(loss, good))
    logits = fit_logits(scores, loss, 1)
    weights = torch.softmax(logits, dim=1)[0]
    assert logits.shape == (1, 3)
    assert int(weights.argmax()) == good
    assert weights[good] > 0.6
    alone = cached_mrr(scores, 50.0 * torch.eye(3)[[good]])
    assert cached_mrr(scores, logits) >= alone - 1e-6
    assert cached_mrr(scores, logits) > cached_mrr(scores, torch.zeros(1, 3))


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_fitted_weights_are_at_least_as_good_as_each_branch_and_the_mean(loss: str) -> None:
    values = drawn(loss, 0, seed=3)
    values = torch.cat([values[:, :, :2], drawn(loss, 0, seed=4)[:, :, :1]], dim=2)  # two good branches and one of noise
    scores = cached(values)
    found = cached_mrr(scores, fit_logits(scores, loss, 1))
    others = [torch.zeros(1, 3), *(8.0 * torch.eye(3)[[branch]] for branch in range(3))]
    assert found >= max(cached_mrr(scores, logits) for logits in others)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_the_fit_is_the_most_likely_of_a_fine_grid(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two branches, one better than the other; without the choice by MRR that follows."""
    monkeypatch.setattr(calibrate_module, "_best_by_mrr", lambda cached, fitted, common: fitted)
    raw = torch.randn(200, 20, 2, generator=torch.Generator().manual_seed(0))
    raw[:, 0] += torch.tensor([2.0, 1.0])
    scores = cached(torch.log_softmax(raw, dim=1) if loss == "ce" else torch.sigmoid(raw))

    def surprise(half: float) -> float:
        combined = scores.combined(torch.tensor([[half, -half]]))
        value = combined if loss == "ce" else combined.log()
        return float(-torch.log_softmax(value, dim=1)[:, 0].sum()) + half**2  # 0.5 of each logit's square

    grid = torch.linspace(-3.0, 3.0, 1201).tolist()
    assert float(fit_logits(scores, loss, 1)[0, 0]) == pytest.approx(min(grid, key=surprise), abs=0.01)


def test_fitting_is_repeatable_and_leaves_no_trace() -> None:
    scores = cached(drawn("ce", 1))
    first = fit_logits(scores, "ce", 1)
    with torch.no_grad():
        assert torch.equal(fit_logits(scores, "ce", 1), first)
    assert not first.requires_grad


def test_relations_without_data_have_the_common_logits() -> None:
    """Relation 0 is answered by branch 0, relation 1 by branch 1; relations 2 and 3 have no triple."""
    values = torch.cat([drawn("ce", 0, queries=300), drawn("ce", 1, queries=300, seed=1)])
    relations = torch.arange(2).repeat_interleave(300)
    logits = fit_logits(cached(values, relations=relations), "ce", 4)
    assert logits.shape == (4, 3)
    weights = torch.softmax(logits, dim=1)
    assert torch.allclose(weights[2], weights[3])
    assert weights[0, 0] > weights[2, 0] > weights[1, 0]
    assert weights[1, 1] > weights[2, 1] > weights[0, 1]
    assert weights[2, 0] == pytest.approx(weights[2, 1].item(), abs=0.05)  # what both agree on: not the noise
    assert weights[2, 2] < 1 / 3


def test_few_triples_move_a_relation_less_than_many() -> None:
    values = torch.cat([drawn("ce", 0, queries=200), drawn("ce", 1, queries=100, seed=1)])
    moved = []
    for count in (2, 100):
        kept = torch.arange(200 + count)
        relations = torch.cat([torch.zeros(200, dtype=torch.int64), torch.ones(count, dtype=torch.int64)])
        weights = torch.softmax(fit_logits(cached(values[kept], relations=relations), "ce", 3), dim=1)
        moved.append(float(weights[1, 1] - weights[2, 1]))  # away from the common weight
    assert 0 < moved[0] < moved[1]


# --- folds --------------------------------------------------------------------------------------------------------------


def test_folds_are_balanced_and_go_with_the_triple() -> None:
    rng = np.random.default_rng(0)
    triples = np.stack([rng.integers(0, 15_000, 4000), rng.integers(0, 28, 4000), rng.integers(0, 15_000, 4000)], axis=1)
    parts = folds(triples)
    assert set(parts.tolist()) == {0, 1}
    assert 0.46 < parts.mean() < 0.54
    order = rng.permutation(len(triples))
    assert np.array_equal(folds(triples[order]), parts[order])
    assert np.array_equal(folds(triples[:7]), parts[:7])


def test_folds_split_dense_ids_too() -> None:
    triples = np.array([(h, r, t) for h in range(12) for r in range(4) for t in range(12)])
    for column in range(3):
        for value in range(triples[:, column].max() + 1):
            assert 0.2 < folds(triples[triples[:, column] == value]).mean() < 0.8


def test_folds_of_nothing() -> None:
    assert folds(np.empty((0, 3), np.int64)).shape == (0,)


# --- candidates ---------------------------------------------------------------------------------------------------------

SMALL = {"model.dim": 8, "model.relation_dim": 4}


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_other_known_answers_never_compete(toy: LinkData, loss: str) -> None:
    """The scores are found again in the cache: every competitor is no known answer, each once, the answer first."""
    graph, known = toy.graph, toy.graph.known()
    model = build_model(Config().updated({**SMALL, "train.loss": loss}), toy)
    scores = cache_scores(model, graph, graph.valid, known)
    heads = np.concatenate([graph.valid[:, 0], graph.valid[:, 2]])
    relations = np.concatenate([graph.valid[:, 1], graph.valid[:, 1] + graph.num_relations])
    targets = np.concatenate([graph.valid[:, 2], graph.valid[:, 0]])
    assert scores.relations.tolist() == relations.tolist()
    assert scores.fold.tolist() == np.tile(folds(graph.valid), 2).tolist()
    with torch.no_grad():
        tables = model.tables()
        raw = model.branch_scores(tables, model.contexts(tables, torch.from_numpy(heads), torch.from_numpy(relations)))
    plain = torch.stack([torch.log_softmax(part, dim=1) if loss == "ce" else part.sigmoid() for part in raw], dim=2)
    for row in range(len(heads)):
        answers = set(known.lookup(heads[row : row + 1], relations[row : row + 1])[1].tolist()) | {int(targets[row])}
        allowed = sorted(set(range(graph.num_entities)) - answers)
        assert torch.allclose(scores.values[row, 0], plain[row, targets[row]], atol=1e-5)
        competing = scores.values[row, 1:][scores.valid[row, 1:]]
        distance, entity = (competing[:, None] - plain[row][None]).abs().amax(dim=2).min(dim=1)
        found = entity.tolist()
        assert distance.max() < 1e-5
        assert len(set(found)) == len(found)
        assert set(found) <= set(allowed)
        for branch in range(plain.shape[2]):
            strongest = sorted(allowed, key=lambda place: -float(plain[row, place, branch]))[:24]
            assert set(strongest) <= set(found)
    assert scores.valid[:, 0].all()


def test_usable_says_who_has_the_modality(toy: LinkData) -> None:
    model = build_model(Config().updated(SMALL), toy)
    scores = cache_scores(model, toy.graph, toy.graph.valid, toy.graph.known())
    assert model.branches == ("structure", "image", "text", "fused")
    assert scores.usable[:, :, [0, 2, 3]].all()
    image = toy.modalities[0].mask
    heads = np.concatenate([toy.graph.valid[:, 0], toy.graph.valid[:, 2]])
    targets = np.concatenate([toy.graph.valid[:, 2], toy.graph.valid[:, 0]])
    assert scores.usable[:, 0, 1].tolist() == (image[heads] & image[targets]).astype(float).tolist()
    assert not scores.usable[~torch.from_numpy(image[heads]), :, 1].any()


def test_the_budget_changes_no_number(toy: LinkData) -> None:
    model = build_model(Config().updated(SMALL), toy)
    wide, narrow = (cache_scores(model, toy.graph, toy.graph.train, toy.graph.known(), size) for size in (2**29, 0))
    assert torch.allclose(wide.values[:, 0], narrow.values[:, 0], atol=1e-5)


@pytest.mark.parametrize(("mode", "rows"), [("learned", 1), ("relation", 8)])
def test_calibrate_fits_each_fold_by_the_other(toy: LinkData, mode: str, rows: int) -> None:
    model = build_model(Config().updated({**SMALL, "model.decision": mode}), toy)
    known = toy.graph.known()
    found = calibrate(model, toy.graph, toy.graph.train, known)
    assert found is not None
    assert [part.shape for part in (*found.crosswise, found.final)] == [(rows, 4)] * 3
    scores = cache_scores(model, toy.graph, toy.graph.train, known)
    for fold in (0, 1):
        others = torch.nonzero(scores.fold != fold)[:, 0]
        assert torch.equal(found.crosswise[fold], fit_logits(scores.part(others), "ce", rows))
    assert model.decision.logits is not None and not model.decision.logits.any()  # fitting changes no model


@pytest.mark.parametrize(("mode", "modalities"), [("uniform", None), ("fixed", None), ("learned", [])])
def test_nothing_to_calibrate(toy: LinkData, mode: str, modalities: list[str] | None) -> None:
    model = build_model(Config().updated({**SMALL, "model.decision": mode, "model.modalities": modalities}), toy)
    assert calibrate(model, toy.graph, toy.graph.valid, toy.graph.known()) is None
