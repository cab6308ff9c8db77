"""A parameter of the search space: its range, validation and sampling, and the `Tunable` mark that declares it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from imf_core.config import Config
from imf_core.config_base import OWN, Settings, Tunable, nearest
from imf_core.errors import ConfigError
from imf_core.parts.sections import PartSection, import_named, own_marks, own_names

Kind = Literal["int", "float", "categorical"]
When = tuple[tuple[str, tuple[Any, ...]], ...]
Brings = tuple[tuple[Any, tuple[tuple[str, Any], ...]], ...]
_KEYS = ("low", "high", "log", "step", "choices")


def label(value: Any) -> Any:
    """A choice as a point stores it: the value itself, or a list as JSON text, because Optuna stores scalars only."""
    return json.dumps(list(value)) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched.

    Args:
        name: dotted path of the setting.
        kind: `int`, `float` or `categorical`.
        default: value in the first trial; within the range.
        low, high: bounds of a number, both included.
        log: sample on a logarithmic scale.
        step: grid step, starting at `low`; None: 1 for an int, continuous for a float.
        choices: values of a categorical parameter.
        when: condition; the parameter exists only if every named setting has one of the listed values.
        brings: for a choice, the values that other settings take with it.
    """

    name: str
    kind: Kind
    default: Any
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: When = ()
    brings: Brings = ()

    @classmethod
    def of_mark(cls, name: str, mark: Tunable, value: Any) -> Parameter:
        """A parameter from the mark of a field, with the value nearest to the field's as its default."""
        entry = {"choices": mark.choices} if mark.choices is not None else {
            "low": mark.low, "high": mark.high, "log": mark.log, "step": mark.step
        }
        return cls.parse(name, entry, value, mark, "imf_core.config")

    @classmethod
    def parse(
        cls, name: str, entry: Mapping[str, Any], value: Any, mark: Tunable | None = None, source: str = "space"
    ) -> Parameter:
        """A parameter from a range `{low, high, log, step}` or from `{choices: [...]}`.

        Args:
            name: dotted path of the setting.
            entry: the range or the choices.
            value: the setting's current value; its type decides between int and float, its nearest value is the default.
            mark: of the setting: it says when the parameter exists, and what its choices bring.
            source: file or argument to name in an error.

        Raises:
            ConfigError: an unknown key, an inverted range, bounds that are not numbers, a log range that is not positive, or
                choices that are empty or repeated.
        """
        def refuse(problem: str, remedy: str = "write {low: 1, high: 4} or {choices: [a, b]}") -> ConfigError:
            return ConfigError(f"{source}: {name}: {problem}", remedy=remedy, key=name, value=dict(entry))

        for key in entry:
            if key not in _KEYS:
                raise refuse(f"unknown key {key!r}{nearest(str(key), _KEYS)}")
        mark = mark or Tunable()
        conditions = tuple((key, tuple(allowed)) for key, allowed in (mark.when or {}).items())
        if entry.get("choices") is not None:
            choices = _as_numbers(entry["choices"], value)
            if set(entry) - {"choices"}:
                raise refuse("choices cannot be combined with a range")
            listed = isinstance(choices, (list, tuple)) and bool(choices)
            if not listed or len({repr(label(item)) for item in choices}) < len(choices):
                raise refuse(f"choices = {choices!r} is not a list of distinct values")
            brings = tuple((choice, tuple(values.items())) for choice, values in (mark.brings or {}).items())
            drawn = cls(name, "categorical", None, choices=tuple(choices), when=conditions, brings=brings)
            return drawn._with_default(value)
        kind: Kind = "int" if isinstance(value, int) else "float"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise refuse("a range needs a numeric setting", "write {choices: [...]}")
        low, high, step = (_number(entry.get(key)) for key in ("low", "high", "step"))
        log = entry.get("log", False)
        if low is None or high is None or not isinstance(log, bool) or (step is None and entry.get("step") is not None):
            raise refuse(f"{dict(entry)} is not a range")
        if low > high:
            raise refuse(f"low = {low:g} is above high = {high:g}", "swap them")
        if log and (low <= 0 or step is not None):
            raise refuse(f"a log range needs low > 0 and no step, found low = {low:g}", "raise low, or leave out log")
        fractional = any(item is not None and item % 1 for item in (low, high, step))
        if (step is not None and step <= 0) or (kind == "int" and fractional):
            raise refuse("an int range needs whole numbers, and a step must be positive")
        if step is not None:
            high = low + math.floor((high - low) / step + 1e-9) * step
        return cls(name, kind, None, low, high, log, step, when=conditions)._with_default(value)

    def widened(self, value: Any) -> Parameter:
        """This parameter with its range extended to include a value, if it can be (a log range stays positive)."""
        if self.kind == "categorical":
            if label(value) in self.labels:
                return self
            choices = (*self.choices, value)
            numeric = all(isinstance(item, (int, float)) for item in choices)
            return replace(self, choices=tuple(sorted(choices)) if numeric else choices, default=label(value))
        if self.log and value <= 0:
            return self
        return replace(self, low=min(self.low, value), high=max(self.high, value))._with_default(value)

    def accepted(self, config: Settings) -> Parameter:
        """This parameter without the choices that are invalid together with the other settings of `config`."""
        kept = tuple(choice for choice in self.choices if _refusal(config, {self.name: choice}) is None)
        return self if kept == self.choices else replace(self, choices=kept)

    def every_value(self, most: int) -> list[Any] | None:
        """All values as a point stores them; None if there are more, or a continuum."""
        if self.kind == "categorical":
            return list(self.labels) if len(self.labels) <= most else None
        if self.kind == "float" and self.low == self.high:
            return [self.low]
        step = self.step or (1 if self.kind == "int" else None)
        if step is None or (self.high - self.low) / step >= most:
            return None
        values = [self.low + place * step for place in range(round((self.high - self.low) / step) + 1)]
        return [int(value) for value in values] if self.kind == "int" else values

    def suggest(self, trial: Any) -> Any:
        """Draw a value from an Optuna trial."""
        if self.kind == "categorical":
            return trial.suggest_categorical(self.name, self.labels)
        if self.kind == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def check(self, value: Any) -> Any:
        """Validate a value and return it as a point stores it.

        Raises:
            ConfigError: wrong type or out of range; names the parameter, the value and the range.
        """
        if self.kind == "categorical":
            for choice in self.labels:
                if choice == label(value) and isinstance(choice, bool) == isinstance(value, bool):
                    return choice
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            on_grid = self.step is None or abs((value - self.low) / self.step - round((value - self.low) / self.step)) < 1e-6
            whole = self.kind == "float" or value % 1 == 0
            if self.low <= value <= self.high and on_grid and whole:
                return int(value) if self.kind == "int" else float(value)
        raise ConfigError(
            f"{self.name} = {value!r} is outside {self.shown}", remedy=f"give {self.name} a value in {self.shown}",
            key=self.name, value=value,
        )

    def clamp(self, value: Any) -> Any:
        """The nearest value in the range, as a point stores it; the first choice if no choice is nearer than another."""
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.kind == "categorical":
            if label(value) in self.labels:
                return self.check(value)
            if numeric and all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in self.choices):
                return min(self.choices, key=lambda choice: abs(choice - value))
            return self.labels[0]
        inside = min(max(float(value), self.low), self.high) if numeric else self.low
        if self.step is not None:
            inside = min(self.low + round((inside - self.low) / self.step) * self.step, self.high)
        return round(inside) if self.kind == "int" else inside

    def decode(self, value: Any) -> Any:
        """The setting's value for a point's value: the JSON text of a list becomes a tuple."""
        for choice in self.choices:
            if isinstance(choice, (list, tuple)) and label(choice) == value:
                return tuple(choice)
        return value

    def brought(self, value: Any) -> dict[str, Any]:
        """Values that other settings take where this one has the given value."""
        return {name: taken for choice, values in self.brings if choice == value for name, taken in values}

    def bringing(self, base: Settings, decided: Collection[str]) -> Parameter:
        """This parameter without what it brings to settings that are decided otherwise.

        Args:
            base: its own choice brings nothing: the other settings stand beside it there as they are meant to.
            decided: dotted names of the settings that the user or the search sets.
        """
        own, known = value_of(base, self.name), base.flat()
        kept = [(choice, tuple((name, value) for name, value in values if name in known and name not in decided))
                for choice, values in self.brings if choice != own and choice in self.labels]
        return replace(self, brings=tuple((choice, values) for choice, values in kept if values))

    def corners(self) -> list[Any]:
        """The extreme values, and an int's second value too: an odd width may be invalid although both even ends are valid."""
        if self.kind == "categorical":
            return list(self.labels)
        if self.kind == "float":
            return sorted({self.low, self.high})
        return sorted({int(self.low), int(min(self.low + (self.step or 1), self.high)), int(self.high)})

    @property
    def shown(self) -> str:
        """The range as text: `[0.0005, 0.008] log` or `{64, 96, 128}`."""
        if self.kind == "categorical":
            return "{" + ", ".join(str(item) for item in self.labels) + "}"
        step = f" step {self.step:g}" if self.step is not None else ""
        return f"[{self.low:g}, {self.high:g}]{' log' if self.log else ''}{step}"

    def canonical(self) -> dict[str, Any]:
        """The range and its condition as plain values, for a fingerprint; the default does not matter there."""
        return {
            "name": self.name, "kind": self.kind, "low": float(self.low), "high": float(self.high), "log": self.log,
            "step": self.step, "choices": list(self.labels), "when": [[key, list(allowed)] for key, allowed in self.when],
            **({"brings": [[choice, dict(values)] for choice, values in self.brings]} if self.brings else {}),
        }

    @property
    def labels(self) -> tuple[Any, ...]:
        """The choices as a point stores them."""
        return tuple(label(choice) for choice in self.choices)

    def _with_default(self, value: Any) -> Parameter:
        return replace(self, default=self.clamp(value))


def marks(kind: type[Settings] = Config) -> dict[str, Tunable]:
    """The `Tunable` marks of a configuration class, by dotted field name; then those of parts of one's own in memory."""
    found = {
        f"{section}.{name}": _with_own_parts(mark, kind)
        for section, field in kind.model_fields.items()
        for name, inner in getattr(field.annotation, "model_fields", {}).items()
        for mark in inner.metadata if isinstance(mark, Tunable)
    }
    return {**found, **own_marks(kind)}


def _with_own_parts(mark: Tunable, kind: type[Settings]) -> Tunable:
    """A mark in whose condition `OWN` is replaced by the names of parts in memory."""
    if mark.when is None or not any(OWN in allowed for allowed in mark.when.values()):
        return mark
    when = {
        name: tuple(value for value in allowed if value != OWN) + (own_names(kind, name) if OWN in allowed else ())
        for name, allowed in mark.when.items()
    }
    return replace(mark, when=when)


def ranges(space: Mapping[str, Any], kind: type[Settings] = Config) -> dict[str, Any]:
    """The entries of a space file from Python values.

    >>> ranges({"train.lr": (1e-4, 1e-2), "model.dim": [32, 64], "model.decision": "uniform"})["train.lr"]
    {'low': 0.0001, 'high': 0.01, 'log': True}

    Args:
        space: dotted name -> `(low, high)`, sampled on a logarithmic scale where the setting's own range is; a list of choices;
            a mapping as in the file; or a value at which the setting is held.
        kind: the configuration that has the settings.
    """
    import_named(kind, space)
    marked = marks(kind)
    entries: dict[str, Any] = {}
    for name, value in space.items():
        if isinstance(value, tuple) and len(value) == 2 and all(isinstance(end, int | float) for end in value):
            logarithmic = name in marked and marked[name].log and value[0] > 0
            entries[name] = {"low": value[0], "high": value[1], "log": logarithmic}
        else:
            entries[name] = {"choices": list(value)} if isinstance(value, list | tuple) else value
    return entries


def value_of(config: Settings, name: str) -> Any:
    """The current value of `section.field`, or of `section.part.field`; else a third part of the name (a branch) is ignored."""
    section, field, *rest = name.split(".")
    values = getattr(config, section)
    if rest and isinstance(values, PartSection) and field not in type(values).model_fields:
        return getattr(values.settings_of(field), rest[0])
    return getattr(values, field)


def ordered(parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """Sort parameters so that each follows those that decide its condition; otherwise keep the order."""
    waiting, done = list(parameters), []
    while waiting:
        names = {name for item in waiting for name in (item.name, *(name for _, values in item.brings for name, _ in values))}
        ready = next((item for item in waiting if not names & {name for name, _ in item.when}), waiting[0])
        waiting.remove(ready)
        done.append(ready)
    return tuple(done)


def try_corners(base: Settings, parameters: Sequence[Parameter], source: str) -> None:
    """Check that every extreme value of a parameter, alone and with each extreme of another, gives a valid configuration.

    Raises:
        ConfigError: one does not; names the values.
    """
    corners = [(item.name, item.decode(value)) for item in parameters for value in item.corners()]
    pairs = (pair for pair in combinations(corners, 2) if pair[0][0] != pair[1][0])
    for settings in [*((corner,) for corner in corners), *pairs]:
        error = _refusal(base, dict(settings))
        if error is not None:
            shown = " with ".join(f"{name} = {value!r}" for name, value in settings)
            raise ConfigError(
                f"{source}: the range includes {shown}, which is invalid: {error.problem}", remedy="narrow the range",
                key=settings[0][0], value=settings[0][1],
            ) from error


def _refusal(base: Settings, settings: Mapping[str, Any]) -> ConfigError | None:
    try:
        base.updated(settings)
    except ConfigError as error:
        return error
    return None


def hint(name: str, known: Collection[str]) -> str:
    """A suggestion such as `; did you mean 'train.lr'?`, also for a name that lacks its section."""
    leaves = {item.rpartition(".")[2]: item for item in known}
    leaf = name.rpartition(".")[2]
    return f"; did you mean {leaves[leaf]!r}?" if leaf in leaves else nearest(name, known) or nearest(leaf, leaves)


def _as_numbers(choices: Any, value: Any) -> Any:
    """Choices of a numeric setting that YAML 1.1 reads as text (`1e-3`), as numbers; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isinstance(choices, (list, tuple)):
        return choices
    numbers = [(_number(item) if isinstance(item, str) else None, item) for item in choices]
    whole = isinstance(value, int)
    return [item if number is None else int(number) if whole and number.is_integer() else number for number, item in numbers]


def _number(value: Any) -> float | None:
    """A finite number, which may be text, since YAML 1.1 reads 1e-4 as text; None for anything else."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
