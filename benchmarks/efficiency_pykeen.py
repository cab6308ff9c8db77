"""PyKEEN's hyperparameter search as a rival of `benchmarks.efficiency`; run by the Python of an environment that has PyKEEN
1.11.

    python benchmarks/efficiency_pykeen.py FOLDER GRAPH SECONDS SEED

GRAPH holds `train.tsv` and `valid.tsv`. The model is ComplEx with the ranges that PyKEEN proposes for it, trained 1-N with
early stopping, on structure alone. What is optimised is the filtered validation MRR, ties counted with their mean rank, as
ours. The winner is trained again twice on the same splits. It imports nothing of this package; test is not read.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

METRIC = "both.realistic.inverse_harmonic_mean_rank"


def curve_of(trials: list[tuple[float, float | None]], started: float) -> list[tuple[float, float]]:
    """(seconds since the start, MRR) of the trials that have one, from (end in seconds since 1970, MRR)."""
    return sorted((round(ended - started, 1), value) for ended, value in trials if value is not None)


def mrr_in(results: dict[str, Any]) -> float:
    """The MRR in a `results.json` of PyKEEN."""
    value: Any = results["metrics"]
    for part in METRIC.split("."):
        value = value[part]
    return float(value)


def main(folder: Path, graph: Path, seconds: float, seed: int) -> None:
    """Search until the time is over, then train the winner again."""
    started = time.time()
    from pykeen.hpo import hpo_pipeline
    from pykeen.triples import TriplesFactory

    training = TriplesFactory.from_path(graph / "train.tsv")
    ids = {"entity_to_id": training.entity_to_id, "relation_to_id": training.relation_to_id}
    validation = TriplesFactory.from_path(graph / "valid.tsv", **ids)
    stopper = {"frequency": 5, "patience": 2, "metric": METRIC}
    result = hpo_pipeline(
        training=training, validation=validation, testing=validation, model="ComplEx", training_loop="lcwa",
        loss="crossentropy", optimizer="adam", stopper="early", stopper_kwargs=stopper, metric=METRIC, direction="maximize",
        sampler="tpe", sampler_kwargs={"seed": seed}, timeout=int(seconds), device="cpu",
    )
    ended = [trial for trial in result.study.trials if trial.datetime_complete is not None]
    trials = [(trial.datetime_complete.timestamp(), trial.value) for trial in ended]
    (folder / "curve.json").write_text(json.dumps({"curve": curve_of(trials, started), "trials": len(trials)}))
    result.replicate_best_pipeline(directory=str(folder / "replicates"), replicates=2, save_replicates=False)
    again = [mrr_in(json.loads(file.read_text())) for file in sorted((folder / "replicates").rglob("results.json"))]
    (folder / "retrained.json").write_text(json.dumps({"mrr": sum(again) / len(again), "each": again}))
    (folder / "done").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
