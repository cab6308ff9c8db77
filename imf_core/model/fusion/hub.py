"""Fusion by learned queries that draw from all views, in the light of an entity's relations and of some known facts.

Shapes: `N` entities, `C` nodes of a block, `M` views, `d` width, `r` relation width, `R` relations, `Q` queries, `K` facts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from imf_core.config import ModelConfig
from imf_core.model.fusion.base import Fusion, FusionSize
from imf_core.model.fusion.blocked import BlockedFusion, attend
from imf_core.model.fusion.cross_attention import unit_rows
from imf_core.model.fusion.facts import GivenFacts, some_facts


class HubFusion(BlockedFusion):
    """Learned queries guided by the relation draw from all views and from a few known facts (M-Hub of MMICT, arXiv 2312.06363).

        x_m = norm(e_m) + n_m                              a view; n_m tells the views apart
        c_k = norm(A w_k + B t_k)                          the k-th known fact: relation vector w_k, other entity's vector t_k
        g   = G mean_k(c_k)                                guides the queries
        z_q = attention(q + g;  K x, V x  and  K c, V c)   for each learned query q
        e   = W [z_1; ...; z_Q]

    Carried over: learned queries, guidance and known facts as context; left: the language model, and the one relation that is
    asked for: an entity's vector is made once for all questions, so that the relations of its own facts guide it. The other
    entities' vectors are context, not trained through. Relations are fused without facts.

    The context of a training fact may be that fact itself, as in a graph network that hears all training edges.

    Args:
        width: d of every view and of the result.
        num_views: M.
        queries: Q, at least 1.
        context: K; 0: no facts.
        dropout: probability of zeroing an input element, 0 <= p < 1.
    """

    def __init__(self, width: int, num_views: int, queries: int, context: int, dropout: float) -> None:
        super().__init__(width, num_views, dropout)
        self.context = context
        self.norm = nn.LayerNorm(width)
        self.names = nn.Parameter(torch.empty(num_views, width))
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.out = nn.Linear(queries * width, width)
        nn.init.normal_(self.names, std=0.1)
        nn.init.normal_(self.queries)
        for layer in (self.key, self.value):
            nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(self.value.bias)
        unit_rows(self.out)
        self.inside = (2 * (num_views + context) + queries) * width
        self._given: GivenFacts | None = None

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> Fusion:
        """See `Fusion.of`."""
        return cls(width, num_views, config.hub_queries, config.hub_context, config.dropout_fusion)

    @classmethod
    def size_of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> FusionSize:
        """See `Fusion.size_of`; a fact is two numbers of 64 bits."""
        size = super().size_of(config, *settings, width=width, num_views=num_views)
        return replace(size, per_node=size.per_node + 4 * config.hub_context)

    def know(self, given: GivenFacts) -> None:
        """See `Fusion.know`: keeps up to K facts of each entity, as ids."""
        if not self.context:
            return
        facts = some_facts(given.train, len(given.structure), given.num_relations, self.context)
        self.register_buffer("facts", torch.from_numpy(facts), persistent=False)  # a checkpoint has the graph anyway
        self.facts: Tensor
        self.of_relation = nn.Linear(given.relations.shape[1], self.width, bias=False)
        self.of_entity = nn.Linear(given.structure.shape[1], self.width, bias=False)
        self.guide = nn.Linear(self.width, self.width, bias=False)
        self.fact_norm = nn.LayerNorm(self.width)
        for layer in (self.of_relation, self.of_entity, self.guide):
            nn.init.xavier_normal_(layer.weight)
        self._given = replace(given, train=given.train[:0])  # the facts are enough

    def beside(self, count: int) -> tuple[Tensor | None, ...]:
        """See `BlockedFusion.beside`: the facts (N, K, 2) of the entities of the pass."""
        if self._given is None:
            return ()
        nodes = self._given.nodes()
        if count != (len(self.facts) if nodes is None else len(nodes)):
            raise ValueError(f"{count} entities to fuse, the pass computes {'all' if nodes is None else len(nodes)}")
        return (self.facts if nodes is None else self.facts[nodes],)

    def fuse_rows(self, views: Tensor, has: Tensor | None, *beside: Tensor | None) -> Tensor:
        """See `BlockedFusion.fuse_rows`; the bias for a node without any view or fact."""
        tokens = self.norm(views) + self.names  # (C, M, d)
        queries = self.queries[None].expand(len(views), -1, -1)  # (C, Q, d)
        allowed = None if has is None else has[:, None, :]  # (C, 1, M)
        if beside and beside[0] is not None:
            context, there = self._tokens(beside[0])  # (C, K, d), (C, K)
            count = there.sum(dim=1, keepdim=True).clamp_min(1)
            mean = (context * there[:, :, None]).sum(dim=1) / count  # (C, d)
            queries = queries + self.guide(mean)[:, None]
            tokens = torch.cat([tokens, context.to(tokens.dtype)], dim=1)
            seen = there.new_ones(views.shape[:2]) if has is None else has
            allowed = torch.cat([seen, there], dim=1)[:, None, :]  # (C, 1, M + K)
        keys, values = self.key(tokens)[:, :, None], self.value(tokens)[:, :, None]  # one head
        fused: Tensor = self.out(attend(queries.to(keys.dtype)[:, :, None], keys, values, allowed).flatten(1))
        return fused

    def _tokens(self, facts: Tensor) -> tuple[Tensor, Tensor]:
        """(C, K, 2) facts -> their tokens (C, K, d), and which are there (C, K)."""
        assert self._given is not None
        there = facts[:, :, 0] >= 0
        relations, others = facts.clamp_min(0).unbind(2)
        words = self.of_relation(self._given.relations)[relations] + self.of_entity(self._given.structure.detach()[others])
        context: Tensor = self.fact_norm(words)
        return context, there
