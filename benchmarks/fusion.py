"""Time and memory of `meta` against `meta_cp` against the textbook form, which builds a weight for each item.

    python -m benchmarks.fusion                                                      # results/fusion.md and fusion.json
    python -m benchmarks.fusion --parts ../shared/data/MKG-Y --parts unicode         # the operators, fusion_parts.json

A step is forward and backward over all items, one thread, each in a process of its own; the forms take turns, so that what else
the machine does meets all of them. Time is that of the processor. A figure is kept in `--cache` as soon as it is there, so that
an interrupted run goes on where it stopped.

Shapes: `N` items, `F` features, `S` meta width, `Q` CP rank, `I` and `O` widths into and out of a layer.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional

from benchmarks import fusion_parts
from benchmarks.speed import memory_gib
from imf_core.model.fusion.meta_layers import CpLayer, DynamicLayer, MetaStack
from imf_core.runtime import free_memory

REPOSITORY = Path(__file__).resolve().parents[1]
FORMS = ("textbook", "meta", "meta_cp")
ITEMS = (10**3, 10**4, 10**5)
GIB = 2**30
LONG = 60.0  # seconds: a row with a longer step has one round
Run = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What is computed.

    Args:
        title: of its table.
        widths: F, hidden layers, result.
        trained: the features are trained vectors, as in IMF; otherwise frozen ones.
        meta_dim, meta_hidden, cp_rank: S, hidden width of the meta information, Q.
    """

    title: str
    widths: tuple[int, ...]
    trained: bool
    meta_dim: int = 5
    meta_hidden: int = 64
    cp_rank: int = 16


SETUPS = {
    "imf": Setup("Fusion in IMF: three views of 128, trained", (384, 128, 128), True),
    # 2,048 of a picture, 128 of sound, 100 of text
    "movielens": Setup("MetaMMF on MovieLens: its four layers, frozen features", (2276, 1024, 512, 256, 32), False),
}


def made(setup: Setup, form: str) -> MetaStack:
    """The layers; `textbook` has the parameters of `meta`."""
    torch.manual_seed(0)
    layer = partial(DynamicLayer, meta_dim=setup.meta_dim)
    if form == "meta_cp":
        layer = partial(CpLayer, meta_dim=setup.meta_dim, rank=setup.cp_rank)
    return MetaStack(setup.widths, layer, setup.meta_dim, setup.meta_hidden)


def textbook(stack: MetaStack, features: Tensor) -> Tensor:
    """`h W_i` with `W_i = W + T x_3 s_i` (N, I, O) as the formula says; the numbers are those of `stack(features)`."""
    signal = stack.meta(features)
    rows = features
    for place, layer in enumerate(stack.layers):
        if place:
            rows = functional.leaky_relu(rows)
        weights = layer.static + (signal @ layer.tensors.flatten(1)).view(len(rows), *layer.static.shape)
        rows = torch.bmm(rows[:, None, :], weights)[:, 0]
    return rows


def textbook_bytes(setup: Setup, items: int) -> int:
    """What the weights of all items take in a step: each layer's is kept for the backward pass, one has its gradient too."""
    sizes = [into * out for into, out in pairwise(setup.widths)]
    return 4 * items * (sum(sizes) + max(sizes))


def measure(setup: Setup, form: str, items: int) -> Run:
    """One step: seconds by the processor's clock and the wall's, and the resident memory that it adds at its peak, GiB."""
    torch.set_num_threads(1)
    stack = made(setup, form)
    forward = partial(textbook, stack) if form == "textbook" else stack
    features = torch.randn(items, setup.widths[0], generator=torch.Generator().manual_seed(1)).requires_grad_(setup.trained)
    towards = torch.randn(items, setup.widths[-1], generator=torch.Generator().manual_seed(2))
    (forward(features[:1]) * towards[:1]).sum().backward()  # libraries are loaded
    stack.zero_grad()
    features.grad = None
    before = memory_gib("VmRSS")
    wall, processor = time.perf_counter(), time.process_time()
    (forward(features) * towards).sum().backward()
    seconds = {"seconds": time.process_time() - processor, "wall_seconds": time.perf_counter() - wall}
    return {**seconds, "gib": max(0.0, memory_gib("VmHWM") - before)}


def apart(setup: Setup, form: str, items: int) -> Run:
    """`measure` in a process of its own."""
    asked = json.dumps([asdict(setup), form, items])
    command = [sys.executable, "-m", "benchmarks.fusion", "--one", asked]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    found: Run = json.loads(done.stdout)
    return found


def code_state() -> str:
    """Digest of the measured code and of the measuring one."""
    measured = (REPOSITORY / "imf_core/model/fusion/meta_layers.py").read_text(encoding="utf-8")
    sources = [measured, *(inspect.getsource(function) for function in (made, textbook, measure))]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:12]


def compare(
    setups: Sequence[Setup], items: Sequence[int], rounds: int, limit: float, cache: Path, code: str
) -> list[dict[str, Any]]:
    """A row for each setup and number of items: what each form takes, the least of some rounds, and the ratios.

    Args:
        setups: what is computed. items: N of each row.
        rounds: processes for each figure.
        limit: GiB; a textbook step that needs more is not tried.
        cache: finished figures, one JSON line each.
        code: state of the code that is measured; figures of another one are measured anew.
    """
    known = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()] if cache.exists() else []
    rows = []
    for setup in setups:
        for count in items:
            needed = textbook_bytes(setup, count) / GIB
            row: dict[str, Any] = {"setup": asdict(setup), "items": count, "textbook_weights_gib": needed, "forms": {}}
            runs: dict[str, list[Run]] = {form: [] for form in FORMS if form != "textbook" or needed <= limit}
            for turn in range(rounds):
                for form, own in runs.items():
                    asked = json.loads(json.dumps(asdict(setup)))
                    key = {"setup": asked, "form": form, "items": count, "turn": turn, "code": code}
                    run = next((item["run"] for item in known if item["key"] == key), None)
                    if run is None:
                        run = apart(setup, form, count)
                        cache.parent.mkdir(parents=True, exist_ok=True)
                        with cache.open("a", encoding="utf-8") as file:
                            file.write(json.dumps({"key": key, "run": run}) + "\n")
                        print(f"{setup.title}; {count:,} items, {form}: {run}", flush=True)
                    own.append(run)
                if max(run["seconds"] for own in runs.values() for run in own) > LONG:
                    break
            for form, own in runs.items():
                row["forms"][form] = {name: min(run[name] for run in own) for name in own[0]} | {"runs": own}
            row["ratios"] = {
                f"{what}_{left}_to_{right}": row["forms"][left][what] / max(row["forms"][right][what], 1e-9)
                for left, right in (("textbook", "meta"), ("meta", "meta_cp"), ("textbook", "meta_cp"))
                for what in ("seconds", "gib") if left in row["forms"]
            }
            rows.append(row)
    return rows


def page(found: dict[str, Any]) -> str:
    """The tables in Markdown."""
    host, rounds = found["machine"], found["rounds"]
    lines = [
        "# Fusion with weights of each item's own",
        "",
        "A step (forward and backward over all items) of MetaMMF's layers: `textbook` builds the weight `W_i` of each item, "
        "`meta` gives the same numbers without it, `meta_cp` factors the meta learner. Seconds are those of the processor, one "
        f"thread; memory is what the step adds to the process at its peak. The least of {rounds} rounds (one, where a step "
        "takes over a minute), in which the forms take turns, each in a process of its own. A textbook step that does not fit "
        "is not run: in its place stands what its weights alone would take, by arithmetic.",
    ]
    for title in dict.fromkeys(row["setup"]["title"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["setup"]["title"] == title]
        setup = rows[0]["setup"]
        widths = " → ".join(map(str, setup["widths"]))
        lines += [
            "", f"## {title}", "", f"Widths {widths}; S = {setup['meta_dim']}, Q = {setup['cp_rank']}.", "",
            "| items | seconds: textbook | meta | meta_cp | textbook : meta | meta : meta_cp "
            "| memory, MiB: textbook | meta | meta_cp | textbook : meta | meta : meta_cp |",
            "|---:|" + "---:|" * 10,
            *(_line(row) for row in rows),
        ]
    return "\n".join([
        *lines, "",
        f"Command: `{found['command']}`; {host['cpu']}, {host['cores']} cores, Python {host['python']}, torch {host['torch']}; "
        f"{found['date']}. Other programs may have run beside it: the wall seconds in fusion.json say how much. Not measured: "
        "a GPU, the optimizer's step, other ranks.", "",
    ])


def _line(row: dict[str, Any]) -> str:
    cells = [f"{row['items']:,}"]
    for what, scale, digits in (("seconds", 1, 3), ("gib", 1024, 0)):
        skipped = "not run" if what == "seconds" else f"(weights: {row['textbook_weights_gib'] * scale:,.0f})"
        cells += [
            f"{row['forms'][form][what] * scale:,.{digits}f}" if form in row["forms"] else skipped for form in FORMS
        ]
        ratios = [row["ratios"].get(f"{what}_{pair}") for pair in ("textbook_to_meta", "meta_to_meta_cp")]
        cells += ["-" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
    return "| " + " | ".join(cells) + " |"


def write(out: Path, rows: list[dict[str, Any]], rounds: int) -> None:
    """`fusion.json` with all figures and `fusion.md` with the tables."""
    from tune.report.files import machine

    found = {
        "machine": machine(), "date": str(date.today()), "command": "python -m benchmarks.fusion", "threads": 1,
        "rounds": rounds, "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "fusion.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page(out)


def write_parts(out: Path, rows: list[dict[str, Any]], seeds: int, command: str, settings: Sequence[str]) -> None:
    """`fusion_parts.json` with all figures, and their section of `fusion.md`."""
    from tune.report.files import machine

    found = {
        "machine": machine(), "date": str(date.today()), "command": command, "settings": list(settings), "seeds": seeds,
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "fusion_parts.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page(out)


def write_page(out: Path) -> None:
    """`fusion.md` from the figures in the folder."""
    (out / "fusion.md").write_text(whole_page(out), encoding="utf-8")


def whole_page(folder: Path) -> str:
    """The page of the figures in a folder: those of `fusion.json`, then those of `fusion_parts.json`."""
    parts = []
    for name, made in (("fusion.json", page), ("fusion_parts.json", fusion_parts.section)):
        if (folder / name).exists():
            parts.append(made(json.loads((folder / name).read_text(encoding="utf-8"))))
    return "\n".join(parts)


def main(
    out: Annotated[Path, typer.Option(help="Folder to write fusion.md and fusion.json to.")] = Path("results"),
    rounds: Annotated[int, typer.Option(min=1, help="Processes for each figure; the least counts.")] = 3,
    limit: Annotated[float | None, typer.Option(help="GiB a textbook step may need; default: half of what is free.")] = None,
    cache: Annotated[Path, typer.Option(help="Finished figures, one JSON line each.")] = Path(".cache/fusion.jsonl"),
    parts: Annotated[list[str] | None, typer.Option(
        help="Measure the operators and auxiliary losses on this graph instead. Repeatable."
    )] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Of each row of --parts.")] = 3,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A setting of all runs of --parts. Repeatable.")] = None,
    variants: Annotated[list[str] | None, typer.Option("--variant", help="A row of --parts; default: all.")] = None,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
    one_part: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure, and write the tables."""
    if one_part is not None:
        print(json.dumps(fusion_parts.one_part(one_part)))
        return
    if parts:
        chosen = (*fusion_parts.SETTINGS, *(settings or ()))
        rows = fusion_parts.compare(parts, seeds, cache.with_name("fusion_parts.jsonl"), chosen, variants or ())
        told = "".join(f" --parts {item}" for item in parts) + "".join(f" --set {item}" for item in settings or ())
        write_parts(out, rows, seeds, f"python -m benchmarks.fusion{told}", chosen)
        print(f"written: {out / 'fusion.md'}")
        return
    if one is not None:
        setup, form, items = json.loads(one)
        print(json.dumps(measure(Setup(**{**setup, "widths": tuple(setup["widths"])}), form, items)))
        return
    most = limit if limit is not None else 0.5 * (free_memory() or 8 * GIB) / GIB
    write(out, compare(list(SETUPS.values()), ITEMS, rounds, most, cache, code_state()), rounds)
    print(f"written: {out / 'fusion.md'}")


if __name__ == "__main__":
    typer.run(main)
