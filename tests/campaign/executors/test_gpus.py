"""Workers on a machine with GPUs; which there are is a stand-in, and a worker reports which it was given."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import jobs, trained

from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.local import MOST_ON_DEVICE, Workers, visible_gpus
from remeasure.config.compose import compose
from remeasure.runs.folder import Place
from remeasure.runs.journal import unwatched
from remeasure.spec.run import RunSpec


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """On a machine of 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return Place(runs=tmp_path, project=tmp_path, data_root=tmp_path, device_kind="cuda")


@pytest.fixture(scope="module")
def plain() -> RunSpec:
    return trained.spec()


@pytest.fixture(scope="module")
def lbfgs() -> RunSpec:
    return trained.spec("model=logreg", "recipe=lbfgs")


@pytest.fixture(scope="module")
def deit() -> RunSpec:
    return compose(["model=mlp2", "data=cifar10", "recipe=deit_b"]).spec(data_sha256="")


def workers(place: Place, *names: str, **options: Any) -> Workers:
    return Workers(place, execute=jobs.report, gpus=lambda: names, **options)


def task(spec: RunSpec, seed: int) -> Task:
    return Task(row="", seed=seed, spec=spec, fresh=False)


def seen(pool: Workers, tasks: Sequence[Task]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES was in the worker of each task; all are started at once."""
    found: dict[int, str] = {}
    for each in tasks:
        pool.submit(each)
    pool.work(
        lambda: False, take=lambda each, future: found.update({each.seed: _gpus(future.result())}), watch=unwatched
    )
    return [found[each.seed] for each in tasks]


def _gpus(result: Any) -> str:
    return str(result["gpus"])


@pytest.mark.parametrize("names", [(), ("0",)])
def test_on_one_gpu_a_run_is_alone_but_runs_of_lbfgs_are_side_by_side(
    names: Sequence[str], place: Place, plain: RunSpec, lbfgs: RunSpec
) -> None:
    pool = workers(place, *names)
    assert pool.num == MOST_ON_DEVICE == 10
    assert pool.cores(plain) == 10
    assert pool.cores(lbfgs) == 1


def test_on_a_cpu_gpus_are_not_asked_for(place: Place, plain: RunSpec) -> None:
    pool = workers(dataclasses.replace(place, device_kind="cpu"), "0", "1")
    assert (pool.num, pool.cores(plain)) == (16, 1)


def test_each_of_several_gpus_trains_a_seed_in_a_process_that_sees_it_alone(place: Place, plain: RunSpec) -> None:
    with workers(place, "GPU-5ebe9553", "GPU-77e4c1a0") as pool:
        assert (pool.num, pool.cores(plain)) == (16, 8)
        assert seen(pool, [task(plain, 0), task(plain, 1)]) == ["GPU-5ebe9553", "GPU-77e4c1a0"]
        pool.submit(task(plain, 2))
        pool.submit(task(plain, 3))
        assert not pool.fits(plain)


def test_runs_of_lbfgs_are_dealt_to_the_gpus_and_keep_the_others_off_theirs(
    place: Place, plain: RunSpec, lbfgs: RunSpec
) -> None:
    with workers(place, "0", "1", "2") as pool:
        assert pool.num == 3 * 5
        tasks = [task(lbfgs, 0), task(plain, 1), task(lbfgs, 2)]
        assert seen(pool, tasks) == ["0", "1", "2"]
        for seed in (3, 4):
            pool.submit(task(lbfgs, seed))
        assert pool.fits(plain)
        pool.submit(task(lbfgs, 5))
        assert pool.idle >= pool.cores(plain)  # twelve workers, but no GPU's all
        assert not pool.fits(plain)


def test_a_run_that_takes_several_gpus_waits_for_all_and_sees_them(place: Place, plain: RunSpec, deit: RunSpec) -> None:
    with workers(place, "MIG-a", "MIG-b") as pool:
        assert pool.cores(deit) == pool.num == 16
        assert seen(pool, [task(deit, 0)]) == ["MIG-a,MIG-b"]
        assert seen(pool, [task(plain, 1)]) == ["MIG-a"]
        pool.submit(task(plain, 2))
        assert not pool.fits(deit)


def test_a_seed_is_timed_on_each_gpu_that_trains_one(place: Place, plain: RunSpec) -> None:
    with workers(place, "0", "1", time_seed=seconds_by_gpu) as pool:
        assert pool.seconds_of_seed(plain, num_seeds=5) == 20.0
        assert pool.seconds_of_seed(plain, num_seeds=1) == 10.0


def seconds_by_gpu(spec: RunSpec, place: Place) -> float:  # noqa: ARG001
    return 10.0 * (1 + int(os.environ["CUDA_VISIBLE_DEVICES"]))


@pytest.mark.parametrize(
    ("listed", "num", "expected"),
    [
        (None, 3, ("0", "1", "2")),
        ("2,0", 2, ("2", "0")),
        ("GPU-5ebe9553, GPU-77e4c1a0", 2, ("GPU-5ebe9553", "GPU-77e4c1a0")),
        ("0,1,-1,2", 2, ("0", "1")),  # CUDA ignores what stands behind a number that it does not know
        ("MIG-a,MIG-b", 1, ("MIG-a", "MIG-b")),  # of which CUDA shows a process the first
        ("", 0, ()),
    ],
)
def test_the_gpus_are_those_of_cuda_visible_devices(
    listed: str | None, num: int, expected: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num)
    assert visible_gpus() == expected
