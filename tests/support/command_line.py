"""The command `imf` run in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.errors import ImfError


def run(*arguments: str) -> str:
    """What the command prints; it must succeed."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments: str) -> ImfError:
    """The error of ours with which the command ends."""
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, ImfError), result.exception
    return result.exception
