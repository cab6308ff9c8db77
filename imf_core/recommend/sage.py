"""GraphSAGE with mean aggregation (Hamilton et al., NIPS 2017), as `torch_geometric.nn.SAGEConv` computes it.

Written here for three reasons: `embedding_bag` computes the means without a message for each edge, users and items need no
common numbering, and a training process need not load a graph library. A test compares it with that library's layer.

Shapes: `n` target nodes, `m` source nodes, `E` edges, `d` vector width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Neighbours(nn.Module):
    """The neighbours of each target node, as a CSR index.

    Args:
        pairs: (E, 2) int64, distinct: target node, source node.
        num_nodes: n.
    """

    def __init__(self, pairs: np.ndarray, num_nodes: int) -> None:
        super().__init__()
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        counts = np.bincount(pairs[:, 0], minlength=num_nodes)
        offsets = np.concatenate(([0], np.cumsum(counts)))
        # Not saved: computed from the training interactions, which a checkpoint has anyway.
        self.register_buffer("offsets", torch.from_numpy(offsets.astype(np.int64)), persistent=False)
        self.register_buffer("sources", torch.from_numpy(pairs[order, 1].astype(np.int64)), persistent=False)
        self.offsets: Tensor
        self.sources: Tensor

    @property
    def degrees(self) -> Tensor:
        """(n,) number of neighbours."""
        return self.offsets[1:] - self.offsets[:-1]

    def forward(self, table: Tensor, most: int | None = None) -> Tensor:
        """The mean of each node's neighbours; zero for a node without neighbours.

        Args:
            table: (m, d) vectors of the source nodes.
            most: of a node with more neighbours, so many are drawn with replacement; None: all.

        Returns:
            (n, d).
        """
        sources, offsets = (self.sources, self.offsets) if most is None else self._drawn(most)
        if not len(sources):
            return table.new_zeros(len(offsets) - 1, table.shape[1])
        return functional.embedding_bag(sources, table, offsets, mode="mean", include_last_offset=True)

    def _drawn(self, most: int) -> tuple[Tensor, Tensor]:
        """(e,) source nodes and (n + 1,) offsets of a sample of the edges."""
        degrees = self.degrees
        counts = degrees.clamp(max=most)
        offsets = functional.pad(counts.cumsum(0), (1, 0))
        nodes = torch.repeat_interleave(torch.arange(len(degrees), device=degrees.device), counts)
        inside = torch.arange(len(nodes), device=degrees.device) - offsets[nodes]
        chance = (torch.rand(len(nodes), device=degrees.device, dtype=torch.float64) * degrees[nodes]).long()
        neighbour = torch.where(degrees[nodes] > most, chance.minimum(degrees[nodes] - 1), inside)
        return self.sources[self.offsets[nodes] + neighbour], offsets


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
        combined: Tensor = self.own(nodes) + self.others(means)
        return combined
