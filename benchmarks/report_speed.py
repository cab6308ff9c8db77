"""`results/benchmarks.json`, its page and its picture, from the figures that `run_speed.py` hands over group by group."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from tune.report.files import machine

Figures = dict[str, Any]

# Key figures: what the value is, and what the project asks of it.
KEYS = {
    "step_ratio_mkgy": ("training step, MKG-Y, fp32: times faster than the textbook", ">= 9"),
    "step_ratio_db15k": ("training step, DB15K, fp32: times faster than the textbook", ">= 9"),
    "step_ratio_mkgy_bf16": ("training step, MKG-Y, bf16: times faster than the textbook in fp32", ">= 20"),
    "step_ratio_db15k_bf16": ("training step, DB15K, bf16: times faster than the textbook in fp32", ">= 20"),
    "step_fastest_mkgy": ("the same, MKG-Y, fp32, fastest step against fastest step", ""),
    "step_fastest_db15k": ("the same, DB15K, fp32, fastest step against fastest step", ""),
    "ranking_ratio": ("filtered ranking, MKG-Y, fp32: times faster than the published loop", ">= 10"),
    "memory_ratio": ("peak memory of the step's process, MKG-Y, against the textbook's", "<= 0.40"),
    "compiled_ratio": ("training step, MKG-Y, fp32: times faster than plain losses by torch.compile", "> 1"),
    "gemm_share": ("FLOP/s of the fp32 step against a product of 4096 x 4096 matrices", ">= 0.70"),
    "ddp_ratio": ("queries a second, 2 workers of 1 thread against 1 worker of 1 thread", ">= 1.7"),
    "seconds_to_mrr_030": ("seconds until validation MRR 0.30, MKG-Y, all branches, settings for speed", "< 40"),
    "seconds_to_mrr_030_default": ("the same with the default settings, which are made for the best final figure", ""),
    "trial_start_seconds": ("seconds that a trial takes over the bare training, bundled data, one at a time", "< 1.5"),
    "launches_published": ("operations that a GPU launches in a training step, published configuration", "<= 140"),
    "launches_default": ("the same, default configuration", "<= 220"),
    "launches_per_branch": ("the same, what a further modality adds, the more of both", "<= 10"),
    "launches_ranking_block": ("operations that a GPU launches for a block of 1,024 ranked queries, the more of both", "<= 35"),
    "readbacks_step": ("times that a training step waits for a number from the GPU", "0"),
    "million_entities_peak_gb": ("peak memory, GB: 1,000,000 entities, 5,000,000 triples, an epoch and a ranking", "< 8"),
}
_ENTITY_COLUMNS = ("size", "step_seconds", "peak_gib", "ranking_queries_per_second")
_RELATION_COLUMNS = ("size", "relations_of_a_step", "step_seconds", "ranking_queries_per_second")


def write_report(folder: Path, figures: Figures, group: str) -> None:
    """Merge a group's figures into `benchmarks.json` and write the page (and the picture) anew.

    Args:
        folder: where `benchmarks.json`, `benchmarks.md`, `img/` and perhaps `benchmarks_gpu.json` lie.
        figures: by key; `KEYS` and the curves that `page` knows.
        group: whose figures these are; machine and date are kept by group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "benchmarks.json"
    known: Figures = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known.setdefault("figures", {}).update(figures)
    known.setdefault("measured", {})[group] = {"machine": machine(), "date": str(date.today())}
    gpu = folder / "benchmarks_gpu.json"
    if gpu.is_file():
        known["gpu"] = json.loads(gpu.read_text(encoding="utf-8"))
    file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    if "sizes" in known["figures"]:
        picture(known["figures"]["sizes"], folder / "img" / "benchmarks-size.png")
    (folder / "benchmarks.md").write_text(page(known), encoding="utf-8")


def page(known: Figures) -> str:
    """The report as Markdown."""
    figures = known["figures"]
    lines = [
        "# Speed and memory",
        "",
        "`textbook` is a plain PyTorch version of the published step and ranking loop (`benchmarks/textbook.py`): equal "
        "parameters, equal batches, equal numbers (tested). Published configuration: d = r = 256, rank 2, four branches, 1,024 "
        "queries a step. Each measurement is a process of its own; compared ones take turns; middle values.",
        "",
        "| figure | value | asked | made of |",
        "|---|---:|---:|---|",
        *(f"| {what} | {_number(figures[key]['value'])} | {asked} | {_raw(figures[key]['raw'])} |"
          for key, (what, asked) in KEYS.items() if key in figures),
        "",
        *_precision(figures), *_published(figures), *_sizes(figures), *_gpu(known),
        "Command: `make bench` (`python -m benchmarks.run_speed`, for the GPU `python -m benchmarks.gpu`). "
        + " ".join(f"{group}: {_machine(item)}." for group, item in known["measured"].items()),
        "",
    ]
    return "\n".join(lines)


def picture(sizes: Figures, file: Path) -> None:
    """Seconds of a step and ranked queries a second against N and against R, both axes logarithmic."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 3.4), layout="constrained")
    for place, (name, label) in enumerate((("entities", "entities N"), ("relations", "relations R"))):
        axis = drawn.add_subplot(1, 2, place + 1)
        rows = sizes[name]
        across = [row["size"] for row in rows]
        axis.loglog(across, [row["step_seconds"] for row in rows], "o-", label="training step, s")
        axis.loglog(across, [1000 / row["ranking_queries_per_second"] for row in rows], "s--", label="ranking 1,000 queries, s")
        axis.set_xlabel(label)
        axis.set_ylabel("seconds")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(file, dpi=110)


def _precision(figures: Figures) -> Iterator[str]:
    if (found := figures.get("precision")) is None:
        return
    yield from ("## bf16 against fp32", "")
    yield f"Best validation MRR of the first {found['epochs']} epochs on MKG-Y, three seeds (settings of `seconds_to_mrr_030`):"
    yield from ("", "| precision | seeds 0, 1, 2 | mean |", "|---|---|---:|")
    for precision, scores in found["best_validation_mrr"].items():
        yield f"| {precision} | {', '.join(f'{score:.4f}' for score in scores)} | {sum(scores) / len(scores):.4f} |"
    yield ""


def _published(figures: Figures) -> Iterator[str]:
    if (found := figures.get("published_curve")) is None:
        return
    yield from ("## The published configuration", "")
    yield f"MKG-Y, branches {', '.join(found['branches'])}; seconds are training and validation since the start."
    yield from ("", "| epoch | seconds | validation MRR |", "|---:|---:|---:|")
    yield from (f"| {epoch} | {seconds:.1f} | {mrr:.4f} |" for epoch, seconds, mrr in found["epoch_seconds_mrr"])
    yield ""


def _sizes(figures: Figures) -> Iterator[str]:
    if (found := figures.get("sizes")) is None:
        return
    yield from ("## Cost against size", "", "![seconds against size](img/benchmarks-size.png)", "")
    yield "Generated graphs. Entities: d = 64, r = 32, 50 relations, 256 queries a step. Relations: d = r = 256, 15,000 "
    yield "entities, 1,024 queries a step."
    for name, columns in (("entities", _ENTITY_COLUMNS), ("relations", _RELATION_COLUMNS)):
        heads = [name if column == "size" else column.replace("_", " ") for column in columns]
        yield from ("", f"| {' | '.join(heads)} |", f"|{'---:|' * len(columns)}")
        yield from (f"| {' | '.join(_number(row[column]) for column in columns)} |" for row in found[name])
    yield ""


def _gpu(known: Figures) -> Iterator[str]:
    if (found := known.get("gpu")) is None:
        return
    yield from (f"## On a GPU: {found['card']}", "")
    yield f"torch {found['torch']}, CUDA {found['cuda']}; absolute times. MFU: share of the card's dense peak in that "
    yield "precision, fp32 without TF32. `agreement`: largest difference from the CPU, relative for loss and gradients."
    yield from ("", "| measurement | figures |", "|---|---|")
    shown = ("loss", "gradient", "ranks_differing", "milliseconds", "milliseconds_in_flow", "kernels", "busy_milliseconds",
             "synchronisations", "seconds", "fastest", "mfu", "peak_gib", "queries_per_second", "epoch_seconds", "steps",
             "validation_seconds", "validation_queries", "epochs_per_second")
    for name, row in found["figures"].items():
        if "error" in row:
            yield f"| {name} | failed: {row['error'].strip().splitlines()[-1] or 'see benchmarks_gpu.json'} |"
        else:
            yield f"| {name} | {_raw({key: row[key] for key in shown if key in row})} |"
    yield ""


def _machine(item: Figures) -> str:
    host = item["machine"]
    return f"{host['cpu']}, {host['cores']} cores, Python {host['python']}, torch {host['torch']}, {item['date']}"


def _raw(raw: Figures) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in raw.items() if key != "settings")


def _number(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(_number, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
