"""Seeds as Ray tasks: on this machine's cores, or on a cluster that runs already."""

import logging
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.remote import Execute, Remote, environment, returned, time_seed
from remeasure.runs.folder import Outcome, Place, finished
from remeasure.runs.merge import merge
from remeasure.spec.base import Count, CountOrZero, InputError, NotNegative, Strict
from remeasure.spec.run import RunSpec

CONNECT_SECONDS = 10.0  # how long a cluster's address may take to answer


@dataclass(frozen=True, kw_only=True)
class Settings(Strict):
    """conf/cluster/ray.yaml.

    `address`: of a cluster that runs; None: one on this machine for this command. `at_once`: the most tasks at a time;
    None: one a core of the cluster. `gpus_per_run`: may be a fraction, for small nets. `retries`: how often a task is
    started again whose worker died. `shared_disk`: whether all machines see this folder of runs; else each run is made
    in a folder of its machine and sent back when it is finished, and one whose worker dies begins anew.
    """

    address: str | None = None
    at_once: Count | None = None
    gpus_per_run: NotNegative = 0.0
    retries: CountOrZero = 5
    shared_disk: bool = True


class Ray(Remote):
    """Tasks of a Ray cluster. On exit they are cancelled: each run journals it and keeps its checkpoint."""

    end_seconds = 30.0  # how long a cancelled run may take to end

    def __init__(self, place: Place, settings: Settings, *, execute: Execute | None = None) -> None:
        self.settings = settings
        if settings.address not in (None, "auto", "local"):
            _reach(str(settings.address))
        try:
            ray.init(
                address=settings.address,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": environment()},
            )
        except ConnectionError as error:
            raise InputError(f"ray: {str(error).strip().splitlines()[0]}") from None
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        super().__init__(place, num=settings.at_once or int(resources["CPU"]), execute=execute)
        self._refs: dict[Future[Any], ray.ObjectRef[Any]] = {}

    def __exit__(self, *_: object) -> None:
        running = [ref for future, ref in self._refs.items() if not future.done()]
        for ref in running:
            ray.cancel(ref)
        ray.wait(running, num_returns=len(running), timeout=self.end_seconds) if running else None
        ray.shutdown()

    def start(self, task: Task) -> Future[list[Outcome]]:
        self.follow(task)
        future: Future[list[Outcome]] = Future()
        call: tuple[Any, ...] = (self.execute,) if self.settings.shared_disk else (apart, self.execute)
        self._refs[future] = self._call(*call, task, self.place, cores=task.spec.cpu_threads)
        return future

    def seconds_of_seed(self, spec: RunSpec, *, num_seeds: int) -> float:
        """Timed side by side, as far as the cluster runs them at once."""
        num = min(self.num, num_seeds)
        refs = [self._call(time_seed, spec, self.place, cores=spec.cpu_threads) for _ in range(num)]
        return max(float(returned(each)) for each in ray.get(refs))

    def _call(self, function: Callable[..., Any], *arguments: object, cores: int) -> Any:
        settings = self.settings
        made: Any = ray.remote(num_cpus=cores, num_gpus=settings.gpus_per_run, max_retries=settings.retries)(function)
        return made.remote(*arguments)

    def look(self) -> None:
        refs = list(self._refs.values())
        done = ray.wait(refs, num_returns=len(refs), timeout=0)[0] if refs else []
        for future in [future for future, ref in self._refs.items() if ref in done]:
            try:
                found = returned(ray.get(self._refs.pop(future)))
                future.set_result(self._brought(found, task=self._active[future]))
            except Exception as error:
                future.set_exception(error)

    def _brought(self, found: Any, *, task: Task) -> list[Outcome]:
        """The outcomes, whose folders are written here if they were made on another disk."""
        if self.settings.shared_disk:
            return list(found)
        with tempfile.TemporaryDirectory(dir=self.place.runs, prefix=".brought-") as folder:
            for name, files in found.items():
                (Path(folder) / name).mkdir()
                for file, content in files.items():
                    (Path(folder) / name / file).write_bytes(content)
            for merged in merge(Path(folder), runs=self.place.runs):
                if isinstance(merged, InputError):
                    raise merged
        outcomes = [finished(task.spec, seed=seed, place=self.place) for seed in task.spec.together(task.seed)]
        return [replace(outcome, reused=False) for outcome in outcomes if outcome]


def _reach(address: str) -> None:
    """Raise InputError if nothing listens there: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        raise InputError(f"ray: address: expected auto, host:port or ray://host:port, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(f"ray: address: {address} cannot be reached ({error.strerror or error})") from None


def apart(execute: Execute, task: Task, place: Place) -> dict[str, dict[str, bytes]] | Exception:
    """Execute in a folder of this machine; the files of each finished run, by its folder's name."""
    with tempfile.TemporaryDirectory(prefix="remeasure-") as folder:
        found = execute(task, replace(place, runs=Path(folder)))
        if isinstance(found, Exception):
            return found
        directories = [outcome.directory for outcome in found]
        return {each.name: {path.name: path.read_bytes() for path in each.iterdir()} for each in directories}
