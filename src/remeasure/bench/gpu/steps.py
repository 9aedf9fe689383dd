"""The steps that are measured on a GPU, in order, each with its sizes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from remeasure.bench.gpu import graphs, rows, speeds
from remeasure.bench.gpu.report import Figures
from remeasure.bench.gpu.sizes import Sizes
from remeasure.spec.base import DeviceKind

Step = Callable[[], Figures]


def steps(sizes: Sizes, *, kind: DeviceKind, out: Path, deadline: float) -> Iterator[tuple[str, Step]]:
    """The name and the function of each step; archives of rows go into folder `out`."""
    device = torch.device(kind)

    def measured(arguments: Sequence[str]) -> tuple[str, Step]:
        archive = out / f"rows-{arguments[0]}.tar.gz"
        return f"rows {' '.join(arguments)}", partial(rows.measure_rows, arguments, archive=archive, deadline=deadline)

    yield "matrix products", lambda: [speeds.matrix_product(sizes.matrix, device=device, repeats=sizes.repeats)]
    yield "graph check", lambda: graphs.graph_check(sizes, kind=kind)
    yield measured(sizes.first_rows)
    yield measured(sizes.last_rows)
    yield "ViT from memory", lambda: speeds.vit_from_memory(sizes, device=device)
    yield "ResNet-18 ways", lambda: graphs.resnet_ways(sizes, kind=kind)
    yield "ViT from files", lambda: speeds.vit_from_files(sizes, device=device)
    yield "ResNet-18 by batch", lambda: speeds.resnet_by_batch(sizes, device=device)
    yield "MLP by batch and width", lambda: speeds.mlp_by_size(sizes, device=device)
    yield "seeds together", lambda: graphs.seeds_together(sizes, kind=kind)
