"""Links that give answers away: train links both ends of a held-out triple, by another relation or in the other direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from imf_core.data.audit.leaks import MOST_EXAMPLES, by_split
from imf_core.data.audit.relations import MIN_SHARED, flipped, is_in, pair_codes
from imf_core.data.graph.graph import SPLITS, Vocabulary, expand_ranges


@dataclass(frozen=True)
class LinkLeak:
    """Held-out triples of a relation whose answer a training triple of a relation has.

    Args:
        relation: of the held-out triples.
        by: of the training triples.
        reverse: these have head and tail exchanged.
        counts: by split, held-out triples whose answer is in train.
        held_out: by split, held-out triples of the relation.
        examples: up to three of them, as `HEAD relation TAIL`.
    """

    relation: str
    by: str
    reverse: bool
    counts: Mapping[str, int]
    held_out: Mapping[str, int]
    examples: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the relation's held-out triples, 0..1."""
        return sum(self.counts.values()) / sum(self.held_out.values())

    def describe(self) -> str:
        """One line, with an example."""
        counts = by_split(self.counts, self.held_out)
        told = f"{self.by} reversed" if self.reverse else self.by
        return f"{self.relation}: train tells the answer as {told} in {counts} triples, {self.share:.0%} ({self.examples[0]})"


def link_leaks(
    splits: Mapping[str, np.ndarray], entities: Vocabulary, relations: Vocabulary, least: float = 0.05
) -> tuple[LinkLeak, ...]:
    """Look for training triples between the ends of held-out triples. Triples that are in train themselves count elsewhere.

    Args:
        splits: train, valid, test (T, 3), each without repeats; train must be there.
        entities, relations: their names.
        least: what tells a smaller share of a relation's held-out triples, or fewer than `MIN_SHARED`, is left out.

    Returns:
        One entry for a relation, a relation that tells and a direction, those that tell most first.
    """
    held_out = {name: splits[name] for name in SPLITS[1:] if name in splits}
    uses = {name: np.bincount(rows[:, 1], minlength=len(relations)) for name, rows in held_out.items()}
    leaks = []
    for reverse in (False, True):
        cells: dict[tuple[int, int], dict[str, np.ndarray]] = {}  # (relation, relation that tells) -> rows by split
        for name, rows in held_out.items():
            row, by = _told(rows, flipped(splits["train"]) if reverse else splits["train"], len(entities))
            trivial = rows[row, 0] == rows[row, 2] if reverse else rows[row, 1] == by  # its own reverse; a training triple
            row, by = row[~trivial], by[~trivial]
            keys = rows[row, 1] * len(relations) + by
            order = np.argsort(keys, kind="stable")
            found, starts = np.unique(keys[order], return_index=True)
            for key, part in zip(found.tolist(), np.split(order, starts[1:]), strict=False):  # of nothing, one empty part
                cells.setdefault(divmod(key, len(relations)), {})[name] = rows[row[part]]
        for (relation, other), told in cells.items():
            totals = {name: int(count[relation]) for name, count in uses.items()}
            counts = {name: len(told.get(name, ())) for name in held_out}
            if sum(counts.values()) >= max(MIN_SHARED, least * sum(totals.values())):
                shown = np.concatenate([rows[:MOST_EXAMPLES] for rows in told.values()])[:MOST_EXAMPLES].tolist()
                examples = tuple(f"{entities.names[h]} {relations.names[r]} {entities.names[t]}" for h, r, t in shown)
                names = relations.names[relation], relations.names[other]
                leaks.append(LinkLeak(*names, reverse, counts, totals, examples))
    return tuple(sorted(leaks, key=lambda leak: (-sum(leak.counts.values()), leak.relation, leak.by, leak.reverse)))


def _told(rows: np.ndarray, train: np.ndarray, num_entities: int) -> tuple[np.ndarray, np.ndarray]:
    """Each held-out row with each relation that links its pair in train: positions and relations."""
    asked = pair_codes(rows, num_entities)
    train = train[is_in(pair_codes(train, num_entities), np.unique(asked))]
    known = pair_codes(train, num_entities)
    order = np.argsort(known, kind="stable")
    starts, stops = (np.searchsorted(known[order], asked, side=side) for side in ("left", "right"))
    return expand_ranges(starts, stops, train[order, 1])
