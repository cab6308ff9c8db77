"""What the commands say of themselves: help at once and in full, the version, what the shell completes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import command_line
import pytest
from small_search import search_here

import imf_core
from imf_core.cli import COMMANDS, load_command
from tune.options import OPTIONS
from tune.settings import SearchConfig

HEAVY = {"torch", "numpy", "pandas", "pyarrow", "ray", "mlflow", "optuna", "matplotlib"}


def in_process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`imf ARGUMENTS` in a process of its own, which ends stderr with the names of the modules that it has loaded."""
    code = (
        "import sys, atexit; sys.argv[0] = 'imf'; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "from imf_core.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def one_line(text: str) -> str:
    """Without the frames and breaks that rich draws."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


def every_command() -> Iterator[Any]:
    """Words and click command of all commands of `imf`, those of `imf recommender` too."""
    for name in COMMANDS:
        command = load_command(name)
        inner = getattr(command, "commands", {})
        yield from (pytest.param((name, word), child, id=f"{name} {word}") for word, child in inner.items())
        if not inner:
            yield pytest.param((name,), command, id=name)


@pytest.mark.parametrize("arguments", ["--help", "--version", "trian"])
def test_what_needs_no_command_loads_no_library(arguments: str) -> None:
    loaded = set(in_process(arguments).stderr.split())
    assert "imf_core.cli" in loaded
    assert loaded & HEAVY == set()


def test_the_list_has_the_first_sentence_of_each_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    shown = one_line(command_line.run("--help"))
    for name, (_, sentence) in COMMANDS.items():
        whole = " ".join(str(load_command(name).help).split())
        assert whole.startswith(sentence.rstrip(".")), name
        assert f"{name} {sentence}" in shown


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    done = in_process("trian", COLUMNS="120")
    assert done.returncode == 2
    assert "No such command 'trian'. Did you mean 'train'?" in one_line(done.stderr)


@pytest.mark.parametrize(("words", "command"), list(every_command()))
def test_every_default_and_choice_of_a_command_is_in_its_help(
    words: tuple[str, ...], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = one_line(command_line.run(*words, "--help"))
    options = [option for option in command.params if option.param_type_name == "option"]
    for option in options:
        rest = shown[shown.index(f"{option.opts[0]} ") :]
        default = option.default.value if isinstance(option.default, Enum) else option.default
        if default not in (None, False, ""):
            assert f"[default: {default}]" in rest, option.opts
        if default == "":
            assert "default:" in rest, option.opts
        if (kind := option.type_descriptor.annotation) and isinstance(kind, type) and issubclass(kind, Enum):
            assert "|".join(member.value for member in kind) in rest, option.opts


@pytest.mark.parametrize(
    ("words", "choices"),
    [("train", "paper|published"), ("config", "paper|published"), ("evaluate", "valid|test"), ("compare", "valid|test"),
     ("recommender evaluate", "valid|test"), ("encode", "auto|mean|cls|pooler"), ("convert", "tsv|openke|nt")],
)
def test_a_closed_set_of_values_stands_in_the_help(words: str, choices: str) -> None:
    assert choices in command_line.run(*words.split(), "--help")


def test_every_default_and_choice_of_a_search_is_in_its_help(tmp_path: Path) -> None:
    shown = one_line(search_here(tmp_path, "--help", settings=()).stdout).partition("What to search")[2]
    for option in OPTIONS:
        field = SearchConfig.model_fields[option.field]
        flag = f"--{(option.flag or option.field).replace('_', '-')} "
        rest = shown[shown.index(flag) :].split(" --")[0]
        value = field.get_default(call_default_factory=True)
        if isinstance(value, (int, float, str)) and not isinstance(value, bool) and value != "":
            assert f"default: {value:g}" in rest if isinstance(value, float) else f"default: {value}" in rest, flag
        if get_origin(field.annotation) is Literal:
            assert "|".join(get_args(field.annotation)) in rest, flag


def test_both_commands_tell_the_version(tmp_path: Path) -> None:
    assert command_line.run("--version") == f"imf-search {imf_core.__version__}\n"
    done = search_here(tmp_path, "--version", settings=())
    assert (done.returncode, done.stdout) == (0, f"imf-search {imf_core.__version__}\n")


@pytest.mark.parametrize(
    ("line", "completed"), [("imf conv", {"convert", "convert-features"}), ("imf split --va", {"--valid"})]
)
def test_the_shell_completes(line: str, completed: set[str]) -> None:
    variables = {"_IMF_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    assert set(in_process(**variables).stdout.split()) == completed
