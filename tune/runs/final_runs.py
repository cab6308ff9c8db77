"""The runs of finalising a winner, the most important first, and the duel of the two best trials.

The best of many trials is the best by luck too. The second best is therefore trained once more, with the second seed of the
final runs, and is the winner if it is better than the first in the mean of both seeds. Where the first is clearly ahead there
is no duel.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_core.config_base import Settings
from tune.plan.plan import Plan
from tune.study.history import History
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, ranked

_CLEAR = 0.03  # of the best MRR: seeds of the same settings hardly ever differ by more


@dataclass(frozen=True)
class FinalRuns:
    """Seeds, control, ablations (without a text that names answers first); where time is short the last ones are left out.

    Args:
        chosen: settings of the winner.
        variants: settings by the name of the run.
        titles: what each is called on the terminal.
        seed_runs: runs by their seed.
        control, control_run: name and run of what the winner is measured against; empty where there is nothing.
        ablation_runs: runs by the modality that they lack.
        rival_run: of the second best trial's settings with the second seed; empty without.
    """

    chosen: Settings
    variants: dict[str, Settings]
    titles: tuple[str, ...]
    seed_runs: dict[int, str]
    control: str
    control_run: str
    ablation_runs: dict[str, str]
    rival_run: str = ""

    @classmethod
    def of(
        cls, plan: Plan, chosen: Settings, seeds: Sequence[int], winner: str = "winner",
        rival: tuple[str, Settings] | None = None,
    ) -> FinalRuns:
        """The runs for a winner's settings and name; `rival`: name and settings of the second best trial."""
        task, control = plan.task, plan.task.control(chosen, plan.data, seeds[0])
        ablations = task.ablations(chosen, plan.data, seeds[0])
        seed_runs = {seed: f"{winner}-seed-{seed}" for seed in seeds}
        control_run = f"{winner}-{control.name.replace(' ', '-')}" if control is not None else ""
        ablation_runs = {modality: f"{winner}-without-{modality}" for modality in ablations}
        runs = [(run, f"seed {seed}", chosen.updated({"train.seed": seed})) for seed, run in seed_runs.items()]
        rival_run = ""
        if rival is not None and len(seeds) > 1:
            rival_run = f"{rival[0]}-seed-{seeds[1]}"  # its name as a run of that trial's own finalising
            runs.insert(2, (rival_run, f"the second best with seed {seeds[1]}", rival[1].updated({"train.seed": seeds[1]})))
        if control is not None:
            runs.append((control_run, f"{control.preposition} {control.name}", control.config))
        for modality in sorted(ablations, key=lambda modality: modality not in plan.audit.named_answers):
            runs.append((ablation_runs[modality], f"without {modality}", ablations[modality]))
        return cls(
            chosen, {run: config for run, _, config in runs}, tuple(title for _, title, _ in runs), seed_runs,
            control.name if control is not None else "", control_run, ablation_runs, rival_run,
        )

    def first(self, count: int | None) -> dict[str, Settings]:
        """The settings of the first so many runs; None: of all."""
        return dict(list(self.variants.items())[:count])


def rival_of(best: TrialRecord, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The second best trial; None where there is none, or it is clearly worse."""
    for record in ranked(records):
        if record.trial_id != best.trial_id and record.state.usable and record.best_mrr is not None:
            return record if record.best_mrr >= (1 - _CLEAR) * (best.best_mrr or 0.0) else None
    return None


def duel(
    history: History, first: TrialRecord, second: TrialRecord, seeds: Sequence[int], finals: FinalRuns,
    runs: Mapping[str, tuple[TrialRecord, Path]],
) -> dict[str, Any] | None:
    """Decide between two trials and add the decision to the history; None if a run is missing or failed.

    Args:
        history: of the study.
        first, second: the best trial and the second best.
        seeds: of the final runs.
        finals, runs: the final runs, and what became of them.
    """
    again = [runs.get(name) for name in ((finals.seed_runs[seeds[1]], finals.rival_run) if finals.rival_run else ())]
    values = [run[0].best_mrr for run in again if run is not None and run[0].state.usable]
    if len(values) < 2 or None in values:
        return None
    whole = all(trial.state is TrialState.COMPLETED for trial in (first, second))  # else their own values say less
    means = [
        statistics.fmean([float(value or 0.0), *([float(trial.best_mrr or 0.0)] if whole else [])])
        for trial, value in zip((first, second), values, strict=True)
    ]
    winner = second if means[1] > means[0] else first
    return history.append(
        "duel", first=first.trial_id, second=second.trial_id, winner=winner.trial_id, seed=seeds[1], mrr=means
    )


def fought_duel(history: History, first: TrialRecord, second: TrialRecord | None) -> dict[str, Any] | None:
    """The duel of two trials in an earlier session; None if there was none."""
    for event in reversed(history.all("duel")):
        if second is not None and (event["first"], event["second"]) == (first.trial_id, second.trial_id):
            return event
    return None


def last_duel(history: History) -> dict[str, Any] | None:
    """The last duel of a study, without what belongs to the journal."""
    for event in reversed(history.all("duel")):
        return {key: event[key] for key in ("first", "second", "winner", "seed", "mrr")}
    return None
