"""From the lines of a graph to a graph to train on: repeats merged, a validation split found, unseen entities dealt with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from imf_core.data.graph.graph import KnowledgeGraph, RawGraph, Vocabulary, overlap_note
from imf_core.data.graph.partition import carve
from imf_core.data.graph.splits import codes, counted_of, distinct
from imf_core.data.graph.unseen import Policy, find_unseen, seen_in
from imf_core.errors import DataError

CARVE_SEED = 0
_VALIDATION_SHARE, _MOST_CARVED = 0.1, 10_000


class LazySplit(Protocol):
    """The lines of a split, produced when they are asked for."""

    def read(self, allow_unknown: bool) -> np.ndarray:
        """(T, 3) ids; a name that the vocabularies lack is an error, or (`allow_unknown`) gets an id from N or R on."""


@dataclass
class TestSplit:
    """Reads the test split when it is called, treats its unseen entities by the policy and keeps a note on them.

    Args:
        lines: the split's lines.
        policy: `data.unseen`.
        seen_entities, seen_relations: (N,) and (R,) bool, it occurs in a training triple.
        source: where the graph is from, for messages.
    """

    __test__ = False  # the name begins like that of a pytest class

    lines: LazySplit
    policy: Policy
    seen_entities: np.ndarray
    seen_relations: np.ndarray
    source: str
    notes: tuple[str, ...] = field(default=(), init=False)

    def __call__(self) -> np.ndarray:
        """(T, 3) int64 test triples.

        Raises:
            DataError: the file cannot be used, or the policy leaves nothing of it.
        """
        lines = self.lines.read(allow_unknown=self.policy == "drop")
        notes: list[str] = []
        triples = _merged(lines, "test", len(self.seen_entities), len(self.seen_relations), notes)
        kept, note = apply_policy("test", triples, self.policy, self.seen_entities, self.seen_relations, self.source)
        self.notes = (*notes, note) if note else tuple(notes)
        return kept


def mended(raw: RawGraph, test: LazySplit | None, policy: Policy, validation_name: str = "valid.tsv") -> KnowledgeGraph:
    """The graph to train on; its notes say what was done.

    Args:
        raw: the lines of train and, if there is such a file, of valid.
        test: the test split.
        policy: `data.unseen`.
        validation_name: what a validation file would be called, for messages.

    Raises:
        DataError: no training triple, nothing to validate on.
    """
    num_entities, num_relations = len(raw.entities), len(raw.relations)
    notes = list(raw.notes)
    if not len(raw.train):
        raise DataError(
            f"{raw.source} has no training triple", remedy="put head<TAB>relation<TAB>tail lines into train.tsv",
            path=raw.source,
        )
    train = _merged(raw.train, "training", num_entities, num_relations, notes)
    made = dict(raw.made)
    if raw.valid is None:
        count = min(_MOST_CARVED, max(1, len(train) // 10))
        train, valid = _carved(train, count, num_entities, num_relations, raw.source, validation_name)
        made["valid"] = _record(_VALIDATION_SHARE, count, valid)
        notes.append(f"no {validation_name}: {len(valid):,} triples set aside from train as validation (seed {CARVE_SEED})")
    else:
        valid = _validation(raw.valid, train, num_entities, num_relations, raw.source, notes)
    seen_entities, seen_relations = seen_in(train, num_entities, num_relations)
    valid, note = apply_policy("valid", valid, policy, seen_entities, seen_relations, raw.source)
    if note:
        notes.append(note)
    entities, relations = raw.entities, raw.relations
    if policy == "drop":
        # Ids close up: what training lacks is no candidate.
        train = _renumbered(train, seen_entities, seen_relations)
        entities, relations = _only(entities, seen_entities), _only(relations, seen_relations)
    reader = TestSplit(test, policy, seen_entities, seen_relations, raw.source) if test is not None else None
    return KnowledgeGraph(entities, relations, train, valid, reader, tuple(notes), raw.source, made)


def with_test(raw: RawGraph, share: float) -> RawGraph:
    """The graph with a test split from its training triples, in bundles (see `carve`); its notes and `made` say so.

    Args:
        raw: all lines of a graph without a test split. No triple between the ends of a validation triple is taken.
        share: of the distinct training and validation triples, 0..1.

    Raises:
        DataError: none can be spared.
    """
    size = len(raw.entities), len(raw.relations)
    train = distinct(raw.train, *size)
    held_out = distinct(raw.valid, *size) if raw.valid is not None else train[:0]
    count = max(1, round(share * (len(train) + len(held_out))))
    _, test = _carved(train, count, *size, raw.source, "test split", apart=held_out)
    left = raw.train[~np.isin(codes(raw.train, *size), codes(test, *size))]
    note = f"no test file: {len(test):,} triples set aside from train as test (data.test_size={share:g}, seed {CARVE_SEED})"
    made = {**raw.made, "test": _record(share, count, test)}
    return replace(raw, train=left, test=test, notes=(*raw.notes, note), made=made)


def apply_policy(
    split: str, triples: np.ndarray, policy: Policy, seen_entities: np.ndarray, seen_relations: np.ndarray, source: str
) -> tuple[np.ndarray, str]:
    """The triples of a split that are used, and a note on the others; under `drop` in ids without what training lacks.

    Args:
        split: `valid` or `test`.
        triples: (T, 3); ids from N and R on stand for names that the vocabularies lack.
        policy: `data.unseen`.
        seen_entities, seen_relations: (N,) and (R,) bool.
        source: where the graph is from, for messages.

    Raises:
        DataError: nothing is left.
    """
    seen_entities = _lengthened(seen_entities, triples[:, [0, 2]])
    seen_relations = _lengthened(seen_relations, triples[:, 1])
    unseen = find_unseen(split, triples, seen_entities, seen_relations)
    note = unseen.note(policy, len(seen_entities))
    if policy == "keep":
        return triples, note
    kept = triples[~unseen.in_either]
    if len(triples) and not len(kept):
        raise DataError(
            f"{source}: {note}; nothing is left of {split}",
            remedy="set data.unseen=keep, or split the triples so that train holds their entities and relations", path=source,
        )
    return _renumbered(kept, seen_entities, seen_relations), note


def _carved(
    train: np.ndarray, count: int, num_entities: int, num_relations: int, source: str, missing: str,
    apart: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    kept, aside = carve(train, count, num_entities, num_relations, CARVE_SEED, apart=apart)
    if not len(aside):
        use = "figures are taken from it" if apart is not None else "epochs and settings are chosen on it"
        raise DataError(
            f"{source} has no {missing}, and no training triple can be spared for it: each holds the only mention of "
            "an entity or a relation", remedy=f"add {missing}: {use}", path=source,
        )
    return kept, aside


def _record(share: float, wanted: int, triples: np.ndarray) -> dict[str, Any]:
    return {"by": "bundle", "share": share, "wanted": wanted, "written": len(triples), "seed": CARVE_SEED}


def _validation(
    lines: np.ndarray, train: np.ndarray, num_entities: int, num_relations: int, source: str, notes: list[str]
) -> np.ndarray:
    if not len(lines):
        raise DataError(
            f"{source}: the validation file holds no triple",
            remedy="add triples, or remove the file: a tenth of train is then set aside", path=source,
        )
    valid = _merged(lines, "validation", num_entities, num_relations, notes)
    if note := overlap_note("valid", counted_of(valid, [train], num_entities, num_relations)):
        notes.append(note)
    return valid


def _merged(lines: np.ndarray, split: str, num_entities: int, num_relations: int, notes: list[str]) -> np.ndarray:
    """The triples of a split, each once, as the audit counts them; ids beyond N and R (names that are unknown) are allowed."""
    highest = [int(lines[:, columns].max(initial=-1)) for columns in ([0, 2], [1])]
    triples = distinct(lines, max(num_entities, highest[0] + 1), max(num_relations, highest[1] + 1))
    if len(triples) < len(lines):
        notes.append(f"{len(lines) - len(triples):,} repeated {split} lines merged")
    return triples


def _only(vocabulary: Vocabulary, seen: np.ndarray) -> Vocabulary:
    if seen.all():
        return vocabulary
    return Vocabulary(tuple(name for name, kept in zip(vocabulary.names, seen.tolist()) if kept), vocabulary.kind)


def _renumbered(triples: np.ndarray, seen_entities: np.ndarray, seen_relations: np.ndarray) -> np.ndarray:
    """In ids that count the seen ones alone."""
    if seen_entities.all() and seen_relations.all():
        return triples
    entity_ids, relation_ids = np.cumsum(seen_entities) - 1, np.cumsum(seen_relations) - 1
    return np.stack([entity_ids[triples[:, 0]], relation_ids[triples[:, 1]], entity_ids[triples[:, 2]]], axis=1)


def _lengthened(seen: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """With False for the ids that lie beyond."""
    missing = int(ids.max(initial=-1)) + 1 - len(seen)
    return np.append(seen, np.zeros(missing, dtype=bool)) if missing > 0 else seen
