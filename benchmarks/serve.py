"""`imf serve` under load: how long an answer takes, how many come in a second, and what the server holds afterwards.

    python -m benchmarks.serve          # writes results/serve.md and results/serve.json

A model of the bundled data set is trained for one epoch and served by a process of its own on this machine. Each request asks
one question, which nobody asked before, and each answer is compared with that of `Predictor`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.results import REPOSITORY, host_line
from imf_core.answers import Answer, Question
from imf_core.files.markdown import table
from imf_core.predict import Predictor

K = 10
TOLERANCE = 1e-5  # of a score, 0..1: a batch sums in another order than a question alone
_CLI = "from imf_core.cli import main; main()"


def trained(folder: Path, epochs: int, settings: Sequence[str]) -> Path:
    """A checkpoint of the bundled graph, trained anew in a process of its own."""
    out, options = folder / "best", [f"train.max_epochs={epochs}", *settings]
    command = [sys.executable, "-c", _CLI, "train", str(out), "--data", "unicode"]
    subprocess.run([*command, *(word for option in options for word in ("--set", option))], cwd=REPOSITORY, check=True)
    return out


@contextmanager
def served(checkpoint: Path) -> Iterator[tuple[psutil.Process, int]]:
    """A server on a free port, as a process and that port; it is stopped as a user stops it.

    Raises:
        RuntimeError: it did not start, or did not end well.
    """
    command = [sys.executable, "-c", _CLI, "serve", str(checkpoint), "--port", "0"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "500"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline() if select.select([process.stdout], [], [], 120)[0] else ""
        if "http://" not in line:
            raise RuntimeError(f"the server did not start: {line}")
        yield psutil.Process(process.pid), int(line.split("://")[1].split()[0].rpartition(":")[2])
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            raise RuntimeError(f"the server ended with status {process.returncode}")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def draw_questions(predictor: Predictor, count: int) -> list[Question]:
    """Different questions in both directions, from any entity and relation; the seed is fixed."""
    draw, entities, relations = random.Random(0), predictor.checkpoint.entities.names, predictor.checkpoint.relations.names
    chosen = draw.sample(range(2 * len(entities) * len(relations)), count)
    return [
        Question(entities[rest % len(entities)], relations[rest // len(entities)], None) if number % 2 else
        Question(None, relations[rest // len(entities)], entities[rest % len(entities)])
        for number in chosen for rest in (number // 2,)
    ]


async def ask(port: int, questions: Sequence[Question], connections: int) -> list[tuple[float, int, bytes]]:
    """Seconds, status (0: no answer) and body of each answer, in the order of the questions; a connection asks one by one."""
    results: list[tuple[float, int, bytes]] = [(0.0, 0, b"")] * len(questions)
    open_numbers = iter(range(len(questions)))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in open_numbers:
            body = json.dumps({"questions": [vars(questions[number])], "k": K}).encode()
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            started = time.perf_counter()
            writer.write(head.encode() + b"\r\n\r\n" + body)
            header = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(header.partition(b"content-length:")[2].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            results[number] = time.perf_counter() - started, int(header.split()[1]), answer
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(connections)), return_exceptions=True)
    return results


def is_right(status: int, body: bytes, wanted: Sequence[Answer]) -> bool:
    """Whether an answer names the wanted entities in their order with their scores; those that tie may change places."""
    if status != 200:
        return False
    answers = json.loads(body)["results"][0]["answers"]
    score = {answer.entity: answer.score for answer in wanted}
    return len(answers) == len(wanted) and all(
        abs(answer["score"] - one.score) <= TOLERANCE
        and (answer["entity"] == one.entity or abs(score.get(answer["entity"], one.score) - one.score) <= TOLERANCE)
        for answer, one in zip(answers, wanted, strict=True)
    )


def measure(
    process: psutil.Process, port: int, predictor: Predictor, questions: Sequence[Question], connections: int
) -> dict[str, Any]:
    """Send the questions over so many connections; figures of the answers and of the server around them."""
    def held() -> dict[str, float]:
        time.sleep(0.5)  # until the server has closed its ends, too
        cpu = process.cpu_times()
        return {
            "rss_mib": process.memory_info().rss / 2**20, "descriptors": process.num_fds(),
            "cpu_seconds": cpu.user + cpu.system,
        }

    before, started = held(), time.perf_counter()
    results = asyncio.run(ask(port, questions, connections))
    seconds = time.perf_counter() - started
    after = held()
    wanted = predictor.answers(questions, K)
    failed = sum(not is_right(status, body, one) for (_, status, body), one in zip(results, wanted, strict=True))
    cuts = statistics.quantiles([taken for taken, _, _ in results], n=100, method="inclusive")
    return {
        "connections": connections, "requests": len(questions), "failed": failed, "seconds": seconds,
        "p50_ms": 1000 * cuts[49], "p99_ms": 1000 * cuts[98], "requests_per_second": len(questions) / seconds,
        "cpu_ms": 1000 * (after["cpu_seconds"] - before["cpu_seconds"]) / len(questions), "before": before, "after": after,
    }


def main(
    out: Annotated[Path, typer.Option(help="Markdown file to write, with a .json beside it.")] = Path("results/serve.md"),
    requests: Annotated[int, typer.Option(min=2, help="Requests of each run.")] = 10_000,
    connections: Annotated[int, typer.Option(min=1, help="Connections of the second run; the first has one.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 1,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A setting of the model. Repeatable.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Serve this one instead of training.")] = None,
) -> None:
    """Train, serve, ask, and write the page."""
    from tune.report.files import machine

    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint or trained(Path(scratch), epochs, settings or [])
        predictor = Predictor.load(folder)
        questions = draw_questions(predictor, 2 * requests + 50)
        with served(folder) as (process, port):
            asyncio.run(ask(port, questions[2 * requests :], 1))  # what is loaded once is loaded
            runs = [
                measure(process, port, predictor, questions[:requests], 1),
                measure(process, port, predictor, questions[requests : 2 * requests], connections),
            ]
        model = predictor.checkpoint.model
        figures = {
            "runs": runs, "entities": model.num_entities, "relations": model.num_relations, "dim": model.config.dim,
            "options": f" --checkpoint {checkpoint}" if checkpoint else "", "host": machine(),
            "load_average": os.getloadavg()[0], "date": str(date.today()),
        }
    out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    out.write_text(page(figures), encoding="utf-8")
    print(f"written: {out}")


def page(figures: dict[str, Any]) -> str:
    """The page of the figures that `main` writes."""
    rows = [
        [str(run["connections"]), f"{run['requests']:,}", str(run["failed"]), f"{run['p50_ms']:.1f}", f"{run['p99_ms']:.1f}",
         f"{run['requests_per_second']:,.0f}", f"{run['cpu_ms']:.2f}",
         *(f"{run[when]['rss_mib']:,.0f}" for when in ("before", "after")),
         *(str(run[when]["descriptors"]) for when in ("before", "after"))]
        for run in figures["runs"]
    ]
    columns = [
        "connections", "requests", "failed", "p50, ms", "p99, ms", "requests/s", "CPU of the server, ms/request", "MiB before",
        "MiB after", "descriptors before", "descriptors after",
    ]
    return "\n".join([
        "# Serving",
        "",
        f"`imf serve` with a model of the bundled graph ({figures['entities']:,} entities, {figures['relations']} relations, "
        f"width {figures['dim']}). Each request asks one question for {K} answers; no question comes twice. The client runs on "
        "the same cores, and each of its connections sends the next request when it has its answer. A request has failed if no "
        f"answer came, or one that is not that of `Predictor` (its order, and its scores to {TOLERANCE:g}). Memory is the "
        "resident set of the server; descriptors are counted while no client is connected.",
        "",
        *table(columns, rows),
        f"Command: `python -m benchmarks.serve{figures['options']}`; {host_line(figures['host'])}, load average "
        f"{figures['load_average']:.1f} (this run alone makes about 2); {figures['date']}.",
        "",
    ])


if __name__ == "__main__":
    typer.run(main)
