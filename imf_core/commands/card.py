"""`imf card`: write the model card of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imf_core.card.card import model_card, read_study
from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.checkpoint.hub import CARD_FILE, on_hub
from imf_core.commands.outputs import new_file
from imf_core.commands.terminal import terminal
from imf_core.errors import ConfigError


def card(
    checkpoint: Annotated[Path, typer.Argument(metavar="FOLDER", help="Checkpoint folder, for example results/<study>/best.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write, - prints; default: FOLDER/README.md.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
) -> None:
    """Write a model card: what the model is, what it was trained on, how it was chosen, its figures and its limits.

    Markdown with the front matter of Hugging Face's model cards. A figure that the files do not hold is said to be unknown.

    Example: imf card results/<study>/best
    """
    if out is None and on_hub(checkpoint):
        raise ConfigError(f"{checkpoint} is on the hub: no card is written there", remedy="say where it goes: --out", key="out")
    target = out if out is not None else checkpoint / CARD_FILE
    loaded = load_checkpoint(checkpoint)
    if str(target) == "-":
        print(model_card(loaded, read_study(checkpoint)), end="")
        return
    if target.exists() and not force:
        raise ConfigError(f"{target} is there already", remedy="--force replaces it; --out writes elsewhere", key="out")
    text = model_card(loaded, read_study(checkpoint))
    with new_file(target) as scratch:
        scratch.write_text(text, encoding="utf-8")
    terminal().print(f"model card: {target}; the licence is yours to fill in", soft_wrap=True)
