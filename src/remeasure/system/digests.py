"""SHA-256 of predictions and of environments, as records hold them."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from remeasure.spec.base import canonical_sha256
from remeasure.system.formats import Array


def predicted_sha256(predicted: Array) -> str:
    """SHA-256 over one seed's predicted classes (N,): the bytes of the smallest unsigned type that holds them all.

    Little-endian; the same whatever integer type the array comes in. ValueError: a class below 0.
    """
    return hashlib.sha256(smallest_unsigned(predicted).tobytes()).hexdigest()


def environment_sha256(environment: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of an environment, used as `versions_sha256` and as its file's name."""
    return canonical_sha256(environment)


def smallest_unsigned(values: Array) -> Array:
    if values.size and values.min() < 0:
        raise ValueError(f"predicted: expected classes from 0 up, got {values.min()}")
    dtype = np.min_scalar_type(int(values.max()) if values.size else 0)
    return values.astype(dtype.newbyteorder("<"))
