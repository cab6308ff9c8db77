"""The runs of finalising a winner, the most important first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imf_core.config_base import Settings
from tune.plan.plan import Plan


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
    """

    chosen: Settings
    variants: dict[str, Settings]
    titles: tuple[str, ...]
    seed_runs: dict[int, str]
    control: str
    control_run: str
    ablation_runs: dict[str, str]

    @classmethod
    def of(cls, plan: Plan, chosen: Settings, seeds: Sequence[int], winner: str = "winner") -> FinalRuns:
        """The runs for a winner's settings and name."""
        task, control = plan.task, plan.task.control(chosen, plan.data, seeds[0])
        ablations = task.ablations(chosen, plan.data, seeds[0])
        seed_runs = {seed: f"{winner}-seed-{seed}" for seed in seeds}
        control_run = f"{winner}-{control.name.replace(' ', '-')}" if control is not None else ""
        ablation_runs = {modality: f"{winner}-without-{modality}" for modality in ablations}
        runs = [(run, f"seed {seed}", chosen.updated({"train.seed": seed})) for seed, run in seed_runs.items()]
        if control is not None:
            runs.append((control_run, f"{control.preposition} {control.name}", control.config))
        for modality in sorted(ablations, key=lambda modality: modality not in plan.audit.named_answers):
            runs.append((ablation_runs[modality], f"without {modality}", ablations[modality]))
        return cls(
            chosen, {run: config for run, _, config in runs}, tuple(title for _, title, _ in runs), seed_runs,
            control.name if control is not None else "", control_run, ablation_runs,
        )

    def first(self, count: int | None) -> dict[str, Settings]:
        """The settings of the first so many runs; None: of all."""
        return dict(list(self.variants.items())[:count])
