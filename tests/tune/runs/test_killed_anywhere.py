"""A study that is killed after any event, and between any two calls of Tune, ends as if it had never been interrupted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_tune import Curve, FakeTune
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.study.outcome import TrialState

FAULTS = ("", "", "", "died", "failed", "diverged", "nan", "reset")


@pytest.fixture(autouse=True, scope="module")
def _memory_disk() -> Iterator[None]:
    """A power cut is not what is tested: without waiting for the disk a study takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@st.composite
def curves(draw: Any, epochs: int = 4, trials: int = 4) -> list[Curve]:
    score = st.floats(0.01, 0.9).map(lambda value: round(value, 3))
    return [
        Curve(
            tuple(draw(st.lists(score, min_size=1, max_size=epochs))), draw(st.sampled_from(FAULTS)),
            draw(st.integers(1, epochs)), draw(st.integers(1, 3)),
        )
        for _ in range(draw(st.integers(1, trials)))
    ]


def facts(study: FakeTune) -> list[dict[str, Any]]:
    """The records, without what depends on the clock, on the driver's sessions and on Ray's retries in each of them."""
    left_out = {"seconds", "started", "ended", "retries", "log_path"}
    return [{key: value for key, value in record.to_json().items() if key not in left_out} for record in study.records]


def assert_whole(study: FakeTune) -> None:
    """Each trial is asked and ended once, each epoch counts once, and the tracker has all of it and nothing RUNNING."""
    events = study.events()
    names = [event["trial"] for event in events if event["event"] == "ask"]
    assert names == [f"trial-{number:03d}" for number in range(len(study.curves))]
    ended = [event["trial"] for event in events if event["event"] == "tell"]
    assert len(ended) == len(set(ended)) and (sorted(ended) == names or study.race is not None)
    assert [record.trial_id for record in study.records] == names
    for record, curve in zip(study.records, study.curves, strict=True):
        own = [event for event in events if event.get("trial") == record.trial_id]
        assert own[-1]["event"] == "tell" or (study.race is not None and own[-1]["event"] == "pause")
        epochs = [event["epoch"] for event in own if event["event"] == "report"]
        epochs += [event["epoch"] for event in own if event.get("stopped") and "epoch" in event]
        assert epochs == list(range(1, len(epochs) + 1))
        assert record.epochs == len(epochs)
        finite = [mrr for _, mrr in record.curve]
        assert finite == list(curve.values[: len(finite)])
        assert record.best_mrr == max(finite, default=None)
        assert record.state is not TrialState.STOPPED
        run = study.tracker.runs[record.trial_id]
        assert run["status"] in ("FINISHED", "FAILED") and run["state"] == str(record.state)
        assert run["epochs"] == epochs


def new(folder: Path, given: list[Curve], concurrency: int, seconds: float = 0.0, scheduler: str = "asha") -> FakeTune:
    options = {"asha": {"reduction": 2.0, "grace": 1}, "race": {"reduction": 2.0, "grace": 1, "step": 2.0, "most_paused": 2}}
    return FakeTune(folder, given, concurrency, scheduler, seconds, **options.get(scheduler, {}))


def assert_as_unbroken(broken: FakeTune, whole: FakeTune, order: bool) -> None:
    """What must be the same: with one trial at a time everything; else all that does not depend on the order of finishing."""
    assert_whole(broken)
    if order:
        assert facts(broken) == facts(whole)
        events = [[event for event in study.events() if event["event"] != "retry"] for study in (broken, whole)]
        assert events[0] == events[1]
    elif broken.scheduler["kind"] == "none" and broken.race is None:
        # Draws by TPE depend on the order of finishing; those of the start-up and all that is trained do not.
        ends = [[{**fact, "params": fact["params"] if fact["number"] < study.startup else None} for fact in facts(study)]
                for study in (broken, whole)]
        assert ends[0] == ends[1]


@settings(max_examples=5, deadline=None)
@given(curves(epochs=3, trials=3), st.integers(1, 4), st.sampled_from((0.0, 3600.0)), st.sampled_from(("race", "asha", "none")))
def test_killed_after_each_call_in_turn(given: list[Curve], concurrency: int, seconds: float, scheduler: str) -> None:
    """A study for each call and each event: killed there, and run to its end by the next session."""
    with tempfile.TemporaryDirectory() as folder:
        whole = new(Path(folder) / "whole", given, concurrency, seconds, scheduler)
        assert whole.run()
        assert_whole(whole)
        for call in range(1, 500):
            broken = new(Path(folder) / str(call), given, concurrency, seconds, scheduler)
            if broken.run(kill_at=call):
                break
            assert broken.run()
            assert_as_unbroken(broken, whole, concurrency == 1)


def test_a_paused_trial_that_is_given_up_after_a_kill_makes_no_room_for_another(tmp_path: Path) -> None:
    """Seven trials, of which two at most may stay paused, killed after each call in turn: never an eighth."""
    given = [Curve((0.1 + 0.01 * number, 0.3, 0.4, 0.5)) for number in range(7)]
    whole = new(tmp_path / "whole", given, 1, scheduler="race")
    assert whole.run()
    for call in range(1, 500):
        broken = new(tmp_path / str(call), given, 1, scheduler="race")
        if broken.run(kill_at=call):
            break
        assert broken.run()
        assert_as_unbroken(broken, whole, order=True)
    assert call > 20


@settings(max_examples=12, deadline=None)
@given(curves(), st.integers(1, 4), st.sampled_from((0.0, 3600.0)), st.integers(1, 3), st.sampled_from(("race", "asha")))
def test_killed_again_and_again(given: list[Curve], concurrency: int, seconds: float, calls: int, scheduler: str) -> None:
    """One study: each session is killed as soon as it has added something to the journal."""
    with tempfile.TemporaryDirectory() as folder:
        whole = new(Path(folder) / "whole", given, concurrency, seconds, scheduler)
        assert whole.run()
        broken = new(Path(folder) / "broken", given, concurrency, seconds, scheduler)
        done = patience = 0  # a retry is no progress: a trial that always fails would be retried for ever
        while not broken.run(kill_at=calls + patience):
            progress = sum(event["event"] != "retry" for event in broken.events())
            patience, done = patience + 1 if progress == done else 0, progress
        assert_as_unbroken(broken, whole, concurrency == 1)


@pytest.mark.parametrize(
    ("fault", "state", "retries", "epochs"),
    [("reset", TrialState.COMPLETED, 1, 2), ("resets", TrialState.FAILED, 2, 0), ("died", TrialState.COMPLETED, 1, 2)],
)
def test_a_worker_that_dies_while_it_takes_over_a_trial_counts_once(
    tmp_path: Path, fault: str, state: TrialState, retries: int, epochs: int
) -> None:
    """Tune counts such a death twice. The trial is retried all the same, and fails if it happens again."""
    study = new(tmp_path, [Curve((0.1, 0.2)), Curve((0.3, 0.4), fault), Curve((0.2,))], 1, scheduler="none")
    assert study.run()
    assert_whole(study)
    record = study.records[1]
    assert (record.state, record.retries, record.epochs) == (state, retries, epochs)
    assert (record.reason == "its process died without a message") == (state is TrialState.FAILED)


def test_what_is_killed_before_the_records_are_written_is_recorded_by_the_next_session(tmp_path: Path) -> None:
    study = new(tmp_path, [Curve((0.1, 0.2)), Curve((0.3,))], 1)
    assert study.run()
    records = facts(study)
    (tmp_path / "trials.json").unlink()
    assert study.run()
    assert facts(study) == records


@pytest.mark.parametrize("scheduler", ["race", "asha"])
def test_an_extended_study_ends_as_one_that_had_as_many_trials_at_once(tmp_path: Path, scheduler: str) -> None:
    given = [Curve((0.1, 0.2, 0.3)), Curve((0.3, 0.2)), Curve((0.05, 0.1)), Curve((0.2, 0.4, 0.5))]
    whole = new(tmp_path / "whole", given, 1, scheduler=scheduler)
    extended = new(tmp_path / "extended", given[:2], 1, scheduler=scheduler)
    assert whole.run() and extended.run()
    extended.curves = given
    assert extended.run()
    assert_as_unbroken(extended, whole, order=True)
