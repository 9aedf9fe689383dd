"""Images per second of an evaluation on photographs: the net alone, their decoding alone, and both together."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from remeasure.data import catalog
from remeasure.models import registry
from remeasure.spec.config import Config
from remeasure.spec.recipe import Evaluation
from remeasure.system.startup import num_cores
from remeasure.training.inference import Forward
from remeasure.training.photographs.evaluate import paced, stream


@torch.inference_mode()
def throughput(config: Config, *, device: torch.device, data_root: Path, num_images: int) -> dict[str, float]:
    """Images per second of an evaluation config, with random weights: the net alone on uint8 batches on the device;
    decoding the photographs of its data set alone, on all cores; and both together. Each is timed on `num_images`
    (photographs are repeated as needed), without the first batch of each worker, during which the workers start.
    """
    recipe = config.recipe
    assert isinstance(recipe, Evaluation)
    network = registry.build(
        config.model, image_shape=config.input_shape, num_classes=config.data.num_classes, generator_seed=0
    )
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

    generator = torch.Generator().manual_seed(0)
    shape = (recipe.batch_size, *config.input_shape)
    batch = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
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
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began, num = time.monotonic(), 0
    for number, size in enumerate(paced((len(batch) for batch in batches), device=device), start=1):
        num += size
        if number == num_first:
            began, num = time.monotonic(), 0
    return num / (time.monotonic() - began)
