"""What commands share that rank a split: its triples, what is filtered, and the words that go with test."""

from __future__ import annotations

import numpy as np

from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers
from imf_core.errors import ConfigError

TEST_WORDS = "Test is for final figures: whoever chooses with it has none left."


def open_split(graph: KnowledgeGraph, split: str) -> tuple[np.ndarray, KnownAnswers]:
    """The triples (T, 3) of `valid` or `test`, and the answers that are filtered when they are ranked.

    Raises:
        ConfigError: another name.
        DataError: the graph has no test split.
    """
    if split == "valid":
        return graph.valid, graph.known()
    if split == "test":
        triples = graph.open_test()
        return triples, graph.known(graph.train, graph.valid, triples)
    raise ConfigError(f"unknown split {split!r}", remedy="choose valid or test", key="split", value=split)
