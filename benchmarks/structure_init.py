"""What the structure branch starts from: `structure.init` random against gat on MKG-Y, with equal settings and seeds.

    python -m benchmarks.structure_init --data ../shared/data/MKG-Y      # writes results/structure_init.md

A run is kept in `--cache` as soon as it is finished, so that an interrupted comparison goes on where it stopped. Scores are
validation scores: nothing here opens a test split.
"""

from __future__ import annotations

import json
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.files.markdown import table
from imf_core.prepare.link_data import prepare
from imf_core.train.fit import build_model, fit
from tune.report.files import machine

CONFIG = Path("results/configs/mkg-y.yaml")
# title -> settings, epochs of every run (none ends earlier), variants
SETUPS = {
    "Structure alone": (("data.text=none",), 15, ("random", "gat 10", "gat 40")),
    "Structure, names as text, fusion": ((), 12, ("random", "gat 10")),
}
VARIANTS = {
    "random": (),
    "gat 10": ("structure.init=gat", "structure.width=200", "structure.epochs=10"),
    "gat 40": ("structure.init=gat", "structure.width=200", "structure.epochs=40"),
}

Run = dict[str, Any]


def main(
    data: Annotated[Path, typer.Option(help="Folder of MKG-Y.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("results/structure_init.md"),
    seeds: Annotated[int, typer.Option(min=2)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    cache: Annotated[Path, typer.Option(help="Finished runs, one JSON line each.")] = Path(".cache/structure_init.jsonl"),
) -> None:
    """Train every variant with every seed and write the tables."""
    torch.set_num_threads(threads)
    base = Config.load(CONFIG).updated({"data.path": str(data.resolve())})
    found = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()] if cache.exists() else []
    text = [
        "# What the structure branch starts from",
        "",
        f"Validation MRR in percent on MKG-Y, mean and sample deviation over {seeds} seeds. `gat` is a table that graph "
        "attention with the TransE margin loss made in so many epochs, before the trials and once for all of them.",
        "",
    ]
    for title, (settings, epochs, variants) in SETUPS.items():
        equal = {"train.max_epochs": epochs, "train.patience": epochs, **parse_overrides(settings)}
        rows = {}
        for name in variants:
            chosen = base.updated(equal).updated(parse_overrides(VARIANTS[name]))
            rows[name] = [_run(chosen.updated({"train.seed": seed}), found, cache) for seed in range(seeds)]
            print(f"{title}, {name}: {_spread([_best(run) for run in rows[name]])}", flush=True)
        text += _table(title, epochs, rows)
    host = machine()
    text += [
        f"Command: `python -m benchmarks.structure_init --data MKG-Y`; base {CONFIG}; {host['cpu']}, "
        f"{host['cores']} cores, {threads} thread a run, torch {host['torch']}; {date.today()}. Seconds are those of a machine "
        "with other work on it.",
        "",
    ]
    out.write_text("\n".join(text), encoding="utf-8")
    print(f"written: {out}")


def _run(config: Config, found: list[Run], cache: Path) -> Run:
    """The finished run of these settings, or a new one."""
    settings = _plain(config)
    run = next((run for run in found if run["settings"] == settings), None)
    if run is None:
        started = time.monotonic()
        ready = prepare(config.data, config.structure)
        prepared = time.monotonic()
        result = fit(build_model(config, ready), ready, config)
        run = {"settings": settings, "curve": [list(point) for point in result.curve]}
        run |= {"table_seconds": prepared - started, "seconds": time.monotonic() - prepared}
        found.append(run)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(run) + "\n")
    return run


def _table(title: str, epochs: int, rows: dict[str, list[Run]]) -> list[str]:
    columns = sorted({max(1, epochs // 4), max(1, epochs // 2), epochs})
    head = ["start", *(f"epoch {epoch}" for epoch in columns), "best epoch", "table, s"]
    figures = []
    for name, runs in rows.items():
        cells = [_spread([dict(run["curve"])[epoch] for run in runs]) for epoch in columns]
        cells += [_spread([_best(run) for run in runs]), f"{max(run['table_seconds'] for run in runs):.0f}"]
        figures.append([name, *cells])
    lines = [f"## {title}", "", *table(head, figures, markup=True)]
    for name, runs in list(rows.items())[1:]:
        gains = [_best(run) - _best(other) for run, other in zip(runs, rows["random"], strict=True)]
        lines += [f"Best epoch, {name} less random, seed by seed: {_spread(gains)}.", ""]
    return lines


def _best(run: Run) -> float:
    return max(mrr for _, mrr in run["curve"])


def _plain(config: Config) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(config.model_dump()))
    return plain


def _spread(values: list[float]) -> str:
    """Mean and sample deviation, percent."""
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"


if __name__ == "__main__":
    typer.run(main)
