"""Environment variables that Ray and MLflow read at import; set them before the first `import ray`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

STALL = "RAY_TRAIN_COLLECTIVE_TIMEOUT_S"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # together with verbose=0 the only way to silence Ray Tune
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # every report of a worker group waits for this poll
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    STALL: "1800",  # seconds after which workers that wait for a hanging worker fail, and with them the trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `tune.runs.interrupts` has one
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # a killed search loses about a second of Ray Tune's state at most
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines per trial
    "GIT_PYTHON_REFRESH": "quiet",
}
_AUTH_MODE = "RAY_AUTH_MODE"
_TOKEN_FILE = Path("~/.ray/auth_token")


def environment(address: str | None = None) -> dict[str, str]:
    """Set defaults for Ray and MLflow; variables that the user has set are kept.

    Args:
        address: Ray cluster to join; None for that of RAY_ADDRESS; "local", or None without RAY_ADDRESS, for Ray on this
            machine alone, where token authentication is switched off. A cluster is sent the user's token, if there is one:
            Ray sees to that itself once it has been imported.

    Returns:
        The variables in force, for `runtime_env={"env_vars": ...}`.
    """
    defaults = dict(_ENVIRONMENT)
    token = any(map(os.environ.get, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))) or _TOKEN_FILE.expanduser().is_file()
    if (address or os.environ.get("RAY_ADDRESS") or "local") == "local":
        defaults[_AUTH_MODE] = "disabled"
    elif token and "ray" not in sys.modules:
        defaults[_AUTH_MODE] = "token"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in defaults}


@contextmanager
def own_environment(address: str | None = None) -> Iterator[None]:
    """`environment` for one of several searches of a process: what depends on the address is as before after the block."""
    before = os.environ.get(_AUTH_MODE)
    environment(address)
    try:
        yield
    finally:
        os.environ.pop(_AUTH_MODE, None)
        if before is not None:
            os.environ[_AUTH_MODE] = before


def parse_address(arguments: Sequence[str]) -> str | None:
    """The value of `--address` on a command line, None without one; the real parser can run only after `import ray`."""
    for index, argument in enumerate(arguments):
        if argument == "--address" and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith("--address="):
            return argument.partition("=")[2]
    return None
