"""Campaigns side by side: on one fresh store, on the same rows, with SQLite and with a server on PostgreSQL."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.project import Command, Project
from tests.support.servers import no_postgresql, postgresql, tracking_server
from tests.support.suite import (
    ROWS,
    SEEDS,
    assert_whole,
    finished_seeds,
    small_suite,
    sqlite_uri,
    statuses,
    times_started,
)
from tests.support.waiting import wait_until

from remeasure.runs import journal

NUM_CAMPAIGNS = 8 if os.environ.get("REMEASURE_FAULTS") else 3
ELSEWHERE = "another process trains it as well; the two divide its seeds"


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The MLFLOW_TRACKING_URI of a store that nobody has used yet; "" leaves it to the project."""
    if request.param == "sqlite":
        yield ""
        return
    if reason := no_postgresql():
        pytest.skip(reason)
    with postgresql() as backend, tracking_server(tmp_path, backend=backend) as server:
        yield server.uri


@pytest.fixture
def suite(tmp_path: Path) -> Project:
    return small_suite(tmp_path / "project", epochs=60, store="")


def start(project: Project, script: str, *arguments: str, core: int = 0, store: str = "") -> "subprocess.Popen[bytes]":
    """A command on one core alone, so that it has one worker."""
    cores = os.sched_getaffinity(0)
    changes = {"MLFLOW_TRACKING_URI": store, "MLFLOW_HTTP_REQUEST_TIMEOUT": "300"} if store else {}  # it may be busy
    os.sched_setaffinity(0, {sorted(cores)[core % len(cores)]})  # which a child inherits
    try:
        return project.start(
            script, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=project.environment(**changes)
        )
    finally:
        os.sched_setaffinity(0, cores)


def ended(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """Exit status, and what it said on stderr."""
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr.decode()


def test_campaigns_that_start_at_once_on_a_fresh_store_lose_no_seed_and_train_none_twice(
    store: str, suite: Project, here: Command
) -> None:
    """Nor is there a second experiment, a run left RUNNING, or a row in results/ that does not fit the table."""
    processes = [start(suite, "reproduce.py", core=core, store=store) for core in range(NUM_CAMPAIGNS)]
    ends = [ended(process) for process in processes]
    assert [status for status, _ in ends] == [0] * NUM_CAMPAIGNS, "\n".join(said for _, said in ends)
    for _, said in ends:
        assert "Traceback" not in said
        assert "tracking is behind" not in said
    begun = [line.partition(": started")[0] for _, said in ends for line in said.splitlines() if ": started" in line]
    assert sorted(begun) == [f"{row} seed {seed}" for row in ROWS for seed in SEEDS]
    assert_whole(suite, uri=store or sqlite_uri(suite))
    assert here(suite, "reproduce.py", "verify").status == 0


@pytest.mark.parametrize("killed", [False, True])
def test_a_seed_that_another_process_trains_is_left_to_it_unless_that_is_killed(
    killed: bool, suite: Project, here: Command
) -> None:
    """The other one stands still in seed 0, while the campaign trains the other seeds of the row."""
    other = start(suite, "train.py", "model=mlp2", "data=digits", "recipe=short", "seed=0")
    try:
        wait_until(lambda: any(content.count(b'"epoch"') > 20 for content in suite.journals().values()))
        other.send_signal(signal.SIGSTOP)  # past the first epochs, whose projection holds the store
        campaign = start(suite, "reproduce.py", "reproduce", "mlp2-digits", core=1)
        wait_until(lambda: finished_seeds(suite) == len(SEEDS) - 1)
        assert campaign.poll() is None
        assert_still_running_after_a_campaign_without_time(suite)
        other.send_signal(signal.SIGKILL if killed else signal.SIGCONT)
        status, said = ended(campaign)
    finally:
        other.send_signal(signal.SIGCONT)
    assert status == 0, said
    assert said.count(f"mlp2-digits: {ELSEWHERE}") == 1
    assert ended(other)[0] == (-signal.SIGKILL if killed else 0)
    assert times_started(suite) == {("mlp2-digits", seed): 1 for seed in SEEDS}
    (directory,) = suite.runs.glob("mlp2-digits-*-s0-a1")
    again = [event["event"] for event in journal.read(directory)].count("resumed")
    assert again == int(killed)
    assert here(suite, "reproduce.py", "track").status == 0  # which hangs the single run below its row
    assert_whole(suite, uri=sqlite_uri(suite), rows=["mlp2-digits"])


def assert_still_running_after_a_campaign_without_time(suite: Project) -> None:
    """The row is RUNNING until the last process that works on it ends."""
    status, said = ended(start(suite, "reproduce.py", "reproduce", "mlp2-digits", "--budget", "0s"))
    assert status == 0, said
    assert statuses(sqlite_uri(suite))["mlp2-digits"] == "RUNNING"
