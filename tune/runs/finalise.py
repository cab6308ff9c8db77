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
from imf_core.tasks.protocols import Refined, TestResult
from tune.plan.opening import OpenStudy
from tune.plan.plan import Plan
from tune.runs.final_runs import FinalRuns
from tune.runs.interrupts import Interrupts
from tune.runs.margins import margin_on_test, margins
from tune.runs.runner import run_variants
from tune.runs.within_budget import EPOCHS, finals_within_budget
from tune.study.records import TrialRecord
from tune.tracking.tracker import Tracker

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

    def for_report(self) -> dict[str, Any]:
        """The fields of `StudyResult`."""
        return {name: value for name, value in vars(self).items() if name != "test_baseline"}


def finalise(
    plan: Plan, study: OpenStudy, winner: TrialRecord, tracker: Tracker, console: Console, interrupts: Interrupts
) -> Final:
    """Retrain the winner and open the test split, without repeating what an earlier session has done.

    Args:
        plan: of the study. Its data can open the test split; the prepared data of the trials does not hold it.
        study: the open study, whose journal gets the results.
        winner: the trial with the best validation MRR.
        tracker: of the study's runs.
        console: for messages.
        interrupts: may end it.

    Raises:
        ImfError: no seed could be trained to its end.
    """
    seeds = [plan.settings.seed + offset for offset in range(plan.settings.seeds)]
    for event in reversed(study.journal.events):
        if event["event"] == "final" and event["winner"] == winner.trial_id and event["asked"] == seeds:
            console.print(f"trial {winner.number} has already been finalised", highlight=False)
            return _final(plan, study, event)
    finals = FinalRuns.of(plan, plan.space.config_for(winner.params), seeds, winner.trial_id)
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
    test = _open_test(plan, study, {seed: runs[names[seed]][1] for seed in done}, console)
    if test.runs and (margin := margin_on_test(plan.settings.study_dir / "final" / RANKS_FILE)) is not None:
        lead_margins[task.baseline_name] = margin
    best = max(range(len(done)), key=lambda index: validation[index])
    task.publish(runs[names[done[best]]][1], plan.settings.study_dir / "best", test.details[best] if test.details else None)
    event = study.journal.append(
        "final", winner=winner.trial_id, asked=seeds, seeds=done, validation=validation, test=list(test.runs),
        decisions=test.decisions, pooled=test.pooled,
        structure_only=refined[finals.control_run].mrr if finals.control_run in refined else None,
        without={modality: refined[run].mrr for modality, run in finals.ablation_runs.items() if run in refined},
        control=finals.control, margins=lead_margins,
        baseline=test.baseline.as_dict() if test.baseline is not None else None,
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
    )


def _refined(plan: Plan, record: TrialRecord, checkpoint: Path) -> Refined:
    return plan.task.refine(checkpoint, plan.base, plan.data, float(record.best_mrr or 0.0))


def _open_test(plan: Plan, study: OpenStudy, checkpoints: Mapping[int, Path], console: Console) -> TestResult:
    """Score the test split with the checkpoint of each seed and with the baseline; nothing else in a search does."""
    if not plan.data.has_test:
        console.print("the data has no test split: there are validation results only")
        return TestResult()
    folders = list(checkpoints.values())
    study.journal.append("test", checkpoints=list(map(str, folders)))  # first, so that a crash while testing counts too
    result: TestResult = plan.task.test(checkpoints, plan.base, plan.data, folders[0].parent.parent / RANKS_FILE)
    for note in result.notes:
        console.print(f"  {escape(note)}", highlight=False)
    return result


def _usable(run: tuple[TrialRecord, Path] | None) -> bool:
    return run is not None and run[0].state.usable and run[0].best_mrr is not None and run[1].is_dir()
