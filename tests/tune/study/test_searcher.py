"""The searcher, spoken to as Tune does but without a cluster (cases TUNE-3, TUNE-4, TUNE-6, TUNE-7)."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from imf_core.config import FUSED, STRUCTURE, Config
from imf_core.errors import ConfigError
from tune.space.space import SearchSpace
from tune.study.history import History
from tune.study.journal import Journal
from tune.study.sampler import distribution, export_study, make_sampler, sampler_settings
from tune.study.searcher import NamedRuns, StudySearch

BRANCHES = ("structure", "image", "text", "fused")
LR = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.dim": {"choices": [64, 128]}}


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.default(Config(), BRANCHES)


@pytest.fixture
def small() -> SearchSpace:
    return SearchSpace.from_values(LR, Config(), BRANCHES)


def run(search: StudySearch, trial_id: str, *values: float) -> None:
    """A trial that reports these values and ends by itself: Tune repeats the last report on completion."""
    for epoch, value in enumerate(values, start=1):
        search.on_trial_result(trial_id, {"best_mrr": value, "epoch": epoch})
    search.on_trial_complete(trial_id, {"best_mrr": values[-1], "epoch": len(values), "done": True} if values else None)


def point(search: StudySearch, trial_id: str) -> dict[str, Any]:
    suggested = search.suggest(trial_id)
    assert isinstance(suggested, dict)
    return dict(suggested["params"])


def states(search: StudySearch) -> list[str]:
    return [trial.state.name for trial in search.study.trials]


def test_trial_one_is_the_default_and_names_keep_their_dots(space: SearchSpace) -> None:
    search = StudySearch(space)
    suggested = search.suggest("a")
    assert suggested == {"name": "trial-000", "params": space.default_point()}
    assert all("." in name and "/" not in name and not isinstance(value, dict) for name, value in point(search, "a").items())
    assert search.suggest("a") == suggested  # asked again for the same trial: the same answer


@pytest.mark.parametrize("concurrency", [1, 2])
def test_equal_seeds_draw_equal_points(space: SearchSpace, concurrency: int) -> None:
    def draws(seed: int, trials: int, at_once: int) -> list[dict[str, Any]]:
        search, found, running = StudySearch(space, sampler=make_sampler(seed)), [], []
        for number in range(trials):
            found.append(point(search, f"t{number}"))
            running.append(number)
            if len(running) == at_once:
                done = running.pop(0) if seed % 2 else running.pop()  # any order of finishing
                run(search, f"t{done}", 0.1 + 0.01 * (done * 7 % 5))
        return found

    first = draws(0, 10, concurrency)
    assert first == draws(0, 10, 1)  # the start-up draws do not depend on the order of finishing
    assert first[:6] != draws(1, 6, 1)
    if concurrency == 1:
        assert draws(0, 16, 1) == draws(0, 16, 1)


def test_conditional_space_works_beyond_the_start_up(space: SearchSpace) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = StudySearch(space, sampler=make_sampler(5, 4))
        decisions = set()
        for number in range(25):
            drawn = point(search, f"t{number}")
            config = space.config_for(drawn)
            decisions.add(config.model.decision)
            assert (config.model.decision == "fixed") == ("model.decision_weights.text" in drawn)
            run(search, f"t{number}", 0.5 - abs(math.log10(config.train.lr) + 3))
    assert "fixed" in decisions
    assert len(decisions) > 1
    assert states(search) == ["COMPLETE"] * 25


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_diverged_trials_fail_and_never_win(small: SearchSpace, broken: float) -> None:
    search = StudySearch(small)
    xs = (0.549, 0.715, 0.603, 0.545, 0.424, 0.646)
    for number, x in enumerate(xs):
        trial_id = f"t{number}"
        search.suggest(trial_id)
        if x < 0.6:  # the scheduler says stop, so the searcher hears of the report only with the end
            search.on_trial_complete(trial_id, {"best_mrr": broken, "epoch": 1})
        elif number == 1:
            run(search, trial_id, *(x * i / 10 for i in range(1, 5)))
        else:  # stopped early at its first report
            search.on_trial_complete(trial_id, {"best_mrr": x / 10, "epoch": 1})
    assert states(search) == ["FAIL", "COMPLETE", "COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert search.study.best_value == pytest.approx(0.286)
    assert search.study.best_trial.number == 1
    assert [trial.user_attrs["diverged"] for trial in search.study.trials] == [True, False, False, True, True, False]


def test_a_trial_that_diverges_late_fails_too(small: SearchSpace) -> None:
    search = StudySearch(small)
    search.suggest("a")
    run(search, "a", 0.4, math.nan)
    assert states(search) == ["FAIL"]


def test_an_early_stopped_trial_counts_with_its_best(small: SearchSpace) -> None:
    search = StudySearch(small)
    search.suggest("a")
    search.on_trial_result("a", {"best_mrr": 0.3, "epoch": 1})
    search.on_trial_complete("a", {"best_mrr": 0.2, "epoch": 2})  # a metric that fell
    assert search.study.trials[0].value == 0.3
    assert search.study.trials[0].user_attrs == {"trial_id": "trial-000", "epochs": 2, "diverged": False}


def test_errors_and_missing_results_fail(small: SearchSpace) -> None:
    search = StudySearch(small)
    for trial_id in "abcd":
        search.suggest(trial_id)
    search.on_trial_result("a", {"best_mrr": 0.3, "epoch": 1})
    search.on_trial_complete("a", error=True)
    search.on_trial_complete("b")
    search.on_trial_complete("c", {"done": True})
    assert states(search) == ["FAIL", "FAIL", "FAIL", "RUNNING"]
    search.on_trial_result("d", {"best_mrr": 0.25, "epoch": 1})
    assert search.open == search.end_unfinished() == ["trial-003"]
    assert search.open == []
    assert states(search)[3] == "COMPLETE"
    search.on_trial_complete("a", {"best_mrr": 0.9, "epoch": 3})  # too late: changes nothing
    search.on_trial_result("unknown", {"best_mrr": 0.9, "epoch": 3})
    assert states(search) == ["FAIL", "FAIL", "FAIL", "COMPLETE"]


def test_a_retried_trial_may_repeat_epochs(small: SearchSpace) -> None:
    search = StudySearch(small)
    search.suggest("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch, value in ((1, 0.1), (2, 0.2), (2, 0.2), (3, 0.3)):
            search.on_trial_result("a", {"best_mrr": value, "epoch": epoch, "training_iteration": 1})
        search.on_trial_complete("a", {"best_mrr": 0.3, "epoch": 3})
    assert search.study.trials[0].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}


def test_points_come_first_and_are_checked(small: SearchSpace) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"train.lr": 5.0}, r"train.lr = 5.0 is outside \[0.0001, 0.1\]"),
        ({"train.lr_typo": 0.01}, r"did you mean 'train\.lr'"),
    ]
    for bad, words in refused:
        with pytest.raises(ConfigError, match=words):
            StudySearch(small, points=[bad])
    points = [{"train.lr": 0.05, "model.dim": 64}, small.default_point(), {"train.lr": 0.01, "model.dim": 128}]
    search = StudySearch(small, points=points)
    drawn = [point(search, f"t{number}") for number in range(4)]
    assert drawn[:3] == [small.default_point(), points[0], points[2]] == search.first_points
    assert drawn[3] not in drawn[:3]


def test_a_partial_point_is_completed(small: SearchSpace) -> None:
    search = StudySearch(small, points=[{"train.lr": 0.05}])
    search.suggest("a")
    drawn = point(search, "b")
    assert drawn["train.lr"] == 0.05
    assert drawn["model.dim"] in (64, 128)


def test_a_known_score_is_stored_without_training(space: SearchSpace) -> None:
    fixed = {**space.default_point(), "model.decision": "fixed", "model.decision_weights.text": 0.5}
    search = StudySearch(space, known=[({"train.lr": 0.001, "model.dim": 128}, 0.31), (fixed, 0.2)])
    assert [trial.value for trial in search.study.get_trials(states=(TrialState.COMPLETE,))] == [0.31, 0.2]
    assert point(search, "a") == space.default_point()
    with pytest.raises(ConfigError, match="not finite"):
        search.add_known({"train.lr": 0.001}, math.nan)
    with pytest.raises(ConfigError, match=r"train\.lr"):
        search.add_known({"train.lr": 5.0}, 0.1)


def test_a_journal_played_to_a_fresh_study_goes_on_as_unbroken(space: SearchSpace, tmp_path: Path) -> None:
    """Wherever a search is cut, its journal brings a fresh study to where it stood: the same draws, values and states."""

    def told(search: StudySearch, number: int) -> None:
        run(search, f"t{number}", 0.1 + (number * 7 % 11) / 100, 0.1 + (number * 5 % 13) / 100)

    with Journal(tmp_path / "whole") as journal:
        journal.append("study")
        unbroken = StudySearch(space, journal)
        for number in range(16):
            unbroken.suggest(f"t{number}")
            if number != 5:
                told(unbroken, number)
        lines = journal.path.read_bytes().splitlines(keepends=True)
    names = [json.loads(line).get("trial") for line in lines]
    for cut in (1, 2, 3, 4, 9, len(lines) // 2, len(lines) - 1, len(lines)):
        broken = tmp_path / f"cut-{cut}"
        broken.mkdir()
        (broken / "journal.jsonl").write_bytes(b"".join(lines[:cut]) + b'{"event": "ask", "tri')  # killed while it wrote
        with Journal(broken) as journal:
            history = History.of(journal.events)
            again = StudySearch(space, journal)
            interrupted = [trial.name for trial in history.interrupted]
            for number in range(16):
                name = f"trial-{number:03d}"
                if name in history.trials and name not in interrupted:
                    continue
                given = again.suggest(f"again {name}")
                heard = [event["epoch"] for event in history.events if event.get("trial") == name and "epoch" in event]
                known = {"known": max(heard)} if heard else {}
                assert given == {"name": name, "params": point(unbroken, f"t{number}"), **known}
                if number != 5:
                    run(again, f"again {name}", 0.1 + (number * 7 % 11) / 100, 0.1 + (number * 5 % 13) / 100)
            told_by_both = [json.loads(line) for line in journal.path.read_bytes().splitlines()]
        assert sorted(states(again)) == sorted(states(unbroken))
        if "trial-005" not in names[:cut]:  # otherwise the interrupted one ran first, which is an order of its own
            assert [trial.value for trial in again.study.trials] == [trial.value for trial in unbroken.study.trials]
            assert [(e["event"], e.get("trial")) for e in told_by_both] == [
                (e["event"], e.get("trial")) for e in map(json.loads, lines)
            ]


def test_a_sampler_that_draws_otherwise_is_refused(space: SearchSpace, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append("study")
        search = StudySearch(space, journal)
        for number in range(3):
            search.suggest(f"t{number}")
    with pytest.raises(ConfigError, match="the sampler does not repeat what it drew: for trial-001"):
        StudySearch(space, History.of(journal.events), make_sampler(1))


def test_the_draws_of_an_unbroken_run(tmp_path: Path) -> None:
    """TUNE-1: x ~ U(-5, 5), seed 0, six trials, killed after three."""
    space = SearchSpace.from_values({"model.dropout_input": {"low": 0.0, "high": 0.5}}, Config(), BRANCHES)
    expected = [0.488135, 2.151894, 1.027634, 0.448832, -0.763452, 1.458941]
    with Journal(tmp_path) as journal:
        journal.append("study")
        search = StudySearch(space, journal)
        search.suggest("default")
        run(search, "default", 0.1)
        for number in range(3):
            search.suggest(f"t{number}")
            run(search, f"t{number}", 0.1)
    with Journal(tmp_path) as journal:
        again = StudySearch(space, journal)
        for number in range(3, 6):
            again.suggest(f"t{number}")
            run(again, f"t{number}", 0.1)
        asked = [event["params"]["model.dropout_input"] for event in journal.events if event["event"] == "ask"]
    assert [20 * value - 5 for value in asked[1:]] == pytest.approx(expected, abs=1e-5)


def test_no_setting_is_trained_twice_and_a_space_can_be_exhausted() -> None:
    space = SearchSpace.from_values({"model.dim": {"choices": [32, 64, 128]}}, Config(), BRANCHES)
    search = StudySearch(space, known=[({"model.dim": 64}, 0.3)])
    drawn = []
    for number in range(2):
        drawn.append(point(search, f"t{number}")["model.dim"])
        run(search, f"t{number}", 0.1 * (number + 1))
    assert sorted(drawn) == [32, 128]
    assert search.suggest("t2") == "FINISHED"
    assert search.exhausted
    # Each repeated draw got the value that its setting has already.
    values = {trial.params["model.dim"]: set() for trial in search.study.trials}
    for trial in search.study.trials:
        values[trial.params["model.dim"]].add(trial.value)
    assert all(len(found) == 1 for found in values.values())


def test_every_setting_of_a_small_space_is_tried() -> None:
    """75 settings, some with a condition: all of them, each once, whatever the sampler likes."""
    space = SearchSpace.from_values({
        "model.fusion": {"choices": ["tucker", "concat", "gated"]}, "model.fusion_rank": {"low": 1, "high": 3},
        "model.dropout_input": {"low": 0.0, "high": 0.4, "step": 0.1}, "model.dim": {"choices": [32, 64, 128]},
    }, Config(), BRANCHES)
    every = space.every_point(1000)
    assert every is not None and len(every) == 5 * 3 * (3 + 1 + 1)
    assert space.every_point(len(every) - 1) is None
    search, drawn = StudySearch(space), []
    while (told := search.suggest(f"t{len(drawn)}")) != "FINISHED":
        assert isinstance(told, dict)
        drawn.append(told["params"])
        run(search, f"t{len(drawn) - 1}", 0.1)
    assert search.exhausted and len(drawn) == len(every)
    assert len({tuple(f"{name} {value:.6}" if isinstance(value, float) else f"{name} {value}" for name, value in one.items())
                for one in drawn}) == len(every)
    assert len(search.study.trials) <= len(every) * 4  # few draws in vain, not a hundred at the end


def test_a_continuum_has_no_every_point() -> None:
    assert SearchSpace.from_values({"train.lr": {"low": 1e-4, "high": 1e-2}}, Config(), BRANCHES).every_point(10**6) is None


def test_a_setting_that_runs_is_not_begun_again() -> None:
    space = SearchSpace.from_values({"model.dim": {"choices": [64, 128]}}, Config(), BRANCHES)
    search = StudySearch(space)
    drawn = [point(search, f"t{number}")["model.dim"] for number in range(2)]
    assert sorted(drawn) == [64, 128]
    assert search.suggest("t2") == "FINISHED"
    assert states(search).count("RUNNING") == 2 and len(states(search)) <= 5  # hardly anything was drawn in vain
    run(search, "t0", 0.1)
    run(search, "t1", 0.2)
    assert "RUNNING" not in states(search)


def test_export_is_readable_by_optuna_and_replaces_itself(space: SearchSpace, tmp_path: Path) -> None:
    search = StudySearch(space, History.of([{"event": "study", "name": "unicode-1"}]))
    for number in range(4):
        search.suggest(f"t{number}")
        if number < 2:
            run(search, f"t{number}", 0.1, 0.2 + number / 10)
    search.on_trial_complete("t2", error=True)
    path = tmp_path / "unicode-1" / "optuna.db"
    for _ in range(2):
        outcomes = {"trial-000": "completed", "trial-001": "pruned", "trial-002": "failed"}
        assert export_study(search.study, path, outcomes) == path
    assert [file.name for file in path.parent.iterdir()] == ["optuna.db"]
    study = optuna.load_study(study_name="unicode-1", storage=f"sqlite:///{path}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL"]  # the running one is not copied
    assert [trial.params for trial in study.trials] == [trial.params for trial in search.study.trials[:3]]
    assert study.trials[1].value == pytest.approx(0.3)
    assert study.trials[1].user_attrs["trial_id"] == "trial-001"
    assert study.user_attrs["space"] == space.fingerprint
    assert states(search) == ["COMPLETE", "COMPLETE", "FAIL", "RUNNING"]  # the study in memory is untouched


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_draws_are_those_of_rays_own_optuna_search(space: SearchSpace, concurrency: int) -> None:
    """Ray's `OptunaSearch` around the same space, sampler and points draws the same points, to the last digit."""
    points = [space.default_point(), {"train.lr": 0.01}]
    ours = StudySearch(space, sampler=make_sampler(3, 4), points=points[1:])
    theirs = OptunaSearch(
        space, metric="best_mrr", mode="max", points_to_evaluate=points, sampler=make_sampler(3, 4), study_name="other"
    )
    running: list[str] = []
    for number in range(16):
        trial_id = f"t{number}"
        assert point(ours, trial_id) == theirs.suggest(trial_id)
        running.append(trial_id)
        if len(running) == concurrency:
            done = running.pop(number % concurrency)
            result = {"best_mrr": 0.1 + (number * 7 % 11) / 100, "epoch": 1, "training_iteration": 1}
            for search in (ours, theirs):
                search.on_trial_result(done, result)
                search.on_trial_complete(done, result)


def test_named_runs_are_handed_out_once_with_their_numbers() -> None:
    history = History()
    runs = NamedRuns(history, {"seed-1": 1, "alone": 3})
    assert [runs.suggest(ray_id) for ray_id in "abc"] == [{"run": "seed-1"}, {"run": "alone"}, "FINISHED"]
    runs.on_trial_result("b", {"best_mrr": 0.2, "mrr": 0.2, "epoch": 1})
    runs.on_trial_complete("b", {"best_mrr": 0.2, "mrr": 0.2, "epoch": 1})
    runs.on_trial_complete("a", error=True)
    assert [(trial.number, trial.last_epoch, trial.end["value"]) for trial in history.trials.values() if trial.end] == [
        (1, 0, None), (3, 1, 0.2),
    ]


def test_a_run_whose_death_is_counted_twice_is_handed_out_again_once() -> None:
    history = History()
    runs = NamedRuns(history, {"seed-1": 1, "alone": 3})
    assert runs.suggest("a") == {"run": "seed-1"}
    history.append("retry", trial="seed-1")
    runs.on_trial_complete("a", error=True)  # at once: nothing has happened since
    assert history.trials["seed-1"].end is None
    assert [runs.suggest(ray_id) for ray_id in "bc"] == [{"run": "seed-1"}, {"run": "alone"}]
    history.append("retry", trial="alone")
    runs.on_trial_result("b", {"best_mrr": 0.2, "mrr": 0.2, "epoch": 1})
    runs.on_trial_complete("c", error=True)  # an attempt of its own
    history.append("retry", trial="seed-1")
    runs.on_trial_complete("b", error=True)
    assert [event["trial"] for event in history.all("tell")] == ["alone", "seed-1"]
    assert [event["trial"] for event in history.all("ask")] == ["seed-1", "alone"]
    assert runs.suggest("d") == "FINISHED"


def test_two_searches_in_one_process_do_not_share_a_study(small: SearchSpace, space: SearchSpace) -> None:
    first, second = StudySearch(small), StudySearch(space)
    first.suggest("a")
    assert len(first.study.get_trials(states=(TrialState.RUNNING,))) == 1
    assert len(second.study.get_trials(states=(TrialState.RUNNING,))) == 0


def test_sampler_options_are_explicit_and_logged() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = make_sampler(5, 7)
    assert (sampler._multivariate, sampler._group, sampler._constant_liar, sampler._n_startup_trials) == (True, True, True, 7)
    logged = sampler_settings(5, 7, concurrency=2)
    assert (logged["optuna"], logged["seed"], logged["startup"]) == (optuna.__version__, 5, 7)
    assert "first 7 draws repeat" in logged["note"]
    assert "every draw" in sampler_settings(5)["note"]


def test_distributions_agree_with_what_is_drawn(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=make_sampler(0))
    drawn = study.ask()
    space.suggest(drawn)
    assert {name: distribution(space[name]) for name in drawn.params} == drawn.distributions


def test_a_search_can_begin_with_the_base_or_with_draws_alone() -> None:
    space = SearchSpace.default(Config(), (STRUCTURE, "image", "text", FUSED))
    drawn = StudySearch(space, sampler=make_sampler(3), base=False)
    assert drawn.first_points == []
    first = drawn.suggest("a")
    assert isinstance(first, dict) and first["params"] != space.default_point()
    again = StudySearch(space, sampler=make_sampler(3), base=False).suggest("x")
    assert again == first
    good = {"train.lr": 0.006, "model.fusion_rank": 1}
    begun = StudySearch(space, points=[good]).first_points
    assert begun == [space.default_point(), good]


def test_chance_draws_the_same_with_the_same_seed_whatever_it_is_told() -> None:
    space = SearchSpace.default(Config(), (STRUCTURE, "image", "text", FUSED))
    draws = []
    for value in (0.1, 0.9):
        search = StudySearch(space, sampler=make_sampler(3, kind="random"), base=False)
        for number in range(4):
            point = search.suggest(str(number))
            search.on_trial_complete(str(number), {"epoch": 1, "best_mrr": value / (1 + number)})
            draws.append(point)
    assert draws[:4] == draws[4:]
    assert type(make_sampler(0, kind="random")).__name__ == "RandomSampler"
    assert sampler_settings(4, kind="random")["sampler"] == "random"
