"""The contract of a relation model.

Shapes: `B` queries, `N` entities, `R` relations, `d` entity width, `r` relation width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imf_core.model.scoring import Scorer, build_scorer, relation_width
from imf_core.testing.base import ModelPartContract

N, R, D = 7, 6, 4
HEADS, RELATIONS, TAILS = (torch.tensor(ids) for ids in ([0, 3, 3, 6, 1, 0], [2, 0, 2, 5, 0, 1], [4, 2, 6, 6, 0, 1]))
PLAIN = {"model__dropout_input": 0.0, "model__dropout_relation": 0.0, "model__dropout_context": 0.0}


class ScorerContract(ModelPartContract):
    """A scorer: a query scores alone as in company, pairs as blocks, relations as triples; gradients reach all it uses."""

    kind, chosen_by = "scorer", "model.scoring"

    def scorer(self, **changes: Any) -> Scorer:
        """In evaluation mode, with batch statistics that are not the trivial ones."""
        torch.manual_seed(0)
        made = build_scorer(self.config(model__dim=D, model__relation_dim=3, model__block_size=2, **changes).model)
        for part in made.modules():
            if isinstance(part, nn.BatchNorm1d):
                assert part.running_mean is not None and part.running_var is not None
                part.running_mean.copy_(torch.randn(part.num_features))
                part.running_var.copy_(torch.rand(part.num_features) + 0.5)
                part.weight.data.copy_(torch.randn(part.num_features))
                part.bias.data.copy_(torch.randn(part.num_features))
        return made.eval()

    def tables(self) -> tuple[Tensor, Tensor]:
        """Entities (N, d) and relations (R, r)."""
        generator = torch.Generator().manual_seed(1)
        narrow = relation_width(self.config(model__dim=D, model__relation_dim=3, model__block_size=2).model)
        return torch.randn(N, D, generator=generator), torch.randn(R, narrow, generator=generator)

    def all_scores(self, made: Scorer, heads: Tensor = HEADS, relations: Tensor = RELATIONS) -> Tensor:
        """(B, N)."""
        entities, table = self.tables()
        return made.score(made.context(entities[heads], table, relations), entities)

    @torch.no_grad()
    def test_its_relation_width_is_known_before_it_is_made(self) -> None:
        assert self.scorer().relation_width == self.tables()[1].shape[1]

    @torch.no_grad()
    def test_every_candidate_gets_a_score(self) -> None:
        found = self.all_scores(self.scorer())
        assert found.shape == (len(HEADS), N) and torch.isfinite(found).all()
        assert found.std(dim=1).min() > 0, "all candidates of a query score the same"

    @torch.no_grad()
    def test_the_order_of_the_batch_does_not_matter(self) -> None:
        made = self.scorer()
        whole = self.all_scores(made)
        for order in ([5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]):
            assert torch.allclose(self.all_scores(made, HEADS[order], RELATIONS[order]), whole[order], atol=1e-6)

    @torch.no_grad()
    def test_a_query_alone_scores_as_in_company(self) -> None:
        made = self.scorer()
        whole = self.all_scores(made)
        for row in range(len(HEADS)):
            alone = self.all_scores(made, HEADS[row : row + 1], RELATIONS[row : row + 1])
            assert torch.allclose(alone[0], whole[row], atol=1e-5)

    @torch.no_grad()
    def test_some_candidates_score_as_among_all(self) -> None:
        made, (entities, table) = self.scorer(), self.tables()
        context = made.context(entities[HEADS], table, RELATIONS)
        assert torch.allclose(made.score(context, entities[2:5]), self.all_scores(made)[:, 2:5], atol=1e-5)

    @torch.no_grad()
    def test_pairs_score_as_blocks_do(self) -> None:
        made, (entities, table) = self.scorer(), self.tables()
        context = made.context(entities[HEADS], table, RELATIONS)
        found = made.score_pairs(context, entities[TAILS])
        assert torch.allclose(found, made.score(context, entities).gather(1, TAILS[:, None])[:, 0], atol=1e-5)

    @torch.no_grad()
    def test_it_says_whether_its_scores_are_products(self) -> None:
        made, (entities, table) = self.scorer(), self.tables()
        context = made.context(entities[HEADS], table, RELATIONS)
        same = context.shape[1] == D and torch.allclose(made.score(context, entities), context @ entities.T, atol=1e-5)
        assert same or not made.is_product, "its scores are no dot products: set is_product = False"

    def test_gradients_reach_all_that_is_used(self) -> None:
        """All entities and parameters, and of the relations those that were asked for."""
        made = self.scorer(**PLAIN).train()
        entities, table = (part.clone().requires_grad_() for part in self.tables())
        scores = made.score(made.context(entities[HEADS], table, RELATIONS), entities)
        (scores * torch.randn(scores.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        assert entities.grad is not None and (entities.grad.abs().sum(dim=1) > 0).all()
        assert table.grad is not None
        asked = sorted(set(RELATIONS.tolist()))
        assert torch.nonzero(table.grad.abs().sum(dim=1)).ravel().tolist() == asked
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in made.parameters())
        used = {id(parameter) for parameter in made.score_parameters()}
        assert used <= {id(parameter) for parameter in made.parameters()}

    def test_scores_of_equal_vectors_have_finite_gradients(self) -> None:
        """A distance of zero has no slope: it must not become NaN."""
        made, (entities, table) = self.scorer(**PLAIN), self.tables()
        context = made.context(entities[HEADS], table, RELATIONS).detach()
        candidates = (context[:, :D] if context.shape[1] >= D else entities[HEADS]).clone().requires_grad_()
        made.score_pairs(context, candidates).sum().backward()
        assert candidates.grad is not None and candidates.grad.isfinite().all()
        context, candidates = context.requires_grad_(), candidates.detach().clone().requires_grad_()
        made.score(context, candidates).sum().backward()
        for grad in (context.grad, candidates.grad):
            assert grad is not None and grad.isfinite().all(), "the gradient of `score` at equal vectors is not finite"

    @torch.no_grad()
    def test_relations_are_scored_as_triples_are(self) -> None:
        made, (entities, table) = self.scorer(model__norm="none"), self.tables()
        found = made.relation_scores(entities[HEADS], entities[TAILS], table)
        assert found.shape == (len(HEADS), R)
        for relation in range(R):
            context = made.context(entities[HEADS], table, torch.full_like(HEADS, relation))
            assert torch.allclose(found[:, relation], made.score_pairs(context, entities[TAILS]), atol=1e-5)

    @torch.no_grad()
    def test_moduli_are_those_of_whole_vectors(self) -> None:
        made, (entities, table) = self.scorer(), self.tables()
        for vectors in (entities, table):
            moduli = made.square_moduli(vectors)
            assert moduli.shape[0] == len(vectors) and (moduli >= 0).all()

    def test_it_trains_on_sampled_entities_and_in_blocks(self) -> None:
        for changes in ({"train__num_negatives": 8}, {"train__memory_budget_mb": 8, "train__batch_size": 64}):
            model = self.trained(self.config(**changes))
            assert torch.isfinite(self.scores(model)).all()

    def test_it_scores_as_a_further_head(self) -> None:
        config = self.config(model__scoring="distmult", model__heads=[{"view": "structure", "scoring": self.name}])
        model = self.trained(config)
        assert f"structure_{self.name}" in model.branches and torch.isfinite(self.scores(model)).all()
