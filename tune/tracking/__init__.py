"""Tracking in MLflow.

Registered models of earlier versions import `tune.tracking.ImfPyfunc`, so the name must stay. It is resolved lazily, so that
importing a module of this package does not import MLflow.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "ImfPyfunc":
        from tune.tracking.model import ImfPyfunc

        return ImfPyfunc
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
