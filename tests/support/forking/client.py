"""Start Python commands in forked processes, where that makes no difference: each then begins seconds sooner.

A forked process differs from a new one in this: third-party packages are imported already (in the tests' environment,
without OMP_NUM_THREADS > 1 and without a GPU), so their warnings at import are not seen; all have the server's
PYTHONHASHSEED; a traceback begins with lines of server.py; a helper process is among its children. A command which
depends on that needs `subprocess`. It is a new process, too, where an option or a variable of the environment is given
that a fork cannot have.
"""

import atexit
import inspect
import multiprocessing.util
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.support.forking.server import fork, forked

TESTED = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # what a command of the tests has in its environment
# What no imported package has read as it was imported. Where anything else differs, the process is a new one.
FREE = re.compile(
    r"REMEASURE_\w+|FAULTS_\w+|WATCHED|CUBLAS_WORKSPACE_CONFIG|PYTEST_\w+|PYTHONPATH|TMPDIR|TERM|COLUMNS|XDG_CACHE_HOME|no_proxy"
    r"|AWS_\w+|PG[A-Z]+|HF_\w+|KMP_\w+|_?MLFLOW_\w+|DO_NOT_TRACK|HYDRA_FULL_ERROR|TORCHINDUCTOR_\w+|RAY_\w+|PYTORCH_NVML_BASED_CUDA_CHECK"
)
OPTIONS = {"cwd", "stdin", "stdout", "stderr", "text", "bufsize", "start_new_session"}
ROOM = 4096  # characters of a command line that /proc shows
SECONDS_TO_START = 300.0  # a server that takes so long hangs
# With these, the packages start no thread as they are imported: a forked process has none but its first.
ALONE = {"DO_NOT_TRACK": "true", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
BEGUN = {**os.environ, **TESTED}  # what the packages read when the server imports them


def environment(**changes: str) -> dict[str, str]:
    """This process's, as far as a forked command can have it, with these changes."""
    return {**os.environ, **TESTED, **changes}


def popen(command: Sequence[str], *, env: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
    """As subprocess.Popen([sys.executable, *command], env=env, …); forked if this makes no difference."""
    can_be_forked = (command[0] == "-c" or not command[0].startswith("-")) and options.keys() <= OPTIONS
    kind = _Forked if can_be_forked and _bound(env) == _bound(BEGUN) else subprocess.Popen
    return kind([sys.executable, *command], env=env, **options)


def fork_workers(patch: pytest.MonkeyPatch) -> None:
    """Have the processes that multiprocessing starts from this one forked if this makes no difference."""
    patch.setattr(multiprocessing.util, "spawnv_passfds", forked(lambda: None if changed() else _server()))


def changed() -> set[str]:
    """The variables of the environment for whose sake processes are not forked any more: BEGUN has other values."""
    now, begun = _bound({**TESTED, **os.environ, "CUDA_VISIBLE_DEVICES": ""}), _bound(BEGUN)
    return {name for name in now | begun if now.get(name) != begun.get(name)}


def run(command: Sequence[str], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """The finished process of `popen`, killed after `timeout` seconds."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with popen(command, **pipes, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _bound(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not FREE.fullmatch(name)}


class _Forked(subprocess.Popen[Any]):
    def _execute_child(self, *arguments: Any) -> None:
        given = inspect.signature(subprocess.Popen._execute_child).bind(self, *arguments).arguments
        pipes = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        child_ends = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        self.pid = fork(
            _server(),
            given["args"][1:],
            files={number: number if end == -1 else end for number, end in enumerate(child_ends)},
            cwd=str(given["cwd"] or Path.cwd()),
            environment=given["env"],
            new_session=given["start_new_session"],
            leads=True,
        )
        self._child_created = True
        self._close_pipe_fds(*pipes)


@cache
def _server() -> socket.socket:
    """The end of this process's server that requests go to. The server ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py")), str(theirs.fileno()), " " * ROOM],
            env=_bound(BEGUN) | ALONE,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # not a file: the streams of Python that a fork inherits must not seek
            stderr=subprocess.STDOUT,
        )
    ours.settimeout(SECONDS_TO_START)
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours
