"""What stands in for a missing picture: the three policies of `model.missing` with more and more pictures removed.

    python -m benchmarks.missing_modalities          # writes results/missing_modalities.md

Every run is kept in `--cache` as soon as it is finished, so that an interrupted comparison goes on where it stopped. Scores are
validation scores: nothing here opens a test split.
"""

from __future__ import annotations

import json
import statistics
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.data.features.modality import Modality
from imf_core.prepare.link_data import LinkData, prepare
from imf_core.train.fit import build_model, fit
from tune.report.files import machine

POLICIES = ("learned", "mean", "neutral")
SHARES = (0.0, 0.3, 0.6)
SETTINGS = ("model.dim=64", "train.batch_size=512", "train.max_epochs=8", "train.patience=8", "train.precision=auto")
LEFT_OUT = "no pictures at all"


def without_share(modality: Modality, share: float, seed: int) -> Modality:
    """The modality with a share of its present rows removed, the same rows for every policy."""
    present = np.flatnonzero(modality.mask)
    gone = np.random.default_rng(seed).permutation(present)[: round(share * len(present))]
    mask = modality.mask.copy()
    mask[gone] = False
    return Modality(modality.name, np.where(mask[:, None], modality.matrix, 0).astype(np.float32), mask, modality.unknown)


def score(data: LinkData, config: Config) -> float:
    """Best validation MRR of a run."""
    return float(fit(build_model(config, data), data, config).best_mrr)


def main(
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("results/missing_modalities.md"),
    cache: Annotated[Path, typer.Option(help="Finished runs, one JSON line each.")] = Path(".cache/missing_modalities.jsonl"),
    seeds: Annotated[int, typer.Option(min=2)] = 3,
) -> None:
    """Compare the policies on the bundled data set `unicode`."""
    base = Config().updated(parse_overrides(SETTINGS))
    whole = prepare(base.data)
    image = next(modality for modality in whole.modalities if modality.name == "image")
    others = tuple(modality for modality in whole.modalities if modality.name != "image")
    found = _read(cache)
    for seed in range(seeds):
        for share, policy in [(1.0, LEFT_OUT), *((share, policy) for share in SHARES for policy in POLICIES)]:
            key = {"share": share, "policy": policy, "seed": seed, "settings": list(SETTINGS)}
            if _find(found, key) is not None:
                continue
            config = base.updated({"train.seed": seed})
            modalities = others
            if policy != LEFT_OUT:
                config = config.updated({"model.missing": policy})
                modalities = (without_share(image, share, seed), *others)
            mrr = score(LinkData(whole.graph, modalities), config)
            found.append({**key, "mrr": mrr})
            cache.parent.mkdir(parents=True, exist_ok=True)
            with cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
            print(f"{share:.0%} removed, {policy}, seed {seed}: {mrr:.4f}", flush=True)
    out.write_text(_page(found, seeds, whole, image), encoding="utf-8")
    print(f"written: {out}")


def _read(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()] if cache.exists() else []


def _find(found: list[dict[str, Any]], key: dict[str, Any]) -> float | None:
    return next((float(run["mrr"]) for run in found if all(run[name] == value for name, value in key.items())), None)


def _page(found: list[dict[str, Any]], seeds: int, data: LinkData, image: Modality) -> str:
    def cell(share: float, policy: str) -> str:
        keys = [{"share": share, "policy": policy, "seed": seed, "settings": list(SETTINGS)} for seed in range(seeds)]
        scores = [100 * value for key in keys if (value := _find(found, key)) is not None]
        return f"{statistics.fmean(scores):.2f} ± {statistics.stdev(scores):.2f}"

    host = machine()
    rows = [f"| {policy} | " + " | ".join(cell(share, policy) for share in SHARES) + " |" for policy in POLICIES]
    return "\n".join([
        "# What stands in for a missing picture",
        "",
        f"Validation MRR in percent, mean and sample deviation over {seeds} seeds, on the bundled data set `unicode` "
        f"({data.graph.num_entities:,} entities, {int(image.mask.sum()):,} with a picture). The columns remove a share of "
        "these pictures by chance, the same ones for each policy.",
        "",
        "| `model.missing` | " + " | ".join(f"{share:.0%} removed" for share in SHARES) + " |",
        "|---|" + "---:|" * len(SHARES),
        *rows,
        "",
        f"Without the image branch: {cell(1.0, LEFT_OUT)}.",
        "",
        f"Command: `python -m benchmarks.missing_modalities`; settings {', '.join(f'`{item}`' for item in SETTINGS)}; "
        f"{host['cpu']}, {host['cores']} cores, torch {host['torch']}; {date.today()}.",
        "",
    ])


if __name__ == "__main__":
    typer.run(main)
