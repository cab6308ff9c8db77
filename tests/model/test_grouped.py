"""Grouped products against the textbook: a matrix of its own for each query, gradients by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imf_core.model import grouped
from imf_core.model.dropout import Dropout, Mask
from imf_core.model.grouped import Grouping, Groups, KeptMatrices, grouped_products, kept_products

COUNTS = [1, 40, 3, 70]  # under and over the 32 rows of a padded block


RELATIONS = torch.tensor([7, 3, 9, 4]).sort().values.repeat_interleave(torch.tensor(COUNTS))


def drawn(width: int = 6, narrow: int = 5, kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((sum(COUNTS), width), (len(COUNTS), narrow), (narrow, width, width))
    heads, vectors, core = (torch.randn(shape, generator=generator, dtype=kind).requires_grad_() for shape in shapes)
    return heads, vectors, core


def mask(wanted: bool, width: int = 6) -> Mask | None:
    torch.manual_seed(2)
    return Dropout(0.4).draw_for((len(COUNTS), width * width), torch.device("cpu")) if wanted else None


def textbook(heads: Tensor, vectors: Tensor, core: Tensor, dropped: Mask | None) -> Tensor:
    matrices = torch.einsum("ur,rij->uij", vectors, core)
    if dropped is not None:
        matrices = matrices * (dropped.keep.view_as(matrices) * dropped.scale)
    own = matrices[torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))]
    return torch.einsum("bi,bij->bj", heads, own)


@pytest.mark.parametrize("batched", [False, True], ids=["loop", "padded"])
@pytest.mark.parametrize("dropout", [False, True])
def test_products_and_gradients_equal_the_textbook(batched: bool, dropout: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "_batched", lambda rows: batched)
    inputs, dropped = drawn(), mask(dropout)
    expected = textbook(*inputs, dropped)
    found = grouped_products(*inputs, Groups(Grouping(RELATIONS), dropped, torch.float64))
    assert torch.allclose(found, expected, atol=1e-12)
    towards = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    pairs = zip(torch.autograd.grad((found * towards).sum(), inputs), torch.autograd.grad((expected * towards).sum(), inputs),
                strict=True)
    assert all(torch.allclose(ours, theirs, atol=1e-12) for ours, theirs in pairs)


@pytest.mark.parametrize("batched", [False, True], ids=["loop", "padded"])
def test_bfloat16_is_as_near_as_its_digits_allow(batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores cast in several slices of columns; each number within 2 % of the largest one."""
    monkeypatch.setattr(grouped, "_batched", lambda rows: batched)
    monkeypatch.setattr(grouped, "_COLUMNS", 10)
    inputs, dropped = drawn(kind=torch.float32), mask(True)
    expected = textbook(*inputs, dropped)
    found = grouped_products(*inputs, Groups(Grouping(RELATIONS), dropped, torch.bfloat16))
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    ours, theirs = torch.autograd.grad(found.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs)
    for one, other in ((found, expected), *zip(ours, theirs, strict=True)):
        assert (one - other).abs().max() < 0.02 * other.abs().max()


def test_gradients_can_be_asked_for_twice() -> None:
    inputs = drawn()
    found = grouped_products(*inputs, Groups(Grouping(RELATIONS), mask(True), torch.float64)).sum()
    first = torch.autograd.grad(found, inputs, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, torch.autograd.grad(found, inputs), strict=True))


def test_grouping_orders_and_finds_back() -> None:
    relations = RELATIONS[torch.randperm(len(RELATIONS), generator=torch.Generator().manual_seed(0))]
    grouping = Grouping(relations)
    assert torch.equal(relations[grouping.order], RELATIONS) and torch.equal(RELATIONS[grouping.back], relations)
    assert grouping.counts == COUNTS and grouping.bounds == [(0, 1), (1, 41), (41, 44), (44, 114)]
    owner, place = grouping.blocks
    assert owner.tolist() == [0, 1, 1, 2, 3, 3, 3]
    assert torch.equal(owner[place // 32], torch.arange(4).repeat_interleave(torch.tensor(COUNTS)))
    assert len(place.unique()) == len(place)


def test_kept_matrices_give_the_same_products_and_stay_within_their_size() -> None:
    heads, vectors, core = (tensor.detach() for tensor in drawn())
    matrix = core[0].nbytes
    table = torch.zeros(10, vectors.shape[1], dtype=torch.float64)
    table[RELATIONS.unique()] = vectors
    kept = KeptMatrices(3 * matrix)
    assert kept.hold(3, core) and not kept.hold(4, core)
    for asked in ([7], [7, 3, 9], [4, 7], [3], [9, 4]):  # each time others have to make room
        chosen = torch.isin(RELATIONS, torch.tensor(asked))
        grouping = Grouping(RELATIONS[chosen], kept)
        groups = Groups(grouping, None, torch.float64)
        expected = grouped_products(heads[chosen], table[grouping.distinct], core, groups)
        assert torch.allclose(kept_products(heads[chosen], table, core, groups), expected, atol=1e-12)
        assert sum(tensor.untyped_storage().nbytes() for tensor in kept.matrices) <= 3 * matrix


def test_what_was_asked_for_last_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, vectors, core = (tensor.detach() for tensor in drawn())
    kept = KeptMatrices(2 * core[0].nbytes)
    first = kept.of(core, vectors, torch.tensor([0, 1]))
    kept.of(core, vectors, torch.tensor([0]))
    kept.of(core, vectors, torch.tensor([2]))  # 1 makes room
    again = torch.full_like(vectors, torch.nan)  # a matrix that is built from it shows
    assert torch.equal(kept.of(core, again, torch.tensor([0]))[0], first[0])
    assert kept.of(core, again, torch.tensor([1]))[0].isnan().all()
    other = kept.of(core + 1, vectors, torch.tensor([1]))  # of another branch
    assert torch.allclose(other[0], first[1] + vectors[1].sum())
