"""Seeds as Slurm jobs, by submitit: one job a task, submitted as arrays, requeued after pre-emption and time-out.

Jobs outlive this process. A note in `runs/.jobs/` names the job of each task, so that the same command attaches to
those that wait or run. The queue says which jobs are alive: the lock files of another machine may not be seen here.
"""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from remeasure.campaign.executors.base import POLL_SECONDS, Task
from remeasure.campaign.executors.remote import Execute, Remote, environment, returned, time_seed
from remeasure.runs import code
from remeasure.runs.folder import Outcome, Place, run_key
from remeasure.spec.base import Count, CountOrZero, InputError, Positive, Strict
from remeasure.spec.run import RunSpec
from remeasure.system.atomic import read_json, write_atomic

JOBS = ".jobs"  # in the folder of runs: submitit's files, and a note for each task
KINDS = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}
LOOKS_WITHOUT = 3  # a job that the queue lacks so often, and that left no result, is lost


@dataclass(frozen=True, kw_only=True)
class Settings(Strict):
    """conf/cluster/slurm.yaml; what is None is left to Slurm.

    `at_once`: the most jobs that wait or run. `minutes`: the limit of a job; it is requeued at its end, at most
    `requeues` times, and goes on from its checkpoint. `attempts`: how often a job that is lost is submitted.
    `container`: the command before python, such as "apptainer exec image.sif". `setup`: lines of the job's script.
    `extra`: further options of sbatch. `scheduler`: slurm, or local, which runs the jobs as processes of this machine.
    """

    at_once: Count
    minutes: Count
    requeues: CountOrZero = 20
    attempts: Count = 3
    partition: str | None = None
    account: str | None = None
    memory_gb: Positive | None = None
    cpus_per_run: Count | None = None
    gpus_per_run: CountOrZero | None = None
    container: str | None = None
    setup: tuple[str, ...] = ()
    extra: Mapping[str, str | int | bool] = field(default_factory=dict)
    scheduler: Literal["slurm", "local"] = "slurm"


@dataclass(frozen=True)
class Training:
    """What a job calls. When it is requeued or submitted again, its run goes on from its checkpoint."""

    execute: Execute
    task: Task
    place: Place

    def __call__(self) -> list[Outcome] | Exception:
        requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        return self.execute(replace(self.task, fresh=False) if requeued else self.task, self.place)

    def again(self) -> "Training":
        return replace(self, task=replace(self.task, fresh=False))

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit submits in its place after a signal."""
        return submitit.helpers.DelayedSubmission(self.again())


@dataclass(kw_only=True)
class _Job:
    call: Training
    job: Any  # submitit.Job
    note: Path
    attempts: int = 1
    unseen: int = 0  # looks in a row at a queue without it


class Slurm(Remote):
    """Jobs of a Slurm cluster. On exit they are left: the same command attaches to them."""

    state_seconds = 10.0  # between two questions to the scheduler

    def __init__(self, place: Place, settings: Settings, *, execute: Execute | None = None) -> None:
        super().__init__(place, num=settings.at_once, execute=execute)
        self.settings, self.folder = settings, place.runs / JOBS
        self.folder.mkdir(parents=True, exist_ok=True)
        resources = {
            "slurm_partition": settings.partition,
            "slurm_account": settings.account,
            "slurm_array_parallelism": settings.at_once,
            "mem_gb": settings.memory_gb,
            "cpus_per_task": settings.cpus_per_run,
            "gpus_per_node": settings.gpus_per_run,
        }
        try:
            python = " ".join([*shlex.split(settings.container or ""), shlex.quote(sys.executable)])
            self._scheduler = submitit.AutoExecutor(
                self.folder / "%j",
                cluster=settings.scheduler,
                slurm_python=python,
                slurm_max_num_timeout=settings.requeues,
                local_max_num_timeout=settings.requeues,
            )
            setup = [*(f"export {name}={shlex.quote(value)}" for name, value in environment().items()), *settings.setup]
            # A terminal sends its Ctrl-C and its end to each process that was started in it.
            outlives = "trap '' INT HUP"
            self._scheduler.update_parameters(
                name="remeasure",
                timeout_min=settings.minutes,
                slurm_setup=setup,
                local_setup=[outlives, *setup],
                slurm_additional_parameters={"requeue": True, **settings.extra},
                **{name: value for name, value in resources.items() if value is not None},
            )
        except (RuntimeError, ValueError) as error:  # no srun here, or an option that is none
            raise InputError(f"conf/cluster: {str(error).splitlines()[0]}") from None
        self._jobs: dict[Future[Any], _Job] = {}
        self._new: dict[Future[Any], Training] = {}  # to be submitted together
        self._asked = -math.inf  # when the scheduler was asked last
        self._alive: frozenset[str] = frozenset()

    def __exit__(self, *_: object) -> None:
        left = [entry.job.job_id for entry in self._jobs.values()]
        if left:
            is_slurm = self.settings.scheduler == "slurm"  # else each is the child of a shell
            command = f"scancel {' '.join(left)}" if is_slurm else f"pkill -P {','.join(left)}"
            how = f"the same command attaches to them; `{command}` ends them"
            print(f"{len(left)} jobs go on; {how}", file=sys.stderr)

    @contextmanager
    def together(self) -> Iterator[None]:
        yield
        new, self._new = self._new, {}
        if new:
            for (future, call), job in zip(new.items(), self._submitted(*new.values()), strict=True):
                note = self._note(call.task.spec, seed=call.task.seed)
                self._jobs[future] = _Job(call=call, job=job, note=note)
                self._write_note(self._jobs[future])

    def _submitted(self, *calls: Callable[[], Any]) -> list[Any]:
        """The jobs of these calls. InputError: sbatch refuses them."""
        try:
            return list(self._scheduler.submit_array(calls))
        except (FailedSubmissionError, FailedJobError, OSError) as error:
            raise InputError(f"{self.settings.scheduler}: {str(error).strip().splitlines()[-1]}") from None

    def start(self, task: Task) -> Future[list[Outcome]]:
        future: Future[list[Outcome]] = Future()
        call, note = Training(self.execute, task, self.place), self._note(task.spec, seed=task.seed)
        job = self._attached(note, fresh=task.fresh)
        self.follow(task, attached=bool(job))
        if job:
            self._jobs[future] = _Job(call=call, job=job, note=note)
        else:
            self._new[future] = call
        return future

    def attaches(self, spec: RunSpec, *, seed: int) -> bool:
        return self._attached(self._note(spec, seed=seed)) is not None

    def is_alive(self, directory: Path) -> bool:
        """Whether a job that waits or runs trains in this run's folder, as far as the scheduler says."""
        run = directory.name.rpartition("-a")[0]
        alive = (note for note in self._notes() if (job := self._job(note)) and not job.paths.result_pickle.exists())
        return any(run.endswith(key) for note in alive for key in note["runs"])

    def seconds_of_seed(self, spec: RunSpec, *, num_seeds: int) -> float:  # noqa: ARG002
        """Of one seed, as runs do not share their cores."""
        job = self._submitted(partial(time_seed, spec, self.place))[0]
        unseen = 0
        while not job.paths.result_pickle.exists():
            unseen = unseen + (job.job_id not in self._alive) if self._ask() else unseen
            if unseen == LOOKS_WITHOUT:
                raise RuntimeError(_without_result(job))
            time.sleep(POLL_SECONDS)
        return float(returned(_result(job)))

    def look(self) -> None:
        asked = self._ask()
        for future, entry in list(self._jobs.items()):
            if entry.job.paths.result_pickle.exists():
                self._end(future, _result(entry.job))
            elif asked:
                entry.unseen = 0 if entry.job.job_id in self._alive else entry.unseen + 1
                if entry.unseen == LOOKS_WITHOUT:
                    self._lost(future, entry)

    def _lost(self, future: Future[Any], entry: _Job) -> None:
        """Submit a job again that ended without a result: its node failed, say, or it took too much memory."""
        if entry.attempts == self.settings.attempts:
            self._end(future, RuntimeError(_without_result(entry.job)))
            return
        entry.call = entry.call.again()
        entry.job, entry.unseen, entry.attempts = self._submitted(entry.call)[0], 0, entry.attempts + 1
        self._write_note(entry)

    def _end(self, future: Future[Any], found: object) -> None:
        entry = self._jobs.pop(future)
        entry.note.unlink(missing_ok=True)
        if isinstance(found, Exception):  # what it has printed stays
            future.set_exception(found)
        else:
            shutil.rmtree(entry.job.paths.folder, ignore_errors=True)
            future.set_result(found)

    # ---------------------------------------------------------------- notes, and what the scheduler says

    def _note(self, spec: RunSpec, *, seed: int) -> Path:
        """A task's; one of other code is another."""
        return self.folder / f"{self._key(spec, seed=seed)}-{code.code_sha256(spec)[:12]}.json"

    def _key(self, spec: RunSpec, *, seed: int) -> str:
        return run_key(spec.spec_sha256, seed=seed, device_kind=self.place.device_kind)

    def _write_note(self, entry: _Job) -> None:
        spec = entry.call.task.spec
        runs = [self._key(spec, seed=seed) for seed in spec.together(entry.call.task.seed)]
        note = {"job": entry.job.job_id, "runs": runs, "fresh": entry.call.task.fresh}
        write_atomic(entry.note, json.dumps(note).encode())

    def _notes(self) -> Iterator[dict[str, Any]]:
        yield from filter(None, map(read_json, sorted(self.folder.glob("*.json"))))

    def _attached(self, note: Path, *, fresh: bool = False) -> Any:
        """The job of a note, if it is there and alive, or has a result.

        `fresh`: a result may be of an earlier command, and a job that goes on with an earlier run trains nothing anew.
        """
        found = read_json(note)
        job = self._job(found) if found else None
        if job and fresh and (job.paths.result_pickle.exists() or not found.get("fresh")):
            return None
        return job

    def _job(self, note: Mapping[str, Any]) -> Any:
        """The job that a note names, or None if it has ended without a result that could be taken."""
        self._ask()
        job = KINDS[self.settings.scheduler](self.folder / "%j", note["job"])
        return job if job.paths.result_pickle.exists() or job.job_id in self._alive else None

    def _ask(self) -> bool:
        """Ask the scheduler which jobs are alive, if the last answer is old; returns whether it has answered."""
        if time.monotonic() - self._asked < self.state_seconds:
            return False
        alive = _queue() if self.settings.scheduler == "slurm" else _processes()
        self._asked = time.monotonic()
        self._alive = self._alive if alive is None else alive
        return alive is not None


def _without_result(job: Any) -> str:
    return f"job {job.job_id} ended without a result; {job.paths.stderr} may say why"


def _result(job: Any) -> Any:
    """What a job has returned, or an exception."""
    error = job.exception()
    return job.result() if error is None else RuntimeError(str(error).strip().splitlines()[-1])


def _queue() -> frozenset[str] | None:
    """The jobs of this user that wait or run; None if the scheduler does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return frozenset(done.stdout.split()) if done.returncode == 0 else None


def _processes() -> frozenset[str]:
    """Those that submitit's local scheduler started on this machine; another process may have an old job's number."""
    found = psutil.process_iter(["cmdline", "status"])
    alive = (process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE)
    jobs = (process for process in alive if "submitit.local._local" in " ".join(process.info["cmdline"] or ()))
    return frozenset(str(process.pid) for process in jobs)
