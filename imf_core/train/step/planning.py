"""Plans the batches of a static step, with sizes that grow as batches ask for more."""

from __future__ import annotations

from dataclasses import replace

from imf_core.config import STRUCTURE
from imf_core.model.static.plan import Planner, Sizes, room
from imf_core.model.static.step import StaticStep
from imf_core.train.batches import QueryBatch


class Planning:
    """Plans batch after batch, on the host.

    Args:
        step: which they are for.

    Attributes:
        sizes: that held all batches so far; None before the first.
    """

    def __init__(self, step: StaticStep) -> None:
        self.step = step
        self.sizes: Sizes | None = None
        model, settings = step.model, step.settings
        views = (STRUCTURE, *model.modality_names) if model.config.contrastive_weight > 0 and model.modality_names else ()
        masks = [None if (mask := model.mask(view)) is None else mask.cpu().numpy() for view in views]
        self._planner = Planner(model.num_entities, model.loss_kind, settings.weighting == "triple", masks)

    def planned(self, batch: QueryBatch, budget: int) -> QueryBatch:
        """The batch with a plan, its answers padded; without one where its scores would take more than the budget.

        Args:
            batch: on the host.
            budget: bytes that scores may take.
        """
        relations = batch.relations.numpy()
        sizes = room(relations, len(batch.positives.rows), self.sizes)
        if self.step.bytes_needed(sizes) > budget:
            return batch
        self.sizes = sizes
        plan, positives = self._planner.plan(batch.heads.numpy(), relations, batch.positives, sizes)
        return replace(batch, positives=positives, plan=plan)
