"""One run on several devices: the processes that train or evaluate it together, one a device.

torchrun or srun starts them, on any number of machines; on one machine, else, this module does. The first one (rank 0)
opens the run's folder, reports, scores and records; the others do their share and end.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from remeasure.spec.base import DeviceKind, InputError
from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec
from remeasure.system import startup

TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Of the processes that srun has started; SLURM_NTASKS and the like are those of the job, which a notebook has, too.
SRUN = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
WAIT = timedelta(minutes=30)  # for a process that does not come, or gives no answer
END_SECONDS = 30.0
EXIT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class World:
    """`devices` processes on each of `num_nodes` machines; this one is number `rank`, `local_rank` on its machine.

    `launcher`: torchrun, srun, or "" if the others are not started yet. `address`, `port`: where they find the first.
    """

    devices: int = 1
    num_nodes: int = 1
    rank: int = 0
    local_rank: int = 0
    launcher: str = ""
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def size(self) -> int:
        return self.devices * self.num_nodes

    def __str__(self) -> str:
        by = f", as {self.launcher} says" if self.launcher else ""
        machines = f" of each of {self.num_nodes} machines" if self.num_nodes > 1 else ""
        return f"{self.devices} devices{machines}{by}"


ALONE = World()


def find(
    *,
    devices: int | None,
    num_nodes: int | None,
    device_kind: DeviceKind,
    gpus: Callable[[], int] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> World:
    """The world of a run. `devices` (on each machine), `num_nodes`: as configured; None: as torchrun or srun says, else
    all GPUs of this machine. `gpus`: counts them.

    Raises InputError: they are not there, or torchrun or srun has started another number of processes.
    """
    there = (gpus or _num_gpus)() if device_kind == "cuda" else 1
    world = _launched(environment)
    if world is None:
        if (num_nodes or 1) > 1:
            raise InputError(
                f"num_nodes: {num_nodes} machines need a process for each of their devices; start this command by "
                "torchrun or srun (docs/gpu.md)"
            )
        world = World(devices=devices or there)
    for key, asked, started in (("devices", devices, world.devices), ("num_nodes", num_nodes, world.num_nodes)):
        if asked not in (None, started):
            raise InputError(
                f"{key}: got {asked}, but {world.launcher} has started {world.devices} processes on each of "
                f"{world.num_nodes} machines; start as many, or leave {key} out"
            )
    if world.devices > there and device_kind != "cpu":
        what = f"{there} GPUs" if device_kind == "cuda" else f"1 {device_kind}"
        raise InputError(f"devices: expected at most the {what} of this machine, got {world.devices}")
    return world


def _num_gpus() -> int:
    import torch  # seconds to import

    return torch.cuda.device_count()


def _launched(environment: Mapping[str, str]) -> World | None:
    if all(name in environment for name in TORCHRUN):
        local, size = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
        _refuse_unequal(size, unit=local)
        return World(
            devices=local,
            num_nodes=size // local,
            rank=int(environment["RANK"]),
            local_rank=int(environment["LOCAL_RANK"]),
            launcher="torchrun",
            address=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
        )
    if all(name in environment for name in SRUN) and int(environment["SLURM_STEP_NUM_TASKS"]) > 1:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # seconds to import

        num_nodes, size = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
        _refuse_unequal(size, unit=num_nodes)
        first = SLURMEnvironment.resolve_root_node_address(environment["SLURM_STEP_NODELIST"])
        return World(
            devices=size // num_nodes,
            num_nodes=num_nodes,
            rank=int(environment["SLURM_PROCID"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            launcher="srun",
            address=environment.get("MASTER_ADDR", first),
            port=int(environment.get("MASTER_PORT", 15000 + int(environment.get("SLURM_JOB_ID", "0")[-4:]))),
        )
    return None


def _refuse_unequal(num: int, *, unit: int) -> None:
    if num % unit:
        raise InputError(f"devices: {num} processes were started, not as many on each machine; start as many on each")


def refuse_uneven(spec: RunSpec, *, world: World) -> None:
    """Raise InputError if a batch cannot be split evenly; mixup pairs the images of each device."""
    recipe = spec.recipe
    if not isinstance(recipe, Recipe) or recipe.streaming is None:
        return
    mixes = recipe.streaming.mixes
    unit = world.size * (2 if mixes else 1)
    if rest := recipe.batch_size % unit:
        sizes = [size for size in (recipe.batch_size - rest, recipe.batch_size - rest + unit) if size]
        raise InputError(
            f"recipe.batch_size: expected {'an even number' if mixes else 'a number'} of images for each of "
            f"{world.size} devices{' (mixup pairs them)' if mixes else ''}, got {recipe.batch_size} for all; set "
            f"recipe.batch_size={' or '.join(map(str, sizes))}, or other devices and num_nodes"
        )


@contextmanager
def joined(world: World, *, device_kind: DeviceKind, share: Callable[[World], None]) -> Iterator[World]:
    """Rank 0's context in which all processes of the world are connected; those not started yet are started here.

    `share`: what each of these does, with its own World; it can be pickled. They end with the context.
    """
    if world.size == 1:
        yield world
        return
    print(f"on {world}", file=sys.stderr)
    others = list[BaseProcess]()
    if not world.launcher:
        with socket.socket() as free:
            free.bind((world.address, 0))
            world = replace(world, port=free.getsockname()[1])
        spawning = multiprocessing.get_context("spawn")  # a forked torch can hang
        for rank in range(1, world.size):
            arguments = share, replace(world, rank=rank, local_rank=rank), os.getpid()
            others.append(spawning.Process(target=_begin, args=arguments))
            others[-1].start()
    try:
        with connected(world, device_kind=device_kind), _watching(others):
            try:
                yield world
            except BaseException as error:
                failed = isinstance(error, RuntimeError) and _has_failed(others)
                _end(others)  # before this process leaves the group, which can wait for them
                if failed:  # the error says only that the connection is gone
                    raise ChildProcessError("a process of another device has failed") from error
                raise
        for process in others:
            process.join()
    finally:
        _end(others)


def _has_failed(processes: list[BaseProcess]) -> bool:
    """Whether one ends with a fault within some seconds: a connection is gone some moments before its process."""
    ends = time.monotonic() + EXIT_SECONDS
    while not (failed := any(process.exitcode for process in processes)) and time.monotonic() < ends:
        time.sleep(0.05)
    return failed


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()


@contextmanager
def connected(world: World, *, device_kind: DeviceKind) -> Iterator[None]:
    """The context of torch's process group: gloo between CPUs, NCCL between GPUs. Raises InputError: no connection."""
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if device_kind == "cuda":
        torch.cuda.set_device(world.local_rank)
    try:  # before init_process_group, which would count a group that did not come about
        where = f"tcp://{world.address}:{world.port}"
        store, _, _ = next(rendezvous(where, rank=world.rank, world_size=world.size, timeout=WAIT))
    except distributed.DistNetworkError as error:
        raise InputError(
            f"devices: process {world.rank} of {world.size} cannot use {where}, where they meet: {error}; if another "
            "program has that port, start again, on several machines with another MASTER_PORT"
        ) from error
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device_kind == "cuda" else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=WAIT,
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def told(value: Any, *, world: World) -> Any:
    """Rank 0's value, on all ranks of a world that is connected."""
    if world.size == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: object, *, world: World) -> list[Any]:
    """The values of all ranks, in their order, on each of them."""
    if world.size == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world.size
    distributed.all_gather_object(values, value)
    return values


def _begin(share: Callable[[World], None], world: World, parent: int) -> NoReturn:
    """A process of rank above 0: it ends with its parent, which Ctrl-C ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    startup.end_with(parent)
    startup.begin()
    try:
        share(world)
    except InputError as error:
        print(*error.faults, sep="\n", file=sys.stderr)
        startup.end(2)
    startup.end(0)


@contextmanager
def _watching(others: list[BaseProcess]) -> Iterator[None]:
    """End this process if one of the others fails and this one still waits for it after some seconds: NCCL would wait
    for many minutes.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if any(process.exitcode for process in others) and not over.wait(END_SECONDS):
                print(
                    "a process of another device has failed; start it again and it goes on", file=sys.stderr, flush=True
                )
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
