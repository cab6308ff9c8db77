"""The average of a model's weights, which is evaluated and kept instead of them (Polyak and Juditsky 1992).

With a large learning rate the weights move around a minimum; their mean is closer to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Moving average of tensors that a step changes in place.

    With a decay it is exponential: the decay after step t is the smaller of `decay` and (1 + t) / (10 + t), so that the initial
    values soon lose weight. With a share p it spans about the last p t steps, at every t: the values of step t get the weight
    1 / (p (t - 1) + 1) (polynomial-decay averaging, Shamir and Zhang, ICML 2013).

    Args:
        tensors: by name; they must not be replaced while the average is used.
        decay: 0 < decay < 1; unused with a share.
        share: p, 0 < p <= 1; 0: exponential.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float, share: float = 0.0) -> None:
        self.decay, self.share, self.steps = decay, share, 0
        self._names, self._live = list(tensors), list(tensors.values())
        self._mean = [tensor.detach().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Add the values after a step to the average."""
        self.steps += 1
        if self.share:
            newest = 1 / (self.share * (self.steps - 1) + 1)
        else:
            newest = 1.0 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._mean, self._live, newest)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model holds the averages; changes made to them there are kept in the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """The averages by name, and `steps`."""
        return {**dict(zip(self._names, self._mean, strict=True)), "steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.steps = int(state["steps"])
        for name, mean in zip(self._names, self._mean, strict=True):
            mean.copy_(state[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for live, mean in zip(self._live, self._mean, strict=True):
            kept = live.clone()
            live.copy_(mean)
            mean.copy_(kept)


def averaged_tensors(state: Mapping[str, Tensor], left_out: Sequence[str] = ()) -> dict[str, Tensor]:
    """The trained tensors that can be averaged: floating point, and not named in `left_out`."""
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point() and name not in left_out}
