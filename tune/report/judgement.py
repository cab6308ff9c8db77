"""What a study says about the model and its parts, in sentences: a gain, its 95 % interval, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tune.report.formatting import plural, points
from tune.report.result import StudyResult
from tune.study.outcome import TrialState

GOOD, BAD, OPEN = "good", "bad", "open"
STYLES = {GOOD: "green", BAD: "bold red", OPEN: "bold yellow"}  # on the terminal
NOTE = (
    "Gains in points (hundredths of MRR) with 95 % intervals: by resampling the triples that were ranked, or by Student's t "
    "over the seeds where there are no ranks to compare."
)
_LITTLE = 1.0  # points: a part that brings no more can go
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # 97.5 % quantiles of Student's t, 1 to 9 degrees of freedom


@dataclass(frozen=True)
class Judgement:
    """A sentence about a part of the study.

    Args:
        subject: what is judged.
        text: its gain, the interval, and what follows.
        kind: `good`, `bad` or `open` (not distinguishable from no gain, or without an interval).
    """

    subject: str
    text: str
    kind: str


def judgements(result: StudyResult) -> list[Judgement]:
    """What the study says; empty without a winner that was retrained."""
    if result.winner is None or not result.winner_seed_mrr or result.winner_validation()["mean"] is None:
        return []
    return [*_model(result), *_modalities(result), *_control(result), *_search(result)]


def _model(result: StudyResult) -> Iterator[Judgement]:
    """The winner against the baseline without training, on test if that was opened."""
    texts = ("training pays off", "it has learned less than a table of counts", "it has learned no more than a table of counts")
    tested = [run["mrr"] for run in result.test_runs if "mrr" in run]
    for split, title, runs in (("test", "test", tested), ("valid", "validation", list(result.winner_seed_mrr))):
        if (gain := result.points_over_baseline(split)) is not None:
            name = result.kind.baseline_name
            subject = f"the model against {name}, on {title}"
            yield _part(result, name if split == "test" else "", subject, gain, texts, runs, single=False)
            return


def _modalities(result: StudyResult) -> Iterator[Judgement]:
    """The winner against its settings without each modality."""
    mean = float(result.winner_validation()["mean"] or 0.0)
    for name, alone in result.without.items():
        yield _part(result, name, name, 100 * (mean - alone), ("keep it", "it does harm, leave it out", "leave it out"))


def _control(result: StudyResult) -> Iterator[Judgement]:
    """The winner against its control."""
    if (gain := result.points_over_structure) is not None:
        better = ("the winner is better", f"{result.control} is better, use it", f"{result.control} does as well")
        yield _part(result, result.control, f"the winner against {result.control}", gain, better)


def _search(result: StudyResult) -> Iterator[Judgement]:
    """The retrained winner against the first trial: the winning trial itself is the best of many, by luck too."""
    first = next((record for record in result.records if record.number == 0), None)
    if first is None or first.best_mrr is None or not first.state.usable or result.winner is None:
        return
    subject = "the search against its first trial"
    if result.winner.number == 0:
        yield Judgement(subject, "no trial was better than the first", OPEN)
        return
    if first.state is not TrialState.COMPLETED and first.epochs < result.winner.epochs:  # too short to be compared
        after = plural(first.epochs, "epoch")
        told = f"the first trial was left behind after {after}: what it would have reached is not known"
        yield Judgement(subject, told, OPEN)
        return
    gain = 100 * (float(result.winner_validation()["mean"] or 0.0) - first.best_mrr)
    texts = ("searching paid off", "the first trial's settings are better", "the first trial's settings do as well")
    yield _judged(subject, gain, _around(gain, _half_width(list(result.winner_seed_mrr), single=True)), texts)


def _part(
    result: StudyResult, name: str, subject: str, gain: float, texts: tuple[str, str, str], runs: Sequence[float] = (), *,
    single: bool = True,
) -> Judgement:
    """A lead of which there is a margin, or else the deviation over the seeds.

    Args:
        result: of the study.
        name: of what is led over, a key of `margins`.
        subject, gain, texts: see `_judged`.
        runs: the winner's figure for each seed; default: on validation.
        single: the other figure is of a single run with a deviation of its own.
    """
    seeds = list(runs or result.winner_seed_mrr)
    if name not in result.margins:
        return _judged(subject, gain, _around(gain, _half_width(seeds, single=single)), texts)
    below, above = result.margins[name]
    spread = 100 * (max(seeds) - min(seeds))
    interval = gain + 100 * below, gain + 100 * above
    if _certain(interval) and abs(gain) <= spread:
        why = f"the seeds differ as much among each other ({spread:.1f} points)"
        return Judgement(subject, f"{_figures(gain, interval)}, but {why}: {_open(gain, interval, texts[2])}", OPEN)
    return _judged(subject, gain, interval, texts)


def _judged(subject: str, gain: float, interval: tuple[float, float] | None, texts: tuple[str, str, str]) -> Judgement:
    """A judgement; `texts` say what follows from a gain, from a loss, and from neither."""
    if interval is None:
        return Judgement(subject, f"{points(gain)} points, a single run: a hint only, --seeds 3 gives an interval", OPEN)
    if not _certain(interval):
        return Judgement(subject, f"{_figures(gain, interval)}, not distinguishable: {_open(gain, interval, texts[2])}", OPEN)
    return Judgement(subject, f"{_figures(gain, interval)}: {texts[0 if gain > 0 else 1]}", GOOD if gain > 0 else BAD)


def _open(gain: float, interval: tuple[float, float], text: str) -> str:
    """What follows from an interval around 0: the text where hardly anything can be gained, else nothing yet."""
    return text if max(gain, interval[1]) <= _LITTLE else "more seeds would tell (--seeds 5)"


def _certain(interval: tuple[float, float]) -> bool:
    return interval[0] > 0 or interval[1] < 0


def _figures(gain: float, interval: tuple[float, float]) -> str:
    return f"{points(gain)} points [{interval[0]:.1f}, {interval[1]:.1f}]"


def _around(gain: float, half: float | None) -> tuple[float, float] | None:
    return None if half is None else (gain - half, gain + half)


def _half_width(runs: list[float], *, single: bool) -> float | None:
    """Half the 95 % interval, in points, of the mean of n runs, or of its lead over a single run of equal deviation.

    None for fewer than two runs, or where one is not finite.
    """
    count = len(runs)
    if count < 2 or not all(map(math.isfinite, runs)):
        return None
    mean = math.fsum(runs) / count
    deviation = math.sqrt(math.fsum((run - mean) ** 2 for run in runs) / (count - 1))
    quantile = _T[count - 2] if count - 2 < len(_T) else 1.96 + 2.37 / (count - 1)
    return 100 * quantile * deviation * math.sqrt(1 / count + (1 if single else 0))
