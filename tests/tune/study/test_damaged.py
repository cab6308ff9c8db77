"""Files of a study that were damaged or forged: refused with the file and a remedy, or read; never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_study import RECORDS

from benchmarks.fuzz.damage import forged, spoilt
from imf_core.card.card import read_study
from imf_core.config import Config
from imf_core.errors import DataError, ImfError
from imf_core.study_reader import StudyFolder
from tune.plan.opening import search_config
from tune.plan.warm_start import warm_start
from tune.space.space import SearchSpace
from tune.study.journal import Journal, read_events
from tune.study.outcome import outcome_of
from tune.study.records import count_states, load_records, ranked, winner

RANGES = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.decision": {"choices": ["learned", "relation"]}}
SPACE = SearchSpace.from_values(RANGES, Config(), ("structure", "text", "fused"))
STUDY = {
    "name": "s", "tied": {"data": "d"}, "points": [{"train.lr": 0.01}], "known": [[{"train.lr": 0.02}, 0.3]], "note": "",
    "settings": {"study": "s", "trials": 4},
}


def study(folder: Path) -> Path:
    """A study of one finished trial and one that runs, as its files."""
    with Journal(folder) as journal:
        journal.append("study", **STUDY)
        journal.append("session", trials=4, budget=None, pid=1, extend=None, extends=False)
        for name in ("trial-000", "trial-001"):
            journal.ask(name, {"train.lr": 0.01})
            journal.report(name, {"epoch": 1, "mrr": 0.2, "best_mrr": 0.2, "time_total_s": 1.0})
        journal.tell("trial-000", {"epoch": 2, "mrr": 0.3, "best_mrr": 0.3, "time_total_s": 2.0})
        journal.append("budget", pace={"epoch": 1.0, "start": 1.0, "restart": 1.0}, max_epochs=3, runs=2)
    (folder / "trials.json").write_text(json.dumps([record.to_json() for record in RECORDS[:2]]))
    (folder / "summary.json").write_text(json.dumps({"study": "s", "checkpoint": "results/s/best", "trials": {"completed": 2}}))
    (folder / "outcome.json").write_text(json.dumps({"state": "failed", "reason": "x", "error_type": None, "epochs": 3}))
    return folder


def errors_of(file: Path, damages: list[tuple[str, bytes]], read: Callable[[], object]) -> dict[str, ImfError]:
    """What a reader says to each damage, by what was done; only errors for users are caught."""
    errors: dict[str, ImfError] = {}
    for name, content in damages:
        file.write_bytes(content)
        try:
            read()
        except ImfError as error:
            errors[name] = error
    return errors


def check(errors: dict[str, ImfError], file: Path, least: int) -> None:
    assert [(name, str(error)) for name, error in errors.items() if file.name not in str(error) or not error.remedy][:3] == []
    assert len(errors) >= least
    assert max(len(str(error)) for error in errors.values()) < 1500


def test_records_of_trials(tmp_path: Path) -> None:
    file = study(tmp_path) / "trials.json"
    whole = file.read_bytes()
    damages = [*spoilt(whole), *((name, json.dumps(value).encode()) for name, value in forged(json.loads(whole)))]

    def read() -> None:
        records = load_records(tmp_path)
        assert len(ranked(records)) == sum(count_states(records).values())
        assert winner(records) is None or records
        warm_start(tmp_path, SPACE, {"data": "d"})

    errors = errors_of(file, damages, read)
    about = {name: error for name, error in errors.items() if "warm start" not in error.problem}  # of values, not of files
    check(about, file, 60)
    file.write_text(json.dumps([{**RECORDS[0].to_json(), "state": 3}]))
    with pytest.raises(DataError, match=r"trials\.json: not a trial record: state = 3"):
        load_records(tmp_path)


def test_a_summary(tmp_path: Path) -> None:
    file = study(tmp_path) / "summary.json"
    damages = [
        *spoilt(file.read_bytes()),
        *((name, json.dumps(value).encode()) for name, value in forged(json.loads(file.read_bytes()))),
    ]
    check(errors_of(file, damages, StudyFolder(tmp_path).summary), file, 15)
    check(errors_of(file, damages, lambda: read_study(tmp_path / "best")), file, 8)


@pytest.mark.parametrize("chained", [True, False])
def test_a_journal(tmp_path: Path, chained: bool) -> None:
    file = study(tmp_path / "s") / "journal.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    if not chained:
        lines = [{key: value for key, value in line.items() if key != "chain"} for line in lines]
    damages = list(spoilt(file.read_bytes()))
    for place, line in enumerate(lines):
        for name, value in forged(line):
            changed = [*lines[:place], value, *lines[place + 1 :]]
            damages.append((f"line {place + 1}: {name}", "".join(f"{json.dumps(item)}\n" for item in changed).encode()))

    def read() -> None:
        with Journal(file.parent) as journal:
            told = [(trial.best, trial.started, trial.curve) for trial in journal.trials.values()]
            assert len(told) == 2 or journal.seconds() >= 0
        search_config({"study": "s", "storage": str(tmp_path), "resume": True})
        warm_start(file.parent, SPACE, {"data": "d"})

    errors = errors_of(file, damages, read)
    settings = {name for name in errors if ": settings" in name}  # what a setting holds is said by its name
    check({name: error for name, error in errors.items() if name not in settings}, file, 400 if chained else 150)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["folder", "loop", "pipe"])
def test_a_folder_a_loop_of_links_or_a_pipe_instead_of_a_journal(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "journal.jsonl"
    {"folder": file.mkdir, "loop": lambda: file.symlink_to(file.name), "pipe": lambda: os.mkfifo(file)}[kind]()
    for read in (lambda: Journal(tmp_path), lambda: read_events(file)):
        with pytest.raises(DataError, match=r"journal\.jsonl: the journal is damaged: it is no file"):
            read()


@pytest.mark.parametrize("change", [{"state": []}, {"state": "fine"}, {"epochs": "many"}, {"reason": None}, {"error_type": {}}])
def test_an_outcome_that_says_nothing_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    file = study(tmp_path) / "outcome.json"
    assert outcome_of(file) is not None
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert outcome_of(file) is None
    for _, content in spoilt(b'{"state": "failed"}'):
        file.write_bytes(content)
        assert outcome_of(file) is None
