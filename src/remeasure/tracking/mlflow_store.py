"""The MLflow store: where it is, how it is made and opened, and where its files go.

mlflow takes about two seconds to import: it is imported when a Store is opened, never with this file.
"""

import hashlib
import logging
import os
import re
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from remeasure.spec.base import InputError
from remeasure.system import locks
from remeasure.system.redaction import masked
from remeasure.tracking.best_effort import first_line
from remeasure.tracking.views import FIRST, IS_ROW, link

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

P = ParamSpec("P")
R = TypeVar("R")
EXPERIMENT = "remeasure"
ARTIFACTS = "mlartifacts"  # the folder of a store's files, beside its database
# Columns of MLflow's tables that hold the absolute address of files.
LOCATIONS = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")),
    *(("model_versions", "source"), ("model_versions", "storage_location")),
)

# Set before mlflow is imported, unless the user has. A dead server then costs 10 s, not minutes.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a model's files are few
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the last line on stdout is ours
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}


def try_twice(send: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call it again where MLflow fails, as it does if two processes make the same entry at once: a run's parameter, a
    data set, a tag of the experiment, a registered model. The second call finds the entry.
    """
    from mlflow.exceptions import MlflowException

    try:
        return send(*args, **kwargs)
    except MlflowException:
        return send(*args, **kwargs)


def available() -> bool:
    """Whether mlflow is installed; without it nothing is tracked, and `make track` can replay the runs elsewhere."""
    return find_spec("mlflow") is not None


def store_uri(project_root: Path) -> str:
    """MLFLOW_TRACKING_URI, else the SQLite database at the project root, whatever the working directory.

    InputError: a ? in that path, which begins the options of a URI, so that the database would lie elsewhere.
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    database = (project_root / "mlflow.db").resolve()
    if "?" in str(database):
        remedy = "rename that folder, or set MLFLOW_TRACKING_URI"
        raise InputError(f"{database}: MLflow's database cannot lie in a folder with a ? in its path; {remedy}")
    return f"sqlite:///{database}"


def artifact_root(uri: str, *, project_root: Path) -> Path | None:
    """Where a new store's files go: beside a SQLite database, at the project root, or where the server says (None)."""
    database = _sqlite_path(uri)
    if database is None and re.match(r"(postgresql|mysql|mssql)\b", uri) is None:
        return None
    return (database.parent if database else project_root).resolve() / ARTIFACTS


def _sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI, None for any other store."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(match[1]) if match and match[1] != ":memory:" else None


class NotNowError(InputError):
    """The store is locked, or its server refuses the password: runs go on, and `make track` sends them later."""


class Store:
    """The experiment `remeasure` of one MLflow store, which is made if it does not exist.

    `artifact_root`: where a new experiment keeps its files; None leaves it to the server. A SQLite database that was
    moved or copied with its project gets the addresses of its files corrected. `lock_seconds`: how long a call waits
    for another process that works on the store.
    Raises InputError if the store cannot be reached or used; NotNowError if it is locked or refuses the password.
    """

    def __init__(self, uri: str, *, artifact_root: Path | None, lock_seconds: float = locks.LOCK_SECONDS) -> None:
        self.uri, self.lock_seconds = uri, lock_seconds
        self.database = _sqlite_path(uri)
        try:
            # Processes that migrate one new SQLite database at the same time crash each other.
            with self.locked():
                if self.database and not self.database.exists():
                    _make(self.database, artifact_root=artifact_root)
                self.client = _client(uri)
                self.experiment_id = _experiment(self.client, artifact_root=artifact_root)
                if self.database and artifact_root:
                    relocate(self.database, artifact_root=artifact_root)
            self._inode = self.database.stat().st_ino if self.database else 0
        except locks.NoLocksError:
            raise
        except Exception as error:
            raise _unusable(uri, error=error) from error

    def locked(self) -> AbstractContextManager[None]:
        """Hold the store's lock file: no store prevents two processes from creating the same run at once."""
        path = _lock_path(self.uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        return locks.held(path, seconds=self.lock_seconds)

    def history(self, run: "Run") -> "list[Metric]":
        """All points of a run's metrics, but those of its machine."""
        keys = sorted(key for key in run.data.metrics if not key.startswith("system/"))
        return [point for key in keys for point in self.client.get_metric_history(run.info.run_id, key)]

    def check(self) -> None:
        """Raise OSError if the database was deleted or replaced: SQLite would silently write to the deleted file."""
        if self.database and not (self.database.exists() and self.database.stat().st_ino == self._inode):
            raise OSError(f"{self.database} was deleted or replaced under this process")


def serve(project_root: Path, *, port: int) -> NoReturn:
    """Become MLflow's UI over the store, at 127.0.0.1; once it answers, the link is printed that opens its rows with
    their verdicts, or all runs where no row was measured yet.

    Raises InputError: no mlflow, a store that cannot be used, or one that a server shows already; a port in use.
    """
    if not available():
        raise InputError("mlflow is not installed here; `make setup` installs it")
    if "%" in sys.prefix:
        raise InputError(
            f"{sys.prefix}: MLflow's UI cannot start from a folder with a % in its path; rename that folder"
        )
    uri = store_uri(project_root)
    if uri.startswith(("http://", "https://")):
        raise InputError(f"MLFLOW_TRACKING_URI: {masked(uri)} is a server, which has a UI of its own: open it there")
    _refuse_port_in_use(port)
    store = Store(uri, artifact_root=artifact_root(uri, project_root=project_root))
    address = f"http://127.0.0.1:{port}{first_link(store)}"
    server = os.getpid()
    if os.fork() == 0:
        _tell(f"{address}  (Ctrl-C ends it)", port=port, server=server)
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # background jobs of language models: eight processes more
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # no argument: it may hold a password
    }
    options = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")  # one person needs one
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "ui", *options], environment)


def first_link(store: Store) -> str:
    """What follows the server's address: the view of rows, which filters all other runs out, if the store has a row."""
    rows = store.client.search_runs([store.experiment_id], IS_ROW, max_results=1)
    return link(store.experiment_id, FIRST if rows else "")


def _refuse_port_in_use(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise InputError(
            f"port {port}: {os.strerror(error.errno or 0)}; --port (PORT= of make) chooses another"
        ) from None


def _tell(line: str, *, port: int, server: int) -> NoReturn:
    """Print the line when the port answers, and end this process; without a line if the server has ended."""
    try:
        while os.getppid() == server:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                print(line, flush=True)
                break
            time.sleep(0.2)
    finally:
        os._exit(0)


def relocate(database: Path, *, artifact_root: Path) -> None:
    """Point the experiment's files, runs and models to `artifact_root`, if the database says another place.

    MLflow stores absolute addresses, so that a renamed project would write into its old folder, and a copy into the
    original's. Only addresses below the experiment's own are changed, and only if it was this program that chose it.
    """
    new = artifact_root.absolute().as_uri()
    with closing(sqlite3.connect(database)) as connection, connection:
        ((old,),) = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,))
        if old == new or not re.fullmatch(rf"(file:)?/.*/{ARTIFACTS}", old):
            return
        for table, column in LOCATIONS:
            below = f"{column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'"
            moved = f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) WHERE {below}"
            connection.execute(moved, {"old": old, "new": new})


@contextmanager
def filled_at_once(uri: str) -> Iterator[None]:
    """Do not wait for the disk within the block, where SQLite is about to make the store, but once at the end.

    A power failure meanwhile can damage the file, which holds nothing yet that `make track` could not send again.
    """
    database = _sqlite_path(uri)
    if database is None or database.exists():
        yield
        return
    engine, event = import_module("sqlalchemy").Engine, import_module("sqlalchemy.event")

    def do_not_wait(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(engine, "connect", do_not_wait)
    try:
        yield
    finally:
        event.remove(engine, "connect", do_not_wait)
        if database.exists():
            with database.open("rb") as file:
                os.fsync(file.fileno())


def _client(uri: str) -> "MlflowClient":
    """Import mlflow, quietly, and connect."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # faults that matter are raised
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri):
        # MLflow's ten tries with doubling delays would report a wrong database after 100 s.
        database: Any = import_module("mlflow.store.db.utils")
        database.MAX_RETRY_COUNT = 3
        if "%" in database.__file__:
            _escape_percent()
    return MlflowClient(uri)


@cache
def _escape_percent() -> None:
    """Let alembic take the % in the path of MLflow's migrations for a %, not for the start of a placeholder."""
    config: Any = import_module("alembic.config").Config
    original = config.set_main_option

    def set_main_option(self: object, name: str, value: str) -> None:
        original(self, name, value.replace("%", "%%") if name == "script_location" else value)

    config.set_main_option = set_main_option


def _make(database: Path, *, artifact_root: Path | None) -> None:
    """Make a SQLite store, and rename it when complete: MLflow refuses for ever one that a kill left half made."""
    partial = database.with_name(f"{database.name}.partial")
    for leftover in database.parent.glob(f"{partial.name}*"):
        leftover.unlink()
    uri = f"sqlite:///{partial}"
    with filled_at_once(uri):
        _experiment(_client(uri), artifact_root=artifact_root)
    os.replace(partial, database)


def _experiment(client: "MlflowClient", *, artifact_root: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            location = artifact_root.absolute().as_uri() if artifact_root else None
            return str(client.create_experiment(EXPERIMENT, artifact_location=location))
        except MlflowException:  # another process has made it meanwhile
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ValueError(
            f"the experiment {EXPERIMENT} was deleted there; "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` brings it back"
        )
    return str(experiment.experiment_id)


def _unusable(uri: str, *, error: Exception) -> InputError:
    """What to raise where the store cannot be opened, with what to do about it."""
    if getattr(error, "error_code", "") == "UNAUTHENTICATED":
        what = f"MLflow's server {masked(uri)} does not accept this user name and password"
        return NotNowError(f"{what}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    what = f"MLflow's store {masked(uri)} cannot be used: {first_line(error)}"
    if isinstance(error, TimeoutError) or "database is locked" in what:
        return NotNowError(what, "try again when the process that has locked it has ended")
    if "disk is full" in what:
        return InputError(what, "make room there, and start it again")
    remedy = "start that server, correct MLFLOW_TRACKING_URI, or unset it to use mlflow.db in the project"
    return InputError(what, remedy)


def _lock_path(uri: str) -> Path:
    """The lock file: beside a SQLite database; for any other store in the temporary folder, one a user and URI."""
    if database := _sqlite_path(uri):
        return database.with_name(f"{database.name}.lock")
    name = f"remeasure-{os.getuid()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
    return Path(tempfile.gettempdir()) / name
