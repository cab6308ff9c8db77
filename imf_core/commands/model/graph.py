"""Options that name the graph that a command ranks or trains on."""

from __future__ import annotations

from typing import Annotated

import typer

from imf_core.data.graph.graph import TEST_WORDS

DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Graph folder, or the bundled data set `unicode`; default: as the settings say."),
]
SplitOption = Annotated[str, typer.Option(metavar="valid|test", help=TEST_WORDS)]
