"""The settings of a search: data, budget, workers, storage, seeds.

Building a `SearchConfig` resolves everything that depends on the working directory or the environment: paths are absolute, the
study has a name, the tracking store is known. Nothing here imports ray, optuna or mlflow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from imf_core.config_base import Settings, Share, nearest
from imf_core.errors import ConfigError
from imf_core.files.programs import command_line
from imf_core.parts.registry import load_file
from imf_core.tasks.registry import DEFAULT_TASK, task_named
from tune.durations import parse_duration
from tune.sources import search_command
from tune.space.objectives import QUALITY, parse_objective
from tune.uris import TRACKING_VARIABLE, absolute, absolute_tracking_uri, local_tracking_uri, without_password

METRIC, MODE = "best_mrr", "max"  # the searcher and the scheduler maximise the best validation MRR so far
RACE = "race"  # the scheduler that pauses trials and lets the better ones go on
TIME_ATTR = "epoch"  # not Ray Tune's own counter, which restarts when a trial is retried

_SESSION_FIELDS = {  # apply to one session or machine; a resumed study does not inherit them
    "trials", "resume", "extend", "dry_run", "show_space", "address", "storage", "study", "expect_nodes", "node_wait_seconds",
    "fewer_nodes", "grows_to", "track_seconds",
}
_CLUSTER_RETRIES, _CLUSTER_TRACKING = 4, 60.0


class SearchConfig(BaseModel):
    """The settings of one search. Use `SearchConfig.build`, which reports every fault as a `ConfigError`.

    The field descriptions are the help texts of `python tune/search.py --help`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    _given: frozenset[str] = PrivateAttr(frozenset())

    task: str = Field(
        DEFAULT_TASK, description="link: predict links in a multimodal graph; recommend: recommend items to users (MetaMMF); "
        "or the name of a task that another package registers"
    )
    data: str = Field(
        "", description="data folder or bundled data set; default: the one set by --config or --set, else unicode (recommend: "
        "codepages)"
    )
    test_size: Share | None = Field(
        None, gt=0, description="share of the triples, for example 10%, set aside as test where the data has no test split; "
        "default: none, and no test figure"
    )
    study: str = Field(
        "", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name of the study and of its folder; default: data set and start time"
    )
    trials: int = Field(12, ge=1, description="number of trials")
    budget_seconds: float | None = Field(
        None, gt=0, description="wall time of the whole search, retraining the winner included, for example 20m; default: no "
        "limit"
    )
    workers: int = Field(1, ge=1, description="processes that train one trial together (DDP)")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="CPUs per worker; default: divide the available CPUs evenly among concurrent trials"
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="GPUs per worker: auto uses all GPUs, and lets several trials share one where they fit; 0 trains "
        "on CPUs; a fraction lets trials share a GPU"
    )
    concurrency: int | None = Field(None, ge=1, description="maximum number of concurrent trials; default: as many as fit")
    seed: int = Field(0, ge=0, lt=2**31, description="random seed of the sampler and the trials")
    seeds: int = Field(3, ge=1, le=100, description="number of seeds with which the winner is retrained")
    storage: Path = Field(Path("results"), description="folder that holds the studies; default: $IMF_STORAGE, else ./results")
    tracking_uri: str = Field(
        "", description="MLflow tracking URI; default: $MLFLOW_TRACKING_URI if set, else sqlite:///<storage>/mlflow.db; a "
        "resumed study keeps its own"
    )
    model_name: str = Field(
        "", pattern=r"^[^/:\s]([^/:]{0,198}[^/:\s])?$",
        description="name of the registered model in MLflow, which gets a version for each study; default: imf-<data set>"
    )
    wandb: str = Field(
        "", pattern=r"^[^/\\#?%:]{0,128}$", description="also log trials to this project of Weights & Biases (extra `wandb`)"
    )
    space: Path | dict[str, Any] | None = Field(
        None, description="YAML file with the search space; default: the built-in space"
    )
    config: Path | None = Field(None, description="YAML file with the settings that are not searched")
    parts: tuple[Path, ...] = Field(
        (), description="Python file that registers parts of one's own (repeatable); `imf parts` lists what there is"
    )
    preset: str | None = Field(None, description="built-in base settings, instead of --config")
    overrides: dict[str, Any] = Field(default_factory=dict, description="settings by dotted name, held fixed during the search")
    warm_start: Path | None = Field(
        None, description="earlier study, or its leaderboard.csv, whose best settings are tried first"
    )
    first: Literal["shipped", "base", "drawn"] = Field(
        "shipped", description="first trials. shipped: the base settings, then settings that won earlier searches; base: the "
        "base settings only; drawn: none, the sampler draws every trial"
    )
    objective: str = Field(
        "mrr", description="mrr, or mrr with costs for a Pareto front: mrr,params or mrr,latency (early stopping is then off "
        "by default)"
    )
    sampler: Literal["tpe", "gp", "random"] = Field(
        "tpe", description="how trials are drawn: Optuna's TPE, its Gaussian process (for fewer than 100 trials), or at random"
    )
    scheduler: Literal["race", "asha", "none"] = Field(
        "race", description="race: each trial is paused after a few epochs, and the better ones go on; asha: weak trials are "
        "stopped for good (ASHA); none: all train to their end"
    )
    grace_epochs: int | None = Field(
        None, ge=1, description="epochs before a trial is judged first; default: race: 1, of long runs more; asha: an eighth "
        "of max_epochs (with few epochs a quarter, at most 3), lowered once the learning curves show that fewer epochs predict "
        "the ranking"
    )
    reduction_factor: float | None = Field(
        None, gt=1, le=100, description="one in this many trials passes each rung; default: race 4, asha 3"
    )
    max_failures: int = Field(
        1, ge=0, le=100, description="retries of a trial whose worker died; default: 1, on a cluster 4"
    )
    keep: int = Field(3, ge=0, le=1000, description="number of best trials whose checkpoints are kept, for `imf ensemble`")
    no_pool: bool = Field(
        False, description="do not combine the kept trials and the final runs that answer best together into the folder pool"
    )
    save_seconds: float = Field(20.0, ge=0, description="minimum seconds between two saves of a trial's training state")
    track_seconds: float = Field(
        0.0, ge=0, description="minimum seconds between two writes of a trial's epochs to MLflow; default: 0, on a cluster 60"
    )
    resume: bool = Field(False, description="continue --study; settings that are not given keep their earlier values")
    extend: int | None = Field(None, ge=1, description="continue --study with this many additional trials")
    address: str | None = Field(
        None, description="Ray cluster to join: auto, host:port, or local to start Ray on this machine; default: $RAY_ADDRESS, "
        "else local"
    )
    expect_nodes: int | None = Field(
        None, ge=1, description="number of machines to wait for, head included; default: all machines in the cluster file "
        "given to `ray up`"
    )
    node_wait_seconds: float = Field(180.0, ge=0, description="maximum time to wait for the machines, for example 5m")
    fewer_nodes: bool = Field(False, description="after that time, start with the machines that have joined instead of failing")
    grows_to: int | None = Field(
        None, ge=1, description="number of machines that an autoscaler can grow the cluster to, head included; default: as the "
        "cluster file of `ray up` says, else $IMF_GROWS_TO"
    )
    strict: bool = Field(False, description="fail if the audit finds a problem in the data, instead of reporting it")
    dry_run: bool = Field(False, description="print the plan and exit")
    show_space: bool = Field(False, description="print every parameter that can be tuned and exit")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Check what depends on the task, and resolve defaults that depend on the environment, other fields or the disk."""
        values = {name: value for name, value in dict(given).items() if value is not None}
        values["parts"] = tuple(Path(absolute(file)) for file in values.get("parts", ()))
        for file in values["parts"]:
            load_file(file)
        task = task_named(str(values.get("task", DEFAULT_TASK)))
        if "config" in values and "preset" in values:
            raise ConfigError("both a configuration file and a preset were given", remedy="give one of them", key="preset")
        if "preset" in values and values["preset"] not in task.presets:
            remedy = f"choose one of: {', '.join(task.presets)}" if task.presets else "leave out --preset"
            problem = f"the task {task.name} has no preset {values['preset']!r}"
            raise ConfigError(problem, remedy=remedy, key="preset", value=values["preset"])
        for name in ("budget_seconds", "node_wait_seconds"):
            if isinstance(values.get(name), str):
                values[name] = parse_duration(values[name])
        if address := values.get("address") or os.environ.get("RAY_ADDRESS"):
            values["address"] = address
            if address != "local":
                values.setdefault("max_failures", _CLUSTER_RETRIES)
                values.setdefault("track_seconds", _CLUSTER_TRACKING)
                if grown := os.environ.get("IMF_GROWS_TO"):
                    values.setdefault("grows_to", int(grown))
        values["storage"] = storage_of(values.get("storage"))
        for name, kind in (("space", "file"), ("config", "file"), ("warm_start", "study folder or leaderboard.csv")):
            if name in values and not isinstance(values[name], Mapping):
                values[name] = _existing(name, values[name], kind)
        values["data"] = _data_path(values, task.config)
        costs = parse_objective(str(values.get("objective", QUALITY)))
        if "latency" in costs and not task.has_latency:
            problem = f"the task {task.name} does not measure latency"
            raise ConfigError(problem, remedy="use --objective mrr,params", key="objective")
        if costs:
            values.setdefault("scheduler", "none")  # race and ASHA compare MRR only: they would stop the small models
            if values["scheduler"] == RACE:
                remedy = "use --scheduler none or asha"
                raise ConfigError("a race compares MRR alone", remedy=remedy, key="scheduler", value=RACE)
        source = "--tracking-uri" if "tracking_uri" in values else TRACKING_VARIABLE
        uri = values.get("tracking_uri", os.environ.get(TRACKING_VARIABLE))
        values["tracking_uri"] = absolute_tracking_uri(uri, values["storage"], source)
        if not values.get("model_name"):
            values["model_name"] = f"imf-{_stem(values['data'])}"
        if not values.get("study"):
            values["study"] = _free_name(values["data"], values["storage"])
        return values

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> SearchConfig:
        """Validate settings.

        Args:
            values: fields by name; None, False and {} stand for the default.

        Raises:
            ConfigError: an unknown field, a wrong type, a value out of range, or a path that does not exist.
        """
        for name in values:
            if name not in cls.model_fields:
                raise ConfigError(
                    f"unknown search setting {name!r}{nearest(name, cls.model_fields)}",
                    remedy=f"choose one of: {', '.join(cls.model_fields)}", key=name, value=values[name],
                )
        given = given_settings(values)
        try:
            config = cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "search"
            value = first.get("input")
            problem = f"{key} = {value!r} is invalid: {first['msg']}"
            raise ConfigError(problem, remedy=f"correct {key}", key=key, value=value) from error
        config._given = frozenset(given)
        return config

    def given(self, name: str) -> bool:
        """Whether a field was given explicitly."""
        return name in self._given

    def inherited(self) -> dict[str, Any]:
        """The given fields that `--resume` inherits, as JSON values; those of one session or machine are left out.

        The tracking URI is always among them, since its default depends on the environment; empty for the local store, which
        moves with the studies.
        """
        uri = "" if self.tracking_uri == local_tracking_uri(self.storage) else self.tracking_uri
        return {**self.model_dump(mode="json", include=set(self._given - _SESSION_FIELDS)), "tracking_uri": uri}

    @property
    def joins(self) -> bool:
        """Whether the search joins a running Ray cluster instead of starting Ray on this machine."""
        return self.address not in (None, "local")

    @property
    def requested_gpus(self) -> float | None:
        """GPUs per worker; None for `auto`."""
        return None if self.gpus_per_worker == "auto" else float(self.gpus_per_worker)

    @property
    def resume_command(self) -> str:
        """The command that continues this study, valid in any folder."""
        return command_line([*search_command(), "--storage", str(self.storage), "--study", self.study, "--resume"])

    @property
    def call(self) -> str:
        """The call that searches with these settings from Python: `tune.search(data='mygraph', trials=20)`."""
        given = self.model_dump(mode="json", include=set(self._given))
        shown = {name: without_password(value) if name == "tracking_uri" else value for name, value in given.items()}
        return f"tune.search({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def costs(self) -> tuple[str, ...]:
        """The objectives besides the validation MRR: keys of `tune.space.objectives.COSTS`."""
        return parse_objective(self.objective)

    @property
    def study_dir(self) -> Path:
        """Absolute folder of this study: `<storage>/<study>`."""
        return self.storage / self.study

    @property
    def trials_dir(self) -> Path:
        """Absolute folder of the trials, written by Ray Tune."""
        return self.study_dir / "trials"

    def base_config(self) -> Settings:
        """The settings of a trial before any is searched: file or preset, then overrides, data and seed.

        Raises:
            ConfigError: the file or an override is invalid.
        """
        task = task_named(self.task)
        base = task.presets[self.preset]() if self.preset is not None else task.config()
        base = task.config.load(self.config) if self.config is not None else base
        flat = {"train.seed": self.seed, **self.overrides, "data.path": self.data}
        if self.test_size is not None:
            if "test_size" not in type(base.data).model_fields:
                problem = f"the task {task.name} cannot set a test split aside"
                raise ConfigError(problem, remedy="leave out --test-size", key="test_size", value=self.test_size)
            flat["data.test_size"] = self.test_size
        config: Settings = base.updated(flat, source="--set")
        return config.model_copy(update={"data": config.data.absolute()}) if hasattr(config.data, "absolute") else config


def given_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that stand for "not given": None, False, {} and []; but 0 is a value."""
    return {name: value for name, value in values.items() if not (value is None or value is False or value in ({}, [], ()))}


def storage_of(given: str | Path | None) -> Path:
    """The absolute folder of the studies: the given one, else $IMF_STORAGE, else ./results.

    Raises:
        ConfigError: it is a URI.
    """
    storage = str(given or os.environ.get("IMF_STORAGE") or "results")
    if "://" in storage:
        remedy = "name a folder that every node can see"
        raise ConfigError(f"storage {storage!r} is a URI, not a folder", remedy=remedy, key="storage", value=storage)
    return Path(absolute(storage))


def _existing(name: str, path: Any, kind: str) -> Path:
    full = Path(absolute(path))
    if not (full.is_file() or (kind != "file" and full.is_dir())):
        raise ConfigError(f"{name}: {full} is not a {kind}", remedy=f"give an existing {kind}", key=name, value=str(path))
    return full


def _data_path(values: Mapping[str, Any], kind: type[Settings]) -> str:
    """The absolute path of a data folder; a plain name that is not a folder is kept, as the name of a bundled data set."""
    overrides = dict(values.get("overrides") or {})
    path = values.get("data") or overrides.get("data.path")
    if not path:
        base = kind.load(values["config"]) if "config" in values else kind()
        path = base.updated({key: file for key, file in overrides.items() if key == "data.train"}, source="--set").data.path
    path = os.path.expanduser(str(path))
    return absolute(path) if os.path.isdir(path) or os.sep in path or path.startswith(".") else path


def _stem(data: str) -> str:
    """The last part of a path, or the name of a data set, as part of a file name: `/graphs/DB 15K/` -> `DB-15K`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(data.rstrip(os.sep))).strip("-._")[:60] or "study"


def _free_name(data: str, storage: Path) -> str:
    """A name that no folder in `storage` has: `unicode-20261125-0403`, with `-2`, `-3` ... appended where that one exists."""
    name = f"{_stem(data)}-{datetime.now():%Y%m%d-%H%M}"
    number = 1
    while (storage / (f"{name}-{number}" if number > 1 else name)).exists():
        number += 1
    return f"{name}-{number}" if number > 1 else name
