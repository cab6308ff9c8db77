"""The search space: typed, conditional, read from the `Tunable` marks of the configuration's own fields.

A *point* is a flat dict of dotted names to plain values, as Optuna stores it; a *setting* is what `Config.updated` takes. They
differ in two places only: the weights of the branches are sampled one by one and put on the simplex, and a list-valued choice
travels as its JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from imf_core.config import FUSED, STRUCTURE, Config
from imf_core.config_base import Settings
from imf_core.errors import ConfigError
from imf_core.files.digest import sha256_of
from tune.space.parameter import Parameter, hint, label, marks, ordered, try_corners, value_of

WEIGHTS = "model.decision_weights"
MODALITIES = "model.modalities"
_MIN_WEIGHT = 1e-4  # a branch never weighs exactly 0: an entity may have no other one
_NEEDS_MODALITIES = (
    "model.fusion", "model.meta_", "model.cp_rank", "model.dropout_fusion", "model.decision", WEIGHTS, "model.missing",
    MODALITIES, "model.finetune_features", "model.contrastive_weight", "model.temperature", "model.joint_weight",
)


@dataclass(frozen=True)
class Row:
    """One line of `--show-space`."""

    name: str
    kind: str
    range: str
    default: Any
    condition: str
    by_default: bool
    searched: bool


@dataclass(frozen=True)
class SearchSpace:
    """What is searched around a base configuration. Calling it with an Optuna trial draws a point (define-by-run).

    Args:
        parameters: controllers before those that depend on them.
        base: the settings of everything that is not searched.
        branches: the model's branches: structure, each modality, fused.
        fixed: settings that a space file holds at one value, by dotted name; already part of `base`.
        notes: what was left out or adjusted, in words.
    """

    parameters: tuple[Parameter, ...]
    base: Settings
    branches: tuple[str, ...]
    fixed: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def default(cls, config: Settings, branches: Sequence[str], fixed: Collection[str] = ()) -> SearchSpace:
        """The parameters that are searched without being asked for.

        A base value outside its usual range widens the range, so that trial 1 can be the base itself; a choice that the base's
        other settings refuse is left out.

        Args:
            config: the base.
            branches: names of the model's branches.
            fixed: dotted names that the user has set by hand; they are not searched.
        """
        return _assemble(cls, _usual(config), config, branches, fixed, {}, "default space")

    @classmethod
    def load(cls, path: Path | str, config: Settings, branches: Sequence[str], fixed: Collection[str] = ()) -> SearchSpace:
        """Read a space file; it is the whole space, unless it says `include: default`.

        Each entry maps a dotted name to `{low, high, log, step}`, to `{choices: [...]}` or to a plain value (held fixed).

        Raises:
            ConfigError: unknown name, inverted range, or a range that the setting itself refuses.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {error}", remedy="correct the file") from error
        if not isinstance(values, dict):
            remedy = "write `train.lr: {low: 1e-4, high: 1e-2, log: true}`"
            raise ConfigError(f"{path} holds {type(values).__name__}, not ranges", remedy=remedy)
        return cls.from_values(values, config, branches, fixed, source=str(path))

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], config: Settings, branches: Sequence[str], fixed: Collection[str] = (),
        source: str = "space",
    ) -> SearchSpace:
        """As `load`, from values already read."""
        entries = {str(name): entry for name, entry in values.items()}
        include = entries.pop("include", None)
        if include not in (None, "default"):
            remedy = "write include: default, or leave it out"
            raise ConfigError(f"{source}: include: {include!r} is unknown", remedy=remedy, key="include", value=include)
        marked, settings = marks(type(config)), config.flat()
        searchable = [*marked, MODALITIES, *(f"{WEIGHTS}.{branch}" for branch in branches)]
        chosen: dict[str, Parameter] = {}
        held: dict[str, Any] = {}
        for name, entry in entries.items():
            if name in fixed:
                continue
            ranged = isinstance(entry, Mapping) and name != WEIGHTS
            if name not in searchable and (ranged or name not in settings):
                what = "is not searchable" if name in settings else f"is unknown{hint(name, [*searchable, *settings])}"
                remedy = f"searchable: {', '.join(searchable)}"
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
                    remedy = "a weight is drawn from a range within (0, 1]"
                    raise ConfigError(f"{source}: {name} = {drawn.shown} is not within (0, 1]", remedy=remedy, key=name)
                chosen[name] = _weight(config, branches, name, drawn)
            else:
                when = marked[name].when if name in marked else None
                chosen[name] = Parameter.parse(name, entry, value_of(config, name), when, source)
        if any(name.startswith(WEIGHTS) for name in held) and any(name.startswith(WEIGHTS) for name in chosen):
            remedy = "search all of the branches' weights, or none"
            raise ConfigError(f"{source}: {WEIGHTS} is in part held and in part searched", remedy=remedy, key=WEIGHTS)
        base, asked = config.updated(held, source=source), tuple(chosen)
        if include == "default":
            usual = _usual(base)
            chosen = {**{parameter.name: parameter for parameter in usual if parameter.name not in chosen}, **chosen}
        return _assemble(cls, list(chosen.values()), base, branches, [*fixed, *held], held, source, asked)

    def __call__(self, trial: Any) -> None:
        """Define-by-run entry for `OptunaSearch`, which collects what the trial was asked."""
        self.suggest(trial)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Draw a point; a parameter whose condition is false is absent.

        Args:
            trial: anything with Optuna's `suggest_int`, `suggest_float` and `suggest_categorical`.
        """
        point: dict[str, Any] = {}
        for parameter in self.parameters:
            if self._active(parameter, point):
                point[parameter.name] = parameter.suggest(trial)
        return point

    def default_point(self) -> dict[str, Any]:
        """The base configuration as a point (the nearest one where a space file excludes it): the first trial."""
        return self.near({})

    def near(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The point nearest to some settings: moved into the ranges, the rest as in the base."""
        point: dict[str, Any] = {}
        for parameter in self.parameters:
            if self._active(parameter, point):
                wanted = parameter.name in values
                point[parameter.name] = parameter.clamp(values[parameter.name]) if wanted else parameter.default
        return point

    def validate_point(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A clean copy: right types, only parameters whose condition holds. Names left out are drawn by the sampler.

        Raises:
            ConfigError: unknown name or value out of range, with parameter, value and range.
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
        """Whether nothing is left to the sampler."""
        return all(parameter.name in point for parameter in self.parameters if self._active(parameter, point))

    def to_config_values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Flat settings for `Config.updated`: choices decoded, the branches' weights put on the simplex.

        With `u` in (0, 1] for each branch, the weights `-log u`, normalised, are uniform on the simplex where `u` is uniform.

        Raises:
            ConfigError: a name that is not searched, or a value out of range.
        """
        values = {name: self[name].decode(value) for name, value in self.validate_point(point).items()}
        drawn = {name: values.pop(name) for name in list(values) if name.startswith(f"{WEIGHTS}.")}
        if drawn:
            present = self.branches
            if MODALITIES in values:
                views = values[MODALITIES] or ()
                present = (STRUCTURE, *views, FUSED) if views else (STRUCTURE,)
            mass = {branch: max(-math.log(drawn.get(f"{WEIGHTS}.{branch}", 0.5)), _MIN_WEIGHT) for branch in present}
            values[WEIGHTS] = {branch: share / sum(mass.values()) for branch, share in mass.items()}
        return values

    def config_for(self, point: Mapping[str, Any]) -> Settings:
        """The full configuration of a point."""
        return self.base.updated(self.to_config_values(point), source="search point")

    def __getitem__(self, name: str) -> Parameter:
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Dotted names, in the order in which they are drawn."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ranges, conditions and fixed values: equal spaces have equal fingerprints."""
        content = {"parameters": [parameter.canonical() for parameter in self.parameters], "fixed": dict(self.fixed)}
        return sha256_of([json.dumps(content, sort_keys=True, default=list)])

    def describe(self) -> list[Row]:
        """A row for every parameter that can be tuned, searched here or not."""
        marked, rows = marks(type(self.base)), []
        usual = {name: Parameter.of_mark(name, mark, value_of(self.base, name)) for name, mark in marked.items()}
        weights = [f"{WEIGHTS}.{branch}" for branch in self.branches] if "model.decision" in marked else []
        usual |= {name: _weight(self.base, self.branches, name) for name in weights}
        here = {parameter.name: parameter for parameter in self.parameters}
        for name, parameter in {**usual, **here}.items():
            by_default = name.startswith(f"{WEIGHTS}.") or (name in marked and marked[name].default)
            condition = " and ".join(f"{key} = {' or '.join(map(str, allowed))}" for key, allowed in parameter.when)
            default = parameter.default if name in here or name in weights else label(value_of(self.base, name))
            rows.append(Row(name, parameter.kind, parameter.shown, default, condition, by_default, name in here))
        return rows

    def _active(self, parameter: Parameter, point: Mapping[str, Any]) -> bool:
        return all((point[name] if name in point else value_of(self.base, name)) in allowed for name, allowed in parameter.when)


def _usual(config: Settings) -> list[Parameter]:
    """What is searched without being asked for, conditions not yet looked at."""
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
    held: Mapping[str, Any], source: str, asked: Collection[str] = (),
) -> SearchSpace:
    """Drop what has no effect, add the branches' weights, put controllers first, try the corners.

    What was `asked` for by name and is left out is noted; of the usual parameters only those that belong to the base's own
    operators and modes are there, without a word about the others.
    """
    notes = []
    weighed = any(name.startswith(WEIGHTS) for name in fixed)
    taken = [item for item in chosen if item.name not in fixed and not (weighed and item.name.startswith(WEIGHTS))]
    reachable = []
    for item in taken:
        for name, allowed in item.when:
            options: Sequence[Any] = next((other.choices for other in taken if other.name == name), (value_of(base, name),))
            if not set(options) & set(allowed):
                if item.name in asked:
                    notes.append(f"{item.name} is left out: {name} is never {' or '.join(map(str, allowed))}")
                break
        else:
            reachable.append(item)
    if len(branches) < 2 and isinstance(base, Config):
        idle = [parameter.name for parameter in reachable if parameter.name.startswith(_NEEDS_MODALITIES)]
        reachable = [parameter for parameter in reachable if parameter.name not in idle]
        if idle:
            notes.append(f"without modalities these have no effect and are left out: {', '.join(idle)}")
    own = (base.model.decision,) if isinstance(base, Config) else ()
    decision: Sequence[Any] = next((item.choices for item in reachable if item.name == "model.decision"), own)
    if "fixed" in decision and len(branches) > 1 and not weighed:
        named = {item.name for item in reachable}
        missing = (name for branch in branches if (name := f"{WEIGHTS}.{branch}") not in named)
        reachable += [_weight(base, branches, name) for name in missing]
    if not reachable:
        raise ConfigError(f"{source}: nothing is left to search", remedy="fix fewer settings, or use `imf train`")
    for item in reachable:
        value = value_of(base, item.name)
        if not item.name.startswith(WEIGHTS) and label(value) != item.default:
            notes.append(f"{item.name} = {value!r} is outside {item.shown}: the first trial takes {item.default!r}")
    space = kind(ordered(reachable), base, tuple(branches), tuple(held.items()), tuple(notes))
    try_corners(base, [item for item in reachable if not item.name.startswith(WEIGHTS)], source)
    return space


def _weight(config: Settings, branches: Sequence[str], name: str, drawn: Parameter | None = None) -> Parameter:
    """The parameter of one branch's weight; its default reproduces the base's weights."""
    given = (config.model.decision_weights if isinstance(config, Config) else None) or dict.fromkeys(branches, 1.0)
    share = given.get(name.removeprefix(f"{WEIGHTS}."), 0.0) / sum(given.values())
    when = (("model.decision", ("fixed",)),)
    parameter = drawn or Parameter(name, "float", 0.5, low=1e-3, high=1.0)
    return replace(parameter, when=when, default=parameter.clamp(math.exp(-share)))
