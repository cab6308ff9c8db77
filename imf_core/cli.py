"""The `imf` command: one line for each subcommand; what they do is in `imf_core/commands`, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from imf_core.commands.terminal import VersionOption, run_command

# name -> what runs it, in `imf_core.commands`, and the first sentence of its help
COMMANDS = {
    "train": ("model.train:train", "Train one model; the best validation epoch is kept."),
    "evaluate": (
        "model.evaluate:evaluate_command",
        "Filtered ranking of a split: MRR, mean rank, Hits@1/3/10, with all slices.",
    ),
    "predict": (
        "model.predict:predict",
        "Answer (head, relation, ?) or (?, relation, tail) by name; or a file of such questions; or score a file of triples.",
    ),
    "complete": (
        "model.complete:complete_command",
        "Propose the most certain new facts of the whole graph: none is in train or validation.",
    ),
    "compare": (
        "model.compare:compare",
        "Rank the same triples with two checkpoints and test whether the difference in MRR is real.",
    ),
    "ensemble": (
        "model.ensemble:ensemble",
        "Choose from several checkpoints the pool with the best validation MRR, greedily, and keep it as one folder.",
    ),
    "export": ("model.export:export", "Export entity embeddings."),
    "card": (
        "card:card",
        "Write a model card: what the model is, what it was trained on, how it was chosen, its figures and its limits.",
    ),
    "push": ("push:push", "Put a checkpoint or an ensemble on the Hugging Face Hub, with its model card."),
    "serve": (
        "serve.serve:serve",
        "Answer questions by name over HTTP: POST /predict; GET /health, /about, /entities?prefix=, /relations.",
    ),
    "audit": (
        "data.audit:audit_command",
        "Count, compare the splits, find relations that say the same, and rank a baseline without training.",
    ),
    "split": (
        "data.split:split",
        "Split all triples of a graph, whatever files they are in now, into train, validation and test.",
    ),
    "encode": (
        "data.encode:encode",
        "Turn descriptions.tsv and images/ into modalities/text.safetensors and modalities/image.safetensors.",
    ),
    "convert": ("data.convert:convert", "Write a graph as tab-separated names (tsv), OpenKE ids (openke) or N-Triples (nt)."),
    "convert-features": ("data.convert_features:convert_features", "Convert features to safetensors."),
    "recommend": ("recommender.answer:recommend", "Recommend items that a user does not have yet."),
    "config": ("config:show_config", "Print every setting with its default, as YAML that --config reads."),
    "parts": ("parts:show_parts", "List the parts that there are, kind by kind, with where they are from."),
    "recommender": ("recommender.train:app", "MetaMMF recommender: users, items, features of the items."),
}


def load_command(name: str) -> Any:
    """The click command behind a name of `COMMANDS`; its module is imported now."""
    from imf_core.commands.parts import with_parts

    module, attribute = COMMANDS[name][0].split(":")
    target = getattr(import_module(f"imf_core.commands.{module}"), attribute)
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False)
        target.command(name)(function)
    for info in target.registered_commands:
        info.callback = with_parts(info.callback) if info.callback is not None else None
    return get_command(target)


class LazyGroup(TyperGroup):
    """Lists its commands without importing them: PyTorch alone takes seconds."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that is asked for, loaded."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else None, rest


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)
for _name, (_, _text) in COMMANDS.items():
    app.command(_name, help=_text)(lambda: None)  # stands for it in the list


@app.callback()
def imf(version: VersionOption = False) -> None:
    """Multimodal link prediction: train one model, evaluate it, ask it. For a search see tune/search.py."""


def main() -> None:
    """Entry point, see `run_command`."""
    run_command(app)


if __name__ == "__main__":
    main()
