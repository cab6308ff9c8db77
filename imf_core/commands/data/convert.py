"""`imf convert`: a graph from any format into any other, with the same ids, names and lines."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from imf_core.commands.terminal import terminal
from imf_core.data.formats.layout import GraphFiles
from imf_core.data.formats.ntriples import LITERALS_FILE, literal_lines
from imf_core.data.formats.readers import read_raw
from imf_core.data.formats.vocabularies import find_list
from imf_core.data.formats.writers import (
    Target,
    check_names,
    check_place,
    copy_beside,
    new_folder,
    write_lines,
    write_splits,
)
from imf_core.errors import ConfigError
from imf_core.prepare.link_data import resolve

_LISTED = 10


def convert(
    places: Annotated[
        list[str], typer.Argument(metavar="[SOURCE] OUT", help="Graph folder, or the bundled data set `unicode`; new folder.")
    ],
    to: Annotated[Target, typer.Option(help="Format to write.")],
    train: Annotated[Path | None, typer.Option(help="Training triples, instead of the file in SOURCE.")] = None,
    valid: Annotated[Path | None, typer.Option(help="Validation triples, instead of the file in SOURCE.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test triples, instead of the file in SOURCE.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the graph folder that is at OUT.")] = False,
) -> None:
    """Write a graph as tab-separated names (tsv), OpenKE ids (openke) or N-Triples (nt). Every line of every split is kept.

    Lists of names go along, so that ids stay. A name that a format cannot hold is an error; N-Triples hold all of them,
    percent-encoded where need be. Texts, pictures and features beside the graph are copied as they are.

    Example: imf convert mygraph mygraph-nt --to nt
    """
    if len(places) > 2 or (len(places) == 1 and train is None):
        raise ConfigError(
            f"{len(places)} places were given", remedy="give SOURCE and OUT, or --train FILE and OUT", key="SOURCE OUT"
        )
    folder = resolve(places[0]) if len(places) == 2 else None
    out = Path(places[-1])
    files = GraphFiles(folder, train, valid, test)
    sources = [file.path for file in files.splits.values()]
    check_place(out, folder, replace=force, sources=sources)  # before the work
    graph = read_raw(files, test=True)
    check_names(to, graph.entities, graph.relations)
    with new_folder(out, replace=force) as scratch:
        write_splits(scratch, to, graph.entities, graph.relations, graph.splits)
        copied = copy_beside(folder, scratch)
        literals = _write_literals(files, scratch / LITERALS_FILE)
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in graph.splits.items())
    console = terminal()
    _say(console, f"{graph.source}: {len(graph.entities):,} entities, {len(graph.relations):,} relations, {counts} triples")
    for note in graph.notes:
        _say(console, f"  {note}")
    if literals:
        copied = [name for name in copied if name != LITERALS_FILE]
        held = [split for split, file in files.splits.items() if split != "train" and file.format == "ntriples"]
        left_out = f"; those of {' and '.join(held)} are left out" if held else ""
        _say(console, f"{literals:,} literals of train kept in {LITERALS_FILE}{left_out}")
    _say(console, f"copied: {', '.join(copied) or 'nothing else'}")
    left = _left(folder, files, copied)
    if left:
        more = f" and {len(left) - _LISTED:,} more" if len(left) > _LISTED else ""
        _say(console, f"not copied: {', '.join(left[:_LISTED])}{more}")
    _say(console, f"written as {to}: {out}")


def _write_literals(files: GraphFiles, path: Path) -> int:
    """The literals that can serve as text, in a file that is read beside every format; returns how many."""
    lines = literal_lines(files)
    first = next(lines, None)
    if first is None:
        return 0
    numbers = count(1)
    write_lines(path, (line for line, _ in zip(chain([first], lines), numbers)))
    return next(numbers) - 1


def _left(folder: Path | None, files: GraphFiles, copied: list[str]) -> list[str]:
    """What lies in the graph's folder and is neither read nor copied."""
    if folder is None:
        return []
    splits = files.splits
    ids = splits["train"].format == "ids"
    lists = [find_list(kind, [splits["train"].path.parent, *files.folders()], ids) for kind in ("entity", "relation")]
    used = {path.resolve() for path in (*(file.path for file in splits.values()), *lists) if path is not None}
    known = {*copied, LITERALS_FILE}
    return sorted(path.name for path in folder.iterdir() if path.name not in known and path.resolve() not in used)


def _say(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)
