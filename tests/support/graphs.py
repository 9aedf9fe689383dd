"""CUDA graphs on the CPU, for tests: what a captured step computes is recorded operation by operation, and replayed.

As on a GPU, a replay calls no Python, reads and writes the same tensors, draws anew, and a capture that waits for the
device fails. Unlike there, a capture computes: so the first replay does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from remeasure.training.engines import capture
from remeasure.training.engines.serial import Training

WAITING = ("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.is_nonzero")


class Graph(TorchDispatchMode):
    """Stands in for torch.cuda.CUDAGraph."""

    capturing = False  # any of them

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.num_replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(WAITING):
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, outputs))
        return outputs

    def replay(self) -> None:
        self.num_replays += 1
        if self.num_replays == 1:
            return
        with torch.no_grad():
            for func, args, kwargs, outputs in self.calls:
                given = {value.untyped_storage().data_ptr() for value in tree_leaves((args, kwargs)) if _is(value)}
                for kept, new in zip(tree_leaves(outputs), tree_leaves(func(*args, **kwargs)), strict=True):
                    if _is(kept) and kept.untyped_storage().data_ptr() not in given:  # else a view, or in place
                        kept.copy_(new)


def _is(value: object) -> bool:
    return isinstance(value, Tensor)


@contextmanager
def _graph(graph: Graph) -> Iterator[None]:
    Graph.capturing = True
    try:
        with graph:
            yield
    finally:
        Graph.capturing = False


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Have steps captured here as on a GPU; the graphs that there are."""
    monkeypatch.setenv("REMEASURE_CAPTURE", "1")
    graphs: list[Graph] = []
    stream = SimpleNamespace(wait_stream=lambda _: None)

    def graph() -> Graph:
        graphs.append(Graph())
        return graphs[-1]

    cuda = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: nullcontext()}
    for name, value in {**cuda, "CUDAGraph": graph, "graph": _graph}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(capture, "possible", lambda device: True)  # noqa: ARG005
    monkeypatch.setattr(Training, "generator", lambda self, step: None)  # noqa: ARG005 - as on CUDA
    return graphs
