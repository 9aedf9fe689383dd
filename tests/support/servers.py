"""Servers of the tests' own: MLflow's tracking server, and PostgreSQL for it. Both listen on 127.0.0.1 alone."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.support.forking import client as forking
from tests.support.suite import wait_until

SETPRIV = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")  # PostgreSQL refuses to run as root


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TrackingServer:
    """`mlflow server` over a backend store, which can be killed and started again at the same place."""

    def __init__(self, folder: Path, *, backend: str) -> None:
        self.folder, self.backend, self.port = folder, backend, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = {"--host": "127.0.0.1", "--port": str(self.port), "--workers": "1"}
        options |= {"--backend-store-uri": self.backend, "--artifacts-destination": str(self.folder / "artifacts")}
        arguments = [part for option in options.items() for part in option]
        environment = forking.environment(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("ab") as log:
            self._process = forking.popen(
                ["-c", "from mlflow.cli import cli; cli()", "server", *arguments],
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
def tracking_server(folder: Path, *, backend: str) -> Iterator[TrackingServer]:
    server = TrackingServer(folder, backend=backend)
    try:
        server.start()
        yield server
    finally:
        server.kill()


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
def postgresql() -> Iterator[str]:
    """A fresh cluster in a temporary folder; yields its URI, and leaves nothing behind."""
    binaries, port = _binaries(), free_port()
    assert binaries is not None
    as_user: Sequence[str] = SETPRIV if os.geteuid() == 0 else ()
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        data = Path(folder) / "data"
        if as_user:
            shutil.chown(folder, "nobody", "nogroup")
        initdb = [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "remeasure",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run([*as_user, *initdb], cwd=folder, check=True, capture_output=True)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
        arguments = [part for setting in settings for part in ("-c", setting)]
        server = subprocess.Popen(
            [*as_user, binaries / "postgres", "-D", data, *arguments], cwd=folder, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: _listens(server, port=port))
            yield f"postgresql+psycopg://remeasure@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, without a checkpoint
            server.wait(timeout=30)


def _listens(server: "subprocess.Popen[bytes]", *, port: int) -> bool:
    import psycopg

    assert server.poll() is None, "PostgreSQL has ended"
    try:
        psycopg.connect(host="127.0.0.1", port=port, user="remeasure", dbname="postgres", connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
