"""A repaired copy of a graph: without repeats and overlaps, with a validation split of a useful size.

In this order:

1. Repeated lines are merged in each split.
2. Validation triples that are in train or test are left out.
3. Training triples that are in test are left out: test itself never loses a triple.
4. Without a validation split, or with fewer than half of the wanted triples left after step 2, triples are moved from train to
   validation until there are enough: each relation's share, all triples between the same two entities together (none whose
   entities test links), and such that no entity or relation loses its last training triple. Where test was drawn otherwise,
   that is, where train links the ends of more than a hundredth of its triples too, single triples are moved: validation has to
   be as hard as test. The default size is that of test (a tenth of train if there is no test), at most 10,000; and never more
   than a fifth of train, as moved triples are not trained on. A small validation split that has lost nothing is its owner's
   choice and is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from imf_core.data.graph.bundles import pair_of
from imf_core.data.graph.graph import RawGraph
from imf_core.data.graph.partition import carve
from imf_core.data.graph.splits import codes, distinct
from imf_core.errors import DataError

SEED = 0
_MOST = 10_000
_LINKED = 0.01  # share of test above which its triples were not drawn by bundles


@dataclass(frozen=True)
class Repaired:
    """The splits of a repaired graph and what was done to them.

    Args:
        train, valid: (T, 3) triples without repeats; kept validation triples stand before carved ones.
        test: the distinct test triples; None without a test split.
        facts: counts by split, and the seed: the content of `repair.json`.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray | None
    facts: dict[str, Any]

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """By name, those that the graph has."""
        return {"train": self.train, "valid": self.valid, **({"test": self.test} if self.test is not None else {})}

    def lines(self) -> list[str]:
        """What was done, one fact a line."""
        train, valid = self.facts["train"], self.facts["valid"]
        lines = [
            f"{name}: {part['repeats']:,} repeated lines left out"
            for name in ("train", "valid", "test") if (part := self.facts[name]) is not None and part["repeats"]
        ]
        if valid["in_train"] or valid["in_test"]:
            lines.append(
                f"valid: {valid['in_train']:,} triples that stand in train and {valid['in_test']:,} that stand in test left "
                f"out; {valid['kept']:,} kept"
            )
        if train["in_test"]:
            lines.append(f"train: {train['in_test']:,} triples that stand in test left out")
        if valid["carved"]:
            lines.append(f"valid: {valid['carved']:,} triples moved there from train (seed {self.facts['seed']})")
        if self.facts["by"] == "triple":
            lines.append(
                "valid: drawn triple by triple, as test was: train links the ends of "
                f"{100 * valid['test_linked']:.1f} % of test's triples too"
            )
        missing = valid["wanted"] - valid["written"]
        if valid["too_little"] and missing > 0:
            lines.append(f"valid: {missing:,} fewer than wanted, as no entity or relation may lose its last training triple")
        if not lines:
            lines.append("nothing had to be repaired")
        counts = ", ".join(f"{self.facts[name]['written']:,} {name}" for name in ("train", "valid", "test") if self.facts[name])
        return [*lines, f"written: {counts}"]


def repair(raw: RawGraph, seed: int = SEED, valid_size: int | None = None) -> Repaired:
    """Repair the splits; see the head of this file.

    Args:
        raw: the lines of the graph.
        seed: of the choice of triples that are moved to validation.
        valid_size: validation triples to fill up to, >= 1; None: the default size, see above.

    Raises:
        DataError: the graph has no training triple, or none is left.
    """
    size = (len(raw.entities), len(raw.relations))
    empty = np.empty((0, 3), dtype=np.int64)
    train, test = distinct(raw.train, *size), distinct(raw.test if raw.test is not None else empty, *size)
    valid = distinct(raw.valid if raw.valid is not None else empty, *size)
    in_train, in_test = (np.isin(codes(valid, *size), codes(other, *size)) for other in (train, test))
    leaked = np.isin(codes(train, *size), codes(test, *size))
    kept, rest = valid[~(in_train | in_test)], train[~leaked]
    if not len(rest):
        raise DataError(
            f"{raw.source} has no training triple" + (" that is no test triple too" if len(train) else ""),
            remedy="bring training triples of their own", path=raw.source,
        )
    usual = min(len(test) if raw.test is not None else max(1, len(rest) // 10), _MOST)
    wanted = min(valid_size or usual, max(1, len(rest) // 5))
    enough = wanted if valid_size else (wanted + 1) // 2
    too_little = (raw.valid is None or len(kept) < len(valid)) and len(kept) < enough
    aside = empty
    linked = float(np.isin(pair_of(test, size[0]), pair_of(rest, size[0])).mean()) if len(test) else 0.0
    single = too_little and linked > _LINKED
    if too_little:
        rest, aside = carve(rest, wanted - len(kept), *size, seed, apart=test, single=single)
    written = np.concatenate([kept, aside])
    facts: dict[str, Any] = {
        "source": raw.source,
        "by": "triple" if single else "bundle",
        "seed": seed,
        "train": _facts(raw.train, train, rest) | {"in_test": int(leaked.sum()), "moved_to_valid": len(aside)},
        "valid": _facts(raw.valid if raw.valid is not None else empty, valid, written) | {
            "in_train": int(in_train.sum()), "in_test": int(in_test.sum()), "kept": len(kept), "carved": len(aside),
            "wanted": wanted, "too_little": too_little, "test_linked": linked,
        },
        "test": _facts(raw.test, test, test) if raw.test is not None else None,
    }
    return Repaired(rest, written, test if raw.test is not None else None, facts)


def _facts(lines: np.ndarray, lone: np.ndarray, written: np.ndarray) -> dict[str, int]:
    return {"lines": len(lines), "repeats": len(lines) - len(lone), "written": len(written)}
