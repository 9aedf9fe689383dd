"""Losses, each the mean over a batch, with its gradient: (loss, ∂L/∂inputs), the gradient in the inputs' shape."""

import numpy as np
import numpy.typing as npt

from remeasure.models.scratch.activations import Array, sigmoid, softmax

Labels = npt.NDArray[np.integer]


def cross_entropy(logits: Array, labels: Labels) -> tuple[float, Array]:
    """-log softmax(z)[label] for logits (B, C), labels (B,): δ = (p - y) / B, where y is the label one-hot.

    Computed as the log-sum-exp of shifted logits, so that no probability underflows before the logarithm.
    """
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]
    gradient = softmax(logits)
    gradient[rows, labels] -= 1
    return float(losses.mean()), gradient / len(labels)


def binary_cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """-(y·log σ(z) + (1-y)·log(1-σ(z))), elementwise: δ = (σ(z) - y) / n; as max(z, 0) - y·z + log(1 + e^-|z|)."""
    losses = np.maximum(logits, 0) - targets * logits + np.log1p(np.exp(-np.abs(logits)))
    gradient: Array = (sigmoid(logits) - targets) / logits.size
    return float(losses.mean()), gradient


def mean_squared_error(predictions: Array, targets: Array) -> tuple[float, Array]:
    """(ŷ - y)²: δ = 2·(ŷ - y) / n."""
    errors = predictions - targets
    return float((errors**2).mean()), 2 * errors / errors.size


def huber(predictions: Array, targets: Array, *, delta: float = 1.0) -> tuple[float, Array]:
    """½e² up to |e| = δ, from there δ·(|e| - ½δ), whose slope is ±δ (Huber 1964, section 4)."""
    errors = predictions - targets
    small = np.abs(errors) <= delta
    losses = np.where(small, errors**2 / 2, delta * (np.abs(errors) - delta / 2))
    return float(losses.mean()), np.clip(errors, -delta, delta) / errors.size
