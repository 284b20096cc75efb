"""MLflow: a store of its own in the outputs folder (sqlite), or a server."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from compresskd.listeners.tracker import Job, check_reachable, check_writable, library, milliseconds
from compresskd.options import OptionError, Refusal, Whole
from compresskd.run import FAILED, FINISHED, INTERRUPTED

_SQLITE = "sqlite:///"
_STATUS = {FINISHED: "FINISHED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
_SECONDS_TO_WAIT = 60
_AT_ONCE = 100  # parameters in one call
_MEANT = {  # where the user has not set them
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it reports uses to its makers
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # it tells of every table that it makes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # seven take minutes, in which the run waits
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
}


@dataclass(frozen=True)
class MLflow:
    """Keep a run in a store of MLflow.

    Attributes:
        uri: of the store; None takes MLFLOW_TRACKING_URI where it is set, else `mlflow.db` in the outputs folder.
        experiment: the name under which runs are gathered.
        max_model_bytes: a larger model file is not stored.
    """

    uri: str | None = None
    experiment: str = "compresskd"
    max_model_bytes: Whole = 50_000_000

    def check(self, outputs: Path) -> None:
        """Errors as `Tracker.check`'s."""
        uri, place = self._uri(outputs), self._database(outputs)
        _mlflow(*(("sqlalchemy", "alembic", "sqlparse") if place else ()))
        if place is not None:
            check_writable("uri", place.parent)
            _check_database(uri, place)
        elif uri.startswith(("http://", "https://")):
            _check_server(uri)

    def open(self, job: Job) -> _Run:
        """Go on in the run of before where the store has it."""
        database = self._database(job.outputs)
        with _alone(database):  # who comes first makes the tables and the experiment
            client = _mlflow().MlflowClient(tracking_uri=self._uri(job.outputs))
            experiment = client.get_experiment_by_name(self.experiment)
            place = None if database is None else str(database.parent / "mlartifacts")
            number = (
                experiment.experiment_id if experiment else client.create_experiment(self.experiment, place)
            )
        if job.identity is not None:
            try:
                client.update_run(job.identity, status="RUNNING")
            except _mlflow().exceptions.MlflowException:  # of another store
                pass
            else:
                return _Run(client, job.identity)
        tags = {"compresskd.directory": str(job.directory)}
        run = client.create_run(number, run_name=job.name, tags=tags).info.run_id
        entities = library("mlflow.entities")
        parameters = [entities.Param(_name(key), value) for key, value in job.parameters.items()]
        for start in range(0, len(parameters), _AT_ONCE):
            client.log_batch(run, params=parameters[start : start + _AT_ONCE])
        return _Run(client, run)

    def _uri(self, outputs: Path) -> str:
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or _of(outputs)

    def _database(self, outputs: Path) -> Path | None:
        """The file of a sqlite store."""
        uri = self._uri(outputs)
        return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def _of(outputs: Path) -> str:
    """The store in an outputs folder; a job waits while another one writes."""
    return f"{_SQLITE}{outputs.absolute()}/mlflow.db?timeout={_SECONDS_TO_WAIT}"


class _Run:
    """One run of MLflow."""

    def __init__(self, client: Any, identity: str):
        self._client, self.identity = client, identity

    def steps(self, name: str) -> Collection[int]:
        """Result as `Following.steps`'."""
        return {metric.step for metric in self._client.get_metric_history(self.identity, _name(name))}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One transaction."""
        metric, now = library("mlflow.entities").Metric, milliseconds()
        metrics = [metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def finish(self, status: str, table: str, files: Sequence[Path]) -> None:
        """The table and the files as artefacts."""
        self._client.log_text(self.identity, table, "results.md")
        for path in files:
            self._client.log_artifact(self.identity, str(path))
        self._client.set_terminated(self.identity, _STATUS.get(status, "FAILED"))


def _mlflow(*needed: str) -> Any:
    for name, value in _MEANT.items():
        os.environ.setdefault(name, value)
    return library("mlflow", *needed)


def _name(text: str) -> str:
    """A name without the signs that MLflow refuses."""
    return re.sub(r"[^\w\-. /]", "_", text, flags=re.ASCII)[:250]


@contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        yield


def _check_database(uri: str, path: Path) -> None:
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as connection:
            connection.execute("PRAGMA schema_version").fetchall()
    except sqlite3.Error as error:
        raise OptionError("uri", uri, f"a database of sqlite ({error})") from error


def _check_server(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise OptionError("uri", uri, f"an address ({error})") from error
    if not host:
        raise Refusal("uri", f"got {uri}, expected an address with a host")
    check_reachable("uri", uri, host, port)
