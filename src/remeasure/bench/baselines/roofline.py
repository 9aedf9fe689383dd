"""A lower bound for any training loop: the matrix products alone, at the machine's measured rate."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise

import torch


def products_flop(sizes: Sequence[int], *, num_images: int, first_inputs: bool) -> int:
    """Floating point operations of one epoch's matrix products in a dense net; a multiply-add counts as two.

    Three products a layer: forward, the weights' gradients, the inputs' gradients. The gradients of the first layer's
    inputs are not needed; `first_inputs` counts them anyway, as 6 · weights · images does.
    """
    weights = [num_in * num_out for num_in, num_out in pairwise(sizes)]
    unneeded = 0 if first_inputs else weights[0]
    return 2 * num_images * (3 * sum(weights) - unneeded)


def product_rate(*, size: int, min_seconds: float) -> float:
    """GFLOP/s of a float32 product of two size x size matrices on one thread (2·size³ a product)."""
    from torch.utils import benchmark  # slow: it looks for compilers, and warns if there are none

    left, right = torch.randn(size, size), torch.randn(size, size)
    timer = benchmark.Timer("torch.mm(left, right)", globals={"left": left, "right": right}, num_threads=1)
    return 2 * size**3 / timer.blocked_autorange(min_run_time=min_seconds).median / 1e9


def machine_rate(cores: Sequence[ProcessPoolExecutor], *, size: int, min_seconds: float) -> float:
    """GFLOP/s of all cores together: one process a core, measured at the same time."""
    at_once = [core.submit(product_rate, size=size, min_seconds=min_seconds) for core in cores]
    return sum(rate.result() for rate in at_once)
