"""Optimiser steps captured as CUDA graphs: a step is one launch, where Python launches hundreds of kernels otherwise.

REMEASURE_CAPTURE=0 trains without that, to the same numbers.
"""

import os
from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Step = Callable[[Tensor], tuple[Tensor, ...]]  # from the indices of the step's images to what it returns
STEPS_BEFORE_CAPTURE = 3  # on a stream of their own, as torch asks: libraries set themselves up in the first ones


def possible(device: torch.device) -> bool:
    return device.type == "cuda"


def wanted() -> bool:
    return os.environ.get("REMEASURE_CAPTURE", "1") != "0"


class Captured:
    """One training's steps, a graph for each `key`: all that Python decides within a step, such as the images' size."""

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
    """The step on a stream of its own, between what comes before and after it on the current one."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        outputs = step(chosen)
    torch.cuda.current_stream().wait_stream(aside)
    return outputs


def _captured(step: Step, chosen: Tensor) -> Step:
    """The step as a graph. It reads its indices, and leaves its outputs, where it did when it was captured."""
    inputs, graph = chosen.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and does nothing yet
        outputs = step(inputs)

    def replay(chosen: Tensor) -> tuple[Tensor, ...]:
        inputs.copy_(chosen)
        graph.replay()
        return tuple(output.clone() for output in outputs)  # the next replay overwrites them

    return replay
