"""The search space: typed and conditional, declared by the `Tunable` marks of the configuration's fields.

A *point* maps dotted names to scalars, as Optuna stores it; *settings* are what `Config.updated` takes. They differ in two ways
only: a point holds one number per branch, which are normalised to weights on the simplex, and list-valued choices as JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imf_core.config import FUSED, STRUCTURE, Config
from imf_core.config_base import Settings
from imf_core.errors import ConfigError
from imf_core.files.digest import sha256_of
from imf_core.files.yaml_files import read_yaml
from imf_core.model.branches import branches_of
from imf_core.parts.sections import import_named, own_sections
from tune.space.parameter import Parameter, hint, label, marks, ordered, try_corners, value_of

WEIGHTS = "model.decision_weights"
MODALITIES = "model.modalities"
_MIN_WEIGHT = 1e-4  # no branch weighs exactly 0: it may be the only one that an entity has
_NEEDS_MODALITIES = (
    "model.fusion", "model.meta_", "model.cp_rank", "model.dropout_fusion", "model.decision", WEIGHTS, "model.missing",
    MODALITIES, "model.finetune_features", "model.contrastive_weight", "model.temperature", "model.joint_weight",
)


@dataclass(frozen=True)
class Row:
    """A row of `--show-space`: a parameter, its range as text, its first value, and whether it is searched."""

    name: str
    kind: str
    range: str
    default: Any
    condition: str
    by_default: bool
    searched: bool


@dataclass(frozen=True)
class SearchSpace:
    """The parameters that are searched around a base configuration. Calling it with an Optuna trial draws a point.

    Args:
        parameters: each follows those that its condition names.
        base: values of all settings that are not searched.
        branches: the model's branches: structure, each modality, fused.
        fixed: settings that a space file holds at one value, by dotted name; already part of `base`.
        notes: messages about parameters that were left out or adjusted.
    """

    parameters: tuple[Parameter, ...]
    base: Settings
    branches: tuple[str, ...]
    fixed: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def default(cls, config: Settings, branches: Sequence[str], fixed: Collection[str] = ()) -> SearchSpace:
        """The parameters that are searched by default.

        A base value outside the default range widens the range, so that the first trial can be the base itself; choices that
        are invalid with the base's other settings are left out.

        Args:
            config: the base.
            branches: names of the model's branches.
            fixed: dotted names that the user has set; they are not searched.

        Raises:
            ConfigError: no parameter is left to search.
        """
        return _assemble(cls, _usual(config), config, branches, fixed, {}, "default space")

    @classmethod
    def load(cls, path: Path | str, config: Settings, branches: Sequence[str], fixed: Collection[str] = ()) -> SearchSpace:
        """Read a space file. It replaces the default space, or extends it if it says `include: default`.

        Each entry maps a dotted name to `{low, high, log, step}`, to `{choices: [...]}` or to a value at which it is held; the
        entries of a section may stand below its name.

        Raises:
            ConfigError: an unknown name, an inverted range, or a range with values that the setting does not accept.
        """
        values = read_yaml(path) or {}
        if not isinstance(values, dict):
            remedy = "write `train.lr: {low: 1e-4, high: 1e-2, log: true}`"
            raise ConfigError(f"{path} holds {type(values).__name__}, not ranges", remedy=remedy)
        return cls.from_values(values, config, branches, fixed, source=str(path))

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], config: Settings, branches: Sequence[str], fixed: Collection[str] = (),
        source: str = "space",
    ) -> SearchSpace:
        """As `load`, from a mapping."""
        kind = type(config)
        import_named(kind, dict(_dotted(values, set(kind.model_fields))))  # so that the settings of the parts are known
        own = own_sections(kind)
        entries = dict(_dotted(values, {*kind.model_fields, *own}))
        include = entries.pop("include", None)
        if include not in (None, "default"):
            remedy = "write include: default, or leave it out"
            raise ConfigError(f"{source}: include: {include!r} is unknown", remedy=remedy, key="include", value=include)
        marked, settings = marks(kind), config.flat()
        settings |= {f"{name}.{key}": None for name, inner in own.items() for key in inner.model_fields}
        searchable = [*marked, MODALITIES, *(f"{WEIGHTS}.{branch}" for branch in branches)]
        chosen: dict[str, Parameter] = {}
        held: dict[str, Any] = {}
        for name, entry in entries.items():
            if name in fixed:
                continue
            ranged = isinstance(entry, Mapping) and name != WEIGHTS
            if name not in searchable and (ranged or name not in settings):
                what = "is not searchable" if name in settings else f"is unknown{hint(name, [*searchable, *settings])}"
                remedy = f"choose from: {', '.join(searchable)}"
                raise ConfigError(f"{source}: {name} {what}", remedy=remedy, key=name, value=entry)
            if name.startswith(("data.", "structure.")):
                shared = "data" if name.startswith("data.") else "structure table"
                problem = f"{source}: {name} belongs to the {shared}, which all trials share"
                raise ConfigError(problem, remedy=f"write --set {name}=...", key=name, value=entry)
            if not ranged:
                held[name] = entry
            elif name.startswith(f"{WEIGHTS}."):
                drawn = Parameter.parse(name, entry, 0.5, None, source)
                if drawn.choices or not 0 < drawn.low <= drawn.high <= 1:
                    remedy = "give a range within (0, 1]"
                    raise ConfigError(f"{source}: {name} = {drawn.shown} is not within (0, 1]", remedy=remedy, key=name)
                chosen[name] = _weight(config, branches, name, drawn)
            else:
                chosen[name] = Parameter.parse(name, entry, value_of(config, name), marked.get(name), source)
        if any(name.startswith(WEIGHTS) for name in held) and any(name.startswith(WEIGHTS) for name in chosen):
            remedy = "search all of the branches' weights, or none"
            raise ConfigError(f"{source}: {WEIGHTS} is partly held fixed and partly searched", remedy=remedy, key=WEIGHTS)
        base, explicit = config.updated(held, source=source), tuple(chosen)
        if include == "default":
            chosen = {**{parameter.name: parameter for parameter in _usual(base) if parameter.name not in chosen}, **chosen}
        return _assemble(cls, list(chosen.values()), base, branches, [*fixed, *held], held, source, explicit)

    def __call__(self, trial: Any) -> None:
        """Draw a point through `trial.suggest_*`: the define-by-run interface of `OptunaSearch`."""
        self.suggest(trial)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Draw a point, without the parameters whose condition is false.

        Args:
            trial: an object with Optuna's `suggest_int`, `suggest_float` and `suggest_categorical`.
        """
        point: dict[str, Any] = {}
        for parameter in self.parameters:
            if self._active(parameter, point):
                point[parameter.name] = parameter.suggest(trial)
        return point

    def every_point(self, most: int) -> list[dict[str, Any]] | None:
        """All points of a small space; None if there are more, or a continuum of them."""
        points: list[dict[str, Any]] = [{}]
        for parameter in self.parameters:
            longer: list[dict[str, Any]] = []
            for point in points:
                values = parameter.every_value(most) if self._active(parameter, point) else []
                if values is None:
                    return None
                longer += [{**point, parameter.name: value} for value in values] if values else [point]
                if len(longer) > most:
                    return None
            points = longer
        return points

    def default_point(self) -> dict[str, Any]:
        """The point of the base configuration, or the nearest one if the space excludes it: the first trial."""
        return self.near({})

    def near(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The point nearest to some settings, with the base's values for the others."""
        point: dict[str, Any] = {}
        for parameter in self.parameters:
            if self._active(parameter, point):
                given = parameter.name in values
                point[parameter.name] = parameter.clamp(values[parameter.name]) if given else parameter.default
        return point

    def validate_point(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Validate a point, convert its types and drop parameters whose condition is false.

        A point may be incomplete: the sampler draws the parameters that it lacks.

        Raises:
            ConfigError: an unknown name, or a value out of range; names the parameter, the value and the range.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name, value in point.items():
            if name not in known:
                what = "is held fixed in this search" if name in self.base.flat() else f"is unknown{hint(name, known)}"
                remedy = f"searched here: {', '.join(known)}"
                raise ConfigError(f"parameter {name} {what}", remedy=remedy, key=name, value=value)
        clean: dict[str, Any] = {}
        for name, parameter in known.items():
            if name in point:
                value = parameter.check(point[name])
                if self._active(parameter, clean):
                    clean[name] = value
        return clean

    def is_complete(self, point: Mapping[str, Any]) -> bool:
        """Whether a point has a value for every active parameter."""
        return all(parameter.name in point for parameter in self.parameters if self._active(parameter, point))

    def to_config_values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The flat settings of a point: choices decoded, the branches' numbers turned into weights.

        With `u` uniform in (0, 1] for each branch, the normalised weights `-log u` are uniform on the simplex.

        Raises:
            ConfigError: a name that is not searched, or a value out of range.
        """
        clean = self.validate_point(point)
        values = {**self._brought(clean), **{name: self[name].decode(value) for name, value in clean.items()}}
        drawn = {name: values.pop(name) for name in list(values) if name.startswith(f"{WEIGHTS}.")}
        if drawn:
            model, base = self.base.updated(values, source="search point").model, self.base.model
            others = {STRUCTURE, FUSED, *(head.branch for head in base.all_heads)}
            all_views = (*(name for name in self.branches if name not in others), *base.heads_only)
            views = all_views if model.modalities is None else model.modalities
            present = [branch.name for branch in branches_of(model, views)]
            mass = {branch: max(-math.log(drawn.get(f"{WEIGHTS}.{branch}", 0.5)), _MIN_WEIGHT) for branch in present}
            values[WEIGHTS] = {branch: share / sum(mass.values()) for branch, share in mass.items()}
        return values

    def config_for(self, point: Mapping[str, Any]) -> Settings:
        """The complete configuration of a point."""
        return self.base.updated(self.to_config_values(point), source="search point")

    def __getitem__(self, name: str) -> Parameter:
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Dotted names of the parameters, in sampling order."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ranges, conditions and fixed values."""
        content = {"parameters": [parameter.canonical() for parameter in self.parameters], "fixed": dict(self.fixed)}
        return sha256_of([json.dumps(content, sort_keys=True, default=list)])

    def describe(self) -> list[Row]:
        """A row for every parameter that can be searched, whether it is or not."""
        marked, rows = marks(type(self.base)), []
        usual = {name: Parameter.of_mark(name, mark, value_of(self.base, name)) for name, mark in marked.items()}
        weights = [f"{WEIGHTS}.{branch}" for branch in self.branches] if "model.decision" in marked else []
        usual |= {name: _weight(self.base, self.branches, name) for name in weights}
        here = {parameter.name: parameter for parameter in self.parameters}
        brought: dict[str, list[str]] = {}
        for item, choice, name, value in self._all_brought():
            brought.setdefault(name, []).append(f"{value} with {item.name} = {choice}")
        for name, parameter in {**usual, **here}.items():
            by_default = name.startswith(f"{WEIGHTS}.") or (name in marked and marked[name].default)
            condition = " and ".join(f"{key} = {' or '.join(map(str, allowed))}" for key, allowed in parameter.when)
            condition = "; ".join(filter(None, [condition, *brought.get(name, [])]))
            default = parameter.default if name in here or name in weights else label(value_of(self.base, name))
            rows.append(Row(name, parameter.kind, parameter.shown, default, condition, by_default, name in here))
        return rows

    def _active(self, parameter: Parameter, point: Mapping[str, Any]) -> bool:
        known = {**self._brought(point), **point}
        return all((known[name] if name in known else value_of(self.base, name)) in allowed for name, allowed in parameter.when)

    def _all_brought(self) -> Iterator[tuple[Parameter, Any, str, Any]]:
        """Each parameter, its choice, and a setting with the value that it takes with this choice."""
        for parameter in self.parameters:
            for choice, values in parameter.brings:
                yield from ((parameter, choice, name, value) for name, value in values)

    def _brought(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that follow from the choices of a point."""
        return {name: value for item, choice, name, value in self._all_brought() if point.get(item.name) == choice}


def _usual(config: Settings) -> list[Parameter]:
    """The parameters that are searched by default, before conditions are considered."""
    chosen = []
    for name, mark in marks(type(config)).items():
        alignment = name in ("model.contrastive_weight", "model.temperature")
        off = alignment and isinstance(config, Config) and config.model.contrastive_weight == 0
        if mark.default and not off:
            usual = Parameter.of_mark(name, mark, value_of(config, name)).widened(value_of(config, name))
            chosen.append(usual.accepted(config))
    return chosen


def _assemble(
    kind: type[SearchSpace], chosen: list[Parameter], base: Settings, branches: Sequence[str], fixed: Collection[str],
    held: Mapping[str, Any], source: str, explicit: Collection[str] = (),
) -> SearchSpace:
    """Drop parameters that have no effect, add the weights of the branches, sort, and try the corners.

    A dropped parameter is noted only if the space file names it (`explicit`).
    """
    notes = []
    weighed = any(name.startswith(WEIGHTS) for name in fixed)
    candidates = [item for item in chosen if item.name not in fixed and not (weighed and item.name.startswith(WEIGHTS))]
    searched = {item.name for item in candidates}
    candidates = [item.bringing(base, {*fixed, *held, *searched}) for item in candidates]
    choices = {item.name: item.choices for item in candidates}
    for name, value in (pair for item in candidates for _, values in item.brings for pair in values):
        choices[name] = (*choices.get(name, (value_of(base, name),)), value)
    reachable = []
    for item in candidates:
        never = [(name, allowed) for name, allowed in item.when
                 if not set(choices.get(name, (value_of(base, name),))) & set(allowed)]
        if not never:
            reachable.append(item)
        elif item.name in explicit:
            name, allowed = never[0]
            notes.append(f"{item.name} is left out: {name} is never {' or '.join(map(str, allowed))}")
    if len(branches) < 2 and isinstance(base, Config):
        idle = [
            parameter.name for parameter in reachable
            if parameter.name.startswith(_NEEDS_MODALITIES) or any(name == "model.fusion" for name, _ in parameter.when)
        ]
        reachable = [parameter for parameter in reachable if parameter.name not in idle]
        if idle:
            notes.append(f"left out because they have no effect without modalities: {', '.join(idle)}")
    fallback = (base.model.decision,) if isinstance(base, Config) else ()
    decision: Sequence[Any] = next((item.choices for item in reachable if item.name == "model.decision"), fallback)
    if "fixed" in decision and len(branches) > 1 and not weighed:
        named = {item.name for item in reachable}
        missing = (name for branch in branches if (name := f"{WEIGHTS}.{branch}") not in named)
        reachable += [_weight(base, branches, name) for name in missing]
    if not reachable:
        raise ConfigError(f"{source}: nothing is left to search", remedy="fix fewer settings, or use `imf train`")
    for item in reachable:
        value = value_of(base, item.name)
        if not item.name.startswith(WEIGHTS) and label(value) != item.default:
            notes.append(f"{item.name} = {value!r} is outside {item.shown}: the first trial uses {item.default!r}")
    space = kind(ordered(reachable), base, tuple(branches), tuple(held.items()), tuple(notes))
    try_corners(base, [item for item in reachable if not item.name.startswith(WEIGHTS)], source)
    return space


def _weight(config: Settings, branches: Sequence[str], name: str, drawn: Parameter | None = None) -> Parameter:
    """The parameter of a branch's weight; its default reproduces the base's weights."""
    given = (config.model.decision_weights if isinstance(config, Config) else None) or dict.fromkeys(branches, 1.0)
    share = given.get(name.removeprefix(f"{WEIGHTS}."), 0.0) / sum(given.values())
    when = (("model.decision", ("fixed",)),)
    parameter = drawn or Parameter(name, "float", 0.5, low=1e-3, high=1.0)
    return replace(parameter, when=when, default=parameter.clamp(math.exp(-share)))


def _dotted(values: Mapping[str, Any], sections: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries by dotted name: `{train: {lr: {...}}}` is `{train.lr: {...}}`."""
    for name, entry in values.items():
        if f"{prefix}{name}" in sections and isinstance(entry, Mapping):
            yield from _dotted(entry, sections, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry
