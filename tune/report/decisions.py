"""`python -m tune.report.decisions`: tune the decision weights of a finished study again, from its cached scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from imf_core.errors import CheckpointError
from imf_core.evaluate.cached_scores import load_cache
from imf_core.evaluate.redecide import COMMON, EVALUATIONS, RELATION, TRAINED, fit_weights, held_back
from tune.study.records import load_records, ranked


def main(
    study: Annotated[Path, typer.Argument(help="Folder of a study.")],
    evaluations: Annotated[int, typer.Option(min=50, help="Weights to try for each half of validation.")] = EVALUATIONS,
) -> None:
    """Show the validation MRR of each trial among its cached candidates, with the trained weights and with tuned ones."""
    table = Table(title="held-back MRR among the cached candidates", box=None, header_style="bold")
    for name in ("trial", TRAINED, COMMON, RELATION, "weights"):
        table.add_column(name, justify="left" if name in ("trial", "weights") else "right")
    for record in ranked(load_records(study)):
        try:
            cache = load_cache(Path(study) / "trials" / record.trial_id)
        except CheckpointError:
            continue  # no scores: it was stopped, or has a single branch
        relations = int(cache.scores.relations.max()) + 1 if len(cache.final) == 1 else len(cache.final)
        mrr = held_back(cache, relations, evaluations)
        best = fit_weights(cache.scores, relations, evaluations).common.tolist()
        weights = ", ".join(f"{branch} {weight:.2f}" for branch, weight in zip(cache.branches, best, strict=True))
        table.add_row(str(record.number), *(f"{mrr[kind]:.4f}" for kind in (TRAINED, COMMON, RELATION)), weights)
    Console().print(table if table.rows else f"no trial of {study} has cached scores", markup=False)


if __name__ == "__main__":
    typer.run(main)
