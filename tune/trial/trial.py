"""One trial: in this Tune process for one worker, a Ray Train `TorchTrainer` (DDP) for several.

The only place of the product that catches every exception: it records the reason in the trial's `outcome.json` and
re-raises, so that Ray counts the failure and the other trials go on.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.tune as ray_tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from imf_core.config_base import Settings
from imf_core.errors import DivergedError
from imf_core.tasks.registry import default_task
from imf_core.tasks.task import AnyTask
from tune.environment import STALL
from tune.space.space import SearchSpace
from tune.study.outcome import OUTCOME_FILE, TrialState, full_disk
from tune.trial.out_of_memory import ran_out, said, shrink, smaller_settings, was_killed
from tune.trial.worker import Job, run_job, train_worker, write_outcome, written_state

_DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class TrialSpec:
    """What all trials of a run share.

    Args:
        prepared: folder of the prepared data.
        folder: folder of the trials; each has its own below, by its name.
        space: turns searched values into settings; None where `variants` name whole configurations.
        variants: configurations by name, for runs that are not searched (`{"run": name}`).
        workers: processes of a trial.
        threads: CPU threads of each worker.
        gpus: GPUs of each worker.
        keep: keep the best epoch's checkpoint.
        scores: keep the branch scores of the validation queries.
        latency: report how long the model takes to answer a question.
        save_seconds: least time between two saves of the training state.
        code: digest of the driver's sources.
        interface: network interface of worker groups that span nodes; None: found by host name.
        task: what is trained.
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

    def configure(self, params: Mapping[str, Any]) -> Settings:
        """The settings of a trial."""
        if "run" in params:
            return self.task.config.build(self.variants[params["run"]])
        assert self.space is not None
        return self.space.config_for(params)

    def job(self, params: Mapping[str, Any], name: str, known: int = 0) -> Job:
        """The training run of a trial, smaller than its settings where memory ran out; `known`: see `Job`."""
        folder = Path(self.folder) / name
        changed = smaller_settings(folder)
        return Job(
            self.configure(params).updated(changed).model_dump(), self.prepared, str(folder), self.threads, self.gpus > 0,
            self.keep, self.scores, self.latency, self.save_seconds, changed, self.code, self.task, known,
        )


def run_trial(params: dict[str, Any], spec: TrialSpec) -> None:
    """The Tune function: train, report every epoch, leave `outcome.json`.

    Args:
        params: `{"name": name, "params": searched values, "known": epoch}`, or `{"run": name}`.
        spec: what all trials share.
    """
    name = str(params.get("name") or params["run"])
    folder = Path(spec.folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    state, reason = written_state(folder)
    if state is TrialState.DIVERGED:
        raise DivergedError(reason)  # the same settings and seed would diverge again
    (folder / OUTCOME_FILE).unlink(missing_ok=True)
    settings, known = params.get("params", params), int(params.get("known", 0))
    if was_killed(folder):
        shrink(folder, spec.configure(settings))
    if not _attempt(settings, name, known, spec):
        gc.collect()  # what the failed attempt held
        _attempt(settings, name, known, spec)


def _attempt(settings: Mapping[str, Any], name: str, known: int, spec: TrialSpec) -> bool:
    """Train; False where memory ran out and the trial was made smaller, to be tried again."""
    folder = Path(spec.folder) / name
    try:
        job = spec.job(settings, name, known)
        if spec.workers == 1:
            result = run_job(job, ray_tune.report)
            notes, epochs = (result.reason, *result.notes), result.epochs
        else:
            _run_distributed(job, spec)
            notes, epochs = ("the workers ended by themselves",), 0
        reason = "; ".join(part for part in (*notes, said(job.changed)) if part)
        write_outcome(folder, TrialState.COMPLETED, reason, epochs=epochs)
    except DivergedError as error:
        write_outcome(folder, TrialState.DIVERGED, error)
        raise
    except Exception as error:
        if ran_out(error) and shrink(folder, job.task.config.build(job.config)):
            return False
        if written_state(folder)[0] is not TrialState.DIVERGED:  # a worker has said so already; Ray wraps its exception
            write_outcome(folder, TrialState.FAILED, full_disk(error, folder) or error)
        raise
    return True


def _run_distributed(job: Job, spec: TrialSpec) -> None:
    """A worker group for this trial alone; its folder and run name are its own, so nothing is shared by mistake."""
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
            # One level of retries only, Tune's: two levels would multiply.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        ),
    )
    try:
        trainer.fit()
    finally:
        # The queue of reports is not drained when fit() returns or raises: without this the last epoch is lost, or the run
        # hangs. The queue's own process may be what died, hence the bound.
        queue, deadline = callback._training_actor_item_queue, time.monotonic() + _DRAIN_SECONDS
        while queue.size() > 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)


def trainable(spec: TrialSpec, bundle: Mapping[str, float]) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs, with its resources.

    Args:
        spec: what all trials share.
        bundle: resources that Tune reserves for a trial.
    """

    def imf_trial(params: dict[str, Any]) -> None:
        run_trial(params, spec)

    return ray_tune.with_resources(imf_trial, dict(bundle))


