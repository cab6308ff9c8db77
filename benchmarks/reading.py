"""Time and memory for reading graphs: FB15K237, and a generated graph of 20 million triples in each format.

    python -m benchmarks.reading          # writes results/reading.md

`read_graph` reads each graph in a new process, as a search does: it numbers names, merges duplicates and splits off a
validation set. An interrupted benchmark continues from the runs in `--cache`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.results import REPOSITORY, FinishedRuns
from imf_core.files.markdown import table

TRIPLES, ENTITIES, RELATIONS = 20_000_000, 2_000_000, 500
FORMATS = {"tsv": "tab-separated names", "openke": "OpenKE ids", "nt": "N-Triples"}
_READ = r"""
import json, re, sys, time
from pathlib import Path
started = time.perf_counter()
from imf_core.data.formats.readers import read_graph
loaded = time.perf_counter()
graph = read_graph(sys.argv[1])
done = time.perf_counter()
# Not getrusage: its peak includes that of the parent process.
peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps({
    "seconds": done - loaded, "import_seconds": loaded - started,
    "peak_gib": peak / 2**20,
    "entities": graph.num_entities, "relations": graph.num_relations, "train": len(graph.train), "valid": len(graph.valid),
}))
"""


def generate(folder: Path, target: str, triples: int = TRIPLES, entities: int = ENTITIES, relations: int = RELATIONS) -> Path:
    """Write a random graph in which some entities are much more frequent than others; returns its file of triples.

    Args:
        folder: of the graph.
        target: `tsv`, `openke` (with its two lists of names) or `nt`.
        triples, entities, relations: size of the graph.
    """
    from imf_core.data.formats.vocabularies import list_files
    from imf_core.data.formats.writers import Target, write_splits
    from imf_core.data.graph.graph import Vocabulary

    draw = np.random.default_rng(0)
    rows = np.empty((triples, 3), np.int64)
    rows[:, 0] = draw.random(triples) ** 2 * entities
    rows[:, 1] = draw.random(triples) ** 3 * relations
    rows[:, 2] = draw.random(triples) ** 3 * entities
    names = [tuple(f"{kind} {number:,}" for number in range(count)) for kind, count in
             (("entity", entities), ("relation", relations))]
    write_splits(folder, Target(target), Vocabulary(names[0]), Vocabulary(names[1], "relation"), {"train": rows})
    if target != "openke":
        for kind in ("entity", "relation"):
            (folder / list_files(kind)[0]).unlink()
    return next(folder.glob("train*"))


def measure(folder: Path) -> dict[str, Any]:
    """Read a graph in a new process: seconds, peak resident memory in GiB, and the size of the graph."""
    process = subprocess.run(
        [sys.executable, "-c", _READ, str(folder)], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    figures: dict[str, Any] = json.loads(process.stdout)
    return figures


def main(
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("results/reading.md"),
    cache: Annotated[Path, typer.Option(help="File of finished runs (JSON lines).")] = Path(".cache/reading.jsonl"),
    shared: Annotated[Path, typer.Option(help="Folder whose data/FB15K237 is read.")] = Path("../shared"),
    triples: Annotated[int, typer.Option(min=1, help="Number of triples of the generated graph.")] = TRIPLES,
    repeats: Annotated[int, typer.Option(min=1, help="Number of times that each graph is read; the median counts.")] = 3,
) -> None:
    """Read every graph and write the table."""
    finished = FinishedRuns(cache)

    def read(graph: str, prepare: Callable[[Path], Path]) -> dict[str, Any]:
        run = finished.find({"graph": graph, "repeats": repeats})
        if run is not None:
            return run
        with tempfile.TemporaryDirectory() as scratch:
            started = time.perf_counter()
            folder = prepare(Path(scratch))
            written = time.perf_counter() - started
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            runs = sorted((measure(folder) for _ in range(repeats)), key=lambda run: float(run["seconds"]))
        median = runs[len(runs) // 2] | {"peak_gib": max(run["peak_gib"] for run in runs)}
        run = {"graph": graph, "repeats": repeats, **median, "megabytes": size / 1e6, "date": str(date.today())}
        print(f"{graph}: {run['seconds']:.1f} s, {run['peak_gib']:.2f} GiB (written in {written:.0f} s)", flush=True)
        return finished.add(run)

    runs = {}
    fb15k237 = shared / "data" / "FB15K237"
    if fb15k237.is_dir():
        runs["FB15K237, OpenKE ids"] = read("FB15K237", lambda _: fb15k237.resolve())
    for target, name in FORMATS.items():
        run = read(f"{triples} {target}", lambda scratch, to=target: generate(scratch, to, triples).parent)
        runs[f"generated, {name}"] = run
    out.write_text(_page(runs, repeats), encoding="utf-8")
    print(f"written: {out}")


def _page(runs: dict[str, dict[str, Any]], repeats: int) -> str:
    from tune.report.files import machine

    host, threads = machine(), os.environ.get("OMP_NUM_THREADS")
    rows = [
        [name, f"{run['entities']:,}", f"{run['train'] + run['valid']:,}", f"{run['megabytes']:,.0f}", f"{run['seconds']:.1f}",
         f"{run['peak_gib']:.2f}"]
        for name, run in runs.items()
    ]
    return "\n".join([
        "# Reading graphs",
        "",
        "`read_graph` in a new process, with the files in the page cache: it splits and checks lines, numbers names, merges "
        "duplicates and, since the generated graphs have no validation split, splits one off. Seconds are the median of "
        f"{repeats} runs, memory is the peak resident set of the process.",
        "",
        *table(["graph", "entities", "triples", "MB on disk", "seconds", "peak memory, GiB"], rows),
        f"Command: `python -m benchmarks.reading`; {host['cpu']}, {host['cores']} cores, Python {host['python']}"
        + (f", OMP_NUM_THREADS={threads}" if threads else "") + f"; {list(runs.values())[-1]['date']}.",
        "",
    ])


if __name__ == "__main__":
    typer.run(main)
