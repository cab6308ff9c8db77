"""What trains one trial: the whole trial in process, or one rank of it under Ray Train.

A trial is a folder. `outcome.json` says how it ended, `state/` is what a retry goes on from, `reported.json` has what was
reported last, for a driver that did not hear it, `best/` is the checkpoint of the best epoch, `decision.safetensors` has the
branch scores of a searched trial, `lock` is held by the process that trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray.train
import torch

from imf_core.errors import DivergedError, ResourceError
from imf_core.files.atomic import atomic_write_text
from imf_core.files.locks import lock
from imf_core.runtime import WHOLE, Shard
from imf_core.tasks.registry import default_task
from imf_core.tasks.task import AnyTask
from imf_core.train.loop import FitResult, Saving
from tune.sources import refuse_other_code
from tune.study.outcome import OUTCOME_FILE, TrialState
from tune.trial.reporter import Report, Reporter

_WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class Job:
    """One training run, as plain values that cross process borders.

    Args:
        config: complete settings, `Config.model_dump()`.
        prepared: folder of the prepared data.
        folder: the trial's folder, on storage that every node sees.
        threads: CPU threads of each worker.
        gpu: train on the GPU that Ray assigned.
        keep: save the best epoch's checkpoint in `folder/best`.
        scores: keep the branch scores of the validation queries.
        latency: report how long the model takes to answer a question.
        save_seconds: least time between two saves of the training state.
        changed: settings in `config` that replace the trial's own since memory ran out.
        code: digest of the driver's sources; empty: any will do.
        task: what is trained.
        known: last epoch that the driver has heard of, from an earlier session.
    """

    config: dict[str, Any]
    prepared: str
    folder: str
    threads: int = 1
    gpu: bool = False
    keep: bool = False
    scores: bool = False
    latency: bool = False
    save_seconds: float = 20.0
    changed: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    task: AnyTask = field(default_factory=default_task)
    known: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@lru_cache(maxsize=1)
def shared_data(prepared: str, task: AnyTask) -> Any:
    """The prepared data, loaded once a process: a reused actor trains many trials on it. Read-only by convention."""
    return task.load(prepared)


def run_job(job: Job, report: Report, shard: Shard = WHOLE) -> FitResult[Any]:
    """Train a job, resuming the state in its folder.

    Args:
        job: what to train.
        report: receives the flat numbers of each epoch not yet reported; called on every rank.
        shard: this rank's part.

    Returns:
        The validation result.

    Raises:
        ImfError: bad data, a diverged run, or other sources than the driver's.
    """
    refuse_other_code(job.code)
    torch.set_num_threads(job.threads)
    task, folder = job.task, Path(job.folder)
    config = task.config.build(job.config)
    data = shared_data(job.prepared, task)
    model = task.build(config, data)
    device = torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu")
    with _alone(folder) if shard.rank == 0 else nullcontext():
        always = {"num_parameters": model.num_parameters, **_effective(job.changed)}
        if job.latency:
            always["latency_ms"] = task.latency_ms(model.to(device))
        reporter = Reporter(folder, report, always, shard)
        reporter.catch_up(job.known)
        result = task.fit(
            model, data, config, reporter, shard=shard, saving=Saving(folder / "state", job.save_seconds), device=device
        )
        if job.scores and shard.rank == 0:
            try:
                task.cache_scores(folder, model, config, data, device)
            except ResourceError as error:  # the trial has its result without
                result = replace(result, notes=(*result.notes, f"its branch scores are not kept: {error.problem}"))
        if job.keep and shard.rank == 0:
            metrics = {
                "validation": result.metrics.as_dict(), "best_epoch": result.best_epoch, "epochs": result.epochs,
                "seed": config.train.seed, "fingerprint": data.fingerprint,
            }
            task.keep(folder / "best", model, config, data, metrics)
    return result


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the trial's folder. The worker of a killed search lives on for some seconds and may be at its last save.

    Raises:
        ResourceError: another process holds it and does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as stream:
        if not lock(stream, _WAIT_SECONDS):
            raise ResourceError(
                f"another process has trained in {folder} for {_WAIT_SECONDS:.0f} s",
                remedy="end the worker that an earlier search left behind",
            )
        yield


def _effective(changed: Mapping[str, Any]) -> dict[str, Any]:
    """`{"effective_batch_size": 128}`, so that what a trial says it was is what it was."""
    return {f"effective_{name.rpartition('.')[2]}": value for name, value in changed.items()}


def train_worker(job: Mapping[str, Any]) -> None:
    """One rank of a DDP trial, inside Ray Train: every rank trains its shard and reports; rank 0 writes.

    Args:
        job: `Job.to_json()`.
    """
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    plain = Job(**job)
    try:
        run_job(plain, ray.train.report, shard)
    except DivergedError as error:
        write_outcome(Path(plain.folder), TrialState.DIVERGED, error)
        raise


def write_outcome(folder: Path, state: TrialState, reason: str | BaseException, epochs: int = 0) -> None:
    """Say in the trial's folder how it ended.

    Args:
        folder: the trial's folder.
        state: `completed`, `failed` or `diverged`; a trial stopped from outside writes nothing.
        reason: words, or the exception.
        epochs: epochs trained, where known.
    """
    if isinstance(reason, BaseException):
        text, kind = str(reason).partition("\n")[0] or repr(reason), type(reason).__name__
    else:
        text, kind = reason, None
    values = {"state": str(state), "reason": text[:2000], "error_type": kind, "epochs": epochs}
    atomic_write_text(folder / OUTCOME_FILE, json.dumps(values))


def written_state(folder: Path) -> tuple[TrialState | None, str]:
    """State and reason that an attempt left behind; (None, "") without an outcome."""
    try:
        values = json.loads((folder / OUTCOME_FILE).read_text(encoding="utf-8"))
        return TrialState(values["state"]), str(values["reason"])
    except (OSError, ValueError, KeyError):
        return None, ""
