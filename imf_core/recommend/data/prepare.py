"""From `InteractionConfig` to the data that a recommender is trained on, and its form on disk that all trials share.

As for graphs (`imf_core/prepare`), the prepared folder holds no test interaction, so that no trial can read one by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from imf_core.data.bundled.unicode import BUNDLED_INTERACTIONS, bundled_path
from imf_core.data.features.feature_files import Features, feature_files, read_features
from imf_core.data.features.modality import Modality, modality_of
from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import DataError
from imf_core.files.tensors import read_array
from imf_core.prepare.entity_files import DESCRIPTIONS, IMAGES, origin
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
        pairs = self.interactions
        lines = [*pairs.notes]
        if cold := int((~pairs.seen_items).sum()):
            lines.append(
                f"{cold:,} of {pairs.num_items:,} items have no training interaction: only their features recommend them"
            )
        if self.modalities:
            bare = int((~np.any([modality.mask for modality in self.modalities], axis=0)).sum())
            if bare:
                lines.append(f"{bare:,} of {pairs.num_items:,} items have no features at all")
        if idle := int((~pairs.seen_users).sum()):
            lines.append(
                f"{idle:,} of {pairs.num_users:,} users have no training interaction: they get what the mean user gets"
            )
        return [*lines, *(modality.describe("items") for modality in self.select(names)), *self.notes]

    def select(self, names: tuple[str, ...] | None) -> tuple[Modality, ...]:
        """The named modalities (None: all).

        Raises:
            DataError: a name that the data does not have.
        """
        return named(self.modalities, names)


@dataclass(frozen=True)
class _HeldBack:
    """The test pairs that the audit has read, handed out by `Interactions.open_test`."""

    pairs: np.ndarray

    def __call__(self) -> np.ndarray:
        return self.pairs


@dataclass(frozen=True)
class InteractionSource:
    """The files of interactions and features, each read and parsed once, for the audit and for training alike.

    Features are `modalities/X.safetensors`, or `X.npy` beside `X.names.txt`, or (rows numbered as the items) `X.npy` alone,
    there or beside the interactions; `descriptions.tsv` (item<TAB>text) and `images/` as for a graph.

    Args:
        config: where the interactions are and how they are split.
        path: their folder or file.
        raw: every line, those of a test file included.
        features: of the items, by modality; a plain matrix has a row for each numbered item.
    """

    config: InteractionConfig
    path: Path
    raw: RawInteractions
    features: Mapping[str, Features | np.ndarray]

    @classmethod
    def open(cls, config: InteractionConfig) -> InteractionSource:
        """Read all files.

        Raises:
            DataError: the interactions or a feature file cannot be used.
        """
        path = resolve_interactions(config.path)
        features: dict[str, Features | np.ndarray] = {}
        for name, file in _feature_files(path).items():
            nameless = file.suffix == ".npy" and not file.with_suffix(".names.txt").exists()
            features[name] = _numbered(file) if nameless else read_features(file)
        rows = {name: len(matrix) for name, matrix in features.items() if isinstance(matrix, np.ndarray)}
        if len(set(rows.values())) > 1:
            raise DataError(
                f"features without names have different numbers of rows: {rows}",
                remedy="give each X.names.txt, or a row an item", value=rows,
            )
        listed = dict.fromkeys(name for part in features.values() if isinstance(part, Features) for name in part.names)
        numbered = next(iter(rows.values()), None)
        raw = read_raw_interactions(
            path, min_rating=config.min_rating, label=config.label, listed=tuple(listed), numbered=numbered, test=True
        )
        return cls(config, path, raw, features)

    @cached_property
    def split(self) -> dict[str, np.ndarray]:
        """Distinct pairs (P, 2) of `train`, `valid` and `test`."""
        return self.raw.split(self.config.split_seed)

    @cached_property
    def modalities(self) -> tuple[list[Modality], list[str]]:
        """Features of all items, ready-made or built from texts and pictures; and notes on them."""
        items, modalities, notes = self.raw.items, list[Modality](), list[str]()
        folder = self.path if self.path.is_dir() else self.path.parent
        for name, features in self.features.items():
            if isinstance(features, np.ndarray):
                rows = [str((self.raw.offset or 0) + row) for row in range(len(features))]
                modalities.append(Modality.aligned(name, np.asarray(features), rows, items.names))
            else:
                modalities.append(modality_of(name, features, items.names))
        for name, (build, source) in _VIEWS.items():
            if name not in self.features:
                view = build(self.config.views(), folder, items).usable()
                notes += view.notes
                modalities += [view.modality] if view.modality is not None else []
            elif (folder / source).exists():
                notes.append(origin(name, self.features[name], source))
        return modalities, notes

    def prepare(self) -> RecommendData:
        """Split the interactions and align the features of the items.

        Raises:
            DataError: a view cannot be built, or there is nothing to train on.
        """
        raw, pairs = self.raw, dict(self.split)
        modalities, notes = self.modalities
        notes = [*notes, *_repeats(raw)]
        items = raw.items
        if self.config.drop_cold:
            keep = raw.used
            dropped = int((~keep).sum())
            notes += [f"{dropped:,} items without any interaction left out (data.drop_cold)"] if dropped else []
            number = np.cumsum(keep) - 1
            items = Vocabulary(tuple(name for name, kept in zip(items.names, keep, strict=True) if kept), "item")
            pairs = {name: np.stack((part[:, 0], number[part[:, 1]]), axis=1) for name, part in pairs.items()}
            modalities = [replace(each, matrix=each.matrix[keep], mask=each.mask[keep]) for each in modalities]
        has_test = raw.splits.keys() & {"all", "test"}
        interactions = Interactions(
            raw.users, items, pairs["train"], pairs["valid"], _HeldBack(pairs["test"]) if has_test else None, raw.notes,
            raw.source,
        )
        return RecommendData(interactions, tuple(modalities), tuple(notes))


def prepare_recommend(config: InteractionConfig) -> RecommendData:
    """Read interactions and features; see `InteractionSource`."""
    return InteractionSource.open(config).prepare()


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


def _feature_files(place: Path) -> dict[str, Path]:
    folder = place if place.is_dir() else place.parent
    used = {place, *interaction_files(place).values()}
    beside = {path.stem: path for path in sorted(folder.glob("*.npy")) if path not in used and place.is_dir()}
    return {**beside, **feature_files(folder)} if place.is_dir() else {}


def _numbered(path: Path) -> np.ndarray:
    """Features whose rows are numbered as the items are.

    Raises:
        DataError: no matrix of numbers.
    """
    matrix = read_array(path, mapped=True)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or not matrix.shape[1]:
        raise DataError.at(path, None, f"not a matrix of numbers: shape {matrix.shape}, {matrix.dtype}", remedy="a row an item")
    return matrix


def _repeats(raw: RawInteractions) -> list[str]:
    repeats = {
        name: len(rows) - len(distinct_pairs(rows, len(raw.items))) for name, rows in raw.splits.items() if name != "test"
    }
    return [
        f"{name if name != 'all' else 'interactions'}: {count:,} repeats merged" for name, count in repeats.items() if count
    ]


def save_recommend(data: RecommendData, folder: Path) -> None:
    """Write the shared form: features standardised, so that no trial needs a copy. The test split is left out on purpose."""
    pairs = data.interactions
    save_shared(folder, {"train": pairs.train, "valid": pairs.valid}, data.modalities, {
        "users": pairs.users.names, "items": pairs.items.names, "source": pairs.source, "notes": pairs.notes,
        "data_notes": data.notes, "fingerprint": pairs.fingerprint,
    })


def load_recommend(folder: Path | str) -> RecommendData:
    """Read what `save_recommend` wrote.

    Raises:
        DataError: a part is missing or damaged, or the arrays do not belong to the vocabulary beside them.
    """
    folder = Path(folder)
    facts, arrays, modalities = load_shared(folder)
    users, items = Vocabulary(tuple(facts["users"]), "user"), Vocabulary(tuple(facts["items"]), "item")
    pairs = Interactions(users, items, arrays["train"], arrays["valid"], None, tuple(facts["notes"]), facts["source"])
    check_fingerprint(folder, pairs.fingerprint, facts)
    return RecommendData(pairs, modalities, tuple(facts["data_notes"]))
