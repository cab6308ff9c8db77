"""YAML that would take the memory, that is none, or that is another encoding: refused with the file and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.errors import ConfigError
from imf_core.files.yaml_files import parse_yaml, read_yaml

LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (LAUGHS.encode(), "its aliases stand for more than"),
        (b"a: &a [1, *a]\n", "its aliases stand for more than"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"a: " + b"9" * 5000, "holds a value that cannot be read"),
        (b"a: 2026-99-99\n", "holds a value that cannot be read"),
        (b"# gr\xfcn\na: 1\n", "is not UTF-8"),
        ("a: 1\n".encode("utf-16"), "is not UTF-8"),
        (b"a: [1\n", "is not valid YAML"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    for read in (read_yaml, Config.load):
        with pytest.raises(ConfigError, match=f"settings.yaml.*{told}|settings.yaml {told}"):
            read(file)


def test_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("base: &b {x: 1}\nother: {<<: *b, y: [*b, *b]}\n")
    assert read_yaml(file) == {"base": {"x": 1}, "other": {"x": 1, "y": [{"x": 1}, {"x": 1}]}}
    file.write_text("")
    assert read_yaml(file) is None
    assert parse_yaml("[a, 1]", "--set") == ["a", 1]
    with pytest.raises(ConfigError, match="is no file"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "[1", "2026-99-99"])
def test_a_value_on_the_command_line(value: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the value of 'train\.lr=") as caught:
        parse_overrides([f"train.lr={value}"])
    assert len(str(caught.value)) < 400
