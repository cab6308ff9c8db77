"""Where the files of a pretrained model are: a folder, or the hub's cache. Nothing is sought on the network when offline."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imf_core.errors import DataError
from imf_core.files.digest import sha256_of, sha256_of_file

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")


def model_folder(name: str) -> Path:
    """The folder of a `transformers` model: the given one, or the hub's cache, into which it is fetched where that is allowed.

    Raises:
        DataError: there is no such model here and it cannot be fetched, or the folder is incomplete.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _complete(folder)
    if not _REPOSITORY.fullmatch(name) or name.startswith("."):
        raise DataError(
            f"no model folder {name}", path=name,
            remedy="give a folder with config.json and model.safetensors, or the name of a model on the hub",
        )
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def absent(reason: str) -> DataError:
        return DataError(
            f"the model {name} is not in {constants.HF_HUB_CACHE}, {reason}",
            remedy=f"where there is a network: hf download {name}; then run this again, or give a folder with the model",
            value=name, path=constants.HF_HUB_CACHE,
        )

    cached: Path | None = None
    try:
        cached = Path(snapshot_download(name, allow_patterns=list(_WANTED), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        # A snapshot that lacks files of the hub's listing may still have all that is read here.
        snapshot = getattr(error, "snapshot_path", None)
        cached = Path(snapshot) if snapshot is not None else None
        if cached is None and is_offline():
            raise absent("and the offline flag (HF_HUB_OFFLINE) forbids to fetch it") from error
    if cached is not None and (is_offline() or any(cached.glob("*.safetensors"))):
        return _complete(cached)
    try:
        return _complete(Path(snapshot_download(name, allow_patterns=list(_WANTED), etag_timeout=5)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise absent(f"and it cannot be fetched: {reason}") from error


def is_offline() -> bool:
    """Whether the environment forbids to fetch models."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _complete(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise DataError.at(
            folder, None, "no config.json in this model folder", remedy="save the model with model.save_pretrained(FOLDER)"
        )
    if not any(folder.glob("*.safetensors")):
        raise DataError.at(
            folder, None, "no model.safetensors in this model folder (weights in other formats are not loaded)",
            remedy="save the model with model.save_pretrained(FOLDER)",
        )
    return folder


def folder_hash(folder: Path) -> str:
    """SHA-256 over the files of a model that its vectors depend on: weights, configurations, tokeniser."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in {".json", ".txt", ".model", ".safetensors"})
    return sha256_of(f"{path.relative_to(folder).as_posix()}\0{sha256_of_file(path)}\n" for path in paths)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no advice from `transformers` while a model is loaded: what matters is checked and raised here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
