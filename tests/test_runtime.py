"""Memory: the budget follows what is free, is halved where it runs out, and the numbers stay what they were."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imf_core.runtime as memory_module
from imf_core.config import Config
from imf_core.errors import ResourceError
from imf_core.evaluate.ranking import ModelScores, evaluate
from imf_core.model.imf import Imf
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import MemoryBudget, free_memory, is_out_of_memory, peak_memory
from imf_core.train.estimate import estimate_memory
from imf_core.train.fit import build_model, fit

MIB = 2**20


@pytest.fixture
def toy_config() -> Config:
    return Config().updated({"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 64, "train.max_epochs": 2})


def test_peak_memory_is_that_of_the_process_and_never_falls() -> None:
    status = Path("/proc/self/status").read_text()
    now = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    large = torch.ones(now // 4)  # as much again
    peak = peak_memory()
    assert 1.5 * now < peak < 4 * now
    del large
    assert peak_memory() >= peak


def test_free_memory_is_what_the_machine_tells() -> None:
    free = free_memory()
    assert free is not None
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < free <= 1024 * total


def test_a_container_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("300000000\n")
    (tmp_path / "memory.current").write_text("100000000\n")
    assert free_memory() == 200_000_000
    (tmp_path / "memory.current").write_text("400000000\n")
    assert free_memory() == 0
    (tmp_path / "memory.max").write_text("max\n")
    free = free_memory()
    assert free is not None and free > 10**9


@pytest.mark.parametrize(
    ("free", "expected"),
    [(10 * 2**30, 2**30), (7 * 2**30, 512 * MIB), (4.5 * 2**30, 512 * MIB), (4 * 2**30, 512 * MIB), (3.9 * 2**30, 256 * MIB),
     (0, 8 * MIB), (None, 2**30)],
)
def test_the_default_budget_is_an_eighth_of_what_is_free(
    free: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "free_memory", lambda device: None if free is None else int(free))
    assert MemoryBudget.of(None).size == expected
    assert MemoryBudget.of(100).size == 100 * MIB


def test_the_budget_is_halved_until_the_work_fits(caplog: pytest.LogCaptureFixture) -> None:
    budget, asked = MemoryBudget(100 * MIB), []

    def work(size: int) -> str:
        asked.append(size)
        if size > 20 * MIB:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return "done"

    with caplog.at_level(logging.WARNING):
        assert budget.within(work) == "done"
    assert asked == [100 * MIB, 50 * MIB, 25 * MIB, 12.5 * MIB]
    assert budget.size == 12.5 * MIB  # what comes next begins with what fitted
    assert [record.getMessage() for record in caplog.records] == budget.notes
    assert len(budget.notes) == 3 and "going on with 50 MiB" in budget.notes[0] and "CUDA out of memory" in budget.notes[0]


def test_the_least_budget_is_the_end() -> None:
    def work(size: int) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ...")

    budget = MemoryBudget(20 * MIB)
    with pytest.raises(ResourceError, match=r"out of memory .*8 MiB for scores") as caught:
        budget.within(work)
    assert "train.batch_size" in caught.value.remedy and "train.num_negatives" in caught.value.remedy
    assert caught.value.asked == 8 * MIB


def test_what_cannot_be_repeated_is_not() -> None:
    tried = []

    def work(size: int) -> None:
        tried.append(size)
        raise MemoryError

    with pytest.raises(ResourceError, match=r"out of memory .MemoryError. with 64 MiB"):
        MemoryBudget(64 * MIB).within(work, lambda: False)
    assert tried == [64 * MIB]


def test_other_errors_pass() -> None:
    def work(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        MemoryBudget(64 * MIB).within(work)
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))


def test_no_memory_of_a_failed_attempt_is_held() -> None:
    """The second attempt must find the memory of the first one free."""
    seen: list[bool] = []
    last: list[weakref.ref[Any]] = []

    def work(size: int) -> None:
        if last:
            seen.append(last[-1]() is None)
        local = np.zeros(10)
        last.append(weakref.ref(local))
        if len(last) < 3:
            raise MemoryError

    MemoryBudget(64 * MIB).within(work)
    assert seen == [True, True]


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("negatives", [None, 40])
def test_a_repeated_step_draws_and_counts_as_if_nothing_had_failed(
    toy: LinkData, toy_config: Config, negatives: int | None, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose third step runs out of memory ends with the weights of a run in which it does not, dropout and all."""
    config = toy_config.updated({
        "model.dropout_input": 0.3, "model.dropout_context": 0.3, "train.batch_size": 16, "train.max_epochs": 2,
        "train.num_negatives": negatives, "train.memory_budget_mb": 64, "train.precision": "fp32",
    })
    smooth = build_model(config, toy)
    expected = fit(smooth, toy, config, device=torch.device("cpu"))
    assert expected.notes == ()

    real, calls, sizes = Imf.forward, [0], []

    def failing(self: Imf, *arguments: Any) -> Any:
        losses = real(self, *arguments)  # dropout is drawn and the statistics are moved before it fails
        calls[0] += 1
        sizes.append(arguments[3].memory_budget_mb)
        if 3 <= calls[0] < 3 + failures:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return losses

    monkeypatch.setattr(Imf, "forward", failing)
    rough = build_model(config, toy)
    found = fit(rough, toy, config, device=torch.device("cpu"))
    assert sizes[:5] == [64, 64, 64, 32, 32 // failures]
    assert len(found.notes) == failures
    assert found.curve == expected.curve
    for name, tensor in smooth.state_dict().items():
        assert torch.equal(tensor, rough.state_dict()[name]), name


def test_a_step_that_has_updated_a_parameter_is_not_repeated(
    toy: LinkData, toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    import imf_core.train.optimizers as optimizers

    monkeypatch.setattr(optimizers, "_LARGE", 1)  # every parameter is updated within the backward pass
    config = toy_config.updated({"train.max_epochs": 1, "train.memory_budget_mb": 64})
    model = build_model(config, toy)
    calls = [0]

    def failing(gradient: torch.Tensor) -> None:
        calls[0] += 1
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.structure.register_hook(failing)
    with pytest.raises(ResourceError, match="64 MiB"):
        fit(model, toy, config, device=torch.device("cpu"))
    assert calls == [1]


def test_a_ranking_that_runs_out_of_memory_goes_on_with_less(toy: LinkData, toy_config: Config) -> None:
    model = build_model(toy_config, toy).eval()
    known, budget = toy.graph.known(), MemoryBudget(2**29)
    expected = evaluate(model, toy.graph, toy.graph.valid, known)
    real = ModelScores.blocks

    def failing(self: ModelScores, *arguments: Any) -> Any:
        yield from (part for number, part in enumerate(real(self, *arguments)) if not _fails(self, number))

    def _fails(scores: ModelScores, number: int) -> bool:
        if scores.budget > 100 * MIB:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelScores, "blocks", failing)
        found = evaluate(model, toy.graph, toy.graph.valid, known, memory=budget)
    assert budget.size == 64 * MIB and len(budget.notes) == 3
    np.testing.assert_array_equal(found.tail_ranks, expected.tail_ranks)
    np.testing.assert_array_equal(found.head_ranks, expected.head_ranks)


@pytest.mark.parametrize(
    ("changed", "factor"),
    [({"model.modalities": []}, 0.9), ({"model.dim": 512}, 1.2), ({"train.batch_size": 2048}, 1.05),
     ({"model.scoring": "transe"}, 1.05), ({"model.heads": [{"view": "structure", "scoring": "complex", "dim": 256}]}, 1.1),
     ({"train.num_negatives": 500, "train.batch_size": 2048}, 0.9)],
)
def test_the_estimate_follows_what_it_counts(changed: dict[str, Any], factor: float) -> None:
    base = Config().updated({"train.batch_size": 256, "train.memory_budget_mb": 1024})
    widths = {"image": 64, "text": 64}
    first = estimate_memory(base, 30_000, 50, widths)
    then = estimate_memory(base.updated(changed), 30_000, 50, {} if "model.modalities" in changed else widths)
    ratio = then.total / first.total
    assert ratio < factor if factor < 1 else ratio > factor
    assert estimate_memory(base, 300_000, 50, widths).total > 2 * first.total
    line = first.describe()
    assert f"about {first.total / 2**30:.1f} GiB for each worker (" in line and "scores" in line


def test_a_shortage_is_told_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    import imf_core.train.estimate as estimate_module

    estimate = estimate_memory(Config(), 30_000, 50, {"text": 64})
    monkeypatch.setattr(estimate_module, "free_memory", lambda: 2 * estimate.total + 1)
    assert estimate.shortage(2) is None
    told = estimate.shortage(3)
    assert told is not None
    each, free = estimate.total / 2**30, 2 * estimate.total / 2**30
    assert told.startswith(f"3 workers of about {each:.1f} GiB each, but {free:.1f} GiB are free")
    assert "train.num_negatives" in told
    monkeypatch.setattr(estimate_module, "free_memory", lambda: None)
    assert estimate.shortage(99) is None


_PEAK = r"""
import json, sys
import torch
from imf_core.config import Config
from imf_core.prepare.link_data import LinkData
from imf_core.train.estimate import estimate_of
from imf_core.train.fit import build_model, fit
from benchmarks.speed import generated, modalities, peak_gib
entities, changed = int(sys.argv[1]), json.loads(sys.argv[2])
data = LinkData(graph=generated(entities, 20, 700, 600), modalities=tuple(modalities(entities)))
config = Config().updated({"train.max_epochs": 1, "model.dim": 64, **changed})
estimate = estimate_of(config, data).total
fit(build_model(config, data), data, config)
print(json.dumps({"estimate": estimate / 2**30, "peak": peak_gib()}))
"""


@pytest.mark.parametrize(
    ("entities", "changed"),
    [
        (30_000, {}),
        pytest.param(60_000, {}, marks=pytest.mark.slow),
        pytest.param(60_000, {"train.num_negatives": 256}, marks=pytest.mark.slow),
        pytest.param(15_000, {"model.scoring": "transe", "train.batch_size": 512}, marks=pytest.mark.slow),
        pytest.param(60_000, {"model.heads": [
            {"view": "structure", "scoring": "complex", "dim": 128}, {"view": "image", "scoring": "complex"},
        ]}, marks=pytest.mark.slow),
        pytest.param(60_000, {"model.fusion": "meta_cp", "model.cp_rank": 64}, marks=pytest.mark.slow),
        pytest.param(60_000, {"model.fusion": "meta"}, marks=pytest.mark.slow),
        pytest.param(60_000, {"model.fusion": "gated"}, marks=pytest.mark.slow),
    ],
    ids=["1-N", "1-N, twice as many", "sampled", "distances", "heads", "meta_cp", "meta", "gated"],
)
def test_the_estimate_is_near_the_measured_peak(entities: int, changed: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(entities), json.dumps(changed)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).resolve().parents[1], timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["peak"] > 0.7  # more than the bare process: there is something to estimate
    assert 0.75 < found["estimate"] / found["peak"] < 1.4, found


_LIMITED = r"""
import json, resource, sys, logging
import numpy as np, torch
torch.set_num_threads(1)
from imf_core.config import Config
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model, fit
from benchmarks.speed import generated, modalities
entities, spare, budget = (int(part) for part in sys.argv[1:])
graph = generated(entities, 5, 3000, 300)
data = LinkData(graph=graph, modalities=tuple(modalities(entities)[:1]))
config = Config().updated({
    "model.dim": 16, "model.relation_dim": 8, "train.batch_size": 512, "train.max_epochs": 2, "train.memory_budget_mb": budget,
})
small = LinkData(graph=generated(300, 5, 900, 90), modalities=tuple(modalities(300)[:1]))
fit(build_model(config, small), small, config)  # all libraries are loaded, all threads have their stacks
model = build_model(config, data)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
held = []  # freed memory that the process keeps: what it may take comes on top
for size in (2**20, 2**16):
    try:
        while True:
            held.append(torch.empty(size, dtype=torch.uint8))
    except RuntimeError:
        pass
resource.setrlimit(resource.RLIMIT_AS, (used + spare * 2**20,) * 2)
try:
    result = fit(model, data, config)
    print(json.dumps({"curve": result.curve, "notes": result.notes}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


def _limited(entities: int, spare: int, budget: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(entities), str(spare), str(budget)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).resolve().parents[1], timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"stderr": done.stderr}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space the Linux way")
def test_a_real_allocation_that_fails_halves_the_budget() -> None:
    """40,000 entities x 512 queries x 4 score tables are 312 MiB; the process may take 200 MiB more than it has."""
    free = _limited(40_000, 100_000, 512)
    tight = _limited(40_000, 200, 512)
    assert free["notes"] == []
    assert tight["notes"] and "out of memory" in tight["notes"][0] and "256 MiB" in tight["notes"][0]
    assert tight["notes"][0] in tight["stderr"]
    np.testing.assert_allclose([mrr for _, mrr in tight["curve"]], [mrr for _, mrr in free["curve"]], rtol=0.02)
    hopeless = _limited(40_000, 5, 512)
    assert hopeless["error"] == "ResourceError" and "8 MiB for scores" in hopeless["message"]
