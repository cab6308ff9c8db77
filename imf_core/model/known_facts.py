"""Telling a model's fusion operator the training facts, and which entities a pass computes.

Shapes: `n` entities of a pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from imf_core.config import STRUCTURE
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.model.fusion.base import Fusion
from imf_core.model.fusion.facts import GivenFacts
from imf_core.model.imf import Imf


class _Pass:
    """Remembers the entities of the running pass: whoever computes the features of a modality is asked for them first."""

    def __init__(self) -> None:
        self.nodes: Tensor | None = None

    def __call__(self, module: torch.nn.Module, arguments: tuple[Tensor | None, ...]) -> None:
        self.nodes = arguments[0] if arguments else None

    def current(self) -> Tensor | None:
        """The entities (n,); None: all. A method, so that a deep copy of the model asks its own copy."""
        return self.nodes


def watch_nodes(model: Imf) -> tuple[Callable[[], Tensor | None], torch.utils.hooks.RemovableHandle]:
    """A function that tells which entities the model's running pass computes (see `Imf.tables`), and what ends the watch.

    Args:
        model: with at least one modality.
    """
    running = _Pass()
    first = next(iter(model.features.values()))
    return running.current, first.register_forward_pre_hook(running)


def give_facts(model: Imf, graph: KnowledgeGraph | None) -> Imf:
    """Tell the entities' operator the training facts, if it wants to know them (it overrides `Fusion.know`).

    Args:
        model: newly made, before its weights are loaded: the operator may add parameters.
        graph: its training triples are told; None: they are not known, and nothing is.

    Returns:
        The model.
    """
    operator = getattr(model, "fuse_entities", None)
    if graph is None or not isinstance(operator, Fusion) or type(operator).know is Fusion.know:
        return model
    nodes, _ = watch_nodes(model)
    operator.know(GivenFacts(graph.train, model.num_relations, model.structure, model.relations[STRUCTURE], nodes))
    return model
