"""Graph attention gives the published numbers; its training reads train alone, repeats to the bit and is bounded in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imf_core.config import StructureConfig
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.encode.structure import attention as structure
from imf_core.encode.structure.attention import (
    AttentionEncoder,
    RelationalAttention,
    StructureEncoder,
    distance,
    pretrain,
)
from imf_core.encode.structure.neighbours import Hop, Neighbours
from imf_core.errors import DivergedError
from imf_core.prepare.link_data import LinkData

FIXTURE = Path(__file__).parents[2] / "fixtures" / "published_gat.safetensors"
QUICK = StructureConfig(width=16, heads=2, epochs=8, batch_size=32, lr=0.02, negatives=4)


def published(path: Path) -> tuple[AttentionEncoder, dict[str, torch.Tensor]]:
    recorded = load_file(path)
    entities, width = recorded["in.x"].shape
    encoder = AttentionEncoder(width, recorded["in.relations"].shape[1], 8, 2, relational=False).eval()
    heads = [(recorded[f"weights.attention_{head}.W"], recorded[f"weights.attention_{head}.a"]) for head in range(2)]
    encoder.load_state_dict(
        {
            "first.weight": torch.stack([weight for weight, _ in heads]),
            "first.logit": torch.cat([logit for _, logit in heads]),
            "second.weight": recorded["weights.out_att.W"][None],
            "second.logit": recorded["weights.out_att.a"],
            "relation_weight": recorded["weights.W"],
        }
    )
    assert entities == 12
    return encoder, recorded


def check(path: Path) -> None:
    encoder, recorded = published(path)
    edges = recorded["in.edges_row_col"].numpy()
    hop = Hop(edges, np.zeros(edges.shape[1], np.int64), len(recorded["in.x"]))
    with torch.no_grad():
        entities, relations = encoder(recorded["in.x"], recorded["in.relations"], [hop, hop])
    torch.testing.assert_close(entities, recorded["out.entities"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(relations, recorded["out.relations"], rtol=1e-5, atol=1e-5)


def test_recorded_attention() -> None:
    check(FIXTURE)


def test_fixture_is_the_shared_recording(shared_dir: Path) -> None:
    check(shared_dir / "parity" / "gat.safetensors")


def test_the_recording_depends_on_who_aggregates() -> None:
    encoder, recorded = published(FIXTURE)
    edges = recorded["in.edges_row_col"].flip(0).numpy()
    hop = Hop(edges, np.zeros(edges.shape[1], np.int64), len(recorded["in.x"]))
    with torch.no_grad():
        entities, _ = encoder(recorded["in.x"], recorded["in.relations"], [hop, hop])
    assert (entities - recorded["out.entities"]).abs().max() > 0.1


# --- message passing ------------------------------------------------------------------------------------------------


def by_hand(layer: RelationalAttention, nodes, edges, size, relations, types) -> torch.Tensor:
    """The equations, an edge at a time, as KBGAT states them."""
    result = torch.zeros(size, layer.heads, layer.out)
    for node in range(size):
        mine = [edge for edge in range(edges.shape[1]) if int(edges[0, edge]) == node]
        for head in range(layer.heads):
            total, weighted = 0.0, torch.zeros(layer.out)
            for edge in mine:
                parts = [nodes[node], nodes[edges[1, edge]], relations[types[edge]]]
                vector = layer.weight[head] @ torch.cat(parts)
                logit = layer.logit[head] @ vector
                share = torch.exp(-(logit if logit > 0 else 0.2 * logit))
                total, weighted = total + share, weighted + share * vector
            if mine:
                result[node, head] = weighted / total
    return result.flatten(1)


def test_message_passing_is_the_sum_over_the_edges() -> None:
    torch.manual_seed(0)
    layer = RelationalAttention(width=5, relation_width=3, out=4, heads=3)
    nodes, relations = torch.randn(7, 5), torch.randn(4, 3)
    edges = torch.tensor([[0, 0, 1, 2, 2, 2, 0], [3, 1, 6, 0, 2, 5, 3]])  # node 3 of the four has no edge; one edge twice
    types = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    with torch.no_grad():
        found = layer(nodes, edges, 4, relations, types)
        torch.testing.assert_close(found, by_hand(layer, nodes, edges, 4, relations, types), rtol=1e-5, atol=1e-5)
    assert found[3].tolist() == [0.0] * 12


def test_the_relation_of_an_edge_matters() -> None:
    torch.manual_seed(0)
    layer = RelationalAttention(width=4, relation_width=4, out=4)
    nodes, relations, edges = torch.randn(3, 4), torch.randn(2, 4), torch.tensor([[0, 0], [1, 2]])
    first = layer(nodes, edges, 1, relations, torch.tensor([0, 0]))
    second = layer(nodes, edges, 1, relations, torch.tensor([0, 1]))
    assert not torch.allclose(first, second)


def test_large_logits_do_not_overflow() -> None:
    layer = RelationalAttention(width=2, relation_width=0, out=2)
    nodes = torch.tensor([[1e4, -1e4], [3e4, 1e4], [-2e4, 5e4]])
    assert torch.isfinite(layer(nodes, torch.tensor([[0, 0], [1, 2]]), 1, None, None)).all()


def test_a_step_gives_what_the_whole_graph_gives(toy: LinkData) -> None:
    graph = toy.graph
    torch.manual_seed(0)
    model = StructureEncoder(graph.num_entities, graph.num_relations, QUICK).eval()
    neighbours = Neighbours(graph.train, graph.num_entities, graph.num_relations)
    whole = model.table(neighbours)
    seeds = np.array([3, 17, 29])
    with torch.no_grad():
        part, _ = model(*neighbours.step(seeds, 10_000, np.random.default_rng(0)))
    np.testing.assert_allclose(part.numpy(), whole[seeds], atol=1e-6)


def test_the_table_does_not_depend_on_its_chunks(toy: LinkData, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = toy.graph
    model = StructureEncoder(graph.num_entities, graph.num_relations, QUICK).eval()
    neighbours = Neighbours(graph.train, graph.num_entities, graph.num_relations)
    whole = model.table(neighbours)
    monkeypatch.setattr(structure, "_EDGES", 40)  # above the largest degree, so that no list is sampled
    assert len(model._chunks(neighbours)) > 3
    np.testing.assert_allclose(model.table(neighbours), whole, atol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


def with_isolated(graph: KnowledgeGraph) -> KnowledgeGraph:
    """The same graph and two entities without a triple."""
    return replace(graph, entities=Vocabulary((*graph.entities.names, "alone", "forlorn")))


def test_isolated_entities_get_finite_vectors_of_their_own(toy: LinkData) -> None:
    table, report = pretrain(with_isolated(toy.graph), QUICK)
    assert table.shape == (32, 16) and table.dtype == np.float32
    assert np.isfinite(table).all() and np.isfinite(report.losses).all()
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1.0, atol=1e-5)
    assert not np.allclose(table[30], table[31])


def test_equal_seeds_repeat_to_the_bit_and_leave_the_global_generator_alone(toy: LinkData) -> None:
    before = torch.random.get_rng_state()
    table, report = pretrain(toy.graph, QUICK)
    again, repeated = pretrain(toy.graph, QUICK)
    other, _ = pretrain(toy.graph, QUICK.model_copy(update={"seed": 1}))
    assert np.array_equal(table, again) and report.losses == repeated.losses
    assert not np.allclose(table, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_loss_falls_and_true_triples_come_closer_than_corrupted_ones(toy: LinkData, monkeypatch) -> None:
    kept: list[StructureEncoder] = []
    original = StructureEncoder.table
    monkeypatch.setattr(StructureEncoder, "table", lambda self, *rest: (kept.append(self), original(self, *rest))[1])
    graph = toy.graph
    table, report = pretrain(graph, QUICK.model_copy(update={"epochs": 60, "dropout": 0.0}))
    assert len(report.losses) == 60
    assert report.losses[-1] < 0.3 * report.losses[0]
    vectors = torch.from_numpy(table)
    with torch.no_grad():
        nodes, hops = Neighbours(graph.train, 30, 4).step(np.arange(30), 100, np.random.default_rng(0))
        _, relations = kept[0](nodes, hops)
    heads, types, tails = torch.from_numpy(graph.train).unbind(1)
    true = distance(vectors[heads], relations[types], vectors[tails])
    corrupted = distance(vectors[heads], relations[types], vectors[(tails + 11) % 30])
    assert float((true < corrupted).float().mean()) > 0.9


def test_only_training_triples_are_read(toy: LinkData) -> None:
    def refuse() -> np.ndarray:
        raise AssertionError("the test split was opened")

    table, _ = pretrain(toy.graph, QUICK)
    other = replace(toy.graph, valid=toy.graph.valid[::-1][:3].copy(), test_reader=refuse)
    assert np.array_equal(table, pretrain(other, QUICK)[0])
    fewer = replace(toy.graph, train=toy.graph.train[:-5])
    assert not np.array_equal(table, pretrain(fewer, QUICK)[0])


def test_the_cap_bounds_the_edges_of_a_step() -> None:
    count = 3000  # a hub that all others point to
    rows = np.stack([np.arange(1, count), np.zeros(count - 1, np.int64), np.zeros(count - 1, np.int64)], axis=1)
    names = Vocabulary(tuple(map(str, range(count))))
    graph = KnowledgeGraph(names, Vocabulary(("to",), "relation"), rows, rows[:1])
    settings = QUICK.model_copy(update={"epochs": 1, "batch_size": 50, "negatives": 1})
    peaks = [pretrain(graph, settings.model_copy(update={"neighbours": most}))[1].peak_edges for most in (2, 4000)]
    assert peaks[0] <= 2 * (2 * 2 * 50) * (1 + 2)  # cap x (ends of triples and corruptions, and their capped neighbours)
    assert peaks[1] > count - 2  # without a cap a single step looks at all of the hub's neighbours


def test_a_diverging_run_is_an_error(toy: LinkData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "distance", lambda heads, *_: heads.sum(dim=1) * float("nan"))
    with pytest.raises(DivergedError, match="structure encoder is nan in epoch 1"):
        pretrain(toy.graph, QUICK)
