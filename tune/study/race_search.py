"""The searcher of a race: a trial is trained in parts, and the next part is of whichever trial deserves it most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tune.space.space import SearchSpace
from tune.study.history import History, TrialHistory
from tune.study.outcome import ENDED
from tune.study.proposals import Proposals
from tune.study.race import Leg, Race
from tune.study.schedule import is_finite
from tune.study.searcher import StudySearch


class RaceSearch(StudySearch):
    """A `StudySearch` that pauses its trials and lets them go on; a Ray trial is a part of one.

    Args:
        space, history, known, more: as of `StudySearch`.
        race: decides which trial trains next and how far.
        proposals: draws the points; default: with seed 0. The study's sampler draws none, and is told them all.
    """

    def __init__(
        self, space: SearchSpace, race: Race, history: History | None = None, *, proposals: Proposals | None = None,
        known: Iterable[tuple[Mapping[str, Any], float]] = (), **more: Any,
    ) -> None:
        known = list(known)
        self.race, self.proposals = race, proposals or Proposals(space, known=known)
        super().__init__(space, history, known=known, **more)
        self._give_up_surplus()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to train, although trials may be paused."""
        return not self._waiting and self._next_leg() is None

    @property
    def _waits(self) -> bool:
        return bool(self.open) and not self.closed

    def _next(self) -> str | None:
        while True:
            leg = self._next_leg() if not self._waiting else None
            if leg is None and not self._waiting:
                return None
            if self.too_late():
                self.closed = True
                return None
            if leg is not None and leg.name:
                self.history.append("resume", trial=leg.name, until=leg.until)
                return leg.name
            name = self._begun(**({"until": leg.until} if leg is not None else {}))
            if name is not None:
                return name
            self.exhausted = True  # a paused trial may still go on

    def _next_leg(self) -> Leg | None:
        """What the race lets a worker do next."""
        not_yet = sum(trial.end is None and name not in self._handed_out for name, trial in self.history.trials.items())
        may_begin = self.left > not_yet and not self.exhausted
        return self.race.next_leg(self.history, len(self.first_points), may_begin)

    def _pauses(self, name: str, result: Mapping[str, Any]) -> bool:
        """A trial has trained as far as the race let it, unless it says that it has ended; surplus paused ones are given up."""
        trial = self.history.trials[name]
        if trial.until is None or ENDED in result or trial.last_epoch < trial.until:
            return False
        if trial.until >= self.race.rungs[-1] or not is_finite(result):
            return False
        self.history.append("pause", trial=name)
        self._give_up_surplus()
        return True

    def _give_up_surplus(self) -> None:
        for name in self.race.surplus(self.history):
            self._count(name)  # one that an earlier session paused ends without having been handed out in this
            self.history.give_up(name)

    def _give_first(self) -> None:
        """They are offered one by one."""

    def _offer(self, draw: int) -> None:
        """The next given point, with the base's values for settings that it lacks; else one that is drawn."""
        number = len(self.history.trials)
        given = number < len(self.first_points) and not draw
        point = self.space.near(self.first_points[number]) if given else self.proposals.draw(self.history, draw)
        self.study.enqueue_trial(point)

    def _repeated(self, trial: TrialHistory) -> dict[str, Any] | None:
        """A point of the journal as a running trial of the study: it is not drawn again, for it depends on nothing else."""
        self.study.enqueue_trial(dict(trial.params))
        asked = self._running[trial.name] = self.study.ask()
        asked.set_user_attr("trial_id", trial.name)
        return self.space.suggest(asked)


def search_of(space: SearchSpace, history: History, race: Race | None, proposals: Proposals, **more: Any) -> StudySearch:
    """A `RaceSearch`, or without a race the plain search, which draws by its own sampler; arguments as of these."""
    if race is None:
        return StudySearch(space, history, **more)
    return RaceSearch(space, race, history, proposals=proposals, **more)
