"""MLflow.

Registered models of earlier versions load `tune.tracking.ImfPyfunc`, so that name stays here; it is looked up when asked
for, so that importing a neighbour does not import MLflow.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "ImfPyfunc":
        from tune.tracking.model import ImfPyfunc

        return ImfPyfunc
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
