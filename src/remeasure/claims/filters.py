"""Are first-layer filters oriented? A measure, a permutation test against shuffled weights, and pictures."""

import math
from pathlib import Path

import numpy as np

from remeasure.claims.context import Lab, Numbers
from remeasure.claims.ledger import Filters
from remeasure.judging.report.images import sheet
from remeasure.models.scratch.activations import Array
from remeasure.spec.base import InputError
from remeasure.system.formats import decode_npz
from remeasure.system.paths import read_file

SCALE = 24  # screen pixels a weight


def coherence(kernels: Array) -> Array:
    """How much each kernel's gradient has one direction: (N, C, H, W) → (N,) in [0, 1], 1 for a pure edge or grating.

    The structure tensor J = Σ g·gᵀ is summed over pixels and channels, with g the gradient (Bigün and Granlund 1987);
    coherence is (λ₁ - λ₂) / (λ₁ + λ₂) of its eigenvalues, 0 for a constant kernel. A kernel's scale does not matter.
    """
    down, across = np.gradient(kernels, axis=(-2, -1))
    yy, xx, xy = ((one * other).sum(axis=(1, 2, 3)) for one, other in ((down, down), (across, across), (down, across)))
    total = xx + yy
    value: Array = np.hypot(xx - yy, 2 * xy) / np.where(total > 0, total, 1)
    return value


def shuffled(kernels: Array, *, rng: np.random.Generator) -> Array:
    """Each kernel's weights in random order within each channel: same norm, no orientation."""
    flat = kernels.reshape(*kernels.shape[:2], -1)
    return rng.permuted(flat, axis=-1).reshape(kernels.shape)


def filters(parameters: Filters, *, seed: int, lab: Lab) -> Numbers:
    """Mean coherence of each row's filters, of shuffled ones, and the permutation test's p-value (Phipson 2010)."""
    numbers: Numbers = {}
    for row in parameters.rows:
        kernels = _read(lab.results / "filters" / f"{row}.npz")
        own, rng = float(coherence(kernels).mean()), np.random.default_rng(seed)
        by_chance = [float(coherence(shuffled(kernels, rng=rng)).mean()) for _ in range(parameters.num_shuffles)]
        as_high = sum(value >= own for value in by_chance)
        numbers[f"{row}.coherence"] = own
        numbers[f"{row}.shuffled_coherence"] = float(np.mean(by_chance))
        numbers[f"{row}.p_value"] = (as_high + 1) / (parameters.num_shuffles + 1)
        lab.pictures.append(draw(kernels, path=lab.results / "claims" / f"{row}-filters.png"))
    return numbers


def _read(path: Path) -> Array:
    try:
        content = read_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); `make reproduce` measures its row") from None
    weights = decode_npz(content, name=str(path), dtypes={"weights": ("<f2",)})["weights"].astype(np.float64)
    if weights.ndim != 4 or min(weights.shape[2:]) < 2:
        raise InputError(f"{path}: expected filters (N, C, H, W) of 2 pixels or more, found {weights.shape}")
    return weights


def draw(kernels: Array, *, path: Path) -> str:
    """Write the filters as tiles of a PNG, each from its lowest weight (black) to its highest; returns its name."""
    from PIL import Image

    low, high = (limit(kernels, axis=(1, 2, 3), keepdims=True) for limit in (np.min, np.max))
    grey = (255 * (kernels - low) / np.where(high > low, high - low, 1)).astype(np.uint8)
    tiles = np.repeat(np.repeat(grey, SCALE, axis=2), SCALE, axis=3).transpose(0, 2, 3, 1)  # (N, H, W, C)
    framed = np.pad(tiles, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet(framed, columns=math.ceil(math.sqrt(len(framed))))).save(path)
    return path.name
