"""How long reading a graph takes, and how much memory: FB15K237, and a generated graph of 20 million triples in each format.

    python -m benchmarks.reading          # writes results/reading.md

Each graph is read by `read_graph` in a process of its own, as a search reads it: names numbered, repeats merged, a validation
split set aside. A figure is kept in `--cache` as soon as it is there, so that an interrupted run goes on where it stopped.
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

REPOSITORY = Path(__file__).resolve().parents[1]
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
# Not getrusage: its peak begins with that of the process that started this one.
peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps({
    "seconds": done - loaded, "import_seconds": loaded - started,
    "peak_gib": peak / 2**20,
    "entities": graph.num_entities, "relations": graph.num_relations, "train": len(graph.train), "valid": len(graph.valid),
}))
"""


def generate(folder: Path, target: str, triples: int = TRIPLES, entities: int = ENTITIES, relations: int = RELATIONS) -> Path:
    """Write a random graph in which some entities stand in many lines; returns its file of triples.

    Args:
        folder: where to.
        target: `tsv`, `openke` (which brings its two lists along) or `nt`.
        triples, entities, relations: how many.
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
    """Read a graph folder in a new process: seconds, peak resident memory in GiB, and what was found."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(folder)], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("results/reading.md"),
    cache: Annotated[Path, typer.Option(help="Finished figures, one JSON line each.")] = Path(".cache/reading.jsonl"),
    shared: Annotated[Path, typer.Option(help="Folder whose data/FB15K237 is read.")] = Path("../shared"),
    triples: Annotated[int, typer.Option(min=1, help="Lines of the generated graph.")] = TRIPLES,
    repeats: Annotated[int, typer.Option(min=1, help="Readings of each graph; the middle one is told.")] = 3,
) -> None:
    """Measure, and write the table."""
    found = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()] if cache.exists() else []

    def once(graph: str, prepare: Callable[[Path], Path]) -> dict[str, Any]:
        known = next((run for run in found if run["graph"] == graph and run["repeats"] == repeats), None)
        if known is not None:
            return known
        with tempfile.TemporaryDirectory() as place:
            started = time.perf_counter()
            folder = prepare(Path(place))
            written = time.perf_counter() - started
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            runs = sorted((measure(folder) for _ in range(repeats)), key=lambda run: float(run["seconds"]))
        middle = runs[len(runs) // 2] | {"peak_gib": max(run["peak_gib"] for run in runs)}
        run = {"graph": graph, "repeats": repeats, **middle, "megabytes": size / 1e6, "date": str(date.today())}
        print(f"{graph}: {run['seconds']:.1f} s, {run['peak_gib']:.2f} GiB (written in {written:.0f} s)", flush=True)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
        return run

    rows = []
    fb15k237 = shared / "data" / "FB15K237"
    if fb15k237.is_dir():
        rows.append(("FB15K237, OpenKE ids", once("FB15K237", lambda _: fb15k237.resolve())))
    for target, name in FORMATS.items():
        made = once(f"{triples} {target}", lambda place, to=target: generate(place, to, triples).parent)
        rows.append((f"generated, {name}", made))
    out.write_text(_page(rows, repeats), encoding="utf-8")
    print(f"written: {out}")


def _page(rows: list[tuple[str, dict[str, Any]]], repeats: int) -> str:
    from tune.report.files import machine

    host = machine()
    threads = os.environ.get("OMP_NUM_THREADS")
    return "\n".join([
        "# Reading graphs",
        "",
        "`read_graph` of a folder, files in the page cache, in a process of its own: lines split and checked, names numbered, "
        "repeats merged; the generated graphs bring no validation split, so one is set aside from train. Seconds are the "
        f"middle of {repeats} readings, memory is the largest resident set of the process.",
        "",
        "| graph | entities | triples | MB on disk | seconds | peak memory, GiB |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {name} | {run['entities']:,} | {run['train'] + run['valid']:,} | {run['megabytes']:,.0f} "
            f"| {run['seconds']:.1f} | {run['peak_gib']:.2f} |"
            for name, run in rows
        ),
        "",
        f"Command: `python -m benchmarks.reading`; {host['cpu']}, {host['cores']} cores, Python {host['python']}"
        + (f", OMP_NUM_THREADS={threads}" if threads else "") + f"; {rows[-1][1]['date']}.",
        "",
    ])


if __name__ == "__main__":
    typer.run(main)
