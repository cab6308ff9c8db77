"""The end of a study: the winner retrained with several seeds, and the test split opened, once.

This is the only place of the search that reads test triples. Everything was chosen before on validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from imf_core.errors import ImfError
from imf_core.evaluate.test_once import RANKS_FILE
from imf_core.tasks.protocols import Baseline, Refined, TestResult
from tune.plan.opening import OpenStudy
from tune.plan.plan import Plan
from tune.runs.runner import run_variants
from tune.study.records import TrialRecord
from tune.tracking.tracker import Tracker


@dataclass(frozen=True)
class Final:
    """What finalising found.

    Args:
        seeds: of the retrained winners that ended well.
        validation: best validation MRR of each, with the decision weights that it keeps.
        test: test metrics of each; empty where the graph has no test split.
        structure_only: validation MRR of the control; None where there is none.
        without: validation MRR of the winner's settings without one modality, by its name; only where there are several.
        checkpoint: the seed with the best validation MRR.
        example: a validation head and relation, or a user, to ask about.
        test_opened: how often the study has read the test split: 1, and once more for each winner that an extension brings.
        test_baseline: what the baseline without training reaches on test; None where there is none.
        control: what the winner is measured against: its settings on structure alone, or with the other kind of fusion.
        decisions: test metrics of each seed under other decision weights, by what those are.
        pooled: test metrics of the seeds together; None where there is one.
    """

    seeds: tuple[int, ...]
    validation: tuple[float, ...]
    test: tuple[dict[str, float], ...]
    structure_only: float | None
    without: dict[str, float]
    checkpoint: Path
    example: tuple[str, ...]
    test_opened: int
    test_baseline: Baseline | None = None
    control: str = ""
    decisions: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    pooled: Mapping[str, float] | None = None

    def for_report(self) -> dict[str, Any]:
        """As fields of `StudyResult`."""
        return {
            "structure_only_mrr": self.structure_only, "without": self.without, "winner_seed_mrr": self.validation,
            "test_runs": self.test, "seeds": self.seeds, "checkpoint": self.checkpoint, "example": self.example,
            "test_opened": self.test_opened, "control": self.control, "test_decisions": self.decisions,
            "test_pooled": self.pooled,
        }


def finalise(plan: Plan, study: OpenStudy, winner: TrialRecord, tracker: Tracker, console: Console) -> Final:
    """Retrain the winner and open the test split; what an earlier session has done of it is not done again.

    Args:
        plan: the study's plan; its graph knows where the test split is, its prepared data does not hold it.
        study: keeps what was found.
        winner: the trial with the best validation MRR.

    Raises:
        ImfError: no seed could be trained to its end.
    """
    seeds = [plan.settings.seed + offset for offset in range(plan.settings.seeds)]
    for event in reversed(study.journal.events):
        if event["event"] == "final" and event["winner"] == winner.trial_id and event["asked"] == seeds:
            console.print(f"trial {winner.number} was finalised already", highlight=False)
            return _known(plan, event, _times_opened(study))
    task, chosen = plan.task, plan.space.config_for(winner.params)
    names = {seed: f"{winner.trial_id}-seed-{seed}" for seed in seeds}
    variants = {name: chosen.updated({"train.seed": seed}) for seed, name in names.items()}
    control = task.control(chosen, plan.data, seeds[0])
    ablations = task.ablations(chosen, plan.data, seeds[0])
    control_run = f"{winner.trial_id}-{control.name.replace(' ', '-')}" if control is not None else ""
    ablation_runs = {modality: f"{winner.trial_id}-without-{modality}" for modality in ablations}
    variants |= {ablation_runs[modality]: config for modality, config in ablations.items()}
    if control is not None:
        variants[control_run] = control.config
    beside = f", and its settings {control.preposition} {control.name}" if control is not None else ""
    beside += " and without each modality" if ablations else ""
    console.print(f"finalising: trial {winner.number} with {len(seeds)} seed(s){beside}", highlight=False)
    taken = {name: winner for name in names.values() if variants[name] == chosen}  # that seed is the trial's own
    runs = run_variants(plan, study, variants, plan.settings.study_dir / "final", tracker, console, taken)
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
    test = _open_test(plan, study, {seed: runs[names[seed]][1] for seed in done}, console)
    best = max(range(len(done)), key=lambda position: validation[position])
    details = test.details[best] if test.details else None
    task.publish(runs[names[done[best]]][1], plan.settings.study_dir / "best", details)
    event = study.journal.append(
        "final", winner=winner.trial_id, asked=seeds, seeds=done, validation=validation, test=list(test.runs),
        decisions=test.decisions, pooled=test.pooled,
        structure_only=refined[control_run].mrr if control_run in refined else None,
        without={modality: refined[run].mrr for modality, run in ablation_runs.items() if run in refined},
        control=control.name if control is not None else "",
        baseline=test.baseline.as_dict() if test.baseline is not None else None,
    )
    return _known(plan, event, _times_opened(study))


def _known(plan: Plan, event: Mapping[str, Any], opened: int) -> Final:
    """What a journal says of a finalised winner."""
    return Final(
        seeds=tuple(event["seeds"]), validation=tuple(event["validation"]), test=tuple(event["test"]),
        structure_only=event["structure_only"], without=dict(event["without"]), checkpoint=plan.settings.study_dir / "best",
        example=plan.task.example(plan.data), test_opened=opened,
        test_baseline=plan.task.baseline(event["baseline"]) if event["baseline"] is not None else None,
        control=event["control"], decisions=event["decisions"], pooled=event["pooled"],
    )


def _times_opened(study: OpenStudy) -> int:
    return sum(event["event"] == "test" for event in study.journal.events)


def final_runs(plan: Plan) -> int:
    """Runs that finalising a winner takes, its settings as the base has them: seeds, control and ablations."""
    task, base, data, seed = plan.task, plan.base, plan.data, plan.settings.seed
    return plan.settings.seeds + (task.control(base, data, seed) is not None) + len(task.ablations(base, data, seed))


def _refined(plan: Plan, record: TrialRecord, checkpoint: Path) -> Refined:
    return plan.task.refine(checkpoint, plan.base, plan.data, float(record.best_mrr or 0.0))


def _open_test(plan: Plan, study: OpenStudy, checkpoints: Mapping[int, Path], console: Console) -> TestResult:
    """Rank the test triples with each seed's checkpoint and without training; nothing else in a search scores them."""
    if not plan.data.has_test:
        console.print("the data has no test split: validation figures only")
        return TestResult()
    folders = list(checkpoints.values())
    study.journal.append("test", checkpoints=list(map(str, folders)))  # before: it counts, whatever happens then
    result: TestResult = plan.task.test(checkpoints, plan.base, plan.data, folders[0].parent.parent / RANKS_FILE)
    for note in result.notes:
        console.print(f"  {escape(note)}", highlight=False)
    return result


def _usable(run: tuple[TrialRecord, Path] | None) -> bool:
    return run is not None and run[0].state.usable and run[0].best_mrr is not None and run[1].is_dir()
