"""Seeds that are functions of (seed, purpose, step), and the order of the images that follows from one."""

import hashlib

import torch
from torch import Tensor


def derive(seed: int, *, purpose: str, step: int) -> int:
    """A 63-bit seed of its own for each (seed, purpose, step)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()[:8], "big") >> 1


def permutation(num: int, *, seed: int, epoch: int) -> Tensor:
    """The order of `num` training images in an epoch, (num,) int64: a function of (seed, epoch)."""
    generator = torch.Generator().manual_seed(derive(seed, purpose="order", step=epoch))
    return torch.randperm(num, generator=generator)
