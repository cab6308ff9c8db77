"""How an image model is run: in small pieces, each on a thread of its own; on a GPU in full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

_PIECE = 4  # pictures; the activations of more are so large that the allocator asks the system for each of them anew


def in_pieces(run: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """What `run` makes of a batch, piece by piece, as many at once as torch has threads.

    Threads that share one picture wait for each other after every layer, and where other processes keep a core busy, all
    wait for the slowest. The result does not depend on their number.

    Args:
        run: (b, f) of (b, ...), row by row, safe to call from several threads.
        pixels: (n, ...), n > 0.
    """
    import torch

    pieces = [pixels[low : low + _PIECE] for low in range(0, len(pixels), _PIECE)]
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) == 1:
        return np.concatenate([run(piece) for piece in pieces])
    try:
        with ThreadPoolExecutor(min(threads, len(pieces)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return np.concatenate(list(pool.map(run, pieces)))
    finally:
        torch.set_num_threads(threads)  # part of the setting is the process's, not the thread's


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions of a GPU in float32: in TF32, its default, a vector would depend on its neighbours in the third digit."""
    import torch

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
