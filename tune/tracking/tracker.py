"""MLflow tracking: one parent run per study and one child run per trial, also after retries, resumes and kills.

The driver creates the database, the experiment and the parent run before any trial starts, because processes that open a new
database at the same time corrupt it. After that, a failure to log is only a warning: it never ends a training run.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient

from imf_core.errors import ConfigError
from imf_core.tasks.registry import task_of
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord
from tune.tracking import names as text
from tune.tracking.model import parts_to_ship, signature
from tune.tracking.names import safe_name
from tune.tracking.registry import Registered, create_model, crown, version_of
from tune.tracking.store import LOGGING_ERRORS, module_store, open_experiment, origin, refuse_credentials
from tune.uris import absolute_tracking_uri

logger = logging.getLogger(__name__)
RUN_STATUS = {
    TrialState.COMPLETED: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.STOPPED: "KILLED",
    TrialState.FAILED: "FAILED", TrialState.DIVERGED: "FAILED",
}
Epoch = tuple[int, Mapping[str, float], float]  # number, metrics, seconds since 1970
_PAUSE_S = 30.0  # pause after a failure to log, so that an unreachable server does not slow down every epoch


class Tracker:
    """The runs of one study. Use `Tracker.open`. A copy in another process creates a client of its own."""

    def __init__(self, tracking_uri: str, experiment_id: str, parent_id: str, study: str) -> None:
        self.tracking_uri, self.experiment_id, self.parent_id, self.study = tracking_uri, experiment_id, parent_id, study
        self._client: MlflowClient | None = None
        self._retry_at, self._warned = 0.0, False

    @classmethod
    def open(
        cls, tracking_uri: str | None, experiment: str, artifact_root: Path | str, study: str, settings: Mapping[str, Any],
        tags: Mapping[str, str] | None = None, *, resume: bool = False,
    ) -> Tracker:
        """Create or open the database, the experiment and the parent run; end runs that a killed driver left running.

        Args:
            tracking_uri: `sqlite:///file` or `http://host:port`; None for `mlflow.db` next to `artifact_root`.
            experiment: name of the MLflow experiment.
            artifact_root: folder or URI of the artifacts, if the experiment is new and the store is a database.
            study: name of the parent run; no other driver may run this study at the same time.
            settings: flat settings of the study, logged as parameters of the parent run and untruncated in `config.json`.
            tags: additional tags of the parent run.
            resume: continue the study's latest parent run instead of creating one.

        Raises:
            ConfigError: a file store, a deleted experiment, a store that cannot be reached or refuses the credentials, or
                artifacts that cannot be written.
        """
        root = str(artifact_root) if "://" in str(artifact_root) else str(Path(artifact_root).expanduser().absolute())
        uri = absolute_tracking_uri(tracking_uri, Path(root).parent)
        stored = open_experiment(uri, experiment, root)
        tracker = cls(uri, stored.experiment_id, "", study)
        try:
            tracker._begin(settings, tags or {}, resume)
        except LOGGING_ERRORS as error:
            refuse_credentials(error, uri)
            if tracker.parent_id:
                tracker.finish("FAILED")
            location = stored.artifact_location
            remedy = f"make {location} writable, or start the server with --serve-artifacts"
            problem = f"MLflow at {uri} cannot store a file in {location}: {text.short(error)}"
            raise ConfigError(problem, remedy=remedy, key="tracking_uri", value=uri) from error
        return tracker

    @property
    def client(self) -> MlflowClient:
        """The MLflow client of this process."""
        if self._client is None:
            self._client = MlflowClient(self.tracking_uri)
        return self._client

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_retry_at": 0.0}

    def start_trial(self, trial_id: str, number: int, params: Mapping[str, Any]) -> tuple[str, int] | None:
        """Create or reopen a trial's run and log its settings.

        A setting that differs from the logged one becomes the tag `effective_<name>`.

        Args:
            trial_id: of the trial.
            number: of the trial.
            params: its settings; with a setting `run` the run has that name and the role `final`.

        Returns:
            The run's id and the last logged epoch; None if logging failed.
        """
        return self._attempt(self._start_trial, trial_id, number, params)

    def unsettled(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Records of ended trials whose runs have no end status, because the driver was killed before it set it."""
        return self._attempt(self._unsettled, {record.trial_id: record for record in records}, always=True) or []

    def log_epochs(self, run_id: str, epochs: Sequence[Epoch], *, always: bool = False) -> bool:
        """Log epochs in one batch. Non-finite values are not logged; they set the tag `diverged=true`.

        Args:
            run_id: of the trial's run.
            epochs: to log.
            always: try even during the pause after a failure.

        Returns:
            Whether they were logged.
        """
        return self._attempt(self._log_epochs, run_id, epochs, always=always) is not None

    def end_trial(self, run_id: str, record: TrialRecord) -> bool:
        """Set a trial's end status and the tags state, reason, retries, pruned, diverged, log_path; False if that failed."""
        return self._attempt(self._end_trial, run_id, record, always=True) is not None

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Store a file or a folder with the parent run, in the artifact folder `folder`."""
        action = "log_artifacts" if Path(path).is_dir() else "log_artifact"
        self._attempt(lambda: getattr(self.client, action)(self.parent_id, str(path), folder), always=True)

    def finish(self, status: str = "FINISHED") -> None:
        """End the parent run as FINISHED, FAILED or KILLED; runs of trials that are still open become KILLED."""
        self._attempt(self._close_leftovers, self.parent_id, always=True)
        self._attempt(lambda: self.client.set_terminated(self.parent_id, status), always=True)

    def log_data(self, name: str, fingerprint: str, profile: Mapping[str, Any]) -> None:
        """Log what the study is trained on as a data set of the parent run, with the context `training`.

        Args:
            name: a folder, or the name of a bundled data set.
            fingerprint: of the data; its first 36 characters, the most that MLflow takes, are the digest.
            profile: counts.
        """
        folder = Path(name).is_absolute()
        source = ("local", {"uri": name}) if folder else ("bundled", {"name": name})
        data = Dataset(
            Path(name).name if folder else name, fingerprint[: text.MAX_DIGEST], source[0], json.dumps(source[1]),
            profile=json.dumps(dict(profile)),
        )
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "training")])]
        self._attempt(lambda: self.client.log_inputs(self.parent_id, inputs), always=True)

    def log_results(self, metrics: Mapping[str, float], description: str) -> None:
        """Log the study's results with the parent run; those of an earlier session are replaced.

        Args:
            metrics: finite numbers by name.
            description: Markdown.
        """
        now = int(time.time() * 1000)
        batch = [Metric(safe_name(name), float(value), now, 0) for name, value in metrics.items()]
        tags = [RunTag("mlflow.note.content", text.cut(description))]
        self._attempt(lambda: self.client.log_batch(self.parent_id, metrics=batch, tags=tags), always=True)

    def register_model(self, checkpoint_dir: Path | str, name: str, tags: Mapping[str, str]) -> Registered | None:
        """Store a checkpoint with the parent run and as a version of a registered model that answers by name, without pickle.

        The version gets the alias `champion` if it is better than the version that has it, see `tune.tracking.registry`. A
        study that is resumed without a new winner gets no second version.

        `mlflow.pyfunc.load_model("models:/<name>@champion")` needs this package installed; see `ImfPyfunc.predict`.

        Args:
            checkpoint_dir: a checkpoint folder.
            name: name of the registered model, without `/` and `:`.
            tags: of the version, also those by which versions are compared.

        Returns:
            The version; None if logging failed.
        """
        tags = {"study": self.study, **tags}
        return self._attempt(self._register_model, Path(checkpoint_dir), name, tags, always=True)

    def _attempt(self, action: Callable[..., Any], *args: Any, always: bool = False) -> Any:
        """Call an action; returns its result or True, and None if it failed or logging pauses after a failure."""
        if not always and time.monotonic() < self._retry_at:
            return None
        try:
            result = action(*args)
        except LOGGING_ERRORS as error:
            self._retry_at = time.monotonic() + _PAUSE_S
            if not self._warned:
                self._warned = True
                logger.warning("MLflow logging failed (%s), the search continues: %s", self.tracking_uri, text.short(error))
            return None
        return True if result is None else result

    def _begin(self, settings: Mapping[str, Any], tags: Mapping[str, str], resume: bool) -> None:
        self._close_leftovers(None)
        earlier = [run for run in self._runs(f"tags.study = {text.quoted(self.study)}") if run.data.tags.get("role") == "study"]
        if resume and earlier:
            self.parent_id = earlier[0].info.run_id
            self.client.update_run(self.parent_id, status="RUNNING")
        else:
            tags = {**origin(), **tags, "mlflow.runName": self.study, "study": self.study, "role": "study"}
            self.parent_id = self.client.create_run(self.experiment_id, tags=tags).info.run_id
        self._log_params(self.parent_id, settings)

    def _runs(self, query: str) -> list[Run]:
        """All runs that match a query, latest first."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], query, page_token=token)
            runs += page
            if not (token := page.token):
                return runs

    def _close_leftovers(self, parent_id: str | None) -> None:
        """Set RUNNING runs to KILLED: those of one parent's trials, or with None all of this study."""
        query = f"attributes.status = 'RUNNING' and tags.study = {text.quoted(self.study)}"
        for run in self._runs(query + (f" and tags.`mlflow.parentRunId` = '{parent_id}'" if parent_id else "")):
            self.client.log_batch(run.info.run_id, tags=[RunTag("reason", "left running by a search that ended early")])
            self.client.set_terminated(run.info.run_id, "KILLED")

    def _unsettled(self, records: Mapping[str, TrialRecord]) -> list[TrialRecord]:
        lacking = []
        for run in self._runs(f"tags.`mlflow.parentRunId` = {text.quoted(self.parent_id)}"):
            record = records.get(run.data.tags.get("trial_id", ""))
            if record is not None and (run.info.status != RUN_STATUS[record.state] or "state" not in run.data.tags):
                lacking.append(record)
        return lacking

    def _start_trial(self, trial_id: str, number: int, params: Mapping[str, Any]) -> tuple[str, int]:
        parent = f"tags.`mlflow.parentRunId` = {text.quoted(self.parent_id)}"
        runs = self._runs(f"tags.trial_id = {text.quoted(trial_id)} and {parent}")
        if runs:
            run_id = runs[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            logged = max((metric.step for metric in self.client.get_metric_history(run_id, "mrr")), default=0)
        else:
            name, role = (str(params["run"]), "final") if "run" in params else (f"trial {number:03d}", "trial")
            tags = {"mlflow.parentRunId": self.parent_id, "mlflow.runName": name, "role": role, "study": self.study}
            tags |= {"trial_id": trial_id, "trial_number": str(number)}
            run_id, logged = self.client.create_run(self.experiment_id, tags=tags).info.run_id, 0
        self._log_params(run_id, params)
        return run_id, logged

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        known = self.client.get_run(run_id).data.params
        if not known:
            self.client.log_text(run_id, text.config_text(params), "config.json")
        new, tags = [], []
        for key, value in params.items():
            name, value_text = safe_name(key), text.cut(text.param_text(value))
            if name not in known:
                new.append(Param(name, value_text))
            elif known[name] != value_text:
                tags.append(RunTag(f"effective_{name}"[: text.MAX_NAME], value_text))
        for start in range(0, max(len(new), len(tags)), text.MAX_BATCH):
            part = slice(start, start + text.MAX_BATCH)
            self.client.log_batch(run_id, params=new[part], tags=tags[part])

    def _log_epochs(self, run_id: str, epochs: Sequence[Epoch]) -> None:
        batch = [
            Metric(safe_name(key), float(value), int(at * 1000), epoch)
            for epoch, metrics, at in epochs for key, value in metrics.items() if math.isfinite(value)
        ]
        finite = all(math.isfinite(value) for _, metrics, _ in epochs for value in metrics.values())
        tags = [] if finite else [RunTag("diverged", "true")]
        for start in range(0, max(len(batch), 1), text.MAX_METRICS):
            self.client.log_batch(run_id, metrics=batch[start : start + text.MAX_METRICS], tags=[] if start else tags)

    def _end_trial(self, run_id: str, record: TrialRecord) -> None:
        tags = {"state": str(record.state), "reason": text.cut(record.reason), "log_path": record.log_path}
        tags["retries"] = str(record.retries)
        tags |= {name: f"{value:g}" for name, value in record.metrics.items() if name.startswith("effective_")}
        if record.state in (TrialState.PRUNED, TrialState.DIVERGED):
            tags[str(record.state)] = "true"
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self.client.set_terminated(run_id, RUN_STATUS[record.state])

    def _register_model(self, checkpoint: Path, name: str, tags: Mapping[str, str]) -> Registered:
        create_model(self.client, name)
        known = version_of(self.client, name, self.parent_id, tags)
        version = str(known.version) if known is not None else self._new_version(checkpoint, name, tags)
        return Registered(version, crown(self.client, name, version))

    def _new_version(self, checkpoint: Path, name: str, tags: Mapping[str, str]) -> str:
        self.client.log_artifacts(self.parent_id, str(checkpoint), "checkpoint")
        with module_store(self.tracking_uri, self.experiment_id), tempfile.TemporaryDirectory() as folder:
            code = Path(folder) / "model.py"
            code.write_text(text.MODEL_CODE, encoding="utf-8")
            files, packages = parts_to_ship(checkpoint)
            model = mlflow.models.Model.log(
                None, mlflow.pyfunc, name=name, run_id=self.parent_id, python_model=str(code),
                signature=signature(task_of(checkpoint)),
                artifacts={"checkpoint": str(checkpoint.absolute()), **files},
                pip_requirements=[*text.requirements(), *packages],
            )
        version = self.client.create_model_version(
            name, model.model_uri, self.parent_id, tags=dict(tags), model_id=model.model_id
        )
        return str(version.version)
