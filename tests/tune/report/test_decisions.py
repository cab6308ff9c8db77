"""Decision weights tuned again: the ranks by hand, good branches found, nothing gained from noise, the better one kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import Config
from imf_core.errors import CheckpointError
from imf_core.evaluate.cached_scores import SCORES_FILE, DecisionCache, cache_decision, load_cache, save_cache
from imf_core.evaluate.calibrate import CachedScores, cached_mrr
from imf_core.evaluate.ranking import evaluate
from imf_core.evaluate.redecide import (
    COMMON,
    RELATION,
    TRAINED,
    fit_weights,
    held_back,
    proposals,
    reciprocal_ranks,
    redecide,
)
from imf_core.prepare.link_data import LinkData, save_prepared
from imf_core.runtime import MemoryBudget
from imf_core.study_reader import TRIALS_FILE
from imf_core.train.fit import build_model, fit
from tune.report.decisions import main
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord
from tune.trial.worker import Job, run_job

MEMORY = MemoryBudget(2**28)


def drawn(good: Tensor, candidates: int = 30, branches: int = 3, seed: int = 0) -> CachedScores:
    """Log-probabilities in which branch `good[q]` tells the answer of query q and all others are noise."""
    generator, queries = torch.Generator().manual_seed(seed), len(good)
    values = torch.randn(queries, candidates, branches, generator=generator)
    values[torch.arange(queries), 0, good] += 2.5
    values = torch.log_softmax(values, dim=1)
    relations = good.clone()  # relation r is told by branch r
    return CachedScores(
        values, torch.ones_like(values), torch.ones(queries, candidates, dtype=torch.bool), relations,
        torch.arange(queries) // 2 % 2,
    )


def cache_of(scores: CachedScores) -> DecisionCache:
    even = torch.zeros(1, scores.values.shape[2])
    return DecisionCache(scores, ("structure", "image", "fused"), (even, even), even)


# --- weights on cached scores -----------------------------------------------------------------------------------------------


def test_proposals_cover_the_simplex() -> None:
    found = proposals(4, 1000, np.random.default_rng(0))
    assert found.shape == (1000, 4) and torch.allclose(found.sum(dim=1), torch.ones(1000))
    assert found.min() >= 2.9e-4
    assert (found.max(dim=0).values > 0.998).all()  # each branch alone
    near = proposals(4, 500, np.random.default_rng(0), torch.tensor([0.7, 0.1, 0.1, 0.1]))
    assert (near[-100:] - torch.tensor([0.7, 0.1, 0.1, 0.1])).abs().max() < 0.15


@pytest.mark.parametrize("partial", [False, True])
def test_ranks_under_many_weights_are_those_under_each(partial: bool) -> None:
    scores = drawn(torch.zeros(50, dtype=torch.long))
    usable = scores.usable.clone()
    if partial:
        usable[:, ::3, 1] = 0.0
    scores = CachedScores(scores.values, usable, torch.rand(50, 30, generator=torch.Generator().manual_seed(1)) < 0.8,
                          scores.relations, scores.fold)
    scores.valid[:, 0] = True
    weights = proposals(3, 40, np.random.default_rng(2))
    means = reciprocal_ranks(scores, weights).mean(dim=1)
    for row, mean in zip(weights, means, strict=True):
        assert float(mean) == pytest.approx(cached_mrr(scores, row.log()[None]), abs=1e-5)


def test_the_branch_that_tells_gets_the_weight_and_each_relation_its_own() -> None:
    one = fit_weights(drawn(torch.ones(400, dtype=torch.long)), 3, 400)
    assert one.common.argmax() == 1 and one.common[1] > 0.6
    good = torch.arange(400) % 2  # relations 0 and 1 need different branches, relation 2 was never seen
    both = fit_weights(drawn(good), 3, 1000)
    assert both.relation[0].argmax() == 0 and both.relation[1].argmax() == 1
    assert torch.equal(both.relation[2], both.common)


def test_a_relation_with_few_queries_moves_less() -> None:
    good = torch.zeros(400, dtype=torch.long)
    good[:2] = 1
    found = fit_weights(drawn(good), 2, 1000)
    assert (found.relation[1] - found.common).abs().sum() < 0.3


def test_held_back_values_gain_where_there_is_something_and_nothing_from_noise() -> None:
    good = torch.arange(400) % 2
    found = held_back(cache_of(drawn(good)), 3, 600)
    assert found[RELATION] > found[TRAINED] + 0.1
    noise = drawn(good)
    noise = CachedScores(torch.randn(noise.values.shape, generator=torch.Generator().manual_seed(5)), noise.usable, noise.valid,
                         torch.arange(400) % 40, noise.fold)
    fitted = fit_weights(noise, 40, 600)
    flattered = float(reciprocal_ranks(noise, fitted.common[None]).mean())
    honest = held_back(cache_of(noise), 40, 600)
    expected = float((1 / torch.arange(1, 31)).mean())
    assert flattered > expected + 0.01  # the best of 600 looks better than it is,
    assert abs(honest[COMMON] - expected) < abs(flattered - expected)  # and crosswise it does not


def test_fitting_is_repeatable() -> None:
    scores = drawn(torch.arange(400) % 2)
    first, second = fit_weights(scores, 3, 300), fit_weights(scores, 3, 300)
    assert torch.equal(first.common, second.common) and torch.equal(first.relation, second.relation)


# --- with a model -----------------------------------------------------------------------------------------------------------


def trained(toy: LinkData, mode: str, loss: str = "ce") -> tuple:
    config = Config.build({
        "model": {"dim": 16, "relation_dim": 8, "decision": mode}, "train": {"max_epochs": 3, "batch_size": 32, "loss": loss},
    })
    model = build_model(config, toy)
    fit(model, toy, config)
    return model, config


@pytest.mark.parametrize(("mode", "loss"), [("uniform", "ce"), ("learned", "ce"), ("relation", "bce"), ("fixed", "bce")])
def test_the_better_on_held_back_triples_is_kept_and_survives_saving(
    toy: LinkData, tmp_path: Path, mode: str, loss: str
) -> None:
    model, config = trained(toy, mode, loss)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = redecide(model, toy.graph, MEMORY, 200)
    assert found is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert found.mrr[found.kept] == max(found.mrr.values()) and set(found.mrr) == {TRAINED, COMMON, RELATION}
    for weights in (found.trained, found.tuned):
        assert sum(weights.values()) == pytest.approx(1.0, abs=1e-4) and tuple(weights) == model.branches
    changed = found.apply(model, config)
    assert (found.kept == TRAINED) == (changed == config)
    save_checkpoint(tmp_path / "best", model, changed, toy.graph, {"decision": found.as_dict()})
    again = load_checkpoint(tmp_path / "best")
    assert again.metrics["decision"]["kept"] == found.kept
    heads, relations = torch.arange(8), torch.arange(8)
    assert torch.allclose(again.model.decision_weights(heads, relations), model.decision_weights(heads, relations))


def test_without_fitted_weights_the_trained_figure_is_the_plain_ranking(toy: LinkData) -> None:
    """A uniform decision has nothing to fit: what is held back changes no number."""
    model, _ = trained(toy, "uniform")
    found = redecide(model, toy.graph, MEMORY, 100)
    assert found is not None
    plain = evaluate(model, toy.graph, toy.graph.valid, toy.graph.known(), memory=MEMORY).metrics.mrr
    assert found.mrr[TRAINED] == pytest.approx(plain, abs=1e-9)


def test_a_learned_decision_is_judged_as_its_training_judged_it(toy: LinkData) -> None:
    config = Config.build({
        "model": {"dim": 16, "relation_dim": 8, "decision": "learned"}, "train": {"max_epochs": 2, "batch_size": 32},
    })
    model = build_model(config, toy)
    reached = fit(model, toy, config).best_mrr
    found = redecide(model, toy.graph, MEMORY, 100)
    assert found is not None
    assert found.mrr[TRAINED] == pytest.approx(reached, abs=1e-9)


def test_one_branch_has_nothing_to_decide(toy: LinkData) -> None:
    config = Config.build({"model": {"dim": 16, "modalities": []}})
    assert redecide(build_model(config, toy), toy.graph, MEMORY) is None


# --- what a trial leaves ----------------------------------------------------------------------------------------------------


def test_a_cache_comes_back_as_it_was(toy: LinkData, tmp_path: Path) -> None:
    model, _ = trained(toy, "relation")
    cache = cache_decision(model, toy.graph, MEMORY)
    save_cache(cache, tmp_path)
    again = load_cache(tmp_path)
    assert again.branches == cache.branches == model.branches
    for name in ("values", "usable", "valid", "relations", "fold"):
        assert torch.equal(getattr(again.scores, name), getattr(cache.scores, name))
    assert all(torch.equal(left, right) for left, right in zip(again.crosswise, cache.crosswise, strict=True))
    assert torch.equal(again.final, cache.final)
    assert [path.name for path in tmp_path.iterdir()] == [SCORES_FILE]


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_damaged_cache_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / SCORES_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=SCORES_FILE):
        load_cache(tmp_path)


def test_a_finished_trial_leaves_its_scores_and_the_command_reads_them(
    toy: LinkData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_prepared(toy, tmp_path / "data")
    records = []
    for number, modalities in enumerate((None, [])):
        config = Config.build({
            "model": {"dim": 16, "relation_dim": 8, "modalities": modalities}, "train": {"max_epochs": 2, "batch_size": 32},
        })
        folder = tmp_path / "study" / "trials" / f"trial-{number:03}"
        result = run_job(Job(config.model_dump(), str(tmp_path / "data"), str(folder), scores=True), lambda numbers: None)
        assert (folder / SCORES_FILE).exists() == (modalities is None)
        records.append(TrialRecord(number, folder.name, TrialState.COMPLETED, {}, result.best_mrr, 1, 2, 1.0))
    capsys.readouterr()
    (tmp_path / "study" / TRIALS_FILE).write_text(json.dumps([record.to_json() for record in records]))
    main(tmp_path / "study", evaluations=60)
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.strip().startswith("0"))
    figures = [float(part) for part in line.split()[1:4]]
    assert all(0 < value <= 1 for value in figures) and "structure 0." in line
    assert not any(line.strip().startswith("1 ") for line in shown.splitlines())
