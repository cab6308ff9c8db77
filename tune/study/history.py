"""A journal, read: trials, their reports and how they ended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from tune.study.journal import Event


@dataclass
class TrialHistory:
    """What a journal knows of a trial.

    Args:
        name: `trial-003`.
        number: order of creation, from 0.
        params: its settings.
        reports: epoch -> what was reported at it; a repeated epoch counts once.
        told: the event of its end; None: it was interrupted.
        retries: how often it was started again after a failure.
    """

    name: str
    number: int
    params: dict[str, Any]
    reports: dict[int, Event] = field(default_factory=dict)
    told: Event | None = None
    retries: int = 0


@dataclass(frozen=True)
class History:
    """A journal, read.

    Args:
        events: all, in order.
        trials: by name, in the order of asking.
    """

    events: tuple[Event, ...]
    trials: dict[str, TrialHistory]

    @classmethod
    def of(cls, events: list[Event]) -> History:
        """Sort the events by trial."""
        trials: dict[str, TrialHistory] = {}
        for event in events:
            if event["event"] == "ask":
                trials[event["trial"]] = TrialHistory(event["trial"], len(trials), event["params"])
            elif event["event"] == "retry":
                trials[event["trial"]].retries += 1
            elif event["event"] in ("report", "tell"):
                trial = trials[event["trial"]]
                if event.get("epoch"):
                    trial.reports.setdefault(int(event["epoch"]), event)
                if event["event"] == "tell":
                    trial.told = event
        return cls(tuple(events), trials)

    @property
    def study(self) -> Event:
        """The first event."""
        return self.events[0]

    def all(self, kind: str) -> list[Event]:
        """Events of a kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def interrupted(self) -> list[TrialHistory]:
        """Trials without an end."""
        return [trial for trial in self.trials.values() if trial.told is None]

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
                spent = max(spent, float(event["at"]) - begun)
        return total + spent
