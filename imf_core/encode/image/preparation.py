"""From a picture to the input of an image model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imf_core.errors import DataError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_CUT_BELOW = 384  # pixels; larger inputs of the models that say `crop_pct` are resized whole
_ASPECT = 4  # a longer picture is cut before it is resized: a strip of one pixel's height would become huge


@dataclass(frozen=True)
class Preparation:
    """From a picture to the input of a model, as at its training: resize, cut out the middle, normalise.

    Args:
        shorter: the shorter side is resized to this; smaller pictures are enlarged.
        size: height and width of the middle that is cut out.
        mean, std: of each channel, for values 0..1.
        resample: Pillow's filter.
        whole: resize to `size` whatever the proportions, instead.
    """

    shorter: int = 256
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    resample: int = Image.Resampling.BILINEAR
    whole: bool = False

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """(3, height, width) float32 of an RGB picture."""
        high, wide = self.size
        filter_ = Image.Resampling(self.resample)
        if self.whole:
            picture = picture.resize((wide, high), filter_)
        else:
            bound = _ASPECT * min(picture.size)
            picture = _middle(picture, min(picture.width, bound), min(picture.height, bound))
            short = min(picture.size)
            across, down = (max(1, int(self.shorter * side / short)) for side in picture.size)
            picture = _middle(picture.resize((across, down), filter_), wide, high)
        pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        return np.asarray((pixels - mean) / std, dtype=np.float32).transpose(2, 0, 1)


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    if picture.size == (width, height):
        return picture
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def read_preparation(folder: Path) -> Preparation:
    """How a `transformers` model wants its pictures, from its `preprocessor_config.json`.

    Read here, and not by the library's own class, since the latter needs torchvision for many models.

    Raises:
        DataError: the file is missing, damaged, or says what is not known here.
    """
    path = folder / "preprocessor_config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        size, cut, share = settings.get("size", 224), settings.get("crop_size"), settings.get("crop_pct")
        shorter = _shorter(size)
        if share is not None and shorter < _CUT_BELOW:  # ConvNeXt's way to say it: the middle `crop_pct` of the picture
            cut, shorter = size, int(shorter / float(share))
        whole = cut is None or not (settings.get("do_center_crop") or share is not None)
        target = _pair(size if whole else cut)
        normal = settings.get("do_normalize", True)
        mean = _channels(settings.get("image_mean") if normal else None, 0.0)
        std = _channels(settings.get("image_std") if normal else None, 1.0)
        return Preparation(shorter, target, mean, std, int(settings.get("resample", 2)), whole)
    except FileNotFoundError as error:
        raise DataError.at(
            folder, None, "no preprocessor_config.json in this model folder: it may be no image model",
            remedy="save it with processor.save_pretrained(FOLDER), or choose an image model",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError.at(path, None, f"not understood: {error!r}", remedy="choose another model") from error


def _shorter(size: Any) -> int:
    if isinstance(size, dict):
        return int(size["shortest_edge"] if "shortest_edge" in size else min(size["height"], size["width"]))
    return int(size)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict) and "height" in size:
        return int(size["height"]), int(size["width"])
    return _shorter(size), _shorter(size)


def _channels(values: Any, default: float) -> tuple[float, ...]:
    channels = tuple(float(value) for value in values) if values is not None else (default,) * 3
    if len(channels) != 3:
        raise ValueError(f"{len(channels)} channels")
    return channels
