"""Every figure of speed and memory: `make bench`, or `python -m benchmarks.run_speed [GROUP ...]`.

Each measurement is a process of its own (`speed.py`); what is compared takes turns on the same machine, in one run. A finished
measurement is kept in `--cache`, under the state of the code, so that an interrupted run goes on where it stopped.
`results/benchmarks.{json,md}` are written anew after each group. Benchmarks on a GPU (`gpu.py`, run where there is one) are
taken in from `results/benchmarks_gpu.json`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.report_speed import write_report

REPOSITORY = Path(__file__).resolve().parents[1]
Figures = dict[str, Any]

# What `seconds_to_mrr_030` trains: structure, text and their fusion on MKG-Y. Found on the validation split, for few epochs.
QUICK = {
    "data.text": "names", "model.finetune_features": True, "model.contrastive_weight": 0.003, "model.fusion_rank": 1,
    "model.relation_dim": 32, "model.dropout_input": 0.1, "model.dropout_relation": 0.1, "model.dropout_context": 0.3,
    "model.dropout_fusion": 0.1, "train.batch_size": 512, "train.lr": 0.008, "train.precision": "auto",
}
DEFAULT = {"data.text": "names", "train.precision": "auto"}
MILLION = {
    "model.dim": 64, "model.relation_dim": 32, "train.num_negatives": 512, "train.batch_size": 4096, "train.precision": "auto",
}


def code_state(folder: Path = REPOSITORY, searches: bool = False) -> str:
    """Digest of the measured code and of the measuring one; that of the search is measured by `trial_start` alone."""
    digest = hashlib.sha256()
    measured = [file for room in ("model", "train", "evaluate") for file in folder.glob(f"imf_core/{room}/**/*.py")]
    files = [*measured, folder / "imf_core/config.py", folder / "imf_core/runtime.py"]
    files += [*folder.glob("tune/**/*.py"), folder / "benchmarks/trial_start.py"] if searches else []
    for file in [*sorted(files), *(folder / f"benchmarks/{name}.py" for name in ("speed", "textbook", "launches"))]:
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Lab:
    """Runs measurements, one process each.

    Args:
        cache: folder of finished measurements.
        rounds: times that compared measurements take turns.
        scale: below 1: a rehearsal with so much smaller graphs, whose figures say nothing.
    """

    cache: Path
    rounds: int = 2
    scale: float = 1.0

    def measure(self, name: str, arguments: Figures, repeat: int = 0) -> Figures:
        """Figures of `speed.py NAME ARGUMENTS`, from the cache where it has them."""
        return self.together([(name, arguments)], repeat)[0]

    def together(self, asked: Sequence[tuple[str, Figures]], repeat: int = 0) -> list[Figures]:
        """As `measure`, several processes at the same time.

        Raises:
            subprocess.CalledProcessError: a process failed; its output was shown.
        """
        searches = any(name == "trial_start" for name, _ in asked)
        key = json.dumps([code_state(searches=searches), asked, repeat], sort_keys=True)
        file = self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if file.is_file():
            kept: list[Figures] = json.loads(file.read_text(encoding="utf-8"))["found"]
            return kept
        with tempfile.TemporaryDirectory() as place:
            commands = [
                [sys.executable, "-m", "benchmarks.speed", name, json.dumps(arguments).replace("{place}", place)]
                for name, arguments in asked
            ]
            started = [
                subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for command in commands
            ]
            outputs = [process.communicate()[0] for process in started]
        for process, command, output in zip(started, commands, outputs, strict=True):
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command, output)
        found: list[Figures] = [json.loads(output.strip().splitlines()[-1]) for output in outputs]
        print(f"{asked[0][0]} {json.dumps(asked[0][1])}: {_short(found[0])}", flush=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"asked": asked, "repeat": repeat, "found": found}), encoding="utf-8")
        return found

    def turns(self, *asked: tuple[str, Figures]) -> list[list[Figures]]:
        """Figures of each of several measurements, one after the other, `rounds` times over."""
        found = [[self.measure(name, arguments, repeat) for name, arguments in asked] for repeat in range(self.rounds)]
        return [list(column) for column in zip(*found, strict=True)]


def middle(runs: Sequence[Figures], key: str) -> float:
    """Median over the rounds."""
    return float(median(float(run[key]) for run in runs))


def figure(value: float, **raw: Any) -> Figures:
    """A ratio (or another key figure) with what it was made of."""
    return {"value": value, "raw": raw}


def steps(lab: Lab, mkgy: str, db15k: str) -> Figures:
    """Training steps of the published configuration against the textbook's, same batches; memory and FLOP/s beside them."""
    found: Figures = {}
    for key, source in (("mkgy", mkgy), ("db15k", db15k)):
        slow, fast, half = lab.turns(
            ("step", {"source": source, "mode": "textbook", "steps": 7}),
            ("step", {"source": source, "steps": 15}),
            ("step", {"source": source, "steps": 15, "precision": "bf16"}),
        )
        textbook, ours, bf16 = (middle(runs, "seconds") for runs in (slow, fast, half))
        found[f"step_ratio_{key}"] = figure(textbook / ours, textbook_seconds=textbook, ours_seconds=ours)
        found[f"step_ratio_{key}_bf16"] = figure(textbook / bf16, textbook_seconds=textbook, ours_bf16_seconds=bf16)
        found[f"step_fastest_{key}"] = figure(
            min(run["fastest"] for run in slow) / min(run["fastest"] for run in fast),
            textbook_seconds=min(run["fastest"] for run in slow), ours_seconds=min(run["fastest"] for run in fast),
            ours_bf16_seconds=min(run["fastest"] for run in half),
        )
        if key == "mkgy":
            peaks = max(run["peak_gib"] for run in fast), max(run["peak_gib"] for run in slow)
            found["memory_ratio"] = figure(peaks[0] / peaks[1], ours_gib=peaks[0], textbook_gib=peaks[1])
            done, product = middle(fast, "flop_per_second") / 1e9, middle(fast, "product_flop_per_second") / 1e9
            found["gemm_share"] = figure(done / product, step_gflop_per_second=done, product_gflop_per_second=product)
            (plain,) = lab.turns(("step", {"source": source, "mode": "static", "compiled": True, "steps": 15}))
            seconds, first = middle(plain, "seconds"), middle(plain, "first")
            found["compiled_ratio"] = figure(
                seconds / ours, compiled_seconds=seconds, ours_seconds=ours, first_compiled_step_seconds=first
            )
    return found


def ranks(lab: Lab, mkgy: str) -> Figures:
    """Filtered ranking, fp32, against the published loop."""
    slow, fast = lab.turns(
        ("ranking", {"source": mkgy, "mode": "textbook", "limit": 1000}), ("ranking", {"source": mkgy})
    )
    textbook, ours = middle(slow, "queries_per_second"), middle(fast, "queries_per_second")
    return {"ranking_ratio": figure(ours / textbook, ours_queries_per_second=ours, textbook_queries_per_second=textbook)}


def workers(lab: Lab, mkgy: str) -> Figures:
    """Two workers of one thread against one of one thread, 1,024 queries a step each."""
    two, one = [], []
    for repeat in range(lab.rounds + 1):
        asked: list[tuple[str, Figures]] = [
            ("ddp", {"source": mkgy, "world": 2, "rank": rank, "store": "{place}/store", "threads": 1}) for rank in (0, 1)
        ]
        one += lab.together([("ddp", {**asked[0][1], "world": 1, "rank": 0})], repeat)
        two += lab.together(asked, repeat)[:1]
    double, single = middle(two, "queries_per_second"), middle(one, "queries_per_second")
    return {"ddp_ratio": figure(double / single, two_queries_per_second=double, one_queries_per_second=single)}


def quality(lab: Lab, mkgy: str) -> Figures:
    """Seconds to validation MRR 0.30; the first epochs of the published configuration."""
    runs = [
        lab.measure("quality", {"source": mkgy, "overrides": {**QUICK, "train.seed": seed}, "goal": 0.30, "epochs": 20})
        for seed in range(3)
    ]
    reached = [run["seconds"] for run in runs if run["seconds"] is not None]
    found: Figures = {}
    if len(reached) == len(runs):
        found["seconds_to_mrr_030"] = figure(
            float(median(reached)), seconds=reached, validation_mrr=[run["curve"][-1][2] for run in runs],
            epochs=[run["curve"][-1][0] for run in runs], branches=runs[0]["branches"], settings=runs[0]["settings"],
        )
    run = lab.measure("quality", {"source": mkgy, "overrides": DEFAULT, "goal": 0.30, "epochs": 15})
    if run["seconds"] is not None:
        found["seconds_to_mrr_030_default"] = figure(
            run["seconds"], epochs=run["curve"][-1][0], validation_mrr=run["curve"][-1][2], settings=run["settings"],
        )
    first = lab.measure("quality", {
        "source": mkgy, "preset": "published", "epochs": 3,
        "overrides": {"data.text": "names", "train.eval_every": 1, "train.patience": 3},
    })
    found["published_curve"] = {"epoch_seconds_mrr": first["curve"], "branches": first["branches"]}
    return found


def precision(lab: Lab, mkgy: str) -> Figures:
    """bf16 beside fp32 at equal epochs."""
    best: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for seed in range(3):
        for kind, scores in best.items():
            settings = {**QUICK, "train.seed": seed, "train.precision": kind}
            run = lab.measure("quality", {"source": mkgy, "overrides": settings, "epochs": 8})
            scores.append(max(epoch[2] for epoch in run["curve"]))
    return {"precision": {"epochs": 8, "best_validation_mrr": best}}


def large(lab: Lab) -> Figures:
    """A million entities: an epoch, and 10,000 triples ranked."""
    run = lab.measure("large", {
        "entities": int(1e6 * lab.scale), "triples": int(5e6 * lab.scale), "evaluated": int(1e4 * lab.scale),
        "overrides": MILLION,
    })
    raw = {key: run[key] for key in ("epoch_seconds", "evaluation_seconds", "queries", "settings")}
    return {"million_entities_peak_gb": figure(run["peak_gib"] * 2**30 / 1e9, **raw)}


def sizes(lab: Lab) -> Figures:
    """Step and ranking against the number of entities and of relations; with a round more, so that the middle value is no slow
    process.
    """
    found: dict[str, list[Figures]] = {"entities": [], "relations": []}
    lab = replace(lab, rounds=lab.rounds + 1)
    small = {"model__dim": 64, "model__relation_dim": 32}
    for count in (10_000, 100_000, 1_000_000):
        source = f"generated:{int(count * lab.scale)},50,{int(count * lab.scale) * 2}"
        step, ranking = lab.turns(
            ("step", {"source": source, "batch": 256, "steps": 9, **small}),
            ("ranking", {"source": source, "limit": 500, **small}),
        )
        found["entities"].append({
            "size": count, "step_seconds": middle(step, "seconds"), "peak_gib": middle(step, "peak_gib"),
            "ranking_queries_per_second": middle(ranking, "queries_per_second"),
        })
    for count in (10, 100, 1000):
        source = f"generated:{int(15_000 * lab.scale)},{count},{int(100_000 * lab.scale)}"
        step, ranking = lab.turns(
            ("step", {"source": source, "batch": 1024, "steps": 9}), ("ranking", {"source": source, "limit": 10_000})
        )
        found["relations"].append({
            "size": count, "step_seconds": middle(step, "seconds"), "relations_of_a_step": int(middle(step, "relations")),
            "ranking_queries_per_second": middle(ranking, "queries_per_second"),
        })
    return {"sizes": found}


def search(lab: Lab) -> Figures:
    """What a trial costs in a search over the bare `fit`."""
    (runs,) = lab.turns(("trial_start", {"trials": 8 if lab.scale == 1.0 else 3}))
    raw = {key: middle(runs, key) for key in ("trial_seconds", "fit_seconds", "first_trial_seconds")}
    return {"trial_start_seconds": figure(middle(runs, "overhead_seconds"), **raw)}


def launches(lab: Lab) -> Figures:
    """What a GPU would launch in a step and in a block of the ranking, counted on the CPU."""
    return lab.measure("launches", {})


GROUPS = ("steps", "ranks", "workers", "quality", "precision", "large", "sizes", "search", "launches")


_GENERATED = {"large": large, "sizes": sizes, "search": search, "launches": launches}  # need no shared graph


def measure_group(group: str, lab: Lab, mkgy: str, db15k: str) -> Figures:
    """Figures of one of `GROUPS`."""
    if group == "steps":
        return steps(lab, mkgy, db15k)
    if group in _GENERATED:
        return _GENERATED[group](lab)
    return {"ranks": ranks, "workers": workers, "quality": quality, "precision": precision}[group](lab, mkgy)


def main(
    groups: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(GROUPS)}; all if none is named.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of benchmarks.json and benchmarks.md.")] = REPOSITORY / "results",
    cache: Annotated[Path, typer.Option(help="Finished measurements.")] = REPOSITORY / ".cache" / "benchmarks",
    shared: Annotated[Path, typer.Option(help="Folder whose data/MKG-Y and data/DB15K are used.")] = REPOSITORY / "../shared",
    rounds: Annotated[int, typer.Option(min=1, help="Times that compared measurements take turns.")] = 2,
) -> None:
    """Measure and write the report; figures of groups that were not asked for stay as they are."""
    chosen = groups or list(GROUPS)
    if unknown := set(chosen) - set(GROUPS):
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    mkgy, db15k = (str((shared / "data" / name).resolve()) for name in ("MKG-Y", "DB15K"))
    if not Path(mkgy).is_dir():
        skipped = [group for group in chosen if group not in _GENERATED]
        chosen = [group for group in chosen if group not in skipped]
        print(f"{mkgy} is absent: {', '.join(skipped)} cannot be measured")
    lab = Lab(cache, rounds)
    for group in chosen:
        write_report(out, measure_group(group, lab, mkgy, db15k), group)
        print(f"{group}: written to {out}/benchmarks.md", flush=True)


def _short(found: Figures) -> str:
    values = {key: value["value"] if isinstance(value, dict) and "value" in value else value for key, value in found.items()}
    return ", ".join(f"{key} {value:.4g}" for key, value in values.items() if isinstance(value, int | float))


if __name__ == "__main__":
    typer.run(main)
