"""Features of a graph's texts and pictures, extracted once and written beside the graph."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from imf_core.config import Config, DataConfig
from imf_core.data.bundled.unicode import BUNDLED
from imf_core.data.features.feature_files import read_features
from imf_core.data.formats.layout import GraphFiles
from imf_core.data.formats.readers import read_graph
from imf_core.encode.registry import AUTO, BITMAP, NGRAMS, NONE, automatic, image_encoder, text_encoder
from imf_core.errors import ConfigError, DataError
from imf_core.files.atomic import atomic_file
from imf_core.files.digest import sha256_of
from imf_core.prepare.entity_files import DESCRIPTIONS, IMAGES
from imf_core.prepare.link_data import resolve
from imf_core.prepare.views import View, image_view, text_view

Say = Callable[[str], None]


def encode_folder(
    data: str, *, text: str, image: str, text_pooling: str, out: Path | None, force: bool, say: Say
) -> dict[str, View]:
    """Arguments, result and errors as of `imf_core.encode`."""
    folder = resolve(data)
    if out is None and not Path(data).is_dir() and data in BUNDLED:
        raise ConfigError(
            f"features in the bundled data set {data} would change it for every search",
            remedy="give --out, or search with --set data.text_encoder=minilm data.image_encoder=efficientnet-lite0", key="out",
        )
    views = (("image", image_view, IMAGES, image != NONE), ("text", text_view, DESCRIPTIONS, text != NONE))
    for name, _, source, wanted in views:
        if wanted and not (folder / source).exists():
            say(f"{name}: there is no {source} in {folder}")
    chosen = [(name, build) for name, build, source, wanted in views if wanted and (folder / source).exists()]
    if not chosen:
        remedy = f"put entity<TAB>text lines into {DESCRIPTIONS}, or pictures named as entities into {IMAGES}/"
        if text == image == NONE:
            remedy = "name an encoder: --text minilm, --image efficientnet-lite0"
        raise DataError(f"nothing to encode in {folder}", remedy=remedy, path=str(folder))
    target = _writable(out if out is not None else folder / "modalities", out is None)
    names = [name for name, _ in chosen]
    config = _config(say, folder, {"text": text, "image": image}, names, text_pooling)
    _check_encoders(config, names)
    graph = read_graph(GraphFiles.of(config, folder))
    say(graph.describe())
    built: dict[str, View] = {}
    for name, build in chosen:
        started = time.monotonic()
        built[name] = view = build(config, folder, graph.entities)
        _tell(say, name, view, graph.num_entities, time.monotonic() - started)
        if view.modality is not None:
            _write(say, target / f"{name}.safetensors", view, graph.entities.names, force)
    return built


def _writable(target: Path, own: bool) -> Path:
    try:
        target.mkdir(parents=True, exist_ok=True)
        probe = target / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        remedy = "give a folder that can be written: --out FOLDER" if own else "give another --out"
        raise DataError(f"{target} cannot be written: {error.strerror}", remedy=remedy, path=str(target)) from error
    return target


def _config(say: Say, folder: Path, asked: dict[str, str], wanted: list[str], pooling: str) -> DataConfig:
    """Settings of the views; prints what `auto` stands for."""
    defaults = automatic()
    values = {"data.path": str(folder), "data.text_pooling": pooling}
    for kind, default, built_in in (("text", defaults[0], NGRAMS), ("image", defaults[1], BITMAP)):
        if asked[kind] == AUTO and kind in wanted:
            why = "installed"
            if default == built_in:
                why = "built in; pip install 'imf-search[demo-encoders]' brings a pretrained one"
            say(f"{kind} encoder: {default} ({why})")
        values[f"data.{kind}_encoder"] = {AUTO: default, NONE: built_in}.get(asked[kind], asked[kind])
    return Config().updated(values, source="imf encode").data


def _check_encoders(config: DataConfig, wanted: list[str]) -> None:
    """Name what is wrong with either encoder before the other one has worked for hours."""
    if "text" in wanted:
        text_encoder(config.text_encoder, pooling=config.text_pooling)
    if "image" in wanted:
        image_encoder(config.image_encoder)


def _tell(say: Say, name: str, view: View, num_entities: int, seconds: float) -> None:
    """Coverage, what was cut, and each file that cannot be read."""
    present = 0 if view.modality is None else int(view.modality.mask.sum())
    line = f"{'images' if name == 'image' else name} {present:,} of {num_entities:,}"
    line += f" ({view.blank:,} empty)" if view.blank else ""
    line += f", {view.unknown:,} unknown id{'s' if view.unknown > 1 else ''}" if view.unknown else ""
    line += f"; {view.modality.width:,} wide, {view.modality.encoder}, {seconds:.1f} s" if view.modality is not None else ""
    say(line)
    done = view.extracted
    if done is not None and name == "text":
        say(f"  truncated {done.truncated:,} of {done.items:,}, blank {done.blank:,} of {done.items:,}")
    if done is not None:
        taken = f" ({done.reused:,} are there from an earlier time)" if done.reused else ""
        say(f"  encoded now: {done.encoded:,} of {done.items:,}{taken}; kept in {done.path.parent}")
    for hint in (*view.hints, *([view.failure.problem] if view.failure is not None else [])):
        say(f"  {hint}")
    for path, reason in view.rejected:
        say(f"  not used: {path}: {reason}")


def _write(say: Say, path: Path, view: View, entities: tuple[str, ...], force: bool) -> None:
    """Write the feature file atomically; the user's own features are replaced only with `--force`."""
    assert view.modality is not None
    matrix = view.modality.matrix
    key = view.extracted.key if view.extracted is not None else sha256_of([matrix.tobytes()])[:32]
    if path.exists():
        facts = _facts(path, force)
        if facts.get("key") == key:
            say(f"  {path} holds them already")
            return
        if "encoder" not in facts and not force:
            raise DataError(
                f"{path} is there and was not written by `imf encode`", remedy="--force replaces it; --out writes elsewhere",
                path=str(path),
            )
    if view.extracted is None:
        view.modality.save(path, entities, {"encoder": view.modality.encoder, "key": key})
    else:
        with atomic_file(path) as scratch:
            shutil.copyfile(view.extracted.path, scratch)
    say(f"  written: {path}")


def _facts(path: Path, force: bool) -> dict[str, str]:
    try:
        return dict(read_features(path).facts)
    except DataError:
        if force:
            return {}
        raise
