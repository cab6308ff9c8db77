"""Start a study or continue one: check what it is tied to, determine what is left to do, and write the shared data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import imf_core
from imf_core.data.audit.report import Audit
from imf_core.errors import ConfigError, DataError
from imf_core.files.atomic import atomic_folder, atomic_write_text
from tune.plan.plan import Plan
from tune.plan.warm_start import warm_start
from tune.settings import SearchConfig, given_settings, storage_of
from tune.sources import code_digest
from tune.study.journal import JOURNAL_FILE, Journal, begun_study, read_events
from tune.study.sampler import sampler_settings
from tune.study.schedule import ASHA_REDUCTION

AUDIT_FILE = "audit.json"

_SHOWN = 12  # differences that an error lists
_SEARCHING = ("ask", "report", "tell")
_FREE = ("data.", "train.memory_budget_mb")  # settings that may differ between the sessions of a study


@dataclass(frozen=True)
class OpenStudy:
    """A study that this process holds exclusively.

    Args:
        journal: the history of the study, open for writing.
        resumed: whether the study had an earlier session.
        trials: number of trials that the study shall have at the end of this session.
        seconds_left: rest of the time budget at the beginning of the session; None without a budget, 0 if it is used up.
        points, known: the warm start with which the study began, see `WarmStart`.
    """

    journal: Journal
    resumed: bool
    trials: int
    seconds_left: float | None
    points: tuple[dict[str, Any], ...]
    known: tuple[tuple[dict[str, Any], float], ...]

    @property
    def to_run(self) -> int:
        """Number of trials that are interrupted or were never begun."""
        return max(0, self.trials - len(self.journal.trials) + len(self.journal.interrupted))

    def remaining(self) -> float | None:
        """Seconds of the time budget that are left now, at least 0; None without a budget."""
        if self.seconds_left is None:
            return None
        return max(0.0, float(self.journal.all("session")[-1]["at"]) + self.seconds_left - time.time())

    def describe(self) -> str:
        """A line on how far a resumed study is, or on the warm start of a new one."""
        if not self.resumed:
            return str(self.journal.study["note"])
        waiting = len(self.journal.interrupted)
        ended = len(self.journal.trials) - waiting
        interrupted = f", {waiting} of them interrupted" if waiting else ""
        return f"resuming: {ended} of {self.trials} trials have ended, {max(0, self.trials - ended)} are left{interrupted}"

    def __enter__(self) -> OpenStudy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.journal.close()


def search_config(values: Mapping[str, Any]) -> SearchConfig:
    """Validate settings; with `resume` or `extend`, settings that are not given are those of the study's first session.

    Args:
        values: fields of `SearchConfig` by name; None, False and {} stand for "not given".

    Raises:
        ConfigError: see `SearchConfig.build`; or the study does not exist.
        DataError: its journal is damaged.
    """
    given = given_settings(values)
    return SearchConfig.build({**_earlier_settings(given), **given} if given.keys() & {"resume", "extend"} else given)


def open_study(plan: Plan) -> OpenStudy:
    """Start the plan's study, or continue it if it exists and is compatible; write the data that the workers read.

    Args:
        plan: of this session. Its warm start is ignored if the study exists.

    Raises:
        ConfigError: the study is tied to something else (lists the differences), another process runs it, or it shall be
            continued and does not exist.
        DataError: its journal is damaged, or the warm start cannot be read.
    """
    settings, folder = plan.settings, plan.settings.study_dir
    must_exist = settings.resume or settings.extend is not None
    begun = any((folder / name).exists() for name in ("trials", "summary.json"))
    if must_exist and not (folder / JOURNAL_FILE).exists():
        raise ConfigError(f"there is no study in {folder}", remedy="leave out --resume and --extend", key="study")
    if begun and not (folder / JOURNAL_FILE).exists():
        raise ConfigError(
            f"the study {settings.study!r} has no {JOURNAL_FILE}: {folder}",
            remedy=f"choose another --study, or start from its best points: --warm-start {folder}", key="study",
            value=settings.study,
        )
    with ExitStack() as on_error:
        journal = Journal(folder)
        on_error.callback(journal.close)
        if not journal.events and begun:
            remedy = f"restore it, or start a new study from its best points: --study NEW --warm-start {folder}"
            raise DataError.at(journal.path, None, "the journal is damaged: it is empty", remedy=remedy)
        tied, earlier = ties(plan), {}
        if journal.events:
            earlier = begun_study(journal.path, journal.events, "tied", "points", "known", "note", "settings")["tied"]
            _refuse_difference(settings, earlier, tied)
        tied["features"] = _share_data(plan, earlier.get("features"))
        if not journal.events:
            warm = warm_start(settings.warm_start, plan.space, tied)
            journal.append(
                "study", name=settings.study, tied=tied, points=warm.points, known=warm.known, note=warm.note,
                settings=settings.inherited(),
            )
        study = _begin_session(settings, journal)
        write_audit(plan.audit, folder)
        on_error.pop_all()  # the study now owns the open journal
    return study


def ties(plan: Plan) -> dict[str, Any]:
    """Everything that a study's numbers depend on, flat, apart from the digest of the features."""
    settings = plan.settings
    sampler = sampler_settings(settings.seed, plan.startup, kind=settings.sampler)
    fixed = {name: value for name, value in plan.base.flat().items() if not name.startswith(_FREE)}
    tied = {
        "task": settings.task, "data": plan.data.fingerprint, "code": code_digest(), "version": imf_core.__version__,
        **{f"sampler.{name}": value for name, value in sampler.items() if name != "note"},
        "first": settings.first, "objective": settings.objective, "scheduler": settings.scheduler,
        "grace": settings.grace_epochs or (plan.grace if plan.race is not None else f"learned, at most {plan.grace}"),
        "reduction": plan.race.reduction if plan.race is not None else settings.reduction_factor or ASHA_REDUCTION,
        "workers": settings.workers, "branches": list(plan.branches), **fixed,
        **{f"space: {parameter.name}": parameter.canonical() for parameter in plan.space.parameters},
        **{f"part: {part.name}": part.identity() for part in plan.parts},
    }
    plain: dict[str, Any] = json.loads(json.dumps(tied, default=list))  # compares equal to what the journal returns
    return plain


def _refuse_difference(settings: SearchConfig, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a study that is tied to something else.

    Raises:
        ConfigError: lists the differences.
    """
    names = [name for name in {**then, **now} if then.get(name) != now.get(name) and name != "features"]
    if not names:
        return
    lines = [f"  {name}: {' then, '.join(_both(then, now, name))} now" for name in names[:_SHOWN]]
    lines += [f"  and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    raise ConfigError(
        f"the study {settings.study!r} was started differently, and its results must not be mixed:\n" + "\n".join(lines),
        remedy="run it with the original settings, data and code, or start a new study from its best points: --study NEW "
        f"--warm-start {settings.study_dir}",
        key="study", value=settings.study, differences=names,
    )


def _both(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The two values of a tie; of a parameter's range only what differs."""
    first, second = then.get(name), now.get(name)
    if isinstance(first, dict) and isinstance(second, dict):
        parts = [part for part in {**first, **second} if first.get(part) != second.get(part)]
        texts = [", ".join(f"{part} {_text(values.get(part))}" for part in parts) for values in (first, second)]
    else:
        texts = [_text(values[name]) if name in values else "absent" for values in (then, now)]
    start = next((place for place, (one, other) in enumerate(zip(*texts, strict=False)) if one != other), 0)
    if start > 40:  # what differs is to be seen
        texts = [f"...{text[start - 20 :]}" for text in texts]
    short = [text if len(text) <= 60 else f"{text[:57]}..." for text in texts]
    return short[0], short[1]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _share_data(plan: Plan, expected: str | None) -> str:
    """Write the data for the workers and return the digest of its arrays.

    Raises:
        ConfigError: the features differ from those with which the study was started.
    """
    with atomic_folder(plan.prepared, alone=True) as folder:
        digest: str = plan.task.save(plan.data, folder)
        if expected is not None and digest != expected:
            _refuse_difference(plan.settings, {"feature arrays": expected[:16]}, {"feature arrays": digest[:16]})
    return digest


def _begin_session(settings: SearchConfig, history: Journal) -> OpenStudy:
    """Write the session to the journal, with the number of trials and the time that it may use."""
    sessions, drawn = history.all("session"), len(history.trials)
    trials, extends = settings.trials, False
    if settings.resume and sessions and not settings.given("trials"):
        trials = int(sessions[-1]["trials"])
    trials = max(trials, drawn)
    if settings.extend is not None:
        # Repeating the command of an interrupted extension continues it instead of adding as many trials again.
        last = sessions[-1] if sessions else {}
        start = next((index for index, event in enumerate(history.events) if event is last), 0)
        finalised = any(event["event"] == "final" for event in history.events[start:])
        extends = finalised or last.get("extend") != settings.extend
        planned = int(last.get("trials", 0))
        trials = max(drawn, planned) + settings.extend if extends else planned
    left = None
    if settings.budget_seconds is not None:
        spent = 0.0 if extends else history.seconds(_SEARCHING, since="extends")
        left = max(0.0, settings.budget_seconds - spent)
        left = left if left >= 1.0 else 0.0
    history.append(
        "session", trials=trials, budget=settings.budget_seconds, pid=os.getpid(), extend=settings.extend, extends=extends,
    )
    first = history.study
    known = tuple((dict(point), float(value)) for point, value in first["known"])
    return OpenStudy(history, bool(sessions), trials, left, tuple(first["points"]), known)


def write_audit(report: Audit, folder: Path) -> Path:
    """Write `audit.json` into the study's folder."""
    return atomic_write_text(folder / AUDIT_FILE, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")


def _earlier_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with which a study was started, from its journal.

    Raises:
        ConfigError: no study is named, or it does not exist.
        DataError: its journal is damaged.
    """
    storage = storage_of(values.get("storage"))
    if not values.get("study"):
        names = sorted(file.parent.name for file in storage.glob(f"*/{JOURNAL_FILE}"))
        remedy = f"name it: --study NAME; in {storage} there are: {', '.join(names) or 'none'}"
        raise ConfigError("--resume and --extend need the name of a study", remedy=remedy, key="study")
    file = storage / str(values["study"]) / JOURNAL_FILE
    if not file.is_file():
        remedy = "name its --study and --storage, or leave out --resume and --extend to start it"
        raise ConfigError(f"there is no study {file.parent.name!r} in {storage}", remedy=remedy, key="study")
    events, _ = read_events(file)
    return dict(begun_study(file, events, "settings")["settings"]) if events else {}
