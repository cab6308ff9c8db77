"""A study begun or gone on with: what it is tied to, what is left of it, and the data that all its trials share."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import imf_core
from imf_core.errors import ConfigError, DataError
from imf_core.files.atomic import atomic_folder, atomic_write_text
from imf_core.tasks.protocols import Audit
from tune.plan.plan import Plan
from tune.plan.warm_start import warm_start
from tune.settings import SearchConfig, absolute
from tune.sources import code_digest
from tune.study.history import History
from tune.study.journal import JOURNAL_FILE, Journal, read_events
from tune.study.sampler import sampler_settings

AUDIT_FILE = "audit.json"

_SHOWN = 12  # lines of a diff
_SEARCHING = ("ask", "report", "tell")
# What may differ from session to session without mixing two studies.
_FREE = ("data.", "train.memory_budget_mb")


@dataclass(frozen=True)
class OpenStudy:
    """A study that this process alone may go on with.

    Args:
        journal: open for writing.
        history: the journal as it was found.
        trials: that the study is to have.
        seconds_left: of the time budget; None: there is none, 0: it is used up.
        points, known: what the study began with besides the default point.
    """

    journal: Journal
    history: History
    trials: int
    seconds_left: float | None
    points: tuple[dict[str, Any], ...]
    known: tuple[tuple[dict[str, Any], float], ...]

    @property
    def resumed(self) -> bool:
        """Whether an earlier session began it."""
        return bool(self.history.all("session"))

    def describe(self) -> str:
        """What is left to do, or what a new study begins with."""
        if not self.resumed:
            return str(self.history.study["note"])
        ended = sum(trial.told is not None for trial in self.history.trials.values())
        waiting = len(self.history.interrupted)
        again = f", {waiting} of them interrupted" if waiting else ""
        return f"going on: {ended} of {self.trials} trials have ended, {max(0, self.trials - ended)} are left{again}"

    def __enter__(self) -> OpenStudy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.journal.close()


def search_config(values: Mapping[str, Any]) -> SearchConfig:
    """Validate settings; with `resume` or `extend`, a setting that is not given is as the study was begun with.

    Args:
        values: fields of `SearchConfig` by name; None and False stand for "not given".

    Raises:
        ConfigError: see `SearchConfig.build`; or there is no such study.
        DataError: its journal is damaged.
    """
    given = {name: value for name, value in values.items() if value not in (None, False, {})}
    return SearchConfig.build({**_begun_with(given), **given} if given.keys() & {"resume", "extend"} else given)


def open_study(plan: Plan) -> OpenStudy:
    """Begin the plan's study, or go on with it where it exists and agrees; put the data where every worker reads it.

    Args:
        plan: what to do. What it says of a warm start is for a new study; one that exists began with its own.

    Raises:
        ConfigError: the study exists and is tied to something else, with a diff; or another process runs it; or it does not
            exist and is to be gone on with.
        DataError: its journal is damaged; or what it is to begin with cannot be read.
    """
    settings, folder = plan.settings, plan.settings.study_dir
    must_exist = settings.resume or settings.extend is not None
    begun = any((folder / name).exists() for name in ("trials", "summary.json"))
    if must_exist and not (folder / JOURNAL_FILE).exists():
        raise ConfigError(f"there is no study in {folder}", remedy="leave out --resume and --extend", key="study")
    if begun and not (folder / JOURNAL_FILE).exists():
        raise ConfigError(
            f"the study {settings.study!r} exists without its {JOURNAL_FILE}: {folder}",
            remedy=f"choose another --study, or begin with its best points: --warm-start {folder}", key="study",
            value=settings.study,
        )
    with ExitStack() as refused:
        journal = Journal(folder)
        refused.callback(journal.close)
        if not journal.events and begun:
            remedy = f"restore it, or begin a new study with its best points: --study NEW --warm-start {folder}"
            raise DataError.at(journal.path, None, "the journal is damaged: it is empty", remedy=remedy)
        tied = ties(plan)
        if journal.events:
            _refuse(settings, journal.events[0]["tied"], tied)
        tied["features"] = _share_data(plan, journal.events[0]["tied"].get("features") if journal.events else None)
        if not journal.events:
            warm = warm_start(settings.warm_start, plan.space, tied)
            journal.append(
                "study", name=settings.study, tied=tied, points=warm.points, known=warm.known, note=warm.note,
                settings=settings.asked(),
            )
        history = History.of(list(journal.events))
        made = _left(settings, journal, history)
        write_audit(plan.audit, folder)
        refused.pop_all()  # from here on the study keeps the journal open
    return made


def ties(plan: Plan) -> dict[str, Any]:
    """What makes a study's numbers what they are, flat, without the features' digest."""
    settings = plan.settings
    sampler = sampler_settings(settings.seed, plan.startup, kind=settings.sampler)
    fixed = {name: value for name, value in plan.base.flat().items() if not name.startswith(_FREE)}
    found = {
        "task": settings.task, "data": plan.data.fingerprint, "code": code_digest(), "version": imf_core.__version__,
        **{f"sampler.{name}": value for name, value in sampler.items() if name != "note"},
        "first": settings.first, "objective": settings.objective, "scheduler": settings.scheduler,
        "grace": settings.grace_epochs or f"learned, at most {plan.grace}", "reduction": settings.reduction_factor,
        "workers": settings.workers, "branches": list(plan.branches), **fixed,
        **{f"space: {parameter.name}": parameter.canonical() for parameter in plan.space.parameters},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=list))  # as it comes back from the journal
    return plain


def _refuse(settings: SearchConfig, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises: ConfigError: the study is tied to something else."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name) and name != "features"]
    if not names:
        return
    lines = [f"  {name}: {_said(then, name)} then, {_said(now, name)} now" for name in names[:_SHOWN]]
    lines += [f"  and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    raise ConfigError(
        f"the study {settings.study!r} was begun with something else; two studies are never mixed:\n" + "\n".join(lines),
        remedy=f"run it as it was begun, or begin another with its points: --study NEW --warm-start {settings.study_dir}",
        key="study", value=settings.study, differences=names,
    )


def _said(values: Mapping[str, Any], name: str) -> str:
    text = json.dumps(values[name], ensure_ascii=False) if name in values else "absent"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _share_data(plan: Plan, expected: str | None) -> str:
    """Write the data for the workers; returns the digest of its arrays.

    Raises:
        ConfigError: the features are not those with which the study was begun.
    """
    with atomic_folder(plan.prepared, alone=True) as folder:
        found: str = plan.task.save(plan.data, folder)
        if expected is not None and found != expected:
            _refuse(plan.settings, {"feature arrays": expected[:16]}, {"feature arrays": found[:16]})
    return found


def _left(settings: SearchConfig, journal: Journal, history: History) -> OpenStudy:
    """Note a session, and what is left of trials and time."""
    sessions, asked = history.all("session"), len(history.trials)
    trials, begins = settings.trials, False
    if settings.resume and sessions and not settings.given("trials"):
        trials = int(sessions[-1]["trials"])
    trials = max(trials, asked)
    if settings.extend is not None:
        # The same command again goes on with an extension that was interrupted, instead of adding as many once more.
        last = sessions[-1] if sessions else {}
        over = any(event["event"] == "final" for event in history.events[_place(history, last):])
        begins = over or last.get("extend") != settings.extend
        trials = asked_for(history) + settings.extend if begins else int(last["trials"])
    left = None
    if settings.budget_seconds is not None:
        spent = 0.0 if begins else history.seconds(_SEARCHING, since="extends")
        left = max(0.0, settings.budget_seconds - spent)
        left = left if left >= 1.0 else 0.0
    journal.append(
        "session", trials=trials, budget=settings.budget_seconds, pid=os.getpid(), extend=settings.extend, extends=begins,
    )
    first = history.study
    known = tuple((dict(point), float(value)) for point, value in first["known"])
    return OpenStudy(journal, history, trials, left, tuple(first["points"]), known)


def asked_for(history: History) -> int:
    """Trials that the latest session was to have."""
    sessions = history.all("session")
    return max(len(history.trials), int(sessions[-1]["trials"]) if sessions else 0)


def _place(history: History, session: Mapping[str, Any]) -> int:
    return next((place for place, event in enumerate(history.events) if event is session), 0)


def write_audit(report: Audit, folder: Path) -> Path:
    """Write `audit.json` into the study's folder."""
    return atomic_write_text(folder / AUDIT_FILE, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")


def _begun_with(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a study was begun with, from its journal.

    Raises:
        ConfigError: no study was named, or it is not there.
        DataError: its journal is damaged.
    """
    storage = Path(absolute(values.get("storage") or os.environ.get("IMF_STORAGE") or "results"))
    if not values.get("study"):
        there = sorted(file.parent.name for file in storage.glob(f"*/{JOURNAL_FILE}"))
        remedy = f"name it: --study NAME; in {storage} there are {', '.join(there) or 'none'}"
        raise ConfigError("no study was named to go on with", remedy=remedy, key="study")
    file = storage / str(values["study"]) / JOURNAL_FILE
    if not file.is_file():
        remedy = "name its --study and --storage, or leave out --resume and --extend to begin it"
        raise ConfigError(f"there is no study {file.parent.name!r} in {storage}", remedy=remedy, key="study")
    events, _ = read_events(file)
    return dict(events[0]["settings"]) if events else {}
