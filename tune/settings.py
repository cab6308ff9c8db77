"""What a search is asked to do: data, budget, workers, storage, seeds.

`SearchConfig` is complete once built: paths are absolute, the study has its name, the tracking store is known. Nothing here
imports ray, optuna or mlflow.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from imf_core.config_base import Settings, nearest
from imf_core.errors import ConfigError
from imf_core.tasks.registry import DEFAULT_TASK, task_named
from tune.durations import parse_duration
from tune.space.objectives import QUALITY, parse_objective

METRIC, MODE = "best_mrr", "max"  # what the searcher and the scheduler maximise: the best validation MRR so far
TIME_ATTR = "epoch"  # real epochs: Tune's own counter starts again when a trial is retried

_OF_A_SESSION = {
    "trials", "resume", "extend", "dry_run", "show_space", "address", "storage", "study", "expect_nodes", "node_wait_seconds",
    "fewer_nodes", "grows_to", "track_seconds",
}
_CLUSTER_RETRIES, _CLUSTER_TRACKING = 4, 60.0
_SERVERS = ("http", "https", "databricks", "databricks-uc", "postgresql", "mysql", "mssql")


def absolute_tracking_uri(uri: str | None, storage: Path) -> str:
    """The MLflow store, independent of the working directory.

    Args:
        uri: None for `sqlite:///<storage>/mlflow.db`; a relative sqlite path is taken from the current directory.
        storage: absolute folder of the studies.

    Raises:
        ConfigError: the file store (`./mlruns`, `file:...`), an in-memory database or an unknown scheme.
    """
    default = f"sqlite:///{storage / 'mlflow.db'}"
    if not uri:
        return default
    if uri.startswith("sqlite:"):
        path, mark, query = uri.removeprefix("sqlite:///").partition("?")
        if path.startswith("sqlite:") or path in ("", ":memory:"):
            raise ConfigError(
                f"tracking URI {uri!r} names no database file", remedy=f"write sqlite:///path/mlflow.db, for example {default}",
                key="tracking_uri", value=uri,
            )
        return f"sqlite:///{absolute(path)}{mark}{query}"
    scheme = uri.partition("://")[0] if "://" in uri or uri.startswith("databricks") else ""
    if scheme.partition("+")[0] in _SERVERS:
        return uri
    folder = uri.removeprefix("file://").removeprefix("file:")
    if scheme in ("", "file"):
        if folder.endswith((".db", ".sqlite")):
            remedy = f"write sqlite:///{absolute(folder)}"
        else:
            remedy = (
                f"leave --tracking-uri out or write {default}; runs already there are kept by "
                f"`mlflow migrate-filestore --source {absolute(folder)} --target {default}`"
            )
        problem = f"tracking URI {uri!r} is a folder of files, which MLflow 3 refuses"
        raise ConfigError(problem, remedy=remedy, key="tracking_uri", value=uri)
    problem = f"tracking URI {uri!r} has the unknown scheme {scheme!r}"
    raise ConfigError(problem, remedy=f"write {default} or http://host:port", key="tracking_uri", value=uri)


class SearchConfig(BaseModel):
    """One search. Build it with `SearchConfig.build`, which reports every fault as a `ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    _given: frozenset[str] = PrivateAttr(frozenset())

    task: str = Field(
        DEFAULT_TASK, description="link: predict links of a multimodal graph; recommend: items for users (MetaMMF); or a task "
        "that another package registers"
    )
    data: str = Field(
        "", description="folder, or bundled data set; default: that of --config or --set, else unicode (recommend: codepages)"
    )
    study: str = Field(
        "", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name and folder of the study; default: data and time"
    )
    trials: int = Field(12, ge=1, description="settings to try")
    budget_seconds: float | None = Field(None, gt=0, description="wall time of the search with its finalising, for example 20m")
    workers: int = Field(1, ge=1, description="processes that train one trial together")
    cpus_per_worker: int | None = Field(None, ge=1, description="CPUs of each worker; null: what is there, shared evenly")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs of each worker; a fraction shares one")
    concurrency: int | None = Field(None, ge=1, description="trials at a time; null: as many as fit")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the sampler and of the trials")
    seeds: int = Field(3, ge=1, le=100, description="repeats of the winner when it is finalised")
    storage: Path = Field(Path("results"), description="folder that holds the studies; default: $IMF_STORAGE, else ./results")
    tracking_uri: str = Field(
        "", description="MLflow store; default: sqlite:///<storage>/mlflow.db, on a cluster $MLFLOW_TRACKING_URI"
    )
    space: Path | None = Field(None, description="YAML file of the search space; null: the default space")
    config: Path | None = Field(None, description="YAML file of the settings that are not searched")
    preset: str | None = Field(None, description="a built-in base instead of a file")
    overrides: dict[str, Any] = Field(default_factory=dict, description="flat settings; they are fixed, hence not searched")
    warm_start: Path | None = Field(None, description="earlier study, or its leaderboard.csv, whose best points come first")
    first: Literal["shipped", "base", "drawn"] = Field(
        "shipped", description="the first trials: the base settings and then what won earlier searches (shipped), the base "
        "settings alone, or what the sampler draws"
    )
    objective: str = Field(
        "mrr", description="mrr, or the best trade-offs with costs: mrr,params or mrr,latency; then without early stopping"
    )
    sampler: Literal["tpe", "random"] = Field("tpe", description="what draws the points: Optuna's TPE, or chance")
    scheduler: Literal["asha", "none"] = Field("asha", description="stop weak trials early, or not at all")
    grace_epochs: int | None = Field(
        None, ge=1, description="epochs before a trial may be stopped; null: an eighth of max_epochs (of few a quarter, up to "
        "3), or fewer once the study's learning curves have shown that fewer tell"
    )
    reduction_factor: float = Field(3.0, gt=1, le=100, description="one in so many trials passes each rung")
    max_failures: int = Field(1, ge=0, le=100, description="retries of a trial whose worker died; default on a cluster: 4")
    keep: int = Field(3, ge=0, le=1000, description="trials whose checkpoints stay, the best ones, say for `imf ensemble`")
    save_seconds: float = Field(20.0, ge=0, description="least time between two saves of a trial's training state")
    track_seconds: float = Field(
        0.0, ge=0, description="least time between two writes of a trial's epochs to MLflow; default on a cluster: 60"
    )
    resume: bool = Field(False, description="go on with --study; what is not given is as it was")
    extend: int | None = Field(None, ge=1, description="as --resume, with so many trials more")
    address: str | None = Field(
        None, description="Ray cluster to join (auto, host:port), or local; default: $RAY_ADDRESS, else local: one of our own"
    )
    expect_nodes: int | None = Field(
        None, ge=1, description="machines to wait for, the head counted; default: those of the file that `ray up` was given"
    )
    node_wait_seconds: float = Field(180.0, ge=0, description="how long to wait for them; a text such as 5m is understood")
    fewer_nodes: bool = Field(False, description="go on with the machines that are there by then, instead of ending")
    grows_to: int | None = Field(
        None, ge=1, description="machines that an autoscaler brings it to, the head counted; default: as the file of `ray up` "
        "says, else $IMF_GROWS_TO"
    )
    strict: bool = Field(False, description="end here where the audit of the data finds a problem, instead of saying so")
    dry_run: bool = Field(False, description="print the plan and stop")
    show_space: bool = Field(False, description="print every parameter that can be tuned and stop")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        values = {name: value for name, value in dict(given).items() if value is not None}
        task = task_named(str(values.get("task", DEFAULT_TASK)))
        if "config" in values and "preset" in values:
            raise ConfigError("a configuration file and a preset were given", remedy="give one of them", key="preset")
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
                values.setdefault("tracking_uri", os.environ.get("MLFLOW_TRACKING_URI") or "")
                if grown := os.environ.get("IMF_GROWS_TO"):
                    values.setdefault("grows_to", int(grown))
        storage = str(values.get("storage") or os.environ.get("IMF_STORAGE") or "results")
        if "://" in storage:
            remedy = "name a folder that every node can see"
            raise ConfigError(f"storage {storage!r} is no folder", remedy=remedy, key="storage", value=storage)
        values["storage"] = Path(absolute(storage))
        for name, kind in (("space", "file"), ("config", "file"), ("warm_start", "study folder or leaderboard.csv")):
            if name in values:
                values[name] = _existing(name, values[name], kind)
        values["data"] = _data_path(values, task.config)
        costs = parse_objective(str(values.get("objective", QUALITY)))
        if "latency" in costs and not task.has_latency:
            problem = f"the task {task.name} does not measure latency"
            raise ConfigError(problem, remedy="weigh mrr,params", key="objective")
        if costs:
            values.setdefault("scheduler", "none")  # it would stop small models because larger ones are ahead
        values["tracking_uri"] = absolute_tracking_uri(values.get("tracking_uri"), values["storage"])
        if not values.get("study"):
            values["study"] = _free_name(values["data"], values["storage"])
        return values

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> SearchConfig:
        """Validate; None stands for the default.

        Args:
            values: fields by name.

        Raises:
            ConfigError: unknown field, wrong type, out of range, or a path that is not there.
        """
        for name in values:
            if name not in cls.model_fields:
                raise ConfigError(
                    f"unknown search setting {name!r}{nearest(name, cls.model_fields)}",
                    remedy=f"known: {', '.join(cls.model_fields)}", key=name, value=values[name],
                )
        given = {name: value for name, value in values.items() if not (value is None or value is False or value == {})}
        try:
            made = cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "search"
            value = first.get("input")
            problem = f"{key} = {value!r} is refused: {first['msg']}"
            raise ConfigError(problem, remedy=f"correct {key}", key=key, value=value) from error
        made._given = frozenset(given)
        return made

    def given(self, name: str) -> bool:
        """Whether a field was given, instead of left to its default."""
        return name in self._given

    def asked(self) -> dict[str, Any]:
        """What was given, as plain values, for `--resume`; without what belongs to one session or to the place."""
        return self.model_dump(mode="json", include=set(self._given - _OF_A_SESSION))

    @property
    def joins(self) -> bool:
        """Whether a cluster is joined, instead of one of our own being started on this machine."""
        return self.address not in (None, "local")

    @property
    def resume_command(self) -> str:
        """How to go on with this study from any folder."""
        return shlex.join(["python", "tune/search.py", "--storage", str(self.storage), "--study", self.study, "--resume"])

    @property
    def costs(self) -> tuple[str, ...]:
        """What is weighed besides the validation MRR: names of `tune.space.objectives.COSTS`."""
        return parse_objective(self.objective)

    @property
    def study_dir(self) -> Path:
        """Absolute folder of this study: `<storage>/<study>`."""
        return self.storage / self.study

    @property
    def trials_dir(self) -> Path:
        """Absolute folder in which Ray Tune keeps the trials."""
        return self.study_dir / "trials"

    def base_config(self) -> Settings:
        """The settings before anything is searched: file or preset, then the overrides, the data and the seed.

        Raises:
            ConfigError: the file or an override is refused.
        """
        task = task_named(self.task)
        base = task.presets[self.preset]() if self.preset is not None else task.config()
        base = task.config.load(self.config) if self.config is not None else base
        flat = dict(self.overrides)
        flat["data.path"] = self.data
        flat.setdefault("train.seed", self.seed)
        chosen: Settings = base.updated(flat, source="--set")
        return chosen.model_copy(update={"data": chosen.data.absolute()}) if hasattr(chosen.data, "absolute") else chosen


def absolute(path: str | Path) -> str:
    """The path from the root, with `~` expanded and links left as they are."""
    return os.path.abspath(os.path.expanduser(str(path)))


def _existing(name: str, path: Any, kind: str) -> Path:
    found = Path(absolute(path))
    if not (found.is_file() or (kind != "file" and found.is_dir())):
        raise ConfigError(f"{name}: {found} is no {kind}", remedy=f"give an existing {kind}", key=name, value=str(path))
    return found


def _data_path(values: Mapping[str, Any], kind: type[Settings]) -> str:
    """A folder becomes absolute here, at the driver; a plain name without a folder is left to the bundled data sets."""
    overrides = dict(values.get("overrides") or {})
    path = values.get("data") or overrides.get("data.path")
    if not path:
        base = kind.load(values["config"]) if "config" in values else kind()
        path = base.updated({key: file for key, file in overrides.items() if key == "data.train"}, source="--set").data.path
    path = os.path.expanduser(str(path))
    return absolute(path) if os.path.isdir(path) or os.sep in path or path.startswith(".") else path


def _free_name(data: str, storage: Path) -> str:
    """`unicode-20261125-0403`, with `-2`, `-3` ... where the folder is taken."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(data.rstrip(os.sep))).strip("-._")[:60] or "study"
    name = f"{stem}-{datetime.now():%Y%m%d-%H%M}"
    number = 1
    while (storage / (f"{name}-{number}" if number > 1 else name)).exists():
        number += 1
    return f"{name}-{number}" if number > 1 else name
