"""ASHA on real epochs; non-finite reports end a trial and never reach a rung (cases TUNE-2 and TUNE-3)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from imf_core.errors import ConfigError
from tune.study.history import History
from tune.study.schedule import Asha, Rungs, default_grace, is_finite, make_scheduler


def report(scheduler: Any, name: str, epoch: int, value: float) -> str:
    result = {"epoch": epoch, "best_mrr": value, "training_iteration": 1}
    return str(scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result))


def started(kind: str = "asha", trials: int = 6, **options: Any) -> Any:
    scheduler = make_scheduler(kind, **options)
    for number in range(trials):
        scheduler.on_trial_add(None, SimpleNamespace(trial_id=f"t{number}"))  # type: ignore[arg-type]
    return scheduler


def test_asha_stops_below_the_rungs_median() -> None:
    scheduler = started(max_epochs=4, grace=1, reduction=2)
    assert report(scheduler, "t0", 1, 0.9) == "CONTINUE"
    assert report(scheduler, "t1", 1, 0.8) == "STOP"
    assert report(scheduler, "t2", 1, 0.1) == "STOP"
    assert report(scheduler, "t0", 2, 0.9) == "CONTINUE"
    assert scheduler.metric == "best_mrr"


def test_the_grace_period_counts_epochs() -> None:
    scheduler = started(max_epochs=9, grace=3, reduction=3)
    assert report(scheduler, "t0", 3, 0.9) == "CONTINUE"
    assert [report(scheduler, "t1", epoch, 0.1) for epoch in (1, 2, 3)] == ["CONTINUE", "CONTINUE", "STOP"]


def test_a_trial_at_its_last_epoch_ends_by_itself() -> None:
    scheduler = started(max_epochs=3, grace=1, reduction=3)
    report(scheduler, "t0", 3, 0.9)
    assert report(scheduler, "t1", 3, 0.1) == "CONTINUE"


@pytest.mark.parametrize("kind", ["asha", "none"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_report_ends_the_trial_at_once(kind: str, value: float) -> None:
    scheduler = started(kind, max_epochs=4, grace=1, reduction=2)
    assert report(scheduler, "t0", 1, value) == "STOP"
    trial: Any = SimpleNamespace(trial_id="t0")
    scheduler.on_trial_complete(None, trial, {"epoch": 1, "best_mrr": value})
    assert report(scheduler, "t1", 1, 0.01) == "CONTINUE"  # +inf would have raised the rung's cut-off above it
    if kind == "asha":
        assert [list(values.values()) for values in scheduler.rungs.recorded.values()] == [[], [], [0.01]]


def played(*told: tuple[str, str, int, float]) -> History:
    return History.of([
        {"event": "study"},
        *({"event": "ask", "trial": name, "params": {}} for name in dict.fromkeys(name for _, name, _, _ in told)),
        *({"event": kind, "trial": name, "epoch": epoch, "numbers": {"best_mrr": value}} for kind, name, epoch, value in told),
    ])


def test_a_resumed_search_keeps_its_rungs() -> None:
    """TUNE-2: rung 1 holds 0.9 and 0.8 when the driver is killed; the next trial reports 0.1 and is stopped."""
    history = played(("report", "a", 1, 0.9), ("report", "b", 1, 0.8))
    scheduler = started(trials=0, max_epochs=4, grace=1, reduction=2, history=history)
    for name in ("b", "c"):
        scheduler.on_trial_add(None, SimpleNamespace(trial_id="other id", config={"name": name}))
    assert np.median(list(scheduler.rungs.recorded[1].values())) == pytest.approx(0.85)
    assert report(scheduler, "c", 1, 0.1) == "STOP"
    # A trial that goes on is not judged again where it was, and is judged at its next rung.
    assert report(scheduler, "b", 1, 0.0) == "CONTINUE"
    assert report(scheduler, "b", 2, 0.8) == "CONTINUE"


@pytest.mark.parametrize("cut", range(1, 12))
def test_rungs_after_a_replay_are_those_of_the_unbroken_run(cut: int) -> None:
    values = {"a": (0.3, 0.4, 0.5, 0.6), "b": (0.2, 0.5, 0.5, 0.5), "c": (0.4, 0.45, 0.5, 0.55)}
    order = [(name, epoch) for epoch in range(1, 5) for name in values]
    whole, told = started(trials=0, max_epochs=4, grace=1, reduction=2), []
    for name in values:
        whole.on_trial_add(None, SimpleNamespace(trial_id=name))
    stopped: set[str] = set()
    rungs = []
    for name, epoch in order:
        if name not in stopped:
            value = values[name][epoch - 1]
            stop = report(whole, name, epoch, value) == "STOP"
            told.append(("tell" if stop else "report", name, epoch, value))
            stopped |= {name} if stop else set()
            rungs.append([dict(values) for values in whole.rungs.recorded.values()])
    assert stopped
    again = started(trials=0, max_epochs=4, grace=1, reduction=2, history=played(*told[:cut]))
    assert list(again.rungs.recorded.values()) == rungs[min(cut, len(rungs)) - 1]


@pytest.mark.parametrize("seed", range(20))
def test_the_decisions_are_those_of_rays_own_scheduler(seed: int) -> None:
    """Random reports of trials that run side by side, compared with `AsyncHyperBandScheduler` with one bracket."""
    rng = np.random.default_rng(seed)
    max_epochs, reduction = int(rng.integers(2, 20)), float(rng.choice([1.5, 2.0, 3.0, 4.0]))
    grace = int(rng.integers(1, 2 + max_epochs // 4))
    history = History()
    ours = make_scheduler("asha", max_epochs, grace, reduction, history)
    theirs = AsyncHyperBandScheduler(
        "epoch", "best_mrr", "max", max_t=max_epochs, grace_period=grace, reduction_factor=reduction, stop_last_trials=False
    )
    epochs = {f"t{number}": 0 for number in range(12)}
    decisions = []
    for name in epochs:
        history.ask(name, {})
        theirs.on_trial_add(None, SimpleNamespace(trial_id=name))  # type: ignore[arg-type]
    while epochs:
        name = str(rng.choice(list(epochs)))
        epochs[name] += 1
        result = {"epoch": epochs[name], "best_mrr": float(rng.integers(1, 9)) / 10, "training_iteration": 1}
        trial: Any = SimpleNamespace(trial_id=name)
        decisions.append(ours.on_trial_result(None, trial, result))
        full = epochs[name] == max_epochs  # a full trial ends by itself, and joins the rungs then
        assert decisions[-1] == ("CONTINUE" if full else theirs.on_trial_result(None, trial, dict(result)))  # type: ignore[arg-type]
        if decisions[-1] == "CONTINUE":
            history.report(name, result)
        if decisions[-1] == "STOP" or full or rng.random() < 0.05:
            history.tell(name, result)
            theirs.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
            del epochs[name]
    again = make_scheduler("asha", max_epochs, grace, reduction, History.of(history.events))
    assert isinstance(ours, Asha) and isinstance(again, Asha)
    assert again.rungs.recorded == ours.rungs.recorded
    assert "STOP" in decisions


def test_a_trial_without_reports_can_end() -> None:
    scheduler = started(max_epochs=4)
    trial: Any = SimpleNamespace(trial_id="t0")
    scheduler.on_trial_complete(None, trial, {})
    scheduler.on_trial_remove(None, trial)
    assert not any(scheduler.rungs.recorded.values())


def test_defaults() -> None:
    assert [default_grace(epochs) for epochs in (1, 5, 8, 12, 24, 30, 1000)] == [1, 1, 2, 3, 3, 3, 125]
    for grace, rungs in ((None, [27, 9, 3, 1]), (3, [27, 9, 3])):
        scheduler = make_scheduler("asha", 30, grace)
        assert isinstance(scheduler, Asha) and list(scheduler.rungs.recorded) == rungs
    assert list(Rungs(125, 1000, 3.0, learns=True).recorded) == pytest.approx([375, 125, 125 / 3, 125 / 9, 125 / 27, 125 / 81])


def climbed(rungs: Rungs, firsts: list[float], thirds: list[float]) -> list[bool]:
    """Trials that report in epoch 1 and, unless they are stopped, in epoch 3; whether they were stopped in epoch 1."""
    stopped = []
    for number, (first, third) in enumerate(zip(firsts, thirds, strict=True)):
        stopped.append(rungs.stops(str(number), 1, first))
        if not stopped[-1]:
            rungs.stops(str(number), 3, third)
    return stopped


def test_an_early_rung_stops_trials_once_it_is_known_to_tell() -> None:
    """The seventh trial is the worst of its epoch 1. Six trials kept their order from epoch 1 to 3; then it is stopped."""
    firsts = [0.2, 0.1, 0.3, 0.15, 0.25, 0.12, 0.01]
    rungs = Rungs(3, 30, 3.0, learns=True)
    assert climbed(rungs, firsts, [2 * value for value in firsts]) == [False] * 6 + [True]
    assert not rungs.stops("good", 1, 0.5)


@pytest.mark.parametrize("thirds", [[0.3, 0.4, 0.2, 0.35, 0.25, 0.38, 0.9], [0.3] * 7])
def test_an_early_rung_that_does_not_tell_stops_nobody(thirds: list[float]) -> None:
    """Slow starters end higher, or all end alike: epoch 1 decides nothing."""
    firsts = [0.2, 0.1, 0.3, 0.15, 0.25, 0.12, 0.01]
    assert not any(climbed(Rungs(3, 30, 3.0, learns=True), firsts, thirds))


def test_what_was_learned_is_learned_again_from_the_journal() -> None:
    values = [(f"t{number}", value) for number, value in enumerate([0.2, 0.1, 0.3, 0.15, 0.25, 0.12])]
    told = [("report", name, epoch, epoch * value) for name, value in values for epoch in (1, 2, 3)]
    scheduler = make_scheduler("asha", 30, history=played(*told))
    scheduler.on_trial_add(None, SimpleNamespace(trial_id="new"))  # type: ignore[arg-type]
    assert report(scheduler, "new", 1, 0.01) == "STOP"
    scheduler = make_scheduler("asha", 30, history=played(*told[:-3]))
    scheduler.on_trial_add(None, SimpleNamespace(trial_id="new"))  # type: ignore[arg-type]
    assert report(scheduler, "new", 1, 0.01) == "CONTINUE"


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "median", "max_epochs": 4}, {"kind": "asha", "max_epochs": 0}, {"kind": "asha", "max_epochs": 4, "grace": 5},
        {"kind": "asha", "max_epochs": 4, "grace": 0}, {"kind": "asha", "max_epochs": 4, "reduction": 1.0},
    ],
)
def test_unusable_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make_scheduler(**options)


def test_is_finite() -> None:
    assert is_finite({"best_mrr": np.float32(0.5)})
    assert not any(is_finite({"best_mrr": value}) for value in (None, "0.5", True, math.nan, np.float32("inf")))
    assert not is_finite({})
