"""Batches of photographs from loader processes, each of which sends the images through a socket of its own.

torch's DataLoader passes batches through /dev/shm, of which a container has 64 MB, and through one queue, in which the
reader waits for ever for a process that was killed while it wrote. Here the kernel closes the socket of a process that
ends, whatever ended it, and the reader raises.
"""

import itertools
import multiprocessing
import signal
import socket
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

import torch
from torch import Tensor

from remeasure.spec.base import InputError

AHEAD = 2  # batches that a process may be asked for before one of them is read, which bounds the memory
ANSWER_SECONDS = 600.0  # a batch takes seconds; a process that gives none for so long is stopped, or its disk hangs
END_SECONDS = 5.0

Loaded = tuple[Tensor, Any]  # a batch's images, and what the collate function puts beside them
Collate = Callable[[list[Any]], Loaded]


@dataclass
class Loader:
    """Makes batches of `dataset` in `num_workers` processes, or in this one if that is 0.

    `collate` makes a batch of its items. `pinned`: images arrive in pinned memory. As a context manager it ends its
    processes, which start with the first batch and stay for later calls.
    """

    dataset: Any
    collate: Collate
    num_workers: int
    pinned: bool = False
    seconds: float = ANSWER_SECONDS
    _workers: "list[_Worker]" = field(default_factory=list, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def batches(self, tasks: Iterable[Sequence[Any]]) -> Iterator[Loaded]:
        """The batch of each task, in order; a task lists the dataset's indices of one batch.

        Raises InputError as the dataset does, ChildProcessError if a process ends early, TimeoutError if one gives no
        answer for `seconds`.
        """
        if not self.num_workers:
            yield from (self.collate([self.dataset[index] for index in task]) for task in tasks)
            return
        if not self._workers:
            self._workers = [_Worker(self) for _ in range(self.num_workers)]
        asked = deque[_Worker]()
        try:
            for worker, task in zip(itertools.cycle(self._workers), tasks, strict=False):
                if len(asked) == AHEAD * len(self._workers):
                    yield asked.popleft().answer()
                worker.ask(task)
                asked.append(worker)
            while asked:
                yield asked.popleft().answer()
        finally:
            if asked:  # abandoned: what was asked for must not answer a later call
                self.close()


class _Worker:
    """One process, and this end of its pipe, for tasks and what stands beside the images, and of its socket."""

    def __init__(self, loader: Loader) -> None:
        # A process forked from this one would hang if torch has started threads; so a fork server starts it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([type(loader.dataset).__module__])
        self._pinned, self._seconds = loader.pinned, loader.seconds
        self._pipe, their_pipe = context.Pipe()
        self._socket, their_socket = socket.socketpair()
        self._socket.settimeout(loader.seconds)
        with their_pipe, their_socket:
            arguments = (loader.dataset, loader.collate, their_pipe, their_socket)
            self._process: BaseProcess = context.Process(target=_serve, args=arguments, daemon=True)
            self._process.start()

    def ask(self, task: Sequence[Any]) -> None:
        with self._named():
            self._pipe.send(task)

    def answer(self) -> Loaded:
        with self._named():
            if not self._pipe.poll(self._seconds):
                raise TimeoutError
            shape, dtype, rest = self._pipe.recv()
            images = torch.empty(shape, dtype=dtype, pin_memory=self._pinned)
            _fill(self._socket, _bytes_of(images))
        if isinstance(rest, Exception):
            raise rest
        return images, rest

    def end(self) -> None:
        self._pipe.close()
        self._socket.close()
        self._process.terminate()
        self._process.join(END_SECONDS)
        self._process.kill()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the process where its pipe or socket fails."""
        what = f"process {self._process.pid}, which decodes photographs,"
        try:
            yield
        except TimeoutError:
            raise TimeoutError(f"{what} gave no batch for {self._seconds:g} s") from None
        except (EOFError, ConnectionError):
            self._process.join(END_SECONDS)
            code = self._process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            why = " (out of memory?)" if code == -signal.SIGKILL else ""
            raise ChildProcessError(f"{what} {how}{why}") from None


def _serve(dataset: Any, collate: Collate, pipe: "Connection[Any, Any]", images_to: socket.socket) -> None:
    """A loader process: make the batches that it is asked for, each while the last one is sent, until nobody reads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the reader, which ends this process
    torch.set_num_threads(1)
    sending: Future[None] | None = None
    with suppress(EOFError, ConnectionError), ThreadPoolExecutor(1) as sender:
        while True:
            batch = _made(dataset, collate, task=pipe.recv())
            if sending:
                sending.result()
            sending = sender.submit(_send_batch, pipe, images_to, batch)


def _made(dataset: Any, collate: Collate, *, task: Sequence[Any]) -> Loaded:
    """The batch; what it raises stands in place of the rest."""
    try:
        return collate([dataset[index] for index in task])
    except InputError as error:
        return torch.empty(0), error
    except Exception:
        return torch.empty(0), RuntimeError(f"in a process that decodes photographs:\n{traceback.format_exc()}")


def _send_batch(pipe: "Connection[Any, Any]", images_to: socket.socket, batch: Loaded) -> None:
    images, rest = batch
    pipe.send((images.shape, images.dtype, rest))
    images_to.sendall(_bytes_of(images.contiguous()))


def _bytes_of(images: Tensor) -> memoryview:
    return images.view(-1).view(torch.uint8).numpy().data


def _fill(end: socket.socket, view: memoryview) -> None:
    """Read until the view is full. Raises EOFError: the other end was closed."""
    while view:
        if not (num := end.recv_into(view)):
            raise EOFError
        view = view[num:]
