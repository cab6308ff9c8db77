"""From `InteractionConfig` to the data that a recommender is trained on, and its form on disk that all trials share.

As for graphs (`imf_core/prepare`), the prepared folder holds no test interaction, so that no trial can read one by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from imf_core.data.bundled.unicode import BUNDLED_INTERACTIONS, bundled_path
from imf_core.data.features.feature_files import feature_files, read_features
from imf_core.data.features.modality import Modality, load_modality
from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import DataError
from imf_core.prepare.entity_files import DESCRIPTIONS, IMAGES
from imf_core.prepare.shared_form import check_fingerprint, load_shared, named, save_shared
from imf_core.prepare.views import image_view, text_view
from imf_core.recommend.config import InteractionConfig
from imf_core.recommend.data.interactions import Interactions, RawInteractions, distinct_pairs
from imf_core.recommend.data.readers import interaction_files, read_raw_interactions

_VIEWS = {"image": (image_view, IMAGES), "text": (text_view, DESCRIPTIONS)}


@dataclass(frozen=True)
class RecommendData:
    """Interactions and the features of the items.

    Args:
        interactions: users, items, training and validation pairs.
        modalities: features of the I items, in the order in which they are concatenated.
        notes: what the user should know about them.
    """

    interactions: Interactions
    modalities: tuple[Modality, ...]
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a study is tied to."""
        return self.interactions.fingerprint

    @property
    def has_test(self) -> bool:
        """Whether there is a test split to open."""
        return self.interactions.test_reader is not None

    @property
    def nbytes(self) -> int:
        """Size of the arrays that all trials share, in bytes."""
        return self.interactions.train.nbytes + self.interactions.valid.nbytes + sum(
            modality.matrix.nbytes for modality in self.modalities
        )

    def summary(self) -> str:
        """One line for the terminal: where it is from and how large it is."""
        return self.interactions.describe()

    def describe(self, names: tuple[str, ...] | None = None) -> list[str]:
        """What the user should know before training: notes, cold and featureless items, each modality's coverage."""
        found = self.interactions
        lines = [*found.notes]
        if cold := int((~found.seen_items).sum()):
            lines.append(
                f"{cold:,} of {found.num_items:,} items have no training interaction: only their features recommend them"
            )
        if self.modalities:
            bare = int((~np.any([modality.mask for modality in self.modalities], axis=0)).sum())
            if bare:
                lines.append(f"{bare:,} of {found.num_items:,} items have no features at all")
        if idle := int((~found.seen_users).sum()):
            lines.append(
                f"{idle:,} of {found.num_users:,} users have no training interaction: they get what the mean user gets"
            )
        return [*lines, *(modality.describe("items") for modality in self.select(names)), *self.notes]

    def select(self, names: tuple[str, ...] | None) -> tuple[Modality, ...]:
        """The named modalities (None: all).

        Raises:
            DataError: a name that the data does not have.
        """
        return named(self.modalities, names)


@dataclass(frozen=True)
class _Later:
    """What reads the test split when it is opened: the files again, numbered as then."""

    config: InteractionConfig
    items: Vocabulary

    def __call__(self) -> np.ndarray:
        raw = _raw(self.config, test=True)[0]
        pairs = raw.split(self.config.split_seed)["test"]
        renumbered = np.array([self.items.index.get(name, -1) for name in raw.items.names], dtype=np.int64)
        pairs = np.stack((pairs[:, 0], renumbered[pairs[:, 1]]), axis=1) if len(pairs) else pairs
        return pairs[pairs[:, 1] >= 0]


@dataclass(frozen=True)
class _Items:
    """The items, as what has texts and pictures."""

    entities: Vocabulary

    @property
    def num_entities(self) -> int:
        return len(self.entities)


def prepare_recommend(config: InteractionConfig) -> RecommendData:
    """Read the interactions, split them, and build the features of the items.

    Features are `modalities/X.safetensors`, or `X.npy` beside `X.names.txt`, or (rows numbered as the items) `X.npy` alone,
    there or beside the interactions; `descriptions.tsv` (item<TAB>text) and `images/` as for a graph.

    Raises:
        DataError: the interactions or a feature file cannot be used, or nothing is left to validate on.
    """
    raw, files = _raw(config, test=False)
    # A file of its own for each split is read without its test pairs; one file is split, and its test pairs are let go here.
    parts = raw.split(config.split_seed)
    folder = _folder(resolve_interactions(config.path))
    modalities, notes = _modalities(config, folder, raw, files)
    notes = [*notes, *_repeats(raw)]
    items, train, valid = raw.items, parts["train"], parts["valid"]
    if config.drop_cold:
        keep = raw.used
        dropped = int((~keep).sum())
        notes += [f"{dropped:,} items without any interaction left out (data.drop_cold)"] if dropped else []
        place = np.cumsum(keep) - 1
        items = Vocabulary(tuple(name for name, kept in zip(items.names, keep, strict=True) if kept), "item")
        train, valid = (np.stack((pairs[:, 0], place[pairs[:, 1]]), axis=1) for pairs in (train, valid))
        modalities = [replace(made, matrix=made.matrix[keep], mask=made.mask[keep]) for made in modalities]
    split_on_disk = "all" in raw.splits or "test" in interaction_files(resolve_interactions(config.path))
    interactions = Interactions(
        raw.users, items, train, valid, _Later(config, items) if split_on_disk else None, raw.notes, raw.source
    )
    return RecommendData(interactions, tuple(modalities), tuple(notes))


def resolve_interactions(path: str) -> Path:
    """The folder or file behind `data.path`: a bundled data set by name, or a path.

    Raises:
        DataError: neither.
    """
    if Path(path).exists():
        return Path(path).resolve()
    if path in BUNDLED_INTERACTIONS:
        return bundled_path(path)
    raise DataError(
        f"{path!r} is neither a folder, a file nor a bundled data set",
        remedy=f"bundled: {', '.join(BUNDLED_INTERACTIONS)}",
        path=path,
    )


def _folder(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def read_for_audit(config: InteractionConfig) -> tuple[RawInteractions, dict[str, np.ndarray], list[Modality]]:
    """All lines, the split with its test pairs, and the features: for the audit alone, which hands on counts."""
    raw, files = _raw(config, test=True)
    return raw, raw.split(config.split_seed), _modalities(config, _folder(resolve_interactions(config.path)), raw, files)[0]


def _raw(config: InteractionConfig, test: bool) -> tuple[RawInteractions, dict[str, Path]]:
    """The interactions with the items that have features, and the feature files."""
    place = resolve_interactions(config.path)
    files = _feature_files(place)
    listed: dict[str, None] = {}
    rows: dict[str, int] = {}
    for name, path in files.items():
        if path.suffix == ".npy" and not path.with_suffix(".names.txt").exists():
            rows[name] = len(_numbered(path))
        else:
            listed |= dict.fromkeys(read_features(path).names)
    if len(set(rows.values())) > 1:
        raise DataError(
            f"features without names have different numbers of rows: {rows}",
            remedy="give each X.names.txt, or a row an item",
            value=rows,
        )
    numbered = next(iter(rows.values()), None)
    raw = read_raw_interactions(place, min_rating=config.min_rating, listed=tuple(listed), numbered=numbered, test=test)
    return raw, files


def _feature_files(place: Path) -> dict[str, Path]:
    folder = _folder(place)
    used = {place, *interaction_files(place).values()}
    beside = {path.stem: path for path in sorted(folder.glob("*.npy")) if path not in used and place.is_dir()}
    return {**beside, **feature_files(folder)} if place.is_dir() else {}


def _numbered(path: Path) -> np.ndarray:
    """Features whose rows are numbered as the items are.

    Raises:
        DataError: no matrix of numbers.
    """
    try:
        matrix: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError.at(
            path, None, f"no plain NumPy array: {error}", remedy="save a float matrix without objects"
        ) from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise DataError.at(path, None, f"not a matrix of numbers: shape {matrix.shape}, {matrix.dtype}", remedy="a row an item")
    return matrix


def _modalities(
    config: InteractionConfig, folder: Path, raw: RawInteractions, files: Mapping[str, Path]
) -> tuple[list[Modality], list[str]]:
    items, found = raw.items.names, list[Modality]()
    notes: list[str] = []
    for name, path in files.items():
        if path.suffix == ".npy" and not path.with_suffix(".names.txt").exists():
            matrix = np.asarray(_numbered(path))
            rows = [str((raw.offset or 0) + row) for row in range(len(matrix))]
            found.append(Modality.aligned(name, matrix, rows, items))
        else:
            found.append(load_modality(path, items))
    for name, (build, source) in _VIEWS.items():
        if name not in files:
            view = build(config.views(), folder, _Items(raw.items)).usable()
            notes += view.notes
            found += [view.modality] if view.modality is not None else []
        elif (folder / source).exists():
            notes.append(f"{name}: ready-made features are used, not {source}")
    return found, notes


def _repeats(raw: RawInteractions) -> list[str]:
    repeats = {name: len(rows) - len(distinct_pairs(rows, len(raw.items))) for name, rows in raw.splits.items()}
    return [
        f"{name if name != 'all' else 'interactions'}: {count:,} repeats merged" for name, count in repeats.items() if count
    ]


def save_recommend(data: RecommendData, folder: Path) -> None:
    """Write the shared form: features standardised, so that no trial needs a copy. The test split is left out on purpose."""
    found = data.interactions
    save_shared(folder, {"train": found.train, "valid": found.valid}, data.modalities, {
        "users": found.users.names, "items": found.items.names, "source": found.source, "notes": found.notes,
        "data_notes": data.notes, "fingerprint": found.fingerprint,
    })


def load_recommend(folder: Path | str) -> RecommendData:
    """Read what `save_recommend` wrote.

    Raises:
        DataError: a part is missing or damaged, or the arrays do not belong to the vocabulary beside them.
    """
    folder = Path(folder)
    facts, arrays, modalities = load_shared(folder)
    users, items = Vocabulary(tuple(facts["users"]), "user"), Vocabulary(tuple(facts["items"]), "item")
    found = Interactions(users, items, arrays["train"], arrays["valid"], None, tuple(facts["notes"]), facts["source"])
    check_fingerprint(folder, found.fingerprint, facts)
    return RecommendData(found, modalities, tuple(facts["data_notes"]))
