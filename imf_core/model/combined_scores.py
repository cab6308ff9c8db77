"""Combined scores of all candidates, tile by tile: the `(B, N)` scores of a single branch never exist as a whole.

Shapes: `B` queries, `N` entities, `C` candidates of a tile, `M` branches, `V` decisions computed side by side, `c` candidates
that lack a modality.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imf_core.model.branches import Tables
from imf_core.model.decision import Decision, combine, partial_columns, renormalised
from imf_core.model.imf import Imf
from imf_core.model.losses.tiles import tile_width

# Edge tiles of a GEMM sum in another order, so identical rows could score differently. Queries and candidates are padded to
# multiples of these to keep ties exact.
ROWS, _COLUMNS = 32, 64
_GRAIN = 32768  # numbers that torch gives to one thread at least
_REGISTERS = 64


@dataclass(frozen=True)
class Known:
    """What is known of a model's scores before any is computed: a GPU that is asked takes as long to answer as for a block.

    Args:
        columns: (c,) int64, candidates that lack a modality; None where none does.
        ids: (c,) the same, on the host.
        equal: per decision whether it weighs all branches the same for all queries and candidates.
    """

    columns: Tensor | None
    ids: np.ndarray
    equal: tuple[bool, ...]

    @classmethod
    def of(cls, model: Imf, decisions: Sequence[Decision]) -> Known:
        """Of a model whose V decisions and masks do not change meanwhile."""
        columns = partial_columns([model.mask(branch) for branch in model.branches], 0, model.num_entities)
        relation = torch.zeros(1, dtype=torch.long, device=model.structure.device)
        equal = [
            columns is None and decision.mode != "relation" and len(set(decision.weights(relation)[0].tolist())) == 1
            for decision in decisions
        ]
        return cls(columns, np.empty(0, np.int64) if columns is None else columns.cpu().numpy(), tuple(equal))

    def gap(self, low: int, high: int) -> bool:
        """Whether one of the candidates low..high lacks a modality."""
        first, last = np.searchsorted(self.ids, (low, high))
        return bool(first < last)


@torch.no_grad()
def combined_scores(
    model: Imf, tables: Tables, contexts: Sequence[Tensor], weights: Tensor, buffer: Tensor, known: Known
) -> Tensor:
    """Scores by which the candidates of each query are ordered under V decisions.

    Under `bce` they are the probabilities of `Imf.combine`. Under `ce` they are its log-probabilities plus a number that is the
    same for all candidates of a query: no rank depends on it, and it would cost a logsumexp over each branch. Only where
    candidates lack a modality is it needed; then the scores are those of `Imf.combine`.

    Args:
        model: in evaluation mode.
        tables: from `model.tables()`.
        contexts: M tensors (B, d).
        weights: (V, B, M), 0 where the head lacks the modality.
        buffer: at least `buffer_size` numbers, which are overwritten.
        known: of the model and the V decisions.

    Returns:
        (V, B, N), higher is more plausible; the caller may overwrite it.
    """
    queries = len(contexts[0])
    if fill := -queries % ROWS:
        contexts = [functional.pad(context, (0, 0, 0, fill)) for context in contexts]
        weights = torch.cat([weights, weights[:, -1:].expand(-1, fill, -1)], dim=1)
    buffer = buffer[: buffer_size(model, len(weights), queries)]
    scores = buffer.zero_().view(len(weights), len(contexts[0]), -1)  # (V, B padded, N padded)
    (_log_probabilities if model.loss_kind == "ce" else _probabilities)(model, tables, contexts, weights, scores, known)
    return scores[:, :queries, : model.num_entities]


def buffer_size(model: Imf, num_variants: int, num_queries: int) -> int:
    """Numbers that the padded scores of V decisions for B queries take."""
    return num_variants * (num_queries + -num_queries % ROWS) * (model.num_entities + -model.num_entities % _COLUMNS)


def _pieces(model: Imf, tables: Tables, contexts: Sequence[Tensor]) -> Iterator[tuple[slice, Tables]]:
    """Tiles of C candidates, C a multiple of `_COLUMNS`, and their rows (C, d) of the tables; the last is padded with zeros."""
    width = tile_width(len(contexts[0]), model.num_entities, contexts[0].device)
    width += -width % _COLUMNS
    for low in range(0, model.num_entities, width):
        high = min(low + width, model.num_entities)
        fill = -(high - low) % _COLUMNS
        rows = {branch: table[low:high] for branch, table in tables.entities.items()}
        if fill:
            rows = {branch: functional.pad(table, (0, 0, 0, fill)) for branch, table in rows.items()}
        yield slice(low, high + fill), Tables(rows, {})


def _probabilities(
    model: Imf, tables: Tables, contexts: Sequence[Tensor], weights: Tensor, total: Tensor, known: Known
) -> None:
    """`bce`: add the weighted probabilities of the branches to the zeros in `total` (V, B, N padded)."""
    masks = [model.mask(branch) for branch in model.branches]
    # A decision that weighs all branches the same for all queries needs their plain sum only, scaled at the end.
    factors = [None if plain else variant for variant, plain in zip(weights, known.equal, strict=True)]
    for tile, piece in _pieces(model, tables, contexts):
        values = (_sigmoid(score) for score in model.each_score(piece, contexts))  # one after the other, while in the cache
        if known.gap(tile.start, tile.stop):
            fill = max(0, tile.stop - model.num_entities)
            inside = [None if mask is None else functional.pad(mask[tile], (0, fill), value=True) for mask in masks]
            shared = list(values)
            for out, variant in zip(total, weights, strict=True):
                out[:, tile] = combine(shared, variant, inside)
        else:
            _accumulate(total[:, :, tile], values, factors)
    for out, variant, plain in zip(total, weights, known.equal, strict=True):
        if plain:
            out *= variant[0, 0]


def _log_probabilities(
    model: Imf, tables: Tables, contexts: Sequence[Tensor], weights: Tensor, total: Tensor, known: Known
) -> None:
    """`ce`: add the weighted scores of the branches to the zeros in `total` (V, B, N padded)."""
    columns = known.columns
    if columns is None and len(weights) == 1 and model.scores_are_products:
        scaled = [context * weights[0, :, position, None] for position, context in enumerate(contexts)]
        for tile, piece in _pieces(model, tables, contexts):
            for context, branch in zip(scaled, model.branches, strict=True):
                total[0, :, tile].addmm_(context, piece.entities[branch].T)
        return
    norms: list[list[Tensor]] = [[] for _ in contexts]
    for tile, piece in _pieces(model, tables, contexts):
        for position, score in enumerate(model.each_score(piece, contexts)):
            if columns is not None:
                norms[position].append(torch.logsumexp(score[:, : model.num_entities - tile.start], dim=1))
            _accumulate(total[:, :, tile], [score], list(weights[:, :, position : position + 1]))
    if columns is not None:
        over_all = [torch.logsumexp(torch.stack(column), dim=0) for column in norms]  # M x (B,)
        _correct_partial(model, tables, contexts, weights, total, over_all, columns)


def _accumulate(total: Tensor, values: Iterable[Tensor], weights: Iterable[Tensor | None]) -> None:
    """Add M values (B, C) to `total` (V, B, C), weighted by V tensors (B, M), or unweighted where one is None."""
    pairs = list(zip(total, weights, strict=True))
    for position, value in enumerate(values):
        for out, variant in pairs:
            # Not `addcmul_`: a fused multiply-add rounds differently at the edges of vector registers, which breaks ties.
            out += value if variant is None else value * variant[:, position, None]


def _correct_partial(
    model: Imf, tables: Tables, contexts: Sequence[Tensor], weights: Tensor, total: Tensor, norms: Sequence[Tensor],
    columns: Tensor,
) -> None:
    """Subtract the normalisers, and score the candidates that lack a modality again, with renormalised weights.

    Args:
        model, tables, contexts, weights: as of `combined_scores`.
        total: (V, B, N padded) weighted scores; changed in place.
        norms: M tensors (B,), logsumexp of each branch.
        columns: (c,) int64, candidates that lack a modality.
    """
    total -= torch.einsum("vbm,mb->vb", weights, torch.stack(list(norms)))[:, :, None]
    masks = [model.mask(branch) for branch in model.branches]
    ones = torch.ones(model.num_entities, dtype=torch.bool, device=columns.device)
    usable = torch.stack([ones if mask is None else mask for mask in masks])  # (M, N)
    for part in columns.split(tile_width(len(contexts[0]), model.num_entities, columns.device)):
        padded = torch.cat([part, part[-1:].expand(-len(part) % _COLUMNS)])
        scores = [score[:, : len(part)] for score in model.branch_scores(tables, contexts, padded)]  # M x (B, part)
        for out, variant in zip(total, weights, strict=True):
            shares = renormalised(variant, usable[:, part])  # (M, B, part)
            out[:, part] = sum(
                (share * (score - norm[:, None]) for share, score, norm in zip(shares, scores, norms, strict=True)),
                start=torch.zeros_like(scores[0]),
            )


def _sigmoid(scores: Tensor) -> Tensor:
    """Sigmoid of (B, C) scores, in place or in a copy; equal scores become equal numbers, so that ties stay ties.

    Torch divides the numbers among its threads; the last few of a thread, which fill no vector register, go through a scalar
    exponential that may differ in the last bit. With padding no thread has such a remainder.
    """
    count = scores.numel()
    padded = padded_count(count, torch.get_num_threads())
    if padded == count or scores.device.type != "cpu":
        return scores.sigmoid_()
    flat = scores.new_zeros(padded)
    flat[:count] = scores.flatten()
    return flat.sigmoid_()[:count].view_as(scores)


def padded_count(count: int, threads: int) -> int:
    """The smallest number >= `count` that `at::parallel_for` divides among `threads` in whole vector registers."""
    while count % (part := _REGISTERS * max(1, min(threads, -(-count // _GRAIN)))):
        count += part - count % part
    return count
