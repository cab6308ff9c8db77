"""The optimizer of a model: large parameters are updated within the backward pass, so that their gradients never exist at the
same time.

On a CPU, half the cost of a large gradient is its newly allocated memory. If the parameter is updated at once, that memory is
freed before the next gradient needs some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imf_core.train.averaging import WeightAverage
from imf_core.train.pace import WATCH

_LARGE = 2**20  # numbers of a parameter with an optimizer of its own: the additional call costs nothing beside its update


class Optimizers:
    """Adam or AdamW over all parameters of a model, as one fused optimizer and one more for each large parameter; Adagrad for
    `tables`.

    Args:
        model: the order of its parameters identifies them in the saved state.
        kind: `adam` or `adamw`; `adagrad` stands for Adam.
        lr: learning rate, > 0.
        weight_decay: >= 0; Adagrad has none.
        sparse: parameters with sparse gradients: SparseAdam (or Adagrad) updates only the rows that a step touches, moments
            included, and without weight decay.
        tables: parameters that Adagrad updates, with the rate `table_lr`.
        early: update large parameters as soon as their gradient is complete, and drop it: possible only if there are no
            gradients of other processes to average with. `close` ends it.

    Attributes:
        average: follows the steps; None unless set.
        stepped: whether a parameter was updated since `zero_grad`.
        capturable: whether `update` can be part of a captured step: on a GPU, with Adam alone. Its learning rate is a tensor.
    """

    def __init__(
        self, model: nn.Module, kind: str, lr: float, weight_decay: float, sparse: Iterable[nn.Parameter] = (),
        early: bool = False, tables: Iterable[nn.Parameter] = (), table_lr: float = 0.1,
    ) -> None:
        self._parameters, self._sparse = list(model.parameters()), list(sparse)
        in_tables = {id(parameter) for parameter in tables}
        sparse_ids = {id(parameter) for parameter in self._sparse}
        device = self._parameters[0].device
        self.capturable = device.type == "cuda" and not in_tables and not sparse_ids
        rate = torch.tensor(lr, device=device) if self.capturable else lr

        def optimizer(parameters: list[nn.Parameter], adagrad: bool, fused: bool = True) -> torch.optim.Optimizer:
            if adagrad:  # torch has a fused Adagrad for CPUs alone, and none for sparse gradients
                torch.sparse.check_sparse_tensor_invariants.disable()  # else its sparse step warns
                fused = fused and parameters[0].device.type == "cpu"
                return torch.optim.Adagrad(parameters, lr=table_lr, fused=fused)
            if not fused:
                return torch.optim.SparseAdam(parameters, lr=lr)
            adam = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
            return adam(parameters, lr=rate, weight_decay=weight_decay, fused=True, capturable=self.capturable)

        self._late: list[torch.optim.Optimizer] = []
        self._early: list[torch.optim.Optimizer] = []
        for adagrad in (False, True):
            mine = [parameter for parameter in self._parameters if (id(parameter) in in_tables) == adagrad]
            rows = [parameter for parameter in mine if id(parameter) in sparse_ids]
            dense = [parameter for parameter in mine if id(parameter) not in sparse_ids]
            small = [parameter for parameter in dense if not early or parameter.numel() < _LARGE]
            large = [parameter for parameter in dense if early and parameter.numel() >= _LARGE]
            if small:
                self._late.append(optimizer(small, adagrad))
            if rows:
                self._late.append(optimizer(rows, adagrad, fused=False))
            self._early += [optimizer([parameter], adagrad) for parameter in large]
        self._rates = [table_lr if isinstance(made, torch.optim.Adagrad) else lr for made in self._all]
        self.average: WeightAverage | None = None
        self.stepped = False
        self._hooks = [
            alone.param_groups[0]["params"][0].register_post_accumulate_grad_hook(self._stepped_by(alone))
            for alone in self._early
        ]

    def close(self) -> None:
        """From now on a backward pass updates no parameter."""
        for hook in self._hooks:
            hook.remove()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.stepped = False
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Update the parameters that `backward` has not updated yet, and the average."""
        self.update()
        self.follow()

    def update(self) -> None:
        """Update the parameters that `backward` has not updated yet."""
        self.stepped = True
        for optimizer in self._late:
            optimizer.step()

    def follow(self) -> None:
        """Let the average, and whoever watches the pace, follow an update."""
        if self.average is not None:
            self.average.update()
        if (watch := WATCH.get()) is not None:
            watch.step()

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the model holds the average of its weights, if there is one."""
        return self.average.applied() if self.average is not None else nullcontext()

    def scale_lr(self, factor: float) -> None:
        """Set the learning rates to `factor` times the initial ones."""
        for optimizer, rate in zip(self._all, self._rates, strict=True):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # in place: captured steps read it there
                    group["lr"].fill_(rate * factor)
                else:
                    group["lr"] = rate * factor

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Moments and step counts by the position of their parameter in the model."""
        entries = {id(parameter): entry for optimizer in self._all for parameter, entry in optimizer.state.items()}
        return {
            position: {name: torch.as_tensor(value) for name, value in entries[id(parameter)].items()}
            for position, parameter in enumerate(self._parameters) if id(parameter) in entries
        }

    def load_state(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Restore what `state` returned."""
        positions = {id(parameter): position for position, parameter in enumerate(self._parameters)}
        for optimizer in self._all:
            restored: dict[str, Any] = optimizer.state_dict()
            order = [positions[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
            restored["state"] = {index: dict(state[position]) for index, position in enumerate(order) if position in state}
            if isinstance(optimizer, torch.optim.SparseAdam):  # counts its steps in plain numbers
                for entry in restored["state"].values():
                    entry["step"] = int(entry["step"])
            optimizer.load_state_dict(restored)

    def average_sparse(self, world: int) -> None:
        """Replace the sparse gradients by their mean over the `world` processes; only touched rows are sent."""
        for parameter in self._sparse if world > 1 else ():
            grad = parameter.grad
            assert grad is not None
            local = grad.coalesce()
            rows, values = _gathered(local.indices()[0], world), _gathered(local.values(), world)
            summed = torch.sparse_coo_tensor(rows[None], values / world, local.shape, is_coalesced=False)
            parameter.grad = summed.coalesce()

    def _stepped_by(self, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
        def step(parameter: Tensor) -> None:
            self.stepped = True
            optimizer.step()
            parameter.grad = None

        return step

    @property
    def _all(self) -> tuple[torch.optim.Optimizer, ...]:
        return (*self._late, *self._early)


def _gathered(rows: Tensor, world: int) -> Tensor:
    """(n, ...) of each process, with different n -> the rows of all processes."""
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(max(counts))
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
