"""`imf recommend`: items for a user, or for all users of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imf_core.answers import Known
from imf_core.commands.outputs import new_file
from imf_core.commands.terminal import terminal
from imf_core.errors import ConfigError, DataError, VocabularyError
from imf_core.files.lines import read_lines
from imf_core.recommend.answers import ItemRecommender


def recommend(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a recommender, for example results/<study>/best.")],
    user: Annotated[str | None, typer.Option("--user", "-u", help="Name of the user, as in the data.")] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="Number of items.")] = 10,
    known: Annotated[
        Known, typer.Option(help="Items that the user has already, in train or validation: leave out, mark, or show alone.")
    ] = Known.DROP,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    file: Annotated[Path | None, typer.Option("--file", help="Users, one a line.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Answers to --file, OUT.tsv: user, rank, item, score.")] = None,
) -> None:
    """Recommend items that a user does not have yet.

    Example: imf recommend results/mine/best --user cp437 --top 10
    """
    if (file is None) != (out is None) or (file is None) == (user is None):
        remedy = "write --user NAME, or --file USERS.txt --out OUT.tsv"
        raise ConfigError("give either --user, or --file and --out", remedy=remedy)
    recommender = ItemRecommender.load(checkpoint)
    if file is not None and out is not None:
        terminal().print(f"{_write(recommender, file, out, k, known):,} users answered: {out}", soft_wrap=True)
        return
    assert user is not None
    answers = recommender.recommend(user, k, known=known)
    fallback = not recommender.knows(user)
    if as_json:
        print(json.dumps({"user": user, "mean_user": fallback, "items": [vars(answer) for answer in answers]}, indent=1))
        return
    table = Table(title=f"for {user}")
    table.add_column("rank", justify="right")
    table.add_column("item")
    table.add_column("score", justify="right")
    for rank, answer in enumerate(answers, start=1):
        marks = " (cold)" * answer.cold + " (known)" * (answer.known and known is Known.MARK)
        table.add_row(str(rank), answer.item + marks, f"{answer.score:.4f}")
    terminal().print(table)
    if fallback:
        terminal().print(f"{user} has no training interaction: these are the items of the mean user")


def _write(recommender: ItemRecommender, file: Path, out: Path, k: int, known: Known) -> int:
    """Answer a file of users; all lines are checked before the first one is answered. Returns the number of users.

    Raises:
        DataError: a user is unknown (names the line), the file is empty, or `out` cannot be written.
    """
    users = []
    for number, name in read_lines(file):
        try:
            recommender.knows(name)
        except VocabularyError as error:
            raise DataError.at(file, number, error.problem, remedy=error.remedy) from error
        users.append(name)
    if not users:
        raise DataError.at(file, None, "holds no user", remedy="write a name a line")
    answers = recommender.recommend_all(users, k, known=known)
    with new_file(out) as path, path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        marked = known is Known.MARK
        stream.write("user\trank\titem\tscore" + "\tknown" * marked + "\n")
        for user, items in zip(users, answers, strict=True):
            for rank, part in enumerate(items, start=1):
                mark = f"\t{'yes' if part.known else 'no'}" if marked else ""
                stream.write(f"{user}\t{rank}\t{part.item}\t{part.score:.6g}{mark}\n")
    return len(users)
