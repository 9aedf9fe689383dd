"""A network's forward pass on its device, and its predictions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from remeasure.spec.base import DivergenceError, Precision
from remeasure.spec.recipe import Normalisation, Recipe
from remeasure.spec.run import RunSpec
from remeasure.training.augment import normalise
from remeasure.training.negative_controls import evaluated_with

EVALUATION_BATCH = 1000


def memory_format(spec: RunSpec) -> torch.memory_format:
    return torch.channels_last if spec.channels_last else torch.contiguous_format


@dataclass(frozen=True, kw_only=True)
class Forward:
    """The forward pass in the spec's precision: uint8 batches in, logits (B, num_classes) float32 out."""

    network: nn.Module
    normalisation: Normalisation
    precision: Precision
    memory_format: torch.memory_format
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images (B, C, H, W) uint8 on any device, without waiting for the device."""
        images = images.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            batch = normalise(images, normalisation=self.normalisation).contiguous(memory_format=self.memory_format)
            logits: Tensor = self.network(batch)
        return logits.float()


def forward(network: nn.Module, *, spec: RunSpec, device: torch.device) -> Forward:
    """The network moved to `device`, in evaluation mode, with the spec's precision and memory format."""
    return Forward(
        network=network.to(device).to(memory_format=memory_format(spec)).eval(),
        normalisation=evaluated_with(spec),
        precision=spec.precision,
        memory_format=memory_format(spec),
        device=device,
    )


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """`predicted` (N,) int64, `confidence` (N,) float32 top-1 probability, and the mean cross-entropy.

    `top5` (N, min(5, K)) int64: the most probable of the K classes, the first one first.
    """

    predicted: Tensor
    confidence: Tensor
    top5: Tensor
    loss: float


def top5(logits: Tensor) -> Tensor:
    """The classes (N, min(5, K)) int64 with the largest logits (N, K), the largest first."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, *, labels: Tensor, spec: RunSpec, device: torch.device) -> Predictions:
    """Evaluate `network` on images (N, C, H, W) uint8 and labels (N,), in their order."""
    run = forward(network, spec=spec, device=device)
    predicted, confidence, best, loss_total = [], [], [], 0.0
    for start in range(0, len(images), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        logits = run(images[part])
        top = logits.softmax(dim=1).max(dim=1)
        predicted.append(top.indices.cpu())
        confidence.append(top.values.cpu())
        best.append(top5(logits).cpu())
        loss_total += functional.cross_entropy(logits, labels[part].to(device), reduction="sum").item()
    return Predictions(
        predicted=torch.cat(predicted),
        confidence=torch.cat(confidence),
        top5=torch.cat(best),
        loss=loss_total / len(images),
    )


def refuse_not_finite(predictions: Predictions, *, spec: RunSpec) -> None:
    """Raise DivergenceError if the loss is not finite: the last steps diverged after the last check during training."""
    assert isinstance(spec.recipe, Recipe)
    if not math.isfinite(predictions.loss):
        batches = (spec.data.num_train - spec.data.num_validation) / spec.recipe.batch_size
        steps_per_epoch = math.floor(batches) if spec.recipe.streaming else math.ceil(batches)
        raise DivergenceError(epoch=spec.recipe.epochs_total - 1, step=spec.recipe.epochs_total * steps_per_epoch - 1)
