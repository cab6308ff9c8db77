"""A small graph folder as a user brings it, and the search run on it as a user runs it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

SMALL = [
    "train.max_epochs=6",
    "model.dim=16",
    "model.relation_dim=8",
    "train.batch_size=64",
    "train.patience=6",
    "model.dropout_context=0.1",
    "train.optimizer=adam",  # six epochs of six steps are too few for Adagrad, which would be stopped first
]


def write_graph(folder: Path) -> Path:
    """A folder as a user brings it: names with blanks, descriptions for most entities, a fixed vocabulary."""
    folder.mkdir(parents=True)
    rng, count, groups = np.random.default_rng(0), 120, 8
    group = rng.integers(groups, size=count)
    names = [f"thing {i}" for i in range(count)] + [f"group {g}" for g in range(groups)]
    rows = [(names[i], "belongs to", names[count + group[i]]) for i in range(count)]
    rows += [(names[i], "follows", names[(i + 1) % count]) for i in range(count)]
    rows += [(names[i], "is like", names[int(rng.choice(np.flatnonzero(group == group[i])))]) for i in range(count)]
    order = rng.permutation(len(rows))
    cuts = {"valid": order[:40], "test": order[40:80], "train": order[80:]}
    for split, chosen in cuts.items():
        (folder / f"{split}.tsv").write_text("".join("\t".join(rows[place]) + "\n" for place in sorted(chosen)))
    (folder / "entities.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "relations.txt").write_text("belongs to\nfollows\nis like\n")
    words = ["apple", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    texts = [f"{names[i]}\ta {words[group[i]]} kind of thing" for i in range(count) if i % 10]
    (folder / "descriptions.tsv").write_text("\n".join([*texts, *(f"group {g}\tthe {words[g]} group" for g in range(groups))]))
    return folder


def ready_database(home: Path) -> Path:
    """MLflow's database for a search in `home`, without a run in it: MLflow takes seconds to make one."""
    place = home / "results" / "mlflow.db"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(empty_database())
    return home


@lru_cache(maxsize=1)
def empty_database() -> bytes:
    """A file of MLflow's database before its first experiment."""
    from mlflow.tracking import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{file}").search_experiments()
        return file.read_bytes()


def search_here(cwd: Path, *arguments: str, settings: Sequence[str] = SMALL) -> subprocess.CompletedProcess[str]:
    """`python tune/search.py ARGUMENTS` in this process, which has loaded all libraries already."""
    from tune import options, pipeline

    command = ["tune/search.py", *(part for setting in settings for part in ("--set", setting)), *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(patch.object(sys, "argv", command))
        stack.enter_context(patch.dict(os.environ, COLUMNS="120"))  # MLflow sets variables; they go again
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            options.run(pipeline.search)
        except SystemExit as ended:
            status = int(ended.code or 0)
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def run_search(
    repository: Path, cwd: Path, *arguments: str, timeout: int = 800, settings: Sequence[str] = SMALL
) -> subprocess.CompletedProcess[str]:
    """`python tune/search.py ARGUMENTS` in a process of its own, as a user starts it."""
    fixed = [part for setting in settings for part in ("--set", setting)]
    environment = {**os.environ, "COLUMNS": "120", "HOME": str(cwd)}
    return subprocess.run(
        [sys.executable, str(repository / "tune" / "search.py"), *fixed, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
