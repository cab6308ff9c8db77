"""The loop: learns, is reproducible to the bit, resumes to the bit, keeps the best epoch, ends when it diverges."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from imf_core.config import Config
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.errors import ConfigError, DataError, DivergedError
from imf_core.evaluate.ranking import evaluate
from imf_core.prepare.link_data import LinkData
from imf_core.train.estimate import estimate_of
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import FitResult, Saving
from imf_core.train.progress import EpochReport
from tests.support.killed_run import Killed, die_in, stop_at

Weights = dict[str, torch.Tensor]
SMALL = {
    "model.dim": 16,
    "model.relation_dim": 8,
    "train.batch_size": 16,
    "train.lr": 0.01,
    "train.max_epochs": 6,
    "train.patience": 6,
}


def small(**more: object) -> Config:
    return Config().updated({**SMALL, **{key.replace("__", "."): value for key, value in more.items()}})


def weights(model: torch.nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_same_seed_same_bits_other_seed_other_bits(toy: LinkData) -> None:
    runs = []
    for seed in (0, 0, 1):
        config = small(train__seed=seed)
        model = build_model(config, toy)
        runs.append((fit(model, toy, config).curve, weights(model)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])
    assert runs[0][0] != runs[2][0]


def test_learns_the_pattern(toy: LinkData) -> None:
    off = {f"model__dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}
    config = small(train__max_epochs=40, train__patience=40, train__label_smoothing=0.0, model__decision="uniform", **off)
    losses: list[float] = []
    fit(build_model(config, toy), toy, config, lambda report: losses.append(report.train_loss))
    assert losses[-1] < losses[0] / 2


@pytest.fixture(scope="module")
def unbroken(toy: LinkData) -> Callable[[Config], tuple[FitResult, Weights, list[EpochReport]]]:
    """The end, the weights and the reports of a run that is not interrupted; each configuration is trained once."""
    runs: dict[str, tuple[FitResult, Weights, list[EpochReport]]] = {}

    def run(config: Config) -> tuple[FitResult, Weights, list[EpochReport]]:
        key = config.model_dump_json()
        if key not in runs:
            model, reports = build_model(config, toy), []
            runs[key] = fit(model, toy, config, reports.append), weights(model), reports
        return runs[key]

    return run


HEADS = {
    "model.heads": [{"view": "structure", "scoring": "complex", "dim": 12}, {"view": "text", "scoring": "block"}],
    "train.optimizer": "adagrad", "train.regularizer": "n3", "train.relation_weight": 0.1,
}


COMPARED = {"model.heads": [{"view": "text", "scoring": "similarity", "only": True}]}
INTERRUPTED: dict[str, dict[str, object]] = {
    "1-N": {}, "sampled": {"train.num_negatives": 8}, "heads": HEADS, "heads, sampled": {**HEADS, "train.num_negatives": 8},
    "compared": COMPARED, "compared, sampled": {**COMPARED, "train.num_negatives": 8},
}


QUICK = {(1, "1-N"), (5, "heads, sampled")}


@pytest.mark.parametrize(("killed_at", "changes"), [
    pytest.param(
        killed_at, changes, id=f"{killed_at}-{name}",
        marks=[] if (killed_at == 3 and name != "compared") or (killed_at, name) in QUICK else [pytest.mark.slow],
    )
    for killed_at in (1, 3, 5) for name, changes in INTERRUPTED.items()
])
def test_an_interrupted_run_goes_on_to_the_bit(
    toy: LinkData, tmp_path: Path, killed_at: int, changes: dict[str, object], unbroken: Callable
) -> None:
    config = small().updated(changes)
    expected, expected_weights, _ = unbroken(config)
    saving = Saving(tmp_path / "state", seconds=0)
    with pytest.raises(Killed):
        fit(build_model(config, toy), toy, config, stop_at(killed_at), saving=saving)
    epochs: list[int] = []
    resumed = build_model(config, toy)
    result = fit(resumed, toy, config, lambda report: epochs.append(report.epoch), saving=saving)
    assert epochs == list(range(killed_at, 7))  # the last saved report comes again: it may not have been delivered
    assert result.curve == expected.curve
    assert result.metrics == expected.metrics
    for name, tensor in expected_weights.items():
        assert torch.equal(tensor, weights(resumed)[name]), name


@pytest.mark.parametrize("killed_in", [1, 2, 3, 4, 5, 6])
def test_a_run_that_is_seldom_evaluated_loses_no_epoch(
    toy: LinkData, tmp_path: Path, killed_in: int, unbroken: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, saving = small(train__eval_every=4), Saving(tmp_path / "state", seconds=0)
    expected, expected_weights, reports = unbroken(config)
    begun: list[int] = []
    monkeypatch.setattr("imf_core.train.fit.train_epoch", die_in(killed_in, begun))
    heard: list[EpochReport] = []
    with pytest.raises(Killed):
        fit(build_model(config, toy), toy, config, heard.append, saving=saving)
    resumed = build_model(config, toy)
    result = fit(resumed, toy, config, heard.append, saving=saving)
    assert begun == [*range(1, killed_in + 1), *range(killed_in, 7)]
    assert [report.epoch for report in heard] == [4, 4, 6] if killed_in > 4 else [4, 6]
    assert [epoch for epoch, _ in result.curve] == [4, 6]
    assert result == expected
    assert [report.losses for report in heard[-2:]] == [report.losses for report in reports]
    for name, tensor in expected_weights.items():
        assert torch.equal(tensor, weights(resumed)[name]), name


@pytest.mark.parametrize("part", ["progress.json", "state.safetensors"])
@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda content: b"", lambda content: b"{}", None])
def test_a_run_whose_state_is_damaged_begins_anew_and_says_so(
    toy: LinkData, tmp_path: Path, part: str, damage: Callable[[bytes], bytes] | None, unbroken: Callable,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    config, saving = small(), Saving(tmp_path / "state", seconds=0)
    expected, expected_weights, _ = unbroken(config)
    with monkeypatch.context() as patched:
        patched.setattr("imf_core.train.fit.train_epoch", die_in(3, []))
        with pytest.raises(Killed):
            fit(build_model(config, toy), toy, config, saving=saving)
    file = tmp_path / "state" / part
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    epochs: list[int] = []
    resumed = build_model(config, toy)
    assert fit(resumed, toy, config, lambda report: epochs.append(report.epoch), saving=saving) == expected
    assert epochs == [1, 2, 3, 4, 5, 6]
    assert f"the training state {tmp_path / 'state'} is damaged" in caplog.text
    assert part in caplog.text
    for name, tensor in expected_weights.items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_finished_run_is_not_trained_again(toy: LinkData, tmp_path: Path) -> None:
    config, saving = small(), Saving(tmp_path / "state", seconds=0)
    first = fit(build_model(config, toy), toy, config, saving=saving)
    epochs: list[int] = []
    again = fit(build_model(config, toy), toy, config, lambda report: epochs.append(report.epoch), saving=saving)
    assert epochs == [6]
    assert (again.best_mrr, again.reason) == (first.best_mrr, first.reason)


def test_the_best_epoch_stays_in_the_model(toy: LinkData) -> None:
    config = small(train__lr=0.05, train__max_epochs=12, train__patience=3, model__decision="uniform")
    model = build_model(config, toy)
    result = fit(model, toy, config)
    assert result.best_mrr == max(mrr for _, mrr in result.curve)
    again = evaluate(model, toy.graph, toy.graph.valid, toy.graph.known()).metrics
    assert again.mrr == pytest.approx(result.best_mrr, abs=1e-9)
    assert result.epochs - result.best_epoch <= 3


def test_divergence_is_an_error_not_a_score(toy: LinkData) -> None:
    config = small()
    model = build_model(config, toy)
    with torch.no_grad():
        model.structure[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="lower"):
        fit(model, toy, config)


def test_no_validation_triples_is_refused_before_training(toy: LinkData) -> None:
    graph = KnowledgeGraph(toy.graph.entities, toy.graph.relations, toy.graph.train, toy.graph.valid[:0])
    with pytest.raises(DataError, match="validation"):
        fit(build_model(small(), toy), LinkData(graph, toy.modalities), small())


SCORINGS, LOSSES = ("contextual", "block", "transe", "distmult", "complex"), ("ce", "bce")
DECISIONS = ("uniform", "fixed", "learned", "relation")
PAIRS = [  # each two values meet in one of them
    (scoring, decision, LOSSES[(row + column) % 2])
    for row, scoring in enumerate(SCORINGS) for column, decision in enumerate(DECISIONS)
]


@pytest.mark.parametrize(
    ("scoring", "decision", "loss"),
    [case if case in PAIRS else pytest.param(*case, marks=pytest.mark.slow) for case in product(SCORINGS, DECISIONS, LOSSES)],
)
def test_every_combination_trains_with_every_parameter_used(toy: LinkData, scoring: str, decision: str, loss: str) -> None:
    config = small(model__scoring=scoring, train__loss=loss, model__decision=decision, train__max_epochs=1)
    model = build_model(config, toy)
    result = fit(model, toy, config)
    assert 0 < result.best_mrr <= 1
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []  # DDP would stop at the second step


def test_a_head_is_a_branch_with_vectors_of_its_own(toy: LinkData) -> None:
    config = small().updated({**HEADS, "model.joint_weight": 0.0, "model.contrastive_weight": 0.0})
    model = build_model(config, toy)
    assert model.branches == ("structure", "image", "text", "fused", "structure_complex", "text_block")
    assert [model.mask(branch) is model.mask(model.of_branch[branch].view) for branch in model.branches] == [True] * 6
    tables = model.tables()
    assert tables.entities["structure_complex"].shape == (toy.graph.num_entities, 12)
    assert tables.relations["text_block"].shape == (2 * toy.graph.num_relations, 16)
    alone = build_model(small().updated({"model.modalities": [], "model.scoring": "complex", "model.dim": 12}), toy)
    with torch.no_grad():
        alone.structure.copy_(model.head_structure["structure_complex"])
        alone.relations["structure"].copy_(model.relations["structure_complex"])
    heads, relations = torch.tensor([0, 4, 9]), torch.tensor([0, 1, 0])
    place = model.branches.index("structure_complex")
    ours = model.eval().branch_scores(tables, model.contexts(tables, heads, relations))[place]
    plain = alone.eval().tables()
    assert torch.allclose(ours, alone.branch_scores(plain, alone.contexts(plain, heads, relations))[0], atol=1e-6)


def test_a_head_goes_with_its_view(toy: LinkData) -> None:
    model = build_model(small().updated({**HEADS, "model.modalities": ["image"]}), toy)
    assert model.branches == ("structure", "image", "fused", "structure_complex")


@pytest.mark.parametrize(("heads", "words"), [
    ([{"view": "structure", "scoring": "complex"}] * 2, "structure_complex twice"),
    ([{"view": "fused", "scoring": "complex"}], "not fused"),
    ([{"view": "text", "scoring": "complex", "dim": 7}], "even dim, found 7"),
    ([{"view": "text", "scoring": "block", "dim": 20}], "block_size 8 divides, found 20"),
    ([{"view": "structure", "scoring": "complex", "only": True}], "structure always has a branch of its own"),
])
def test_heads_that_cannot_be_are_refused(heads: list[dict[str, object]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small().updated({"model.heads": heads})


def test_a_head_of_a_view_that_the_graph_lacks_is_refused(toy: LinkData) -> None:
    with pytest.raises(DataError, match=r"a head scores 'sound'.*image, structure, text"):
        build_model(small().updated({"model.heads": [{"view": "sound", "scoring": "complex"}]}), toy)


def test_a_modality_that_is_only_compared_has_no_other_branch_and_no_trained_vectors(toy: LinkData) -> None:
    plain = build_model(small(model__modalities=["text"]), toy)
    model = build_model(small().updated({"model.heads": [{"view": "image", "scoring": "similarity", "only": True}]}), toy)
    assert model.branches == ("structure", "text", "fused", "image_similarity")
    assert (model.modality_names, model.all_modalities) == (("text",), ("image", "text"))
    assert model.num_parameters == plain.num_parameters + 2 * toy.graph.num_relations
    (image,) = toy.select(("image",))
    assert model.of_branch["image_similarity"].settings.dim == image.width
    mask = model.mask("image_similarity")
    assert mask is not None and np.array_equal(mask.numpy(), image.mask) and not mask.all()
    assert model.mask("text") is None


def test_parts_that_are_not_equal_are_refused(toy: LinkData) -> None:
    heads = [{"view": "text", "scoring": "similarity", "parts": 3}]
    with pytest.raises(ConfigError, match="compares 3 equal parts of vectors that are 5 wide"):
        build_model(small().updated({"model.heads": heads}), toy)


def test_off_modalities_have_no_parameters(toy: LinkData) -> None:
    sizes = [build_model(small(model__modalities=names), toy).num_parameters for names in (None, ["text"], [])]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("decision", ["learned", pytest.param("relation", marks=pytest.mark.slow)])
def test_learned_mixture_is_no_worse_than_its_best_branch_beside_noise(decision: str) -> None:
    """One modality carries the answer, one is noise: the mixture must not let the noise spoil it."""
    rng = np.random.default_rng(0)
    count, groups = 240, 12
    group = rng.integers(groups, size=count)
    triples = [(i, 0, count + group[i]) for i in range(count)]
    triples += [(i, 1, int(rng.choice(np.flatnonzero(group == group[i])))) for i in range(count)]
    rows = rng.permutation(np.array(triples, dtype=np.int64))
    names = Vocabulary(tuple(map(str, range(count + groups))))
    graph = KnowledgeGraph(names, Vocabulary(("group", "peer"), "relation"), rows[:-120], rows[-120:])
    every = np.ones(count + groups, dtype=bool)
    truth = np.concatenate([np.eye(groups)[group], np.eye(groups)]) + 0.1 * rng.normal(size=(count + groups, groups))
    noise = rng.normal(size=(count + groups, 32))
    data = LinkData(
        graph, (Modality("noise", noise.astype(np.float32), every), Modality("signal", truth.astype(np.float32), every))
    )
    shape = {"model__dim": 32, "train__batch_size": 64, "train__max_epochs": 30, "train__eval_every": 10}
    config = small(model__decision=decision, **shape)
    model = build_model(config, data)
    mixed = fit(model, data, config).best_mrr
    known, alone = graph.known(), {}
    for position, branch in enumerate(model.branches):
        one_hot = torch.zeros(len(model.branches))
        one_hot[position] = 1.0
        model.decision.logits, model.decision.constant = None, one_hot
        alone[branch] = evaluate(model, graph, graph.valid, known).metrics.mrr
    assert alone["noise"] < alone["signal"]
    assert mixed >= max(alone.values()) - 0.01, (mixed, alone)


def test_without_a_fusion_there_is_no_fused_branch(toy: LinkData) -> None:
    config = small(model__fusion="none")
    model = build_model(config, toy)
    assert model.branches == ("structure", "image", "text")
    assert not [name for name, _ in model.named_parameters() if "fuse" in name]
    result = fit(model, toy, config)
    assert result.best_mrr > 0.1
    with_fusion = [estimate_of(each, toy).parts["weights and optimizer"] for each in (config, small())]
    assert with_fusion[0] < with_fusion[1]
