"""Loader processes: the same batches as without them, and an error, in time, whatever happens to one of them."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from remeasure.spec.base import InputError
from remeasure.training.photographs.loading import Loaded, Loader

TASKS = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12]]
LARGE = 30_000_000  # bytes, more than any socket buffers


@dataclass(frozen=True)
class Numbers:
    """Item i: a tensor of `size` times i, and i. Of index `odd`, its process does `what` instead."""

    size: int = 2
    odd: int = -1
    what: str = ""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.odd:
            self.misbehave()
        return torch.full((self.size,), index, dtype=torch.uint8), index

    def misbehave(self) -> None:
        if self.what == "hang":
            time.sleep(100)
        if self.what == "refuse":
            raise InputError("a.JPEG: torn", "b.JPEG: missing")
        if self.what == "fail":
            raise KeyError("colour")
        os.kill(os.getpid(), signal.Signals[self.what])


def collate(items: list[tuple[Tensor, int]]) -> Loaded:
    images, numbers = zip(*items, strict=True)
    return torch.stack(images), list(numbers)


@contextmanager
def loader(numbers: Numbers, *, num_workers: int = 2, seconds: float = 60.0) -> Iterator[Loader]:
    with Loader(numbers, collate=collate, num_workers=num_workers, seconds=seconds) as found:
        yield found
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [0, 1, 2, 7])
def test_every_number_of_processes_makes_the_same_batches_in_the_same_order(num_workers: int) -> None:
    with loader(Numbers(), num_workers=num_workers) as it:
        for _ in range(2):
            found = list(it.batches(TASKS))
            assert [numbers for _, numbers in found] == TASKS
            assert [images[:, 1].tolist() for images, _ in found] == TASKS
            assert all(images.dtype == torch.uint8 and not images.is_shared() for images, _ in found)


def test_tasks_are_asked_for_only_a_few_ahead() -> None:
    asked: list[int] = []
    with loader(Numbers()) as it:
        next(it.batches([index] for index in range(100) if not asked.append(index)))
        assert len(asked) <= 5


def test_an_iteration_that_was_abandoned_leaves_no_batch_to_the_next() -> None:
    with loader(Numbers()) as it:
        abandoned = it.batches(TASKS)
        next(abandoned)
        abandoned.close()
        assert next(it.batches([[40]]))[1] == [40]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGBUS", "SIGTERM"])
def test_a_killed_process_is_an_error_that_says_so(name: str) -> None:
    began = time.monotonic()
    with loader(Numbers(odd=7, what=name)) as it, pytest.raises(ChildProcessError, match=f"was killed by {name}"):
        list(it.batches(TASKS))
    assert time.monotonic() - began < 30


def test_a_process_killed_in_the_middle_of_a_batch_is_not_waited_for() -> None:
    with loader(Numbers(size=LARGE), num_workers=1) as it:
        batches = it.batches([[1], [2], [3]])
        next(batches)
        time.sleep(0.5)  # it sends the next one, of which the socket holds a part
        (process,) = multiprocessing.active_children()
        process.kill()
        with pytest.raises(ChildProcessError, match=rf"process {process.pid}, which .* SIGKILL \(out of memory\?\)"):
            list(batches)


def test_a_process_that_hangs_is_waited_for_until_its_deadline() -> None:
    numbers = Numbers(odd=7, what="hang")
    with loader(numbers, seconds=1.0) as it, pytest.raises(TimeoutError, match="gave no batch for 1 s"):
        list(it.batches(TASKS))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_wrong_input_keeps_its_faults(num_workers: int) -> None:
    with loader(Numbers(odd=7, what="refuse"), num_workers=num_workers) as it, pytest.raises(InputError) as refused:
        list(it.batches(TASKS))
    assert refused.value.faults == ("a.JPEG: torn", "b.JPEG: missing")


def test_any_other_error_of_a_process_comes_with_its_traceback() -> None:
    with loader(Numbers(odd=7, what="fail")) as it, pytest.raises(RuntimeError, match="KeyError: 'colour'"):
        list(it.batches(TASKS))
