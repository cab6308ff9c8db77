"""Multimodal link prediction in plain PyTorch: graph, modalities, the IMF model, training, ranking, prediction.

    import imf_core as imf

    data = imf.prepare("mygraph")
    model = imf.train(data, {"train.lr": 0.004})
    model.predictor().tails("Berlin", "capitalOf", k=5)
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from imf_core.lazy import export

if TYPE_CHECKING:
    from imf_core.config import Config
    from imf_core.config_base import Section, Tunable
    from imf_core.ensemble.ensemble import Ensemble
    from imf_core.errors import ImfError
    from imf_core.interface.data import audit, encode, prepare, read_graph
    from imf_core.interface.models import Model, evaluate, load, train
    from imf_core.parts.public import (
        encoder,
        fusion,
        image_encoder,
        load_part,
        loss,
        reader,
        regularizer,
        scorer,
        task,
        text_encoder,
    )
    from imf_core.predict import Predictor

try:
    __version__ = version("imf-search")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"

__all__ = [
    "Config", "Ensemble", "ImfError", "Model", "Predictor", "Section", "Tunable", "__version__", "audit", "encode", "encoder",
    "evaluate", "fusion", "image_encoder", "load", "load_part", "loss", "prepare", "read_graph", "reader", "regularizer",
    "scorer", "task", "text_encoder", "train",
]

export(__name__, {
    "Config": "imf_core.config", "Ensemble": "imf_core.ensemble.ensemble", "ImfError": "imf_core.errors",
    "Predictor": "imf_core.predict", **dict.fromkeys(("Section", "Tunable"), "imf_core.config_base"),
    **dict.fromkeys(("audit", "encode", "prepare", "read_graph"), "imf_core.interface.data"),
    **dict.fromkeys((
        "encoder", "fusion", "image_encoder", "load_part", "loss", "reader", "regularizer", "scorer", "task", "text_encoder",
    ), "imf_core.parts.public"),
    **dict.fromkeys(("Model", "evaluate", "load", "train"), "imf_core.interface.models"),
})
