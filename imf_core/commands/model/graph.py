"""The graph that a command ranks or trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imf_core.checkpoint.checkpoint import Checkpoint, check_vocabulary
from imf_core.data.graph.graph import TEST_WORDS, KnowledgeGraph
from imf_core.prepare.link_data import graph_of

DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Graph folder, or the bundled data set `unicode`; default: as the settings say."),
]
SplitOption = Annotated[str, typer.Option(metavar="valid|test", help=TEST_WORDS)]


def graph_for(checkpoint: Checkpoint, data: str | None, folder: Path) -> KnowledgeGraph:
    """Read the graph to rank with a checkpoint.

    Args:
        checkpoint: its entities and relations must be the graph's.
        data: folder of the graph, or a bundled data set; None: the one that the checkpoint was trained on.
        folder: of the checkpoint or ensemble, for the message.

    Raises:
        DataError: the graph cannot be read.
        CheckpointError: the graph has other entities or relations.
    """
    settings = checkpoint.config.data
    graph = graph_of(settings if data is None else settings.elsewhere(data))
    check_vocabulary(checkpoint.description, graph.entities, graph.relations, folder)
    return graph
