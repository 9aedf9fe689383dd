"""`python driver.py reproduce|train <arguments>`: src/reproduce.py or src/train.py, watched, and robbed of its power.

Its worker processes run this file as well (multiprocessing's spawn), so that all of them are watched alike.

FAULTS_FOLDER   where the watch is written: `calls` (one line for each fsync and rename), `synced`, `weights`
FAULTS_CUT      such as "other 17 before": when the power fails, right "before" or "after" the 17th call that is about
                "any" file, an "other" one than a checkpoint, or one of that name; absent: never

When the power fails, every process stops at once, and what was written to a file after its last fsync is gone, or half
of it. Renames happened in their order, as file systems with a journal have it.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil

from remeasure.campaign.executors import base
from remeasure.runs import timing
from remeasure.runs.folder import Outcome, Place
from remeasure.runs.journal import JOURNAL_FILE, Sink
from remeasure.system import paths, startup

FOLDER = Path(os.environ["FAULTS_FOLDER"])
KIND, NUMBER, WHEN = os.environ.get("FAULTS_CUT", "any 0 before").split()
STILL = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
execute = base.execute_task
timing.TIMED_SECONDS = 0.1  # what a seed costs is of no interest here


def main() -> int:
    """The command itself."""
    from remeasure.cli import commands

    command, *arguments = sys.argv[1:]
    if command == "reproduce":
        return commands.reproduce_main(arguments)
    sys.argv[1:] = arguments
    watch_weights()
    return commands.train_main()


# ---------------------------------------------------------------- the watch


def note(name: str, line: str) -> list[str]:
    """Append a line to a file that all processes share; its lines, this one included."""
    with (FOLDER / name).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{line}\n")
        file.flush()
        file.seek(0)
        return file.read().splitlines()


@functools.cache
def watch_weights() -> None:
    """Note the SHA-256 of a net's weights when its run has come to its end."""
    from remeasure.runs import recorder
    from remeasure.training.engines.base import Scored

    keep = recorder._keep_arrays

    def keep_noted(directory: Path, *, scored: Scored) -> None:
        state = {name: value.cpu().numpy() for name, value in scored.network.state_dict().items()}
        digest = hashlib.sha256(b"".join(name.encode() + value.tobytes() for name, value in state.items()))
        note("weights", f"{directory.name} {digest.hexdigest()}")
        keep(directory, scored=scored)

    recorder._keep_arrays = keep_noted


def watched_execute(task: base.Task, place: Place, sink: Sink) -> list[Outcome]:
    watch_weights()
    return execute(task, place, sink)


def watch_disk() -> None:
    """Note each fsync and rename under runs/ and results/; the one at which the power fails is the last."""
    for name in ("fsync", "replace", "rename"):
        setattr(os, name, watched(getattr(os, name), name=name))


def watched(call: Callable[..., None], *, name: str) -> Callable[..., None]:
    def noted(*arguments: Any, **options: Any) -> None:
        path = Path(f"/proc/self/fd/{arguments[0]}").readlink() if name == "fsync" else Path(arguments[1])
        if not any(path.is_relative_to(folder) for folder in kept_folders()):
            call(*arguments, **options)
            return
        number = sum(counts(line.split()[0]) for line in note("calls", f"{path.name} {name} {path}"))
        fails = number == int(NUMBER) and counts(path.name)
        if fails and WHEN == "before":
            lose_power()
        call(*arguments, **options)
        if name == "fsync":
            note("synced", f"{state(path)} {path}")
        if fails:
            lose_power()

    return noted


def counts(name: str) -> bool:
    """Whether calls about a file of that name are among those that are counted."""
    return KIND == "any" or (not name.startswith("checkpoint.") if KIND == "other" else name.startswith(KIND))


def kept_folders() -> tuple[Path, Path]:
    return paths.project_root() / "runs", paths.project_root() / "results"


def state(path: Path) -> str:
    """What tells a file, and that it has not changed; a rename keeps it."""
    found = path.stat()
    return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"


# ---------------------------------------------------------------- the power cut


def lose_power() -> NoReturn:
    while running := [other for other in companions() if other.status() not in STILL]:
        for other in running:
            other.send_signal(signal.SIGSTOP)
        time.sleep(0.001)
    synced = (FOLDER / "synced").read_text().splitlines() if (FOLDER / "synced").exists() else []
    chance = random.Random(int(NUMBER))
    for path in sorted(path for folder in kept_folders() for path in folder.rglob("*") if path.is_file()):
        forget(path, synced=synced, chance=chance)
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("unreachable")


def companions() -> Iterator[psutil.Process]:
    """The other processes of this session."""
    for other in psutil.process_iter(["pid"]):
        with contextlib.suppress(ProcessLookupError):
            if other.pid != os.getpid() and os.getpgid(other.pid) == os.getpgid(0):
                yield other


def forget(path: Path, *, synced: list[str], chance: random.Random) -> None:
    """Lose what is not known to be on the disk. Of a journal, which only grows, what was synced once stays."""
    size = path.stat().st_size
    if f"{state(path)} " in {line[: line.index("/")] for line in synced}:
        return
    safe = 0
    if path.name == JOURNAL_FILE:
        safe = max((int(line.split()[2]) for line in synced if line.endswith(f" {path}")), default=0)
    os.truncate(path, chance.choice((safe, (safe + size) // 2)))


if __name__ == "__main__":
    startup.begin()
    watch_disk()
    startup.run(main)
else:
    watch_disk()
    base.execute_task = watched_execute  # what the parent asks a worker for by its name
