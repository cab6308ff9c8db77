"""A checkpoint goes on with a changed graph: known names keep their vectors, new ones get what their features say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imf_core.checkpoint.carry_over import carry_over
from imf_core.checkpoint.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from imf_core.config import Config
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.errors import CheckpointError
from imf_core.evaluate.ranking import evaluate
from imf_core.model.imf import Imf
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model, fit

COUNT, GROUPS = 120, 6
SETTINGS = {
    "model.dim": 16, "model.relation_dim": 8, "train.batch_size": 64, "train.lr": 0.01, "train.max_epochs": 20,
    "train.label_smoothing": 0.0, "model.dropout_input": 0.3, "model.dropout_relation": 0.4, "model.dropout_context": 0.5,
}


def world(order: np.ndarray, relations: tuple[str, ...] = ("likes", "knows"), width: int = 8) -> LinkData:
    """A graph of the entities `order` (ids in a fixed world): who is linked depends on the group, which the features tell."""
    group = np.arange(COUNT) % GROUPS
    drawn = np.random.default_rng(0)
    features = np.eye(GROUPS, width)[group] + 0.05 * drawn.normal(size=(COUNT, width))
    triples = [
        (head, relation, tail)
        for head in range(COUNT) for relation in range(2)
        for tail in drawn.choice(np.flatnonzero(group == (group[head] + 1 + relation) % GROUPS), 4, replace=False)
    ]
    place = {int(entity): number for number, entity in enumerate(order)}
    rows = np.array([(place[h], r, place[t]) for h, r, t in triples if h in place and t in place], dtype=np.int64)
    if relations[0] != "likes":
        rows[:, 1] = 1 - rows[:, 1]
    rows = drawn.permutation(rows)
    names = Vocabulary(tuple(f"e{entity}" for entity in order))
    graph = KnowledgeGraph(names, Vocabulary(relations, "relation"), rows[40:], rows[:40], source="world")
    mask = order % 10 != 9
    matrix = np.where(mask[:, None], features[order], 0).astype(np.float32)
    return LinkData(graph, (Modality("sound", matrix, mask),))


def settings(**more: object) -> Config:
    return Config().updated({**SETTINGS, **{key.replace("__", "."): value for key, value in more.items()}})


def saved(model: Imf, config: Config, data: LinkData, folder: Path) -> Checkpoint:
    save_checkpoint(folder, model, config, data.graph)
    return load_checkpoint(folder)


def trained(config: Config, data: LinkData, folder: Path) -> Checkpoint:
    model = build_model(config, data)
    fit(model, data, config)
    return saved(model, config, data, folder)


def mrr_of(model: Imf, graph: KnowledgeGraph, triples: np.ndarray) -> float:
    return evaluate(model, graph, triples, graph.known()).metrics.mrr


@pytest.mark.parametrize("finetune", [False, True])
def test_another_order_of_the_same_names_scores_the_same(tmp_path: Path, finetune: bool) -> None:
    heads = [{"view": "structure", "scoring": "complex", "dim": 10}, {"view": "sound", "scoring": "distmult", "dim": 6},
             {"view": "sound", "scoring": "similarity"}]
    config = settings(
        model__finetune_features=finetune, model__decision="relation", model__heads=heads, train__max_epochs=2
    )
    first = world(np.arange(COUNT))
    start = trained(config, first, tmp_path / "a")
    again = world(np.arange(COUNT)[::-1].copy(), ("knows", "likes"))
    model = build_model(config, again)
    told = carry_over(model, start, again)
    assert (told.known, told.new, told.gone, told.known_relations) == (COUNT, 0, 0, 2) and not told.refitted
    names = again.graph.entities.index
    heads = torch.tensor([3, 50, 77])
    moved = torch.tensor([names[f"e{int(head)}"] for head in heads])
    with torch.no_grad():
        for relation, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
            tables, carried = start.model.tables(), model.eval().tables()
            asked = torch.full((3,), relation)
            wanted = start.model.branch_scores(tables, start.model.contexts(tables, heads, asked))
            found = model.branch_scores(carried, model.contexts(carried, moved, torch.full((3,), other)))
            for one, two in zip(wanted, found, strict=True):
                assert torch.allclose(one, two[:, torch.tensor([names[f"e{i}"] for i in range(COUNT)])], atol=1e-5)
            weights = start.model.decision_weights(heads, asked), model.decision_weights(moved, torch.full((3,), other))
            assert torch.allclose(*weights)


@pytest.mark.parametrize("finetune", [False, True])
def test_new_entities_are_ranked_by_their_features_before_any_training(tmp_path: Path, finetune: bool) -> None:
    config = settings(model__finetune_features=finetune, model__decision="uniform")  # the structure branch has its say
    old = np.arange(20, COUNT)  # the first twenty are new later
    start = trained(config, world(old), tmp_path / "a")
    whole = world(np.arange(COUNT))
    model = build_model(config, whole)
    told = carry_over(model, start, whole)
    assert (told.known, told.new, told.gone) == (100, 20, 0)
    assert told.described == 18  # e9 and e19 have no features
    new = np.concatenate([whole.graph.train, whole.graph.valid])
    new = new[((new[:, 0] < 20) ^ (new[:, 2] < 20)) & ~np.isin(new[:, 0], (9, 19)) & ~np.isin(new[:, 2], (9, 19))]
    # What a fresh start gives them: the checkpoint's weights, and rows as the seed draws them.
    drawn = build_model(config, whole)
    filled = model.structure.detach().clone()
    carried = mrr_of(model, whole.graph, new)
    with torch.no_grad():
        model.structure[:20] = drawn.structure[:20]
    random = mrr_of(model, whole.graph, new)
    assert carried > random + 0.02
    known = torch.from_numpy(start.model.structure.detach().numpy())
    assert torch.equal(filled[20:], known)
    assert torch.allclose(filled[9], known.mean(dim=0), atol=1e-6) and torch.allclose(filled[19], filled[9])
    groups = np.arange(COUNT) % GROUPS
    own = known[groups[20:] == groups[0]].mean(dim=0)  # the features tell the group
    assert torch.cosine_similarity(filled[0], own, dim=0) > 0.9


def test_training_goes_on_from_there(tmp_path: Path) -> None:
    config = settings()
    start = trained(config, world(np.arange(20, COUNT)), tmp_path / "a")
    whole = world(np.arange(COUNT))
    model = build_model(config, whole)
    carry_over(model, start, whole)
    short = settings(train__max_epochs=2)
    fresh = fit(build_model(config, whole), whole, short).best_mrr
    assert fit(model, whole, short).best_mrr > fresh


def test_new_features_on_another_scale_are_brought_back(tmp_path: Path) -> None:
    """Features are centred over a graph's entities: the same raw ones come out otherwise in a larger graph."""
    config = settings(train__max_epochs=1)
    start = trained(config, world(np.arange(20, COUNT)), tmp_path / "a")
    whole = world(np.arange(COUNT))
    model = build_model(config, whole)
    own = model.features["sound"].features
    assert isinstance(own, torch.Tensor)
    assert not torch.allclose(own[20:], start.model.features["sound"].features, atol=1e-4)  # type: ignore[union-attr, arg-type]
    assert not carry_over(model, start, whole).refitted
    assert torch.equal(model.features["sound"].features[20:], start.model.features["sound"].features)  # type: ignore[union-attr, arg-type, index]
    assert not model.features["sound"].features[9].any()  # type: ignore[union-attr, index, operator]


def test_features_in_another_basis_are_mapped_to_the_same_vectors(tmp_path: Path) -> None:
    """Features such as character n-grams depend on all texts of the graph: with other entities they come out turned."""
    config = settings(train__max_epochs=1)
    start = trained(config, world(np.arange(20, COUNT)), tmp_path / "a")
    whole = world(np.arange(COUNT))
    sound = whole.modalities[0]
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(9, 8)))[0].T.astype(np.float32)  # 8 numbers become 9
    changed = LinkData(whole.graph, (Modality("sound", sound.matrix @ turn, sound.mask),))
    model = build_model(config, changed)
    told = carry_over(model, start, changed)
    assert told.refitted == {"sound": pytest.approx(1.0, abs=1e-6)}
    with torch.no_grad():
        has = torch.from_numpy(sound.mask[20:])
        assert torch.allclose(model.features["sound"]()[20:][has], start.model.features["sound"]()[has], atol=1e-4)


def test_features_that_say_something_else_are_told(tmp_path: Path) -> None:
    config = settings(train__max_epochs=1)
    start = trained(config, world(np.arange(20, COUNT)), tmp_path / "a")
    whole = world(np.arange(COUNT))
    other = np.random.default_rng(5).normal(size=whole.modalities[0].matrix.shape).astype(np.float32)
    changed = LinkData(whole.graph, (Modality("sound", other, whole.modalities[0].mask),))
    told = carry_over(build_model(config, changed), start, changed)
    assert told.refitted["sound"] < 0.3 and "as far as they explain them: sound (" in told.describe()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: LinkData(world(np.arange(COUNT)).graph, ()), r"has the modalities sound, the graph none"),
        (lambda: world(np.arange(COUNT), ("a", "b")), "no relations in common"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, data: object, words: str) -> None:
    config = settings(train__max_epochs=1)
    start = trained(config, world(np.arange(COUNT)), tmp_path / "a")
    other = data()  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=words):
        carry_over(build_model(config, other), start, other)


def test_the_command_takes_a_checkpoint_to_a_graph_with_one_more_entity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from imf_core.cli import app
    from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_graph

    small = tiny_graph(tmp_path / "small")
    start = tiny_checkpoint(small, tmp_path / "start")
    large = tiny_graph(tmp_path / "large")
    for name, line in (("entities.txt", "newcomer\n"), ("train.tsv", "newcomer\tnext\te3\n"),
                       ("descriptions.tsv", "newcomer\tthe text of e4\n")):
        with (large / name).open("a") as stream:
            stream.write(line)
    app(["train", str(tmp_path / "on"), "--from", str(start), "--data", str(large), "--set", "train.max_epochs=1"],
        standalone_mode=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "24 entities and 2 relations keep their weights; 1 new entities start from their features (1)" in told
    grown = load_checkpoint(tmp_path / "on")
    assert "newcomer" in grown.entities.names and len(grown.entities) == 25
