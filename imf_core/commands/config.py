"""`imf config`: every setting with its default."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from imf_core.config import Config, preset
from imf_core.config_base import Settings
from imf_core.parts.sections import own_sections


def show_config(
    preset_name: Annotated[str, typer.Option("--preset", metavar="paper|published", help="Built-in settings.")] = "paper",
) -> None:
    """Print every setting with its default, as YAML that --config reads."""
    config = preset(preset_name)
    own = {f"{name}.{key}": value for name, kind in own_sections(Config).items() for key, value in kind().model_dump().items()}
    print_settings(config.updated(own))


def print_settings(config: Settings) -> None:
    """Print settings as YAML, each with its meaning as a comment."""
    for section, values in config.model_dump(mode="json").items():
        kind = type(getattr(config, section))
        print(f"{section}:")
        for name, value in values.items():
            if name in kind.model_fields:
                _print(f"  {name}", value, kind.model_fields[name].description)
                continue
            print(f"  {name}:")  # the settings of a part
            own = kind.settings_class(name)
            for key, inner in value.items():
                _print(f"    {key}", inner, own.model_fields[key].description if own is not None else None)


def _print(name: str, value: Any, note: str | None) -> None:
    print(f"{name}: {json.dumps(value)}" + (f"  # {note}" if note else ""))
