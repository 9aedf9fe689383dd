"""How a model is trained or evaluated: a recipe and its parts."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from remeasure.spec.base import Choice, Count, NotNegative, Positive, Precision, Strict, Within
from remeasure.spec.photographs import Streaming, Transform

_BETWEEN_0_AND_1 = Within("a fraction in (0, 1)", lambda value: 0 < value < 1)


def _rise(epochs: tuple[int, ...]) -> bool:
    return list(epochs) == sorted(set(epochs)) and all(epoch >= 1 for epoch in epochs)


_Epochs = Annotated[tuple[int, ...], Within("rising epochs from 1 up", _rise)]
_Factor = Annotated[float, Within("a fraction in [0, 1]", lambda value: 0 <= value <= 1)]


@dataclass(frozen=True, kw_only=True)
class Optimizer(Choice):
    """An optimiser with its arguments; each stands in training/optimizers.py.

    `lr_peak`: the rate that the schedule scales. `capturable`: a CUDA graph can capture its step. `searches_lines`: it
    evaluates the loss several times a step.
    """

    lr_peak: Positive
    key = "recipe.optimizer"
    capturable: ClassVar[bool] = False
    searches_lines: ClassVar[bool] = False

    def arguments(self) -> dict[str, Any]:
        """The arguments that are set, without name and learning rate."""
        names = [name for name in self.argument_names() if name != "lr_peak"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @abstractmethod
    def build(self, parameters: Any, *, rate: Any, precision: Precision) -> Any:
        """The torch optimiser of these parameters.

        `rate`: the learning rate, a float; or a tensor () on the device, for steps that a CUDA graph captures.
        `precision`: of the optimiser's own matrix products.
        """

    def from_scratch(self, arrays: Any) -> Any:
        """For engine=numpy: the same optimiser in NumPy (models.scratch.optimizers) of these arrays."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Schedule(Strict):
    """The learning rate as a pure function of the step: warm-up from `lr_start_factor`·peak, then the named decay.

    `epochs_warmup` may be a fraction of an epoch. `milestones`: epochs after which the rate is multiplied by `gamma`.
    The decay reaches `lr_end_factor`·peak after the last step.
    """

    name: Literal["constant", "linear", "cosine", "milestones"]
    epochs_warmup: NotNegative
    lr_start_factor: _Factor
    lr_end_factor: _Factor
    milestones: _Epochs
    gamma: Annotated[float | None, _BETWEEN_0_AND_1]

    def _faults(self) -> Iterable[str]:
        if (self.name == "milestones") != bool(self.milestones):
            yield "milestones: schedule 'milestones' needs a list of epochs, and no other schedule takes one"
        if (self.name == "milestones") != (self.gamma is not None):
            yield "gamma: schedule 'milestones' needs one, and no other schedule takes one"
        if self.name in ("linear", "cosine") and self.lr_end_factor == 1:
            yield f"lr_end_factor: with 1 the {self.name} schedule never changes the rate; choose constant"
        if self.epochs_warmup > 0 and self.lr_start_factor == 1:
            yield "lr_start_factor: with 1 the warm-up never changes the rate; set epochs_warmup to 0"


@dataclass(frozen=True, kw_only=True)
class Loss(Choice):
    """A loss of logits, plus `l2_penalty`·½·Σw² over weight matrices and kernels (not biases); training/losses.py."""

    l2_penalty: NotNegative = 0.0
    key = "recipe.loss"

    @abstractmethod
    def mean(self, logits: Any, labels: Any) -> Any:
        """The batch's mean loss () of logits (B, num_classes) and labels (B,), or target shares (B, num_classes)."""

    def each(self, logits: Any, labels: Any) -> Any:
        """For engine=batched: each image's loss, (B,)."""
        raise NotImplementedError

    def unregularised(self) -> Self:
        """The same loss with nothing that keeps it from 0 on a batch that is known by heart."""
        return replace(self, l2_penalty=0.0)


@dataclass(frozen=True, kw_only=True)
class Augmentation(Choice):
    """A change of the training images, drawn anew for each batch; training/augment.py."""

    key = "recipe.augmentation"

    @abstractmethod
    def apply(self, images: Any, *, normalisation: "Normalisation", generator: Any) -> Any:
        """Images (N, C, H, W) uint8 in 0..255, changed and normalised to float32. All draws are from `generator`; None:
        from the global generator of the images' device, which works in a CUDA graph.
        """

    def mirrored_first(self, num: int, *, seed: int) -> Any:  # noqa: ARG002
        """Which of `num` images `apply` gets as `mirrored` in the first epoch, (num,) bool; the others in the second,
        and so on. None: `apply` has no such argument.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Resolution(Strict):
    """Smaller images in the first epochs: `pixels[i]` on each side until epoch `until_epoch[i]`, then full size."""

    pixels: Annotated[tuple[int, ...], Within("1 or more", lambda pixels: all(value >= 1 for value in pixels))]
    until_epoch: _Epochs

    def _faults(self) -> Iterable[str]:
        if len(self.pixels) != len(self.until_epoch) or not self.pixels:
            yield f"pixels and until_epoch: expected equally many, got {len(self.pixels)} and {len(self.until_epoch)}"

    def pixels_at(self, epoch: int) -> int | None:
        """Pixels on each side in `epoch` (from 0); None for full size."""
        return next((size for size, end in zip(self.pixels, self.until_epoch, strict=True) if epoch < end), None)


@dataclass(frozen=True, kw_only=True)
class Averaging(Strict):
    """Score an exponential moving average of the trained net's weights and batch statistics.

    It starts as the net after the first step of epoch `from_epoch` (from 1); each later step moves it by 1 - `decay`
    towards the net (Polyak and Juditsky 1992; Izmailov et al. 2018 average the last epochs, too).
    """

    from_epoch: Count
    decay: Annotated[float, _BETWEEN_0_AND_1]


@dataclass(frozen=True, kw_only=True)
class Normalisation(Strict):
    """x → (x - mean) / std for pixels x in [0, 1]; one value a channel, or one for all channels."""

    mean: tuple[float, ...]
    std: Annotated[tuple[float, ...], Within("numbers above 0", lambda std: all(value > 0 for value in std))]

    def _faults(self) -> Iterable[str]:
        if not self.mean or len(self.mean) != len(self.std):
            yield f"mean and std: expected equally many values, got {len(self.mean)} and {len(self.std)}"


@dataclass(frozen=True, kw_only=True)
class Recipe(Strict):
    """How a model is trained. Only the recipe and the RunSpec around it affect a weight."""

    name: str
    epochs_total: Count
    batch_size: Count
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss
    normalisation: Normalisation
    augmentation: Augmentation
    resolution: Resolution | None
    streaming: Streaming | None
    averaging: Averaging | None
    clip_norm: Annotated[float | None, Within("a number above 0 or null", lambda value: value > 0)]

    def _faults(self) -> Iterable[str]:
        last = max((*self.schedule.milestones, self.schedule.epochs_warmup))
        if any(epoch <= self.schedule.epochs_warmup for epoch in self.schedule.milestones):
            yield f"schedule: a milestone lies in the warm-up, which ends after epoch {self.schedule.epochs_warmup:g}"
        if last >= self.epochs_total:
            yield (
                f"schedule: reaches to epoch {last:g}, but the run ends after epochs_total={self.epochs_total}; "
                "shorten the schedule or train longer"
            )
        if self.resolution and self.resolution.until_epoch[-1] >= self.epochs_total:
            yield (
                f"resolution: small images until epoch {self.resolution.until_epoch[-1]}, but the run ends after "
                f"epochs_total={self.epochs_total}; the last epochs must see all pixels"
            )
        if self.averaging and self.averaging.from_epoch > self.epochs_total:
            yield (
                f"averaging: begins with epoch {self.averaging.from_epoch}, but the run ends after "
                f"epochs_total={self.epochs_total}"
            )
        if self.streaming:
            yield from self._streaming_faults()

    @property
    def transform(self) -> Transform | None:
        """The transform of photographs that are scored; None: the images are scored as they are."""
        return self.streaming.transform if self.streaming else None

    def unsupported(self, engine: str) -> Iterable[str]:
        """What of the recipe's choices the engine does not implement; each continues "the … engine"."""
        for choice in (self.optimizer, self.loss, self.augmentation):
            yield from choice.unsupported(engine)

    def _streaming_faults(self) -> Iterable[str]:
        if self.augmentation.name != "none" or self.resolution:
            yield "streaming: has its own augmentation; set augmentation.name to none and resolution to null"
        for choice in (self.optimizer, self.loss):
            yield from (f"streaming: {fault}" for fault in choice.unsupported("photographs"))
        if self.averaging:
            yield "streaming: has its own moving average (ema_decay); set averaging to null"


@dataclass(frozen=True, kw_only=True)
class Evaluation(Strict):
    """The recipe of mode `evaluate`: published weights and the transform of each photograph. Nothing is trained.

    `weights`: the name of published weights on timm's hub, such as deit_base_patch16_224.fb_in1k.
    """

    name: str
    mode: Literal["evaluate"]
    weights: str
    batch_size: Count
    transform: Transform
    normalisation: Normalisation

    @property
    def epochs_total(self) -> int:
        return 0
