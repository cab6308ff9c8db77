"""All tensors of a dataclass in one buffer for each kind of number: copying them to a GPU then takes one copy a kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def packed(owner: Any) -> list[Tensor]:
    """A buffer (n,) of each dtype with the numbers of all tensors of it, in the order of the fields.

    Args:
        owner: a dataclass of tensors, of dataclasses of tensors, and of anything else, which is left out.
    """
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in _tensors(owner):
        kinds.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
    return [torch.cat(tensors) for tensors in kinds.values()]


def shapes(owner: Any) -> tuple[torch.Size, ...]:
    """Of all tensors, in the order of the fields: dataclasses of equal shapes fit the same buffers."""
    return tuple(tensor.shape for tensor in _tensors(owner))


def unpacked(like: T, buffers: Sequence[Tensor]) -> T:
    """A copy of the dataclass `like` whose tensors are views of the buffers, which `packed` made of it or of one alike."""
    places = {buffer.dtype: (buffer, [0]) for buffer in buffers}

    def view(tensor: Tensor) -> Tensor:
        buffer, start = places[tensor.dtype]
        start[0] += tensor.numel()
        return buffer[start[0] - tensor.numel() : start[0]].view(tensor.shape)

    def rebuilt(owner: Any) -> Any:
        changed: dict[str, Any] = {}
        for field in fields(owner):
            value = getattr(owner, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = view(value)
            elif is_dataclass(value):
                changed[field.name] = rebuilt(value)
        return replace(owner, **changed)

    made: T = rebuilt(like)
    return made


def _tensors(owner: Any) -> Iterator[Tensor]:
    for field in fields(owner):
        value = getattr(owner, field.name)
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors(value)
