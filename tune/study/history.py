"""The history of a study: its events in their order, and what they say of each trial.

The events are the truth. Searcher, scheduler, ledger, MLflow callback and live table keep no trial of their own: they ask the
history, or follow it. It is the one place where an epoch counts once, however often a worker reports it (after a retry, or
resent to the driver of a later session), and the one place that replays the events of earlier sessions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tune.settings import METRIC, TIME_ATTR
from tune.study.outcome import reported_numbers

Event = dict[str, Any]


class DriverOnly:
    """Stays in the driver: Ray pickles all that it is given into snapshots that nobody restores. They get None instead."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


@dataclass
class TrialHistory:
    """One trial, as the events so far tell it.

    Args:
        name: `trial-003`.
        number: order of creation, from 0.
        params: the searched settings.
        reports: epoch -> the event that first reported it.
        value: highest finite validation MRR reported; None before the first.
        seconds: training time of all sessions.
        retries: how often it was started again after a failure.
        end: the event of its end; None: it runs, is paused, or was interrupted.
        until: the epoch up to which it was last let train; None: to its end.
        paused: it has trained up to `until` and waits, with its training state saved.
    """

    name: str
    number: int
    params: dict[str, Any]
    reports: dict[int, Event] = field(default_factory=dict)
    value: float | None = None
    seconds: float = 0.0
    retries: int = 0
    end: Event | None = None
    until: int | None = None
    paused: bool = False
    _earlier_seconds: float = 0.0

    @property
    def last_epoch(self) -> int:
        """The last epoch reported; 0 before the first."""
        return next(reversed(self.reports), 0)

    @property
    def waits(self) -> bool:
        """Whether it is paused and may go on: nobody gave it up."""
        return self.paused and self.end is None

    @property
    def stopped(self) -> bool:
        """Whether the scheduler ended it: the report on which it says stop is part of the end."""
        return bool(self.end and self.end.get("stopped"))

    @property
    def diverged(self) -> bool:
        """Whether it ended with a report that was not finite."""
        return bool(self.end and self.end.get("diverged"))

    @property
    def failed(self) -> bool:
        """Whether it failed or diverged, so that it is compared with no other."""
        return bool(self.end and (self.end["error"] or self.end["diverged"]))

    @property
    def best_by_epoch(self) -> dict[int, float]:
        """Best validation MRR so far by epoch, at each report that has one."""
        best, curve = -math.inf, {}
        for epoch, report in self.reports.items():
            if METRIC in report["numbers"]:
                best = curve[epoch] = max(best, float(report["numbers"][METRIC]))
        return curve

    @property
    def started(self) -> float | None:
        """When its training began, in seconds since 1970; None before its first report."""
        first = next(iter(self.reports.values()), None)
        return float(first["at"]) - float(first["seconds"]) if first else None

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """Pairs (epoch, validation MRR)."""
        return tuple((epoch, report["numbers"]["mrr"]) for epoch, report in self.reports.items() if "mrr" in report["numbers"])

    @property
    def best(self) -> tuple[float, int] | None:
        """Highest validation MRR and its epoch; None without one above 0, where a trial starts.

        A report also carries the best MRR before it: that epoch's own report may have been lost with a worker.
        """
        scores = [(0.0, 0)]
        for epoch, report in self.reports.items():
            numbers = report["numbers"]
            scores += [(numbers.get("mrr", 0.0), epoch), (numbers.get(METRIC, 0.0), int(numbers.get("best_epoch") or epoch))]
        best = max(scores, key=lambda score: score[0])
        return best if best[0] > 0 else None

    def value_at(self, epoch: int) -> float | None:
        """Best validation MRR up to an epoch; None if it did not report one by then, or trained less without having ended."""
        if self.last_epoch < epoch and (self.end is None or self.stopped):
            return None
        return max((value for at, value in self.best_by_epoch.items() if at <= epoch), default=None)

    def begin_session(self) -> None:
        """Ray counts the seconds of a trial anew in each session, and whenever a paused one goes on."""
        self._earlier_seconds = self.seconds

    def add(self, event: Event) -> bool:
        """Take in the report of an event; False if its epoch is known, or it reports none."""
        epoch = int(event.get("epoch", 0))
        if epoch <= self.last_epoch:
            return False
        self.reports[epoch] = event
        self.seconds = max(self.seconds, self._earlier_seconds + float(event.get("seconds", 0.0)))
        if METRIC in event["numbers"]:
            value = float(event["numbers"][METRIC])
            self.value = value if self.value is None else max(value, self.value)
        return True


Listener = Callable[[Event, TrialHistory | None, bool], None]


class History(DriverOnly):
    """The events of a study and its trials. This one is in memory; `tune.study.journal.Journal` is also on the disk."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.trials: dict[str, TrialHistory] = {}  # by name, in the order of asking
        self._listeners: list[Listener] = []

    @classmethod
    def of(cls, events: Collection[Event]) -> History:
        """A history in memory of events that were read."""
        history = History()
        for event in events:
            history.apply(event)
        return history

    @property
    def study(self) -> Event:
        """The first event."""
        return self.events[0]

    def all(self, kind: str) -> list[Event]:
        """Events of a kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def interrupted(self) -> list[TrialHistory]:
        """Trials that have no end and are not paused."""
        return [trial for trial in self.trials.values() if trial.end is None and not trial.paused]

    @property
    def paused(self) -> list[TrialHistory]:
        """Trials that wait for more epochs."""
        return [trial for trial in self.trials.values() if trial.waits]

    def seconds(self, kinds: Collection[str] | None = None, since: str | None = None) -> float:
        """Wall time of all sessions: from the beginning of each to its last event.

        Args:
            kinds: only events of these kinds count as the last; None: any.
            since: count from the last session in which this key is true.
        """
        total = spent = begun = 0.0
        for event in self.events:
            if event["event"] == "session":
                total, spent, begun = (0.0 if since and event.get(since) else total + spent), 0.0, float(event["at"])
            elif begun and (kinds is None or event["event"] in kinds):
                spent = max(spent, float(event.get("at", begun)) - begun)
        return total + spent

    def append(self, event: str, **values: Any) -> Event:
        """Add an event that happens now, and tell the listeners of it."""
        added: Event = {"event": event, "at": round(time.time(), 3), **values}
        self.write(added)
        new = self.apply(added)
        for listener in self._listeners:
            listener(added, self.trials.get(values.get("trial", "")), new)
        return added

    def ask(self, name: str, params: Mapping[str, Any], **values: Any) -> None:
        """Add a trial; `number` overrides its order of creation."""
        self.append("ask", trial=name, params=dict(params), **values)

    def report(self, name: str, result: Mapping[str, Any]) -> None:
        """Add the report of a trial that goes on, unless its epoch is known. A non-finite one is left to the trial's end."""
        report = _report(result)
        if METRIC in report["numbers"] and report["epoch"] > self.trials[name].last_epoch:
            self.append("report", trial=name, **report)

    def tell(self, name: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """End a trial, once.

        Args:
            result: its last report, which is new where the scheduler said stop at it; without the metric it is none.
            error: it failed.
        """
        trial = self.trials[name]
        if trial.end is not None:
            return
        report = _report(result) if result and METRIC in result else {}
        numbers = report.get("numbers", {})
        diverged = bool(report) and METRIC not in numbers
        scores = [score for score in (trial.value, numbers.get(METRIC)) if score is not None]
        value = None if error or diverged else max(scores, default=None)
        if report:
            report["stopped"] = report["epoch"] > trial.last_epoch
        self.append("tell", trial=name, value=value, error=error, diverged=diverged, **report)

    def give_up(self, name: str) -> None:
        """End a paused trial: it gets no more epochs."""
        self.append("tell", trial=name, value=self.trials[name].value, error=False, diverged=False, stopped=True)

    def follow(self, listener: Listener) -> None:
        """Play all events so far to a listener, and from now on each one as it is appended.

        Args:
            listener: receives the event, its trial in its state right after the event (None: it concerns none), and whether the
                event reports an epoch for the first time.
        """
        past = History()
        for event in self.events:
            new = past.apply(event)
            listener(event, past.trials.get(event.get("trial", "")), new)
        self._listeners.append(listener)

    def apply(self, event: Event) -> bool:
        """Take in an event; whether it reports an epoch for the first time."""
        self.events.append(event)
        kind, new = event["event"], False
        if kind == "session":
            for trial in self.trials.values():
                trial.begin_session()
        elif kind == "ask":
            name = event["trial"]
            trial = TrialHistory(name, event.get("number", len(self.trials)), event["params"], until=event.get("until"))
            self.trials[name] = trial
        elif kind == "pause":
            self.trials[event["trial"]].paused = True
        elif kind == "resume":
            trial = self.trials[event["trial"]]
            trial.paused, trial.until = False, event["until"]
            trial.begin_session()
        elif kind == "retry":
            self.trials[event["trial"]].retries += 1
        elif kind in ("report", "tell"):
            trial = self.trials[event["trial"]]
            new = trial.add(event)
            if kind == "tell":
                trial.end = event
        return new

    def write(self, event: Event) -> None:
        """Keep an event before anything follows from it; here nothing is kept."""

    def refuse_full_disk(self, name: str) -> None:
        """Called when a trial has failed; see `Journal.refuse_full_disk`."""


def trial_name(number: int) -> str:
    """`trial-003`: the name of a trial, of its folder and of its run, in every session the same."""
    return f"trial-{number:03d}"


def _report(result: Mapping[str, Any]) -> Event:
    """What is kept of a report: JSON knows finite numbers only, so of the others there is the name."""
    numbers = reported_numbers(result)
    non_finite = [name for name, number in numbers.items() if not math.isfinite(number)]
    return {
        "epoch": int(result.get(TIME_ATTR, result.get("training_iteration", 0))),
        "seconds": round(float(result.get("time_total_s", 0.0)), 3),
        "numbers": {name: number for name, number in numbers.items() if name not in non_finite},
        **({"non_finite": non_finite} if non_finite else {}),
    }
