"""MetaMMF against its controls on one data set of interactions: `MF` and `GCN`, with dynamic, static and no fusion.

    python -m benchmarks.recommend ../shared/data/movielens-sample          # writes results/recommend.md

All rows have the same settings, fixed below before anything was trained; epochs are chosen on validation. Each model is then
scored on test once per seed, so nothing is chosen on test. An interrupted benchmark continues from the runs in `--cache`.
"""

from __future__ import annotations

import json
import statistics
from datetime import date
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.recommend_ml100k import section
from benchmarks.results import FinishedRuns, host_line, spread
from imf_core.config_base import parse_overrides
from imf_core.files.markdown import table
from imf_core.recommend.config import RecommendConfig, model_name
from imf_core.recommend.data.prepare import RecommendData, prepare_recommend
from imf_core.recommend.fit import build_model, evaluate_recommender, fit_recommender, popularity_baseline
from imf_core.runtime import MemoryBudget
from tune.report.files import machine

SETTINGS = (
    "model.widths=[256,128,64,32]", "train.lr=0.003", "train.max_epochs=80", "train.patience=15", "train.batch_size=500",
)
FUSIONS, ENCODERS = ("meta", "mlp", "id"), ("mf", "gcn")
COLUMNS = {"precision_at_10": "P@10", "recall_at_10": "R@10", "ndcg_at_10": "NDCG@10", "mrr": "MRR"}
# Test results of arXiv 2501.07110 on its complete MovieLens data, which is not available here.
PUBLISHED = {
    "MMGCN": (0.0569, 0.2310, 0.1535), "LATTICE": (0.0575, 0.2500, 0.1669), "InvRL": (0.0575, 0.2518, 0.1666),
    "MetaMMF_MF": (0.0457, 0.1941, 0.1268), "MetaMMF_GCN": (0.0599, 0.2613, 0.1757),
}


def score(data: RecommendData, config: RecommendConfig) -> dict[str, float]:
    """Test metrics of a run, with its best validation MRR and epoch."""
    interactions = data.interactions
    model = build_model(config, data)
    result = fit_recommender(model, data, config)
    memory = MemoryBudget.of(config.train.memory_budget_mb)
    known = (interactions.train, interactions.valid)
    test = evaluate_recommender(model, interactions, interactions.open_test(), known, memory)
    return {**test.as_dict(), "validation_mrr": result.best_mrr, "epoch": result.best_epoch, "epochs": result.epochs}


def main(
    path: Annotated[str, typer.Argument(help="Folder of interactions, or codepages.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("results/recommend.md"),
    cache: Annotated[Path, typer.Option(help="File of finished runs (JSON lines).")] = Path(".cache/recommend.jsonl"),
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds.")] = 3,
) -> None:
    """Train every model with every seed and write the page."""
    base = RecommendConfig().updated({**parse_overrides(SETTINGS), "data.path": path})
    data = prepare_recommend(base.data)
    finished = FinishedRuns(cache)
    runs = []
    for seed, encoder, fusion in product(range(seeds), ENCODERS, FUSIONS):
        key = {"data": data.interactions.fingerprint, "settings": list(SETTINGS), "model": [encoder, fusion], "seed": seed}
        run = finished.find({"key": key})
        if run is None:
            config = base.updated({"model.encoder": encoder, "model.fusion": fusion, "train.seed": seed})
            run = finished.add({"key": key, "row": model_name(config.model), **score(data, config)})
            print(f"{run['row']}, seed {seed}: NDCG@10 {run['ndcg_at_10']:.4f} in epoch {run['epoch']}", flush=True)
        runs.append(run)
    out.write_text(page(runs, path, data, seeds) + other_section(out), encoding="utf-8")
    print(f"written: {out}")


def other_section(out: Path) -> str:
    """The section of `benchmarks/recommend_ml100k.py`, which has the page in common; empty without its figures."""
    figures = out.with_name("recommend_ml100k.json")
    return "\n\n" + section(json.loads(figures.read_text(encoding="utf-8"))) if figures.exists() else ""


def page(runs: list[dict[str, Any]], path: str, data: RecommendData, seeds: int) -> str:
    """The page: the measured table and the published one."""
    interactions = data.interactions
    test = interactions.open_test()
    baseline = popularity_baseline(interactions, test, (interactions.train, interactions.valid))
    popular = baseline.flat()
    by_model = {name: [run for run in runs if run["row"] == name] for name in dict.fromkeys(run["row"] for run in runs)}
    rows = [
        [name, *(spread([run[column] for run in own]) for column in (*COLUMNS, "validation_mrr"))]
        for name, own in by_model.items()
    ]
    rows.append(["*what most users have*", *(f"{popular[name]:.4f}" for name in COLUMNS), ""])
    means = [statistics.fmean(run["ndcg_at_10"] for run in own) for own in by_model.values()]
    behind = sum(mean < popular["ndcg_at_10"] for mean in means)
    published = [[name, *(f"{value:.4f}" for value in values)] for name, values in PUBLISHED.items()]
    return "\n".join([
        "# Recommendation", "",
        f"Test results, mean ± standard deviation over {seeds} seeds, on `{Path(path).name}`: {interactions.num_users:,} users,"
        f" {interactions.num_items:,} items, {len(interactions.train):,} training, {len(interactions.valid):,} validation and "
        f"{len(test):,} test interactions; features: "
        + ", ".join(f"{modality.name} ({modality.width})" for modality in data.modalities)
        + f". Averages are over the {baseline.count} users with test items.", "",
        *table(["model", *COLUMNS.values(), "validation MRR"], rows, markup=True),
        f"In NDCG@10, {behind} of {len(means)} models are behind recommending what most users have. With {baseline.count} "
        f"users, one additional hit changes R@10 by up to {1 / baseline.count:.4f}: rows whose deviations overlap cannot be "
        "distinguished.",
        "", f"Command: `python -m benchmarks.recommend {path}`; settings {', '.join(f'`{item}`' for item in SETTINGS)}, "
        f"all others default; {host_line(machine())}; {date.today().isoformat()}.", "",
        "## Published", "",
        "Test results of the MetaMMF paper (arXiv 2501.07110) on its complete MovieLens data with visual, acoustic and textual "
        "features, which is not available here. Users and items differ, so the two tables are not comparable.", "",
        *table(["model", "P@10", "R@10", "NDCG@10"], published, markup=True),
    ])


if __name__ == "__main__":
    typer.run(main)
