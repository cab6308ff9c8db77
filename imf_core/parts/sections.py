"""Settings that choose parts by name, and the settings that a part of one's own brings.

A section that chooses parts holds the settings of each chosen one under the part's name: with `model.scoring: rotate` there is
`model.rotate.margin`. They are typed, bounded and searched as all others are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, TypeVar, get_args

from pydantic import ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from imf_core.config_base import Section, Settings, Tunable
from imf_core.parts import registry
from imf_core.parts.registry import KINDS, Part

SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True)
class PartName:
    """Mark of a setting that names a part: other names are refused.

    Args:
        kind: of the part.
        also: accepted besides the names of parts.
        open: accept any name, such as that of a pretrained model; a part goes before it.
    """

    kind: str
    also: tuple[str, ...] = ()
    open: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def check(self, name: str) -> str:
        """The name itself.

        Raises:
            ValueError: no part has it.
        """
        if not (self.open or name in self.also or registry.known(self.kind, name)):
            listed = ", ".join([*self.also, *registry.names(self.kind)])
            raise ValueError(f"{registry.unknown(self.kind, name, self.also)}; there are: {listed}")
        return name

    def own(self, name: str) -> Part | None:
        """The part of that name if it is none of the product's, imported now."""
        if name in self.also or name in KINDS[self.kind].built_in:
            return None
        return registry.find(self.kind, name)


class PartSection(Section):
    """A section some of whose settings choose parts; see above."""

    model_config = ConfigDict(extra="allow")

    @classmethod
    def settings_class(cls, name: str) -> type[Section] | None:
        """As `Section.settings_class`: the settings of a part that this section can choose."""
        part = cls.part_with_settings(name)
        return part.settings if part is not None else None

    @classmethod
    def part_with_settings(cls, name: str) -> Part | None:
        """The part of one's own with settings that a section holds under this name; None if there is none."""
        for mark in marks_of(cls).values():
            part = mark.own(name)
            if part is not None and part.settings is not None:
                return part
        return None

    def settings_of(self, name: str) -> Any:
        """The settings of a part, whether it is chosen or not; its defaults where nothing else was said."""
        there = (self.__pydantic_extra__ or {}).get(name)
        kind = self.settings_class(name) if there is None else None
        return kind() if kind is not None else there

    def in_use(self) -> Self:
        """This section without the settings of parts that are not chosen."""
        chosen = {part.name for part in own_parts(self)}
        copy = self.model_copy()
        kept = {name: value for name, value in (self.__pydantic_extra__ or {}).items() if name in chosen}
        object.__setattr__(copy, "__pydantic_extra__", kept)
        return copy

    @model_validator(mode="after")
    def _settings_of_parts(self) -> Self:
        """Check the settings of parts, and add those of the chosen ones."""
        own: dict[str, Any] = {}
        for name, value in (self.__pydantic_extra__ or {}).items():
            kind = self.settings_class(name)
            if kind is None:
                raise ValueError(f"unknown setting {name}")
            own[name] = kind.model_validate(value.model_dump() if isinstance(value, Section) else value)
        for part in own_parts(self):
            if part.settings is not None:
                if part.name in type(self).model_fields:
                    raise ValueError(f"{part.name} is the name of a setting: a part with settings needs another one")
                if self.settings_class(part.name) is not part.settings:
                    raise ValueError(f"two parts are called {part.name} and have settings: give one of them another name")
                own.setdefault(part.name, part.settings())
        object.__setattr__(self, "__pydantic_extra__", own)
        for part in own_parts(self):
            check = getattr(part.target, "check_settings", None)
            if check is not None:
                check(*self.arguments(part))
        return self

    def arguments(self, part: Part) -> tuple[Any, ...]:
        """What a part that is made from settings is called with: this section, then its own settings if it has any."""
        return (self,) if part.settings is None else (self, self.settings_of(part.name))


@lru_cache(maxsize=64)
def marks_of(kind: type[Section]) -> dict[str, PartName]:
    """The settings of a section that choose parts, by name, those in lists of sections too (`heads.scoring`)."""
    found: dict[str, PartName] = {}
    for name, field in kind.model_fields.items():
        inside = get_args(field.annotation)  # of a tuple
        metadata = [*field.metadata, *(mark for inner in inside for mark in getattr(inner, "__metadata__", ()))]
        found.update((name, mark) for mark in metadata if isinstance(mark, PartName))
        for inner in inside:
            if isinstance(inner, type) and issubclass(inner, Section):
                found.update((f"{name}.{key}", mark) for key, mark in marks_of(inner).items())
    return found


def own_parts(section: Section) -> Iterator[Part]:
    """The parts of one's own that a section chooses, each once."""
    done = set()
    for name, mark in marks_of(type(section)).items():
        field, _, inner = name.partition(".")
        value = getattr(section, field)
        chosen = [getattr(item, inner) for item in value] if inner else value if isinstance(value, tuple) else [value]
        for one in chosen:
            part = mark.own(one) if isinstance(one, str) else None
            if part is not None and (part.kind, part.name) not in done:
                done.add((part.kind, part.name))
                yield part


def sections_of(settings: Settings) -> dict[str, PartSection]:
    """The sections that choose parts, by name."""
    every = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {name: section for name, section in every.items() if isinstance(section, PartSection)}


def own_parts_of(settings: Settings) -> list[Part]:
    """The parts of one's own that a configuration chooses."""
    return [part for section in sections_of(settings).values() for part in own_parts(section)]


def mentioned_parts(settings: Settings) -> list[Part]:
    """Those of `own_parts_of`, and those whose settings a configuration holds although it does not choose them."""
    held = [
        part for section in sections_of(settings).values() for name in section.__pydantic_extra__ or {}
        if (part := section.part_with_settings(name)) is not None
    ]
    return [*own_parts_of(settings), *held]


def in_use(settings: SettingsT) -> SettingsT:
    """A configuration without the settings of parts that it does not choose."""
    return settings.model_copy(update={name: section.in_use() for name, section in sections_of(settings).items()})


def own_marks(kind: type[Settings]) -> dict[str, Tunable]:
    """The search ranges that parts of one's own bring, by dotted name: `model.rotate.margin`. Of the parts in memory.

    Each holds only where its part is chosen; conditions of a part on its own settings name them alone (`{"kind": ("x",)}`).
    """
    found: dict[str, Tunable] = {}
    for section, marks in choosers(kind).items():
        for chooser, mark in marks.items() if section != "data" else ():  # the data is the same for all trials
            for part in registry.own_loaded(mark.kind) if "." not in chooser else ():
                own = _marks_of_part(section, f"{section}.{chooser}", part)
                found |= {name: mark for name, mark in own.items() if name not in found}  # of the first that can choose it
    return found


def _marks_of_part(section: str, chooser: str, part: Part) -> dict[str, Tunable]:
    prefix = f"{section}.{part.name}"
    return {
        f"{prefix}.{name}": Tunable(**{
            **vars(mark), "when": {chooser: (part.name,), **_qualified(mark.when or {}, prefix)},
        })
        for name, field in (part.settings.model_fields.items() if part.settings is not None else ())
        for mark in field.metadata if isinstance(mark, Tunable)
    }


def _qualified(when: Mapping[str, tuple[Any, ...]], prefix: str) -> dict[str, tuple[Any, ...]]:
    return {name if "." in name else f"{prefix}.{name}": allowed for name, allowed in when.items()}


def own_names(kind: type[Settings], setting: str) -> tuple[str, ...]:
    """Names of the parts of one's own in memory that a setting, by its dotted name, can choose."""
    section, _, name = setting.partition(".")
    mark = choosers(kind)[section][name]
    return tuple(part.name for part in registry.own_loaded(mark.kind))


def choosers(kind: type[Settings]) -> dict[str, dict[str, PartName]]:
    """The settings that choose parts, by section and name."""
    annotations = {section: field.annotation for section, field in kind.model_fields.items()}
    return {
        section: marks_of(annotation) for section, annotation in annotations.items()
        if isinstance(annotation, type) and issubclass(annotation, PartSection)
    }


def import_named(kind: type[Settings], values: Mapping[str, Any]) -> None:
    """Import the parts that values by dotted name speak of, so that their settings are known: choices and values of settings
    that choose parts, and settings of parts.
    """
    for name, value in values.items():
        section, _, rest = name.partition(".")
        for field, mark in choosers(kind).get(section, {}).items():
            named = value.get("choices") if isinstance(value, Mapping) else value
            for one in named if isinstance(named, list | tuple) else [named]:
                if rest == field and isinstance(one, str):
                    mark.own(one)
            mark.own(rest.partition(".")[0])


def own_sections(kind: type[Settings]) -> dict[str, type[Section]]:
    """The settings of parts of one's own in memory, by the dotted name under which a configuration holds them."""
    return {
        f"{section}.{part.name}": part.settings
        for section, marks in choosers(kind).items() for mark in marks.values() for part in registry.own_loaded(mark.kind)
        if part.settings is not None
    }
