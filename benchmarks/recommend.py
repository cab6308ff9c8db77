"""MetaMMF beside its controls on one data set of interactions: `MF` and `GCN`, with dynamic, static and no fusion.

    python -m benchmarks.recommend ../shared/data/movielens-sample          # writes results/recommend.md

The settings are written here before anything is trained, and equal for all rows; epochs are chosen on validation. Each model
is then scored once on test, for each seed: rows are measured, not chosen. Every run is kept in `--cache` when it is finished.
"""

from __future__ import annotations

import json
import statistics
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from imf_core.config_base import parse_overrides
from imf_core.recommend.config import RecommendConfig, model_name
from imf_core.recommend.data.interactions import Interactions
from imf_core.recommend.data.prepare import RecommendData, prepare_recommend
from imf_core.recommend.fit import build_model, evaluate_recommender, fit_recommender, popularity_baseline
from imf_core.runtime import MemoryBudget
from tune.report.files import machine

SETTINGS = (
    "model.widths=[256,128,64,32]", "train.lr=0.003", "train.max_epochs=80", "train.patience=15", "train.batch_size=500",
)
FUSIONS, ENCODERS = ("meta", "mlp", "id"), ("mf", "gcn")
COLUMNS = {"precision_at_10": "P@10", "recall_at_10": "R@10", "ndcg_at_10": "NDCG@10", "mrr": "MRR"}
# Test figures of arXiv 2501.07110 on the whole of its MovieLens data, which is not here.
PUBLISHED = {
    "MMGCN": (0.0569, 0.2310, 0.1535), "LATTICE": (0.0575, 0.2500, 0.1669), "InvRL": (0.0575, 0.2518, 0.1666),
    "MetaMMF_MF": (0.0457, 0.1941, 0.1268), "MetaMMF_GCN": (0.0599, 0.2613, 0.1757),
}


def score(data: RecommendData, config: RecommendConfig) -> dict[str, float]:
    """Test metrics of a run, and its best validation MRR and epoch."""
    found = data.interactions
    model = build_model(config, data)
    result = fit_recommender(model, data, config)
    memory = MemoryBudget.of(config.train.memory_budget_mb)
    test = evaluate_recommender(model, found, found.open_test(), (found.train, found.valid), memory)
    return {**test.as_dict(), "validation_mrr": result.best_mrr, "epoch": result.best_epoch, "epochs": result.epochs}


def main(
    path: Annotated[str, typer.Argument(help="Folder of interactions, or codepages.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("results/recommend.md"),
    cache: Annotated[Path, typer.Option(help="Finished runs, one JSON line each.")] = Path(".cache/recommend.jsonl"),
    seeds: Annotated[int, typer.Option(min=2)] = 3,
) -> None:
    """Train every row with every seed and write the page."""
    base = RecommendConfig().updated({**parse_overrides(SETTINGS), "data.path": path})
    data = prepare_recommend(base.data)
    found = [json.loads(line) for line in cache.read_text().splitlines()] if cache.exists() else []
    for seed in range(seeds):
        for encoder in ENCODERS:
            for fusion in FUSIONS:
                key = {
                    "data": data.interactions.fingerprint, "settings": list(SETTINGS), "model": [encoder, fusion], "seed": seed,
                }
                if any(run["key"] == key for run in found):
                    continue
                config = base.updated({"model.encoder": encoder, "model.fusion": fusion, "train.seed": seed})
                run = {"key": key, "row": model_name(config.model), **score(data, config)}
                found.append(run)
                cache.parent.mkdir(parents=True, exist_ok=True)
                with cache.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(run) + "\n")
                print(f"{run['row']}, seed {seed}: NDCG@10 {run['ndcg_at_10']:.4f} in epoch {run['epoch']}", flush=True)
    here = [run for run in found if run["key"]["data"] == data.interactions.fingerprint]
    out.write_text(page([run for run in here if run["key"]["settings"] == list(SETTINGS)], path, data, seeds), encoding="utf-8")
    print(f"written: {out}")


def page(runs: list[dict[str, Any]], path: str, data: RecommendData, seeds: int) -> str:
    """The table, with the published one below."""
    found = data.interactions
    test = found.open_test()
    rules = popularity_baseline(found, test, (found.train, found.valid))
    lines = [
        "# Recommending", "",
        f"Test, mean and sample deviation over {seeds} seeds, on `{Path(path).name}`: {_size(found, len(test))}; features: "
        + ", ".join(f"{modality.name} ({modality.width})" for modality in data.modalities)
        + f". Averages are over the {rules.count} users that have test items.", "",
        f"| model | {' | '.join(COLUMNS.values())} | validation MRR |", f"|---|{'---:|' * (len(COLUMNS) + 1)}",
    ]
    for row in dict.fromkeys(run["row"] for run in runs):
        own = [run for run in runs if run["row"] == row]
        cells = (_cell([run[name] for run in own]) for name in (*COLUMNS, "validation_mrr"))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines.append(f"| *what most users have* | {' | '.join(f'{rules.flat()[name]:.4f}' for name in COLUMNS)} | |")
    names = list(dict.fromkeys(run["row"] for run in runs))
    means = {name: statistics.fmean(run["ndcg_at_10"] for run in runs if run["row"] == name) for name in names}
    behind = sum(value < rules.flat()["ndcg_at_10"] for value in means.values())
    lines += [
        "", f"In NDCG@10, {behind} of {len(names)} models are behind recommending what most users have. Of {rules.count} users "
        f"one more hit moves R@10 by up to {1 / rules.count:.4f}: rows within each other's deviation are not told apart.",
    ]
    about = machine()
    lines += [
        "", f"Command: `python -m benchmarks.recommend {path}`; settings {', '.join(f'`{item}`' for item in SETTINGS)}, "
        f"the others as they are; {about['cpu']}, {about['cores']} cores, torch {about['torch']}; "
        f"{date.today().isoformat()}.", "",
        "## Published", "",
        "Test figures of the MetaMMF paper (arXiv 2501.07110) on the whole of its MovieLens data with visual, acoustic and "
        "textual features, which are not here: other users, other items. They are no measure for the table above.", "",
        "| model | P@10 | R@10 | NDCG@10 |", "|---|---:|---:|---:|",
        *(f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} |" for name, values in PUBLISHED.items()), "",
    ]
    return "\n".join(lines)


def _size(found: Interactions, held: int) -> str:
    return (
        f"{found.num_users:,} users, {found.num_items:,} items, {len(found.train):,} training, {len(found.valid):,} validation "
        f"and {held:,} test interactions"
    )


def _cell(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    typer.run(main)
