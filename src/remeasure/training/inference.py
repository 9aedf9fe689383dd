"""A network's forward pass on its device, and the tally of its predictions, from which an evaluation resumes."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from remeasure.spec.base import DivergenceError, InputError, refuse
from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec
from remeasure.system.formats import Array, decode_npz
from remeasure.system.paths import read_file
from remeasure.training.augment import normalise
from remeasure.training.checkpoints import DIGEST_BYTES, unusable
from remeasure.training.negative_controls import evaluated_with

EVALUATION_BATCH = 1000
CHECKPOINT_TYPES = {
    **{"predicted": ("<i8",), "confidence": ("<f4",), "top5": ("<i8",)},
    **{"loss": ("<f8",), "seconds": ("<f8",)},
}


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


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """`predicted` (N,) int64, `confidence` (N,) float32 top-1 probability, and the mean cross-entropy.

    `top5` (N, min(5, K)) int64: the most probable of the K classes, the first one first.
    """

    predicted: Tensor
    confidence: Tensor
    top5: Tensor
    loss: float


def predictions(found: Mapping[str, np.ndarray]) -> Predictions:
    """Of a tally's arrays, or of those of several processes; `loss`: the sum of each process."""
    return Predictions(
        predicted=torch.tensor(found["predicted"]),
        confidence=torch.tensor(found["confidence"]),
        top5=torch.tensor(found["top5"]),
        loss=found["loss"].sum().item() / len(found["predicted"]),
    )


class Tally:
    """The predictions and loss so far, in order, on the device: reading them after each batch would stall a GPU."""

    def __init__(self) -> None:
        classes, numbers = torch.empty(0, dtype=torch.int64), torch.empty(0)
        self._parts = {"predicted": [classes], "confidence": [numbers], "top5": [classes]}
        self._losses, self.loss_total = list[Tensor](), 0.0

    def add(self, logits: Tensor, *, labels: Tensor) -> None:
        """A batch: logits (B, K) and labels (B,) on the device."""
        top = logits.softmax(dim=1).max(dim=1)
        self._parts["predicted"].append(top.indices)
        self._parts["confidence"].append(top.values)
        self._parts["top5"].append(logits.topk(min(5, logits.shape[1]), dim=1).indices)  # the largest first
        self._losses.append(functional.cross_entropy(logits, labels, reduction="sum"))

    def arrays(self) -> dict[str, np.ndarray]:
        """The tally as CPU arrays. Waits for the device."""
        for parts in self._parts.values():
            parts[:] = [torch.cat([part.cpu() for part in parts])]
        if self._losses:
            for loss in torch.stack(self._losses).tolist():  # in float64, which MPS does not have
                self.loss_total += loss
            self._losses.clear()
        found = {key: parts[0].numpy() for key, parts in self._parts.items()}
        return found | {"loss": np.array([self.loss_total])}

    def resume(self, checkpoint: Path, *, total: int, num_classes: int) -> tuple[int, float]:
        """Resume from the checkpoint, if there is one; returns its number of photographs and its seconds.

        Raises InputError if it cannot be of an evaluation of `total` photographs in `num_classes` classes.
        """
        if not checkpoint.exists():
            return 0, 0.0
        try:
            kept = decode_npz(read_file(checkpoint)[:-DIGEST_BYTES], name="npz", dtypes=CHECKPOINT_TYPES)
            refuse(_kept_faults(**kept, total=total, num_classes=num_classes))
        except InputError as error:
            raise unusable(checkpoint, error) from None
        self._parts = {key: [torch.tensor(kept[key])] for key in self._parts}
        self.loss_total += kept["loss"].item()
        return len(kept["predicted"]), kept["seconds"].item()


def _kept_faults(
    *, predicted: Array, confidence: Array, top5: Array, loss: Array, seconds: Array, total: int, num_classes: int
) -> Iterator[str]:
    """Faults in the arrays of a checkpoint."""
    if predicted.ndim != 1 or len(predicted) > total or confidence.shape != predicted.shape:
        yield f"expected a class and a confidence for each of at most {total} photographs"
    if not ((predicted >= 0) & (predicted < num_classes)).all():
        yield f"predicted: expected classes from 0 to {num_classes - 1}"
    if top5.shape != (*predicted.shape, min(5, num_classes)) or not ((top5 >= 0) & (top5 < num_classes)).all():
        yield f"top5: expected {min(5, num_classes)} classes from 0 to {num_classes - 1} for each"
    if not ((confidence >= 0) & (confidence <= 1)).all():  # false for NaN, too
        yield "confidence: expected finite numbers in [0, 1]"
    for name, value in (("loss", loss), ("seconds", seconds)):
        if value.shape != (1,) or not 0 <= value[0] < np.inf:
            yield f"{name}: expected one finite number from 0 up"


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
