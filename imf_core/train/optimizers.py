"""The optimizer of a model: large parameters are stepped within the backward pass, so that their gradients never exist
together.

Of a gradient as large as its parameter, half the cost on a CPU is the fresh memory. Stepped at once, it is freed before the
next one is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_LARGE = 2**20  # numbers of a parameter that is stepped by itself: a launch more costs nothing beside its update


class Optimizers:
    """Adam or AdamW over all parameters of a model, as one fused optimizer and one more for each large parameter.

    Args:
        model: its trained parameters, in order, number the state.
        kind: `adam` or `adamw`.
        lr: learning rate, > 0.
        weight_decay: >= 0.
        early: step large parameters as soon as their gradient is complete and drop it: only where no other process's
            gradient has to be waited for. `close` ends it.
    """

    def __init__(self, model: nn.Module, kind: str, lr: float, weight_decay: float, early: bool = False) -> None:
        made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
        self._parameters = list(model.parameters())
        large = [early and parameter.numel() >= _LARGE for parameter in self._parameters]
        small = [parameter for parameter, is_large in zip(self._parameters, large, strict=True) if not is_large]
        self._late = [made(small, lr=lr, weight_decay=weight_decay, fused=True)] if small else []
        self._early = [
            made([parameter], lr=lr, weight_decay=weight_decay, fused=True)
            for parameter, is_large in zip(self._parameters, large, strict=True) if is_large
        ]
        self._hooks = [
            optimizer.param_groups[0]["params"][0].register_post_accumulate_grad_hook(_stepped_by(optimizer))
            for optimizer in self._early
        ]

    def close(self) -> None:
        """From now on a backward pass only makes gradients."""
        for hook in self._hooks:
            hook.remove()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Update what `backward` has not updated yet."""
        for optimizer in self._late:
            optimizer.step()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameters."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Moments and step counts by the position of their parameter in the model."""
        entries = {id(parameter): entry for optimizer in self._all for parameter, entry in optimizer.state.items()}
        return {
            position: {name: value for name, value in entries[id(parameter)].items() if isinstance(value, Tensor)}
            for position, parameter in enumerate(self._parameters) if id(parameter) in entries
        }

    def load_state(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take over what `state` gave."""
        positions = {id(parameter): position for position, parameter in enumerate(self._parameters)}
        for optimizer in self._all:
            whole: dict[str, Any] = optimizer.state_dict()
            order = [positions[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
            whole["state"] = {own: dict(state[position]) for own, position in enumerate(order) if position in state}
            optimizer.load_state_dict(whole)

    @property
    def _all(self) -> tuple[torch.optim.Optimizer, ...]:
        return (*self._late, *self._early)


def _stepped_by(optimizer: torch.optim.Optimizer) -> Any:
    def step(parameter: Tensor) -> None:
        optimizer.step()
        parameter.grad = None

    return step
