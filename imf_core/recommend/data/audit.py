"""The audit of interactions: problems and facts to know before a recommender is trained on them.

Besides the final evaluation it is the only code that reads test interactions; it compares them with the other splits and
returns counts.

Shapes: `U` users, `I` items, `P` interactions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from imf_core.data.audit.report import WORDS, Audit, Baseline, Table
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import SPLITS
from imf_core.recommend.data.interactions import RawInteractions, distinct_pairs

_FEW_ITEMS = 10  # with so many items or fewer, every list of 10 holds all
_CHANCE = 5  # so few held-out examples may all be cold by chance


@dataclass(frozen=True)
class PartCounts:
    """Counts of one split, of distinct pairs unless said otherwise.

    Args:
        interactions: pairs.
        users, items: users and items with an interaction in the split.
        in_train, in_valid, in_test: pairs that are also in that split (in its own: all).
        clean: pairs that are in no other split.
        cold_users, cold_items: users and items of the split without a training interaction.
        cold: pairs with a cold user or item.
    """

    interactions: int = 0
    users: int = 0
    items: int = 0
    in_train: int = 0
    in_valid: int = 0
    in_test: int = 0
    clean: int = 0
    cold_users: int = 0
    cold_items: int = 0
    cold: int = 0


@dataclass(frozen=True)
class InteractionAudit(Audit):
    """The audit of interactions.

    Args:
        source: folder or file.
        users, items: U and I.
        interactions, distinct: of all files together; distinct ones counted per split.
        splits: counts of train, valid and test.
        given: the files give the split; otherwise it is drawn for each user.
        per_user: least, median and largest number of interactions of a user.
        few: users with fewer than 3 interactions, who get no test interaction if the split is drawn.
        without: users, and items, without any interaction.
        featureless: items without any feature; None if there are no features.
        coverage: `image: 5,000 of 5,810 items`, one line for each modality.
        notes: of the readers.
        problems: `--strict` makes them errors.
        warnings: facts to know that cannot or need not be mended.
        baseline: metrics of recommending what most users have, by split.
    """

    source: str
    users: int
    items: int
    interactions: int
    distinct: int
    splits: Mapping[str, PartCounts]
    given: bool
    per_user: tuple[int, float, int]
    few: int
    without: tuple[int, int]
    featureless: int | None
    coverage: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    baseline: Mapping[str, Baseline] = field(default_factory=dict)

    @property
    def density(self) -> float:
        """Share of the user-item pairs that are interactions, 0..1."""
        return self.distinct / max(1, self.users * self.items)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        values = {name: value for name, value in vars(self).items() if name not in ("splits", "baseline")}
        return {
            **values,
            "splits": {name: asdict(part) for name, part in self.splits.items()},
            "density": self.density,
            "baseline": {name: metrics.as_dict() for name, metrics in self.baseline.items()},
        }

    def split_rows(self) -> Table:
        """The table of the splits: columns and rows."""
        columns = ["split", "interactions", "users", "items", "in train", "in valid", "in test", "clean", "cold"]
        rows = []
        for position, name in enumerate(SPLITS):
            part = self.splits[name]
            shared = part.in_train, part.in_valid, part.in_test
            counts = part.interactions, part.users, part.items, *shared, part.clean, part.cold
            cells = [f"{count:,}" for count in counts]
            cells[3 + position] = "-"
            rows.append([name, *cells])
        return columns, rows

    def lines(self) -> list[str]:
        """Facts besides the table of the splits, one on each line."""
        low, middle, high = self.per_user
        lines = [
            "the files give the split"
            if self.given
            else "the split is drawn for each user: 80 % train, the rest test and validation",
            f"{100 * self.density:.2f} % of the pairs are interactions; a user has {low:,} to {high:,}, the median {middle:g}",
        ]
        if self.interactions > self.distinct:
            lines.append(f"{self.interactions - self.distinct:,} repeats merged")
        if self.few:
            lines.append(f"{self.few:,} users have fewer than 3 interactions: nothing to be tested on, left out of averages")
        for count, what, then in (
            (self.without[0], "users", "they get what the mean user gets"),
            (self.without[1], "items", "only their features recommend them"),
        ):
            if count:
                lines.append(f"{count:,} {what} have no interaction: {then}")
        for name in SPLITS[1:]:
            part = self.splits[name]
            if part.cold:
                lines.append(
                    f"{part.cold:,} cold {WORDS[name]} interactions of {part.interactions:,}: {part.cold_items:,} items and "
                    f"{part.cold_users:,} users that train lacks"
                )
        if self.featureless:
            lines.append(f"{self.featureless:,} items have no features")
        return [*lines, *self.coverage, *self.baseline_lines(), *self.notes]

    @property
    def size(self) -> str:
        """Numbers of users and items, in words."""
        return f"{self.users:,} users, {self.items:,} items"

    @property
    def counts(self) -> dict[str, int]:
        """Users, items, and interactions of each split."""
        parts = {f"{name}_interactions": part.interactions for name, part in self.splits.items()}
        return {"users": self.users, "items": self.items, **parts}

    def tables(self) -> dict[str, tuple[str, Table]]:
        """For a report: name -> caption, and columns and rows."""
        return {"splits": ("the splits", self.split_rows())}


def audit_interactions(
    raw: RawInteractions, splits: Mapping[str, np.ndarray], modalities: Sequence[Modality] = (), beside: Sequence[str] = ()
) -> InteractionAudit:
    """Audit every interaction.

    Problems are: no training interaction, no validation interaction, and pairs that are in two splits.

    Args:
        raw: all lines of all files, test included.
        splits: distinct pairs (P, 2) of `train`, `valid` and `test`: `raw.split(seed)`.
        modalities: features of the items.
        beside: lines on other files of the folder, see `atomic_notes`.
    """
    size = len(raw.users), len(raw.items)
    every = np.concatenate([*splits.values()])
    per_user = np.bincount(distinct_pairs(every, size[1])[:, 0], minlength=size[0])
    counts = _counts(splits, *size)
    has = np.any([modality.mask for modality in modalities], axis=0) if modalities else None
    given = "all" not in raw.splits
    few = int(((per_user > 0) & (per_user < 3)).sum())
    active = per_user[per_user > 0]
    return InteractionAudit(
        source=raw.source,
        users=size[0],
        items=size[1],
        interactions=raw.lines,
        distinct=len(every),
        splits=counts,
        given=given,
        per_user=(int(active.min()), float(np.median(active)), int(active.max())) if len(active) else (0, 0.0, 0),
        few=few,
        without=(int((per_user == 0).sum()), int((~raw.used).sum())),
        featureless=int((~has).sum()) if has is not None else None,
        coverage=tuple(modality.describe().replace(" entities", " items") for modality in modalities),
        notes=(*raw.notes, *beside),
        problems=(*raw.problems, *_problems(counts), *_nameless(modalities, raw.used)),
        warnings=tuple(_warnings(counts, size[1])),
    )


def _counts(splits: Mapping[str, np.ndarray], num_users: int, num_items: int) -> dict[str, PartCounts]:
    codes = {name: pairs[:, 0] * np.int64(num_items) + pairs[:, 1] for name, pairs in splits.items()}
    train = splits["train"]
    seen_users, seen_items = (
        np.bincount(train[:, 0], minlength=num_users) > 0,
        np.bincount(train[:, 1], minlength=num_items) > 0,
    )
    counts = {}
    for name in SPLITS:
        users, items = splits[name][:, 0], splits[name][:, 1]
        inside = {other: np.isin(codes[name], codes[other]) for other in SPLITS}
        elsewhere = np.any([mask for other, mask in inside.items() if other != name], axis=0)
        cold_users, cold_items = ~seen_users[users], ~seen_items[items]
        counts[name] = PartCounts(
            interactions=len(users),
            users=len(np.unique(users)),
            items=len(np.unique(items)),
            in_train=int(inside["train"].sum()),
            in_valid=int(inside["valid"].sum()),
            in_test=int(inside["test"].sum()),
            clean=int((~elsewhere).sum()),
            cold_users=len(np.unique(users[cold_users])),
            cold_items=len(np.unique(items[cold_items])),
            cold=int((cold_users | cold_items).sum()),
        )
    return counts


def _problems(counts: Mapping[str, PartCounts]) -> list[str]:
    problems = []
    if not counts["train"].interactions:
        problems.append("there is no training interaction")
    if not counts["valid"].interactions:
        problems.append("there is nothing to validate on: no user has 8 interactions or more, or the validation file is empty")
    for first, second in (("valid", "train"), ("valid", "test"), ("test", "train")):
        shared = getattr(counts[first], f"in_{second}")
        if shared:
            problems.append(
                f"{shared:,} of {counts[first].interactions:,} {WORDS[first]} interactions stand in {second} too: what is "
                "known is never recommended, so they cannot be found"
            )
    test = counts["test"]
    if test.interactions > _CHANCE and test.cold == test.interactions:
        told = f"all {test.interactions:,} test interactions have a user or an item that training lacks"
        problems.append(f"{told}: are they named as there?")
    return problems


def _nameless(modalities: Sequence[Modality], used: np.ndarray) -> list[str]:
    """Modalities that no item with an interaction has: their names are not those of the interactions."""
    return [
        f"{modality.name}: none of the {int(used.sum()):,} items with interactions has it; do the names agree?"
        for modality in modalities if used.any() and not modality.mask[used].any()
    ]


def _warnings(counts: Mapping[str, PartCounts], num_items: int) -> list[str]:
    warnings = []
    if num_items <= _FEW_ITEMS:
        warnings.append(f"{num_items} items are ranked: recall at 10 is 1 by construction")
    if not counts["test"].interactions:
        warnings.append("no test interactions: a search can choose, but has no test score to report")
    return warnings
