"""What each fusion operator and auxiliary loss is worth: validation MRR against the control, seconds an epoch, memory.

    python -m benchmarks.fusion --parts ../shared/data/MKG-Y --parts unicode

Each run is a process of its own; it is kept in `--cache` as soon as it is done, its ranks beside it, so that an interrupted
table goes on where it stopped. All scores are of validation: they decide what a search tries, so no test split is opened.

Shapes: `T` validation triples.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import REPOSITORY, FinishedRuns, host_line, percent
from benchmarks.speed import peak_gib
from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.ensemble.teacher import rule_preferences
from imf_core.evaluate.calibrate import rank_by_fold
from imf_core.evaluate.paired import LEVEL, bootstrap_interval, sign_flip
from imf_core.evaluate.redecide import fold_decisions
from imf_core.files.markdown import table
from imf_core.prepare.link_data import prepare
from imf_core.runtime import MemoryBudget
from imf_core.train.fit import build_model, fit

Run = dict[str, Any]
CONTROL = "tucker"
RULES = "preferences=rules"  # of a variant: it learns the preferences of the one-step rules
SETTINGS = (
    "data.text=names", "model.dim=128", "model.missing=neutral", "train.batch_size=512", "train.max_epochs=20",
    "train.patience=4", "train.precision=auto",
)
# The bundled characters have names and pictures; MKG-Y has names.
VARIANTS: dict[str, tuple[str, ...]] = {
    CONTROL: (),
    **{kind: (f"model.fusion={kind}",) for kind in (
        "none", "concat", "gated", "meta_cp", "multiscale", "cross_attention", "hub", "modular"
    )},
    "hub without facts": ("model.fusion=hub", "model.hub_context=0"),
    "self_mi": ("train.self_mi_weight=0.1",),
    "preferences of the rules": (RULES, "train.preference_weight=0.1"),
}
PAPERS = {
    "multiscale": "U3M, arXiv 2405.15365", "cross_attention": "MCMulT, arXiv 2206.07981", "hub": "MMICT, arXiv 2312.06363",
    "modular": "CREMA, arXiv 2402.05889", "self_mi": "Self-MI, arXiv 2311.03785",
    "preferences of the rules": "RLAIF for video, arXiv 2402.03746",
}


@dataclass(frozen=True)
class Asked:
    """One run.

    Args:
        data: graph folder, or name of a bundled data set.
        variant: one of `VARIANTS`.
        seed: of the training.
        settings: of all runs of the table.
    """

    data: str
    variant: str
    seed: int
    settings: tuple[str, ...] = SETTINGS

    @property
    def key(self) -> Run:
        """What a finished run is found by."""
        return {
            "data": Path(self.data).name, "variant": self.variant, "of": list(VARIANTS[self.variant]), "seed": self.seed,
            "settings": list(self.settings), "code": code_state(),
        }


def code_state() -> str:
    """Digest of the measured code: operators and auxiliary losses."""
    folders = (REPOSITORY / "imf_core/model/fusion", REPOSITORY / "imf_core/model/losses")
    files = sorted(path for folder in folders for path in folder.glob("*.py"))
    return hashlib.sha256("\0".join(path.read_text(encoding="utf-8") for path in files).encode()).hexdigest()[:12]


def measure(asked: Asked, ranks_file: Path) -> Run:
    """Train one model, in this process.

    Args:
        asked: the run.
        ranks_file: `.npy` for the (2T,) ranks of validation, tails first, ranked crosswise.

    Returns:
        Best validation MRR, epochs, seconds of an epoch with its evaluation (the median), and the process's peak, GiB.
    """
    chosen = [item for item in (*asked.settings, *VARIANTS[asked.variant]) if item != RULES]
    config = Config().updated({**parse_overrides(chosen), "data.path": asked.data, "train.seed": asked.seed})
    data = prepare(config.data, config.structure)
    graph = data.graph
    preferences = rule_preferences(graph) if RULES in VARIANTS[asked.variant] else None
    model, seconds = build_model(config, data), list[float]()
    result = fit(model, data, config, lambda report: seconds.append(report.seconds), preferences=preferences)
    memory = MemoryBudget.of(config.train.memory_budget_mb)
    by_fold = [{"": one} for one in fold_decisions(model, graph, {}, memory)]
    ranked = rank_by_fold(model, graph, graph.valid, graph.known(), by_fold, memory=memory)[""]
    np.save(ranks_file, ranked.ranks)
    return {
        "mrr": float((1 / ranked.ranks).mean()), "best_mrr": result.best_mrr, "best_epoch": result.best_epoch,
        "epochs": result.epochs, "epoch_seconds": statistics.median(seconds), "parameters": model.num_parameters,
        "gib": peak_gib(),
    }


def apart(asked: Asked, ranks_file: Path) -> Run:
    """`measure` in a process of its own."""
    given = json.dumps([asked.data, asked.variant, asked.seed, list(asked.settings), str(ranks_file)])
    command = [sys.executable, "-m", "benchmarks.fusion", "--one-part", given]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    found: Run = json.loads(done.stdout.splitlines()[-1])
    return found


def one_part(given: str) -> Run:
    """The other end of `apart`."""
    data, variant, seed, settings, ranks_file = json.loads(given)
    return measure(Asked(data, variant, seed, tuple(settings)), Path(ranks_file))


def compare(
    data: Sequence[str], seeds: int, cache: Path, settings: tuple[str, ...] = SETTINGS, variants: Sequence[str] = ()
) -> list[Run]:
    """The rows of the table; seed by seed, so that what else the machine does meets all variants.

    Args:
        data: graphs.
        seeds: of each row.
        cache: finished runs, one JSON line each; the ranks lie in a folder beside it.
        settings: of all runs.
        variants: rows besides the control; empty: all.
    """
    chosen = [CONTROL, *(name for name in variants or VARIANTS if name != CONTROL)]
    finished, folder = FinishedRuns(cache), cache.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for source in data:
        runs: dict[str, list[Run]] = {name: [] for name in chosen}
        for seed in range(seeds):
            for name in chosen:
                asked = Asked(source, name, seed, settings)
                digest = hashlib.sha256(json.dumps(asked.key).encode()).hexdigest()[:16]
                run = finished.find({"key": asked.key})
                if run is None:
                    run = finished.add({"key": asked.key, "ranks": f"{digest}.npy", **apart(asked, folder / f"{digest}.npy")})
                    told = f"{run['mrr']:.4f}, {run['epoch_seconds']:.1f} s"
                    print(f"{Path(source).name}, {name}, seed {seed}: {told}", flush=True)
                runs[name].append(run)
        rows += [
            {"data": Path(source).name, "variant": name, "runs": own, **verdict(own, runs[CONTROL], folder)}
            for name, own in runs.items()
        ]
    return rows


def verdict(own: Sequence[Run], control: Sequence[Run], folder: Path) -> dict[str, Any]:
    """Difference in MRR to the control, its p value and interval, over the triples (each the mean of both directions and all
    seeds).
    """
    if own is control or not own:
        return {"difference": 0.0}
    changes = np.mean([
        1 / np.load(folder / first["ranks"]) - 1 / np.load(folder / other["ranks"])
        for first, other in zip(own, control, strict=True)
    ], axis=0).reshape(2, -1).mean(axis=0)  # (T,)
    p, _, _ = sign_flip(changes)
    return {"difference": float(changes.mean()), "p": p, "interval": list(bootstrap_interval(changes))}


def section(found: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    host = found["machine"]
    lines = [
        "## What each operator and auxiliary loss is worth", "",
        f"Validation MRR in percent, mean ± standard deviation over {found['seeds']} seeds, against `{CONTROL}`, the default; "
        "the p value is of a sign-flip test over the validation triples, each the mean of both directions and all seeds, with "
        "the 95 % interval of the difference. Seconds are of an epoch with its evaluation, the median; memory is the peak of "
        "the process. No test split was opened.",
    ]
    for data in dict.fromkeys(row["data"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["data"] == data]
        lines += ["", f"### {data}", "", *table(
            ["part", "of", "validation MRR", "difference", "p", "s an epoch", "MiB", "verdict"],
            [_line(row) for row in rows], markup=True,
        )]
    return "\n".join([
        *lines, f"Command: `{found['command']}`; settings {', '.join(f'`{item}`' for item in found['settings'])}; "
        f"{host_line(host)}; {found['date']}. MovieLens' sample is left out: the recommender has operators of its own.", "",
    ])


def _line(row: Mapping[str, Any]) -> list[str]:
    runs = row["runs"]
    cells = [row["variant"], PAPERS.get(row["variant"], "")]
    cells.append(percent([run["mrr"] for run in runs]))
    if row["variant"] == CONTROL:
        cells += ["", ""]
    else:
        low, high = row["interval"]
        cells += [f"{100 * row['difference']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})", f"{row['p']:.4f}"]
    cells += [f"{statistics.mean(run['epoch_seconds'] for run in runs):.1f}"]
    cells += [f"{1024 * statistics.mean(run['gib'] for run in runs):,.0f}", _verdict(row)]
    return cells


def _verdict(row: Mapping[str, Any]) -> str:
    if row["variant"] == CONTROL:
        return "the control"
    if row["p"] >= LEVEL:
        return "no real difference"
    return "better" if row["difference"] > 0 else "worse"
