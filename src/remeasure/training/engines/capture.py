"""Optimiser steps captured as CUDA graphs: one launch for each step instead of hundreds of kernel launches.

REMEASURE_CAPTURE=0 trains without graphs, to the same numbers.
"""

import os
from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Step = Callable[[Tensor], tuple[Tensor, ...]]  # from the indices of the step's images to its outputs
STEPS_BEFORE_CAPTURE = 3  # warm-up on a side stream, as torch requires: libraries initialise in the first steps


def possible(device: torch.device) -> bool:
    return device.type == "cuda"


def wanted() -> bool:
    return os.environ.get("REMEASURE_CAPTURE", "1") != "0"


class Captured:
    """One training's steps, a graph for each `key`: all that Python decides in a step, such as the image size."""

    def __init__(self) -> None:
        self.graphs: dict[Hashable, Step] = {}
        self._num_launched = Counter[Hashable]()

    def __call__(self, step: Step, chosen: Tensor, *, key: Hashable) -> tuple[Tensor, ...]:
        """`step(chosen)`: launched kernel by kernel a few times, then captured, and from then on replayed.

        `chosen` has the same shape in all calls of a key. The step must not wait for the device.
        """
        if key not in self.graphs:
            if self._num_launched[key] < STEPS_BEFORE_CAPTURE:
                self._num_launched[key] += 1
                return _aside(step, chosen)
            self.graphs[key] = _captured(step, chosen)
        return self.graphs[key](chosen)


def _aside(step: Step, chosen: Tensor) -> tuple[Tensor, ...]:
    """The step on a side stream, ordered between earlier and later work on the current stream."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        outputs = step(chosen)
    torch.cuda.current_stream().wait_stream(aside)
    return outputs


def _captured(step: Step, chosen: Tensor) -> Step:
    """The step as a graph, which reads its indices and writes its outputs in the memory of its capture."""
    inputs, graph = chosen.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records the kernels without running them
        outputs = step(inputs)

    def replay(chosen: Tensor) -> tuple[Tensor, ...]:
        inputs.copy_(chosen)
        graph.replay()
        return tuple(output.clone() for output in outputs)  # the next replay overwrites them

    return replay
