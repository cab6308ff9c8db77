"""Batches in pieces: the rows in their order, whatever the number of threads, which is as before afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from imf_core.encode.image.pieces import in_pieces


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 4, 5, 23])
def test_rows_keep_their_order(threads: int, count: int) -> None:
    torch.set_num_threads(threads)
    sizes: list[int] = []

    def run(piece: np.ndarray) -> np.ndarray:
        sizes.append(len(piece))
        return np.stack([piece, piece**2], axis=1)

    rows = in_pieces(run, np.arange(count))
    assert rows.tolist() == [[number, number**2] for number in range(count)]
    assert sorted(sizes, reverse=True) == [4] * (count // 4) + [count % 4] * (count % 4 > 0)
    assert torch.get_num_threads() == threads


def test_pieces_run_side_by_side_each_on_one_thread() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=60)  # is passed by two at once alone
    seen: list[int] = []

    def run(piece: np.ndarray) -> np.ndarray:
        both.wait()
        seen.append(torch.get_num_threads())
        return piece

    in_pieces(run, np.arange(8))
    assert seen == [1, 1]


def test_a_failure_is_handed_on_and_leaves_the_threads_as_they_were() -> None:
    torch.set_num_threads(2)

    def run(piece: np.ndarray) -> np.ndarray:
        raise MemoryError("no room")

    with pytest.raises(MemoryError):
        in_pieces(run, np.arange(9))
    assert torch.get_num_threads() == 2
