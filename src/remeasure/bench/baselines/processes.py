"""Separate processes for contestants, so that none disturbs another's threads or memory. Imports only torch."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def own_process(*, threads: int | None, num: int = 1) -> ProcessPoolExecutor:
    """A pool of `num` new processes with `threads` torch threads each; None: torch's default.

    As a context manager it waits for their work, then ends them.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch can hang
    return ProcessPoolExecutor(num, mp_context=context, initializer=_begin, initargs=(threads,))


def _begin(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
