"""The journal of a study: complete lines or none, one driver, clear words where it is damaged or the disk is full."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imf_core.errors import ConfigError, DataError, ResourceError
from tune.study.history import History, trial_name
from tune.study.journal import Journal, read_events


def begun(folder: Path) -> Journal:
    journal = Journal(folder)
    journal.append("study", name="s")
    journal.append("session", trials=3)
    return journal


def test_events_come_back_as_written(tmp_path: Path) -> None:
    with begun(tmp_path / "new" / "study") as journal:
        journal.append("ask", trial="trial-000", params={"train.lr": 0.1 + 0.2, "model.modalities": "image+text", "é": None})
        written = journal.events
    with Journal(tmp_path / "new" / "study") as journal:
        assert journal.events == written
        assert journal.events[2]["params"]["train.lr"] == 0.1 + 0.2  # to the last bit
        journal.append("ask", trial="trial-001", params={})
    assert len(read_events(journal.path)[0]) == 4


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    with begun(tmp_path) as journal:
        journal.append("ask", trial="trial-000", params={"model.dim": 64})
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-cut])
    with Journal(tmp_path) as again:
        assert [event["event"] for event in again.events] == ["study", "session"]
        again.append("ask", trial="trial-000", params={"model.dim": 128})
    assert [event["event"] for event in read_events(journal.path)[0]] == ["study", "session", "ask"]


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["{}"], 1), (["[1]"], 1), (['{"event": "session"}'], 1), (['{"event": "study"}', "garbage"], 2),
        (['{"event": "study"}', '{"event": "session", "at": 1, "trials": 1}', '{"event": "study"}'], 3),
    ],
)
def test_damage_is_named_with_file_and_line(tmp_path: Path, lines: list[str], line: int) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_text("".join(f"{text}\n" for text in lines))
    with pytest.raises(DataError, match=rf"journal\.jsonl, line {line}: the journal is damaged") as found:
        Journal(tmp_path)
    assert "--warm-start" in found.value.remedy
    file.write_text('{"event": "study"}\n')
    Journal(tmp_path).close()  # the refused one has let go of it


def studied(folder: Path) -> list[str]:
    """The lines of a journal with two trials."""
    with begun(folder) as journal:
        for number in range(2):
            name = f"trial-{number:03d}"
            journal.ask(name, {"train.lr": 0.1 + number, "sizes": {10: 1, 9: [0.1, 2]}})
            for epoch in (1, 2):
                journal.report(name, {"epoch": epoch, "best_mrr": 0.1 * epoch + number, "mrr": 0.1 * epoch})
            journal.tell(name, {"epoch": 3, "best_mrr": 0.5 + number})
    return journal.path.read_text().splitlines()


def test_a_line_that_is_taken_out_altered_or_doubled_is_found(tmp_path: Path) -> None:
    lines = studied(tmp_path)
    file = tmp_path / "journal.jsonl"
    Journal(tmp_path).close()
    assert len(lines) == 10
    for place in range(1, len(lines)):
        harm = [[*lines[:place], lines[place].replace("0.", "0.9", 1).replace('"at": 1', '"at": 2', 1), *lines[place + 1 :]],
                [*lines[:place], lines[place], *lines[place:]]]
        if place < len(lines) - 1:  # a journal without its last line is one that was killed before it
            harm.append([*lines[:place], *lines[place + 1 :]])
        for damaged in harm:
            file.write_text("".join(f"{line}\n" for line in damaged))
            with pytest.raises(DataError, match="the journal is damaged"):
                Journal(tmp_path)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (['{"event": "report", "trial": "t", "epoch": 1, "numbers": {}, "at": 1, "seconds": 1}'],
         "t was never begun: a line is missing"),
        (['{"event": "ask", "trial": "t", "params": {}}'] * 2, "t is begun twice"),
        (['{"event": "ask", "trial": "t", "params": {}}', *['{"event": "tell", "trial": "t", "value": 1, "error": false}'] * 2],
         "t ends twice"),
        (['{"event": "ask", "trial": "t"}'], "an event ask: it lacks params"),
    ],
)
def test_events_out_of_order_are_damage_without_digests_too(tmp_path: Path, lines: list[str], told: str) -> None:
    (tmp_path / "journal.jsonl").write_text("".join(f"{line}\n" for line in ['{"event": "study"}', *lines]))
    with pytest.raises(DataError, match=told):
        Journal(tmp_path)


def test_one_driver_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tune.study.journal import Journal
journal = Journal({str(tmp_path)!r}); journal.append("study"); print("holds it", flush=True); input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "holds it\n"
        with pytest.raises(ConfigError, match="another process is running the study"):
            Journal(tmp_path)
    finally:
        other.kill()
        other.communicate()
    with Journal(tmp_path) as journal:
        assert len(journal.events) == 1


def test_a_full_disk_ends_the_search_with_path_and_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = begun(tmp_path)
    before = journal.path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"journal\.jsonl: the disk is full, [\d.]+ MiB free") as found:
            journal.append("ask", trial="trial-000", params={})
    assert journal.failure is found.value
    assert journal.path.read_bytes() == before  # half a line does not stay
    assert len(journal.events) == 2
    journal.append("ask", trial="trial-000", params={})  # there is room again
    assert len(read_events(journal.path)[0]) == 3
    journal.close()


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    with begun(tmp_path) as journal, pytest.raises(ValueError, match="JSON compliant"):
        journal.append("tell", trial="trial-000", value=float("nan"))
    assert len(read_events(journal.path)[0]) == 2


def events(*given: tuple[str, float, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"event": kind, "at": at, **values} for kind, at, values in given]


def test_history_knows_what_was_interrupted_and_counts_an_epoch_once() -> None:
    history = History.of(events(
        ("study", 0, {}), ("session", 1, {"trials": 2}), ("ask", 2, {"trial": "trial-000", "params": {"a": 1}}),
        ("ask", 2, {"trial": "trial-001", "params": {"a": 2}}),
        ("report", 3, {"trial": "trial-000", "epoch": 1, "numbers": {}}),
        ("report", 4, {"trial": "trial-001", "epoch": 1, "numbers": {}}),
        ("tell", 5, {"trial": "trial-000", "value": 0.2, "epoch": 2, "numbers": {}}),
        ("session", 9, {"trials": 2}),
        ("report", 10, {"trial": "trial-001", "epoch": 2, "numbers": {}}),
    ))
    assert [trial.name for trial in history.interrupted] == ["trial-001"]
    assert sorted(history.trials["trial-000"].reports) == [1, 2]
    assert history.trials["trial-001"].number == 1
    assert json.loads(json.dumps(history.study)) == {"event": "study", "at": 0}


def test_time_is_that_of_the_sessions_without_the_pauses() -> None:
    history = History.of(events(
        ("study", 0, {}), ("session", 100, {}), ("ask", 110, {"trial": "trial-000", "params": {}}),
        ("session", 500, {}), ("report", 520, {"trial": "trial-000", "epoch": 1, "numbers": {}}), ("test", 560, {}),
        ("session", 900, {"extends": True}), ("ask", 907, {"trial": "trial-001", "params": {}}),
    ))
    assert history.seconds() == 10 + 60 + 7
    assert history.seconds(("ask", "report", "tell")) == 10 + 20 + 7
    assert history.seconds(("ask", "report", "tell"), since="extends") == 7


def test_names_sort_as_their_numbers() -> None:
    assert [trial_name(number) for number in (0, 12, 999)] == ["trial-000", "trial-012", "trial-999"]


@pytest.mark.parametrize("harm", ["exchanged", "copied from another study"])
def test_lines_in_another_order_or_of_another_study_are_found(tmp_path: Path, harm: str) -> None:
    lines = studied(tmp_path / "one")
    other = studied(tmp_path / "two")
    lines[3:5] = lines[4:2:-1] if harm == "exchanged" else other[3:5]
    (tmp_path / "one" / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(DataError, match=r"journal\.jsonl, line [45]: the journal is damaged"):
        Journal(tmp_path / "one")
