"""`imf push`: put a checkpoint on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imf_core.checkpoint.checkpoint import FACTS_FILE
from imf_core.checkpoint.hub import CARD_FILE, check_name, checkpoint_files, hub_address, upload
from imf_core.commands.terminal import terminal
from imf_core.ensemble.ensemble import is_ensemble, load_ensemble
from imf_core.errors import ConfigError
from imf_core.recommend.checkpoint import INTERACTIONS_FILE
from imf_core.tasks.registry import task_of


def push(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or ensemble, for example results/<study>/best.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the hub; made if it is not there.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be pushed; nothing is sent.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Everyone may read it; default: private.")] = False,
    without_facts: Annotated[
        bool, typer.Option("--without-facts", help="Leave out the training and validation triples; answers then need --data.")
    ] = False,
) -> None:
    """Put a checkpoint or an ensemble on the Hugging Face Hub, with its model card.

    The login is that of Hugging Face: hf auth login, or HF_TOKEN. Only files of the checkpoint are pushed, with README.md if it
    lies there; otherwise the card that `imf card` would write, unless the repository has one. Load it as hf://OWNER/NAME.

    Example: imf push results/<study>/best me/mygraph --dry-run
    """
    check_name(repo)
    files: dict[str, Path | bytes] = {**checkpoint_files(checkpoint)}
    if is_ensemble(checkpoint):
        load_ensemble(checkpoint)
        card = None
    else:
        task = task_of(checkpoint)
        task.open_predictor(checkpoint)  # a damaged checkpoint is refused here, not by those who load it
        card = task.card(checkpoint, f"hf://{repo}")
    if card is not None:
        files.setdefault(CARD_FILE, card.encode())
    if without_facts:
        if INTERACTIONS_FILE in files:
            raise ConfigError("a recommender does not answer without its interactions", remedy="leave out --without-facts")
        files = {name: file for name, file in files.items() if not name.endswith(FACTS_FILE)}
    console = terminal()
    address, seen = f"{hub_address()}/{repo}", "public" if public else "private"
    console.print(f"{'would push' if dry_run else 'pushing'} to {address} ({seen}):", soft_wrap=True)
    for name, file in files.items():
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        console.print(f"  {name:<30} {size:>15,} bytes", soft_wrap=True)
    for line in _notes(files, checkpoint):
        console.print(line, soft_wrap=True)
    if dry_run:
        return
    gone = upload(repo, files, public=public)
    if gone:
        console.print(f"deleted there: {', '.join(gone)}; the history of the repository still has it", soft_wrap=True)
    console.print(f"pushed: {address}; load it as hf://{repo}", soft_wrap=True)


def _notes(files: dict[str, Path | bytes], folder: Path) -> list[str]:
    """What whoever may read the repository learns, and what is missing in it."""
    facts = [name for name in files if name.endswith((FACTS_FILE, INTERACTIONS_FILE))]
    notes = ["the names of all entities and relations, and the path of your data, are in these files"]
    if facts:
        cure = "" if INTERACTIONS_FILE in files else "; --without-facts leaves it out"
        notes.append(f"all that the model was trained and validated on is in {facts[0]}{cure}")
    else:
        notes.append("the known facts are not in it: whoever asks it needs the graph (--data DIR; predictor(data=DIR))")
    others = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name not in files)
    if without := [name for name in others if name != FACTS_FILE]:
        notes.append(f"not pushed, since it is no part of a checkpoint: {', '.join(without)}")
    if isinstance(files.get(CARD_FILE), bytes):
        notes.append(f"{CARD_FILE} is the card that imf card writes; its licence is yours to fill in")
    elif CARD_FILE not in files:
        notes.append(f"no model card: write {folder / CARD_FILE} to have one")
    return notes
