"""The registered model of a data set: a version for each study, and the alias `champion` of the best of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tune.tracking import names as text

CHAMPION = "champion"
SCORE, METRIC, DATA = "validation_mrr", "metric", "data_fingerprint"  # tags of a version; SCORE counts where the others agree
_SHOWN = 12  # characters of a fingerprint in a message


@dataclass(frozen=True)
class Registered:
    """A study's version of a registered model.

    Args:
        version: its number.
        champion: a line on who has the alias `champion` now, and why.
    """

    version: str
    champion: str


def version_of(client: MlflowClient, name: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """The version that an earlier session registered of the same study and winner; None if there is none."""
    versions = client.search_model_versions(f"name = {text.quoted(name)} and run_id = '{run_id}'")
    return next((version for version in versions if tags.items() <= version.tags.items()), None)


def create_model(client: MlflowClient, name: str) -> None:
    """Create a registered model unless it exists; another search may do so at the same moment."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def crown(client: MlflowClient, name: str, version: str) -> str:
    """Give a version the alias `champion` if its validation MRR is above the present champion's.

    The alias does not move where the two cannot be compared: other data, another metric, a version without a figure.

    Returns:
        A line on who has the alias now, and why.
    """
    present = client.get_registered_model(name).aliases.get(CHAMPION)
    new = client.get_model_version(name, version).tags
    head = f"champion of {name}: version"
    if present is None:
        client.set_registered_model_alias(name, CHAMPION, version)
        return f"{head} {version} ({_mrr(new)}), the first"
    if str(present) == version:
        return f"{head} {version} ({_mrr(new)}) stays"
    old = client.get_model_version(name, str(present)).tags
    if problem := _incomparable(old, new):
        return f"{head} {present} stays; version {version} is not compared with it: {problem}"
    if float(new[SCORE]) > float(old[SCORE]):
        client.set_registered_model_alias(name, CHAMPION, version)
        return f"{head} {version} ({_mrr(new)}) replaces version {present} ({_mrr(old)})"
    return f"{head} {present} ({_mrr(old)}) stays; version {version} has {_mrr(new)}"


def _incomparable(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Why two versions must not be compared by their validation MRR; empty where they can be."""
    choose = "give it the alias in MLflow, or choose another --model-name"
    if SCORE not in old or SCORE not in new:
        return f"version without a validation MRR; {choose}"
    if old.get(METRIC) != new.get(METRIC):
        return f"another metric ({old.get(METRIC)}, now {new.get(METRIC)}); {choose}"
    if old.get(DATA) != new.get(DATA):
        return f"other data (fingerprint {str(old.get(DATA))[:_SHOWN]}, now {str(new.get(DATA))[:_SHOWN]}); {choose}"
    return ""


def _mrr(tags: Mapping[str, str]) -> str:
    return f"{float(tags[SCORE]):.4f}" if SCORE in tags else "no validation MRR"
