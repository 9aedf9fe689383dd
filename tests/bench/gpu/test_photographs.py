"""Images per second of an evaluation on photographs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import remeasure.bench.gpu.photographs
from remeasure.bench.gpu import photographs
from remeasure.config.compose import compose
from remeasure.system.startup import num_cores

CPU = torch.device("cpu")
TINY = ("model.options.architecture=test_vit", "recipe.transform.crop_pixels=160", "recipe.batch_size=3")


def test_throughput_counts_each_photograph_once_in_each_of_three_ways(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(
        remeasure.bench.gpu.photographs, "time", SimpleNamespace(monotonic=lambda: float(next(seconds)))
    )
    config = compose(["model=vit_b16", "data=imagenet_sample", *TINY])
    found = photographs.throughput(config, device=CPU, data_root=sample, num_images=6)
    assert found == {
        **{"batch": 3, "images": 6, "cores": num_cores()},
        **dict.fromkeys(("net_images_per_second", "decode_images_per_second", "files_images_per_second"), 6.0),
    }


def test_the_start_of_the_decoding_processes_is_not_in_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two batches come after 90 s, and 8 more images in 4."""
    seconds = iter((0.0, 90.0, 94.0))
    monkeypatch.setattr(remeasure.bench.gpu.photographs, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    assert photographs._rate([torch.zeros(4)] * 4, device=CPU, num_first=2) == 2.0
