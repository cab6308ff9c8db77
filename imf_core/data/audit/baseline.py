"""A baseline without training: one-step rules, then how often a candidate is an answer of the relation.

A model that does not beat it has learned nothing that a table of counts does not know. The rules are those of length
one of AnyBURL (Meilicke et al., IJCAI 2019), with their plain confidence.

Letters used in shapes: `N` entities, `R` relations, `T` triples, `B` queries of a chunk, `K` links of a chunk.
A query is (entity, relation id below 2R) as in `KnownAnswers`: `(t, r + R)` asks for heads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from imf_core.data.audit.relations import flipped, shared_pairs
from imf_core.data.graph.graph import KnownAnswers, expand_ranges

_CHUNK = 4_000_000  # links and known answers looked at together: about 0.5 GB
_MOST = 100_000_000  # links looked at in all, about half a minute; beyond it a sample of the triples is ranked
_QUERIES = 65_536  # queries of a chunk, so that query and score fit one 64-bit key


@dataclass(frozen=True)
class BaselineMetrics:
    """Filtered ranking metrics over both directions, as of a model.

    Args:
        count: ranks, two a triple.
        mrr, mean_rank, hits_at_1, hits_at_3, hits_at_10: shares are 0..1.
        sampled_from: triples of the split if only an even sample of them was ranked, else None.
        mrr_all_lines: of a split that shares triples with an earlier one: the other figures are of the clean triples.
    """

    count: int
    mrr: float
    mean_rank: float
    hits_at_1: float
    hits_at_3: float
    hits_at_10: float
    sampled_from: int | None = None
    mrr_all_lines: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return asdict(self)

    def describe(self) -> str:
        """`MRR 29.6, MR 1661, H@1 23.2, H@3 31.6, H@10 41.6`, in percent; `MRR 28.8 (all lines 29.6), ...`."""
        hits = ", ".join(f"H@{k} {100 * getattr(self, f'hits_at_{k}'):.1f}" for k in (1, 3, 10))
        sample = f" (a sample: {self.count // 2:,} of {self.sampled_from:,} triples)" if self.sampled_from else ""
        whole = "" if self.mrr_all_lines is None else f" (all lines {100 * self.mrr_all_lines:.1f})"
        return f"MRR {100 * self.mrr:.1f}{whole}, MR {self.mean_rank:.0f}, {hits}{sample}"


def baseline(
    train: np.ndarray, num_entities: int, num_relations: int, triples: np.ndarray, known: KnownAnswers,
    counted: np.ndarray | None = None,
) -> BaselineMetrics:
    """Rank a split without training anything.

    Args:
        train: (T, 3) training triples without repeats.
        triples: (S, 3) what is ranked, in both directions.
        known: what is filtered: train and valid for validation; all three splits for test.
        counted: (S,) bool, the triples that the metrics are of, see `counted_of`; None: all.
    """
    return OneStepRules(train, num_entities, num_relations).evaluate(triples, known, counted)


class OneStepRules:
    """The rules of a training split and the ranking that they give.

    A candidate e of (h, r, ?) is ordered by the largest confidence of a link between h and e in train, where
    `conf(a -> r)` is the share of the pairs linked by `a` that `r` links too; links in the same direction and reversed ones
    count apart, and r itself in the same direction is left out. Equal confidence, and no rule at all (which ranks below any
    rule), is ordered by how often e is an answer of r in train. What is still equal then is a tie and gets the mean rank.

    Args:
        train: (T, 3) training triples without repeats.
        num_entities, num_relations: N and R.
    """

    def __init__(self, train: np.ndarray, num_entities: int, num_relations: int) -> None:
        self.num_entities, self.num_relations = num_entities, num_relations
        self.links = KnownAnswers.build([train], num_relations)
        self.rules, self.levels = _rules(train, num_entities, num_relations)
        self.answers = answers = np.diff(self.links.offsets)  # of the query (e, r + R): how often e is an answer of r
        entities, asked = self.links.queries()
        self.base = int(answers.max(initial=0)) + 1  # a score is level * base + count
        self.scale = self.base * (int(self.levels.max(initial=0)) + 1)
        answered = (asked + num_relations) % (2 * num_relations)
        self.counts = np.sort(answered * self.scale + answers)  # per relation, ascending
        self.spread = np.bincount(answered, minlength=2 * num_relations)  # entities that are an answer of each relation
        starts = np.searchsorted(entities, np.arange(num_entities + 1))  # queries of an entity lie together
        self.first = self.links.offsets[starts]  # so do its links
        self.link_relation = np.repeat(asked.astype(np.int32), answers)

    def evaluate(
        self, triples: np.ndarray, known: KnownAnswers, counted: np.ndarray | None = None
    ) -> BaselineMetrics:
        """Metrics over both directions; an even sample of the triples where all would take minutes. See `baseline`."""
        cost = self._cost(triples)
        step = -(-cost // _MOST)
        sample = triples[:: max(step, 1)]
        ranks = self.ranks(sample, known)
        if not len(ranks):
            return BaselineMetrics(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        whole = None
        if counted is not None and (chosen := counted[:: max(step, 1)]).any():
            whole, ranks = float((1 / ranks).mean()), ranks[np.tile(chosen, 2)]
        one, three, ten = (float((ranks <= k).mean()) for k in (1, 3, 10))
        sampled_from = len(triples) if len(sample) < len(triples) else None
        return BaselineMetrics(len(ranks), float((1 / ranks).mean()), float(ranks.mean()), one, three, ten, sampled_from, whole)

    def ranks(self, triples: np.ndarray, known: KnownAnswers) -> np.ndarray:
        """(2S,) float64 filtered mean ranks: of the tails, then of the heads."""
        entities = np.concatenate([triples[:, 0], triples[:, 2]])
        relations = np.concatenate([triples[:, 1], triples[:, 1] + self.num_relations])
        targets = np.concatenate([triples[:, 2], triples[:, 0]])
        width = 2 * self.num_relations
        queries, which = np.unique(entities * width + relations, return_inverse=True)
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(len(queries) + 1))
        asked, kinds = queries // width, queries % width
        ranks = np.empty(len(targets))
        for low, high in self._chunks(asked, kinds, known):
            places = order[bounds[low] : bounds[high]]
            ranks[places] = self._ranks(asked[low:high], kinds[low:high], which[places] - low, targets[places], known)
        return ranks

    def best(
        self, entities: np.ndarray, relations: np.ndarray, known: KnownAnswers, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The strongest candidates that a rule gives.

        Args:
            entities, relations: (Q,) distinct queries.
            known: answers that do not count as candidates.
            most: H.

        Returns:
            (Q, H) int64 entities and (Q, H) float32 scores, descending; entity 0 and NaN where there are fewer.
        """
        found = np.zeros((len(entities), most), dtype=np.int64)
        scores = np.full((len(entities), most), np.nan, dtype=np.float32)
        size = self.num_entities
        for low, high in self._chunks(entities, relations, known):
            asked, kinds = entities[low:high], relations[low:high]
            rows, linked, level = self._ruled(asked, kinds)
            known_rows, answers = known.lookup(asked, kinds)
            hidden = np.isin(rows * size + linked, known_rows * size + answers)
            keys, starts = np.unique(rows[~hidden] * size + linked[~hidden], return_inverse=True)
            level_of = np.zeros(len(keys), dtype=np.int64)
            np.maximum.at(level_of, starts, level[~hidden])
            row, entity = keys // size, keys % size
            score = level_of * self.base + self._count(entity, kinds[row])
            order = np.lexsort((entity, -score, row))
            row, entity, score = row[order], entity[order], score[order]
            place = np.arange(len(row)) - np.searchsorted(row, row)
            kept = place < most
            found[low + row[kept], place[kept]] = entity[kept]
            scores[low + row[kept], place[kept]] = score[kept]
        return found, scores

    def _ruled(self, entities: np.ndarray, relations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The candidates (K,) of (B,) queries that a rule gives, one for each link: query, entity, level of the rule."""
        reach = self.first[entities], self.first[entities + 1]
        rows, linked = expand_ranges(*reach, self.links.answers)
        _, through = expand_ranges(*reach, self.link_relation)
        level = _look_up(self.rules, self.levels, through * (2 * self.num_relations) + relations[rows])
        ruled = np.flatnonzero(level)
        return rows[ruled], linked[ruled], level[ruled]

    def _ranks(
        self, entities: np.ndarray, relations: np.ndarray, rows: np.ndarray, targets: np.ndarray, known: KnownAnswers
    ) -> np.ndarray:
        """Ranks of targets, each an answer of one of B distinct queries.

        Only the *listed* candidates are looked at one by one: those with a rule, known answers and targets. The others differ
        by their count alone, and how many have a larger one is a look into a sorted list.

        Args:
            entities, relations: (B,) the queries.
            rows, targets: (M,) position of the query, entity that is ranked.
        """
        size = self.num_entities
        link_rows, linked, level = self._ruled(entities, relations)
        ruled = len(level)
        known_rows, answers = known.lookup(entities, relations)
        keys = np.concatenate([link_rows * size + linked, known_rows * size + answers, rows * size + targets])
        level = np.concatenate([level, np.zeros(len(keys) - ruled, dtype=level.dtype)])
        hidden = np.zeros(len(keys), dtype=bool)
        hidden[ruled : len(keys) - len(rows)] = True
        order = np.argsort(keys, kind="stable")
        keys, starts = np.unique(keys[order], return_index=True)
        level = np.maximum.reduceat(level[order], starts).astype(np.int64) if len(keys) else level
        hidden = np.logical_or.reduceat(hidden[order], starts) if len(keys) else hidden

        row = keys // size
        count = self._count(keys % size, relations[row])
        score = level * self.base + count
        listed = np.sort(row * self.scale + count)
        rivals = np.sort((row * self.scale + score)[~hidden])
        target_position = np.searchsorted(keys, rows * size + targets)
        target_score = score[target_position]

        above, ties = _compare(rivals, rows, target_score, self.scale)
        ties -= ~hidden[target_position]  # a target that is no known answer is one of the rivals itself
        counts_above, counts_equal = _compare(self.counts, relations[rows], target_score, self.scale)
        counts_equal += np.where(target_score == 0, size - self.spread[relations[rows]], 0)
        listed_above, listed_equal = _compare(listed, rows, target_score, self.scale)
        return 1 + above + counts_above - listed_above + (ties + counts_equal - listed_equal) / 2

    def _count(self, entities: np.ndarray, relations: np.ndarray) -> np.ndarray:
        """How often each entity is an answer of the relation in train."""
        width = 2 * self.num_relations
        wanted = entities * width + (relations + self.num_relations) % width
        return _look_up(self.links.keys, self.answers, wanted)

    def _cost(self, triples: np.ndarray) -> int:
        """Links looked at for a split: those of the entity of each distinct query."""
        width = 2 * self.num_relations
        codes = np.concatenate([triples[:, 0] * width + triples[:, 1], triples[:, 2] * width + triples[:, 1] + width // 2])
        entities = np.unique(codes) // width
        return int((self.first[entities + 1] - self.first[entities]).sum())

    def _chunks(self, entities: np.ndarray, relations: np.ndarray, known: KnownAnswers) -> list[tuple[int, int]]:
        """Ranges of queries whose links and known answers fit a chunk; a query alone may be larger."""
        wanted = entities * (2 * self.num_relations) + relations
        position = np.minimum(np.searchsorted(known.keys, wanted), max(len(known.keys) - 1, 0))
        answers = np.diff(known.offsets)[position] if len(known.keys) else 0
        load = np.cumsum(self.first[entities + 1] - self.first[entities] + answers)
        chunks, low = [], 0
        while low < len(entities):
            before = int(load[low - 1]) if low else 0
            high = int(np.searchsorted(load, before + _CHUNK, side="right"))
            high = min(max(high, low + 1), low + _QUERIES)
            chunks.append((low, high))
            low = high
        return chunks


def _compare(sorted_keys: np.ndarray, rows: np.ndarray, scores: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """How many entries of a row are above and equal to `own`, in ascending keys `row * scale + score`."""
    left = np.searchsorted(sorted_keys, rows * scale + scores, side="left")
    right = np.searchsorted(sorted_keys, rows * scale + scores, side="right")
    end = np.searchsorted(sorted_keys, (rows + 1) * scale, side="left")
    return end - right, right - left


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where it is none of the ascending keys."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    position = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[position] == wanted, values[position], 0)


def _rules(train: np.ndarray, num_entities: int, num_relations: int) -> tuple[np.ndarray, np.ndarray]:
    """Rules a -> r as ascending keys `a * 2R + r`, and the place of `conf(a -> r)` among all distinct confidences, from 1."""
    sizes = np.bincount(train[:, 1], minlength=num_relations)
    same = shared_pairs(train, train, num_entities, num_relations).tocoo()
    turned = shared_pairs(train, flipped(train), num_entities, num_relations).tocoo()
    other = same.row != same.col  # the relation itself in its own direction is no rule
    keys, confidences = [], []
    for part, keep, shift in ((same, other, 0), (turned, np.ones(turned.nnz, dtype=bool), num_relations)):
        a, r, share = part.row[keep].astype(np.int64), part.col[keep].astype(np.int64), part.data[keep] / sizes[part.row[keep]]
        # What holds in one direction holds with both relations reversed.
        keys += [a * 2 * num_relations + r + shift, (a + num_relations) * 2 * num_relations + r + num_relations - shift]
        confidences += [share, share]
    order = np.argsort(np.concatenate(keys))
    # The quotient of equal fractions is the same float, as division is rounded correctly.
    _, level = np.unique(np.concatenate(confidences)[order], return_inverse=True)
    return np.concatenate(keys)[order], level.astype(np.int64) + 1
