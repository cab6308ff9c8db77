"""Top-k metrics against values by hand and against the mean over all orders of tied items."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from imf_core.errors import DivergedError
from imf_core.recommend.data.interactions import Owned
from imf_core.recommend.topk import Popularity, TopKMetrics, evaluate_top_k
from imf_core.runtime import Shard


class Table:
    """Given scores."""

    def __init__(self, rows: list) -> None:
        self.table = torch.tensor(rows, dtype=torch.float32)
        self.num_items = self.table.shape[1]

    def scores(self, users: Tensor) -> Tensor:
        return self.table[users].clone()


def owned(lists: list[list[int]]) -> Owned:
    pairs = [(user, item) for user, items in enumerate(lists) for item in items]
    return Owned.build([np.array(pairs, dtype=np.int64).reshape(-1, 2)], len(lists), 1000)


def metrics(scores: list, relevant: list[list[int]], known: list[list[int]] | None = None, k: int = 10) -> dict[str, float]:
    return evaluate_top_k(Table(scores), owned(relevant), owned(known or [[]] * len(relevant)), k=k).flat()


FALLING = [[float(-item) for item in range(30)]]  # item k stands at place k + 1


@pytest.mark.parametrize(
    ("relevant", "ndcg"),
    [
        ([0, 20, 21], 0.469279),  # 3 relevant, one hit at place 1
        ([1, 20, 21], 0.296082),  # one hit at place 2
        (list(range(12)), 1.0),  # 12 relevant and all of the first 10 are hits
        ([1], 0.630930),  # 1 relevant item at place 2
    ],
)
def test_rec_5_ndcg_by_hand(relevant: list[int], ndcg: float) -> None:
    assert metrics(FALLING, [relevant])["ndcg_at_10"] == pytest.approx(ndcg, abs=1e-6)


def test_all_values_by_hand() -> None:
    found = metrics(FALLING, [[2, 9, 10, 29]])
    assert found["precision_at_10"] == pytest.approx(2 / 10)
    assert found["recall_at_10"] == pytest.approx(2 / 4)
    assert found["hit_ratio_at_10"] == 1
    assert found["mrr"] == pytest.approx((1 / 3 + 1 / 9 + 1 / 9 + 1 / 27) / 4)  # the other relevant ones do not compete
    ideal = sum(1 / math.log2(place + 1) for place in range(1, 5))
    assert found["ndcg_at_10"] == pytest.approx((1 / math.log2(4) + 1 / math.log2(11)) / ideal)


@pytest.mark.parametrize("seed", range(5))
def test_the_reciprocal_rank_is_that_of_link_prediction(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 5, (6, 12)).astype(float)
    lists = [random.choice(12, int(random.integers(1, 6)), replace=False).tolist() for _ in range(6)]
    means = []
    for row, relevant in zip(scores, lists, strict=True):
        rest = np.delete(row, relevant)
        means.append(np.mean([1 / (1 + (rest > row[item]).sum() + (rest == row[item]).sum() / 2) for item in relevant]))
    assert metrics(scores.tolist(), lists)["mrr"] == pytest.approx(np.mean(means))


def test_rec_2_users_without_test_items_are_left_out() -> None:
    found = evaluate_top_k(Table(FALLING * 3), owned([[], [0], [15]]), owned([[], [], []]))
    assert found.count == 2
    assert found.flat()["recall_at_10"] == pytest.approx(0.5)
    nobody = evaluate_top_k(Table(FALLING), owned([[]]), owned([[]]))
    assert nobody.count == 0
    assert set(nobody.flat().values()) == {0.0}


def test_known_items_are_not_ranked_and_not_relevant() -> None:
    found = metrics(FALLING, [[2]], [[0, 1]], k=1)
    assert found["precision_at_1"] == 1
    twice = evaluate_top_k(Table(FALLING * 2), owned([[0, 3], [0]]), owned([[0], [0]]), k=10)
    assert twice.count == 1  # what the second user should be recommended is what she has
    assert twice.flat()["recall_at_10"] == 1


@pytest.mark.parametrize("seed", range(12))
def test_ties_give_the_mean_over_all_their_orders(seed: int) -> None:
    random = np.random.default_rng(seed)
    levels, k = random.integers(0, 3, 6), int(random.integers(1, 6))
    relevant = random.choice(6, int(random.integers(1, 4)), replace=False).tolist()
    expected: dict[str, list[float]] = {}
    for order in permutations(range(6)):  # every order breaks the ties in its own way, each equally often
        places = sorted(range(6), key=lambda item: (-levels[item], order[item]))
        broken = [0.0] * 6
        for place, item in enumerate(places):
            broken[item] = -float(place)
        for name, value in metrics([broken], [relevant], k=k).items():
            expected.setdefault(name, []).append(value)
    found = metrics([levels.astype(float).tolist()], [relevant], k=k)
    for name in (f"precision_at_{k}", f"recall_at_{k}", f"hit_ratio_at_{k}", f"ndcg_at_{k}"):
        assert found[name] == pytest.approx(np.mean(expected[name])), name


def test_a_constant_score_earns_what_chance_earns() -> None:
    found = metrics([[0.5] * 100], [[7]])
    assert found["recall_at_10"] == pytest.approx(0.1)
    assert found["hit_ratio_at_10"] == pytest.approx(0.1)
    assert found["mrr"] == pytest.approx(1 / 50.5)


def test_blocks_and_shards_add_up() -> None:
    random = np.random.default_rng(0)
    scores = Table(random.normal(size=(40, 25)).tolist())
    relevant = owned([random.choice(25, int(random.integers(0, 4)), replace=False).tolist() for _ in range(40)])
    known = owned([random.choice(25, 5, replace=False).tolist() for _ in range(40)])
    whole = evaluate_top_k(scores, relevant, known)
    assert evaluate_top_k(scores, relevant, known, budget=1).vector() == pytest.approx(whole.vector())
    parts = [evaluate_top_k(scores, relevant, known, shard=Shard(rank, 3)) for rank in range(3)]
    assert (parts[0] + parts[1] + parts[2]).vector() == pytest.approx(whole.vector())
    assert TopKMetrics.unpack(whole.pack()) == whole


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_none_ends_the_evaluation(bad: float) -> None:
    with pytest.raises(DivergedError):
        metrics([[0.1, bad, 0.3]], [[0]])


def test_popularity_counts_training_interactions() -> None:
    scorer = Popularity(np.array([(0, 2), (1, 2), (1, 0)]), 4)
    assert scorer.scores(torch.tensor([0, 1])).tolist() == [[1, 0, 2, 0]] * 2
