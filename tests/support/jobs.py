"""What the worker processes of tests/campaign/executors/test_local.py do in place of training: they import no torch."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until

from remeasure.campaign.executors.base import Task
from remeasure.runs.folder import Place
from remeasure.spec.record import Event

Sink = Callable[[Path, Event], None]
SECONDS_TO_WAIT = 600.0  # longer than any test waits for an end


def report(task: Task, place: Place, sink: Sink) -> Any:
    """Two events, then the process's own state."""
    for number in (1, 2):
        sink(place.runs, {"event": "epoch", "epoch": number, "seed": task.seed})
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"seed": task.seed, "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid(), "gpus": seen}


def wait_for_ever(task: Task, place: Place, sink: Sink) -> Any:  # noqa: ARG001
    """Until SIGTERM: the file then says that what waited was left as a run is, by an exception."""
    path = Path(place.runs) / f"{task.seed}"
    try:
        path.write_text(str(os.getpid()))
        time.sleep(SECONDS_TO_WAIT)
    except SystemExit as reason:
        time.sleep(0.5 * (task.seed == 0))  # one has ended already: nothing breaks off what the other says at its end
        path.write_text(f"SystemExit({reason.code})")
        raise


def wait_for_ever_if_seed_1(task: Task, place: Place, sink: Sink) -> Any:
    return wait_for_ever(task, place, sink) if task.seed == 1 else report(task, place, sink)


def kill_itself_if_seed_0(task: Task, place: Place, sink: Sink) -> Any:
    """Seed 0 dies as of lack of memory."""
    if task.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return report(task, place, sink)


def kill_itself(task: Task, place: Place, sink: Sink) -> Any:  # noqa: ARG001
    os.kill(os.getpid(), signal.SIGKILL)


def ignore_sigterm(task: Task, place: Place, sink: Sink) -> Any:  # noqa: ARG001
    """As a worker that hangs."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (place.runs / f"{task.seed}").write_text(str(os.getpid()))
    time.sleep(SECONDS_TO_WAIT)


def slowly_if_seed_0(task: Task, place: Place, sink: Sink) -> Any:
    """The seed is the only outcome. Seed 0 ends after another one."""
    sink(place.runs, {"event": "epoch", "epoch": 1, "seed": task.seed})
    another = place.runs / "another-seed-has-ended"
    if task.seed:
        another.touch()
    else:
        wait_until(another.exists)
        time.sleep(1.0)  # in which the pool takes the other's outcome
    return [task.seed]


def wait_for_each_other(spec: Any, place: Place) -> float:  # noqa: ARG001
    """Until `spec.together` such jobs have begun; returns which of them this one is, from 1."""
    (spec.folder / str(os.getpid())).touch()
    number = len(list(spec.folder.iterdir()))
    wait_until(lambda: len(list(spec.folder.iterdir())) >= spec.together)
    return float(number)
