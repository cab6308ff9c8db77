"""YAML that people write: read without harm, whatever it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from imf_core.errors import ConfigError

_MOST_NODES = 10_000  # that its aliases may stand for: a file of 1 kB can stand for billions
_MOST_BYTES = 10 * 2**20


def read_yaml(path: Path | str) -> Any:
    """The content of a YAML file; None if it is empty.

    Raises:
        ConfigError: it cannot be read, is no YAML in UTF-8, or is larger than any settings are.
    """
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise ConfigError(f"{path} is no file", remedy="give a YAML file")
        if file.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is larger than any settings are", remedy="give a YAML file of settings")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", remedy="save it as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; None if it is empty.

    Args:
        text: of a file, or of one value.
        source: file or argument to name in an error.

    Raises:
        ConfigError: it is no YAML, is nested too deeply, or its aliases stand for too much.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _MOST_NODES:
            problem = f"{source}: its aliases stand for more than {_MOST_NODES:,} values"
            raise ConfigError(problem, remedy="write the values out")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}", remedy="correct it") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply", remedy="write fewer brackets") from error
    except ValueError as error:  # a number of thousands of digits, a date that there is not
        raise ConfigError(f"{source} holds a value that cannot be read: {str(error)[:80]}", remedy="correct it") from error


def _size(node: Any, sizes: dict[int, int]) -> int:
    """Number of values that a node stands for, aliases written out."""
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_NODES + 1  # of one that holds itself
        parts = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) else ()
        inner = (part for item in parts for part in (item if isinstance(item, tuple) else (item,)))
        sizes[id(node)] = min(1 + sum(_size(part, sizes) for part in inner), _MOST_NODES + 1)
    return sizes[id(node)]
