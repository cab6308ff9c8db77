"""Recovery from running out of memory: the trial is restarted once with half the batch size.

The change is written to the trial's folder, so that later retries and sessions use it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveInt, TypeAdapter

from imf_core.config_base import Settings
from imf_core.files.atomic import atomic_write_text
from imf_core.files.json_files import read_json
from imf_core.runtime import is_out_of_memory

REDUCED_FILE, KILLED_FILE = "smaller.json", "killed_for_memory"
_REDUCED = TypeAdapter(dict[str, PositiveInt])
# Errors of other processes: Ray's own, or that of a worker group, which quotes its first error.
_MESSAGE = re.compile(r"OutOfMemoryError|out of memory", re.IGNORECASE)


def ran_out(error: BaseException | str) -> bool:
    """Whether an exception, or the message of one in another process, means that memory ran out."""
    if isinstance(error, str):
        return bool(_MESSAGE.search(error))
    return is_out_of_memory(error) or bool(_MESSAGE.search(str(error)))


def reduced_settings(folder: Path) -> dict[str, Any]:
    """Settings that override a trial's own because it ran out of memory; empty if it never did."""
    file = folder / REDUCED_FILE
    try:
        return _REDUCED.validate_python(read_json(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        file.unlink()  # if memory runs out again, it is written again
        return {}


def kills_for_memory() -> int:
    """Number of processes on this machine that the kernel's OOM killer has ended; 0 if the kernel does not report it."""
    try:
        match = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def mark_killed(folder: Path) -> None:
    """Record, from the driver, that a trial's worker was killed for lack of memory."""
    atomic_write_text(folder / KILLED_FILE, "")


def was_killed(folder: Path) -> bool:
    """Whether the previous attempt was killed for lack of memory; clears the mark."""
    try:
        (folder / KILLED_FILE).unlink()
    except FileNotFoundError:
        return False
    return True


def reduce_batch(folder: Path, config: Settings) -> bool:
    """Halve the batch size of a trial, once.

    Args:
        folder: the trial's folder.
        config: its settings.

    Returns:
        Whether it was halved: not if it was before, or if the batch is a single query.
    """
    if (folder / REDUCED_FILE).exists() or getattr(config.train, "batch_size", 1) < 2:
        return False
    atomic_write_text(folder / REDUCED_FILE, json.dumps({"train.batch_size": config.train.batch_size // 2}))
    return True


def note(reduced: Mapping[str, Any]) -> str:
    """A note for the trial's reason; empty if no setting was reduced."""
    return "; ".join(f"reduced after running out of memory: {name}={value}" for name, value in reduced.items())
