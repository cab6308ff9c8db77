"""MovieLens against a peer: a rehearsal on a tiny stand-in of RecBole's files, with a stand-in of RecBole.

No time is asserted.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import recommend, recommend_ml100k
from benchmarks.recommend_ml100k import NAME, OURS, PEERS, Place, TableScorer
from benchmarks.results import FinishedRuns
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.prepare import RecommendData, prepare_recommend
from imf_core.recommend.topk import Popularity

GRAPH = ("model.modalities=[]", "model.dim=8", "model.relation_dim=6", "train.max_epochs=1", "train.batch_size=16")
SMALL = {
    "model.widths": [8, 4], "model.id_width": 4, "model.meta_hidden": 4, "train.max_epochs": 1, "train.batch_size": 64,
    "data.text_width": 8,
}


def wheel(folder: Path) -> Path:
    """A wheel that holds a data set where RecBole's does."""
    random, users, items = np.random.default_rng(0), 12, 20
    pairs = [f"{u}\t{i}\t3\t88" for u in range(1, users + 1) for i in range(1, items + 1) if random.random() < 0.7]
    files = {
        "inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *pairs],
        "item": ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *(
            f"{i}\tFilm {i}\t{1980 + i if i > 1 else ''}\tDrama" for i in range(1, items + 1)
        )],
        "kg": ["head_id:token\trelation_id:token\ttail_id:token", *(
            f"m.{i}\tr{i % 3}\tm.{i % 7 + 1}" for i in range(1, items + 1)
        )],
        "link": ["item_id:token\tentity_id:token", *(f"{i}\tm.{i}" for i in range(1, items))],
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("recbole/__init__.py", "")
        for suffix, lines in files.items():
            archive.writestr(f"recbole/dataset_example/{NAME}/{NAME}.{suffix}", "\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    found = Place(tmp_path_factory.mktemp("work"))
    wheel(found.work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommend_ml100k.subprocess, "run", lambda *given, **more: None)  # pip: the wheel is there
        found.fetch()
    recommend_ml100k.describe_items(found, GRAPH)
    return found


@pytest.fixture(scope="module")
def data(place: Place) -> RecommendData:
    return prepare_recommend(RecommendConfig().updated({**SMALL, "data.path": str(place.data)}).data)


def test_films_have_three_modalities(place: Place, data: RecommendData) -> None:
    found = {modality.name: int(modality.mask.sum()) for modality in data.modalities}
    assert found == {"graph": 19, "text": 20, "year": 19}
    assert sorted(path.name for path in place.source.iterdir()) == [f"{NAME}.{end}" for end in ("inter", "item", "kg", "link")]
    texts = (place.data / "descriptions.tsv").read_text(encoding="utf-8").splitlines()
    assert texts[1] == "2\tFilm 2 (1982). Drama."


def test_users_add_up_to_the_whole(data: RecommendData) -> None:
    pairs = data.interactions
    metrics, each = recommend_ml100k.per_user(Popularity(pairs.train, pairs.num_items), data)
    assert len(each) == metrics.count == 12 and metrics.ndcg == pytest.approx(sum(each))
    assert metrics.flat() == pytest.approx(recommend.popularity_baseline(
        pairs, pairs.open_test(), (pairs.train, pairs.valid)
    ).flat())


def test_scores_from_elsewhere_are_ranked_as_ours() -> None:
    scores = np.array([[1.0, -np.inf, 2.0]], dtype=np.float32)
    table = TableScorer(scores).scores(torch.tensor([0]))
    assert torch.isfinite(table).all() and table.argsort(descending=True)[0].tolist() == [2, 0, 1]


PEER = """
import json, sys
import numpy as np
asked = json.load(open(sys.argv[2]))
folder = asked["folder"] + "/" + asked["name"] + "/" + asked["name"]
train, valid, test = (open(folder + "." + split + ".inter").read().splitlines() for split in ("train", "valid", "test"))
assert test == valid and train[0] == "user_id:token\\titem_id:token"
scores = np.zeros((len(asked["users"]), len(asked["items"])), dtype=np.float32)
scores[:, asked["items"].index(train[1].split("\\t")[1])] = 1.0
np.save(asked["out"], scores)
print("noise")
print(json.dumps({"valid_ndcg": 0.5, "best_epoch": 1, "epochs": 1, "epoch_seconds": 0.1, "evaluation_seconds": 0.1}))
"""


def test_a_rehearsal_of_the_command(
    place: Place, data: RecommendData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows, an interruption, and the page; the peer gets training and validation alone."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!{sys.executable}\n{PEER}", encoding="utf-8")
    stand_in.chmod(0o755)
    base = RecommendConfig().updated({**SMALL, "data.path": str(place.data)})
    asked: list[tuple[str, int]] = []

    def run_peer(model: str, seed: int) -> recommend_ml100k.Run:
        asked.append((model, seed))
        if asked == [("BPR", 0), ("LightGCN", 0), ("BPR", 1)]:
            raise KeyboardInterrupt
        return recommend_ml100k.peer(data, place, stand_in, model, seed, {"epochs": 1})

    runs = tmp_path / "runs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        recommend_ml100k.measure(data, base, 2, FinishedRuns(runs), {"data": "tiny"}, run_peer)
    before = len(runs.read_text(encoding="utf-8").splitlines())
    assert before == 1 + len(PEERS) + len(OURS)
    rows = recommend_ml100k.measure(data, base, 2, FinishedRuns(runs), {"data": "tiny"}, run_peer)
    assert asked[3:] == [("BPR", 1), ("LightGCN", 1)]
    assert {name: len(own) for name, own in rows.items()}[recommend_ml100k.POPULAR] == 1
    assert set(rows) >= {"ID_MF", "ID_GCN", "MLP_GCN", "MetaMMF_GCN", "MetaMMF-CP_MF", "LightGCN (RecBole)"}
    told = recommend_ml100k.against(rows)
    assert told["BPR (RecBole)"] == {"relative": 0.0, "difference": 0.0, "p": 1.0, "low": 0.0, "high": 0.0}
    out = tmp_path / "recommend.md"
    out.write_text("# Recommendation\n\nFirst.\n", encoding="utf-8")
    found = {
        "machine": {"cpu": "x", "cores": 1, "torch": "2"}, "date": "today", "command": "c", "settings": ["a=1"],
        "peer_settings": {"epochs": 1}, "graph_settings": ["b=2"], "seeds": 2, "data": "tiny", "rows": rows, "against": told,
    }
    for _ in range(2):  # the second time in place of the first
        recommend_ml100k.write(out, found)
    text = out.read_text(encoding="utf-8")
    assert text.count("## MovieLens 100k against RecBole") == 1
    assert text.startswith("# Recommendation\n\nFirst.\n\n## MovieLens")
    assert "| MetaMMF\\_GCN |" in text or "| MetaMMF_GCN |" in text
    assert "+0.0 % (p 1.0000)" in next(line for line in text.splitlines() if line.startswith("| BPR"))
    assert recommend.other_section(out).strip() == text[text.index("## MovieLens") :].strip()
    assert json.loads((tmp_path / "recommend_ml100k.json").read_text(encoding="utf-8"))["data"] == "tiny"
