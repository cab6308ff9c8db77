"""`imf config`: every setting with its default."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from imf_core.config import Config, preset


def show_config(preset_name: Annotated[str, typer.Option("--preset", help="paper or published.")] = "paper") -> None:
    """Print every setting with its default, as YAML that --config reads."""
    for section, fields in preset(preset_name).model_dump().items():
        known = type(getattr(Config(), section)).model_fields
        print(f"{section}:")
        for name, value in fields.items():
            note = known[name].description
            print(f"  {name}: {json.dumps(value)}" + (f"  # {note}" if note else ""))
