"""The contract of a reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imf_core.data.formats.readers import read_graph
from imf_core.testing.base import PartContract

TRIPLES = (("a", "likes", "b"), ("b", "likes", "c d"), ("c d", "is near", "été"), ("a", "is near", "中"))


class ReaderContract(PartContract):
    """A reader: it gives back the triples that a file holds, in their order. `write` writes such a file."""

    kind = "reader"

    def write(self, path: Path, triples: Sequence[tuple[str, str, str]]) -> None:
        """Write a file as the reader reads it."""
        raise NotImplementedError  # abstract

    def test_it_reads_what_was_written(self, tmp_path: Path) -> None:
        file = tmp_path / f"train.{self.name}"
        self.write(file, TRIPLES)
        assert [tuple(row) for row in self.part.target(file)] == list(TRIPLES)

    def test_a_folder_of_its_files_is_a_graph(self, tmp_path: Path) -> None:
        self.write(tmp_path / f"train.{self.name}", TRIPLES[:3])
        self.write(tmp_path / f"valid.{self.name}", TRIPLES[3:])
        graph = read_graph(tmp_path)
        found = [
            (graph.entities.names[head], graph.relations.names[relation], graph.entities.names[tail])
            for head, relation, tail in [*graph.train, *graph.valid]
        ]
        assert found == list(TRIPLES)
