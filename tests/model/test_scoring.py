"""Every relation model against its formula, triple by triple, and against the contract of all (`imf_core.testing`)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from imf_core.config import ModelConfig
from imf_core.model.scoring import Scorer, build_scorer, relation_width
from imf_core.testing import ScorerContract

KINDS = ("contextual", "block", "transe", "distmult", "complex", "similarity")
N, R, D = 7, 6, 4


def config(kind: str) -> ModelConfig:
    return ModelConfig.model_validate({"dim": D, "relation_dim": 3, "block_size": 2, "parts": 2, "scoring": kind})


def scorer(kind: str) -> Scorer:
    """In evaluation mode, with batch statistics that are not the trivial ones."""
    torch.manual_seed(0)
    made = build_scorer(config(kind))
    for part in made.modules():
        if isinstance(part, nn.BatchNorm1d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.copy_(torch.randn(D))
            part.running_var.copy_(torch.rand(D) + 0.5)
            part.weight.data.copy_(torch.randn(D))
            part.bias.data.copy_(torch.randn(D))
    return made.eval()


def tables(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, D, generator=generator), torch.randn(R, relation_width(config(kind)), generator=generator)


def norm(layer: nn.Module, vector: Tensor) -> Tensor:
    """BatchNorm in evaluation mode, written out for one vector."""
    assert isinstance(layer, nn.BatchNorm1d) and layer.running_mean is not None and layer.running_var is not None
    return (vector - layer.running_mean) / torch.sqrt(layer.running_var + layer.eps) * layer.weight + layer.bias


def naive(kind: str, made: Scorer, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
    """The score of one triple by its formula."""
    if kind == "transe":
        assert isinstance(made.margin, Tensor)
        return made.margin - (head + relation - tail).abs().sum()
    assert isinstance(made.norm_head, nn.Module) and isinstance(made.norm_context, nn.Module)
    if kind == "similarity":
        ours, theirs = (vector.split(2) for vector in (head, tail))  # two parts each
        weights = relation.view(2, 2)  # head's part, tail's part
        alike = (weights[a, b] * (ours[a] @ theirs[b]) for a in range(2) for b in range(2))
        return sum(alike, torch.zeros(())) * 20 / 2
    head = norm(made.norm_head, head)
    if kind == "contextual":
        assert isinstance(made.core, Tensor)
        context = torch.stack(
            [
                sum((head[i] * made.core[k, i, j] * relation[k] for k in range(3) for i in range(D)), torch.zeros(()))
                for j in range(D)
            ]
        )
    elif kind == "block":
        assert isinstance(made.core, Tensor)
        core = made.core.view(2, 2, 2)  # relation, head, context
        context = torch.stack([
            sum((relation[low + k] * head[low + i] * core[k, i, j] for k in range(2) for i in range(2)), torch.zeros(()))
            for low in range(0, D, 2) for j in range(2)
        ])
    elif kind == "distmult":
        context = torch.stack([head[j] * relation[j] for j in range(D)])
    else:
        half = D // 2
        product = [complex(head[j], head[j + half]) * complex(relation[j], relation[j + half]) for j in range(half)]
        context = torch.tensor([value.real for value in product] + [value.imag for value in product])
    return norm(made.norm_context, context) @ tail


HEADS, RELATIONS = torch.tensor([0, 3, 3, 6, 1, 0]), torch.tensor([2, 0, 2, 5, 0, 1])
globals().update({
    f"Test_{kind}": type(f"Test_{kind}", (ScorerContract,), {"__module__": __name__, "name": kind}) for kind in KINDS
})


def score_all(kind: str, made: Scorer, heads: Tensor = HEADS, relations: Tensor = RELATIONS) -> Tensor:
    entities, table = tables(kind)
    return made.score(made.context(entities[heads], table, relations), entities)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_equals_the_formula_of_each_triple(kind: str) -> None:
    made, (entities, table) = scorer(kind), tables(kind)
    found = score_all(kind, made)
    assert found.shape == (len(HEADS), N)
    expected = torch.tensor(
        [[float(naive(kind, made, entities[h], table[r], entities[t])) for t in range(N)] for h, r in zip(HEADS, RELATIONS)]
    )
    assert torch.allclose(found, expected, atol=1e-4)


@torch.no_grad()
def test_complex_is_the_real_part_of_the_trilinear_product() -> None:
    made, (entities, table) = scorer("complex"), tables("complex")
    for part in (made.norm_head, made.norm_context):  # the plain formula, without normalisation
        assert isinstance(part, nn.BatchNorm1d)
        part.reset_running_stats()
        nn.init.ones_(part.weight)
        nn.init.zeros_(part.bias)
        part.eps = 0.0

    def as_complex(vector: Tensor) -> Tensor:
        return torch.complex(vector[: D // 2], vector[D // 2 :])

    found = score_all("complex", made)
    for row, (h, r) in enumerate(zip(HEADS, RELATIONS)):
        for t in range(N):
            product = as_complex(entities[h]) * as_complex(table[r]) * as_complex(entities[t]).conj()
            assert found[row, t].item() == pytest.approx(product.sum().real.item(), abs=1e-5)


@torch.no_grad()
def test_block_term_contains_distmult_and_complex() -> None:
    settings = {"dim": D, "scoring": "block", "norm": "none"}
    entities, table = tables("distmult")
    single = build_scorer(ModelConfig.model_validate({**settings, "block_size": 1})).eval()
    single.core.fill_(1.0)  # type: ignore[operator,union-attr]
    assert torch.allclose(single.context(entities, table, torch.arange(R).repeat(2)[:N]),
                          entities * table[torch.arange(R).repeat(2)[:N]])
    pair = build_scorer(ModelConfig.model_validate({**settings, "block_size": 2})).eval()
    pair.core.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]]))  # type: ignore[operator,union-attr]
    ours = build_scorer(ModelConfig.model_validate({"dim": D, "scoring": "complex", "norm": "none"})).eval()
    order = torch.tensor([0, 2, 1, 3])  # real and imaginary parts side by side, instead of in halves
    halves = ours.context(entities, table, torch.zeros(N, dtype=torch.int64))
    assert torch.allclose(pair.context(entities[:, order], table[:, order], torch.zeros(N, dtype=torch.int64))[:, order],
                          halves, atol=1e-6)


@pytest.mark.parametrize(("kind", "width"), [("contextual", 3), ("block", D), ("transe", D), ("distmult", D), ("complex", D),
                                               ("similarity", 4)])
def test_relation_width(kind: str, width: int) -> None:
    assert relation_width(config(kind)) == build_scorer(config(kind)).relation_width == width
