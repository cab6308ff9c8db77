"""Which files a graph is read from: a folder, or explicit files, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imf_core.config import DataConfig


@dataclass(frozen=True)
class GraphFiles:
    """A graph folder, and files that stand in for the folder's.

    Args:
        folder: graph folder; None: explicit files alone.
        train, valid, test: each is read instead of the folder's file of that split; None: the folder's.
    """

    folder: Path | None = None
    train: Path | None = None
    valid: Path | None = None
    test: Path | None = None

    @classmethod
    def of(cls, config: DataConfig, folder: Path) -> GraphFiles:
        """The files that settings name: `data.train`, `data.valid` and `data.test` go before those of the folder."""
        train, valid, test = (Path(name) if name else None for name in (config.train, config.valid, config.test))
        return cls(folder, train, valid, test)
