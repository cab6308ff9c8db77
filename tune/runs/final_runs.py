"""The runs of finalising a winner, the most important first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imf_core.config_base import Settings
from tune.plan.plan import Plan
from tune.study.records import TrialRecord


@dataclass(frozen=True)
class FinalRuns:
    """Seeds, control, ablations; where time is short the last ones are left out.

    Args:
        chosen: settings of the winner.
        variants: settings by the name of the run.
        titles: what each is called on the terminal.
        seed_runs: runs by their seed.
        control, control_run: name and run of what the winner is measured against; empty where there is nothing.
        ablation_runs: runs by the modality that they lack.
    """

    chosen: Settings
    variants: dict[str, Settings]
    titles: tuple[str, ...]
    seed_runs: dict[int, str]
    control: str
    control_run: str
    ablation_runs: dict[str, str]

    @classmethod
    def of(cls, plan: Plan, winner: TrialRecord, seeds: Sequence[int]) -> FinalRuns:
        """The runs for a winner."""
        task, chosen, name = plan.task, plan.space.config_for(winner.params), winner.trial_id
        seed_runs = {seed: f"{name}-seed-{seed}" for seed in seeds}
        variants = {run: chosen.updated({"train.seed": seed}) for seed, run in seed_runs.items()}
        titles = [f"seed {seed}" for seed in seeds]
        control, control_run = task.control(chosen, plan.data, seeds[0]), ""
        if control is not None:
            control_run = f"{name}-{control.name.replace(' ', '-')}"
            variants[control_run] = control.config
            titles.append(f"{control.preposition} {control.name}")
        ablations = task.ablations(chosen, plan.data, seeds[0])
        ablation_runs = {modality: f"{name}-without-{modality}" for modality in ablations}
        variants |= {ablation_runs[modality]: config for modality, config in ablations.items()}
        titles += [f"without {modality}" for modality in ablations]
        return cls(
            chosen, variants, tuple(titles), seed_runs, control.name if control is not None else "", control_run, ablation_runs
        )

    def first(self, count: int | None) -> dict[str, Settings]:
        """The settings of the first so many runs; None: of all."""
        return dict(list(self.variants.items())[:count])
