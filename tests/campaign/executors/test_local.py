"""Workers and signals: whatever ends a command, no process is left behind and everything finished is kept."""

import errno
import fcntl
import os
import pty
import re
import signal
import sqlite3
import struct
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from tests.support import jobs, trained
from tests.support.project import Command, Project, copy_project
from tests.support.terminal import screen
from tests.support.waiting import wait_until

from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.local import Workers
from remeasure.cli import reproduce
from remeasure.config.compose import compose
from remeasure.runs import journal
from remeasure.runs.folder import Place

SECONDS_TO_END = 300.0  # only a process that never ends takes so long


# ---------------------------------------------------------------- the pool


def no_room(*_: object, **__: object) -> Any:
    """As a pool in a container whose /dev/shm is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_dev_shm_without_room_for_the_pools_locks_is_named(place: Place) -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/shm'"):
        Workers(place, new_pool=no_room)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(runs=tmp_path, project=tmp_path, data_root=tmp_path, device_kind="cpu")


@pytest.fixture
def workers(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Workers]:
    """Makes two workers that do a job of tests/support/jobs.py."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return partial(Workers, place, num=2, time_seed=jobs.wait_for_each_other)


@cache
def trains() -> dict[str, Any]:
    spec = trained.spec()
    return {"mode": spec.mode, "engine": spec.engine, "recipe": spec.recipe}


def task(seed: int, *, cpu_threads: int = 1) -> Task:
    spec: Any = SimpleNamespace(cpu_threads=cpu_threads, spec_sha256="", together=together, **trains())
    return Task(row="mlp2-digits", seed=seed, spec=spec, fresh=False)


def together(seed: int) -> range:
    return range(seed, seed + 1)


def results(pool: Workers, watch: jobs.Sink = journal.unwatched) -> dict[int, Any]:
    """Wait for all tasks; seed to what came back, a result or an exception."""
    found: dict[int, Any] = {}
    pool.work(
        lambda: False,
        take=lambda entry, future: found.update({entry.seed: future.exception() or future.result()}),
        watch=watch,
    )
    return found


def test_a_worker_is_kept_has_one_thread_and_reports_its_events_in_order(
    workers: Callable[..., Workers], place: Place
) -> None:
    with workers(execute=jobs.report) as pool:
        pids = set()
        for seed in (5, 6, 7):
            assert pool.idle == 2
            pool.submit(task(seed))
            assert (pool.idle, [entry.seed for entry in pool.active]) == (1, [seed])
            events: list[Any] = []
            result = results(pool, watch=lambda *event, seen=events: seen.append(event))[seed]
            assert (result["seed"], result["threads"]) == (seed, "1")
            pids.add(result["pid"])
            assert events == [(place.runs, {"event": "epoch", "epoch": number, "seed": seed}) for number in (1, 2)]
    assert len(pids) <= 2  # three tasks, and never a third process
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_a_task_takes_as_many_cores_as_it_has_threads_and_at_most_all(workers: Callable[..., Workers]) -> None:
    with workers(execute=jobs.report) as pool:
        for seed, cpu_threads, idle in ((0, 1, 1), (1, 2, 0), (2, 8, 0)):
            pool.submit(task(seed, cpu_threads=cpu_threads))
            assert pool.idle == idle
            with pytest.raises(AssertionError):
                pool.submit(task(9, cpu_threads=2))
            results(pool)
            assert pool.idle == 2


def test_a_seed_is_timed_beside_as_many_as_will_run_at_once(workers: Callable[..., Workers]) -> None:
    """On two cores; each timing waits until two have begun, and costs its seconds: 1, 2, … in the order of arrival."""
    with workers() as pool:
        assert pool.seconds_of_seed(timed(pool, cpu_threads=1), num_seeds=5) == 2.0
        assert pool.seconds_of_seed(timed(pool, cpu_threads=2), num_seeds=5) == 1.0
        assert pool.seconds_of_seed(timed(pool, cpu_threads=1, together=1), num_seeds=1) == 1.0


def test_an_evaluation_takes_every_core_for_its_decoding(workers: Callable[..., Workers]) -> None:
    spec = compose(["model=vit_b16", "cpu_threads=1"]).spec(data_sha256="")
    assert (spec.mode, spec.cpu_threads) == ("evaluate", 1)
    assert workers().cores(spec) == 2


def timed(pool: Workers, *, cpu_threads: int, together: int | None = None) -> Any:
    """A spec whose timings wait for each other in a folder of their own."""
    together = together or pool.num // cpu_threads
    folder = Path(tempfile.mkdtemp(dir=pool.place.runs))
    return SimpleNamespace(cpu_threads=cpu_threads, folder=folder, together=together, **trains())


def test_a_pool_without_a_task_starts_no_process(workers: Callable[..., Workers]) -> None:
    with workers():
        assert [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())] == []


def test_leaving_early_ends_every_run_by_an_exception_and_every_process(
    workers: Callable[..., Workers], place: Place
) -> None:
    files = [place.runs / "0", place.runs / "1"]

    def leave() -> None:
        with workers(execute=jobs.wait_for_ever) as pool:
            pool.submit(task(0))
            pool.submit(task(1))
            wait_until(lambda: all(path.exists() and path.read_text() for path in files))
            family.extend(psutil.Process(int(path.read_text())) for path in files)
            raise SystemExit(130)

    family: list[psutil.Process] = []
    with pytest.raises(SystemExit):
        leave()
    assert psutil.wait_procs(family, timeout=SECONDS_TO_END)[1] == []
    assert [path.read_text() for path in files] == ["SystemExit(143)"] * 2


@pytest.mark.usefixtures("spawned_workers")
def test_leaving_early_does_not_wait_for_a_worker_that_is_starting(
    workers: Callable[..., Workers], capfd: pytest.CaptureFixture[str]
) -> None:

    def leave() -> None:
        with workers(execute=jobs.wait_for_ever) as pool:
            pool.submit(task(0))
            raise SystemExit(143)

    began = time.monotonic()
    with pytest.raises(SystemExit):
        leave()
    assert time.monotonic() - began < jobs.SECONDS_TO_WAIT
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("spawned_workers")
def test_ctrl_c_does_not_hit_a_worker_at_any_moment(
    workers: Callable[..., Workers], capfd: pytest.CaptureFixture[str]
) -> None:
    """A terminal sends SIGINT to all processes in front; workers leave it to the parent, from their first moment."""
    with workers(execute=jobs.report) as pool:
        pool.submit(task(0))
        children = psutil.Process().children()
        started = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(started) == 1
        for _ in range(20):
            started[0].send_signal(signal.SIGINT)
            time.sleep(0.02)
        assert results(pool)[0]["seed"] == 0
    assert capfd.readouterr().err == ""


def test_a_worker_that_is_killed_fails_its_own_run_and_the_next_ones_go_on(workers: Callable[..., Workers]) -> None:
    with workers(execute=jobs.kill_itself_if_seed_0) as pool:
        pool.submit(task(0))
        assert "terminated abruptly" in str(results(pool)[0])
        pool.submit(task(1))
        assert results(pool)[1]["seed"] == 1


def test_a_worker_that_is_killed_when_idle_leaves_nobody_waiting(workers: Callable[..., Workers], place: Place) -> None:
    """It holds the lock of the queue from which the other one, whose run is then ended, would take its next task."""
    waiting = place.runs / "1"
    with workers(execute=jobs.wait_for_ever_if_seed_1) as pool:
        pool.submit(task(1))
        pool.submit(task(0))
        wait_until(lambda: waiting.exists() and waiting.read_text())
        busy = int(waiting.read_text())
        ended: dict[int, Any] = {}

        def take(entry: Task, future: Future[Any]) -> None:
            ended[entry.seed] = future.exception()
            if entry.seed == 0:
                psutil.Process(future.result()["pid"]).kill()

        pool.work(lambda: False, take=take, watch=journal.unwatched)
        assert ended[0] is None
        assert "terminated abruptly" in str(ended[1])
        wait_until(lambda: not psutil.pid_exists(busy))
    assert waiting.read_text() == "SystemExit(143)"


def test_a_worker_that_does_not_end_is_killed(workers: Callable[..., Workers], place: Place) -> None:
    deaf, left = place.runs / "0", list[float]()

    def leave() -> None:
        with workers(execute=jobs.ignore_sigterm, end_seconds=0.5) as pool:
            pool.submit(task(0))
            wait_until(lambda: deaf.exists() and deaf.read_text())
            left.append(time.monotonic())
            raise SystemExit(130)

    with pytest.raises(SystemExit):
        leave()
    assert not psutil.pid_exists(int(deaf.read_text()))
    assert time.monotonic() - left[0] < jobs.SECONDS_TO_WAIT


def test_all_tasks_are_run_and_their_outcomes_come_in_the_order_of_the_tasks(
    workers: Callable[..., Workers], place: Place
) -> None:
    kept, events = list[int](), list[Any]()
    tasks = [task(seed, cpu_threads=threads) for seed, threads in ((0, 1), (1, 2), (2, 1), (3, 1))]
    with workers(execute=jobs.slowly_if_seed_0) as pool:
        outcomes = pool.run(tasks, watch=lambda *event: events.append(event), keep=lambda o: kept.append(o) or o)
    assert outcomes == [0, 1, 2, 3]
    assert sorted(kept) == outcomes
    assert kept[0] != 0, "each is kept as it ends"
    assert sorted(event["seed"] for _, event in events) == outcomes
    assert {folder for folder, _ in events} == {place.runs}


def test_a_task_that_fails_ends_the_others(workers: Callable[..., Workers]) -> None:
    with pytest.raises(BrokenProcessPool), workers(execute=jobs.kill_itself) as pool:
        pool.run([task(0), task(1)])


# ---------------------------------------------------------------- one run, interrupted


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_with_128_and_its_number(
    number: int, status: int, here: Command, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP comes ignored
    monkeypatch.setattr(reproduce, "main", lambda *_, **__: os.kill(os.getpid(), number))
    assert here(project, "reproduce.py").status == status


def test_nohup_is_respected(here: Command, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(reproduce, "main", lambda *_, **__: os.kill(os.getpid(), signal.SIGHUP))
    assert here(project, "reproduce.py").status == 0


def test_a_run_that_is_interrupted_is_journaled_and_goes_on_later(
    project: Project, tmp_path: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("model=mlp2", "data=digits", "recipe.epochs_total=100", "seed=11")
    process = project.start("train.py", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    wait_until(lambda: any("-s11-" in name and b'"epoch"' in text for name, text in project.journals().items()))
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 143, stderr.decode()
    assert stdout == b""
    assert [line for line in stderr.decode().splitlines() if line.startswith("mlp2-digits")] == [
        "mlp2-digits seed 11: started, 100 epochs",
        "mlp2-digits seed 11: interrupted; start it again and it goes on",
    ]
    (directory,) = project.runs.glob("*-s11-*")
    assert journal.read(directory)[-1]["event"] == "interrupted"
    assert in_mlflow(project.root) == [("mlp2-digits seed 011", "KILLED")]

    monkeypatch.chdir(tmp_path)
    done = here(project, "train.py", *arguments)
    assert done.status == 0, done.stderr
    events = [event["event"] for event in journal.read(directory)]
    assert (events[0], events.count("resumed"), events[-1]) == ("started", 1, "finished")
    assert Path(done.stdout.rpartition("record=")[2].strip()).resolve() == directory / "record.json"
    assert in_mlflow(project.root) == [("mlp2-digits seed 011", "FINISHED")]


def in_mlflow(folder: Path) -> list[tuple[str, str]]:
    """Name and status of the runs of mlp2 with seed 11."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        found = database.execute("SELECT name, status FROM runs WHERE name LIKE '%seed 011'").fetchall()
    return [(str(name), str(status)) for name, status in found]


# ---------------------------------------------------------------- a campaign, interrupted


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose demo has a row that is quickly decided, and one whose runs never end."""
    project = copy_project(tmp_path_factory.mktemp("campaign"), store="runs/demo/mlflow.db")
    path = project.root / "conf/demo.yaml"
    rows = yaml.safe_load(path.read_text())["rows"]
    rows = {name: rows[name] for name in ("logreg-digits", "mlp2-digits")}
    rows["logreg-digits"]["rule"]["looks"] = [2]
    rows["mlp2-digits"]["recipe"] = "endless"
    path.write_text(yaml.safe_dump({"rows": rows}, sort_keys=False))
    recipe = "defaults: [article, _self_]\nname: endless\nepochs_total: 1000000\n"
    (project.root / "conf/recipe/endless.yaml").write_text(recipe)
    yield project
    for (
        process
    ) in psutil.process_iter():  # a test that failed has left its endless campaign, which would take all cores
        with suppress(psutil.Error):
            if str(project.root) in " ".join(process.cmdline()):
                process.kill()


NUM_WORKERS = min(len(os.sched_getaffinity(0)), 5)  # the first look of the endless row has 5 seeds
ENDLESS = ("--demo", "--budget", "100000h")  # which an endless run fits
BEGUN = ("started", "resumed")


def events(project: Project, model: str) -> list[list[str]]:
    """The names of the events in each journal of a model in the demo."""
    directories = sorted((project.runs / "demo").glob(f"{model}-*"))
    return [[event["event"] for event in journal.read(directory)] for directory in directories]


def all_train(project: Project, *, times: int) -> bool:
    """Whether every worker trains an endless run, for the time so numbered."""
    found = events(project, "mlp2")
    begun = [sum(name in BEGUN for name in names) for names in found]
    return begun == [times] * NUM_WORKERS and all(names[-1] == "epoch" for names in found)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_no_worker_outlives_a_parent_that_was_killed(campaign: Project) -> None:
    process = campaign.start("reproduce.py", *ENDLESS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: all_train(campaign, times=1))
        family = workers_of(process)
        assert sum("spawn_main" in " ".join(child.cmdline()) for child in family) == NUM_WORKERS
    finally:
        process.kill()
    process.wait()
    assert psutil.wait_procs(family, timeout=SECONDS_TO_END)[1] == []


def test_sigterm_ends_a_campaign_with_143_and_keeps_what_is_finished(campaign: Project) -> None:
    """The campaign of before, which was killed: its finished seeds are not trained again, the others go on."""
    process = campaign.start("reproduce.py", *ENDLESS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: all_train(campaign, times=2))
    family = workers_of(process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 143, stderr.decode()
    assert psutil.wait_procs(family, timeout=SECONDS_TO_END)[1] == []
    assert [names[-1] for names in events(campaign, "mlp2")] == ["interrupted"] * NUM_WORKERS
    assert [(names[0], names.count("started"), names[-1]) for names in events(campaign, "logreg")] == [
        ("started", 1, "finished")
    ] * 2
    assert "Traceback" not in stderr.decode()
    assert stderr.decode().count(": interrupted; start it again and it goes on\n") == NUM_WORKERS
    assert (campaign.runs / "demo/results/runs/logreg-digits.csv").read_text().count("\n") == 3


NAMES = """
SELECT (CASE WHEN name LIKE 'seed %' THEN value || ' ' ELSE '' END) || name AS full_name, status
FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'row' ORDER BY full_name
"""


def test_after_a_signal_no_run_is_left_running_in_mlflow(campaign: Project) -> None:
    """The parent run of the row ends as its seeds do."""
    with closing(sqlite3.connect(campaign.runs / "demo/mlflow.db")) as database:
        found = database.execute(NAMES).fetchall()
    assert [name for name, status in found if status == "FINISHED" and name.startswith("logreg")] == [
        "logreg-digits",
        "logreg-digits seed 000",
        "logreg-digits seed 001",
    ]
    assert [name for name, status in found if status == "KILLED"] == [
        "mlp2-digits",
        *(f"mlp2-digits seed {seed:03d}" for seed in range(NUM_WORKERS)),
    ]
    assert [name for name, status in found if status == "RUNNING"] == []


def test_ctrl_c_ends_a_campaign_with_130_and_leaves_the_terminal_clean(campaign: Project) -> None:
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))  # 30 lines of 100 columns
    process = campaign.start(
        "reproduce.py",
        *ENDLESS,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its own terminal, whose ^C it gets; a new process
        env=campaign.environment(TERM="xterm"),
    )
    os.close(inside)
    output = bytearray()
    reader = threading.Thread(target=read_all, args=(terminal, output))
    reader.start()
    wait_until(lambda: all_train(campaign, times=3))
    wait_until(lambda: len(re.findall(r" 0/\d+ seeds", output.decode(errors="ignore"))) > 3)
    family = workers_of(process)
    os.write(terminal, b"\x03")
    assert process.wait(timeout=SECONDS_TO_END) == 130
    reader.join(timeout=SECONDS_TO_END)
    os.close(terminal)
    shown = screen(output.decode(), columns=100)
    assert psutil.wait_procs(family, timeout=SECONDS_TO_END)[1] == []
    assert re.fullmatch(r"mlp2-digits: interrupted after 0 of \d+ seeds; start it again and it goes on", shown[-1])
    assert not any("━" in line for line in shown), shown
    assert not any("Traceback" in line for line in shown)
    assert [names[-1] for names in events(campaign, "mlp2")] == ["interrupted"] * NUM_WORKERS


def read_all(descriptor: int, output: bytearray) -> None:
    """Until the last process has closed the terminal."""
    while True:
        try:
            found = os.read(descriptor, 65536)
        except OSError:
            return
        if not found:
            return
        output.extend(found)
