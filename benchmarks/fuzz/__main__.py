"""Hostile inputs through every reader: each is read, or refused with an error for users, within 10 s and 1 GiB.

    make fuzz        # or: python -m benchmarks.fuzz --inputs 10000 --seed 0; writes results/fuzz.md

Each batch runs in a process of its own, whose memory is limited and which is ended where it hangs.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.fuzz.damage import drawn
from benchmarks.fuzz.kinds import KINDS, Kind, copied
from benchmarks.results import REPOSITORY, host_line
from imf_core.encode.image.pictures import PictureError
from imf_core.errors import ImfError
from imf_core.files.markdown import table

SECONDS, MEMORY = 10, 2**30  # that an input may take
_BATCH = 1000
_SHOWN = 5  # faults that are printed of a kind


@dataclass
class Tally:
    """What became of the inputs of a kind.

    Args:
        refused, read: of the inputs that were tried.
        faults: by what went wrong, `traceback`, `hang` or `died`, with the seed of the input and the end of the traceback.
        peak: memory beyond that of the process before its first input, MiB.
    """

    refused: int = 0
    read: int = 0
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    peak: float = 0.0

    @property
    def tried(self) -> int:
        """All inputs."""
        return self.refused + self.read + len(self.faults)

    def count(self, fault: str) -> int:
        """Faults of a kind."""
        return sum(kind == fault for kind, _, _ in self.faults)

    def add(self, other: Tally) -> None:
        """Take in another batch."""
        self.refused, self.read, self.peak = self.refused + other.refused, self.read + other.read, max(self.peak, other.peak)
        self.faults += other.faults


class Hang(BaseException):
    """An input took too long."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*arguments: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_inputs(kind: Kind, seeds: range, place: Path, seconds: float = SECONDS, began: Path | None = None) -> Tally:
    """Read damaged files in this process.

    Args:
        kind: of the inputs.
        seeds: one for each input.
        place: for the files.
        seconds: that an input may take.
        began: gets the seed of each input before it is read.
    """
    tally, whole = Tally(), place / "whole"
    if not whole.exists():
        whole.mkdir(parents=True)
        kind.make(whole)
    kind.read(copied(kind, whole, place / "input"))
    before = _memory("VmRSS")
    for seed in seeds:
        _damage(kind, copied(kind, whole, place / "input"), seed)
        if began is not None:
            began.write_text(str(seed))
        try:
            with _alarm(seconds):
                kind.read(place / "input")
            tally.read += 1
        except (ImfError, PictureError):
            tally.refused += 1
        except Hang:
            tally.faults.append(("hang", f"{kind.name}, seed {seed}", ""))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            end = f"{type(error).__name__}: {str(error)[:150]} ({Path(where.filename).name}:{where.lineno})"
            tally.faults.append(("traceback", f"{kind.name}, seed {seed}", end))
    tally.peak = max(0.0, (_memory("VmHWM") - before) / 2**20)
    return tally


def _damage(kind: Kind, folder: Path, seed: int) -> None:
    """Damage one file of a kind, or put something else in its place."""
    draw = random.Random(f"{kind.name} {seed}")
    name = draw.choice(kind.files)
    file = next(path for path in (folder / name, folder / "images" / name) if path.exists())
    way = draw.random()
    if way > 0.04:
        file.write_bytes(drawn(file.read_bytes(), name, draw))
        return
    file.unlink()
    if way < 0.01:
        file.mkdir()
    elif way < 0.02:
        file.symlink_to(file.name)
    elif way < 0.03:
        os.mkfifo(file)


def _memory(name: str) -> int:
    """A figure of this process, bytes."""
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else 0


def _child(kind: Kind, seeds: range, place: Path) -> None:
    """A batch, with limited memory; prints its tally."""
    whole = place / "whole"
    if not whole.exists():
        whole.mkdir(parents=True)
        kind.make(whole)
    kind.read(copied(kind, whole, place / "input"))
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + MEMORY,) * 2)
    print(json.dumps(asdict(try_inputs(kind, seeds, place, began=place / "began"))))


def try_apart(kind: Kind, seeds: range, place: Path) -> Tally:
    """Read damaged files in processes that are ended where they hang, and begun again behind what ended them."""
    tally = Tally()
    while len(seeds):
        (place / "began").unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.fuzz", "--child", kind.name, "--place", str(place)]
        command += ["--seed", str(seeds.start), "--inputs", str(len(seeds))]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        fault = "died"
        try:
            out, error = process.communicate(timeout=60 + SECONDS + len(seeds))
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            fault = "hang"
        if process.returncode == 0:
            values = json.loads(out.splitlines()[-1])
            tally.add(Tally(values["refused"], values["read"], [tuple(item) for item in values["faults"]], values["peak"]))
            return tally
        if not (place / "began").exists():
            raise RuntimeError(f"no input of {kind.name} could be tried: {error}")
        last = int((place / "began").read_text())
        tally.faults.append((fault, f"{kind.name}, seed {last}", f"exit {process.returncode}: {error[-300:]}"))
        seeds = range(last + 1, seeds.stop)
    return tally


def main(
    inputs: Annotated[int, typer.Option(help="How many, over all kinds.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the first input of each kind.")] = 0,
    only: Annotated[str, typer.Option(help="Only kinds whose name has this in it.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where the table goes; default: results/fuzz.md, for all kinds.")] = None,
    child: Annotated[str, typer.Option(hidden=True)] = "",
    place: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Try hostile inputs; exit 1 if one ends in a traceback or hangs."""
    if child and place is not None:
        _child(next(kind for kind in KINDS if kind.name == child), range(seed, seed + inputs), place)
        return
    began, shares = time.monotonic(), sum(kind.share for kind in KINDS)
    tallies: dict[str, Tally] = {}
    for kind in [kind for kind in KINDS if only in kind.name]:
        tally, count = Tally(), max(1, round(inputs * kind.share / shares))
        with tempfile.TemporaryDirectory() as folder:
            for start in range(seed, seed + count, _BATCH):
                tally.add(try_apart(kind, range(start, min(start + _BATCH, seed + count)), Path(folder)))
        tallies[kind.name] = tally
        print(f"{kind.name}: {tally.tried:,} tried, {tally.refused:,} refused, {tally.read:,} read", flush=True)
        for fault in tally.faults[:_SHOWN]:
            print(f"  {' | '.join(fault)}", flush=True)
    lines = _page(tallies, seed, time.monotonic() - began)
    if out is None and not only:
        out = REPOSITORY / "results" / "fuzz.md"
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any(tally.faults for tally in tallies.values()):
        raise typer.Exit(1)


def _page(tallies: dict[str, Tally], seed: int, seconds: float) -> list[str]:
    from tune.report.files import machine

    total = Tally()
    for tally in tallies.values():
        total.add(Tally(tally.refused, tally.read, list(tally.faults), tally.peak))
    rows = [
        [
            name,
            f"{tally.tried:,}",
            f"{tally.refused:,}",
            f"{tally.read:,}",
            str(tally.count("traceback") + tally.count("died")),
            str(tally.count("hang")),
            f"{tally.peak:,.0f}",
        ]
        for name, tally in {**tallies, "all": total}.items()
    ]
    command = f"make fuzz FUZZ_FLAGS='--inputs {total.tried} --seed {seed}'"
    return [
        "# Hostile inputs",
        "",
        "Whole files of each kind, of which one is damaged, forged or replaced (a folder, a link to itself, a pipe), go "
        "through the readers that commands and searches use. Right is: read, or refused by an error with the file and a "
        f"remedy, within {SECONDS} s. Batches of {_BATCH} run in processes of their own with {MEMORY / 2**30:.0f} GiB beyond "
        "what the process had before its first input; peak memory is the resident set beyond that.",
        "",
        *table(["kind", "tried", "refused", "read", "tracebacks", "hangs", "peak memory, MiB"], rows),
        f"Command: `{command}`; {host_line(machine())}; {seconds / 60:.0f} minutes; {date.today()}.",
    ]


if __name__ == "__main__":
    typer.run(main)
