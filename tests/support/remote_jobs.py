"""What the tasks of tests/campaign/executors/test_remote.py do in place of training: they import no torch."""

import os
import signal
from typing import Any

from tests.support.waiting import wait_until

from remeasure.campaign.executors.base import Task
from remeasure.runs.folder import Place
from remeasure.spec.base import InputError


def note(task: Task, place: Place) -> int:
    """Journal this start in a file; returns how many there were before."""
    path = place.project / f"started-{task.seed}"
    before = path.read_text().count("\n") if path.exists() else 0
    with path.open("a") as file:
        file.write(f"{os.getpid()} {task.fresh}\n")
    return before


def report(task: Task, place: Place) -> Any:
    note(task, place)
    return [task.seed, os.environ["OMP_NUM_THREADS"]]


def refuse(task: Task, place: Place) -> Any:
    note(task, place)
    return InputError(f"seed {task.seed}: a wrong config")


def die_once(task: Task, place: Place) -> Any:
    """As of lack of memory."""
    if note(task, place) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return [task.seed]


def die(task: Task, place: Place) -> Any:
    note(task, place)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_leave(task: Task, place: Place) -> Any:
    """Until the file `leave` is there."""
    note(task, place)
    wait_until((place.project / "leave").exists)
    return [task.seed]
