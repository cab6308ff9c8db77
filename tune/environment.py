"""The variables that Ray and MLflow read when they are imported: set here, before the first `import ray`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

STALL = "RAY_TRAIN_COLLECTIVE_TIMEOUT_S"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the only silent form
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # each report of a worker group waits for this poll
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    STALL: "1800",  # seconds after which workers that wait for one that says nothing more fail, and the trial with them
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # a killed search loses at most about a second of bookkeeping
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each trial
    "GIT_PYTHON_REFRESH": "quiet",
}
_TOKEN_FILE = Path("~/.ray/auth_token")


def environment(address: str | None = None) -> dict[str, str]:
    """Set the defaults that Ray and MLflow read at import; what the user has set already is left alone.

    Args:
        address: Ray cluster to join; None or "local" means a cluster of our own on this machine. Only there, and where
            RAY_ADDRESS is unset too, is Ray's token authentication switched off. To a cluster the token is shown, if there is
            one.

    Returns:
        The settings in force, fit for `runtime_env={"env_vars": ...}`.
    """
    wanted = dict(_ENVIRONMENT)
    if (address or os.environ.get("RAY_ADDRESS") or "local") == "local":
        wanted["RAY_AUTH_MODE"] = "disabled"
    elif any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or _TOKEN_FILE.expanduser().is_file():
        wanted["RAY_AUTH_MODE"] = "token"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in wanted}


def asked_address(arguments: Sequence[str]) -> str | None:
    """The `--address` of a command line; None without one. Read by itself, before anything imports ray."""
    for place, argument in enumerate(arguments):
        if argument == "--address" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith("--address="):
            return argument.partition("=")[2]
    return None
