"""Entities that no training triple names: their structure vectors rest at the mean of the others."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def rest_unlinked(structure: Tensor, unlinked: Tensor | None) -> None:
    """Give the rows of unlinked entities the mean of the other rows, in place.

    As wrong answers to every query these rows learn one thing, to be no answer; as heads they then say so of everything. The
    mean asks what the relation alone would answer. On MKG-W (7.8 % of the validation triples are cold, structure alone) the MRR
    of the cold ones rose from 0.037 to 0.062 and from 0.051 to 0.061 in two models; the others are not touched.

    Args:
        structure: (N, d).
        unlinked: (N,) bool; None: nobody.
    """
    if unlinked is None:
        return
    mask = unlinked.to(structure.device)
    structure[mask] = structure[~mask].mean(dim=0)


def unlinked_of(seen: Tensor) -> Tensor | None:
    """(N,) bool of those that are not `seen` in training; None where there is nobody, or nobody else."""
    return None if bool(seen.all()) or not bool(seen.any()) else ~seen
