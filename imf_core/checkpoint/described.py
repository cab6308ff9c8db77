"""What the files of JSON in a checkpoint hold: checked before anything is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, FiniteFloat, ValidationError, model_validator

from imf_core.errors import CheckpointError
from imf_core.files import json_files
from imf_core.files.json_files import Stored, told

RESTORE = "restore the folder from a copy"


def distinct_names(names: list[str]) -> list[str]:
    """The names, which can be those of a vocabulary.

    Raises:
        ValueError: a name stands there twice, or holds half of a surrogate pair.
    """
    if len(set(names)) < len(names):
        raise ValueError("a name stands there twice")
    "\n".join(names).encode("utf-8", "surrogateescape")
    return names


StoredT = TypeVar("StoredT", bound=Stored)
Names = Annotated[list[str], AfterValidator(distinct_names)]
DecisionKind = Literal["trained", "common", "relation"]


class DescribedPart(Stored):
    """A part of one's own that a model needs, as `Part.identity` wrote it."""

    kind: str
    name: str
    package: str = ""
    version: str = ""
    file: str = ""
    sha256: str = ""

    @property
    def source(self) -> str:
        """Where it was from."""
        return f"{self.package} {self.version}".strip() or self.file or "a notebook"

    @property
    def remedy(self) -> str:
        """What to do where it is missing."""
        if self.package:
            return f"install it: pip install {self.package}=={self.version}" if self.version else f"install {self.package}"
        if self.file:
            return f"give the file: --part {self.file}, or imf_core.load_part({self.file!r}) in Python"
        return "run the cell that registers it first"


class DescribedParts(Stored):
    """The parts in a checkpoint's `config.json`; there are none in most."""

    parts: list[DescribedPart] = Field(default_factory=list)


class Described(Stored):
    """What every checkpoint's `config.json` holds."""

    config: dict[str, Any]
    versions: dict[str, Any] = Field(default_factory=dict)


class DescribedDecisions(Stored):
    """Decisions that were fitted to a model's branches, as `imf_core.evaluate.redecide` wrote them."""

    kept: DecisionKind
    held_back_mrr: dict[DecisionKind, FiniteFloat]
    weights: dict[DecisionKind, list[list[FiniteFloat]]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agree(self) -> DescribedDecisions:
        if self.kept not in self.held_back_mrr:
            raise ValueError(f"held_back_mrr lacks {self.kept}")
        return self

    def fit(self, branches: int, relations: int) -> bool:
        """Whether these are weights of so many branches, common to all relations or of each."""
        return all(len(rows) in (1, relations) and {len(row) for row in rows} == {branches} for rows in self.weights.values())


class DescribedMetrics(Stored):
    """The metrics of a checkpoint that are read again; the others are only shown."""

    fingerprint: str | None = None
    decision: DescribedDecisions | None = None


class DescribedLinks(Described):
    """The `config.json` of a link predictor."""

    modalities: list[str]
    entities_sha256: str
    relations_sha256: str
    metrics: DescribedMetrics


class LinkNames(Stored):
    """The `vocabulary.json` of a link predictor."""

    entities: Names
    relations: Names


def checked(file: Path, kind: type[StoredT], values: Mapping[str, Any]) -> StoredT:
    """The values of a file of a checkpoint, in the form that they must have.

    Raises:
        CheckpointError: a value is missing or of another type.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"{file} is damaged: {told(error)}", remedy=RESTORE) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        content = json_files.read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing", remedy="give the folder of a checkpoint, for example results/<study>/best"
        ) from error
    except NotADirectoryError as error:
        raise CheckpointError(f"{path.parent} is not a folder", remedy="give the folder of a checkpoint") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", remedy=RESTORE) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no settings", remedy=RESTORE)
    return content
