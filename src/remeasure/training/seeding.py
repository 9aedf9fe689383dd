"""Seeds that are functions of (seed, purpose, step); the order of the images and the initial weights that follow."""

import hashlib
import random

import numpy as np
import torch
from torch import Tensor, nn

from remeasure.models import registry
from remeasure.spec.run import RunSpec


def derive(seed: int, *, purpose: str, step: int) -> int:
    """A 63-bit seed of its own for each (seed, purpose, step)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators: timm and the user's code may draw from all three."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def permutation(num: int, *, seed: int, epoch: int) -> Tensor:
    """The order of `num` training images in an epoch, (num,) int64: a function of (seed, epoch)."""
    generator = torch.Generator().manual_seed(derive(seed, purpose="order", step=epoch))
    return torch.randperm(num, generator=generator)


def initial_network(spec: RunSpec, *, seed: int) -> nn.Module:
    """The spec's network on the CPU, with the initial weights of the seed; compiled if the spec says so."""
    network = registry.build(
        spec.model,
        image_shape=spec.input_shape,
        num_classes=spec.data.num_classes,
        generator_seed=derive(seed, purpose="weights", step=0),
    )
    if spec.compile:
        network.compile()
    return network
