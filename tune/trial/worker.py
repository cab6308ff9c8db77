"""Training of a trial: all of it in this process, or one rank of it under Ray Train.

Files in a trial's folder: `outcome.json`, how it ended; `state/`, the training state from which a retry resumes;
`reported.json`, the latest reports, for a driver that missed them; `best/`, the checkpoint of the best epoch;
`decision.safetensors`, branch scores of a searched trial; `lock`, held by the process that trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray.train
import torch

from imf_core.errors import DivergedError, ResourceError
from imf_core.files.atomic import atomic_write_text
from imf_core.files.locks import lock
from imf_core.parts.registry import Part, install
from imf_core.runtime import WHOLE, Shard
from imf_core.tasks.registry import default_task
from imf_core.tasks.task import AnyTask
from imf_core.train.loop import FitResult, Saving
from imf_core.train.progress import MAX_EPOCHS
from tune.sources import refuse_other_code
from tune.study.outcome import OUTCOME_FILE, TrialState, outcome_of
from tune.trial.reporter import Report, Reporter

_WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class Job:
    """A training run, as values that can be sent to another process.

    Args:
        config: complete settings, `Config.model_dump()`.
        prepared: folder of the prepared data.
        folder: the trial's folder, on storage that all nodes share.
        threads: CPU threads of each worker.
        gpu: train on the GPU that Ray has assigned.
        keep: save the checkpoint of the best epoch in `folder/best`.
        scores: keep the branch scores of the validation queries.
        latency: report the time that the model takes to answer a query.
        save_seconds: minimum seconds between two saves of the training state.
        reduced: settings in `config` that override the trial's own because it ran out of memory.
        code: digest of the driver's sources; empty: accept any.
        task: the task that is trained.
        known: last epoch of which the driver has a report, from an earlier session.
        parts: see `TrialSpec`.
        until: pause after this epoch, with the training state saved; None: train to the end.
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
    reduced: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    task: AnyTask = field(default_factory=default_task)
    known: int = 0
    parts: tuple[Part, ...] = ()
    until: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict, for `Job(**fields)` in a worker."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@lru_cache(maxsize=1)
def shared_data(prepared: str, task: AnyTask) -> Any:
    """The prepared data, loaded once per process since Ray Tune reuses actors for many trials; treat it as read-only."""
    return task.load(prepared)


def run_job(job: Job, report: Report, shard: Shard = WHOLE) -> FitResult[Any] | None:
    """Train a job, resuming from the state in its folder, to its end or to where it pauses.

    Args:
        job: the training run.
        report: receives the metrics of each epoch that was not reported yet; called on every rank.
        shard: this rank's share of the work.

    Returns:
        The result on validation; None: the run is paused.

    Raises:
        ImfError: bad data, a diverged run, or sources that differ from the driver's.
    """
    refuse_other_code(job.code)
    torch.set_num_threads(job.threads)
    task, folder = job.task, Path(job.folder)
    config = task.config.build(job.config)
    data = shared_data(job.prepared, task)
    model = task.build(config, data)
    device = torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu")
    with _locked(folder) if shard.rank == 0 else nullcontext():
        constants = {"num_parameters": model.num_parameters, **_effective(job.reduced)}
        if job.latency:
            constants["latency_ms"] = task.latency_ms(model.to(device))
        reporter = Reporter(folder, report, constants, shard)
        reporter.catch_up(job.known)
        epochs = config.train.max_epochs
        until = min(job.until or epochs, epochs)
        result = task.fit(
            model, data, config if until == epochs else config.updated({"train.max_epochs": until}), reporter, shard=shard,
            device=device, saving=Saving(folder / "state", job.save_seconds, fresh=reporter.damaged),
        )
        if result.reason == MAX_EPOCHS and result.epochs < epochs:
            return None
        if job.until is not None:
            reporter.finish()
        if job.scores and shard.rank == 0:
            try:
                task.cache_scores(folder, model, config, data, device)
            except ResourceError as error:  # the result is valid without them
                result = replace(result, notes=(*result.notes, f"branch scores were not kept: {error.problem}"))
        if job.keep and shard.rank == 0:
            metrics = {
                "validation": result.metrics.as_dict(), "best_epoch": result.best_epoch, "epochs": result.epochs,
                "seed": config.train.seed, "fingerprint": data.fingerprint,
            }
            task.keep(folder / "best", model, config, data, metrics)
    return result


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the trial's folder: the worker of a killed search lives on for some seconds and may still be saving.

    Raises:
        ResourceError: another process holds the lock for too long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as stream:
        if not lock(stream, _WAIT_SECONDS):
            raise ResourceError(
                f"another process has locked {folder} for {_WAIT_SECONDS:.0f} s",
                remedy="kill the worker that an earlier search left running",
            )
        yield


def _effective(reduced: Mapping[str, Any]) -> dict[str, Any]:
    """Reduced settings as metrics: `{"effective_batch_size": 128}`."""
    return {f"effective_{name.rpartition('.')[2]}": value for name, value in reduced.items()}


def train_worker(values: Mapping[str, Any]) -> None:
    """Train one rank of a DDP trial inside Ray Train: every rank trains its shard and reports; rank 0 writes files.

    Args:
        values: `Job.to_json()`.
    """
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    job = Job(**values)
    install(job.parts)
    try:
        run_job(job, ray.train.report, shard)
    except DivergedError as error:
        write_outcome(Path(job.folder), TrialState.DIVERGED, error)
        raise


def write_outcome(folder: Path, state: TrialState, reason: str | BaseException, epochs: int = 0) -> None:
    """Write `outcome.json`: how the trial ended.

    Args:
        folder: the trial's folder.
        state: `completed`, `failed` or `diverged`; a trial that is stopped from outside writes nothing.
        reason: a message, or the exception.
        epochs: number of epochs trained, 0 if unknown.
    """
    if isinstance(reason, BaseException):
        text, kind = str(reason).partition("\n")[0] or repr(reason), type(reason).__name__
    else:
        text, kind = reason, None
    values = {"state": str(state), "reason": text[:2000], "error_type": kind, "epochs": epochs}
    atomic_write_text(folder / OUTCOME_FILE, json.dumps(values))


def written_state(folder: Path) -> tuple[TrialState | None, str]:
    """State and reason in `outcome.json`; (None, "") if there is no outcome."""
    values = outcome_of(folder / OUTCOME_FILE)
    return (TrialState(values["state"]), values["reason"]) if values is not None else (None, "")
