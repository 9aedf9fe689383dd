"""A campaign that is killed again and again, and started again each time, ends as one that nobody touched."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from tests.faults.campaign import (
    EPOCHS,
    NUM_KILLS,
    REPRODUCE,
    TIMEOUT_SECONDS,
    Campaign,
    Unbroken,
    faults,
    folder,
    kept,
    leftover_processes,
    setbacks,
    summary,
)

# Of a start that was killed; what an orphan of the one before still writes may look as if this one trained already, and
# a signal that comes during the imports ends it by itself.
STATUS = {"all": (-9,), "parent": (-9,), "worker": (1,), "SIGTERM": (143, -15), "SIGINT": (130, -2)}
Process = subprocess.Popen[bytes]
RecordProperty = Callable[[str, object], None]


def test_a_campaign_that_is_killed_at_random_ends_as_an_unbroken_one(
    unbroken: Unbroken, tmp_path: Path, record_property: RecordProperty
) -> None:
    """Killed as a whole, its parent alone, a worker alone, by SIGTERM, by Ctrl-C; a new campaign when one has ended."""
    chance, num_kills, found = random.Random(NUM_KILLS), 0, list[str]()
    while num_kills < NUM_KILLS:
        campaign = unbroken.begin(folder(tmp_path, name=f"after-{num_kills}-kills"))
        kills = killed_until_it_ends(campaign, chance=chance, most=NUM_KILLS - num_kills, found=found)
        num_kills += kills
        found += [*setbacks(campaign), *faults(kept(campaign), expected=unbroken.kept)]
    record_property("faults", summary(f"{num_kills} kills", faults=found))
    assert found == [], "\n".join(found)


def killed_until_it_ends(campaign: Campaign, *, chance: random.Random, most: int, found: list[str]) -> int:
    """Start, kill, start again, until a start ends by itself; how many kills that took, `most` at the most."""
    pids, records, num_kills = list[int](), dict[str, Any](), 0
    while True:
        process = campaign.start(*REPRODUCE)
        pids.append(process.pid)
        moment = wait_for_moment(process, campaign=campaign, chance=chance) if num_kills < most else "end"
        way = kill(process, chance=chance) if num_kills < most and process.poll() is None else ""
        status = process.wait(TIMEOUT_SECONDS)
        now = campaign.records()
        found += [f"lost: the record of {name}" for name in records if now.get(name) != records[name]]
        records = now
        if status == 0:
            break
        assert way, f"status {status} without a kill\n{campaign.output()}"
        if moment in ("training", "record") and status not in STATUS[way]:
            found.append(f"differing: status {status}, expected {STATUS[way]} ({way} killed)")
        num_kills += 1
    ends = time.monotonic() + TIMEOUT_SECONDS
    while (left := list(leftover_processes(pids))) and time.monotonic() < ends:
        time.sleep(0.05)
    assert left == []
    return num_kills


def wait_for_moment(process: Process, *, campaign: Campaign, chance: random.Random) -> str:
    """Most often some way into training; sometimes while it starts, or when a seed has just been finished."""
    before, num_records = campaign.journal_bytes(), len(campaign.records())
    store_is_there = (campaign.root / "mlflow.db").exists()
    more = chance.randint(1, 300 * EPOCHS)  # an epoch is about 200 bytes
    moments: dict[str, Callable[[], bool]] = {
        "training": lambda: campaign.journal_bytes() >= before + more,
        "record": lambda: len(campaign.records()) > num_records,
        "store": lambda: any(campaign.root.glob("mlflow.db*")),
        "start": lambda: True,
    }
    weights = {"training": 12, "record": 3, "store": 0 if store_is_there else 12, "start": 1}
    moment = chance.choices(list(weights), weights=list(weights.values()))[0]
    delay_seconds = chance.uniform(0, 5.0 if moment == "start" else 2.5 if moment == "store" else 0.3)
    while process.poll() is None and not moments[moment]():
        time.sleep(0.01)
    ends = time.monotonic() + delay_seconds
    while process.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)
    return moment


def kill(process: Process, *, chance: random.Random) -> str:
    """Kill it in one of five ways, and say which."""
    way = chance.choice(("all", "parent", "worker", "SIGTERM", "SIGINT"))
    workers = workers_of(process)
    if way == "worker" and not workers:
        way = "parent"
    if way == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif way == "worker":
        with contextlib.suppress(psutil.NoSuchProcess):  # the campaign has just ended
            chance.choice(workers).kill()
    elif way in ("SIGTERM", "SIGINT"):
        process.send_signal(signal.Signals[way])
    else:
        process.kill()
    return way


def workers_of(process: Process) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:  # it has just ended
        return []
