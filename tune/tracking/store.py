"""The MLflow store of a study: its experiment, what it refuses, and MLflow's settings of this process."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import mlflow
from alembic.util.exc import CommandError
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.git_context import GitRunContext
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from imf_core.errors import ConfigError
from tune.sources import git_commit
from tune.tracking import names as text
from tune.uris import TRACKING_VARIABLE, database_of

LOGGING_ERRORS = (MlflowException, OSError, SQLAlchemyError, CommandError)  # the last: tables of a later MLflow
_LOCKED = "database is locked"
_LOCK_SECONDS = 60.0  # that a database may be locked by another program before a search refuses to begin

logger = logging.getLogger(__name__)


def open_experiment(uri: str, experiment: str, root: str) -> Experiment:
    """Create or open the database and the experiment.

    Args:
        uri: of the store, independent of the working directory.
        experiment: name.
        root: folder or URI of the artifacts, if the experiment is new and the store is a database.

    Raises:
        ConfigError: as `Tracker.open`.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow.store.db.utils", "alembic"):  # they log every migration of a new database
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith("http"):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default blocks the search loop for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if uri.startswith("sqlite") and os.path.isdir(database_of(uri)):  # SQLAlchemy would try for minutes
        problem, remedy = f"{database_of(uri)} cannot be read: it is a folder", "move it away: a database is made in its place"
        raise ConfigError(problem, remedy=remedy, key="tracking_uri", value=uri)
    try:
        with text.one_at_a_time(uri):
            stored = _patiently(lambda: _experiment(uri, experiment, root), uri)
    except LOGGING_ERRORS as error:
        refuse_credentials(error, uri)
        if uri.startswith("sqlite"):
            database = database_of(uri)
            locked = _LOCKED in str(error)
            whole = "move it away: a new one is made, and the study itself is whole"
            remedy = "end the program that holds it" if locked else whole
            problem = f"{database} {'is locked' if locked else 'cannot be read'}: {text.short(error)}"
            raise ConfigError(problem, remedy=remedy, key="tracking_uri", value=uri) from error
        remedy = f"start the server, or leave --tracking-uri out and unset {TRACKING_VARIABLE} to use a local database"
        problem = f"MLflow cannot be reached at {uri}: {text.short(error)}"
        raise ConfigError(problem, remedy=remedy, key="tracking_uri", value=uri) from error
    location = stored.artifact_location
    if stored.lifecycle_stage == "deleted":
        restore = f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {stored.experiment_id}"
        remedy = f"restore it (`{restore}`) or choose another experiment name"
        problem = f"the MLflow experiment {experiment!r} was deleted"
        raise ConfigError(problem, remedy=remedy, key="experiment", value=experiment)
    remote = uri.startswith("http") and not text.is_loopback(urlsplit(uri).hostname or "")
    if remote and urlsplit(location).scheme in ("", "file"):
        raise ConfigError(
            f"the MLflow server {uri} keeps artifacts in a folder on its own machine, {location}",
            remedy="start it with --serve-artifacts and --artifacts-destination, then use a new experiment name",
            key="tracking_uri", value=uri,
        )
    return stored


def _experiment(uri: str, experiment: str, root: str) -> Experiment:
    client = MlflowClient(uri)
    stored = client.get_experiment_by_name(experiment)
    if stored is None:
        location = None if uri.startswith("http") and "://" not in root else root
        stored = client.get_experiment(client.create_experiment(experiment, artifact_location=text.as_uri(location)))
    return stored


def _patiently(action: Callable[[], Experiment], uri: str) -> Experiment:
    """Wait, with a word, while another program holds the database."""
    end, told = time.monotonic() + _LOCK_SECONDS, False
    while True:
        try:
            return action()
        except LOGGING_ERRORS as error:
            if _LOCKED not in str(error) or time.monotonic() >= end:
                raise
        if not told:
            told = True
            logger.warning("%s is locked by another program; waiting for up to %.0f s", uri, _LOCK_SECONDS)
        time.sleep(0.5)


@contextmanager
def module_store(uri: str, experiment_id: str) -> Iterator[None]:
    """Set the store and the experiment of MLflow's module functions, which otherwise write a model to ./mlruns.

    MLflow puts both into the environment too, where the next search of this process would take them for the user's wish.
    """
    names = (TRACKING_VARIABLE, "MLFLOW_EXPERIMENT_ID")
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(experiment_id=experiment_id)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input example.*")  # an example would make MLflow run the model
            yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def origin() -> dict[str, str]:
    """Who started the study, with which script, and the Git commit of the code, as tags that MLflow's pages show."""
    commit = git_commit()  # MLflow's own looks above an installed package, and would name the repository of something else
    tags = resolve_tags(ignore=[GitRunContext])  # type: ignore[list-item]  # the hint says objects, the code wants classes
    return {**tags, **({"mlflow.source.git.commit": commit} if commit else {})}


def refuse_credentials(error: BaseException, uri: str) -> None:
    """Refuse to go on if a server's answer was 401 or 403.

    Raises:
        ConfigError: it was; names the variables with credentials.
    """
    status = _http_status(error, uri)
    if status not in (401, 403):
        return
    credentials = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    given = any(os.environ.get(name) for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"))
    if status == 401:
        problem = "does not accept the credentials" if given else "asks for credentials, and none are set"
        remedy = f"{'correct' if given else 'set'} {credentials}"
    else:
        problem = "forbids what the search has to do: make and write runs in an experiment"
        remedy = f"ask for the permission, or set the credentials of an account that has it ({credentials}); a server that is "
        remedy += "reached by another host name than its own needs --allowed-hosts"
    raise ConfigError(
        f"MLflow at {uri} {problem} (HTTP {status}: {text.short(error)})", remedy=remedy, key="tracking_uri", value=uri,
    ) from error


def _http_status(error: BaseException, uri: str) -> int:
    """The status of the answer that made a request fail; 0 if there was none."""
    status = int(error.get_http_status_code()) if isinstance(error, MlflowException) else 0
    if status != 500 or not uri.startswith("http"):
        return status
    try:  # a proxy's answer in JSON hides its status from MLflow: ask once more
        path = "/api/2.0/mlflow/experiments/search"
        answer = http_request(get_default_host_creds(uri), path, "GET", params={"max_results": 1})
    except LOGGING_ERRORS:
        return 0
    return int(answer.status_code)
