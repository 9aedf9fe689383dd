"""A network's forward pass on its device, and its predictions."""

import math

import torch
from torch import Tensor, nn

from remeasure.spec.base import DivergenceError
from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec
from remeasure.training.augment import normalise
from remeasure.training.negative_controls import evaluated_with
from remeasure.training.tally import Predictions, Tally, predictions

EVALUATION_BATCH = 1000


def memory_format(spec: RunSpec) -> torch.memory_format:
    return torch.channels_last if spec.channels_last else torch.contiguous_format


class Forward:
    """The forward pass of a network in the spec's precision: uint8 batches in, logits (B, num_classes) float32 out.

    The network is moved to `device`, in evaluation mode, with the spec's memory format.
    """

    def __init__(self, network: nn.Module, *, spec: RunSpec, device: torch.device) -> None:
        self.spec, self.device, self.memory_format = spec, device, memory_format(spec)
        self.network = network.to(device).to(memory_format=self.memory_format).eval()
        self.normalisation = evaluated_with(spec)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images (B, C, H, W) uint8 on any device, without waiting for the device."""
        images = images.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.spec.precision == "bfloat16"):
            batch = normalise(images, normalisation=self.normalisation).contiguous(memory_format=self.memory_format)
            logits: Tensor = self.network(batch)
        return logits.float()


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, *, labels: Tensor, spec: RunSpec, device: torch.device) -> Predictions:
    """Evaluate `network` on images (N, C, H, W) uint8 and labels (N,), in their order."""
    run, tally = Forward(network, spec=spec, device=device), Tally()
    for start in range(0, len(images), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        tally.add(run(images[part]), labels=labels[part].to(device))
    return predictions(tally.arrays())


def refuse_not_finite(predictions: Predictions, *, spec: RunSpec) -> None:
    """Raise DivergenceError if the loss is not finite: the last steps diverged after the last check during training."""
    assert isinstance(spec.recipe, Recipe)
    if not math.isfinite(predictions.loss):
        batches = (spec.data.num_train - spec.data.num_validation) / spec.recipe.batch_size
        steps_per_epoch = math.floor(batches) if spec.recipe.streaming else math.ceil(batches)
        raise DivergenceError(epoch=spec.recipe.epochs_total - 1, step=spec.recipe.epochs_total * steps_per_epoch - 1)
