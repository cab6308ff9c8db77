"""The knowledge graph: triples as ids, names, splits, inverse relations and the index of known answers.

Letters used in shapes: `N` entities, `R` relations (2R with inverses), `T` triples, `Q` distinct queries, `P` answers.
A query is a pair (entity, relation id below 2R): `(h, r)` asks for tails, `(t, r + R)` asks for heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from imf_core.config_base import nearest
from imf_core.data.graph.splits import counted_of
from imf_core.errors import ConfigError, DataError, VocabularyError
from imf_core.files.digest import sha256_of

TEST_WORDS = "Test is for final figures: whoever chooses with it has none left."

SPLITS = ("train", "valid", "test")
ALL_LINES = "all lines"  # the slice of all triples of a split that shares some with an earlier one; figures are of the others


@dataclass(frozen=True)
class Vocabulary:
    """Names in id order. Names keep every byte of the file they came from.

    Args:
        names: distinct names; the position is the id.
        kind: `entity` or `relation`, used in messages.
    """

    names: tuple[str, ...]
    kind: str = "entity"

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def index(self) -> dict[str, int]:
        """Name -> id."""
        return {name: position for position, name in enumerate(self.names)}

    def id(self, name: str) -> int:
        """The id of a name.

        Raises:
            VocabularyError: unknown name; the message proposes the nearest known one.
        """
        index = self.index.get(name)
        if index is None:
            raise VocabularyError(
                f"{name!r} is no {self.kind} of this graph ({len(self):,} known){nearest(name, self.names)}",
                remedy=f"use a {self.kind} name exactly as in the training data", name=name,
            )
        return index

    @cached_property
    def sha256(self) -> str:
        """Hash of the names in order; two models fit together only if these agree."""
        return sha256_of(["\n".join(self.names)])


def fingerprint_of(vocabularies: Sequence[Vocabulary], arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 of vocabularies and of arrays of ids, in their order."""
    names = [vocabulary.sha256 for vocabulary in vocabularies]
    return sha256_of([*names, *(np.ascontiguousarray(array, dtype=np.int64).tobytes() for array in arrays)])


@dataclass(frozen=True)
class KnownAnswers:
    """CSR index: query -> sorted distinct answers. Built once by sorting, read by binary search; never a dense mask.

    Args:
        keys: (Q,) int64, ascending, `entity * 2R + relation`.
        offsets: (Q + 1,) int64, answers of query i are `answers[offsets[i]:offsets[i + 1]]`.
        answers: (P,) int64 entity ids, ascending within a query.
        num_relations: R, without inverses.
    """

    keys: np.ndarray
    offsets: np.ndarray
    answers: np.ndarray
    num_relations: int

    @classmethod
    def build(cls, triples: Iterable[np.ndarray], num_relations: int) -> KnownAnswers:
        """Index several `(T, 3)` arrays of head, relation, tail, in both directions; repeats are merged."""
        both = [with_inverses(part, num_relations) for part in triples]
        rows = np.concatenate(both) if both else np.empty((0, 3), np.int64)
        keys = rows[:, 0] * (2 * num_relations) + rows[:, 1]
        order = np.lexsort((rows[:, 2], keys))
        keys, answers = keys[order], rows[order, 2]
        if len(keys):
            fresh = np.concatenate(([True], (keys[1:] != keys[:-1]) | (answers[1:] != answers[:-1])))
            keys, answers = keys[fresh], answers[fresh]
        distinct, starts = np.unique(keys, return_index=True)
        return cls(distinct, np.append(starts, len(keys)).astype(np.int64), answers, num_relations)

    def lookup(self, entities: np.ndarray, relations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Known answers of `B` queries as pairs.

        Args:
            entities, relations: (B,) ids; relations below 2R.

        Returns:
            rows (K,) positions in 0..B-1 and answers (K,) entity ids; a query without answers has no pair.
        """
        wanted = entities.astype(np.int64) * (2 * self.num_relations) + relations
        position = np.searchsorted(self.keys, wanted)
        is_known = position < len(self.keys)
        is_known[is_known] = self.keys[position[is_known]] == wanted[is_known]
        starts = np.where(is_known, self.offsets[np.where(is_known, position, 0)], 0)
        stops = np.where(is_known, self.offsets[np.where(is_known, position + 1, 0)], 0)
        return expand_ranges(starts, stops, self.answers)

    def queries(self) -> tuple[np.ndarray, np.ndarray]:
        """All distinct queries: entities (Q,) and relations (Q,)."""
        return self.keys // (2 * self.num_relations), self.keys % (2 * self.num_relations)


def expand_ranges(starts: np.ndarray, stops: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate `values[starts[i]:stops[i]]`; returns the row i of each value and the values."""
    lengths = stops - starts
    rows = np.repeat(np.arange(len(starts), dtype=np.int64), lengths)
    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1] if len(ends) else 0, dtype=np.int64) - np.repeat(ends - lengths, lengths)
    return rows, values[np.repeat(starts, lengths) + positions]


def with_inverses(triples: np.ndarray, num_relations: int) -> np.ndarray:
    """(T, 3) -> (2T, 3): each `(h, r, t)` and its inverse `(t, r + R, h)`."""
    flipped = np.stack([triples[:, 2], triples[:, 1] + num_relations, triples[:, 0]], axis=1)
    return np.concatenate([triples, flipped]).astype(np.int64)


@dataclass(frozen=True)
class KnowledgeGraph:
    """Entities, relations and the training and validation triples. The test split stays on disk until `open_test`.

    Args:
        entities, relations: vocabularies; a relation's inverse has id + R and no name of its own.
        train, valid: (T, 3) int64 arrays of head, relation, tail ids; train without repeats.
        test_reader: reads the test split; None if the graph has none, or it must not be reachable.
        notes: what the reader mended or wants the user to know (merged duplicates, unseen entities, ...).
        source: where it is from.
        made: splits that no file holds, by name, and how they were set aside: `share`, `wanted`, `written`, `seed`.
    """

    entities: Vocabulary
    relations: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test_reader: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)
    notes: tuple[str, ...] = ()
    source: str = ""
    made: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if len(self.train) == 0:
            raise DataError(
                f"{self.source or 'the graph'} has no training triple",
                remedy="put head<TAB>relation<TAB>tail lines into train.tsv",
            )

    @property
    def num_entities(self) -> int:
        """N."""
        return len(self.entities)

    @property
    def num_relations(self) -> int:
        """R, without inverses."""
        return len(self.relations)

    def describe(self) -> str:
        """One line for the terminal: where it is from and how large it is."""
        return (
            f"{self.source}: {self.num_entities:,} entities, {self.num_relations} relations, "
            f"{len(self.train):,} training and {len(self.valid):,} validation triples"
        )

    def open_test(self) -> np.ndarray:
        """Read the test triples, (T, 3). Only the finalising step may call this: a test split that settings were chosen on
        measures nothing any more.

        Raises:
            DataError: the graph has no test split.
        """
        if self.test_reader is None:
            raise DataError(f"{self.source or 'the graph'} has no test split", remedy="add test.tsv (or test2id.txt)")
        return self.test_reader()

    @property
    def test_notes(self) -> tuple[str, ...]:
        """What the user should know of the test split; empty before `open_test`."""
        return tuple(getattr(self.test_reader, "notes", ()))

    def known(self, *splits: np.ndarray) -> KnownAnswers:
        """Index of the answers known from the given splits (default: train and valid)."""
        return KnownAnswers.build(splits or (self.train, self.valid), self.num_relations)

    @cached_property
    def seen(self) -> np.ndarray:
        """(N,) bool: the entity occurs in a training triple. The others are *cold*."""
        mask = np.zeros(self.num_entities, dtype=bool)
        mask[self.train[:, 0]] = True
        mask[self.train[:, 2]] = True
        return mask

    @cached_property
    def counted_valid(self) -> np.ndarray | None:
        """Which validation triples are counted, see `counted_triples`."""
        return counted_triples(self, "valid", self.valid)

    @cached_property
    def clean_valid(self) -> np.ndarray:
        """(T, 3) the validation triples that are counted: decision weights and ensembles are fitted to them."""
        return self.valid if self.counted_valid is None else self.valid[self.counted_valid]

    @cached_property
    def categories(self) -> np.ndarray:
        """(R,) int8: 0 = 1-1, 1 = 1-N, 2 = N-1, 3 = N-N, from train; "N" means 1.5 or more on average (Bordes et al. 2013)."""
        def mean_answers(entity_column: int) -> np.ndarray:
            pairs = np.unique(self.train[:, [entity_column, 1]], axis=0)
            per_relation = np.bincount(self.train[:, 1], minlength=self.num_relations)
            return per_relation / np.maximum(np.bincount(pairs[:, 1], minlength=self.num_relations), 1)

        tails_per_head, heads_per_tail = mean_answers(0), mean_answers(2)
        return ((tails_per_head >= 1.5) * 1 + (heads_per_tail >= 1.5) * 2).astype(np.int8)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabularies, train and valid: what a study is tied to. The test split is not read for it."""
        return fingerprint_of((self.entities, self.relations), (self.train, self.valid))


CATEGORY_NAMES: Sequence[str] = ("1-1", "1-N", "N-1", "N-N")


@dataclass(frozen=True)
class RawGraph:
    """Vocabularies and the lines of each split, before anything is merged or mended.

    Args:
        entities, relations: names in id order, those of the test file included (they are candidates of the ranking).
        train: (T, 3) int64 head, relation, tail ids, one row a line, in the order of the file.
        valid: the same; None if there is no such file.
        test: the same; None if there is no such file, or it was not asked for.
        notes: what the reader wants the user to know (skipped literals, names that look alike, ...).
        source: where it is from.
        made: see `KnowledgeGraph`.
        problems: what makes the figures mean something else than they say (names that are not UTF-8, a header, ...).
    """

    entities: Vocabulary
    relations: Vocabulary
    train: np.ndarray
    valid: np.ndarray | None = None
    test: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
    made: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """The splits that the graph has, by name, in the order train, valid, test."""
        return {name: rows for name in SPLITS if (rows := getattr(self, name)) is not None}


def open_split(graph: KnowledgeGraph, split: str) -> tuple[np.ndarray, KnownAnswers]:
    """The triples (T, 3) of `valid` or `test`, and the answers that are filtered when they are ranked.

    Raises:
        ConfigError: another name.
        DataError: the graph has no test split.
    """
    if split == "valid":
        return graph.valid, graph.known()
    if split == "test":
        triples = graph.open_test()
        return triples, graph.known(graph.train, graph.valid, triples)
    raise ConfigError(f"unknown split {split!r}", remedy="choose valid or test", key="split", value=split)


def counted_triples(graph: KnowledgeGraph, split: str, triples: np.ndarray) -> np.ndarray | None:
    """Which triples of a split its figures are of: the clean ones, which the model has not met before.

    A triple of `valid` is clean if it is not in train, one of `test` if it is in neither train nor valid.

    Args:
        graph: train and valid are read.
        split: `valid` or `test`.
        triples: (T, 3), of that split.

    Returns:
        See `counted_of`.
    """
    earlier = [graph.train] if split == "valid" else [graph.train, graph.valid]
    return counted_of(triples, earlier, graph.num_entities, graph.num_relations)


def overlap_note(split: str, counted: np.ndarray | None) -> str:
    """What to say of the figures of a split that shares triples with an earlier one; empty where it does not.

    Args:
        split: `valid` or `test`.
        counted: see `counted_of`.
    """
    if counted is None:
        return ""
    count = len(counted)
    return overlap_words(split, count, 0 if counted.all() else int(counted.sum()))


def overlap_words(split: str, count: int, clean: int, noun: str = "triples") -> str:
    """`21 of 28 test triples stand in train or valid too: figures are of the other 7, with those of all lines beside`.

    Args:
        split: `valid` or `test`.
        count: of its triples, or lines.
        clean: how many of them stand in no earlier split; fewer than all.
        noun: what is counted.
    """
    where, name = ("train", "validation") if split == "valid" else ("train or valid", "test")
    if not clean:
        return f"all {count:,} {name} {noun} stand in {where} too: no figure is of answers that are new to the model"
    return (
        f"{count - clean:,} of {count:,} {name} {noun} stand in {where} too: figures are of the other {clean:,}, with those of "
        f"{ALL_LINES} beside"
    )


def counted_title(count: float, whole: float | None) -> str:
    """What to call the figures of so many ranks, where the slice of all lines has `whole`: `clean` or `all`."""
    return "all" if whole is None or whole == count else "clean"


def split_notes(graph: KnowledgeGraph, split: str, triples: np.ndarray) -> list[str]:
    """What to say beside figures of a split: what was done to its lines, and that it shares triples with an earlier split.

    Args:
        graph: of the split.
        split: `valid` or `test`.
        triples: (T, 3), from `open_split`.
    """
    note = overlap_note(split, counted_triples(graph, split, triples))
    told = [*(graph.notes if split == "valid" else graph.test_notes), note]
    return [line for line in dict.fromkeys(told) if line]
