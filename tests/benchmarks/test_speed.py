"""What the speed figures rest on: equal numbers of textbook and product, and a report that says what was measured.

No time is asserted: it is the machine's.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import run_speed, speed, textbook
from benchmarks.report_speed import KEYS, page, write_report
from imf_core.config import Config, published
from imf_core.evaluate.ranking import evaluate
from imf_core.model.imf import Imf
from imf_core.train.batches import QueryBatch, TrainingQueries

TINY = "generated:300,6,900"
_CPU = torch.device("cpu")
_NO_CHANCE = {f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}


def _published(**more: object) -> Config:
    return published().updated({**_NO_CHANCE, "model.dim": 24, "model.relation_dim": 16, **more})


def _fresh(config: Config) -> tuple[Imf, QueryBatch]:
    graph = speed.load(TINY)
    model = speed.model_of(config, graph, _CPU).train()
    return model, next(iter(TrainingQueries(graph).epoch(128, 0, 1)))


@pytest.mark.parametrize("run", [1, 5])
@pytest.mark.parametrize(("kind", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_step_equals_the_textbook_step(run: int, kind: torch.dtype, allowed: float) -> None:
    """Differences count against the whole gradient: in fp32 the parts that cancel (the fused branch's, at first) are noise."""
    config = _published()
    graph = speed.load(TINY)
    for batch in list(TrainingQueries(graph).epoch(128, 0, 1, together=run))[:3]:
        ours, theirs = (speed.model_of(config, graph, _CPU).train().to(kind) for _ in range(2))
        fast = ours(batch.heads, batch.relations, batch.positives, config.train)["total"]
        slow = textbook.loss(theirs, batch.heads, batch.relations, batch.positives, config.train.label_smoothing)
        fast.backward()
        slow.backward()
        assert fast.item() == pytest.approx(slow.item(), rel=allowed)
        expected = {name: part.grad for name, part in theirs.named_parameters() if part.grad is not None}
        assert len(expected) > 10
        whole = float(torch.stack([part.norm() for part in expected.values()]).norm())
        for name, part in ours.named_parameters():
            if name in expected:
                assert part.grad is not None, name
                assert float((part.grad - expected[name]).norm()) <= allowed * whole, name


def test_ten_steps_of_training_equal_those_of_the_textbook() -> None:
    """Also the optimizer: what is stepped early, and what torch's Adam steps, end at the same parameters."""
    config = _published()
    graph = speed.load(TINY)
    ours, theirs = (speed.model_of(config, graph, _CPU).train() for _ in range(2))
    fast = speed.Optimizers(ours, "adam", 5e-4, 0.0, early=True)
    slow = torch.optim.Adam(theirs.parameters(), lr=5e-4)
    losses = []
    for batch in list(TrainingQueries(graph).epoch(128, 0, 1))[:10]:
        pair = (
            ours(batch.heads, batch.relations, batch.positives, config.train)["total"],
            textbook.loss(theirs, batch.heads, batch.relations, batch.positives, config.train.label_smoothing),
        )
        for loss, optimizer in zip(pair, (fast, slow), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append([float(loss.detach()) for loss in pair])
    assert len(losses) == 10
    np.testing.assert_allclose(*np.array(losses).T, rtol=1e-5)


def test_the_ranking_equals_the_textbook_ranking() -> None:
    graph = speed.load(TINY)
    model = speed.model_of(_published(), graph, _CPU).eval()
    known = graph.known()
    triples = graph.valid
    ours = evaluate(model, graph, triples, known).tail_ranks
    theirs = textbook.rank(model, triples[:, 0], triples[:, 1], triples[:, 2], known, batch=32)
    assert len(ours) == 90
    # Ranks are whole where nothing ties; a tie (or a difference in the last digit) moves a rank by at most one place.
    assert np.abs(ours - theirs).max() <= 1
    assert (ours == theirs).mean() > 0.98


def test_the_operations_are_those_of_the_products() -> None:
    config = _published()
    model, batch = _fresh(config)
    counted = speed.operations(model, batch)
    entities, queries, width, narrow, rank, branches = 300, len(batch.heads), 24, 16, 2, 4
    distinct = len(set(batch.relations.tolist()))
    forward = 2 * branches * queries * entities * width  # scores
    forward += 2 * 3 * rank * (entities * width**2 + 12 * narrow**2)  # fusion of entities and of relations with inverses
    forward += 2 * branches * (distinct * narrow * width**2 + queries * width**2)  # matrices and contexts
    assert counted == 3 * forward


def test_a_generated_graph_is_what_was_asked_for() -> None:
    graph = speed.generated(500, 9, 2000, 100)
    assert (graph.num_entities, graph.num_relations, len(graph.train), len(graph.valid)) == (500, 9, 2000, 100)
    everything = np.concatenate([graph.train, graph.valid])
    assert len(np.unique(everything, axis=0)) == 2100
    counts = np.sort(np.bincount(graph.train[:, 1], minlength=9))
    assert counts[-1] > 2 * counts[0]  # relations are unevenly used


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> run_speed.Lab:
    return run_speed.Lab(tmp_path_factory.mktemp("cache"), rounds=1, scale=0.002)


def test_a_finished_measurement_is_not_repeated(lab: run_speed.Lab) -> None:
    asked = {"source": TINY, "batch": 64, "steps": 4, "model__dim": 16, "model__relation_dim": 8, "precision": "bf16"}
    first = lab.measure("step", asked)
    assert first["seconds"] > 0 and first["flop"] > 0 and first["peak_gib"] > 0.1
    assert lab.measure("step", asked) == first  # a second run would take another time
    (file,) = lab.cache.glob("*.json")
    assert json.loads(file.read_text(encoding="utf-8"))["asked"] == [["step", asked]]
    with pytest.raises(run_speed.subprocess.CalledProcessError):
        lab.measure("step", {**asked, "steps": -1})
    assert len(list(lab.cache.glob("*.json"))) == 1  # a failure is not kept


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_group_gives_its_figures(lab: run_speed.Lab, tmp_path: Path, shared_dir: Path) -> None:
    """A rehearsal on small graphs: all keys of the report, each with what it was made of."""
    small = {"sources": ["generated:4000,6,16000", "generated:4000,30,16000"]}  # three steps of 2 x 1,024
    found: dict[str, object] = {}
    for group in ("steps", "ranks", "workers", "large", "sizes", "search", "launches"):
        figures = run_speed.measure_group(group, lab, *small["sources"])
        write_report(tmp_path, figures, group)
        found.update(figures)
    expected = {key for key in KEYS if not key.startswith("seconds_to_mrr")}  # of real data
    assert expected <= set(found)
    written = json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))
    counted = {key for key in expected if key.startswith("launches")} | {"readbacks_step"}
    for key in expected:
        value, raw = written["figures"][key]["value"], written["figures"][key]["raw"]
        assert value == 0 if key == "readbacks_step" else value > 0, key
        assert len(raw) >= (1 if key in counted else 2), key
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert all(KEYS[key][0] in text for key in expected)
    assert (tmp_path / "img" / "benchmarks-size.png").stat().st_size > 10_000


def test_the_report_tells_ratio_and_raw_figures(tmp_path: Path) -> None:
    first = {"step_ratio_mkgy": run_speed.figure(10.2, textbook_seconds=13.1, ours_seconds=1.284)}
    write_report(tmp_path, first, "steps")
    write_report(tmp_path, {"ddp_ratio": run_speed.figure(1.75, two_queries_per_second=1750.0, one_queries_per_second=1000.0)},
                 "workers")
    written = json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))
    assert set(written["figures"]) == {"step_ratio_mkgy", "ddp_ratio"}  # a later group leaves an earlier one's figures alone
    assert set(written["measured"]) == {"steps", "workers"}
    assert written["measured"]["steps"]["machine"]["torch"] == torch.__version__
    text = page(written)
    assert "| 10.2 | >= 9 | textbook seconds 13.1, ours seconds 1.28 |" in text
    assert "On a GPU" not in text


def test_the_code_state_follows_the_measured_code(tmp_path: Path) -> None:
    for name in ("imf_core/model/a.py", "imf_core/train/b.py", "imf_core/model/losses/d.py", "imf_core/config.py",
                 "imf_core/runtime.py", "imf_core/data/c.py", "benchmarks/speed.py", "benchmarks/textbook.py",
                 "benchmarks/launches.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n", encoding="utf-8")
    before = run_speed.code_state(tmp_path)
    (tmp_path / "imf_core/data/c.py").write_text("2\n", encoding="utf-8")
    assert run_speed.code_state(tmp_path) == before
    for name in ("imf_core/train/b.py", "imf_core/model/losses/d.py"):
        (tmp_path / name).write_text("2\n", encoding="utf-8")
        before, after = run_speed.code_state(tmp_path), before
        assert after != before
