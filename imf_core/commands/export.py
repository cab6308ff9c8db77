"""`imf export`: the vectors of a checkpoint's entities, as a feature file that any tool of the product reads again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imf_core.commands.terminal import terminal
from imf_core.data.features import Features, save_features
from imf_core.errors import DataError
from imf_core.predict import Predictor


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, for example results/<study>/best.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="Tensors `matrix` (N, d) and `names`.")],
    branch: Annotated[str, typer.Option(help="structure, a modality, or fused.")] = "structure",
) -> None:
    """Export entity embeddings. Put into modalities/ of another graph, they are a modality of it.

    Example: imf export results/demo/best mygraph/modalities/learned.safetensors --branch fused
    """
    if out.suffix != ".safetensors":
        raise DataError.at(out, None, "the output is safetensors", value=out.suffix, remedy="name it OUT.safetensors")
    predictor = Predictor.load(checkpoint)
    matrix = predictor.embeddings(branch)
    names = predictor.checkpoint.entities.names
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_features(out, Features(names, matrix, {"encoder": f"imf {branch}", "checkpoint": str(checkpoint)}))
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}", remedy="choose another place", path=str(out)) from error
    terminal().print(f"{len(names):,} entities, {matrix.shape[1]} wide: {out}", soft_wrap=True)
