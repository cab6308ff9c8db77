"""Finalise a study: retrain the winner with several seeds, then open the test split, once.

This is the only place in a search that reads test examples. Everything is chosen on validation before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from imf_core.data.audit.report import Baseline
from imf_core.errors import ImfError
from imf_core.evaluate.test_once import RANKS_FILE
from imf_core.study_reader import StudyFolder
from imf_core.tasks.protocols import Refined, TestResult
from tune.plan.opening import OpenStudy
from tune.plan.plan import Plan
from tune.report.formatting import describe_duel
from tune.runs.final_runs import FinalRuns, duel, fought_duel, last_duel
from tune.runs.interrupts import Interrupts
from tune.runs.margins import margin_on_test, margins
from tune.runs.runner import run_variants
from tune.runs.within_budget import EPOCHS, allotted, finals_within_budget, kept_pace, pooled
from tune.study.records import TrialRecord
from tune.tracking.tracker import Tracker

POOL_DIR = "pool"
_OVERRUN = 0.05  # of the time budget, by which final runs may be late before they are ended


@dataclass(frozen=True)
class Final:
    """The results of finalising; the fields have the meaning and the names of those of `StudyResult`.

    Args:
        test_baseline: metrics of the baseline without training on test; None if there are none.
    """

    seeds: tuple[int, ...]
    winner_seed_mrr: tuple[float, ...]
    test_runs: tuple[dict[str, float], ...]
    structure_only_mrr: float | None
    without: dict[str, float]
    checkpoint: Path
    example: tuple[str, ...]
    test_opened: int
    control: str
    test_decisions: Mapping[str, Sequence[Mapping[str, float]]]
    test_pooled: Mapping[str, float] | None
    margins: Mapping[str, tuple[float, float]]
    test_baseline: Baseline | None
    pool: Mapping[str, Any] | None
    footprints: Mapping[str, Mapping[str, float]]
    duel: Mapping[str, Any] | None
    chosen: str

    def for_report(self) -> dict[str, Any]:
        """The fields of `StudyResult`."""
        return {name: value for name, value in vars(self).items() if name != "test_baseline"}


def finalise(
    plan: Plan, study: OpenStudy, winner: TrialRecord, tracker: Tracker, console: Console, interrupts: Interrupts,
    rival: TrialRecord | None = None,
) -> Final:
    """Retrain the winner and open the test split, without repeating what an earlier session has done.

    Args:
        plan: of the study. Its data can open the test split; the prepared data of the trials does not hold it.
        study: the open study, whose journal gets the results.
        winner: the trial with the best validation MRR.
        tracker: of the study's runs.
        console: for messages.
        interrupts: may end it.
        rival: the second best trial, which is the winner if it is better with another seed too; None: nobody is.

    Raises:
        ImfError: no seed could be trained to its end.
    """
    seeds = [plan.settings.seed + offset for offset in range(plan.settings.seeds)]
    fought = fought_duel(study.journal, winner, rival)
    if fought is not None and rival is not None:
        winner, rival = (rival if fought["winner"] == rival.trial_id else winner), None
    for event in reversed(study.journal.events):
        if event["event"] == "final" and event["winner"] == winner.trial_id and event["asked"] == seeds:
            console.print(f"trial {winner.number} has already been finalised", highlight=False)
            return _final(plan, study, event)
    against = (rival.trial_id, plan.space.config_for(rival.params)) if rival is not None else None
    finals = FinalRuns.of(plan, plan.space.config_for(winner.params), seeds, winner.trial_id, against)
    allowed = finals_within_budget(plan, study, winner)
    variants, seconds = finals.first(allowed.runs if allowed is not None else None), study.remaining()
    console.print(f"finalising: trial {winner.number}: {', '.join(finals.titles[: len(variants)])}", highlight=False)
    if left_out := finals.titles[len(variants) :]:
        console.print(f"  for want of time without: {', '.join(left_out)}", highlight=False)
    reused = {run: winner for run in finals.seed_runs.values() if variants.get(run) == finals.chosen}  # the trial had this seed
    if allowed is not None and allowed.max_epochs is not None:
        variants = {run: config.updated({EPOCHS: allowed.max_epochs}) for run, config in variants.items()}
        seconds = None  # a result is worth some seconds more
    if seconds is not None:
        seconds += _OVERRUN * (plan.settings.budget_seconds or 0.0)
    folder = plan.settings.study_dir / "final"
    runs = run_variants(plan, study, variants, folder, tracker, console, interrupts, winners=reused, seconds=seconds)
    if rival is not None and (fought := duel(study.journal, winner, rival, seeds, finals, runs)) is not None:
        console.print(f"  {describe_duel(fought)}", highlight=False)
        if fought["winner"] == rival.trial_id:
            return finalise(plan, study, rival, tracker, console, interrupts)
    names, task = finals.seed_runs, plan.task
    done = [seed for seed in seeds if _usable(runs.get(names[seed]))]
    if not done:
        reasons = "; ".join(f"{name}: {record.reason}" for name, (record, _) in runs.items())
        raise ImfError(
            f"no seed of the winner could be trained to its end ({reasons})",
            remedy=f"see the error files in {plan.settings.study_dir / 'final'}",
        )
    refined = {name: _refined(plan, record, checkpoint) for name, (record, checkpoint) in runs.items() if _usable(runs[name])}
    for seed in done:
        if note := refined[names[seed]].note:
            console.print(f"  seed {seed}: {note}", highlight=False)
    validation = [refined[names[seed]].mrr for seed in done]
    parts = finals.ablation_runs | ({finals.control: finals.control_run} if finals.control else {})
    others = {name: runs[run][1] for name, run in parts.items() if run in refined}
    lead_margins = margins(plan, [runs[names[seed]][1] for seed in done], others)
    checkpoints = {seed: runs[names[seed]][1] for seed in done}
    pool = _pool(plan, list(checkpoints.values())) if pooled(plan, kept_pace(allotted(study.journal))) else None
    test = _open_test(plan, study, checkpoints, console, POOL_DIR if pool is not None else None)
    if test.runs and (margin := margin_on_test(plan.settings.study_dir / "final" / RANKS_FILE)) is not None:
        lead_margins[task.baseline_name] = margin
    best = max(range(len(done)), key=lambda index: validation[index])
    task.publish(runs[names[done[best]]][1], plan.settings.study_dir / "best", test.details[best] if test.details else None)
    published = ["best", *([POOL_DIR] if pool is not None else ())]
    event = study.journal.append(
        "final", winner=winner.trial_id, asked=seeds, seeds=done, validation=validation, test=list(test.runs),
        decisions=test.decisions, pooled=test.pooled,
        structure_only=refined[finals.control_run].mrr if finals.control_run in refined else None,
        without={modality: refined[run].mrr for modality, run in finals.ablation_runs.items() if run in refined},
        control=finals.control, margins=lead_margins,
        baseline=test.baseline.as_dict() if test.baseline is not None else None,
        pool={**pool, "test": dict(test.pool) if test.pool is not None else None} if pool is not None else None,
        footprints={name: dict(task.footprint(plan.settings.study_dir / name)) for name in published},
        duel=last_duel(study.journal),
    )
    return _final(plan, study, event)


def _final(plan: Plan, study: OpenStudy, event: Mapping[str, Any]) -> Final:
    """The results in the journal's event of a finalised winner."""
    return Final(
        seeds=tuple(event["seeds"]), winner_seed_mrr=tuple(event["validation"]), test_runs=tuple(event["test"]),
        structure_only_mrr=event["structure_only"], without=dict(event["without"]),
        checkpoint=plan.settings.study_dir / "best", example=plan.task.example(plan.data),
        test_opened=sum(item["event"] == "test" for item in study.journal.events), control=event["control"],
        test_decisions=event["decisions"], test_pooled=event["pooled"],
        margins={name: (low, high) for name, (low, high) in event.get("margins", {}).items()},
        test_baseline=plan.task.baseline(event["baseline"]) if event["baseline"] is not None else None,
        pool=event.get("pool"), footprints=event.get("footprints", {}), duel=event.get("duel"), chosen=event["winner"],
    )


def _refined(plan: Plan, record: TrialRecord, checkpoint: Path) -> Refined:
    return plan.task.refine(checkpoint, plan.base, plan.data, float(record.best_mrr or 0.0))


def _pool(plan: Plan, finals: Sequence[Path]) -> dict[str, Any] | None:
    """Combine what was trained anyway: the kept trials and final runs that answer best together; None if there is no pool."""
    candidates = [*StudyFolder(plan.settings.study_dir).trial_checkpoints(), *finals]
    pool = plan.task.pool(candidates, plan.settings.study_dir / POOL_DIR, plan.base, plan.data)
    return dict(pool) if pool is not None else None


def _open_test(
    plan: Plan, study: OpenStudy, checkpoints: Mapping[int, Path], console: Console, pool: str | None
) -> TestResult:
    """Score the test split with each seed's checkpoint, with the pool and with the baseline; nothing else in a search does."""
    if not plan.data.has_test:
        console.print("the data has no test split: there are validation results only")
        return TestResult()
    folders = list(checkpoints.values())
    study.journal.append("test", checkpoints=list(map(str, folders)))  # first, so that a crash while testing counts too
    more = {"pool": plan.settings.study_dir / pool} if pool is not None else {}
    result: TestResult = plan.task.test(checkpoints, plan.base, plan.data, folders[0].parent.parent / RANKS_FILE, **more)
    for note in result.notes:
        console.print(f"  {escape(note)}", highlight=False)
    return result


def _usable(run: tuple[TrialRecord, Path] | None) -> bool:
    return run is not None and run[0].state.usable and run[0].best_mrr is not None and run[1].is_dir()
