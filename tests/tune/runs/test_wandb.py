"""`--wandb`: what Ray's own callback is handed, what is refused, and the runs that it leaves offline."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.air.integrations.wandb as integration
from fake_tune import TuneCalls
from ray.tune.logger import LoggerCallback
from small_search import ready_database, run_search, search_here, write_graph

from imf_core.errors import ConfigError
from imf_core.files.digest import sha256_of
from tune.runs.wandb_callback import wandb_callbacks
from tune.settings import SearchConfig
from tune.study.history import History

INSTALLED = importlib.util.find_spec("wandb") is not None


class Standin(LoggerCallback):
    """Stands for Ray's callback and keeps what it is handed."""

    def __init__(self, **given: Any) -> None:
        self.given, self.seen, self.kwargs = given, [], {"dir": given["dir"]}

    def setup(self, *arguments: Any, **keywords: Any) -> None:
        self.seen.append("setup")

    def log_trial_start(self, trial: Any) -> None:
        self.seen.append((trial.trial_id, trial.config))
        self.runs = [*getattr(self, "runs", ()), dict(self.kwargs)]

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.seen.append((trial.trial_id, result["training_iteration"], result["mrr"]))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.seen.append((trial.trial_id, "failed" if failed else "ended"))


def settings(storage: Path, project: str = "cities") -> SearchConfig:
    return SearchConfig.build({"wandb": project, "storage": str(storage), "study": "s"})


def test_the_callback_is_handed_project_study_and_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "WandbLoggerCallback", Standin)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (callback,) = wandb_callbacks(settings(tmp_path))
    assert callback.given == {"project": "cities", "group": "s", "dir": str(tmp_path / "s"), "mode": "offline"}
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_callbacks(settings(tmp_path))[0].given["mode"] is None
    config = {"name": "trial-000", "params": {"train.lr": 0.1}}
    trial = SimpleNamespace(trial_id="trial-000", config=config)
    calls = TuneCalls(History(), [callback], [trial])
    calls.start(trial)
    calls.report(trial, 0.2, 0.3)
    calls.complete(trial)
    ends = ("trial-000", "ended")
    assert callback.seen == ["setup", ("trial-000", config), ("trial-000", 1, 0.2), ("trial-000", 2, 0.3), ends]


def test_the_parts_of_a_trial_are_one_run_and_its_epochs_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "WandbLoggerCallback", Standin)
    history = History()
    history.append("study", name="s", tied={})

    def runs(of: History) -> tuple[list[str], list[Any]]:
        """The ids of what is started, and what is seen besides: trial 0, trial 1, and trial 0 again, which was paused."""
        (callback,) = wandb_callbacks(settings(tmp_path), of)
        parts = [SimpleNamespace(trial_id=f"ray-{part}", config={"name": name, "params": {}})
                 for part, name in enumerate(("trial-000", "trial-001", "trial-000"))]
        calls = TuneCalls(History(), [callback], parts)
        for part, first in zip(parts, (1, 1, 2), strict=True):
            calls.start(part)
            calls.report(part, 0.3, first=first)
        assert all(run["resume"] == "allow" and run["dir"] == str(tmp_path / "s") for run in callback.runs)
        return [run["id"] for run in callback.runs], [entry[1] for entry in callback.seen if len(entry) == 3]

    (first, other, again), epochs = runs(history)
    assert first == again != other and epochs == [1, 1, 2]
    assert runs(history)[0] == [first, other, again]  # an interrupted study that goes on
    later = History()
    later.append("study", name="s", tied={})
    assert first not in runs(later)[0]  # another study of that name


def test_no_project_no_callback(tmp_path: Path) -> None:
    assert wandb_callbacks(SearchConfig.build({"storage": str(tmp_path), "study": "s"})) == []
    with pytest.raises(ConfigError, match="wandb"):
        settings(tmp_path, "a/b")


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "wandb", None)
    write_graph(tmp_path / "graph")
    done = search_here(tmp_path, "--data", "graph", "--wandb", "cities")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "pip install 'imf-search[wandb]'" in " ".join(done.stderr.split())
    assert not list(tmp_path.glob("results/*/journal.jsonl"))


def test_a_missing_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "wandb", SimpleNamespace())
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"(?s)has no key.*wandb login, or set WANDB_API_KEY; WANDB_MODE=offline"):
        wandb_callbacks(settings(tmp_path))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(not INSTALLED, reason="wandb is not installed (extra wandb)")
def test_offline_every_trial_leaves_a_run_in_the_study(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    home = ready_database(tmp_path)
    write_graph(home / "graph")
    arguments = ("--data", "graph", "--trials", "2", "--seeds", "1", "--study", "s", "--wandb", "cities")
    done = run_search(repository, home, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    runs: dict[str, list[bytes]] = {}  # offline a part of a trial has a file of its own, with the trial's id
    for file in (home / "results" / "s" / "wandb").glob("offline-run-*/*.wandb"):
        runs.setdefault(file.stem, []).append(file.read_bytes())
    for name in (b'"trial-000"', b'"trial-001"', b'-structure-alone"'):  # the last one: a final run
        (parts,) = [parts for parts in runs.values() if any(name in part for part in parts)]
        assert all(b"cities" in part for part in parts) and any(b"best_mrr" in part for part in parts)
    began = json.loads((home / "results" / "s" / "journal.jsonl").open().readline())["at"]  # final runs are of this study too
    names = ("trial-000", "trial-001", "trial-000-structure-alone")
    assert set(runs) == {f"run-{sha256_of([str(began), name])[:16]}" for name in names}
    assert not (home / "wandb").exists()
