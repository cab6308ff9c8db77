"""Command lines to print: a shell of the user runs them as they are."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def program(name: str) -> str:
    """What starts a program of this Python environment: its name if PATH leads to that very file, otherwise its path.

    A program that is not in this environment is called by its name.
    """
    own = Path(sys.executable).absolute().parent / name
    found = shutil.which(name)
    return str(own) if own.exists() and (found is None or os.path.abspath(found) != str(own)) else name


def installed(name: str) -> bool:
    """Whether a program is in this Python environment or on PATH."""
    return (Path(sys.executable).absolute().parent / name).exists() or shutil.which(name) is not None


def command_line(words: Sequence[str]) -> str:
    """A command as a line for a shell, its first word a program of this environment, see `program`."""
    return shlex.join([program(words[0]), *words[1:]])
