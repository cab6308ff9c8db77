"""Missing pictures: compares the three policies of `model.missing` with increasing shares of the pictures removed.

    python -m benchmarks.missing_modalities          # writes results/missing_modalities.md

All scores are validation scores; no test split is opened. An interrupted benchmark continues from the runs in `--cache`.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.results import FinishedRuns, host_line, percent
from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.data.features.modality import Modality
from imf_core.files.markdown import table
from imf_core.prepare.link_data import LinkData, prepare
from imf_core.train.fit import build_model, fit
from tune.report.files import machine

POLICIES = ("learned", "mean", "neutral")
SHARES = (0.0, 0.3, 0.6)
SETTINGS = ("model.dim=64", "train.batch_size=512", "train.max_epochs=8", "train.patience=8", "train.precision=auto")
NO_PICTURES = "no pictures at all"


def without_share(modality: Modality, share: float, seed: int) -> Modality:
    """The modality without a random share of its rows; the same rows are removed for every policy."""
    present = np.flatnonzero(modality.mask)
    removed = np.random.default_rng(seed).permutation(present)[: round(share * len(present))]
    mask = modality.mask.copy()
    mask[removed] = False
    return Modality(modality.name, np.where(mask[:, None], modality.matrix, 0).astype(np.float32), mask, modality.unknown)


def main(
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("results/missing_modalities.md"),
    cache: Annotated[Path, typer.Option(help="File of finished runs (JSON lines).")] = Path(".cache/missing_modalities.jsonl"),
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds.")] = 3,
) -> None:
    """Compare the policies on the bundled data set `unicode`."""
    base = Config().updated(parse_overrides(SETTINGS))
    whole = prepare(base.data)
    image = next(modality for modality in whole.modalities if modality.name == "image")
    others = tuple(modality for modality in whole.modalities if modality.name != "image")
    finished = FinishedRuns(cache)

    def score(share: float, policy: str, seed: int) -> float:
        """Best validation MRR of a run."""
        facts = {"share": share, "policy": policy, "seed": seed, "settings": list(SETTINGS)}
        run = finished.find(facts)
        if run is None:
            config, modalities = base.updated({"train.seed": seed}), others
            if policy != NO_PICTURES:
                config = config.updated({"model.missing": policy})
                modalities = (without_share(image, share, seed), *others)
            data = LinkData(whole.graph, modalities)
            run = finished.add({**facts, "mrr": float(fit(build_model(config, data), data, config).best_mrr)})
            print(f"{share:.0%} removed, {policy}, seed {seed}: {run['mrr']:.4f}", flush=True)
        return float(run["mrr"])

    def cell(share: float, policy: str) -> str:
        return percent([score(share, policy, seed) for seed in range(seeds)])

    rows = [[policy, *(cell(share, policy) for share in SHARES)] for policy in POLICIES]
    out.write_text("\n".join([
        "# Policies for missing pictures",
        "",
        f"Validation MRR in percent, mean ± standard deviation over {seeds} seeds, on the bundled data set `unicode` "
        f"({whole.graph.num_entities:,} entities, {int(image.mask.sum()):,} of them with a picture). Each column removes a "
        "random share of these pictures, the same ones for every policy.",
        "",
        *table(["model.missing", *(f"{share:.0%} removed" for share in SHARES)], rows, markup=True),
        f"Without the image branch: {cell(1.0, NO_PICTURES)}.",
        "",
        f"Command: `python -m benchmarks.missing_modalities`; settings {', '.join(f'`{item}`' for item in SETTINGS)}; "
        f"{host_line(machine())}; {date.today()}.",
        "",
    ]), encoding="utf-8")
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
