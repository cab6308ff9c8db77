"""What a trial leaves behind (settings, numbers, `outcome.json`, Ray's error file), and how it therefore ended."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt

from imf_core.errors import ResourceError
from imf_core.files.atomic import atomic_write_text
from imf_core.files.json_files import Stored, read_json

OUTCOME_FILE, ERROR_FILE = "outcome.json", "error.txt"
DISK_FULL = "the disk is full"
ENDED = "ended"  # in a report: it is the last one of a trial that may train a part of its epochs and needs no more
_NO_FIGURES = frozenset(("trial_id", "done", "experiment_tag", "should_checkpoint", "epoch", ENDED))


class TrialState(StrEnum):
    """How a trial ended; `stopped` means that the search ended first (time budget, Ctrl-C)."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    STOPPED = "stopped"
    FAILED = "failed"
    DIVERGED = "diverged"

    @property
    def usable(self) -> bool:
        """Whether a trial in this state may win the study."""
        return self not in (TrialState.FAILED, TrialState.DIVERGED)


def classify(
    outcome: Mapping[str, Any] | None, ray_status: str, epochs: int, max_epochs: int, budget_over: bool
) -> tuple[TrialState, str]:
    """How a trial ended, from what it wrote and what Ray says.

    Args:
        outcome: the trial's `outcome.json`; None if it was ended from outside.
        ray_status: `ERROR` if Ray gave it up, anything else if not.
        epochs: epochs reported.
        max_epochs: the most epochs a trial may run; ASHA ends a full trial itself before the trial can write its outcome.
        budget_over: the search ended before the trial did.

    Returns:
        state and reason.
    """
    outcome = outcome or {}
    written, reason = str(outcome.get("state", "")), str(outcome.get("reason") or "")
    if written == TrialState.DIVERGED:
        return TrialState.DIVERGED, reason or "a number became non-finite"
    if written == TrialState.FAILED:
        kind = str(outcome.get("error_type") or "")
        return TrialState.FAILED, ": ".join(part for part in (kind, reason) if part) or "failed without a reason"
    if ray_status == "ERROR":
        return TrialState.FAILED, "failed after its training had ended" if written else "its process died without a message"
    if written == TrialState.COMPLETED:
        return TrialState.COMPLETED, reason or f"ended by itself after {epochs} epochs"
    if epochs >= max_epochs:
        return TrialState.COMPLETED, f"all {max_epochs} epochs"
    if epochs == 0:
        return TrialState.STOPPED, "the search ended before its first epoch"
    if budget_over:
        return TrialState.STOPPED, f"the time budget ran out at epoch {epochs} of {max_epochs}"
    return TrialState.PRUNED, f"stopped early at epoch {epochs} of {max_epochs}: behind the other trials"


def name_of(trial: Any) -> str:
    """The name of a Ray trial, the same in every session: of its folder, its record and its MLflow run."""
    config = getattr(trial, "config", None) or {}
    return str(config.get("name") or config.get("run") or trial.trial_id)


def trial_params(trial: Any) -> dict[str, Any]:
    """The searched settings of a Ray trial as plain values: `config["params"]`, or the whole config."""
    config = trial.config or {}
    params = config.get("params", config)
    return {str(key): _plain(value) for key, value in params.items()}


def reported_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that a trial itself reported: without Ray's own keys, the epoch, flags and texts; may be non-finite.

    Args:
        result: nested, or flat as Ray hands it to searchers (`config/params/train.lr`).
    """
    from ray.tune.result import AUTO_RESULT_KEYS  # here: a study is read without starting to import Ray

    numbers, left_out = {}, _NO_FIGURES.union(AUTO_RESULT_KEYS)
    for key, value in result.items():
        value = _plain(value)
        if key.partition("/")[0] not in left_out and isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[key] = float(value)
    return numbers


def _plain(value: Any) -> Any:
    """JSON-ready form of a setting or metric (NumPy and torch scalars become Python numbers)."""
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        return value.item()
    return str(value)


def first_path(trial: Any, trial_dir: Path) -> str:
    """The folder to name in a record; empty if the trial has none."""
    return next((str(folder) for folder in _folders(trial, trial_dir)), "")


def read_error(trial: Any) -> str:
    """The text of Ray's error file for a trial; empty if there is none."""
    for folder in _folders(trial):
        try:
            return (folder / ERROR_FILE).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
    return ""


def copy_error(trial: Any, copy: Path) -> tuple[str, str]:
    """Copy Ray's error text, which lies in a temporary folder, into the study.

    Returns:
        the line that says what happened and the path of the copy; both may be empty.
    """
    text = read_error(trial)
    try:
        return last_error(text), str(atomic_write_text(copy, text)) if text else ""
    except OSError:
        return last_error(text), ""


def read_outcome(trial: Any, trial_dir: Path, stale: int | None = None) -> tuple[dict[str, Any] | None, int | None]:
    """What a trial wrote of its end.

    Args:
        trial: Ray's trial.
        trial_dir: the trial's own folder, looked at first.
        stale: time stamp of a file that an earlier attempt wrote; it counts only if that attempt diverged, which is final.

    Returns:
        the outcome and the file's time stamp in ns; (None, None) if there is none.
    """
    for folder in _folders(trial, trial_dir):
        file = folder / OUTCOME_FILE
        values = outcome_of(file)
        try:
            stamp = file.stat().st_mtime_ns
        except OSError:
            continue
        if values is not None and (stamp != stale or values.get("state") == TrialState.DIVERGED):
            return values, stamp
    return None, None


class _Outcome(Stored):
    state: Literal["completed", "pruned", "stopped", "failed", "diverged"]
    reason: str
    error_type: str | None = None
    epochs: NonNegativeInt = 0


def outcome_of(file: Path) -> dict[str, Any] | None:
    """The content of an `outcome.json`; None where there is none, or it is damaged."""
    try:
        values: dict[str, Any] = read_json(file)
        _Outcome.model_validate(values)
    except (OSError, ValueError):
        return None
    return values


def last_error(text: str) -> str:
    """The line of Ray's error file that says what happened: the exception of the last failure; empty if there is none."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # Ray colours it
    lines = [line.strip() for line in plain.rsplit("Failure #", 1)[-1].splitlines()[1:] if line.strip()]
    if not lines:
        return ""
    traceback = any(line.startswith(("Traceback", "ray::")) for line in lines)
    return (lines[-1] if traceback else lines[0])[:500]


def full_disk(error: BaseException, folder: Path) -> ResourceError | None:
    """The error of a trial in words, if it is that the disk of its folder is full."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not full and os.strerror(errno.ENOSPC) not in str(error):  # the libraries have types of their own for it
        return None
    free = shutil.disk_usage(folder).free
    return ResourceError(f"{folder}: {DISK_FULL}, {free / 2**20:.1f} MiB free", remedy="make room", available=free)


def _folders(trial: Any, trial_dir: Path | None = None) -> list[Path]:
    """Where a trial's files may lie: its own folder, Tune's folder for it, the driver's staging copy, its working directory."""
    owners = ((trial, "path"), (trial, "local_path"), (getattr(trial, "storage", None), "trial_working_directory"))
    folders = dict.fromkeys(getattr(owner, name, None) for owner, name in owners)
    return [*([trial_dir] if trial_dir and trial_dir.is_dir() else []), *(Path(folder) for folder in folders if folder)]
