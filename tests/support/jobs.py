"""What the worker processes of tests/campaign/executors/test_local.py do in place of training: they import no torch."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from remeasure.campaign.executors import local
from remeasure.campaign.executors.local import Task
from remeasure.runs.folder import Place


def report(task: Task, place: Place) -> Any:
    """Two events, then the process's own state."""
    for number in (1, 2):
        local._SINK.put((place.runs, {"event": "epoch", "epoch": number, "seed": task.seed}))
    return {"seed": task.seed, "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()}


def wait_for_ever(task: Task, place: Place) -> Any:
    """Until SIGTERM: the file then says that what waited was left as a run is, by an exception."""
    path = Path(place.runs) / f"{task.seed}"
    path.write_text(str(os.getpid()))
    try:
        time.sleep(30)  # for a test that fails, for ever
    except SystemExit as reason:
        time.sleep(0.5 * (task.seed == 0))  # one has ended already: nothing breaks off what the other says at its end
        path.write_text(f"SystemExit({reason.code})")
        raise


def wait_for_ever_if_seed_1(task: Task, place: Place) -> Any:
    return wait_for_ever(task, place) if task.seed == 1 else report(task, place)


def kill_itself_if_seed_0(task: Task, place: Place) -> Any:
    """Seed 0 dies as of lack of memory."""
    if task.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return report(task, place)


def wait_for_each_other(spec: Any, place: Place) -> float:  # noqa: ARG001
    """Until `spec.together` such jobs have begun; returns which of them this one is, from 1."""
    (spec.folder / str(os.getpid())).touch()
    number = len(list(spec.folder.iterdir()))
    ends = time.monotonic() + 60.0
    while len(list(spec.folder.iterdir())) < spec.together:
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)
    return float(number)
