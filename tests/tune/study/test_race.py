"""Race and resume: who goes on, how far, and that nothing is trained twice."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.search import Searcher

from imf_core.config import Config
from imf_core.errors import ConfigError
from tune.space.space import SearchSpace
from tune.study.history import History
from tune.study.proposals import Proposals
from tune.study.race import Leg, Race, rungs_of
from tune.study.race_search import RaceSearch

SPACE = SearchSpace.from_values(
    {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.dim": {"low": 16, "high": 256}}, Config(), ("structure",)
)


def played(*told: tuple[Any, ...]) -> History:
    """A history of `("ask", name, until)`, `("report", name, epoch, value)`, `("pause", name)`, `("tell", name)` ..."""
    history = History()
    for kind, name, *rest in told:
        if kind == "ask":
            history.ask(name, {}, until=rest[0])
        elif kind == "report":
            history.report(name, {"epoch": rest[0], "mrr": rest[1], "best_mrr": rest[1]})
        elif kind == "resume":
            history.append("resume", trial=name, until=rest[0])
        elif kind == "tell":
            history.tell(name, error=bool(rest))
        else:
            history.append(kind, trial=name)
    return history


def one_epoch(**values: float) -> list[tuple[Any, ...]]:
    """Trials that have trained one epoch and are paused."""
    told: list[tuple[Any, ...]] = []
    for name, value in values.items():
        told += [("ask", name, 1), ("report", name, 1, value), ("pause", name)]
    return told


@pytest.mark.parametrize(
    ("epochs", "first", "step", "every", "rungs"),
    [
        (1, None, 3.0, 1, (1,)), (2, None, 3.0, 1, (1, 2)), (4, None, 3.0, 1, (1, 4)), (8, None, 3.0, 1, (1, 3, 8)),
        (30, None, 3.0, 1, (1, 3, 9, 30)), (1000, None, 3.0, 1, (12, 36, 108, 324, 1000)), (8, 2, 2.0, 1, (2, 4, 8)),
        (8, 8, 3.0, 1, (8,)), (12, None, 3.0, 2, (2, 4, 12)),
    ],
)
def test_rungs(epochs: int, first: int | None, step: float, every: int, rungs: tuple[int, ...]) -> None:
    assert rungs_of(epochs, first, step, every) == rungs


@pytest.mark.parametrize("values", [(0, None), (4, 5), (4, 0)])
def test_unusable_values_are_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError):
        rungs_of(*values)


def test_all_given_points_get_the_first_rung_before_any_goes_on() -> None:
    race = Race((1, 3, 9), 3.0)
    assert race.next_leg(History(), 3, True) == Leg("", 1)
    history = played(*one_epoch(a=0.3, b=0.1))
    assert race.next_leg(history, 3, True) == Leg("", 1)
    running = played(*one_epoch(a=0.3, b=0.1), ("ask", "c", 1))
    assert race.next_leg(running, 3, True) == Leg("", 1)  # a free worker does not wait: it tries another point
    assert race.next_leg(played(*one_epoch(a=0.3, b=0.1, c=0.2)), 3, True) == Leg("a", 3)


def test_the_best_third_goes_on_and_of_these_the_best_finishes() -> None:
    race, told = Race((1, 3, 9), 3.0), one_epoch(a=0.1, b=0.2, c=0.3, d=0.4, e=0.05)
    assert race.next_leg(played(*told), 5, True) == Leg("d", 3)
    told += [("resume", "d", 3)]
    assert race.next_leg(played(*told), 5, True) == Leg("c", 3)  # two of five: a third, rounded up
    told += [("resume", "c", 3), ("report", "d", 3, 0.5), ("pause", "d"), ("report", "c", 3, 0.6), ("pause", "c")]
    assert race.next_leg(played(*told), 5, True) == Leg("c", 9)
    told += [("resume", "c", 9)]
    assert race.next_leg(played(*told), 5, True) == Leg("", 1)
    assert race.next_leg(played(*told), 5, False) is None
    # A seventh trial makes room for a third one: the paused a, b or e, if they are better than the new ones.
    told += one_epoch(f=0.01, g=0.02)
    assert race.next_leg(played(*told), 5, True) == Leg("b", 3)


def test_a_trial_that_ended_by_itself_counts_at_every_later_rung() -> None:
    told = [*one_epoch(a=0.3), ("resume", "a", 3), ("report", "a", 2, 0.2), ("tell", "a"), *one_epoch(b=0.2, c=0.1, d=0.05)]
    told += [("resume", "b", 3), ("report", "b", 3, 0.25), ("pause", "b")]
    assert Race((1, 3, 9), 3.0).next_leg(played(*told), 1, False) is None  # a is the better one of the two at epoch 3
    better = [*told[:-2], ("report", "b", 3, 0.35), ("pause", "b")]
    assert Race((1, 3, 9), 3.0).next_leg(played(*better), 1, False) == Leg("b", 9)


def test_failed_trials_are_not_compared() -> None:
    told = [("ask", "a", 1), ("report", "a", 1, 0.9), ("tell", "a", "error"), *one_epoch(b=0.1)]
    assert Race((1, 3), 3.0).next_leg(played(*told), 1, False) == Leg("b", 3)


def test_of_too_many_paused_trials_the_worst_are_given_up() -> None:
    race = Race((1, 3), 3.0, most_paused=2)
    assert race.surplus(played(*one_epoch(a=0.3, b=0.1))) == []
    assert race.surplus(played(*one_epoch(a=0.3, b=0.1, c=0.2, d=0.05))) == ["d", "b"]


def test_a_trial_goes_on_from_where_it_was_paused() -> None:
    """The names and epochs that Tune is given, one trial at a time: the second point is the better one, and finishes."""
    search = RaceSearch(SPACE, Race((1, 2), 3.0), points=[{"train.lr": 0.01}], proposals=Proposals(SPACE, 1))
    search.left = 3
    values = {"trial-000": (0.1, 0.2), "trial-001": (0.3, 0.4), "trial-002": (0.05, 0.06)}
    legs = []
    for number in range(9):
        suggested = search.suggest(str(number))
        if suggested == Searcher.FINISHED:
            break
        assert isinstance(suggested, dict)
        name, until, known = suggested["name"], suggested["until"], suggested.get("known", 0)
        legs.append((name, known, until))
        for epoch in range(known + 1, until + 1):
            result = {"epoch": epoch, "mrr": values[name][epoch - 1], "best_mrr": values[name][epoch - 1]}
            search.on_trial_result(str(number), result)
        search.on_trial_complete(str(number), {**result, **({"ended": 1.0} if until == 2 else {})})
    assert legs == [("trial-000", 0, 1), ("trial-001", 0, 1), ("trial-001", 1, 2), ("trial-002", 0, 1)]
    assert [trial.name for trial in search.history.paused] == ["trial-000", "trial-002"]
    assert search.idle and not search.open
    assert search.history.trials["trial-001"].end is not None
    replayed, proposals = History.of(search.history.events), Proposals(SPACE, 1)
    again = RaceSearch(SPACE, Race((1, 2), 3.0), replayed, points=[{"train.lr": 0.01}], proposals=proposals)
    again.left = 2  # the two paused ones
    assert again.idle and again.suggest("x") == Searcher.FINISHED
    assert [trial.params for trial in again.study.trials] == [trial.params for trial in search.study.trials]
