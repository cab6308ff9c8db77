"""Base of all configurations: frozen sections, search ranges, YAML files and overrides, errors that name the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from imf_core.errors import ConfigError
from imf_core.files.yaml_files import parse_yaml, read_yaml

OWN = "<own>"  # among the values of a `Tunable.when`: every part of one's own that the other setting can choose
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def parse_share(value: Any) -> Any:
    """`10%` -> 0.1; anything else as it is."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else value
    except ValueError:
        return value


Share = Annotated[float, BeforeValidator(parse_share), Field(ge=0, lt=1)]  # of a whole, also written as 10%


@dataclass(frozen=True)
class Tunable:
    """The search range of a setting.

        margin: Annotated[float, Tunable(low=1.0, high=24.0, log=True)] = Field(6.0, gt=0, description="of the distance")

    Args:
        low, high: bounds of a numeric range, both included.
        log: sample the exponent instead of the value.
        step: grid of an integer range.
        choices: the values of a categorical setting (instead of low and high).
        when: `{"model.decision": ("fixed",)}`: the setting exists only where the other one has one of these values; `OWN` among
            them stands for the parts of one's own.
        brings: `{"adagrad": {"model.norm": "none"}}`: values that other settings take with a choice, where neither the user
            nor the search sets them.
        default: searched by default; the others are searched only if a space file names them.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: int | None = None
    choices: tuple[Any, ...] | None = None
    when: Mapping[str, tuple[Any, ...]] | None = None
    brings: Mapping[Any, Mapping[str, Any]] | None = None
    default: bool = True


class Section(BaseModel):
    """A frozen section of a configuration; unknown names are refused. The settings of a part are one too.

        class RotateSettings(imf_core.Section): ...
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def settings_class(cls, name: str) -> type[Section] | None:
        """The settings that a section holds under a name besides its fields; None: it holds nothing there."""
        return None


class Settings(Section):
    """All settings of a run: the sections `data`, `model` and `train` that every task has, and maybe others."""

    if TYPE_CHECKING:
        data: Any = None
        model: Any = None
        train: Any = None

    @classmethod
    def build(cls, values: Mapping[str, Any], *, source: str = "configuration") -> Self:
        """Validate nested values; an unknown key is refused with the nearest known name.

        Raises:
            ConfigError: unknown key, wrong type, value out of range.
        """
        _refuse_unknown(values, cls, source)
        return _validated(cls, values, source)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a YAML file.

        Raises:
            ConfigError: the file cannot be read, is no YAML, or holds something else than settings.
        """
        values = read_yaml(path) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds {type(values).__name__}, not settings", remedy="write `model:`, `train:` sections")
        return cls.build(values, source=str(path))

    def updated(self, flat: Mapping[str, Any], *, source: str = "override") -> Self:
        """A copy with `{"train.lr": 0.01}` applied; keys are dotted paths."""
        values = self.model_dump()
        for name in self._left_open(flat):
            section, key = name.split(".")
            del values[section][key]
        for key, value in flat.items():
            node = values
            *parents, leaf = key.split(".")
            for parent in parents:
                child = node.get(parent)
                if child is None:
                    child = node[parent] = {}
                if not isinstance(child, dict):
                    raise ConfigError(
                        f"{source}: {key} goes below the plain value {parent}", remedy="use the dotted path of a setting"
                    )
                node = child
            node[leaf] = value
        return type(self).build(values, source=source)

    def flat(self) -> dict[str, Any]:
        """`{"train.lr": 0.002, ...}`, every leaf."""
        return dict(_leaves(self.model_dump(), ""))

    def _left_open(self, flat: Mapping[str, Any]) -> tuple[str, ...]:
        """Settings that return to their default when those in `flat` are set."""
        return ()


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`["train.lr=1e-3", "model.modalities=[text]"]` -> flat values; the right side is YAML (so `1e-3` is a number too)."""
    flat: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"cannot read the setting {assignment!r}", remedy="write key.sub=value, for example train.lr=0.001"
            )
        shown = assignment if len(assignment) <= 80 else f"{assignment[:77]}..."
        if _EXPONENT.fullmatch(text.strip()):  # YAML 1.1 reads 1e-3 as text
            flat[key.strip()] = float(text)
            continue
        try:
            flat[key.strip()] = parse_yaml(text, key.strip())
        except ConfigError as error:
            raise ConfigError(
                f"cannot read the value of {shown!r}: {error.problem.partition(':')[0]}",
                remedy="close its brackets and quotes, for example model.modalities=[text,image]",
                key=key.strip(),
                value=text[:80],
            ) from error
    return flat


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'lr'?` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest_setting(key: str, section: str, root: type[BaseModel]) -> str:
    """`; did you mean 'train.lr'?` or nothing: the setting whose name or description is nearest to an unknown one.

    Args:
        key: the last part of the unknown name, for example `learning_rate`.
        section: what stands before it, with its dot; other sections are looked at where nothing in it is near.
        root: all settings.
    """
    asked = _words(key)

    def likeness(name: str) -> float:
        leaf, told = name.rpartition(".")[2], _words(fields[name].description or "")
        by_name = 0.9 if _words(leaf) <= asked else difflib.SequenceMatcher(None, key, leaf).ratio()
        by_description = 0.6 + 0.3 * len(asked) / len(told) if asked <= told else 0.0
        searched = any(isinstance(mark, Tunable) for mark in fields[name].metadata)
        return max(by_name, by_description) + 0.01 * searched

    fields = dict(_fields(root, ""))
    for names in ([name for name in fields if name.startswith(section)], fields):
        best = max(names, key=likeness, default="")
        if best and likeness(best) >= 0.6:
            return f"; did you mean {best!r}?"
    return ""


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def _fields(kind: type[BaseModel], prefix: str) -> Iterable[tuple[str, FieldInfo]]:
    for name, info in kind.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


SectionT = TypeVar("SectionT", bound=Section)


def _validated(kind: type[SectionT], values: Mapping[str, Any], source: str, prefix: str = "") -> SectionT:
    """Raises: ConfigError, which names the first setting that is refused."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = prefix + ".".join(str(part) for part in first["loc"]) or "configuration"
        value = first.get("input")
        shown = key if isinstance(value, Mapping) else f"{key} = {value!r}"  # settings that disagree are named by the message
        raise ConfigError(
            f"{source}: {shown} is refused: {first['msg']}",
            remedy=f"correct {key}; `imf config` prints every setting with its bounds",
            key=key, value=value,
        ) from error


def _refuse_unknown(
    values: Mapping[str, Any], kind: type[BaseModel], source: str, prefix: str = "", root: type[BaseModel] | None = None
) -> None:
    root = root or kind
    for key, value in values.items():
        of_part = kind.settings_class(key) if key not in kind.model_fields and issubclass(kind, Section) else None
        if of_part is not None and isinstance(value, Mapping):
            _refuse_unknown(value, of_part, source, f"{prefix}{key}.")
            _validated(of_part, value, source, f"{prefix}{key}.")
        elif key not in kind.model_fields:
            known = [f"{prefix}{field}" for field in kind.model_fields]
            name = str(key)
            near = nearest(name, kind.model_fields) if isinstance(value, Mapping) else nearest_setting(name, prefix, root)
            raise ConfigError(
                f"{source}: unknown setting {prefix}{name}{near}",
                remedy=f"known here: {', '.join(known)}", key=f"{prefix}{key}", value=value,
            )
        else:
            child = kind.model_fields[key].annotation
            if isinstance(child, type) and issubclass(child, BaseModel) and isinstance(value, Mapping):
                _refuse_unknown(value, child, source, f"{prefix}{key}.", root)
