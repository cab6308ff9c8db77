"""`imf config`: every setting with its default."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from imf_core.config import preset
from imf_core.config_base import Settings


def show_config(
    preset_name: Annotated[str, typer.Option("--preset", metavar="paper|published", help="Built-in settings.")] = "paper",
) -> None:
    """Print every setting with its default, as YAML that --config reads."""
    print_settings(preset(preset_name))


def print_settings(config: Settings) -> None:
    """Print settings as YAML, each with its meaning as a comment."""
    for section, values in config.model_dump(mode="json").items():
        fields = type(getattr(config, section)).model_fields
        print(f"{section}:")
        for name, value in values.items():
            note = fields[name].description
            print(f"  {name}: {json.dumps(value)}" + (f"  # {note}" if note else ""))
