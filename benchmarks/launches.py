"""How many operations a GPU would be asked to launch, and how often it would be read from: `python -m benchmarks.launches`.

No GPU is needed: the operations that torch dispatches are counted, on small CPU tensors in the form that a GPU runs. One that
makes a view or only allocates launches nothing. A library may split an operation into several kernels; a captured step launches
them all at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed import Figures, generated
from imf_core.config import Config, published
from imf_core.data.features.modality import Modality
from imf_core.evaluate import ranking
from imf_core.evaluate.ranking import evaluate
from imf_core.model.imf import Imf
from imf_core.model.losses import tiles
from imf_core.model.static.step import StaticStep
from imf_core.runtime import MemoryBudget
from imf_core.train.batches import TrainingQueries
from imf_core.train.fit import build_optimizers
from imf_core.train.step.planning import Planning
from imf_core.train.step.steps import Steps

_FREE = (  # views and allocations
    "view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze", "expand",
    "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "diagonal", "unfold", "chunk",
    "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "is_same_size", "is_pinned",
    "set_data", "resize_", "_local_scalar_dense", "_record_function_enter_new", "_record_function_exit",
)
_READ = {"_local_scalar_dense", "item", "nonzero", "_unique2", "unique_consecutive", "unique_dim", "masked_select", "equal"}
_SMALL = {"model.dim": 32, "model.relation_dim": 32}
ENTITIES, RELATIONS, QUERIES = 3000, 28, 1024


class Launches(TorchDispatchMode):
    """Counts what is dispatched within its block.

    Attributes:
        launched: number of operations that launch something, by name.
        read: number of those that wait for a result on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.read: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count and run an operation."""
        name = func.overloadpacket.__name__
        if name not in _FREE:
            self.launched[name] += 1
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in _READ or by_mask:
            self.read[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Number of launches."""
        return sum(self.launched.values())


def step(config: Config, views: int = 2, gaps: bool = False) -> Launches:
    """Count a static training step, with its update: the third of a training.

    Args:
        config: of model and training.
        views: number of modalities.
        gaps: whether some entities lack each modality.
    """
    config = config.updated(_SMALL)
    graph = generated(ENTITIES, RELATIONS, 21_310, 600)
    torch.manual_seed(0)
    model = Imf(config.model, ENTITIES, RELATIONS, features(views, gaps), config.train.loss).train()
    static = StaticStep(model, config.train)
    steps = Steps(
        static, config.train, build_optimizers(model, config, early=False), torch.device("cpu"), MemoryBudget(2**31),
        planning=Planning(static),
    )
    counted = Launches()
    for batch in islice(TrainingQueries(graph).epoch(QUERIES, 0, 1, together=5), 3):
        counted = Launches()
        with counted:
            steps.run(batch)
    return counted


def features(count: int, gaps: bool = False) -> list[Modality]:
    """Random features of N entities; with gaps every tenth lacks each modality, another tenth each time."""
    rng, ids = np.random.default_rng(0), np.arange(ENTITIES)
    masks = [ids % 10 != number if gaps else ids >= 0 for number in range(count)]
    return [
        Modality(f"view{number}", rng.standard_normal((ENTITIES, 16), dtype=np.float32) * mask[:, None], mask)
        for number, mask in enumerate(masks)
    ]


def ranking_block(config: Config) -> Launches:
    """Count what a further block of 1,024 queries adds to a ranking."""
    config = config.updated(_SMALL)
    graph = generated(ENTITIES, RELATIONS, 21_310, 1024)
    torch.manual_seed(0)
    model = Imf(config.model, ENTITIES, RELATIONS, features(2), config.train.loss).eval()
    known, counts = graph.known(), []
    for size in (512, 1024):
        with as_on_gpu(), Launches() as counted:
            evaluate(model, graph, graph.valid[:size], known, memory=MemoryBudget(2**28))
        counts.append(counted)
    counts[1].launched.subtract(counts[0].launched)
    counts[1].read.subtract(counts[0].read)
    return counts[1]


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """CPU tensors are cut into tiles as large as those of a GPU."""
    with patch.object(tiles, "_TILE", tiles._TILE_GPU), patch.object(ranking, "_ROWS", ranking._ON_GPU):
        yield


def launches() -> Figures:
    """All figures of the report."""
    steps = {
        f"{name}{', gaps' if gaps else ''}": step(config, gaps=gaps)
        for name, config in (("published", published()), ("default", Config())) for gaps in (False, True)
    }
    blocks = {name: ranking_block(config) for name, config in (("published", published()), ("default", Config()))}
    more = {
        name: step(config, views=3).total - steps[name].total
        for name, config in (("published", published()), ("default", Config()))
    }
    return {
        "launches_published": {"value": steps["published"].total, "raw": {"with_gaps": steps["published, gaps"].total}},
        "launches_default": {"value": steps["default"].total, "raw": {"with_gaps": steps["default, gaps"].total}},
        "launches_per_branch": {"value": max(more.values()), "raw": more},
        "launches_ranking_block": {
            "value": max(block.total for block in blocks.values()),
            "raw": {name: block.total for name, block in blocks.items()},
        },
        "readbacks_step": {
            "value": max(sum(part.read.values()) for part in steps.values()),
            "raw": {"ranking_block": max(sum(block.read.values()) for block in blocks.values())},
        },
    }


if __name__ == "__main__":
    print(json.dumps(launches(), indent=1))
    for title, part in (("published", step(published())), ("default", step(Config())), ("block", ranking_block(Config()))):
        print(title, part.launched.most_common(), dict(part.read))
