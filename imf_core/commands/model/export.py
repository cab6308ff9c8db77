"""`imf export`: the entity vectors of a checkpoint, as a feature file that another graph can use as a modality."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imf_core.commands.outputs import check_safetensors, write_features
from imf_core.commands.terminal import terminal
from imf_core.data.features.feature_files import Features
from imf_core.ensemble.ensemble import open_predictor


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, for example results/<study>/best.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="Tensors `matrix` (N, d) and `names`.")],
    branch: Annotated[str, typer.Option(help="structure, a modality, or fused.")] = "structure",
) -> None:
    """Export entity embeddings. Put into modalities/ of another graph, they are a modality of it.

    Example: imf export results/<study>/best mygraph/modalities/learned.safetensors --branch fused
    """
    check_safetensors(out)
    predictor = open_predictor(checkpoint)
    matrix = predictor.embeddings(branch)
    names = predictor.checkpoint.entities.names
    write_features(out, Features(names, matrix, {"encoder": f"imf {branch}", "checkpoint": str(checkpoint)}))
    terminal().print(f"{len(names):,} entities, {matrix.shape[1]} wide: {out}", soft_wrap=True)
