"""Structure encoder: a graph attention network trained with the TransE margin loss (KBGAT, Nathani et al., ACL 2019).

Shapes: `N` entities, `R` relations (2R with inverses), `n` nodes and `E` edges of a step, `B` triples, `w` width, `H` heads,
`g` width of relation vectors.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from imf_core.config import StructureConfig
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.encode.structure.neighbours import Corruption, Hop, Neighbours
from imf_core.errors import DivergedError

_EDGES = 1 << 16  # edges at a time when the finished table is computed; an entity with more of them is represented by a sample


@dataclass(frozen=True)
class PretrainReport:
    """How a pre-training went.

    Args:
        losses: mean margin loss of each epoch.
        seconds: time it took.
        peak_edges: most edges in one layer of a step.
    """

    losses: tuple[float, ...]
    seconds: float
    peak_edges: int


class RelationalAttention(MessagePassing):
    """Attention over the edges of a knowledge graph, all heads at once (KBGAT equations 5 to 8).

        c_ij = W [x_i ; x_j ; g_ij]      b_ij = exp(-leaky_relu(a . c_ij))      h_i = sum_j b_ij c_ij / sum_j b_ij

    A node without edges gets zeros. `W` is applied to its three parts before they are gathered, never to E rows.

    Args:
        width: of the nodes' vectors.
        relation_width: g; 0: edges carry no vector.
        out: width of a head's result.
        heads: H.
        dropout: of the attention weights.
        slope: of the leaky ReLU below zero.
    """

    def __init__(
        self, width: int, relation_width: int, out: int, heads: int = 1, dropout: float = 0.0, slope: float = 0.2
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.width, self.relation_width, self.out, self.heads, self.slope = width, relation_width, out, heads, slope
        self.weight = nn.Parameter(torch.empty(heads, out, 2 * width + relation_width))
        self.logit = nn.Parameter(torch.empty(heads, out))
        deviation = math.sqrt(4.0 / (out + 2 * width + relation_width))  # xavier with gain sqrt(2), a head at a time
        nn.init.normal_(self.weight, std=deviation)
        nn.init.normal_(self.logit, std=math.sqrt(4.0 / (out + 1)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, edges: Tensor, size: int, relations: Tensor | None, types: Tensor | None) -> Tensor:
        """Aggregate.

        Args:
            nodes: (n, width) vectors.
            edges: (2, E) positions; row 0 the aggregating node, row 1 its neighbour.
            size: aggregating nodes: the first of the n.
            relations: (2R, g) vectors of the relations; None where edges carry none.
            types: (E,) relation of each edge.

        Returns:
            (size, H * out), head by head.
        """
        parts = [self.width, self.width, self.relation_width]
        own_weight, other_weight, edge_weight = self.weight.flatten(0, 1).split(parts, dim=1)
        # index_select, not indexing: its gradient is summed in the same order at every number of threads
        carried = None
        if relations is not None and types is not None:
            carried = (relations @ edge_weight.T).index_select(0, types).view(-1, self.heads, self.out)
        projected = (
            (nodes @ other_weight.T).view(-1, self.heads, self.out),
            (nodes[:size] @ own_weight.T).view(-1, self.heads, self.out),
        )  # torch_geometric's order: messages go from the first to the second
        gathered: Tensor = self.propagate(edges.flip(0), projected=projected, carried=carried, size=(len(nodes), size))
        return gathered.flatten(1)

    def message(
        self, projected_i: Tensor, projected_j: Tensor, carried: Tensor | None, index: Tensor, size_i: int | None
    ) -> Tensor:
        """(E, H, out): each edge's vector times its share among the edges of the aggregating node."""
        vectors = projected_i + projected_j
        if carried is not None:
            vectors = vectors + carried
        logits = (vectors * self.logit).sum(dim=-1)
        shares = softmax(-functional.leaky_relu(logits, self.slope), index, num_nodes=size_i)
        return vectors * self.dropout(shares)[:, :, None]


class AttentionEncoder(nn.Module):
    """Two layers: several heads, concatenated, and one over the concatenation; ELU after each.

    Args:
        width: of the nodes' vectors.
        relation_width: of the relations' vectors.
        out: width of a head of the first layer; H * out is the width of the result.
        heads: H.
        dropout: of attention weights and of the first layer's output.
        relational: edges carry their relation's vector (KBGAT); the recorded figures are without.
    """

    def __init__(
        self, width: int, relation_width: int, out: int, heads: int, dropout: float = 0.0, relational: bool = True
    ) -> None:
        super().__init__()
        self.relational = relational
        whole = heads * out
        self.first = RelationalAttention(width, relation_width if relational else 0, out, heads, dropout)
        self.second = RelationalAttention(whole, whole if relational else 0, whole, 1, dropout)
        self.relation_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(relation_width, whole), gain=math.sqrt(2.0)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, relations: Tensor, hops: list[Hop]) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            nodes: (n, width) vectors, those that the last hop ends in first.
            relations: (2R, relation_width).
            hops: edges of the first and of the second layer.

        Returns:
            (hops[-1].size, H * out) entities and (2R, H * out) relations.
        """
        hidden = self.dropout(self.layer(0, nodes, relations, hops[0]))
        return self.layer(1, hidden, relations @ self.relation_weight, hops[1]), relations @ self.relation_weight

    def layer(self, number: int, nodes: Tensor, relations: Tensor, hop: Hop) -> Tensor:
        """One of the two layers; relations as that layer sees them."""
        attention = (self.first, self.second)[number]
        carried = (relations, torch.from_numpy(hop.types)) if self.relational else (None, None)
        return functional.elu(attention(nodes, torch.from_numpy(hop.edges), hop.size, *carried))


class StructureEncoder(nn.Module):
    """Trained vectors of entities and relations, and what attention makes of them.

        e_i = normalised( x_i W_e + attention(x, g)_i ),   x_i of unit length

    Args:
        num_entities, num_relations: N and R.
        config: width, heads, dropout.
    """

    def __init__(self, num_entities: int, num_relations: int, config: StructureConfig) -> None:
        super().__init__()
        width = config.width
        self.entities = nn.Embedding(num_entities, width)
        self.relations = nn.Parameter(nn.init.normal_(torch.empty(2 * num_relations, width), std=width**-0.5))
        nn.init.normal_(self.entities.weight, std=width**-0.5)
        self.attention = AttentionEncoder(width, width, width // config.heads, config.heads, config.dropout)
        self.keep = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width), gain=math.sqrt(2.0)))

    def forward(self, nodes: np.ndarray, hops: list[Hop]) -> tuple[Tensor, Tensor]:
        """Vectors of the entities in which the last hop ends (s, w), of unit length, and of all relations (2R, w)."""
        start = functional.normalize(self.entities(torch.from_numpy(nodes)))
        attended, relations = self.attention(start, functional.normalize(self.relations), hops)
        return functional.normalize(start[: hops[-1].size] @ self.keep + attended), relations

    @torch.no_grad()
    def table(self, neighbours: Neighbours, seed: int = 0) -> np.ndarray:
        """(N, w) float32: every entity with all of its neighbours, a layer at a time, in chunks of bounded size."""
        rng, attention = np.random.default_rng(seed), self.attention
        start = functional.normalize(self.entities.weight)
        relations, hidden = functional.normalize(self.relations), start
        for number in range(2):
            parts = []
            for nodes in self._chunks(neighbours):
                reached, (hop,) = neighbours.step(nodes, _EDGES, rng, depth=1)
                parts.append(attention.layer(number, hidden[torch.from_numpy(reached)], relations, hop))
            hidden, relations = torch.cat(parts), relations @ attention.relation_weight
        return np.asarray(functional.normalize(start @ self.keep + hidden).numpy(), dtype=np.float32)

    @staticmethod
    def _chunks(neighbours: Neighbours) -> list[np.ndarray]:
        """All entities in order, cut such that a chunk has about `_EDGES` edges, or one entity."""
        degrees = np.minimum(np.diff(neighbours.offsets), _EDGES) + 1
        part = np.cumsum(degrees) // _EDGES
        return np.split(np.arange(len(degrees)), np.flatnonzero(np.diff(part)) + 1)


def distance(heads: Tensor, relations: Tensor, tails: Tensor) -> Tensor:
    """`|h + r - t|_1` of rows (B, w) -> (B,): small where the triple is plausible (TransE, Bordes et al. 2013)."""
    return (heads + relations - tails).abs().sum(dim=1)


def pretrain(graph: KnowledgeGraph, config: StructureConfig, *, progress: bool = False) -> tuple[np.ndarray, PretrainReport]:
    """Train the structure encoder on the training triples; validation and test triples are never read.

    A step computes only the surroundings of its triples, with at most `config.neighbours` neighbours of an entity: its memory
    depends on batch size, corruptions and cap, not on the graph, whose vectors and triples alone are held as a whole.

    Args:
        graph: its vocabularies and training triples.
        config: the settings.
        progress: show a bar when the terminal is interactive.

    Returns:
        (N, width) float32 entity vectors of unit length, the same bits for the same seed on one machine, and a report.

    Raises:
        DivergedError: the loss became non-finite.
    """
    started, triples = time.monotonic(), graph.train
    neighbours = Neighbours(triples, graph.num_entities, graph.num_relations)
    corruption = Corruption(triples, graph.num_entities, graph.num_relations)
    losses, peak, console = [], 0, Console(stderr=True)
    quiet = not (progress and console.is_terminal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = StructureEncoder(graph.num_entities, graph.num_relations, config)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
        for epoch in track(range(config.epochs), "structure", disable=quiet, console=console):
            rng = np.random.default_rng((config.seed, epoch))
            order = rng.permutation(len(triples))
            total = 0.0
            steps = np.array_split(order, -(-len(order) // config.batch_size))
            for chosen in steps:
                corrupted, good = corruption.draw(triples[chosen], config.negatives, rng)
                loss, edges = _loss(model, neighbours, triples[chosen], corrupted, good, config, rng)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total, peak = total + float(loss.detach()), max(peak, edges)
            losses.append(total / len(steps))
            if not math.isfinite(total):
                raise DivergedError(
                    f"the loss of the structure encoder is {total} in epoch {epoch + 1}", remedy="lower structure.lr",
                    epoch=epoch + 1, quantity="loss",
                )
        table = model.eval().table(neighbours, config.seed)
    return table, PretrainReport(tuple(losses), time.monotonic() - started, peak)


def _loss(
    model: StructureEncoder, neighbours: Neighbours, triples: np.ndarray, corrupted: np.ndarray, good: np.ndarray,
    config: StructureConfig, rng: np.random.Generator,
) -> tuple[Tensor, int]:
    """Mean of `max(0, margin + d(triple) - d(corrupted))`, and the edges of the largest layer."""
    ends = np.concatenate([triples[:, [0, 2]], corrupted[:, [0, 2]]])
    seeds, positions = np.unique(ends, return_inverse=True)
    nodes, hops = neighbours.step(seeds, config.neighbours, rng)
    entities, relations = model(nodes, hops)
    types = torch.from_numpy(np.concatenate([triples[:, 1], corrupted[:, 1]]))
    heads, tails = torch.from_numpy(positions.reshape(ends.shape)).unbind(1)
    apart = distance(
        entities.index_select(0, heads), relations.index_select(0, types), entities.index_select(0, tails)
    )
    near, far = apart[: len(triples)].repeat_interleave(config.negatives), apart[len(triples) :]
    weight = torch.from_numpy(good.astype(np.float32))
    loss = (functional.relu(config.margin + near - far) * weight).sum() / weight.sum().clamp(min=1.0)
    return loss, max(hop.edges.shape[1] for hop in hops)
