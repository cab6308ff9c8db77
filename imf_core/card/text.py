"""Words and cells of a model card: what is the same for all of them, and how figures and names are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imf_core.checkpoint.checkpoint import Checkpoint
from imf_core.data.audit.report import certain_hits

UNKNOWN = "unknown"

FOR = (
    "- completing the graph that it was trained on: proposing tails and heads to a person or a program that checks them",
    "- entity vectors (`imf export`) as features of the same entities elsewhere",
)
NOT_FOR = (
    "- facts: an answer is a ranking of the known entities, not a claim that the best one is true",
    "- entities, relations or names that the graph does not have: they cannot be asked or answered",
    "- decisions about people, or anything where a wrong or missing link does harm without a person looking at it",
)
# DOI and authors as the publisher has them; the preprint is arXiv 2303.10816.
CITATION = """```bibtex
@inproceedings{li2023imf,
  title     = {{IMF}: Interactive Multimodal Fusion Model for Link Prediction},
  author    = {Li, Xinhang and Zhao, Xiangyu and Xu, Jiaxing and Zhang, Yong and Xing, Chunxiao},
  booktitle = {Proceedings of the ACM Web Conference 2023},
  year      = {2023},
  doi       = {10.1145/3543507.3583554}
}
```
"""


@dataclass(frozen=True)
class Facts:
    """Parsed JSON of unknown structure: what is missing or of another type is None, and shown as unknown.

    Args:
        content: anything that JSON can hold.
    """

    content: Any

    @property
    def values(self) -> Mapping[str, Any]:
        """As an object; an empty one where it is something else."""
        return self.content if isinstance(self.content, dict) else {}

    def at(self, *path: str) -> Any:
        """The value at a path of keys; None if there is none."""
        node = self.content
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def part(self, *path: str) -> Facts:
        """The facts below a path."""
        return Facts(self.at(*path))

    def number(self, *path: str) -> float | int | None:
        """A finite number, or None."""
        value = self.at(*path)
        usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return value if usable else None

    def shown(self, *path: str, kind: str = "") -> str:
        """A share with four digits, a mean rank with one.

        Args:
            path: of the number.
            kind: name of the figure; default: the last key.
        """
        value = self.number(*path)
        if value is None:
            return UNKNOWN
        return f"{value:.1f}" if (kind or path[-1]) == "mean_rank" else f"{value:.4f}"


def count(number: float | None) -> str:
    """`12,345`, or unknown."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def limits(loaded: Checkpoint) -> list[str]:
    """What the figures and the answers do not say."""
    certain = certain_hits(loaded.model.num_entities)
    return [
        "- Ranks are filtered: other known answers do not compete. Validation ranks are filtered by train and validation only, "
        "test ranks by all three splits, so that the two are not the same scale.",
        "- Ties count with their mean rank (realistic): a model that says nothing gains nothing by it.",
        "- MRR is over both directions, tails and heads together; the slices have them apart, and one is often much easier.",
        "- An entity that no training triple holds (*cold*) is ranked by what its modalities say, or by chance where it has "
        "none; the slice `cold` has the figures of triples with one, and says nothing where it is empty.",
        "- A score is a probability in this model's own distribution over the known entities, not the chance of being true.",
        "- What the training data lacks or gets wrong, the model lacks and gets wrong too.",
        *([f"- {certain}."] if certain else []),
    ]
