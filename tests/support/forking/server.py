"""`python server.py FD <room>`: import the heavy packages once, then fork a process for each command that FD asks for.

The fork has the arguments, working directory, environment, files and session that its client gives, and the client's
signal mask and cores, and runs the script or the code of `-c` as `__main__`. It is the client's own child. Its worker
processes (multiprocessing's spawn and forkserver) are forked likewise, by a helper process of its own, which ends with
it.
"""

import array
import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import multiprocessing.util
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = (
    *("hydra", "torch", "torch._dynamo", "torchvision", "pytorch_lightning", "sklearn.datasets", "scipy.stats"),
    *("mlflow", "mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store", "alembic.command", "rich.progress"),
    *("mlflow.pytorch", "torch.export", "networkx", "jinja2"),
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LARGEST_REQUEST = 2**20  # bytes
FIRST_OWN_FILE = 500  # no command has so many files open
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
prctl = ctypes.CDLL(None).prctl


def fork(
    control: socket.socket,
    arguments: Sequence[str],
    *,
    files: Mapping[int, int],
    cwd: str,
    environment: Mapping[str, str],
    new_session: bool = False,
    leads: bool = False,
) -> int:
    """Ask a server for a process, which becomes this process's child; returns its id.

    `files`: this process's file descriptors by what they are in the child. `leads`: it will have a server of its own.
    """
    request = {
        "arguments": list(arguments),
        "files": list(files),
        "cwd": cwd,
        "environment": dict(environment),
        "new_session": new_session,
        "leads": leads,
        "parent": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "ignored": [int(number) for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN],
    }
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files.values()))
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the process between server and command ends, and leaves its child here
    try:
        control.sendmsg([json.dumps(request).encode()], [rights])
        return int(control.recv(LARGEST_REQUEST))
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def serve(control: socket.socket) -> list[str]:
    """Fork for each request. Returns in the forked process alone, with the arguments of its command."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while True:
        request, descriptors = receive(control)
        if child := os.fork():
            os.waitpid(child, 0)
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        middle = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == middle:
            time.sleep(0.0005)
        if os.getppid() != request["parent"]:  # it has ended
            os._exit(0)
        become(request, descriptors=descriptors)
        show_as(request["arguments"])
        control.send(str(os.getpid()).encode())
        control.close()
        if not request["leads"]:
            return list(request["arguments"])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        leader = os.getpid()
        if os.fork():
            theirs.close()
            fork_workers(ours)
            return list(request["arguments"])
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != leader:
            os._exit(0)
        show_as(["helper of", *request["arguments"]])
        ours.close()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in request["files"]:
            os.dup2(nowhere, descriptor)
        control = out_of_the_way(theirs)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def show_as(arguments: Sequence[str]) -> None:
    """Have /proc/self/cmdline say this, as far as the server's own command line leaves room."""
    first, last = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])  # arg_start, arg_end
    shown = b"".join(os.fsencode(argument) + b"\0" for argument in (sys.executable, *arguments))
    ctypes.memmove(first, shown[: last - first - 1].ljust(last - first, b"\0"), last - first)


def out_of_the_way(control: socket.socket) -> socket.socket:
    """The same socket under a file descriptor that no command asks for."""
    with control:
        return socket.socket(fileno=fcntl.fcntl(control.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FILE))


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request and its file descriptors; ends the process if the client has gone."""
    content, descriptors, _, _ = socket.recv_fds(control, LARGEST_REQUEST, 64)
    if not content:
        os._exit(0)
    return json.loads(content), descriptors


def become(request: Mapping[str, Any], *, descriptors: Sequence[int]) -> None:
    """Give this process all that the request says."""
    if request["new_session"]:
        os.setsid()
    held = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FILE) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(held, request["files"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.sched_setaffinity(0, request["cores"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.modules["numpy"].random.seed()
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    for number in SIGNALS:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else default)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


def fork_workers(control: socket.socket) -> None:
    """Have the processes that multiprocessing starts forked, too."""
    multiprocessing.util.spawnv_passfds = forked(lambda: control)


def forked(control: Callable[[], socket.socket | None]) -> Callable[[str, Sequence[str], Sequence[int]], int]:
    """As multiprocessing's spawnv_passfds, by the server that is asked through `control()`; a new process for None."""
    start = multiprocessing.util.spawnv_passfds

    def spawnv_passfds(path: str, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
        code = arguments[list(arguments).index("-c") + 1]
        is_worker = "multiprocessing.spawn" in code or "multiprocessing.forkserver" in code
        if not is_worker or (server := control()) is None:
            return start(path, arguments, descriptors)
        command = arguments[list(arguments).index("-c") :]
        files = {int(number): int(number) for number in (0, 1, 2, *descriptors)}
        return fork(server, command, files=files, cwd=str(Path.cwd()), environment=os.environ)

    return spawnv_passfds


def run(arguments: Sequence[str]) -> None:
    """Run `<script> …` or `-c <code> …` as Python does."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    if arguments[0] == "-c":
        content, name, folder = arguments[1], "<string>", ""
        sys.argv = ["-c", *arguments[2:]]
    else:
        content, name, folder = Path(arguments[0]).read_text(), arguments[0], str(Path(arguments[0]).resolve().parent)
        main.__file__ = name
        sys.argv = list(arguments)
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[0:1] = [folder, *own]
    importlib.invalidate_caches()
    if any((Path(path) / "sitecustomize.py").exists() for path in own):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    exec(compile(content, name, "exec"), main.__dict__)


def end(error: BaseException | None) -> None:
    """End as Python does after its main module, but leave the memory of the imported packages to the kernel."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


if __name__ == "__main__":
    for package in PACKAGES:
        importlib.import_module(package)
    # MLflow looks at each file of each package, once a process, when it stores a model.
    importlib.import_module("mlflow.utils.requirements_utils")._init_packages_to_modules_map()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork has none of the other threads"
    gc.collect()
    gc.freeze()
    command = serve(out_of_the_way(socket.socket(fileno=int(sys.argv[1]))))
    failed: BaseException | None = None
    try:
        run(command)
    except BaseException as error:
        failed = error
    end(failed)
