"""Training of the recommender: learns, goes on to the bit, keeps what it was given, answers by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import CheckpointError, ConfigError, DataError, DivergedError, ImfError, VocabularyError
from imf_core.recommend.answers import ItemRecommender
from imf_core.recommend.checkpoint import is_recommender, load_recommender, save_recommender
from imf_core.recommend.config import InteractionConfig, RecommendConfig
from imf_core.recommend.data.interactions import Interactions
from imf_core.recommend.data.prepare import RecommendData, prepare_recommend
from imf_core.recommend.fit import build_model, evaluate_recommender, fit_recommender, popularity_baseline, validate
from imf_core.runtime import MemoryBudget
from imf_core.train.loop import Saving
from tests.support.killed_run import Killed, stop_at

GROUPS, USERS, ITEMS = 4, 40, 60


@pytest.fixture(scope="module")
def data() -> RecommendData:
    """Users and items in four groups; a user has items of her own group. The features tell the group; item 59 is cold."""
    random = np.random.default_rng(0)
    pairs = [
        (user, item) for user in range(USERS) for item in range(ITEMS - 1)
        if item % GROUPS == user % GROUPS and random.random() < 0.6
    ]
    rows = np.array(pairs)
    part = random.random(len(rows)) < 0.2
    users = Vocabulary((*(f"user {k}" for k in range(USERS)), "nobody"), "user")
    items = Vocabulary(tuple(f"item {k}" for k in range(ITEMS)), "item")
    tags = np.eye(GROUPS)[np.arange(ITEMS) % GROUPS] + 0.1 * random.normal(size=(ITEMS, GROUPS))
    found = Interactions(users, items, rows[~part], rows[part], None, (), "toy")
    return RecommendData(found, (Modality("tags", tags.astype(np.float32), np.ones(ITEMS, bool)),))


def config(**flat) -> RecommendConfig:
    small = {
        "model.widths": (16, 8), "model.id_width": 8, "model.meta_dim": 3, "model.meta_hidden": 8, "train.batch_size": 100,
        "train.lr": 0.01, "train.max_epochs": 6, "model.dropout_first": 0.1, "model.dropout_second": 0.1,
    }
    return RecommendConfig().updated({**small, **{key.replace("__", "."): value for key, value in flat.items()}})


@pytest.mark.parametrize(
    ("encoder", "fusion"), [("mf", "meta"), ("gcn", "meta"), ("gcn", "meta_cp"), ("mf", "mlp"), ("gcn", "id")]
)
def test_learns_the_groups(data: RecommendData, encoder: str, fusion: str) -> None:
    settings = config(model__encoder=encoder, model__fusion=fusion, train__max_epochs=20)
    result = fit_recommender(build_model(settings, data), data, settings)
    rules = popularity_baseline(data.interactions, data.interactions.valid, (data.interactions.train,))
    assert result.metrics.count == rules.count > 30
    assert result.best_mrr > rules.mrr + 0.1
    assert result.best_mrr == max(mrr for _, mrr in result.curve)


def test_a_cold_item_goes_to_its_group_by_its_features(data: RecommendData) -> None:
    settings = config(model__encoder="mf", train__max_epochs=20)
    model = build_model(settings, data)
    fit_recommender(model, data, settings)
    users, items = (part.detach() for part in model.vectors())
    scores = (users[:USERS] @ items.T).numpy()
    mine = np.arange(USERS) % GROUPS == (ITEMS - 1) % GROUPS
    assert scores[mine, -1].mean() > scores[~mine, -1].mean()


def test_the_model_holds_the_best_epoch(data: RecommendData) -> None:
    settings = config()
    model = build_model(settings, data)
    result = fit_recommender(model, data, settings)
    assert validate(model, data.interactions, MemoryBudget(2**20)).vector() == pytest.approx(result.metrics.vector())


def test_equal_seeds_give_equal_runs_and_others_do_not(data: RecommendData) -> None:
    curves = [
        fit_recommender(build_model(settings, data), data, settings).curve
        for settings in (config(), config(), config(train__seed=1))
    ]
    assert curves[0] == curves[1] != curves[2]


def test_an_interrupted_run_goes_on_to_the_bit(data: RecommendData, tmp_path: Path) -> None:
    settings = config(train__max_epochs=5)
    whole = build_model(settings, data)
    expected = fit_recommender(whole, data, settings)
    heard: list[int] = []

    with pytest.raises(Killed):
        fit_recommender(build_model(settings, data), data, settings, stop_at(3), saving=Saving(tmp_path / "state", 0.0))
    model = build_model(config(train__seed=9).updated({"train.seed": 0}), data)
    result = fit_recommender(
        model, data, settings, lambda report: heard.append(report.epoch), saving=Saving(tmp_path / "state", 0.0)
    )
    assert heard == [3, 4, 5]
    assert result == expected
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_training_does_not_look_at_what_is_held_out(data: RecommendData) -> None:
    """Other validation interactions change the scores, not a single step."""
    found = data.interactions
    swapped = RecommendData(
        Interactions(found.users, found.items, found.train, found.valid[::2].copy(), None, (), "toy"), data.modalities
    )
    settings = config(train__max_epochs=2, train__patience=5)
    losses: list[list[float]] = []
    for part in (data, swapped):
        losses.append([])
        fit_recommender(build_model(settings, part), part, settings, lambda report: losses[-1].append(report.train_loss))
    assert losses[0] == losses[1]


def test_nothing_to_validate_on_is_refused(data: RecommendData) -> None:
    found = data.interactions
    bare = RecommendData(Interactions(found.users, found.items, found.train, found.valid[:0]), data.modalities)
    with pytest.raises(DataError, match="for validation"):
        fit_recommender(build_model(config(), bare), bare, config())


def test_features_are_needed_where_they_are_fused(data: RecommendData) -> None:
    bare = RecommendData(data.interactions, ())
    with pytest.raises(DataError, match="no features to fuse"):
        build_model(config(), bare)
    assert build_model(config(model__fusion="id"), bare).num_parameters > 0


def test_a_diverged_run_is_told(data: RecommendData) -> None:
    model = build_model(config(), data)
    with torch.no_grad():
        model.user_table[3, 0] = float("inf")
    with pytest.raises(DivergedError, match="in epoch 1"):
        fit_recommender(model, data, config())


# --- checkpoint and answers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(data: RecommendData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = config(train__max_epochs=12)
    model = build_model(settings, data)
    result = fit_recommender(model, data, settings)
    folder = tmp_path_factory.mktemp("recommender") / "best"
    save_recommender(folder, model, settings, data.interactions, {"validation": result.metrics.as_dict()})
    return folder


def test_a_checkpoint_comes_back_whole(checkpoint: Path, data: RecommendData) -> None:
    loaded = load_recommender(checkpoint)
    assert is_recommender(checkpoint)
    assert loaded.interactions.items.names == data.interactions.items.names
    found, memory = data.interactions, MemoryBudget(2**20)
    metrics = evaluate_recommender(loaded.model, found, found.valid, (found.train,), memory)
    assert metrics.as_dict() == pytest.approx(loaded.metrics["validation"])
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json", "interactions.safetensors", "model.safetensors", "vocabulary.json",
    ]


def test_another_kind_of_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a recommender"):
        load_checkpoint(checkpoint)
    described = json.loads((checkpoint / "config.json").read_text())
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**described, "task": None}))
    with pytest.raises(CheckpointError, match="no recommender"):
        load_recommender(folder)


def test_a_swapped_vocabulary_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    names = json.loads((folder / "vocabulary.json").read_text())
    names["items"][0], names["items"][1] = names["items"][1], names["items"][0]
    (folder / "vocabulary.json").write_text(json.dumps(names))
    with pytest.raises(CheckpointError, match="other items"):
        load_recommender(folder)


def test_recommendations_are_new_ordered_and_of_the_users_kind(checkpoint: Path, data: RecommendData) -> None:
    recommender = ItemRecommender.load(checkpoint)
    found = data.interactions
    own = {f"item {item}" for user, item in np.concatenate([found.train, found.valid]).tolist() if user == 5}
    answers = recommender.recommend("user 5", k=3)
    assert not own & {answer.item for answer in answers}
    assert [answer.score for answer in answers] == sorted((answer.score for answer in answers), reverse=True)
    assert sum(int(answer.item.split()[1]) % GROUPS == 1 for answer in answers) >= 2
    everything = recommender.recommend("user 5", k=1000)
    assert {answer.item for answer in everything} == set(found.items.names) - own
    assert [answer.item for answer in everything if answer.cold] == ["item 59"]
    marked = recommender.recommend("user 5", k=1000, known="mark")
    assert len(marked) == ITEMS and {answer.item for answer in marked if answer.known} == own
    assert {answer.item for answer in recommender.recommend("user 5", k=1000, known="only")} == own
    with pytest.raises(ConfigError, match="known is 'yes'"):
        recommender.recommend("user 5", known="yes")


def test_rec_2_a_user_without_interactions_gets_what_the_mean_user_gets(checkpoint: Path) -> None:
    recommender = ItemRecommender.load(checkpoint)
    assert not recommender.knows("nobody")
    users, items = recommender.checkpoint.model.vectors()
    scores = users[:USERS].mean(dim=0) @ items.T
    names = [answer.item for answer in recommender.recommend("nobody", k=5)]
    assert names == [f"item {item}" for item in torch.sort(scores, descending=True, stable=True).indices[:5].tolist()]


def test_wrong_questions_are_refused(checkpoint: Path) -> None:
    recommender = ItemRecommender.load(checkpoint)
    with pytest.raises(VocabularyError, match="did you mean 'user 5'"):
        recommender.recommend("usr 5")
    with pytest.raises(ImfError, match="at least 1"):
        recommender.recommend("user 5", k=0)


def test_rec_3_numbering_changes_no_metric(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    pairs = [(user, item) for user in range(6) for item in random.permutation(14)[:10].tolist()]
    results = []
    for form in (list(range(14)), list(range(6, 20)), [10 * k for k in range(14)], [f"B{k:02}X" for k in range(14)]):
        folder = tmp_path / str(form[1])
        folder.mkdir()
        (folder / "interactions.tsv").write_text("".join(f"{user}\t{form[item]}\n" for user, item in pairs))
        part = prepare_recommend(InteractionConfig(path=str(folder)))
        settings = config(model__fusion="id", train__max_epochs=3)
        results.append(fit_recommender(build_model(settings, part), part, settings).metrics.vector().tolist())
    assert all(vector == results[0] for vector in results)
