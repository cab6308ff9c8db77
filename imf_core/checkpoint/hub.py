"""Checkpoints on the Hugging Face Hub: read as `hf://OWNER/NAME`, and put there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import imf_core
from imf_core.encode.hub import is_offline
from imf_core.errors import CheckpointError, ConfigError, ImfError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Nothing else leaves the machine or is fetched: a checkpoint may lie among files of the user's.
FILES = (
    "config.json", "vocabulary.json", "model.safetensors", "facts.safetensors", "interactions.safetensors", "ensemble.json",
)
CARD_FILE = "README.md"
_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(rf"hf:/{{1,2}}(?P<repo>{_NAME})(@(?P<revision>.+))?")
_LOGIN = "hf auth login, or set HF_TOKEN"


def on_hub(path: Path | str) -> bool:
    """Whether this is an address on the hub; `Path` leaves one of the two slashes of `hf://`."""
    return str(path).startswith("hf:/")


def local_folder(path: Path | str) -> Path:
    """The folder of a checkpoint: the given one, or the hub's cache, into which it is fetched.

    Args:
        path: a folder, `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`. The hub is asked each time whether it has something
            newer; where it cannot be reached, what was fetched before is used.

    Raises:
        CheckpointError: the address is none, or there is no such model that may be read, here or on the hub.
    """
    if not on_hub(path):
        return Path(path)
    address = _ADDRESS.fullmatch(str(path))
    if address is None:
        problem, remedy = f"{path} names no model on the hub", "write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION"
        raise CheckpointError(problem, remedy=remedy, value=str(path))
    wanted = [*FILES, *(f"members/*/{name}" for name in FILES)]
    with _refusals(CheckpointError, address["repo"], "read"):
        return Path(_hub().snapshot_download(address["repo"], revision=address["revision"], allow_patterns=wanted))


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint or an ensemble, and its card if it lies there, by their names in the folder."""
    files = [folder / name for name in (*FILES, CARD_FILE)]
    files += [file for name in FILES for file in sorted(folder.glob(f"members/*/{name}"))]
    return {file.relative_to(folder).as_posix(): file for file in files if file.is_file()}


def check_name(repo: str) -> None:
    """Refuse a name that no model on the hub can have.

    Raises:
        ConfigError: it is not OWNER/NAME.
    """
    if not re.fullmatch(_NAME, repo) or len(repo) > 96 or ".." in repo or "--" in repo or repo.endswith((".", "-", ".git")):
        remedy = "write OWNER/NAME: your account or an organisation of yours, then letters, digits, - _ . and no -- or .."
        raise ConfigError(f"{repo!r} is no name of a model on the hub", remedy=remedy, key="repo", value=repo)


def hub_address() -> str:
    """The hub that is asked: HF_ENDPOINT, or Hugging Face's own."""
    return _hub().endpoint


def upload(repo: str, files: Mapping[str, Path | bytes], *, public: bool = False) -> tuple[str, ...]:
    """Put files into a repository of models on the hub, as one commit. A new one is made, private or public.

    Files of a checkpoint that the repository has and `files` lacks are deleted; a card that it has is replaced only by a file.

    Args:
        repo: OWNER/NAME.
        files: by their names in the repository; bytes are a card made for this.
        public: whether everyone may read it; without it, a repository that is public already is refused.

    Returns:
        Names of the files that were deleted.

    Raises:
        ConfigError: no token, the hub refuses it, or cannot be reached; the repository is public.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_name(repo)
    hub = _hub()
    with _refusals(ConfigError, repo, "write"):
        if get_token() is None:
            raise ConfigError("there is no login of Hugging Face on this machine", remedy=_LOGIN, key="token")
        there: set[str] = set()
        try:
            info = hub.model_info(repo)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
            hub.create_repo(repo, private=not public)
        else:
            if not info.private and not public:
                problem = f"{repo} is public: everyone could read what is pushed"
                raise ConfigError(problem, remedy="allow it with --public, or name another repository", key="repo", value=repo)
            there = {file.rfilename for file in info.siblings or ()}
        added = {name: file for name, file in files.items() if not (isinstance(file, bytes) and name in there)}
        gone = sorted(name for name in there - files.keys() if re.sub(r"^members/\d+/", "", name) in FILES)
        changes = [CommitOperationAdd(name, file) for name, file in added.items()]
        message = f"imf-search {imf_core.__version__}"
        hub.create_commit(repo, [*changes, *map(CommitOperationDelete, gone)], commit_message=message)
    return tuple(gone)


def _hub() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(os.environ.get("HF_ENDPOINT"), library_name="imf-search", library_version=imf_core.__version__)


@contextmanager
def _refusals(kind: type[ImfError], repo: str, action: str) -> Iterator[None]:
    """Turn what the hub, or the way to it, refuses into an error of ours.

    Args:
        kind: of the error.
        repo: OWNER/NAME.
        action: `read` or `write`.
    """
    from huggingface_hub.errors import HTTPError  # of the HTTP library in use, which differs between its versions

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        problem, remedy = _refusal(error, repo, action)
        raise kind(problem, remedy=remedy, value=repo) from error


def _refusal(error: Exception, repo: str, action: str) -> tuple[str, str]:
    """What went wrong, and what to do about it."""
    from huggingface_hub.errors import RevisionNotFoundError

    if isinstance(error, ValueError):  # a name or a card that the library refuses
        remedy = f"correct the front matter of the folder's {CARD_FILE}" if action == "write" else "look at the name"
        return f"{repo}: {' '.join(str(error).split())}", remedy
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such branch, tag or commit", "look at what stands behind the @, or leave it out"
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()] or [type(error).__name__]
    if is_offline():
        copy = f", and there is no copy of {repo} here" if action == "read" else ""
        return f"the hub is not asked: HF_HUB_OFFLINE is set{copy}", "unset HF_HUB_OFFLINE"
    if response is None and isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or repo}: {error.strerror}", "look at the disk and at who may use these files"
    if response is None:
        remedy = "look at the network, and at HF_ENDPOINT if another hub is meant; then run this again"
        return f"the hub at {hub_address()} cannot be reached: {lines[-1]}", remedy
    status = int(response.status_code)
    said = f"HTTP {status}: {getattr(error, 'server_message', None) or lines[0]}"
    if status == 401 and action == "write":
        return f"the hub does not accept the token ({said})", f"log in again: {_LOGIN}"
    if status == 403:
        remedy = f"use a token that may {action} it, of an account that may: {_LOGIN}"
        return f"the token may not {action} {repo} ({said})", remedy
    if status in (401, 404):
        remedy = f"look at the name; what is private needs a login that may {action} it: {_LOGIN}"
        return f"the hub at {hub_address()} shows no {repo} ({said})", remedy
    return f"the hub at {hub_address()} fails ({said})", "run this again later"
