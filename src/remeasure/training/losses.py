"""The losses: each is a class with its arguments as fields. A new one is a class here; nothing else names it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from torch import Tensor, nn
from torch.nn import functional

from remeasure.spec.base import Within
from remeasure.spec.recipe import Loss


def training_loss(logits: Tensor, labels: Tensor, *, loss: Loss, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The batch's mean loss, plus the penalty ½·l2·Σw² over weight matrices and kernels."""
    value: Tensor = loss.mean(logits, labels)
    if loss.l2_penalty:
        value = value + 0.5 * loss.l2_penalty * sum(weight.square().sum() for weight in parameters if weight.ndim > 1)
    return value


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy on logits; each label has 1 - `label_smoothing` of the target, all classes share the rest."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Within("a fraction in [0, 1)", lambda value: 0 <= value < 1)] = 0.0
    engines = ("serial", "batched", "numpy", "photographs")

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")

    def unregularised(self) -> Self:
        return replace(super().unregularised(), label_smoothing=0.0)

    def unsupported(self, engine: str) -> Iterable[str]:
        yield from super().unsupported(engine)
        if engine == "numpy" and (self.label_smoothing or self.l2_penalty):
            yield "has the cross-entropy alone (label_smoothing: 0, l2_penalty: 0)"
