"""SHA-256 of predictions, as records hold them."""

import hashlib

import numpy as np

from remeasure.system.formats import Array


def predicted_sha256(predicted: Array) -> str:
    """SHA-256 over one seed's predicted classes (N,): the bytes of the smallest unsigned type that holds them all.

    Little-endian; the same whatever integer type the array comes in. ValueError: a class below 0.
    """
    return hashlib.sha256(smallest_unsigned(predicted).tobytes()).hexdigest()


def smallest_unsigned(values: Array) -> Array:
    if values.size and values.min() < 0:
        raise ValueError(f"predicted: expected classes from 0 up, got {values.min()}")
    dtype = np.min_scalar_type(int(values.max()) if values.size else 0)
    return values.astype(dtype.newbyteorder("<"))
