"""`imf encode`: features of a graph's texts and pictures, extracted once and written beside the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imf_core.commands.terminal import terminal
from imf_core.encode.registry import AUTO
from imf_core.interface.data import encode as encode_features


def encode(
    data: Annotated[str, typer.Argument(metavar="DIR", help="Graph folder, or the bundled data set `unicode` with --out.")],
    text: Annotated[str, typer.Option(help="auto, none, ngrams, minilm, or a transformers model: folder or hub name.")] = AUTO,
    image: Annotated[
        str,
        typer.Option(help="auto, none, bitmap, efficientnet-lite0, vgg16[:FILE], timm:NAME[:FILE], or a transformers model."),
    ] = AUTO,
    text_pooling: Annotated[
        str, typer.Option(metavar="auto|mean|cls|pooler", help="How a text model's tokens become one vector.")
    ] = AUTO,
    out: Annotated[Path | None, typer.Option(help="Folder for the feature files; default: DIR/modalities.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with status 1 where a picture cannot be read.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace feature files that no encoder of ours wrote.")] = False,
) -> None:
    """Turn descriptions.tsv and images/ into modalities/text.safetensors and modalities/image.safetensors.

    Training uses these files where they are. What was extracted is kept by content: a second run is free, a killed one goes on.

    Example: imf encode mygraph --text minilm --image efficientnet-lite0
    """
    console = terminal()
    views = encode_features(
        data, text=text, image=image, text_pooling=text_pooling, out=out, force=force,
        say=lambda line: console.print(line, soft_wrap=True),
    )
    if strict and any(view.rejected for view in views.values()):
        raise typer.Exit(1)
