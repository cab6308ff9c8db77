"""The points of a race: near good ones and from a sampler, and the same again after any interruption."""

from __future__ import annotations

import pytest

from imf_core.config import Config
from tune.space.space import SearchSpace
from tune.study.history import History
from tune.study.proposals import Proposals, expected_ends

SPACE = SearchSpace.default(Config(), ("structure",))


def history(count: int, full: int = 2) -> History:
    """Trials of which the first few ran to their end and the others are paused after an epoch."""
    played, proposals = History(), Proposals(SPACE, 3, "random")
    for number in range(count):
        name = f"trial-{number:03d}"
        point = proposals.draw(played)
        played.ask(name, point, until=1)
        for epoch in range(1, 4 if number < full else 2):
            value = 0.1 + 0.01 * number + 0.05 * epoch
            played.report(name, {"epoch": epoch, "mrr": value, "best_mrr": value})
        if number < full:
            played.tell(name)
        else:
            played.append("pause", trial=name)
    return played


@pytest.mark.parametrize("kind", ["tpe", "gp", "random"])
def test_a_point_depends_on_the_history_alone(kind: str) -> None:
    played = history(8)
    first = [Proposals(SPACE, 0, kind).draw(played, attempt) for attempt in range(3)]
    again = [Proposals(SPACE, 0, kind).draw(History.of(played.events), attempt) for attempt in range(3)]
    assert first == again
    assert len({str(point) for point in first}) == 3
    assert all(SPACE.validate_point(point) == point and SPACE.is_complete(point) for point in first)
    assert Proposals(SPACE, 1, kind).draw(played) != first[0]


def test_two_of_three_points_are_near_a_good_one() -> None:
    """A step changes a few settings; the best three of the study are its starting points."""
    played = history(9, full=9)
    good = [trial.params for trial in list(played.trials.values())[-3:]]
    proposals, shares = Proposals(SPACE, 0, "tpe"), []
    for attempt in range(6):
        point = proposals.draw(played, attempt)
        shares.append(max(sum(point.get(name) == value for name, value in one.items()) / len(one) for one in good))
    near = [share for attempt, share in enumerate(shares) if attempt % 3 < 2]
    assert min(near) >= 0.5 and max(shares[2], shares[5]) < min(near)


def test_without_a_value_points_are_drawn() -> None:
    point = Proposals(SPACE, 0, "tpe").draw(History())
    assert SPACE.validate_point(point) == point


def test_known_points_count_as_good_ones() -> None:
    known = SPACE.default_point()
    near = [Proposals(SPACE, seed, "tpe", known=[(known, 0.9)]).draw(History()) for seed in range(5)]
    shared = [sum(point.get(name) == value for name, value in known.items()) / len(known) for point in near]
    assert sum(share >= 0.5 for share in shared) >= 3


def test_the_end_of_a_short_curve_follows_the_long_ones() -> None:
    long = {"a": {1: 0.1, 3: 0.2, 9: 0.4}, "b": {1: 0.05, 3: 0.1, 9: 0.2}, "c": {1: 0.2, 3: 0.25, 9: 0.45}}
    ends = expected_ends({**long, "d": {1: 0.07}, "e": {1: 0.15, 3: 0.22}, "f": {}})
    assert (ends["a"], ends["b"], ends["c"]) == (0.4, 0.2, 0.45)
    assert 0.2 < ends["d"] < 0.4 < ends["e"] <= 0.45
    assert "f" not in ends


def test_no_curve_is_expected_to_end_above_the_best_or_below_itself() -> None:
    ends = expected_ends({"a": {1: 0.1, 3: 0.3}, "b": {1: 0.25}, "c": {1: 0.01}})
    assert ends["b"] <= 0.3 and 0.01 <= ends["c"] < 0.3
    assert expected_ends({"a": {1: 0.1}, "b": {1: 0.2}}) == {"a": 0.1, "b": 0.2}
    assert expected_ends({}) == {}
