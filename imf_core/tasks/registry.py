"""The tasks that there are: those of the product, and those that other packages register.

A package registers a task by an entry point of the group `imf_search.tasks` whose value is a `Task`; a module that a search
imports anyway may call `register`. Nothing is imported before a task is asked for.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from imf_core.config_base import nearest
from imf_core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from imf_core.tasks.task import AnyTask

DEFAULT_TASK = "link"
ENTRY_POINTS = "imf_search.tasks"
_BUILT_IN = {"link": ("imf_core.tasks.link", "LINK"), "recommend": ("imf_core.tasks.recommend", "RECOMMEND")}
_LOADED: dict[str, AnyTask] = {}


def register(task: AnyTask) -> AnyTask:
    """Make a task known to this process by its name.

    Raises:
        ConfigError: another task has the name.
    """
    if task.name in _BUILT_IN or _LOADED.setdefault(task.name, task) is not task:
        raise ConfigError(f"there is a task {task.name!r} already", remedy="give yours another name", key="task")
    return task


def task_names() -> list[str]:
    """Names of all tasks that can be asked for here."""
    return sorted({*_BUILT_IN, *_LOADED, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})


def task_named(name: str) -> AnyTask:
    """The task of a name: one of the product's, a registered one, or that of an installed entry point.

    Raises:
        ConfigError: there is none.
    """
    if name in _BUILT_IN and name not in _LOADED:
        module, attribute = _BUILT_IN[name]
        _LOADED[name] = getattr(import_module(module), attribute)
    if name not in _LOADED:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            _LOADED[name] = entry.load()
    if name not in _LOADED:
        known = task_names()
        raise ConfigError(
            f"there is no task {name!r}{nearest(name, known)}", remedy=f"choose one of: {', '.join(known)}", key="task",
            value=name,
        )
    return _LOADED[name]


def default_task() -> AnyTask:
    """Link prediction."""
    return task_named(DEFAULT_TASK)


def task_of(checkpoint: Path | str) -> AnyTask:
    """The task that a checkpoint folder belongs to.

    Raises:
        CheckpointError: it is no checkpoint, or of a task that is not known here.
    """
    for task in map(task_named, task_names()):
        if task.owns(Path(checkpoint)):
            return task
    raise CheckpointError(f"{checkpoint} is of a task that is not known here", remedy="install the package that made it")


def task_flags(name: str) -> list[str]:
    """The flags that choose a task on the command line of a search; none for the default."""
    return [] if name == DEFAULT_TASK else ["--task", name]
