"""Images per second of an evaluation on photographs: the net alone, their decoding alone, and both together."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from remeasure.bench.gpu.report import Figures
from remeasure.bench.gpu.sizes import Sizes
from remeasure.bench.gpu.speeds import network_of, noise
from remeasure.bench.gpu.timing import wait
from remeasure.config.compose import compose
from remeasure.data import catalog
from remeasure.spec.config import Config
from remeasure.spec.recipe import Evaluation
from remeasure.system import paths
from remeasure.system.startup import num_cores
from remeasure.training.inference import Forward
from remeasure.training.photographs.evaluate import paced, stream


def vit_from_files(sizes: Sizes, *, device: torch.device) -> Figures:
    """Images/s from JPEG files: decoding alone, the net alone, and both together."""
    config = compose([*sizes.vit, "data=imagenet_sample"])
    return [throughput(config, device=device, data_root=paths.data_root(), num_images=sizes.num_images)]


@torch.inference_mode()
def throughput(config: Config, *, device: torch.device, data_root: Path, num_images: int) -> dict[str, float]:
    """Images per second of an evaluation config, with random weights: the net alone on uint8 batches on the device;
    decoding the photographs of its data set alone, on all cores; and both together. Each is timed on `num_images`
    (photographs are repeated as needed), without the first batch of each worker, during which the workers start.
    """
    recipe = config.recipe
    assert isinstance(recipe, Evaluation)
    network = network_of(config, device=device)
    run = Forward(network, spec=config.spec(data_sha256=""), device=device)
    listing = catalog.load_listing(config.data, "test", root=data_root)

    def photographs() -> Iterator[Tensor]:
        return stream(
            listing,
            transform=recipe.transform,
            indices=[index % len(listing) for index in range(num_images + num_cores() * recipe.batch_size)],
            batch_size=recipe.batch_size,
            pinned=device.type == "cuda",
        )

    batch = noise(config, num=recipe.batch_size)[0].to(device)
    run(batch)  # the first call chooses kernels
    repeated = (batch for _ in range(-(-num_images // len(batch))))
    return {
        "batch": len(batch),
        "images": num_images,
        "cores": num_cores(),
        "net_images_per_second": _rate((run(images) for images in repeated), device=device),
        "decode_images_per_second": _rate(photographs(), device=torch.device("cpu"), num_first=num_cores()),
        "files_images_per_second": _rate(
            (run(images) for images in photographs()), device=device, num_first=num_cores()
        ),
    }


def _rate(batches: Iterable[Tensor], *, device: torch.device, num_first: int = 0) -> float:
    """Images per second, timed from the first request, or the result of batch `num_first`, to the last result."""
    wait(device)
    began, num = time.monotonic(), 0
    for number, size in enumerate(paced((len(batch) for batch in batches), device=device), start=1):
        num += size
        if number == num_first:
            began, num = time.monotonic(), 0
    return num / (time.monotonic() - began)
