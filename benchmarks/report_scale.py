"""Writes results/scale.md and results/scale.json: what was measured, what follows for a large search, what gives way first."""

from __future__ import annotations

import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.scale import EPOCHS, NODES, TRIALS, Driver, simulate

EPOCH_SECONDS = (1.0, 5.0, 20.0, 60.0)
SLOTS = (NODES, 4 * NODES)
WRITE_SECONDS = (0.0, 10.0, 60.0)


def parts(measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds of the driver by event and by what takes them, with a full history."""
    books, tune, late = measured["bookkeeping"], measured["tune"], f", after {measured['trials']} trials"
    server = measured[f"mlflow, server with {measured['trials']} runs"]
    cost = {
        "report": {
            "Ray Tune": tune["report"], "journal": books["journal, report" + late], "early stopping": books["rungs" + late],
            "MLflow": server["epoch"],
        },
        "trial": {
            "Ray Tune": tune["trial"], "sampler and journal": books["draw" + late] + books["journal, end" + late],
            "records": books["ledger, end" + late], "MLflow": server["begin"] + server["end"],
        },
        "further epoch": {"MLflow": max(0.0, (server["30 epochs at once"] - server["epoch"]) / 29)},
        "snapshot": {"Ray Tune": tune[f"snapshot, {measured['trials']} trials"]},
    }
    return {event: {name: value / 1000 for name, value in by.items()} for event, by in cost.items()}


def driver(cost: dict[str, dict[str, float]], write_seconds: float) -> Driver:
    """The driver of the simulation with these costs."""
    report, trial = cost["report"], cost["trial"]
    half = sum(trial.values()) / 2
    return Driver(
        report=sum(report.values()) - report["MLflow"], begin=half, end=half, write=report["MLflow"],
        write_more=cost["further epoch"]["MLflow"], write_seconds=write_seconds, snapshot=sum(cost["snapshot"].values()),
    )


def shares(cost: dict[str, dict[str, float]], epoch_seconds: float, slots: int = NODES) -> dict[str, float]:
    """Seconds of the driver for each second of the search, by what takes them, if nothing had to wait."""
    reports = slots / epoch_seconds
    trials = reports / ((EPOCHS + 2 * 4) / 3)
    found = {f"{name}, reports": reports * value for name, value in cost["report"].items()}
    found |= {f"{name}, trials": trials * value for name, value in cost["trial"].items()}
    found["Ray Tune, snapshots every second"] = sum(cost["snapshot"].values())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def simulated(cost: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Every case; `ideal` is a driver that takes no time."""
    rows = []
    for slots in SLOTS:
        for seconds in EPOCH_SECONDS:
            ideal = simulate(Driver(0.0, 0.0, 0.0, 0.0), seconds, TRIALS, slots)["hours"]
            for write_seconds in WRITE_SECONDS:
                found = simulate(driver(cost, write_seconds), seconds, TRIALS, slots)
                rows.append({
                    "slots": slots, "epoch_seconds": seconds, "track_seconds": write_seconds, "ideal_hours": ideal, **found,
                })
    return rows


def write_scale(measured: dict[str, Any], folder: Path | None) -> str:
    """Compose the page; write it and the figures unless there is no folder."""
    cost = parts(measured)
    rows = simulated(cost)
    text = page(measured, cost, rows)
    if folder is None:
        print(text)
        return text
    figures = {"measured_ms": measured, "simulated": rows, "shares_at_5s": shares(cost, 5.0), "machine": machine()}
    (folder / "scale.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "scale.md").write_text(text, encoding="utf-8")
    return text


def machine() -> str:
    """Processor, cores, Python."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0]}, {len(names)} cores, Python {platform.python_version()}, {date.today().isoformat()}"


def page(measured: dict[str, Any], cost: dict[str, dict[str, float]], rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    books, trials = measured["bookkeeping"], measured["trials"]
    direct, server, full = (
        measured["mlflow, database file"], measured["mlflow, server"], measured[f"mlflow, server with {trials} runs"]
    )
    lines = [
        f"# {TRIALS:,} trials on {NODES} nodes", "",
        "One process, the driver on the head, hears every report of every trial, one after the other. What each event costs it",
        "was measured; what that means for a large search was computed from it, not tried: there were no 100 nodes.", "",
        f"Command: `python -m benchmarks.scale`; {machine()}. Milliseconds that the fastest fifth of calls stays",
        "below: other programs ran beside it.", "",
        f"| event | part | with nothing before | after {trials:,} trials |", "|---|---|---:|---:|",
    ]
    named = {
        "draw": ("trial", "sampler (TPE) and journal: a point"), "journal, end": ("trial", "journal and study: its end"),
        "ledger, end": ("trial", "records: all written anew"), "journal, report": ("report", "journal, to the disk (fsync)"),
        "rungs": ("report", "early stopping"),
    }
    for name, (event, said) in named.items():
        early, late = books[f"{name}, at the beginning"], books[f"{name}, after {trials} trials"]
        lines.append(f"| {event} | {said} | {early:.2f} | {late:.2f} |")
    for name, event in (("begin", "trial"), ("end", "trial"), ("epoch", "report"), ("30 epochs at once", "")):
        said = f"MLflow, server on loopback: {name} (database file without a server: {direct[name]:.1f})"
        lines.append(f"| {event} | {said} | {server[name]:.1f} | {full[name]:.1f} |")
    tune = measured["tune"]
    few, many = tune["snapshot, few trials"], tune[f"snapshot, {trials} trials"]
    lines += [
        f"| report | Ray Tune's loop | {tune['report']:.1f} | |", f"| trial | Ray Tune's loop | {tune['trial']:.1f} | |",
        f"| snapshot | Ray Tune's experiment state | {few:.1f} | {many:.1f} |",
        "", "## What gives way first", "",
        f"Seconds of the driver for each second; {NODES} trials at a time, epochs of 5 s, each written to MLflow (1.0 is all):",
        "", "| part | s/s |", "|---|---:|",
    ]
    taken = shares(cost, 5.0)
    lines += [f"| {name} | {value:.3f} |" for name, value in taken.items() if value >= 0.001]
    lines += [f"| together | {sum(taken.values()):.3f} |", "", *conclusions(measured, taken), "## Simulated", ""]
    lines += [
        "`busy`: of the driver; `waiting`: share of the trials' time spent waiting for it; ideal: a driver without cost.", "",
        "| trials at a time | epoch, s | `--track-seconds` | hours (ideal) | busy | waiting | MLflow writes/s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        hours = f"{row['hours']:.2f} ({row['ideal_hours']:.2f})"
        share = f"{100 * row['busy']:.0f} % | {100 * row['waiting']:.0f} %"
        lines.append(
            f"| {row['slots']} | {row['epoch_seconds']:.0f} | {row['track_seconds']:.0f} | {hours} | {share} "
            f"| {row['writes_per_second']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def conclusions(measured: dict[str, Any], taken: dict[str, float]) -> list[str]:
    """What the figures say, in words."""
    trials = measured["trials"]
    books, server = measured["bookkeeping"], measured[f"mlflow, server with {trials} runs"]
    first, second = list(taken)[:2]
    draws = (books["draw, at the beginning"] + books[f"draw, after {trials} trials"]) / 2 * trials / 1000
    once, ends, point = server["30 epochs at once"], server["begin"] + server["end"], books[f"draw, after {trials} trials"]
    return [
        f"**First comes {first}, then {second}.** What lifts the first is `--track-seconds` (on a cluster 60, unless given):",
        f"the epochs of so many seconds go to MLflow in one write, 30 of them in {once:.0f} ms instead of 30 times",
        f"{server['epoch']:.0f} ms. A trial's beginning and end stay ({ends:.0f} ms together), so that a search whose trials",
        "last seconds is bound by them: give it longer trials, or fewer at a time. Nothing is lost where the driver is late;",
        "trials wait for it.", "",
        "- **MLflow's database**: SQLite behind a server of two processes takes about "
        f"{1000 / server['epoch']:.0f} writes of one epoch a second.",
        f"- **Optuna**: the study is in memory; a point after {trials:,} trials takes {point:.0f} ms. Going on with an",
        f"  interrupted study of that length draws all its points again: about {draws:.0f} s before the first trial.",
        f"- **Journal**: {books['journal, MB']:.1f} MB; a disk that takes longer for an fsync than the one measured adds that",
        "  to each report.",
        "- **Object store**: no data of ours passes through it. A node maps the prepared arrays from the shared folder.",
        "- **Not measured**: Ray's own servers with 100 nodes, the network, a shared folder by NFS, PostgreSQL for MLflow.", "",
    ]
