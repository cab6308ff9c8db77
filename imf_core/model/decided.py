"""Decided scores of all candidates, tile by tile: the scores of the branches never exist as a whole.

Shapes: `B` queries, `N` entities, `C` candidates of a tile, `M` branches, `V` decisions computed side by side, `p` candidates
that lack a modality.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from imf_core.model.decision import combine
from imf_core.model.imf import Imf, Tables
from imf_core.model.losses.target import partial_columns, renormalised, tile_width

# Equal rows of a table get equal scores only where a matrix product has no edge: there its kernel is another one, which sums
# in another order. So the products are filled up to whole multiples of this many queries and candidates.
ROWS, _COLUMNS = 32, 64
_GRAIN = 32768  # numbers that torch gives to one thread at least
_REGISTERS = 64


@torch.no_grad()
def decided_scores(
    model: Imf, tables: Tables, contexts: Sequence[Tensor], weights: Tensor, room: Tensor | None = None
) -> Tensor:
    """Scores by which the candidates of each query are ordered under V decisions.

    Under `bce` they are `Imf.decide`'s probabilities. Under `ce` they are its log-probabilities plus a number that is the same
    for all candidates of a query: no rank sees it, and it costs a logsumexp over each branch. Where candidates lack a modality
    it is needed, and then the scores are `Imf.decide`'s.

    Args:
        model: in evaluation mode.
        tables: from `model.tables()`.
        contexts: M tensors (B, d).
        weights: (V, B, M), 0 where the head lacks the modality.
        room: at least `room_for` numbers, which are overwritten; None: the scores get memory of their own.

    Returns:
        (V, B, N), to be changed by the caller at will.
    """
    queries = len(contexts[0])
    fill = -queries % ROWS
    contexts = [functional.pad(context, (0, 0, 0, fill)) for context in contexts]
    weights = torch.cat([weights, weights[:, -1:].expand(-1, fill, -1)], dim=1)
    needed = room_for(model, len(weights), queries)
    room = contexts[0].new_empty(needed) if room is None else room[:needed]
    made = room.zero_().view(len(weights), len(contexts[0]), -1)
    (_log_probabilities if model.loss_kind == "ce" else _probabilities)(model, tables, contexts, weights, made)
    return made[:, :queries, : model.num_entities]


def room_for(model: Imf, variants: int, queries: int) -> int:
    """Numbers that the scores of V decisions for B queries take while they are made."""
    return variants * (queries + -queries % ROWS) * (model.num_entities + -model.num_entities % _COLUMNS)


def _pieces(model: Imf, tables: Tables, contexts: Sequence[Tensor]) -> Iterator[tuple[slice, Tables]]:
    """Tiles of whole columns and their rows of the tables; the last one is filled up with zeros."""
    width = tile_width(len(contexts[0]), model.num_entities, contexts[0].device)
    width += -width % _COLUMNS
    for low in range(0, model.num_entities, width):
        high = min(low + width, model.num_entities)
        fill = -(high - low) % _COLUMNS
        rows = {branch: table[low:high] for branch, table in tables.entities.items()}
        if fill:
            rows = {branch: functional.pad(table, (0, 0, 0, fill)) for branch, table in rows.items()}
        yield slice(low, high + fill), Tables(rows, {})


def _probabilities(model: Imf, tables: Tables, contexts: Sequence[Tensor], weights: Tensor, made: Tensor) -> None:
    masks = [model.mask(branch) for branch in model.branches]
    # Where all branches weigh the same for all queries, their plain sum does, scaled at the end.
    whole = partial_columns(masks, 0, model.num_entities) is None
    equal = [whole and bool((own == own[0, 0]).all()) for own in weights]
    factors = [None if plain else own for own, plain in zip(weights, equal, strict=True)]
    for tile, piece in _pieces(model, tables, contexts):
        values = (_sigmoid(score) for score in model.each_score(piece, contexts))  # one after the other, while in the cache
        if partial_columns(masks, tile.start, tile.stop) is not None:
            fill = max(0, tile.stop - model.num_entities)
            inside = [None if mask is None else functional.pad(mask[tile], (0, fill), value=True) for mask in masks]
            shared = list(values)
            for out, own in zip(made, weights, strict=True):
                out[:, tile] = combine(shared, own, inside)
        else:
            _accumulate(made[:, :, tile], values, factors)
    for out, own, plain in zip(made, weights, equal, strict=True):
        if plain:
            out *= own[0, 0]


def _log_probabilities(model: Imf, tables: Tables, contexts: Sequence[Tensor], weights: Tensor, made: Tensor) -> None:
    masks = [model.mask(branch) for branch in model.branches]
    columns = partial_columns(masks, 0, model.num_entities)
    if columns is None and len(weights) == 1 and model.scores_are_products:
        scaled = [context * weights[0, :, position, None] for position, context in enumerate(contexts)]
        for tile, piece in _pieces(model, tables, contexts):
            for context, branch in zip(scaled, model.branches, strict=True):
                made[0, :, tile].addmm_(context, piece.entities[branch].T)
        return
    norms: list[list[Tensor]] = [[] for _ in contexts]
    for tile, piece in _pieces(model, tables, contexts):
        for position, score in enumerate(model.each_score(piece, contexts)):
            if columns is not None:
                norms[position].append(torch.logsumexp(score[:, : model.num_entities - tile.start], dim=1))
            _accumulate(made[:, :, tile], [score], list(weights[:, :, position : position + 1]))
    if columns is not None:
        whole = [torch.logsumexp(torch.stack(column), dim=0) for column in norms]
        _correct(model, tables, contexts, weights, made, whole, columns)


def _accumulate(made: Tensor, values: Iterable[Tensor], weights: Iterable[Tensor | None]) -> None:
    """Add M values (B, C), weighted by V tensors (B, M) or plainly where None, to (V, B, C)."""
    pairs = list(zip(made, weights, strict=True))
    for position, value in enumerate(values):
        for out, own in pairs:
            # Product and sum apart: fused, they are rounded here and there in different ways.
            out += value if own is None else value * own[:, position, None]


def _correct(
    model: Imf, tables: Tables, contexts: Sequence[Tensor], weights: Tensor, made: Tensor, norms: Sequence[Tensor],
    columns: Tensor,
) -> None:
    """Shift the decided scores (V, B, N) by the normalisers, M tensors (B,), and decide the (p,) candidates anew that lack a
    modality: their weights are others.
    """
    made -= torch.einsum("vbm,mb->vb", weights, torch.stack(list(norms)))[:, :, None]
    masks = [model.mask(branch) for branch in model.branches]
    ones = torch.ones(model.num_entities, dtype=torch.bool, device=columns.device)
    usable = torch.stack([ones if mask is None else mask for mask in masks])
    for chosen in columns.split(tile_width(len(contexts[0]), model.num_entities, columns.device)):
        filled = torch.cat([chosen, chosen[-1:].expand(-len(chosen) % _COLUMNS)])
        scores = [score[:, : len(chosen)] for score in model.branch_scores(tables, contexts, filled)]
        for out, own in zip(made, weights, strict=True):
            share = renormalised(own, usable[:, chosen])
            out[:, chosen] = sum(
                (part * (score - norm[:, None]) for part, score, norm in zip(share, scores, norms, strict=True)),
                start=torch.zeros_like(scores[0]),
            )


def _sigmoid(scores: Tensor) -> Tensor:
    """In place or in a copy: equal scores become equal numbers, so that ties stay ties.

    Torch shares the numbers out among its threads and leaves to each a rest that fills no vector register; the rest goes
    through another exponential, which may differ in the last bit. Padded, no thread has a rest.
    """
    count = scores.numel()
    padded = _padded(count, torch.get_num_threads())
    if padded == count or scores.device.type != "cpu":
        return scores.sigmoid_()
    flat = scores.new_zeros(padded)
    flat[:count] = scores.flatten()
    return flat.sigmoid_()[:count].view_as(scores)


def _padded(count: int, threads: int) -> int:
    """The least count from `count` on of which every thread gets whole registers: `at::parallel_for` with its grain."""
    while count % (part := _REGISTERS * max(1, min(threads, -(-count // _GRAIN)))):
        count += part - count % part
    return count
