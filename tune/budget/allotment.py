"""How a time budget is divided: what of a study is given up, and in which order, where not everything fits.

Given up first: the runs without one modality, the last named first; then the control; then the seeds beyond the second; then
epochs of a trial, down to half; then the second seed; then epochs down to a quarter. What is left goes to the trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SLACK = 1.1  # runs are not equally long
_KEPT_SEEDS = 2  # as long as epochs can be given up instead
_TEST_SHARE = 0.7  # of an epoch's seconds: refining the decision of a final run, its margins, and testing it
_REPORT_SECONDS = 8.0  # pages, pictures, the model in MLflow


@dataclass(frozen=True)
class Pace:
    """How fast a trial trains.

    Args:
        epoch: seconds of an epoch with its evaluation.
        start: seconds until a new process takes its first step.
        restart: seconds until a process that has trained before does.
    """

    epoch: float
    start: float
    restart: float = 1.0

    def run(self, epochs: float, rounds: int = 1) -> float:
        """Seconds of so many runs, one after another."""
        return self.start + rounds * epochs * self.epoch + (rounds - 1) * self.restart if rounds else 0.0

    def scoring(self, models: int) -> float:
        """Seconds to score validation and test with so many trained models."""
        return _TEST_SHARE * self.epoch * models

    def closing(self, runs: int) -> float:
        """Seconds from the end of the last of so many final runs to the end of the command."""
        return _REPORT_SECONDS + self.scoring(runs)


@dataclass(frozen=True)
class Study:
    """What is asked of a study, as far as its length goes.

    Args:
        trials: asked for.
        given: of them, that are tried before the sampler draws.
        concurrency: trials at a time.
        max_epochs: of a trial.
        grace: epochs before a trial may be stopped early; `max_epochs` where none is.
        runs: of finalising: seeds, control, ablations.
        fixed_epochs: the epochs must stay: trials of an earlier session ran so long.
        pooled: models among which the pool is chosen; each is scored once more.
    """

    trials: int
    given: int
    concurrency: int
    max_epochs: int
    grace: int
    runs: int
    fixed_epochs: bool = False
    pooled: int = 0


@dataclass(frozen=True)
class Allotment:
    """What a budget allows.

    Args:
        max_epochs: of a trial.
        runs: of finalising, the first of the list.
        trials: that are likely to begin.
    """

    max_epochs: int
    runs: int
    trials: int


def allot(seconds: float, pace: Pace, study: Study) -> Allotment:
    """Divide a budget.

    As many trials shall begin as the sampler needs to draw some itself; more begin where there is time.

    Args:
        seconds: of the budget that are left.
        pace: of the base settings.
        study: what is asked for.

    Returns:
        The most that fits. If nothing does: the least there is, with `trials` 0 where not even one trial would end in time.
    """
    wanted = min(study.trials, study.given + study.concurrency)
    runs, epochs = study.runs, study.max_epochs
    half, quarter = (epochs if study.fixed_epochs else math.ceil(epochs / share) for share in (2, 4))
    for least_runs, least_epochs in ((_KEPT_SEEDS, epochs), (_KEPT_SEEDS, half), (1, half), (1, quarter)):
        while runs > least_runs and _seconds(pace, study, wanted, epochs, runs) > seconds:
            runs -= 1
        while epochs > least_epochs and _seconds(pace, study, wanted, epochs, runs) > seconds:
            epochs -= 1
    trials = study.trials
    while trials and _seconds(pace, study, trials, epochs, runs) > seconds:
        trials -= 1
    return Allotment(epochs, runs, trials)


def _seconds(pace: Pace, study: Study, trials: int, epochs: int, runs: int) -> float:
    """Seconds of a whole study. The winner's own seed is trained by its trial."""
    grace = min(study.grace, epochs)
    mean = min(epochs, grace * (1 + 2 / 3 * math.log(epochs / grace, 3)))  # one trial in three passes each of ASHA's rungs
    rounds = math.ceil(trials / study.concurrency)
    search = max(pace.run(epochs), pace.run(mean, rounds)) if trials else 0.0
    return search + final_seconds(pace, epochs, runs - 1, study.concurrency) + pace.closing(runs + study.pooled)


def final_seconds(pace: Pace, epochs: int, runs: int, concurrency: int) -> float:
    """Seconds of so many final runs."""
    return pace.run(epochs * SLACK, math.ceil(max(0, runs) / max(1, concurrency)))
