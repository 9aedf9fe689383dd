"""Speeds of matrix products, of inference of a ViT, and of the rows' own optimiser steps without Lightning."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from remeasure.bench.gpu.report import Figures
from remeasure.bench.gpu.sizes import Sizes
from remeasure.bench.gpu.timing import median_seconds, modes
from remeasure.config.compose import compose
from remeasure.models import registry
from remeasure.spec.config import Config
from remeasure.training.engines.serial import Training
from remeasure.training.inference import Forward


def matrix_product(size: int, *, device: torch.device, repeats: int) -> dict[str, Any]:
    """The chip's rate: a bfloat16 product of two size x size matrices, in TFLOP/s (2·size³ FLOP a product)."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    _, seconds = median_seconds(lambda: left @ right, device=device, repeats=repeats)
    return {"size": size, "precision": "bfloat16", "tflops": round(2 * size**3 / seconds / 1e12, 6)}


def network_of(config: Config, *, device: torch.device, seed: int = 0) -> nn.Module:
    network = registry.build(
        config.model, image_shape=config.input_shape, num_classes=config.data.num_classes, generator_seed=seed
    )
    form = torch.channels_last if config.channels_last else torch.contiguous_format
    return network.to(device).to(memory_format=form)


def noise(config: Config, *, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images (num, C, H, W) uint8 and labels (num,)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, *config.input_shape), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, config.data.num_classes, (num,), generator=generator)


def compiled_alone(network: nn.Module, **options: Any) -> None:
    """Compile it for each size separately: after other nets and sizes, torch would use symbolic sizes."""
    torch._dynamo.reset()
    network.compile(dynamic=False, **options)


def vit_from_memory(sizes: Sizes, *, device: torch.device) -> Figures:
    """Images/s of inference in bfloat16 on uint8 images that are on the device, plain and compiled."""
    config, lines = compose(sizes.vit), Figures()
    for compiled in (False, True) if device.type == "cuda" else (False,):
        network = network_of(config, device=device)
        if compiled:
            compiled_alone(network, mode="max-autotune-no-cudagraphs")
        run = Forward(network, spec=config.spec(data_sha256=""), device=device)
        for batch in sizes.photograph_batches:
            call = torch.inference_mode()(partial(run, noise(config, num=batch)[0].to(device)))
            lines.append(_speed(call, batch=batch, compiled=compiled, device=device, repeats=sizes.repeats))
    return lines


def resnet_by_batch(sizes: Sizes, *, device: torch.device) -> Figures:
    """Milliseconds and images/s of the row's own optimiser step (crop, flip, cut-out, bfloat16) on random pixels."""
    lines = Figures()
    for compiled in (False, True) if device.type == "cuda" else (False,):
        for batch in sizes.batches:
            config = compose([*sizes.resnet, f"recipe.batch_size={batch}", "recipe.resolution=null"])
            lines.append(_training_speed(config, compiled=compiled, device=device, repeats=sizes.repeats))
    return lines


def mlp_by_size(sizes: Sizes, *, device: torch.device) -> Figures:
    """Milliseconds of an optimiser step of `mlp2` by batch, and by the width of its one hidden layer."""
    lines = Figures()
    grid = [(batch, 256) for batch in sizes.batches] + [(sizes.batches[0], width) for width in sizes.hidden]
    for batch, width in grid:
        config = compose(["model=mlp2", f"recipe.batch_size={batch}", f"model.options.hidden_sizes=[{width}]"])
        speed = _training_speed(config, compiled=False, device=device, repeats=sizes.repeats)
        lines.append({"hidden": width, **speed})
    return lines


def _training_speed(config: Config, *, compiled: bool, device: torch.device, repeats: int) -> dict[str, Any]:
    """The speed of a step in the modes of a run."""
    with modes(deterministic=device.type == "cuda"):
        call = training_call(config, compiled=compiled, device=device)
        batch = config.recipe.batch_size
        return _speed(call, batch=batch, compiled=compiled, device=device, repeats=repeats)


def training_call(config: Config, *, compiled: bool, device: torch.device) -> Callable[[], None]:
    """One optimiser step as in a run, without Lightning."""
    num = config.recipe.batch_size
    images, labels = noise(config, num=num)
    network = network_of(config, device=device)
    if compiled:
        compiled_alone(network)
    spec = config.spec(data_sha256="")
    training = Training(network, spec=spec, seed=0, images=images, labels=labels).to(device)
    optimizer, chosen = training.configure_optimizers(), torch.arange(num, device=device)
    generator, bfloat16 = training.generator(0), spec.precision == "bfloat16"

    def call() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            training.take(chosen, step=0, generator=generator, optimizer=optimizer)

    return call


def flop_of(call: Callable[[], object]) -> int:
    """Floating point operations of a call; a multiplication and an addition count as two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _speed(
    call: Callable[[], object], *, batch: int, compiled: bool, device: torch.device, repeats: int
) -> dict[str, Any]:
    operations = 0 if compiled else flop_of(call)
    first, seconds = median_seconds(call, device=device, repeats=repeats)
    return {
        "batch": batch,
        "compiled": compiled,
        "first_call_seconds": round(first, 3),
        "milliseconds": float(f"{1000 * seconds:.4g}"),
        "images_per_second": round(batch / seconds, 1),
        "tflops": round(operations / seconds / 1e12, 6) if operations else None,
    }
