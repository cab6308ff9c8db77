"""Multimodal link prediction in plain PyTorch: graph, modalities, the IMF model, training, ranking, prediction."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("imf-search")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
