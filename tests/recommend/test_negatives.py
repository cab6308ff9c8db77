"""Negatives: never a training item, all others equally often, no loop; and users who have everything."""

from __future__ import annotations

import numpy as np
import pytest

from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import DataError
from imf_core.recommend.data.interactions import Interactions, Owned
from imf_core.recommend.negatives import Negatives, TrainingPairs
from imf_core.runtime import Shard


def interactions(pairs: list, num_users: int, num_items: int) -> Interactions:
    names = [Vocabulary(tuple(map(str, range(count))), kind) for count, kind in ((num_users, "user"), (num_items, "item"))]
    return Interactions(*names, np.array(pairs, dtype=np.int64), np.empty((0, 2), np.int64), source="toy")


def test_every_missing_item_is_drawn_equally_often_and_no_other() -> None:
    lists = [[0, 1, 2, 5, 9], [], [9], [0], [0, 1, 2, 3, 4, 5, 6, 7, 9]]
    pairs = np.array([(user, item) for user, items in enumerate(lists) for item in items])
    draws = Negatives(Owned.build([pairs], 5, 10), 10)
    for user, items in enumerate(lists):
        drawn = draws.draw(np.full(500, user), 8, np.random.default_rng(0)).ravel()
        counts = np.bincount(drawn, minlength=10)
        missing = sorted(set(range(10)) - set(items))
        assert np.flatnonzero(counts).tolist() == missing
        assert counts[missing] == pytest.approx(4000 / len(missing), rel=0.15)


def test_a_user_who_has_everything_is_left_out_and_counted() -> None:
    pairs = TrainingPairs(interactions([(0, 0), (0, 1), (0, 2), (1, 0)], 2, 3))
    assert pairs.left_out == 3
    batches = list(pairs.epoch(10, 4, seed=0, epoch=1))
    assert [batch[0].tolist() for batch in batches] == [[1]]
    assert set(batches[0][2].ravel().tolist()) <= {1, 2}
    with pytest.raises(ValueError, match="user 0 has every item"):
        pairs.negatives.draw(np.array([0]), 1, np.random.default_rng(0))
    with pytest.raises(DataError, match="every user has every item"):
        TrainingPairs(interactions([(0, 0), (0, 1)], 1, 2))


def test_an_epoch_has_each_interaction_once_whatever_the_ranks() -> None:
    rows = [(user, item) for user in range(7) for item in range(user + 1)]
    pairs = TrainingPairs(interactions(rows, 7, 9))
    alone = list(pairs.epoch(8, 3, seed=1, epoch=2))
    assert sorted((u, i) for users, items, _, _ in alone for u, i in zip(users.tolist(), items.tolist(), strict=True)) == rows
    shared = [list(pairs.epoch(8, 3, seed=1, epoch=2, shard=Shard(rank, 2))) for rank in range(2)]
    for whole, first, second in zip(alone, *shared, strict=True):
        assert whole[2][0::2].tolist() == first[2].tolist()
        assert whole[2][1::2].tolist() == second[2].tolist()
        assert first[3] + second[3] == pytest.approx(2)  # averaging both gives the mean of the whole step
    again = list(pairs.epoch(8, 3, seed=1, epoch=2))
    other = list(pairs.epoch(8, 3, seed=1, epoch=3))
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(alone, again, strict=True))
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(alone, other, strict=True))


@pytest.mark.parametrize(("batch_size", "world"), [(1, 1), (2, 2), (3, 2), (100, 2), (1, 3), (4, 3)])
def test_no_rank_has_an_empty_step(batch_size: int, world: int) -> None:
    pairs = TrainingPairs(interactions([(0, item) for item in range(5)], 1, 9))
    counts = [[len(batch[0]) for batch in pairs.epoch(batch_size, 1, 0, 1, Shard(rank, world))] for rank in range(world)]
    assert len({len(steps) for steps in counts}) == 1
    assert min(map(min, counts)) >= 1
    assert sum(map(sum, counts)) == 5


def test_more_workers_than_interactions_are_refused() -> None:
    with pytest.raises(DataError, match="1 training interactions for 2 workers"):
        TrainingPairs(interactions([(0, 0)], 1, 2)).num_steps(1, 2)
