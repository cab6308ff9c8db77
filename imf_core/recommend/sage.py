"""GraphSAGE with the mean of the neighbours (Hamilton et al. 2017), as `torch_geometric.nn.SAGEConv` computes it.

Own code for three reasons: `embedding_bag` takes the means without a message an edge, users and items need no common numbering,
and a training process need not load a graph library. A test compares it with that library's layer.

Shapes: `n` nodes that hear, `m` nodes that are heard, `E` edges, `d` width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Neighbours(nn.Module):
    """Who hears whom, as a CSR index.

    Args:
        pairs: (E, 2) int64, distinct: who hears, who is heard.
        num_nodes: n.
    """

    def __init__(self, pairs: np.ndarray, num_nodes: int) -> None:
        super().__init__()
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        counts = np.bincount(pairs[:, 0], minlength=num_nodes)
        offsets = np.concatenate(([0], np.cumsum(counts)))
        # Made from the training interactions, which a checkpoint has anyway.
        self.register_buffer("offsets", torch.from_numpy(offsets.astype(np.int64)), persistent=False)
        self.register_buffer("heard", torch.from_numpy(pairs[order, 1].astype(np.int64)), persistent=False)
        self.offsets: Tensor
        self.heard: Tensor

    @property
    def degrees(self) -> Tensor:
        """(n,) number of neighbours."""
        return self.offsets[1:] - self.offsets[:-1]

    def forward(self, table: Tensor, most: int | None = None) -> Tensor:
        """The mean of each node's neighbours; zero where there are none.

        Args:
            table: (m, d) vectors of the nodes that are heard.
            most: nodes with more neighbours hear so many of them, drawn with replacement; None: all.

        Returns:
            (n, d).
        """
        heard, offsets = (self.heard, self.offsets) if most is None else self._drawn(most)
        if not len(heard):
            return table.new_zeros(len(offsets) - 1, table.shape[1])
        return functional.embedding_bag(heard, table, offsets, mode="mean", include_last_offset=True)

    def _drawn(self, most: int) -> tuple[Tensor, Tensor]:
        degrees = self.degrees
        counts = degrees.clamp(max=most)
        offsets = functional.pad(counts.cumsum(0), (1, 0))
        nodes = torch.repeat_interleave(torch.arange(len(degrees), device=degrees.device), counts)
        inside = torch.arange(len(nodes), device=degrees.device) - offsets[nodes]
        chance = (torch.rand(len(nodes), device=degrees.device, dtype=torch.float64) * degrees[nodes]).long()
        place = torch.where(degrees[nodes] > most, chance.minimum(degrees[nodes] - 1), inside)
        return self.heard[self.offsets[nodes] + place], offsets


class SageLayer(nn.Module):
    """`x_i W + mean_j(x_j) V + b`, for both sides of a bipartite graph with the same weights.

    Args:
        width_in, width_out: widths of the vectors before and after.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.own = nn.Linear(width_in, width_out, bias=False)
        self.others = nn.Linear(width_in, width_out)

    def forward(self, nodes: Tensor, means: Tensor) -> Tensor:
        """(n, d_in) vectors and (n, d_in) means of the neighbours -> (n, d_out)."""
        made: Tensor = self.own(nodes) + self.others(means)
        return made
