"""Predictions and loss of an evaluation, batch by batch; an interrupted one resumes from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from remeasure.spec.base import InputError, refuse
from remeasure.system.formats import Array, decode_npz
from remeasure.system.paths import read_file
from remeasure.training.checkpoints import DIGEST_BYTES, unusable

CHECKPOINT_TYPES = {
    **{"predicted": ("<i8",), "confidence": ("<f4",), "top5": ("<i8",)},
    **{"loss": ("<f8",), "seconds": ("<f8",)},
}


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
