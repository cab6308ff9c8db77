"""Fit a study into its time budget before its first trial: measure the pace, and shorten what does not fit."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import ray
from rich.console import Console

from imf_core.errors import ImfError, ResourceError
from tune.budget.allotment import Allotment, Pace, Study, allot
from tune.budget.deadline import FinalsAllowed, Reserve
from tune.durations import duration
from tune.plan.opening import OpenStudy
from tune.plan.plan import Plan
from tune.runs.final_runs import FinalRuns
from tune.study.journal import Journal
from tune.study.records import TrialRecord
from tune.trial.measure import measure
from tune.trial.worker import Job

EPOCHS = "train.max_epochs"
_MOST_POOLING = 0.1  # of the budget
_MOST_MEASURED = 4  # trials that are measured at a time
_WAIT_SECONDS = 60.0


def final_names(plan: Plan) -> list[str]:
    """The runs of finalising a winner with the base's settings, the most important first: seeds, control, ablations.

    After the second seed comes the second best trial's run, see `tune.runs.final_runs`.
    """
    seeds = [plan.settings.seed + offset for offset in range(plan.settings.seeds)]
    return list(FinalRuns.of(plan, plan.base, seeds, rival=("rival", plan.base)).titles)


def pooled(plan: Plan, pace: Pace | None) -> int:
    """The most models among which a pool is chosen: the kept trials and a final run for each seed.

    0: none is made, because the user declined it or scoring them would take more than a tenth of the budget.
    """
    budget, models = plan.settings.budget_seconds, plan.settings.keep + plan.settings.seeds
    too_long = budget is not None and pace is not None and pace.scoring(models) > _MOST_POOLING * budget
    return 0 if plan.settings.no_pool or too_long else models


def within_budget(plan: Plan, study: OpenStudy, console: Console) -> Plan:
    """The plan with as many epochs a trial as its budget allows; the journal keeps what was decided, for later sessions.

    Ray must run: the pace is measured in processes like those of trials.
    """
    earlier = allotted(study.journal)
    if earlier is not None:
        plan = _with_epochs(plan, int(earlier["max_epochs"]))
    if not study.seconds_left or not study.to_run:
        return plan
    pace = kept_pace(earlier) or measured_pace(plan)
    if pace is None:
        return plan
    names, settings = final_names(plan), plan.settings
    asked = Study(
        trials=study.to_run,
        given=0 if study.resumed else (settings.first != "drawn") + len(study.points) + len(plan.start_points),
        concurrency=plan.resources.concurrency, max_epochs=plan.base.train.max_epochs,
        grace=plan.base.train.max_epochs if settings.scheduler == "none" else plan.grace, runs=len(names),
        fixed_epochs=bool(study.journal.trials), pooled=pooled(plan, pace),
    )
    left = study.remaining() or 0.0
    if pace.epoch > left:
        raise ResourceError(
            f"an epoch takes about {duration(pace.epoch)}, and {duration(left)} are left of the time budget",
            remedy=f"give --budget {duration(2 * pace.run(asked.max_epochs))} or more, or a smaller model",
        )
    result = allot(left, pace, asked)
    study.journal.append("budget", pace=asdict(pace), max_epochs=result.max_epochs, runs=result.runs)
    for line in described(result, pace, asked, names, left):
        console.print(line, highlight=False, soft_wrap=True)
    return _with_epochs(plan, result.max_epochs)


def allotted(journal: Journal) -> dict[str, Any] | None:
    """The last decision on a budget; None if there was none."""
    return next(iter(reversed(journal.all("budget"))), None)


def kept_pace(decided: dict[str, Any] | None) -> Pace | None:
    """The pace on which a decision rests; None without one."""
    return Pace(**decided["pace"]) if decided is not None else None


def reserve_of(plan: Plan, study: OpenStudy) -> Reserve | None:
    """What finalising takes of the time budget; None where there is none."""
    if study.seconds_left is None:
        return None
    decided = allotted(study.journal)
    return Reserve(
        decided["runs"] if decided is not None else len(final_names(plan)), plan.resources.concurrency,
        plan.base.train.max_epochs, plan.settings.budget_seconds or study.seconds_left,
        kept_pace(decided), plan.settings.trials_dir, pooled(plan, kept_pace(decided)),
    )


def described(result: Allotment, pace: Pace, asked: Study, names: list[str], seconds: float) -> list[str]:
    """What a budget allows, in lines for the terminal."""
    epoch = f"an epoch takes about {pace.epoch:.2g} s"
    if result.trials == asked.trials and (result.runs, result.max_epochs) == (asked.runs, asked.max_epochs):
        return [f"{epoch}: all {asked.trials} trials and {asked.runs} final runs are likely to fit into {duration(seconds)}"]
    parts = [f"{result.trials or 'hardly one'} of {asked.trials} trials are likely to begin"]
    if result.trials == asked.trials:
        parts = [f"all {asked.trials} trials are likely to begin"]
    if result.max_epochs < asked.max_epochs:
        parts.append(f"they train up to {result.max_epochs} epochs instead of {asked.max_epochs}")
    if result.runs < asked.runs:
        parts.append(f"left out at the end: {', '.join(names[result.runs :])}")
    lines = [f"{epoch}; within {duration(seconds)} {'; '.join(parts)}"]
    if not result.trials:
        lines.append(
            f"[bold yellow]the budget is short[/]: a trial takes {duration(pace.run(result.max_epochs))}; give a longer "
            f"--budget, or lower --set {EPOCHS}"
        )
    return lines


def measured_pace(plan: Plan) -> Pace | None:
    """Train the base settings for some seconds, in as many processes as trials run at a time; None if that fails."""
    resources = plan.resources
    job = Job(
        plan.base.model_dump(), str(plan.prepared), "", threads=resources.cpus_per_worker, gpu=resources.gpus_per_worker > 0,
        task=plan.task,
    )
    began = time.time()
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=0)(measure)
    answers = [
        task.remote(job.to_json(), resources.workers) for _ in range(min(resources.concurrency, _MOST_MEASURED))
    ]
    done, late = ray.wait(answers, num_returns=len(answers), timeout=_WAIT_SECONDS)
    for answer in late:
        ray.cancel(answer, force=True)
    try:
        measured = [(epoch, ready) for epoch, ready in ray.get(done) if epoch is not None]
    except (ray.exceptions.RayError, ImfError):  # the trials will say what is wrong, each with its reason
        return None
    if not measured:
        return None
    start = max(ready for _, ready in measured) - began
    return Pace(max(epoch for epoch, _ in measured), start, restart=1.0 if resources.workers == 1 else start)


def finals_within_budget(plan: Plan, study: OpenStudy, winner: TrialRecord) -> FinalsAllowed | None:
    """Which runs of finalising there is time for; what an earlier session decided for this winner stays. None: all."""
    for event in reversed(study.journal.all("finals")):
        if event["winner"] == winner.trial_id:
            return FinalsAllowed(event["runs"], event["max_epochs"])
    left, reserve = study.remaining(), reserve_of(plan, study)
    if left is None or reserve is None or not winner.epochs:
        return None
    allowed = replace(reserve, runs=len(final_names(plan))).allowed(left, winner)
    study.journal.append("finals", winner=winner.trial_id, runs=allowed.runs, max_epochs=allowed.max_epochs)
    return allowed


def _with_epochs(plan: Plan, epochs: int) -> Plan:
    if epochs == plan.base.train.max_epochs:
        return plan
    changed = {EPOCHS: epochs}
    space = replace(plan.space, base=plan.space.base.updated(changed))
    return replace(plan, base=plan.base.updated(changed), space=space)
