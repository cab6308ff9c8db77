"""The time that a trained model takes to answer one question."""

from __future__ import annotations

import statistics
import time

import torch

from imf_core.evaluate.ranking import ModelScores, Scores
from imf_core.model.imf import Imf

_ASKED, _WARM = 25, 5  # questions that are timed, and warm-up questions before them


def latency_ms(model: Imf, budget: int = 2**28) -> float:
    """Median time from a question to the scores of all entities, in ms; one question at a time, entity tables precomputed.

    Args:
        model: put into evaluation mode; its weights do not matter.
        budget: bytes that scores may take.
    """
    return scores_latency_ms(ModelScores(model, budget), model.num_relations)


def scores_latency_ms(scores: Scores, num_relations: int) -> float:
    """As `latency_ms`, of what scores all entities: a model's scores, or those of several together."""
    times = []
    with torch.no_grad():
        for number in range(_ASKED + _WARM):
            head = torch.tensor([number % scores.num_entities], device=scores.device)
            relation = torch.tensor([number % (2 * num_relations)], device=scores.device)
            started = time.perf_counter()
            float(next(iter(scores.blocks(head, relation, 1)))[0, 0, 0])  # reading a number waits for a GPU
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[_WARM:])
