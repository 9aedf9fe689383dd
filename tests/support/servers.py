"""Servers of the tests' own: MLflow's, PostgreSQL and an S3-compatible store. All listen on 127.0.0.1 alone."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.forking import client as forking
from tests.support.project import CHECKOUT
from tests.support.waiting import wait_until

SETPRIV = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")  # PostgreSQL refuses to run as root


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TrackingServer:
    """MLflow's server, started by a Python command, which can be killed and started again at the same place."""

    def __init__(self, folder: Path, *, command: Sequence[str], **environment: str) -> None:
        self.folder, self.port = folder, free_port()
        self._command, self._environment = command, environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1")
        environment = forking.environment(
            MLFLOW_DISABLE_TELEMETRY="true",
            DO_NOT_TRACK="true",
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",  # background jobs of language models: eight processes more
            **self._environment,
        )
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("ab") as log:
            self._process = forking.popen(
                [*self._command, *options],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers)

    def kill(self) -> None:
        """SIGKILL to it and all its processes."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def _running(server: TrackingServer) -> Iterator[TrackingServer]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def tracking_server(folder: Path, *, backend: str) -> Iterator[TrackingServer]:
    """`mlflow server` over a backend store, with its files in the folder."""
    stores = ("--backend-store-uri", backend, "--artifacts-destination", str(folder / "artifacts"))
    command = ("-c", "from mlflow.cli import cli; cli()", "server", *stores)
    with _running(TrackingServer(folder, command=command)) as server:
        yield server


# ---------------------------------------------------------------- a team's server

ACCOUNT = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "hunter2-of-the-team"}
DATABASE_PASSWORD = "hunter2-of-the-database"
KEYS = {  # of the S3-compatible store
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "hunter2-of-the-store",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class Store:
    """An S3-compatible store, empty at first."""

    endpoint: str

    @property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def objects(self, bucket: str) -> dict[str, str]:
        """The digest of each object's content by its key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {each["Key"]: each["ETag"] for page in pages for each in page.get("Contents", ())}


@contextmanager
def s3_store() -> Iterator[Store]:
    """A stand-in, in memory, which lets everybody in."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield Store(f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    finally:
        server.stop()


@contextmanager
def team_server(folder: Path, *, store: Store) -> Iterator[TrackingServer]:
    """deploy/serve.py on a PostgreSQL of its own and on the store; `ACCOUNT` is its administrator's."""
    with postgresql(DATABASE_PASSWORD) as database:
        place = re.fullmatch(r".*//(\w+)@(.*):(\d+)/(\w+)", database)
        assert place
        environment = {
            **dict(zip(("PGUSER", "PGHOST", "PGPORT", "PGDATABASE"), place.groups(), strict=True)),
            **KEYS,
            "PGPASSWORD": DATABASE_PASSWORD,
            "AWS_ENDPOINT_URL_S3": store.endpoint,
            "MLFLOW_AUTH_ADMIN_PASSWORD": ACCOUNT["MLFLOW_TRACKING_PASSWORD"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the tests",
        }
        with _running(TrackingServer(folder, command=[str(CHECKOUT / "deploy/serve.py")], **environment)) as server:
            yield server


# ---------------------------------------------------------------- PostgreSQL


def no_postgresql() -> str:
    """Why PostgreSQL cannot be used here, "" where it can."""
    if _binaries() is None:
        return "PostgreSQL is not here: apt-get install postgresql"
    if find_spec("psycopg") is None:
        return "Python's PostgreSQL driver is not here: pip install 'psycopg[binary]'"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL refuses to run as root, and there is no setpriv: apt-get install util-linux"
    return ""


def _binaries() -> Path | None:
    """The folder of initdb and postgres, which Debian keeps off the PATH."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *map(Path, filter(None, [shutil.which("initdb")]))]
    return max(found).parent if found else None


@contextmanager
def postgresql(password: str = "") -> Iterator[str]:
    """A fresh cluster in a temporary folder; yields its URI, without the password, and leaves nothing behind.

    `password`: the user's; "" lets everybody in.
    """
    binaries, port = _binaries(), free_port()
    assert binaries is not None
    as_user: Sequence[str] = SETPRIV if os.geteuid() == 0 else ()
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        data, secret = Path(folder) / "data", Path(folder) / "password"
        secret.write_text(password)
        if as_user:
            shutil.chown(folder, "nobody", "nogroup")
        access = ("-A", "scram-sha-256", f"--pwfile={secret}") if password else ("-A", "trust")
        initdb = (binaries / "initdb", "-D", data, "-U", "remeasure", *access, "-E", "UTF8", "--no-sync")
        subprocess.run([*as_user, *initdb], cwd=folder, check=True, capture_output=True)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
        arguments = [part for setting in settings for part in ("-c", setting)]
        server = subprocess.Popen(
            [*as_user, binaries / "postgres", "-D", data, *arguments], cwd=folder, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: _listens(server, port=port, password=password))
            yield f"postgresql+psycopg://remeasure@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, without a checkpoint
            server.wait(timeout=30)


def _listens(server: "subprocess.Popen[bytes]", *, port: int, password: str) -> bool:
    import psycopg

    assert server.poll() is None, "PostgreSQL has ended"
    place: dict[str, Any] = {"host": "127.0.0.1", "port": port, "user": "remeasure", "dbname": "postgres"}
    try:
        psycopg.connect(**place, password=password, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
