"""RotatE: a relation turns each complex number of the head (Sun et al., ICLR 2019, arXiv 1902.10197).

Shapes: `B` queries, `C` candidates, `d` entity width, `r = d / 2` relation width.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

import imf_core
from imf_core.config import ModelConfig
from imf_core.model.scoring import Scorer

_AT_A_TIME = 2**22  # numbers of a block of candidates


class RotateSettings(imf_core.Section):
    """Settings of RotatE."""

    margin: Annotated[float, imf_core.Tunable(low=1.0, high=24.0, log=True)] = Field(
        6.0, gt=0, le=1000, description="gamma, from which the distance is subtracted"
    )


@imf_core.scorer("rotate", settings=RotateSettings)
class Rotate(Scorer):
    """RotatE: `s = gamma - sum_i |h_i r_i - t_i|` over complex numbers, with |r_i| = 1."""

    is_product = False

    def __init__(self, config: ModelConfig, settings: RotateSettings) -> None:
        super().__init__()
        self.relation_width, self.margin = config.dim // 2, settings.margin

    @classmethod
    def relation_width_of(cls, config: ModelConfig, *settings: RotateSettings) -> int:
        return config.dim // 2  # phases

    @staticmethod
    def check_settings(config: ModelConfig, settings: RotateSettings) -> None:
        if config.dim % 2:
            raise ValueError(f"scoring: rotate needs an even dim, found {config.dim}")

    def context(self, heads: Tensor, relation_table: Tensor, relations: Tensor, grouping: object = None) -> Tensor:
        phase = relation_table[relations]  # (B, r)
        (real, imaginary), cos, sin = heads.chunk(2, dim=1), phase.cos(), phase.sin()
        return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=1)

    def score(self, context: Tensor, candidates: Tensor) -> Tensor:
        step = max(1, _AT_A_TIME // (len(context) * context.shape[1]))
        return torch.cat([self._distances(context[:, None], part) for part in candidates.split(step)], dim=1)

    def score_pairs(self, context: Tensor, candidates: Tensor) -> Tensor:
        return self._distances(context, candidates)

    def _distances(self, context: Tensor, candidates: Tensor) -> Tensor:
        real, imaginary = (context - candidates).chunk(2, dim=-1)
        moduli = (real.square() + imaginary.square()).clamp_min(1e-12).sqrt()  # no slope of its root at 0
        return self.margin - moduli.sum(dim=-1)
