"""`tune.search` and `tune.Study`: a search from Python, and a study to look at and to continue.

Nothing here imports Ray before a search starts: the environment that Ray reads at import depends on the cluster to join.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from imf_core.commands.terminal import NameConsole
from imf_core.ensemble.ensemble import Ensemble, is_ensemble, load_ensemble
from imf_core.errors import CheckpointError, DataError
from imf_core.files.pages import summary_html
from imf_core.interface.data import already_prepared, content_digest, prepare, write_folder
from imf_core.interface.models import load
from imf_core.prepare.link_data import LinkData
from imf_core.study_reader import StudyFolder
from imf_core.tasks.registry import DEFAULT_TASK, task_named, task_of
from tune.environment import own_environment
from tune.report.formatting import mrr, plural, plus_minus, setting
from tune.report.pictures.plots import curves_picture
from tune.report.result import setting_names, with_ranks
from tune.settings import storage_of
from tune.space.parameter import ranges
from tune.study.records import TrialRecord, count_states, load_records, winner
from tune.uris import absolute

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_SHOWN = 10  # trials in a notebook


@dataclass(frozen=True, eq=False)
class Study:
    """A study: its trials, its winner and what can be done with them. It shows itself in a notebook.

        study = tune.Study.load("results/mygraph")
        study.trials.sort_values("best_mrr")
        study.best.params
        study.predictor().tails("Berlin", "capitalOf", k=5)

    Args:
        folder: `results/<study>`.
        ended: how this session ended: `done`, `no_result`, `interrupted`, `terminated`, `hung_up` (its terminal was closed);
            empty for a study that was loaded.
    """

    folder: Path
    ended: str = ""

    @classmethod
    def load(cls, folder: Path | str) -> Study:
        """The study of a folder, finished or not.

        Raises:
            DataError: the folder holds no study.
        """
        study = cls(Path(absolute(folder)))
        if not any((study.folder / name).is_file() for name in ("journal.jsonl", "trials.json")):
            raise DataError(f"{study.folder} holds no study", remedy="name a study's folder, such as results/mystudy")
        return study

    @cached_property
    def records(self) -> tuple[TrialRecord, ...]:
        """A record of each trial that ended, in the order of creation."""
        files = StudyFolder(self.folder)
        return tuple(sorted(load_records(self.folder), key=lambda record: record.number)) if files.trials_file.exists() else ()

    @property
    def trials(self) -> DataFrame:
        """A row for each trial that ended, with its state, figures and searched settings; the index is the trial's name."""
        import pandas as pd

        columns = ("number", "state", "best_mrr", "best_epoch", "epochs", "seconds", "retries", "reason")
        rows = [
            {**{name: getattr(record, name) for name in columns}, "state": str(record.state), **record.params}
            for record in self.records
        ]
        index = pd.Index([record.trial_id for record in self.records], name="trial")
        return pd.DataFrame(rows, index, [*columns, *setting_names(self.records)])

    @property
    def best(self) -> TrialRecord | None:
        """The trial that was retrained, else the one with the best validation MRR; None without one. `.params`, `.best_mrr` and
        `.curve` have its parts."""
        chosen = (self.summary.get("winner") or {}).get("trial")
        return next((record for record in self.records if record.number == chosen), winner(self.records))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summary.json`: the finished study in numbers; empty before its end."""
        files = StudyFolder(self.folder)
        return files.summary() if files.summary_file.exists() else {}

    @property
    def test(self) -> dict[str, dict[str, float | None]]:
        """Mean and standard deviation over the seeds of the retrained winner, by metric; empty if test was not opened."""
        return {name: figures for name, figures in self.summary.get("test", {}).items() if figures["mean"] is not None}

    @cached_property
    def pool(self) -> Ensemble | None:
        """The models of the study that answer best together: its folder `pool`. A study that was searched with `no_pool` has
        the winner retrained with each seed, as one; None for a single seed. `.metrics["test"]` has the test figures.

        Raises:
            CheckpointError: the models are of a task that has no ensembles.
        """
        if is_ensemble(self.folder / "pool"):
            return load_ensemble(self.folder / "pool")
        best = self.best
        finals = StudyFolder(self.folder).final_checkpoints() if best is not None else []
        members = [path for path in finals if best is not None and path.parent.name.startswith(f"{best.trial_id}-seed-")]
        if len(members) < 2:
            return None
        if (task := task_of(members[0]).name) != DEFAULT_TASK:
            raise CheckpointError(f"models of the task {task} cannot answer as one", remedy="ask the best: study.predictor()")
        loaded = tuple(model for model in map(load, members) if not isinstance(model, Ensemble))
        pooled = self.summary.get("test_otherwise", {}).get("seeds pooled", {})
        figures = {name: values["mean"] for name, values in pooled.items()}
        return Ensemble(loaded, (1 / len(loaded),) * len(loaded), {"test": figures}, self.folder / "final")

    @property
    def checkpoint(self) -> Path:
        """Folder of the best checkpoint.

        Raises:
            DataError: the study has none.
        """
        if not (self.folder / "best").is_dir():
            raise DataError(f"{self.folder} has no best checkpoint", remedy="let the search finish: study.resume()")
        return self.folder / "best"

    def predictor(self) -> Any:
        """Answers by name with the best checkpoint: a `Predictor`, or what another task asks its models with."""
        return task_of(self.checkpoint).open_predictor(self.checkpoint)

    def curves(self) -> Figure:
        """The validation MRR of each trial over its epochs, as a figure of matplotlib."""
        return curves_picture(self.records)

    def importances(self) -> dict[str, float]:
        """Share of each searched setting in whether a trial is among the best; empty for few trials or an unfinished study."""
        return {name: float(share) for name, share in self.summary.get("importances", {}).items()}

    def resume(self, *, console: Console | None = None, **settings: Any) -> Study:
        """Continue the study after an interruption; arguments and errors as of `search`."""
        return _run({**settings, **self._named(), "resume": True}, console)

    def extend(self, trials: int, *, console: Console | None = None, **settings: Any) -> Study:
        """Add so many trials; arguments and errors as of `search`."""
        return _run({**settings, **self._named(), "extend": trials}, console)

    def _named(self) -> dict[str, Any]:
        return {"study": self.folder.name, "storage": self.folder.parent}

    def __repr__(self) -> str:
        return f"Study({str(self.folder)!r}, {self._size()})"

    def _size(self) -> str:
        states = [f"{count} {state}" for state, count in count_states(self.records).items() if count]
        return f"{plural(len(self.records), 'trial')}{': ' if states else ''}{', '.join(states)}"

    def _repr_html_(self) -> str:
        lines = [self._size()]
        if self.ended not in ("", "done"):
            lines.append(f"this session: {self.ended.replace('_', ' ')}")
        if (best := self.best) is not None:
            lines.append(f"best validation MRR {mrr(best.best_mrr)}: trial {best.number}, epoch {best.best_epoch}")
        if "mrr" in self.test:
            lines.append(f"test MRR {plus_minus(self.test['mrr'])}, {plural(len(self.summary['seeds']), 'seed')}")
        if (self.folder / "report.html").is_file():
            lines.append(f"report: {self.folder / 'report.html'}")
        names = setting_names(self.records)
        rows = [
            [setting(rank), str(record.number), str(record.state), mrr(record.best_mrr), str(record.epochs),
             *(setting(record.params.get(name)) for name in names), record.reason]
            for rank, record in with_ranks(self.records)[:_SHOWN]
        ]
        caption = f"the best {_SHOWN} of {len(self.records)} trials" if len(self.records) > _SHOWN else "trials, best first"
        table = (["rank", "trial", "state", "validation MRR", "epochs", *names, "reason"], rows)
        return summary_html(f"study {self.folder.name}", lines, {caption: table} if rows else {}, {})


def search(
    data: Any = None, *, space: Path | str | Mapping[str, Any] | None = None, valid: Any = None, test: Any = None,
    features: Mapping[str, Any] | None = None, console: Console | None = None, **settings: Any,
) -> Study:
    """Search the hyperparameters of a model, as `python tune/search.py` does. Ctrl-C stops it; `Study.resume` continues.

        study = tune.search("mygraph", trials=20, budget="30m", space={"train.lr": (1e-4, 1e-2)})
        study.best.params

    Args:
        data: a graph folder or the name of a bundled data set; or what else `imf_core.prepare` takes or returns, which is
            written as a graph folder into `<storage>/graphs`, so that the study can be resumed.
        space: a YAML file, or a setting's dotted name -> `(low, high)`, a list of choices, a dict as in the file, or a fixed
            value; None: the default space.
        valid, test, features: as of `imf_core.prepare`, for data in memory.
        console: where to print; None: standard output.
        settings: the other settings of `SearchConfig`, by name; `budget` as on the command line, `overrides={"model.dim": 64}`
            for `--set`.

    Raises:
        ConfigError: a setting is refused.
        DataError: the data cannot be used.
        ResourceError: it does not fit the machine or the cluster.
    """
    if data is not None and not isinstance(data, str | Path):
        ready = already_prepared(data) or prepare(data, valid=valid, test=test, features=features)
        data = _written(ready, settings.get("storage"))
    elif valid is not None or test is not None or features:
        raise DataError("valid, test and features belong to data in memory", remedy="put them into the graph folder")
    if isinstance(space, Mapping):
        space = ranges(space, task_named(str(settings.get("task", DEFAULT_TASK))).config)
    return _run({**settings, "data": None if data is None else str(data), "space": space}, console)


def _run(values: dict[str, Any], console: Console | None) -> Study:
    if "budget" in values:
        values["budget_seconds"] = values.pop("budget")
    with own_environment(values.get("address")):  # before anything imports ray
        from tune.pipeline import search as run
        from tune.plan.opening import search_config

        ended = run(search_config(values), console or NameConsole())
    return Study(ended.folder, ended.exit.name.lower())


def _written(data: LinkData, storage: Path | str | None) -> Path:
    """The folder of a graph that is in memory; an equal one is written once."""
    folder = storage_of(storage) / "graphs" / f"graph-{content_digest(data)[:12]}"
    return folder if folder.is_dir() else write_folder(data, folder)
