"""The `imf` command: one line for each subcommand; what they do is in `imf_core/commands`."""

from __future__ import annotations

import sys

import typer

from imf_core.commands.card import card
from imf_core.commands.config import show_config
from imf_core.commands.data.audit import audit_command
from imf_core.commands.data.convert import convert
from imf_core.commands.data.convert_features import convert_features
from imf_core.commands.data.encode import encode
from imf_core.commands.data.split import split
from imf_core.commands.model.compare import compare
from imf_core.commands.model.complete import complete_command
from imf_core.commands.model.ensemble import ensemble
from imf_core.commands.model.evaluate import evaluate_command
from imf_core.commands.model.export import export
from imf_core.commands.model.predict import predict
from imf_core.commands.model.train import train
from imf_core.commands.recommender.answer import recommend
from imf_core.commands.recommender.train import app as recommender
from imf_core.commands.serve.serve import serve
from imf_core.commands.terminal import show_error
from imf_core.errors import ImfError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Multimodal link prediction: train one model, evaluate it, ask it. For a search see tune/search.py.",
)

app.command("train")(train)
app.command("evaluate")(evaluate_command)
app.command("predict")(predict)
app.command("complete")(complete_command)
app.command("compare")(compare)
app.command("ensemble")(ensemble)
app.command("export")(export)
app.command("card")(card)
app.command("serve")(serve)
app.command("audit")(audit_command)
app.command("split")(split)
app.command("encode")(encode)
app.command("convert")(convert)
app.command("convert-features")(convert_features)
app.command("recommend")(recommend)
app.command("config")(show_config)
app.add_typer(recommender, name="recommender")


def main() -> None:
    """Entry point: errors of the user's making are shown without a traceback, exit status 2."""
    try:
        app()
    except ImfError as error:
        sys.exit(show_error(error))


if __name__ == "__main__":
    main()
