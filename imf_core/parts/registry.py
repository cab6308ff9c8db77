"""The parts that there are, kind by kind: of the product, of installed packages, and registered in this process.

A part of one's own is a class or a function with a name. In a notebook or a module a decorator registers it
(`imf_core.scorer("rotate")`), a package names it in an entry point of the kind's group:

    [project.entry-points."imf_search.scorers"]
    rotate = "rotate_part.scorer:Rotate"

Nothing is imported before a part is asked for by its name.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar

from imf_core.config_base import Section, nearest
from imf_core.errors import ConfigError
from imf_core.files.digest import sha256_of, sha256_of_file

TargetT = TypeVar("TargetT")
PRODUCT = "imf-search"
IN_SESSION = "this session"  # where a part of a notebook or of the interpreter is from
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# What importing someone else's module is known to end with; anything else is shown with its traceback.
_FAULTS = (ImportError, AttributeError, NameError, SyntaxError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Kind:
    """A kind of parts.

    Args:
        title: what messages call one of them.
        group: entry point group in which packages name theirs.
        built_in: the product's own, `module:attribute` by name.
    """

    title: str
    group: str
    built_in: Mapping[str, str]


def _in(module: str, **attributes: str) -> dict[str, str]:
    return {name: f"{module}:{attribute}" for name, attribute in attributes.items()}


_STACKED = "imf_core.model.fusion.joined:StackedFusion"
_TEXTS, _PICTURES = "imf_core.encode.text.pretrained", "imf_core.encode.image.backbones"
KINDS: dict[str, Kind] = {
    "scorer": Kind("scorer", "imf_search.scorers", _in(
        "imf_core.model.scoring", contextual="Contextual", block="BlockTerm", transe="TransE", distmult="DistMult",
        complex="ComplEx", similarity="Similarity",
    )),
    "fusion": Kind("fusion operator", "imf_search.fusion", {
        "tucker": "imf_core.model.fusion.low_rank:TuckerFusion", "meta": _STACKED, "meta_cp": _STACKED, "concat": _STACKED,
        "gated": "imf_core.model.fusion.joined:GatedFusion",
        "multiscale": "imf_core.model.fusion.multiscale:MultiscaleFusion",
        "cross_attention": "imf_core.model.fusion.cross_attention:CrossAttentionFusion",
        "hub": "imf_core.model.fusion.hub:HubFusion", "modular": "imf_core.model.fusion.modular:ModularFusion",
    }),
    "text_encoder": Kind("text encoder", "imf_search.text_encoders", {
        "ngrams": "imf_core.encode.text.ngrams:NgramTextEncoder", "words": "imf_core.encode.text.words:WordsTextEncoder",
        "minilm": f"{_TEXTS}:TransformersTextEncoder",
    }),
    "image_encoder": Kind("image encoder", "imf_search.image_encoders", {
        "bitmap": "imf_core.encode.image.bitmap:BitmapImageEncoder", "efficientnet-lite0": f"{_PICTURES}:Lite0",
        "vgg16": f"{_PICTURES}:Vgg16", "timm": f"{_PICTURES}:Timm",
    }),
    "encoder": Kind("encoder", "imf_search.encoders", {}),
    "regularizer": Kind("regularizer", "imf_search.regularizers", _in(
        "imf_core.model.losses.regularizer", n3="n3", dura="dura", ivr="ivr",
    )),
    "loss": Kind("loss", "imf_search.losses", {
        "ce": "imf_core.model.losses.dense:softmax_loss", "bce": "imf_core.model.losses.dense:binary_loss",
    }),
    "reader": Kind("reader", "imf_search.readers", {
        "names": "imf_core.data.formats.tsv:read_names", "ids": "imf_core.data.formats.openke:read_ids",
        "ntriples": "imf_core.data.formats.ntriples:read_ntriples", "kg": "imf_core.recommend.data.atomic_files:read_kg",
    }),
    "task": Kind("task", "imf_search.tasks", {
        "link": "imf_core.tasks.link:LINK", "recommend": "imf_core.tasks.recommend:RECOMMEND",
    }),
}


@dataclass(frozen=True)
class Part:
    """A part.

    Args:
        kind: one of `KINDS`.
        name: by which settings choose it.
        target: the class, function or object itself; the kind says how it is called.
        settings: class of its own settings; None: it has none.
        description: one line.
        facts: what the kind wants to know beforehand, such as `reads` of a loss.
        package, version: the distribution that brings it; empty for a file or a notebook.
        file: the module's file; empty for a notebook.
        digest: SHA-256 of the file, or of the source where that is known; empty for packages, whose version tells.
    """

    kind: str
    name: str
    target: Any
    settings: type[Section] | None = None
    description: str = ""
    facts: tuple[tuple[str, Any], ...] = ()
    package: str = ""
    version: str = ""
    file: str = ""
    digest: str = ""

    @property
    def own(self) -> bool:
        """Whether it is none of the product's."""
        return self.package != PRODUCT

    @property
    def source(self) -> str:
        """Where it is from: `rotate-part 1.0`, a file, or this session."""
        return f"{self.package} {self.version}".strip() or self.file or IN_SESSION

    @property
    def title(self) -> str:
        """`scorer 'rotate' of rotate-part 1.0`."""
        return f"{KINDS[self.kind].title} {self.name!r} of {self.source}"

    def identity(self) -> dict[str, str]:
        """What a checkpoint and a study keep of it: kind, name, and package and version, or file and digest."""
        named = {"kind": self.kind, "name": self.name}
        if self.package:
            return {**named, "package": self.package, "version": self.version}
        return {**named, **({"file": Path(self.file).name} if self.file else {}), "sha256": self.digest}


_PARTS: dict[tuple[str, str], Part] = {}
_FILES: dict[tuple[str, str], tuple[Part, ...]] = {}  # path and digest of a file that was loaded -> its parts


def register(
    kind: str, name: str, target: Any, settings: type[Section] | None = None, description: str = "", **facts: Any
) -> Part:
    """Make a part known to this process. The cell of a notebook may be run again: the new definition replaces the old one.

    Raises:
        ConfigError: an unusable name, settings of another type, or another part of the kind with that name; both are named.
    """
    title = KINDS[kind].title
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a {title}", remedy="use letters, digits, - and _, a letter first", key="name"
        )
    if settings is not None and not (isinstance(settings, type) and issubclass(settings, Section)):
        raise ConfigError(
            f"the settings of the {title} {name!r} are no class of settings",
            remedy="derive it from imf_core.Section: class RotateSettings(imf_core.Section)", key="settings",
        )
    module = getattr(target, "__module__", None) or type(target).__module__
    place = getattr(sys.modules.get(module), "__file__", None) or ""
    part = Part(
        kind, name, target, settings, description or _first_line(target), tuple(facts.items()), file=place,
        digest=_digest(target, place),
    )
    entry = _entry(kind, name)
    if entry is not None and _same_package(entry.module, module):
        part = _packaged(part, entry)
    there = _PARTS.get((kind, name))
    again = there is not None and (there.target is target or _same(there, part))
    if name in KINDS[kind].built_in:
        raise _clash(part, f"one of {PRODUCT}")
    if there is not None and not again:
        raise _clash(part, f"one of {there.source}")
    if entry is not None and not part.package:
        raise _clash(part, f"one of {_packaged(part, entry).source}, which is installed")
    _PARTS[kind, name] = part
    return part


def find(kind: str, name: str) -> Part | None:
    """The part of a name, imported if it was not yet; None if there is none.

    Raises:
        ConfigError: it cannot be imported, or two packages have one of that name.
    """
    if (kind, name) in _PARTS:
        return _PARTS[kind, name]
    if name in KINDS[kind].built_in:
        module, _, attribute = KINDS[kind].built_in[name].partition(":")
        target = getattr(import_module(module), attribute)
        _PARTS[kind, name] = Part(kind, name, target, None, _first_line(target), package=PRODUCT)
    elif (entry := _entry(kind, name)) is not None:
        target = _guarded(entry.load, f"the {KINDS[kind].title} {name!r} of {_dist(entry)}")
        if (kind, name) not in _PARTS:  # importing it may have called `register`
            _PARTS[kind, name] = _packaged(register(kind, name, target), entry)
    return _PARTS.get((kind, name))


def named(kind: str, name: str) -> Part:
    """The part of a name.

    Raises:
        ConfigError: there is none; the message lists those that there are.
    """
    part = find(kind, name)
    if part is None:
        raise ConfigError(unknown(kind, name), remedy=f"choose one of: {', '.join(names(kind))}", key=kind, value=name)
    return part


def unknown(kind: str, name: str, also: Iterable[str] = ()) -> str:
    """What there is to say of a name that no part of the kind has."""
    return f"there is no {KINDS[kind].title} {name!r}{nearest(name, [*also, *names(kind)])}"


def known(kind: str, name: str) -> bool:
    """Whether there is a part of that name; nothing is imported."""
    return (kind, name) in _PARTS or name in KINDS[kind].built_in or _entry(kind, name) is not None


def names(kind: str) -> list[str]:
    """Names of all parts of a kind, the product's first; nothing is imported."""
    own = {name for its_kind, name in _PARTS if its_kind == kind} | {entry.name for entry in _entries(kind)}
    return [*KINDS[kind].built_in, *sorted(own - KINDS[kind].built_in.keys())]


def own_loaded(kind: str) -> list[Part]:
    """The parts of a kind that are in memory and none of the product's, by name."""
    return [part for (its_kind, _), part in sorted(_PARTS.items()) if its_kind == kind and part.own]


def every(kind: str) -> list[tuple[str, Part | ConfigError]]:
    """All parts of a kind by name, imported now; one that cannot be is an error in its place."""
    found: list[tuple[str, Part | ConfigError]] = []
    for name in names(kind):
        try:
            found.append((name, named(kind, name)))
        except ConfigError as error:
            found.append((name, error))
    return found


def load_file(path: Path | str) -> tuple[Part, ...]:
    """Import a Python file whose decorators register parts.

    Args:
        path: the file; the same one is imported once.

    Raises:
        ConfigError: it cannot be imported, or registers nothing.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file() or file.suffix != ".py":
        raise ConfigError(f"{path} is no Python file", remedy="give the file that registers the part", key="part", value=path)
    digest = sha256_of_file(file)
    if (str(file), digest) in _FILES:
        return _FILES[str(file), digest]
    name = f"imf_part_{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}_{sha256_of([str(file), digest])[:8]}"
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    loader, parts = spec.loader, tuple[Part, ...]()
    try:
        _guarded(lambda: loader.exec_module(module), str(file))
        parts = tuple(part for part in _PARTS.values() if part.file == str(file))
    finally:
        if not parts:
            del sys.modules[name]
    if not parts:
        raise ConfigError(
            f"{file} registers no part", remedy='decorate it, for example @imf_core.scorer("rotate")', key="part", value=path
        )
    _FILES[str(file), digest] = parts
    return parts


def carried() -> tuple[Part, ...]:
    """The parts that other processes cannot import: registered by a notebook or a file, by no installed package."""
    return tuple(part for part in _PARTS.values() if part.own and not part.package)


def install(parts: Iterable[Part]) -> None:
    """Make parts that another process sent known to this one."""
    _PARTS.update({(part.kind, part.name): part for part in parts})


@contextmanager
def scope() -> Iterator[None]:
    """Parts that are registered inside are forgotten afterwards: for tests."""
    parts, files = dict(_PARTS), dict(_FILES)
    try:
        yield
    finally:
        for now, before in ((_PARTS, parts), (_FILES, files)):
            now.clear()
            now.update(before)  # type: ignore[arg-type]


def _digest(target: Any, file: str) -> str:
    try:
        return sha256_of_file(Path(file)) if file else sha256_of([inspect.getsource(target)])
    except (OSError, TypeError):  # typed where no source is kept
        return ""


def _clash(part: Part, other: str) -> ConfigError:
    title = KINDS[part.kind].title
    return ConfigError(
        f"there are two {title}s {part.name!r}: one of {part.source}, {other}", remedy="give yours another name", key=part.kind,
        value=part.name,
    )


def _same(one: Part, other: Part) -> bool:
    """Whether two are the same part: of one cell that is run again, or of one file, there or copied."""
    qualified = [getattr(part.target, "__qualname__", type(part.target).__qualname__) for part in (one, other)]
    copied = bool(one.file) and one.identity() == other.identity()
    return qualified[0] == qualified[1] and (one.source == other.source or copied)


def _same_package(one: str, other: str) -> bool:
    return one.partition(".")[0] == other.partition(".")[0]


def _packaged(part: Part, entry: EntryPoint) -> Part:
    return replace(part, package=_dist(entry), digest="", version=entry.dist.version if entry.dist is not None else "")


def _dist(entry: EntryPoint) -> str:
    return str(entry.dist.name) if entry.dist is not None else entry.module


def _first_line(target: Any) -> str:
    doc = inspect.getdoc(target) or ""
    return " ".join(doc.partition("\n\n")[0].split())


def _entry(kind: str, name: str) -> EntryPoint | None:
    """The entry point of a name.

    Raises:
        ConfigError: two packages have one.
    """
    found = {(_dist(entry), entry.value): entry for entry in _entries(kind) if entry.name == name}
    if len(found) > 1:
        both = " and ".join(package for package, _ in found)
        raise ConfigError(
            f"there are two {KINDS[kind].title}s {name!r}: of {both}", remedy="uninstall one of them", key=kind, value=name
        )
    return next(iter(found.values()), None)


def _entries(kind: str) -> tuple[EntryPoint, ...]:
    """Entry points of a kind, those of the product apart."""
    return _installed(KINDS[kind].group, tuple((entry, _changed(entry)) for entry in sys.path))


def _changed(folder: str) -> int:
    """When something was installed into a folder last; 0 if there is no such folder."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _installed(group: str, path: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _guarded(action: Callable[[], TargetT], what: str) -> TargetT:
    """Import something that the product does not know.

    Raises:
        ConfigError: it fails in one of the usual ways.
    """
    try:
        return action()
    except _FAULTS as error:
        remedy = "see its traceback: import it in Python; or uninstall it"
        raise ConfigError(f"{what} cannot be imported: {type(error).__name__}: {error}", remedy=remedy, key="part") from error
