"""A trial: trained in the process of the Tune actor, or with several workers by a Ray Train `TorchTrainer` (DDP).

This is the only place in the product that catches every exception: it records the reason in the trial's `outcome.json` and
re-raises, so that Ray Tune counts the failure and the other trials continue.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.tune as ray_tune
from pyarrow.fs import LocalFileSystem
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from imf_core.config_base import Settings
from imf_core.errors import DivergedError
from imf_core.parts.registry import Part, install
from imf_core.tasks.registry import default_task
from imf_core.tasks.task import AnyTask
from tune.environment import STALL
from tune.space.space import SearchSpace
from tune.study.outcome import OUTCOME_FILE, TrialState, full_disk
from tune.trial.out_of_memory import note, ran_out, reduce_batch, reduced_settings, was_killed
from tune.trial.reporter import has_ended
from tune.trial.worker import Job, run_job, train_worker, write_outcome, written_state

_DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class TrialSpec:
    """What all trials of a run have in common.

    Args:
        prepared: folder of the prepared data.
        folder: parent of the trials' folders, which have the trials' names.
        space: turns searched values into settings; None if `variants` has whole configurations.
        variants: configurations by name, for runs that are not searched (`{"run": name}`).
        workers: processes of a trial.
        threads: CPU threads of each worker.
        gpus: GPUs of each worker.
        keep: keep the checkpoint of the best epoch.
        scores: keep the branch scores of the validation queries.
        latency: report the time that the model takes to answer a query.
        save_seconds: minimum seconds between two saves of the training state.
        code: digest of the driver's sources.
        interface: network interface of worker groups that span nodes; None: determined by host name.
        task: the task that is trained.
        parts: parts of one's own that no worker can import: those of a notebook or a file.
    """

    prepared: str
    folder: str
    space: SearchSpace | None = None
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    workers: int = 1
    threads: int = 1
    gpus: float = 0.0
    keep: bool = False
    scores: bool = False
    latency: bool = False
    save_seconds: float = 20.0
    code: str = ""
    interface: str | None = None
    task: AnyTask = field(default_factory=default_task)
    parts: tuple[Part, ...] = ()

    def configure(self, params: Mapping[str, Any]) -> Settings:
        """The complete settings of a trial."""
        if "run" in params:
            return self.task.config.build(self.variants[params["run"]])
        assert self.space is not None
        return self.space.config_for(params)

    def job(self, params: Mapping[str, Any], name: str, known: int = 0, until: int | None = None) -> Job:
        """The training run of a trial, with reduced settings if it ran out of memory before; `known`, `until`: see `Job`."""
        folder = Path(self.folder) / name
        reduced = reduced_settings(folder)
        return Job(
            self.configure(params).updated(reduced).model_dump(), self.prepared, str(folder), self.threads, self.gpus > 0,
            self.keep, self.scores, self.latency, self.save_seconds, reduced, self.code, self.task, known,
            self.parts, until,
        )


def run_trial(params: dict[str, Any], spec: TrialSpec) -> None:
    """Train a trial, report every epoch to Ray Tune, and write `outcome.json`.

    Args:
        params: `{"name": name, "params": searched values, "known": epoch, "until": epoch}`, or `{"run": name}`.
        spec: what all trials of the run have in common.

    Raises:
        DivergedError: the trial diverged, now or in an earlier attempt.
    """
    install(spec.parts)
    name = str(params.get("name") or params["run"])
    folder = Path(spec.folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    state, reason = written_state(folder)
    if state is TrialState.DIVERGED:
        raise DivergedError(reason)  # equal settings and seed would diverge again
    (folder / OUTCOME_FILE).unlink(missing_ok=True)
    settings, known, until = params.get("params", params), int(params.get("known", 0)), params.get("until")
    if was_killed(folder):
        reduce_batch(folder, spec.configure(settings))
    if not _attempt(settings, name, known, until, spec):
        gc.collect()  # frees the memory of the failed attempt
        _attempt(settings, name, known, until, spec)


def _attempt(settings: Mapping[str, Any], name: str, known: int, until: int | None, spec: TrialSpec) -> bool:
    """Train; False if memory ran out and the trial shall be tried again with a smaller batch."""
    folder = Path(spec.folder) / name
    try:
        job = spec.job(settings, name, known, until)
        if spec.workers == 1:
            result = run_job(job, ray_tune.report)
            if result is None:
                return True  # it is paused, and has no outcome yet
            notes, epochs = (result.reason, *result.notes), result.epochs
        else:
            _run_distributed(job, spec)
            if until is not None and not has_ended(folder):
                return True
            notes, epochs = ("the workers completed their training",), 0
        reason = "; ".join(part for part in (*notes, note(job.reduced)) if part)
        write_outcome(folder, TrialState.COMPLETED, reason, epochs=epochs)
    except DivergedError as error:
        write_outcome(folder, TrialState.DIVERGED, error)
        raise
    except Exception as error:
        if ran_out(error) and reduce_batch(folder, job.task.config.build(job.config)):
            return False
        if written_state(folder)[0] is not TrialState.DIVERGED:  # if a worker diverged it wrote so; Ray wraps its exception
            write_outcome(folder, TrialState.FAILED, full_disk(error, folder) or error)
        raise
    return True


def _run_distributed(job: Job, spec: TrialSpec) -> None:
    """Train with a worker group whose folder and run name belong to this trial alone.

    The structure is that of `doc/source/train/doc_code/train_tune_interop.py` in github.com/ray-project/ray.
    """
    callback = TuneReportCallback()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job.to_json(),
        torch_config=TorchConfig(timeout_s=int(float(os.environ[STALL]))),
        scaling_config=ScalingConfig(
            num_workers=spec.workers, use_gpu=spec.gpus > 0,
            resources_per_worker={"CPU": spec.threads, **({"GPU": spec.gpus} if spec.gpus else {})},
        ),
        run_config=RunConfig(
            worker_runtime_env={"env_vars": {"GLOO_SOCKET_IFNAME": spec.interface}} if spec.interface else None,
            name=f"workers-{ray_tune.get_context().get_trial_id()}", storage_path=str(Path(job.folder)), callbacks=[callback],  # type: ignore[list-item]
            storage_filesystem=LocalFileSystem(),
            # Only Ray Tune retries: retries on two levels would multiply.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        ),
    )
    try:
        trainer.fit()
    finally:
        # fit() returns or raises without draining the queue of reports, so the last epoch would be lost or the run would hang.
        # The wait is bounded because the process of the queue itself may have died.
        queue, deadline = callback._training_actor_item_queue, time.monotonic() + _DRAIN_SECONDS
        while queue.size() > 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)


def trainable(spec: TrialSpec, bundle: Mapping[str, float]) -> Callable[[dict[str, Any]], None]:
    """The function that Ray Tune runs, with its resources.

    Args:
        spec: what all trials of the run have in common.
        bundle: resources that Ray Tune reserves for a trial.
    """

    for part in spec.parts:
        by_value(part)

    def imf_trial(params: dict[str, Any]) -> None:
        run_trial(params, spec)

    return ray_tune.with_resources(imf_trial, dict(bundle))


def by_value(part: Part) -> None:
    """Let Ray send the class or function of a part itself: workers have no module of that name."""
    for item in (part.target, part.settings):
        module = sys.modules.get(getattr(item, "__module__", None) or type(item).__module__)
        if module is not None and module.__name__ not in ("__main__", "builtins"):
            ray.cloudpickle.register_pickle_by_value(module)
