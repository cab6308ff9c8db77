"""A trial that ran out of memory is begun once more with half the batch, instead of being lost.

What was changed is kept in the trial's folder: a later retry, and a later session, goes on with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imf_core.config_base import Settings
from imf_core.files.atomic import atomic_write_text
from imf_core.runtime import is_out_of_memory

SMALLER_FILE, KILLED_FILE = "smaller.json", "killed_for_memory"
# What a worker's own error looks like from outside: Ray's, and a worker group's with the text of the first one in it.
_SAID = re.compile(r"OutOfMemoryError|out of memory", re.IGNORECASE)


def ran_out(error: BaseException | str) -> bool:
    """Whether an exception, or the text of one from another process, says that memory ran out."""
    if isinstance(error, str):
        return bool(_SAID.search(error))
    return is_out_of_memory(error) or bool(_SAID.search(str(error)))


def smaller_settings(folder: Path) -> dict[str, Any]:
    """Settings that replace a trial's own since it ran out of memory; empty if it never did."""
    try:
        found: dict[str, Any] = json.loads((folder / SMALLER_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def kills_for_memory() -> int:
    """How many processes of this machine the kernel has ended for want of memory; 0 where it does not tell."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def mark_killed(folder: Path) -> None:
    """Note that a trial's worker was ended for want of memory; it could not say so itself."""
    atomic_write_text(folder / KILLED_FILE, "")


def was_killed(folder: Path) -> bool:
    """Whether the attempt before this one was ended for want of memory; the note is taken away."""
    try:
        (folder / KILLED_FILE).unlink()
    except FileNotFoundError:
        return False
    return True


def shrink(folder: Path, config: Settings) -> str | None:
    """Halve the batch of a trial, once.

    Args:
        folder: the trial's folder.
        config: its settings so far.

    Returns:
        What was done, in words; None where it was done before, or the batch is one query.
    """
    if (folder / SMALLER_FILE).exists() or getattr(config.train, "batch_size", 1) < 2:
        return None
    size = config.train.batch_size // 2
    atomic_write_text(folder / SMALLER_FILE, json.dumps({"train.batch_size": size}))
    return f"out of memory with train.batch_size={config.train.batch_size}: went on with {size}"


def said(changed: Mapping[str, Any]) -> str:
    """A note for the trial's reason; empty where nothing was changed."""
    return "; ".join(f"memory had run out: {name}={value}" for name, value in changed.items())
