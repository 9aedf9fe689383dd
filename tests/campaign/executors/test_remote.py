"""Tasks elsewhere: submitit's local scheduler, a real Slurm of one node, and Ray."""

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support import remote_jobs, trained
from tests.support.project import Project, copy_project
from tests.support.slurm import slurm, why_not
from tests.support.waiting import wait_until

from remeasure.campaign.executors import choose
from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.ray import Ray
from remeasure.campaign.executors.ray import Settings as RaySettings
from remeasure.campaign.executors.remote import Execute
from remeasure.campaign.executors.slurm import JOBS, Settings, Slurm
from remeasure.runs import journal
from remeasure.runs.folder import Place, read_record
from remeasure.spec.base import InputError

SETTINGS = Settings(
    at_once=2,
    minutes=10,
    requeues=3,
    attempts=2,
    partition=None,
    account=None,
    memory_gb=None,
    cpus_per_run=None,
    gpus_per_run=None,
    container=None,
    setup=(),
    extra={},
    scheduler="local",
)
# submitit does not wait for the processes of its local scheduler
pytestmark = pytest.mark.filterwarnings("ignore:.*Popen.__del__:pytest.PytestUnraisableExceptionWarning")
ON_THIS_MACHINE = RaySettings(address=None, at_once=2, gpus_per_run=0.0, retries=2, shared_disk=True)


@pytest.fixture(scope="session")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if reason := why_not():
        pytest.skip(reason)
    with slurm(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


@pytest.fixture
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """For jobs of a real Slurm where it is installed, else of submitit's local scheduler."""
    monkeypatch.setattr(Slurm, "state_seconds", 1.0)
    if why_not():
        return SETTINGS
    monkeypatch.setenv("SLURM_CONF", str(request.getfixturevalue("slurm_conf")))
    return dataclasses.replace(SETTINGS, scheduler="slurm")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return trained.place(tmp_path)


def task(seed: int, *, fresh: bool = False) -> Task:
    return Task(row="mlp2-digits", seed=seed, spec=trained.spec(), fresh=fresh, asked_by="mlp2-digits")


def results(pool: Slurm | Ray, *tasks: Task) -> dict[int, Any]:
    """Seed to what came back, a result or an exception."""
    found: dict[int, Any] = {}
    waiting = list(tasks)

    def start() -> bool:
        while waiting and pool.idle:
            pool.submit(waiting.pop(0))
        return bool(waiting)

    pool.work(
        start,
        take=lambda entry, future: found.update({entry.seed: future.exception() or future.result()}),
        watch=journal.unwatched,
    )
    return found


def starts(place: Place, seed: int) -> list[str]:
    path = place.project / f"started-{seed}"
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def abandoned(place: Place, settings: Settings, *, execute: Execute) -> Iterator[Slurm]:
    """A coordinator that is killed: nothing of it is told to end."""
    yield Slurm(place, settings, execute=execute)


# ---------------------------------------------------------------- Slurm


def test_each_task_is_a_job_and_its_outcome_comes_back(place: Place, settings: Settings) -> None:
    with Slurm(place, settings, execute=remote_jobs.report) as pool:
        assert results(pool, task(0), task(1), task(2)) == {seed: [seed, "1"] for seed in range(3)}
    assert list((place.runs / JOBS).glob("*.json")) == []
    assert [len(starts(place, seed)) for seed in range(3)] == [1, 1, 1]


def test_what_a_run_raises_comes_back_as_it_is(place: Place, settings: Settings) -> None:
    with Slurm(place, settings, execute=remote_jobs.refuse) as pool:
        error = results(pool, task(4))[4]
    assert isinstance(error, InputError)
    assert error.faults == ("seed 4: a wrong config",)


def test_jobs_run_on_a_machine_without_a_scheduler(place: Place) -> None:
    with Slurm(place, SETTINGS, execute=remote_jobs.report) as pool:
        assert results(pool, task(0)) == {0: [0, "1"]}


def test_a_job_that_is_lost_is_submitted_again_and_is_not_fresh_then(place: Place, settings: Settings) -> None:
    with Slurm(place, settings, execute=remote_jobs.die_once) as pool:
        assert results(pool, task(0, fresh=True)) == {0: [0]}
    assert [line.split()[1] for line in starts(place, 0)] == ["True", "False"]


def test_a_job_that_is_lost_each_time_fails(place: Place, settings: Settings) -> None:
    with Slurm(place, settings, execute=remote_jobs.die) as pool:
        error = results(pool, task(0))[0]
    assert "ended without a result" in str(error)
    assert len(starts(place, 0)) == settings.attempts


def test_the_next_process_attaches_to_a_job_that_waits_or_runs(
    place: Place, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with abandoned(place, settings, execute=remote_jobs.wait_for_leave) as pool, pool.together():
        for seed in (0, 1):
            pool.submit(task(seed))
    wait_until(lambda: starts(place, 0))
    directory = place.runs / f"mlp2-digits-{trained.spec().spec_sha256[:12]}-cpu-s0-a1"

    def leave() -> None:
        with Slurm(place, settings, execute=remote_jobs.report) as second:
            assert second.attaches(trained.spec(), seed=0)
            assert not second.attaches(trained.spec(), seed=5)
            assert second.is_alive(directory)
            with second.together():
                second.submit(task(0))
            raise SystemExit(130)

    with pytest.raises(SystemExit):
        leave()
    assert "1 jobs go on; the same command attaches to them" in capsys.readouterr().err
    (place.project / "leave").touch()
    with Slurm(place, settings, execute=remote_jobs.report) as third:
        assert results(third, task(0), task(1)) == {0: [0], 1: [1]}
        assert not third.is_alive(directory)
    assert [len(starts(place, seed)) for seed in (0, 1)] == [1, 1]


def test_fresh_takes_no_result_of_an_earlier_command(place: Place) -> None:
    with abandoned(place, SETTINGS, execute=remote_jobs.report) as pool, pool.together():
        pool.submit(task(0))
    wait_until(lambda: list((place.runs / JOBS).glob("*/*_result.pkl")))
    with Slurm(place, SETTINGS, execute=remote_jobs.report) as second:
        assert not second.is_alive(place.runs / f"mlp2-digits-{trained.spec().spec_sha256[:12]}-cpu-s0-a1")
        assert results(second, task(0, fresh=True)) == {0: [0, "1"]}
    assert [line.split()[1] for line in starts(place, 0)] == ["False", "True"]


def test_a_job_of_this_machine_outlives_ctrl_c_in_the_terminal(place: Place) -> None:
    with abandoned(place, SETTINGS, execute=remote_jobs.wait_for_leave) as pool, pool.together():
        pool.submit(task(0))
    wait_until(lambda: starts(place, 0))
    pid = int(starts(place, 0)[0].split()[0])
    for process in (pid, psutil.Process(pid).ppid()):
        os.kill(process, signal.SIGINT)
        os.kill(process, signal.SIGHUP)
    (place.project / "leave").touch()
    with Slurm(place, SETTINGS, execute=remote_jobs.report) as second:
        assert results(second, task(0)) == {0: [0]}
    assert len(starts(place, 0)) == 1


def test_another_process_that_has_an_old_job_s_number_is_not_waited_for(place: Place) -> None:
    with abandoned(place, SETTINGS, execute=remote_jobs.wait_for_leave) as pool, pool.together():
        pool.submit(task(0))
    (note,) = (place.runs / JOBS).glob("*.json")
    with Slurm(place, SETTINGS, execute=remote_jobs.report) as second:
        assert second.attaches(trained.spec(), seed=0)
    note.write_text(json.dumps({**json.loads(note.read_text()), "job": str(os.getpid())}))
    with Slurm(place, SETTINGS, execute=remote_jobs.report) as third:
        assert not third.attaches(trained.spec(), seed=0)
    (place.project / "leave").touch()


def test_a_job_that_slurm_requeues_goes_on(place: Place, settings: Settings) -> None:
    if settings.scheduler != "slurm":
        pytest.skip("submitit's local scheduler has no queue")
    with Slurm(place, settings, execute=remote_jobs.wait_for_leave) as pool:
        with pool.together():
            pool.submit(task(0, fresh=True))
        wait_until(lambda: starts(place, 0))
        queue = subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True)
        subprocess.run(["scontrol", "requeue", queue.stdout.strip()], check=True)
        # Slurm lets it wait for two minutes, unless an operator says otherwise.
        update = ["scontrol", "update", f"JobId={queue.stdout.strip()}", "StartTime=now"]
        wait_until(lambda: subprocess.run(update, capture_output=True) and len(starts(place, 0)) == 2)
        (place.project / "leave").touch()
        assert results(pool) == {0: [0]}
    assert [line.split()[1] for line in starts(place, 0)] == ["True", "False"]


def test_options_that_slurm_refuses_are_named(place: Place, slurm_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    settings = dataclasses.replace(SETTINGS, scheduler="slurm", partition="none-of-it")
    with pytest.raises(InputError, match="partition"), Slurm(place, settings) as pool:
        results(pool, task(0))


def test_a_machine_without_slurm_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="srun"):
        Slurm(place, dataclasses.replace(SETTINGS, scheduler="slurm"))


# ---------------------------------------------------------------- Ray


def test_tasks_of_ray_come_back_and_a_worker_that_dies_is_replaced(place: Place) -> None:
    with Ray(place, ON_THIS_MACHINE, execute=remote_jobs.die_once) as pool:
        assert results(pool, task(0), task(1)) == {0: [0], 1: [1]}
    assert [len(starts(place, seed)) for seed in (0, 1)] == [2, 2]


# ---------------------------------------------------------------- campaigns


STORE = "runs/demo/mlflow.db"
LEDGER = ("mlp2-digits", "--demo", "--seeds", "2")
CLUSTERS = {
    "here": "{executor: slurm, at_once: 2, minutes: 10, requeues: 3, attempts: 2, partition: null, account: null, "
    "memory_gb: null, cpus_per_run: null, gpus_per_run: null, container: null, setup: [], extra: {}, scheduler: %s}",
    "apart": "{executor: ray, address: null, at_once: 2, gpus_per_run: 0.0, retries: 2, shared_disk: false}",
}


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A campaign on this machine's own processes."""
    return measured(copy_project(tmp_path_factory.mktemp("pooled"), store=STORE))


def measured(project: Project, *options: str, **environment: str) -> Project:
    done = project.run("reproduce.py", "measure", *LEDGER, *options, cwd=project.root, **environment)
    assert done.returncode == 0, done.stderr
    return project


def records(project: Project) -> dict[int, tuple[object, ...]]:
    """What each seed's run has come to, bit for bit: its weights decide the loss."""
    found = [read_record(path.parent) for path in (project.runs / "demo").glob("*/record.json")]
    return {each.seed: (each.spec_sha256, each.loss, each.predicted_sha256, each.epochs, each.row) for each in found}


def with_cluster(project: Project, name: str, *, scheduler: str = "local") -> Project:
    content = CLUSTERS[name].replace("%s", scheduler)
    (project.root / "conf/cluster" / f"{name}.yaml").write_text(content)
    return project


def test_runs_of_ray_on_other_disks_are_brought_back_and_equal_those_of_the_pool(
    tmp_path: Path, pooled: Project
) -> None:
    project = measured(with_cluster(copy_project(tmp_path, store=STORE), "apart"), "--on", "apart")
    assert records(project) == records(pooled)


def test_a_campaign_whose_coordinator_is_killed_attaches_and_equals_one_of_the_pool(
    tmp_path: Path, pooled: Project, request: pytest.FixtureRequest
) -> None:
    """On a real Slurm where it is installed."""
    scheduler = "local" if why_not() else "slurm"
    environment = {} if scheduler == "local" else {"SLURM_CONF": str(request.getfixturevalue("slurm_conf"))}
    project = with_cluster(copy_project(tmp_path, store=STORE), "here", scheduler=scheduler)
    first = project.start("reproduce.py", "measure", *LEDGER, "--on", "here", env=project.environment(**environment))
    notes = project.runs / "demo" / JOBS
    wait_until(lambda: list(notes.glob("*.json")))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    measured(project, "--on", "here", **environment)
    assert records(project) == records(pooled) != {}
    started = [journal.read(path.parent)[0]["event"] for path in (project.runs / "demo").glob("*/journal.jsonl")]
    assert started == ["started", "started"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected one of local, ray, slurm"),
        ("executor: kubernetes", "executor: expected 'slurm' or 'ray'"),
        ("executor: ray\nadress: auto", "adress: no such key"),
        ("executor: ray\naddress: nonsense", "address: expected auto, host:port or ray://host:port, got 'nonsense'"),
        ("executor: ray\naddress: 127.0.0.1:1", "address: 127.0.0.1:1 cannot be reached"),
        ("executor: slurm\nat_once: 2\nminutes: 5\npartiton: x", "partiton: no such key"),
        ("executor: slurm\nat_once: 0\nminutes: 5", "at_once: expected 1 or more, got 0"),
        ('executor: slurm\nat_once: 2\nminutes: 5\ncontainer: "run \'x"', "No closing quotation"),
    ],
)
def test_a_wrong_cluster_is_named(tmp_path: Path, place: Place, content: str, said: str) -> None:
    folder = Path(__file__).resolve().parents[3] / "conf"
    if content:
        (tmp_path / "cluster").mkdir()
        (tmp_path / "cluster/mine.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        choose.build("mine", place=place, conf_dirs=[tmp_path, folder])
