"""A search that is killed, interrupted or has no disk left goes on as if nothing had happened (case TUNE-1)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from killed_search import (
    ARGUMENTS,
    assert_as_unbroken,
    assert_nothing_twice,
    events,
    finish,
    run_until,
    start,
    summary,
    trials,
)
from mlflow.tracking import MlflowClient
from small_search import ready_database, run_search, search_here, write_graph

from tests.tune.conftest import Searched
from tune.study.journal import Journal

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def unbroken(searched: Searched) -> Path:
    """Where the search that was never interrupted was started."""
    return searched.home


@pytest.mark.slow
@pytest.mark.parametrize("also_while_finalising", [False, True])
def test_a_killed_driver_goes_on_to_the_same_end(unbroken: Path, tmp_path: Path, also_while_finalising: bool) -> None:
    """Killed within a trial, the same command goes on by itself; killed while finalising, `--resume` does.

    The fast tests kill one that goes on from Python: `tests/tune/test_interface.py`.
    """
    write_graph(tmp_path / "graph")
    ready_database(tmp_path)
    search = start(REPOSITORY, tmp_path, *ARGUMENTS)
    assert run_until(search, tmp_path, 12)
    search.kill()
    search.wait()
    before = events(tmp_path)
    open_trial = before[-1]["trial"]
    if also_while_finalising:
        search = start(REPOSITORY, tmp_path, *ARGUMENTS)
        while search.poll() is None and not (tmp_path / "results" / "s" / "final").exists():
            time.sleep(0.05)
        search.kill()
        search.wait()
        assert "resuming: " in (tmp_path / "log").read_text()
        assert not any(event["event"] == "final" for event in events(tmp_path))
        done = search_here(tmp_path, "--study", "s", "--resume", settings=())  # no other setting has to be given again
    else:
        done = search_here(tmp_path, *ARGUMENTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming: " in done.stdout
    assert_as_unbroken(tmp_path, unbroken)
    assert summary(tmp_path)["test_opened"] == 1
    sessions = [event for event in events(tmp_path) if event["event"] == "session"]
    assert len(sessions) == 2 + also_while_finalising
    if before[-1]["event"] == "tell":  # killed between two trials
        return
    # The interrupted trial went on from its last saved epoch instead of its first. One stopped after its first report may
    # have no time to say where it began: the driver ends its worker.
    last = max((event["epoch"] for event in before if event.get("trial") == open_trial and "epoch" in event), default=0)
    said = tmp_path / "results" / "s" / "trials" / open_trial / "reported.json"
    assert last <= 1 or said.exists()
    if last > 0 and said.exists():
        assert json.loads(said.read_text())["began"] >= last  # of its last part


@pytest.mark.slow
def test_the_winners_own_seed_is_taken_over_and_a_second_training_says_the_same(unbroken: Path, tmp_path: Path) -> None:
    study = unbroken / "results" / "s"
    (told,) = [event for event in events(unbroken) if event["event"] == "final"]
    trial, run = study / "trials" / told["winner"], study / "final" / f"{told['winner']}-seed-0"
    assert (run / "best").is_dir() and not (run / "reported.json").exists()  # no worker has been there
    records = {record["trial_id"]: record for record in json.loads((study / "final" / "trials.json").read_text())}
    searched = {record["trial_id"]: record for record in json.loads((study / "trials.json").read_text())}[trial.name]
    assert records[run.name]["curve"] == searched["curve"] and records[run.name]["params"] == {"run": run.name}
    assert sorted(record["number"] for record in records.values()) == list(range(len(records)))
    client = MlflowClient(f"sqlite:///{unbroken / 'results' / 'mlflow.db'}")
    (logged,) = client.search_runs(["1"], f"tags.trial_id = '{run.name}'")
    assert (logged.data.tags["role"], logged.info.status) == ("final", "FINISHED")
    assert len(client.get_metric_history(logged.info.run_id, "mrr")) == searched["epochs"]

    write_graph(tmp_path / "graph")
    ready_database(tmp_path)
    done = run_search(REPOSITORY, tmp_path, *ARGUMENTS, "--keep", "0")  # nothing to take over
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "results" / "s" / "final" / run.name / "reported.json").exists()
    for key in ("best_validation_mrr", "structure_only_validation_mrr", "test", "seeds"):
        assert summary(tmp_path)[key] == summary(unbroken)[key], key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "status"), [((signal.SIGINT,), 130), ((signal.SIGTERM, signal.SIGTERM), 143), ((signal.SIGHUP,), 129)]
)
def test_a_signal_stops_says_how_to_go_on_and_loses_nothing(
    unbroken: Path, tmp_path: Path, numbers: tuple[signal.Signals, ...], status: int
) -> None:
    write_graph(tmp_path / "graph")
    ready_database(tmp_path)
    search = start(REPOSITORY, tmp_path, *ARGUMENTS)
    assert run_until(search, tmp_path, 10)
    for number in numbers:
        search.send_signal(number)
        time.sleep(0.1)  # otherwise the kernel makes one of two
    assert finish(search, tmp_path) == status
    log = (tmp_path / "log").read_text()
    assert "interrupted" in log
    assert "--study s --resume" in log
    assert "Traceback" not in log
    done = run_search(REPOSITORY, tmp_path, *ARGUMENTS, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_as_unbroken(tmp_path, unbroken)


@pytest.mark.slow
def test_an_extended_study_repeats_nothing(unbroken: Path, tmp_path: Path) -> None:
    """`--extend 2` ends where a search of two trials more ends; only another winner opens test again."""
    longer = tmp_path / "longer"
    longer.mkdir()
    write_graph(longer / "graph")
    other = run_search(REPOSITORY, ready_database(longer), *ARGUMENTS, "--trials", "8")
    assert other.returncode == 0, other.stdout + other.stderr
    home = tmp_path / "home"
    shutil.copytree(unbroken, home)
    before = summary(home)
    done = search_here(home, "--study", "s", "--storage", str(home / "results"), "--extend", "2", settings=())
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(trials(home)) == 8
    assert trials(home) == trials(longer)
    settings = [json.dumps(trial["params"], sort_keys=True) for trial in trials(home)]
    assert len(set(settings)) == 8
    assert_nothing_twice(home)
    after = summary(home)
    opened = 1 if after["winner"]["trial"] == before["winner"]["trial"] else 2
    assert after["test_opened"] == opened
    # Said again, with all trials done: another two would be asked for; the plain command finds nothing left to do.
    again = search_here(home, "--study", "s", "--storage", str(home / "results"), "--resume", settings=())
    assert again.returncode == 0, again.stdout + again.stderr
    assert "0 are left" in again.stdout
    assert len(trials(home)) == 8
    assert summary(home)["test_opened"] == opened


def test_a_study_is_not_mixed_with_another(unbroken: Path) -> None:
    """Other settings, another space, other data: refused with a diff, before anything is trained."""
    lines = len(events(unbroken))
    done = search_here(unbroken, *ARGUMENTS, "--set", "model.dropout_input=0.4", "--seed", "3")
    assert done.returncode == 2
    told = " ".join((done.stdout + done.stderr).split())
    for words in ("was started differently", "model.dropout_input:", "0.4 now", "sampler.seed: 0 then, 3 now", "--warm"):
        assert words in told, told
    (unbroken / "space.yaml").write_text("model.temperature: {low: 0.1, high: 1.0, log: true}\n")
    done = search_here(unbroken, *ARGUMENTS, "--space", "space.yaml")
    assert done.returncode == 2
    assert "space: model.temperature: low 0.05 then, low 0.1 now" in " ".join((done.stdout + done.stderr).split())
    other = unbroken / "graph" / "train.tsv"
    content = other.read_text()
    other.write_text("".join(content.splitlines(keepends=True)[1:]))
    try:
        done = search_here(unbroken, *ARGUMENTS)
    finally:
        other.write_text(content)
    assert done.returncode == 2
    assert "data: " in done.stdout + done.stderr
    assert len(events(unbroken)) == lines


def test_a_damaged_study_is_named_and_never_silently_begun_anew(unbroken: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(unbroken, home)
    journal = home / "results" / "s" / "journal.jsonl"
    storage = ("--storage", str(home / "results"))
    journal.write_bytes(b"")
    done = search_here(home, *ARGUMENTS, *storage)
    assert done.returncode == 2
    assert "journal.jsonl: the journal is damaged: it is empty" in " ".join((done.stdout + done.stderr).split())
    journal.unlink()
    done = search_here(home, *ARGUMENTS, *storage)
    assert done.returncode == 2
    assert "has no journal.jsonl" in " ".join((done.stdout + done.stderr).split())
    done = search_here(home, "--study", "nowhere", *storage, "--resume", settings=())
    assert done.returncode == 2
    assert "there is no study 'nowhere'" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path: Path) -> None:
    arguments = (*ARGUMENTS, "--trials", "12", "--seeds", "1", "--set", "train.max_epochs=16", "--set", "train.patience=16")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for home in (whole, broken):
        write_graph(home / "graph")
    done = run_search(REPOSITORY, whole, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = len(events(whole))
    rng = random.Random(0)
    for kill in range(10):
        search = start(REPOSITORY, broken, *arguments)
        target = min(lines - 4, len(events(broken)) + 2 + rng.randrange(lines // 10))
        assert run_until(search, broken, target), f"it ended before kill {kill}"
        time.sleep(0.1 * rng.random())  # anywhere between two lines, too
        search.kill()
        search.wait()
    done = run_search(REPOSITORY, broken, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_as_unbroken(broken, whole)
    assert len([event for event in events(broken) if event["event"] == "session"]) == 11


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["gcs_server", "raylet", "worker"])
def test_a_part_of_ray_is_killed(unbroken: Path, tmp_path: Path, victim: str) -> None:
    """A worker is retried by itself. Without its head the search ends, not with 0, and the same command goes on."""
    write_graph(tmp_path / "graph")
    search = start(REPOSITORY, tmp_path, *ARGUMENTS)
    assert run_until(search, tmp_path, 12)
    own = psutil.Process(search.pid).children(recursive=True)
    if victim == "worker":
        pids = [json.loads(file.read_text())["pid"] for file in (tmp_path / "results" / "s" / "trials").glob("*/reported.json")]
        os.kill(pids[0], signal.SIGKILL)
        assert finish(search, tmp_path) == 0
        assert sum(trial["retries"] for trial in json.loads((tmp_path / "results/s/trials.json").read_text())) == 1
    else:
        next(process for process in own if process.name() == victim).kill()
        assert finish(search, tmp_path, 200) not in (0, 130)
        assert "Ray has died" in (tmp_path / "log").read_text()
        done = run_search(REPOSITORY, tmp_path, *ARGUMENTS)
        assert done.returncode == 0, done.stdout + done.stderr
    assert_as_unbroken(tmp_path, unbroken)


@pytest.mark.slow
def test_a_worker_is_killed_while_it_takes_over_the_next_trial(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune reuses actors, and counts the death of one that is about to take over a trial twice; it is one retry."""
    write_graph(tmp_path / "graph")
    reported = tmp_path / "results" / "s" / "trials" / "trial-000" / "reported.json"
    write, killed = Journal.write, list[int]()

    def write_and_kill(journal: Journal, event: dict[str, Any]) -> None:
        write(journal, event)
        if (event["event"], event.get("trial")) == ("ask", "trial-002"):  # the actor of trial-000 waits for it
            killed.append(json.loads(reported.read_text())["pid"])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Journal, "write", write_and_kill)
    done = search_here(tmp_path, *ARGUMENTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(killed) == 1
    records = json.loads((tmp_path / "results" / "s" / "trials.json").read_text())
    assert [trial["retries"] for trial in records] == [0, 0, 1, 0, 0, 0]
    assert_as_unbroken(tmp_path, unbroken)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted, which needs root")
def test_a_full_disk_ends_the_search_and_room_lets_it_go_on(unbroken: Path, tmp_path: Path) -> None:
    """TRAIN-3 (b): path and bytes free are told, the journal stays readable, and nothing is lost once there is room."""
    write_graph(tmp_path / "graph")
    place = tmp_path / "results"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        search = start(REPOSITORY, tmp_path, *ARGUMENTS)
        assert run_until(search, tmp_path, 12)
        filler = place / "filler"
        filled = subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True, text=True, check=False)
        assert "No space" in filled.stderr
        assert finish(search, tmp_path) not in (0, None)
        told = " ".join((tmp_path / "log").read_text().split())
        assert "the disk is full" in told
        assert "MiB free" in told
        assert len(events(tmp_path)) >= 12  # the journal is readable
        filler.unlink()
        done = run_search(REPOSITORY, tmp_path, *ARGUMENTS)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_as_unbroken(tmp_path, unbroken)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)  # a worker may be at its last write
