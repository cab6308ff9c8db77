"""The tasks that there are: those of the product, and those that other packages or this process register.

A task is a part as any other (`imf_core/parts/registry.py`): a package registers one by an entry point of the group
`imf_search.tasks` whose value is a `Task`; a module that a search imports anyway may call `register`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imf_core.errors import CheckpointError
from imf_core.parts import registry as parts

if TYPE_CHECKING:
    from imf_core.tasks.task import AnyTask

DEFAULT_TASK = "link"


def register(task: AnyTask) -> AnyTask:
    """Make a task known to this process by its name.

    Raises:
        ConfigError: another task has the name.
    """
    parts.register("task", task.name, task)
    return task


def task_names() -> list[str]:
    """Names of all tasks that can be asked for here."""
    return parts.names("task")


def task_named(name: str) -> AnyTask:
    """The task of a name: one of the product's, a registered one, or that of an installed entry point.

    Raises:
        ConfigError: there is none.
    """
    task: AnyTask = parts.named("task", name).target
    return task


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
