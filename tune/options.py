"""The command line of the search: a table of flags, each a field of `SearchConfig`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.console import Console

from imf_core.commands.terminal import NameConsole, VersionOption, run_command
from imf_core.config_base import parse_overrides
from tune.pipeline import Session
from tune.plan.opening import search_config
from tune.settings import SearchConfig, given_settings

WHAT, HOW, WHERE, PLAN = "What to search", "How to search", "Resources and storage", "Checks before the search"


@dataclass(frozen=True)
class Option:
    """A flag of the command line.

    Args:
        field: name of the field of `SearchConfig`, whose description is the help text.
        kind: type of the value.
        panel: heading under which `--help` lists the flag.
        flag: its name without dashes; empty: the field's name.
    """

    field: str
    kind: Any
    panel: str
    flag: str = ""

    def parameter(self) -> inspect.Parameter:
        """The flag as a parameter of the command function, from whose signature typer builds the parser."""
        help_text = SearchConfig.model_fields[self.field].description
        if self.field == "overrides":
            help_text = "fix a setting, for example train.lr=0.001 (repeatable); `imf config` lists all settings"
        flag = f"--{(self.flag or self.field).replace('_', '-')}"
        info = typer.Option(
            flag, help=f"{help_text}{self._default()}", rich_help_panel=self.panel, show_default=False, metavar=self._choices()
        )
        default = False if self.kind is bool else None
        kind = bool if self.kind is bool else self.kind | None
        return inspect.Parameter(self.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])

    def _default(self) -> str:
        """`; default: 12`; nothing where the field has none, or its description tells it."""
        field = SearchConfig.model_fields[self.field]
        value = field.get_default(call_default_factory=True)
        if value == "" or not given_settings({self.field: value}) or "default:" in str(field.description):
            return ""
        return f"; default: {value:g}" if isinstance(value, float) else f"; default: {value}"

    def _choices(self) -> str | None:
        """The values that the field takes, as a metavar; None: it takes others too."""
        kind = SearchConfig.model_fields[self.field].annotation
        return "|".join(get_args(kind)) if get_origin(kind) is Literal else None


OPTIONS = (
    Option("task", str, WHAT), Option("data", str, WHAT), Option("test_size", str, WHAT),
    Option("space", Path, WHAT), Option("overrides", list[str], WHAT, "set"),
    Option("config", Path, WHAT), Option("preset", str, WHAT), Option("parts", list[Path], WHAT, "part"),
    Option("warm_start", Path, WHAT),
    Option("first", str, WHAT), Option("resume", bool, HOW), Option("extend", int, HOW),
    Option("trials", int, HOW), Option("budget_seconds", str, HOW, "budget"), Option("seed", int, HOW),
    Option("seeds", int, HOW), Option("objective", str, HOW), Option("sampler", str, HOW), Option("scheduler", str, HOW),
    Option("grace_epochs", int, HOW, "grace"), Option("reduction_factor", float, HOW, "reduction"),
    Option("max_failures", int, HOW),
    Option("workers", int, WHERE), Option("cpus_per_worker", int, WHERE), Option("gpus_per_worker", str, WHERE),
    Option("concurrency", int, WHERE), Option("study", str, WHERE), Option("storage", Path, WHERE),
    Option("tracking_uri", str, WHERE), Option("model_name", str, WHERE), Option("wandb", str, WHERE),
    Option("save_seconds", float, WHERE), Option("track_seconds", float, WHERE),
    Option("keep", int, WHERE), Option("no_pool", bool, WHERE), Option("address", str, WHERE),
    Option("expect_nodes", int, WHERE), Option("node_wait_seconds", str, WHERE, "node-wait"),
    Option("fewer_nodes", bool, WHERE), Option("grows_to", int, WHERE),
    Option("strict", bool, PLAN), Option("dry_run", bool, PLAN), Option("show_space", bool, PLAN),
)


def run(search: Callable[[SearchConfig, Console], Session]) -> None:
    """Parse `sys.argv`, search, and exit, see `run_command`.

    Args:
        search: runs the search and returns how it ended.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    def command(version: bool = False, **given: Any) -> None:
        given["overrides"] = parse_overrides(given["overrides"] or [])
        raise typer.Exit(search(search_config(given), NameConsole()).exit)

    shown = inspect.Parameter("version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=VersionOption)
    parameters = [*(option.parameter() for option in OPTIONS), shown]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = (
        "Search the hyperparameters of a multimodal link predictor. Without options it searches the bundled data set.\n\n"
        "Example: python tune/search.py --data mygraph --trials 20 --budget 30m --set model.dim=128"
    )
    app.command()(command)
    run_command(app)
