"""`imf split`: train, validation and test from all triples of a graph, without links across the splits."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from imf_core.commands.terminal import terminal
from imf_core.config_base import parse_share
from imf_core.data.formats.readers import read_raw
from imf_core.data.formats.writers import SPLIT_RECORD, Target, check_names, check_place, write_graph
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.data.graph.partition import By, partition
from imf_core.errors import ConfigError, DataError
from imf_core.files.lines import read_lines
from imf_core.prepare.link_data import resolve


def split(
    source: Annotated[str, typer.Argument(metavar="DIR", help="Graph folder, or the bundled data set `unicode`.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the graph with its splits.")],
    valid: Annotated[str, typer.Option(help="Share of the triples for validation: 10% or 0.1.")] = "10%",
    test: Annotated[str, typer.Option(help="Share of the triples for test.")] = "10%",
    by: Annotated[
        By, typer.Option(help="random; time (the latest; a fourth column of train.tsv); entity (unseen entities).")
    ] = By.RANDOM,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another choice.")] = 0,
) -> None:
    """Split all triples of a graph, whatever files they are in now, into train, validation and test.

    All triples between the same two entities stay together, so that no reversed, inverse or near-duplicate link gives an answer
    away. Every entity and relation keeps a training triple (but by entity), and each relation gives up the same share. The
    same seed gives the same splits; `split.json` records how they were made. DIR is not changed.

    Example: imf split mygraph mygraph-split --valid 10% --test 10%
    """
    shares = {"valid": _share(valid, "valid"), "test": _share(test, "test")}
    if sum(shares.values()) >= 1:
        raise ConfigError(
            f"validation and test take {sum(shares.values()):.0%} of the triples", remedy="leave some to train on", key="valid"
        )
    folder = resolve(source)
    check_place(out, folder)  # before the work
    raw, times = _read_timed(folder) if by is By.TIME else (read_raw(folder, test=True), None)
    check_names(Target.TSV, raw.entities, raw.relations)
    triples = np.concatenate(list(raw.splits.values()))
    result = partition(triples, len(raw.entities), len(raw.relations), shares, by=by, seed=seed, times=times)
    splits = {name: rows for name in ("train", "valid", "test") if len(rows := getattr(result, name))}
    facts = {"source": raw.source, **result.facts}
    copied = write_graph(out, folder, raw.entities, raw.relations, splits, SPLIT_RECORD, facts)
    console = terminal()
    console.print(f"{raw.source}: {len(raw.entities):,} entities, {len(raw.relations):,} relations", soft_wrap=True)
    for line in (*result.lines(), f"copied: {', '.join(copied) or 'nothing else'}", f"written: {out}"):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def _share(text: str, key: str) -> float:
    """`10%`, `0.1` -> 0.1.

    Raises:
        ConfigError: not a share below 1.
    """
    try:
        share = float(parse_share(text))
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ConfigError(f"--{key} {text} is not a share", remedy="write 10% or 0.1", key=key, value=text)
    return share


def _read_timed(folder: Path) -> tuple[RawGraph, np.ndarray]:
    """`train.tsv` with a fourth column: the graph, and (T,) times.

    Raises:
        DataError: a line without four columns, or whose time is neither a number nor an ISO date.
    """
    path = next((folder / name for name in ("train.tsv", "train.txt") if (folder / name).exists()), folder / "train.tsv")
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}
    rows: list[tuple[int, int, int]] = []
    times: list[float] = []
    for number, line in read_lines(path):
        cells = line.split("\t")
        if len(cells) != 4 or not all(cell.strip() for cell in cells):
            raise DataError.at(
                path, number, f"{len(cells)} tab-separated columns instead of 4", value=line[:80],
                remedy="write head<TAB>relation<TAB>tail<TAB>time, or split by random",
            )
        head, relation, tail, time = cells
        rows.append((
            entities.setdefault(head, len(entities)), relations.setdefault(relation, len(relations)),
            entities.setdefault(tail, len(entities)),
        ))
        times.append(_time(time, path, number))
    graph = RawGraph(
        Vocabulary(tuple(entities)), Vocabulary(tuple(relations), "relation"), np.array(rows, dtype=np.int64).reshape(-1, 3),
        source=str(folder),
    )
    return graph, np.array(times)


def _time(text: str, path: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise DataError.at(
            path, line, "the time is neither a number nor a date", value=text, remedy="write 1999, 915148800 or 1999-01-31"
        ) from None
