"""Processes of a contestant's own, so that none disturbs another's threads or memory. Imports nothing but torch."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def own_process(*, threads: int | None, num: int = 1) -> ProcessPoolExecutor:
    """A new process, or `num` of them, with so many torch threads each; None: as many as torch takes by itself.

    As a context it ends them, once what they are doing is done.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch can hang
    return ProcessPoolExecutor(num, mp_context=context, initializer=_begin, initargs=(threads,))


def _begin(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
