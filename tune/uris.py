"""Addresses of MLflow stores: made absolute, escaped, shown without their password. Nothing here imports mlflow."""

from __future__ import annotations

import os
import re
from pathlib import Path

from imf_core.errors import ConfigError

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_SERVER_SCHEMES = ("http", "https", "databricks", "databricks-uc", "postgresql", "mysql", "mssql")


def local_tracking_uri(storage: Path) -> str:
    """The MLflow store beside the studies."""
    return sqlite_url(storage / "mlflow.db")


def sqlite_url(file: Path | str) -> str:
    """The URL of a SQLite database, in which `?`, `#` and `%` of its path are escaped.

    Where they are, the driver is named: of a `sqlite:` URL MLflow takes the path as it stands there, and makes its folder.
    """
    from sqlalchemy import URL

    url = URL.create("sqlite", database=str(file))
    plain = url.render_as_string()
    return plain if plain == f"sqlite:///{file}" else url.set(drivername="sqlite+pysqlite").render_as_string()


def database_of(url: str) -> str:
    """The path of the database file that a `sqlite:` URL names; empty if it names none."""
    from sqlalchemy import make_url

    return make_url(url).database or ""


def without_password(uri: str) -> str:
    """A URI to print and to store, whose password is `***`."""
    return re.sub(r"(://[^/@:]*):[^/@]+@", r"\1:***@", uri)


def absolute_tracking_uri(uri: str | None, storage: Path, source: str = "--tracking-uri") -> str:
    """Make the URI of the MLflow store independent of the working directory.

    Args:
        uri: None or empty for `sqlite:///<storage>/mlflow.db`; a relative SQLite path starts at the current directory.
        storage: absolute folder of the studies.
        source: the option or environment variable that it was given with, for errors.

    Raises:
        ConfigError: a file store (`./mlruns`, `file:...`), an in-memory database or an unknown scheme.
    """
    default = local_tracking_uri(storage)
    if not uri:
        return default
    leave_out = f"unset {source}" if source == TRACKING_VARIABLE else f"leave {source} out"
    if (kind := uri.partition(":")[0]) in ("sqlite", "sqlite+pysqlite"):
        address, mark, query = uri.partition("?")
        path = database_of(address) if address.startswith(f"{kind}:///") else ""
        if path in ("", ":memory:"):
            raise ConfigError(
                f"tracking URI {uri!r} ({source}) names no database file",
                remedy=f"write sqlite:///path/mlflow.db, for example {default}", key="tracking_uri", value=uri,
            )
        return f"{sqlite_url(absolute(path))}{mark}{query}"
    scheme = uri.partition("://")[0] if "://" in uri or uri.startswith("databricks") else ""
    if scheme.partition("+")[0] in _SERVER_SCHEMES:
        return uri
    folder = uri.removeprefix("file://").removeprefix("file:")
    if scheme in ("", "file"):
        if folder.endswith((".db", ".sqlite")):
            remedy = f"write {sqlite_url(absolute(folder))}"
        else:
            remedy = (
                f"{leave_out} or write {default}; to keep the runs that are already there: "
                f"`mlflow migrate-filestore --source {absolute(folder)} --target {default}`"
            )
        problem = f"tracking URI {uri!r} ({source}) is a file store, which MLflow 3 no longer accepts"
        raise ConfigError(problem, remedy=remedy, key="tracking_uri", value=uri)
    problem = f"tracking URI {uri!r} ({source}) has the unknown scheme {scheme!r}"
    raise ConfigError(problem, remedy=f"write {default} or http://host:port", key="tracking_uri", value=uri)


def absolute(path: str | Path) -> str:
    """The absolute path, with `~` expanded and symbolic links kept."""
    return os.path.abspath(os.path.expanduser(str(path)))
