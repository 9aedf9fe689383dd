"""How a model is trained or evaluated: a recipe and its parts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from remeasure.spec.base import Strict
from remeasure.spec.photographs import Streaming, Transform


@dataclass(frozen=True, kw_only=True)
class Optimizer(Strict):
    """Arguments of the optimiser; those that an optimiser does not have must be null.

    `sgd_lr_peak`: with muon, the peak rate of the parameters that it updates by SGD; both rates follow the schedule.
    """

    name: Literal["adam", "adamw", "sgd", "rmsprop", "lbfgs", "muon"]
    lr_peak: float
    momentum: float | None
    nesterov: bool | None
    weight_decay: float | None
    betas: tuple[float, float] | None
    alpha: float | None
    eps: float | None
    history_size: int | None
    sgd_lr_peak: float | None

    _USES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "adam": ("weight_decay", "betas", "eps"),
        "adamw": ("weight_decay", "betas", "eps"),
        "sgd": ("momentum", "nesterov", "weight_decay"),
        "rmsprop": ("alpha", "eps", "momentum", "weight_decay"),
        "lbfgs": ("history_size",),
        "muon": ("momentum", "sgd_lr_peak", "weight_decay"),
    }

    def arguments(self) -> dict[str, Any]:
        """The arguments that are set, without name and learning rate."""
        return {key: getattr(self, key) for key in self._USES[self.name] if getattr(self, key) is not None}

    def _faults(self) -> Iterable[str]:
        if not self.lr_peak > 0:
            yield f"lr_peak: expected a number above 0, got {self.lr_peak}"
        if self.weight_decay is not None and not self.weight_decay >= 0:
            yield f"weight_decay: expected 0 or more, got {self.weight_decay}"
        for key in ("momentum", "alpha"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                yield f"{key}: expected a number in [0, 1), got {value}"
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas: expected two numbers in [0, 1), got {list(self.betas)}"
        if self.eps is not None and not self.eps > 0:
            yield f"eps: expected a number above 0, got {self.eps}"
        if self.history_size is not None and not self.history_size >= 1:
            yield f"history_size: expected 1 or more, got {self.history_size}"
        if self.sgd_lr_peak is not None and not self.sgd_lr_peak > 0:
            yield f"sgd_lr_peak: expected a number above 0, got {self.sgd_lr_peak}"
        if self.name == "muon" and self.sgd_lr_peak is None:
            yield "sgd_lr_peak: muon needs it, the rate of the parameters that it leaves to SGD"
        if self.name == "muon" and not self.momentum:
            yield "momentum: muon needs one above 0"
        if self.name == "sgd" and self.nesterov and not self.momentum:
            yield "nesterov: needs a momentum above 0"
        allowed = self._USES[self.name]
        for entry in fields(self):
            if entry.name in ("name", "lr_peak", *allowed) or getattr(self, entry.name) is None:
                continue
            yield f"{entry.name}: {self.name} has no such argument; it has {', '.join(allowed)}"


@dataclass(frozen=True, kw_only=True)
class Schedule(Strict):
    """The learning rate as a pure function of the step: warm-up from `lr_start_factor`·peak, then the named decay.

    `epochs_warmup` may be a fraction of an epoch. `milestones`: epochs after which the rate is multiplied by `gamma`.
    The decay reaches `lr_end_factor`·peak after the last step.
    """

    name: Literal["constant", "linear", "cosine", "milestones"]
    epochs_warmup: float
    lr_start_factor: float
    lr_end_factor: float
    milestones: tuple[int, ...]
    gamma: float | None

    def _faults(self) -> Iterable[str]:
        if not self.epochs_warmup >= 0:
            yield f"epochs_warmup: expected 0 or more, got {self.epochs_warmup}"
        for key in ("lr_start_factor", "lr_end_factor"):
            if not 0 <= getattr(self, key) <= 1:
                yield f"{key}: expected a fraction in [0, 1], got {getattr(self, key)}"
        if (self.name == "milestones") != bool(self.milestones):
            yield "milestones: schedule 'milestones' needs a list of epochs, and no other schedule takes one"
        if list(self.milestones) != sorted(set(self.milestones)) or any(epoch < 1 for epoch in self.milestones):
            yield f"milestones: expected rising epochs from 1 up, got {list(self.milestones)}"
        if (self.name == "milestones") != (self.gamma is not None):
            yield "gamma: schedule 'milestones' needs one, and no other schedule takes one"
        if self.name in ("linear", "cosine") and self.lr_end_factor == 1:
            yield f"lr_end_factor: with 1 the {self.name} schedule never changes the rate; choose constant"
        if self.epochs_warmup > 0 and self.lr_start_factor == 1:
            yield "lr_start_factor: with 1 the warm-up never changes the rate; set epochs_warmup to 0"
        if self.gamma is not None and not 0 < self.gamma < 1:
            yield f"gamma: expected a fraction in (0, 1), got {self.gamma}"


@dataclass(frozen=True, kw_only=True)
class Loss(Strict):
    """Cross-entropy on logits plus `l2_penalty`·½·Σw² over weight matrices (not biases)."""

    name: Literal["cross_entropy"]
    label_smoothing: float
    l2_penalty: float

    def _faults(self) -> Iterable[str]:
        if not 0 <= self.label_smoothing < 1:
            yield f"label_smoothing: expected a fraction in [0, 1), got {self.label_smoothing}"
        if not self.l2_penalty >= 0:
            yield f"l2_penalty: expected 0 or more, got {self.l2_penalty}"


@dataclass(frozen=True, kw_only=True)
class Augmentation(Strict):
    """`affine`: random planar affine maps of the training images (LeCun et al. 1998, section III-C).

    `probability`: the share of images that are distorted. Every other argument is the bound of a uniform u in ±:
    `translation_pixels` on each axis; `scaling`, both axes by exp(u); `squeezing`, the axes by exp(u) and exp(-u);
    `shear`, horizontal, pixels a row.

    `crop`: a random crop of the image's own size after `pad_pixels` of black on each side (He et al. 2016, section
    4.2); a left-right mirror with `flip_probability`; then a square of `cutout_pixels` (0: none) at a random place,
    clipped at the image's border, is set to the mean pixel (DeVries and Taylor 2017). `padding`: `reflect` mirrors
    the image at its border in place of black. `flips`: `alternating` draws once which images are mirrored, and then
    mirrors each one in every second epoch (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", section 3.6).
    """

    name: Literal["none", "affine", "crop"]
    probability: float | None
    translation_pixels: float | None
    scaling: float | None
    squeezing: float | None
    shear: float | None
    pad_pixels: int | None
    flip_probability: float | None
    cutout_pixels: int | None
    padding: Literal["reflect"] | None
    flips: Literal["alternating"] | None

    _USES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "none": (),
        "affine": ("probability", "translation_pixels", "scaling", "squeezing", "shear"),
        "crop": ("pad_pixels", "flip_probability", "cutout_pixels", "padding", "flips"),
    }
    _MAY_BE_NULL: ClassVar[tuple[str, ...]] = ("padding", "flips")

    def _faults(self) -> Iterable[str]:
        used = self._USES[self.name]
        for entry in fields(self)[1:]:
            key, value = entry.name, getattr(self, entry.name)
            if value is None and key in used and key not in self._MAY_BE_NULL:
                yield f"{key}: augmentation {self.name!r} needs it"
            elif value is not None and key not in used:
                yield f"{key}: augmentation {self.name!r} has no such argument; it has {', '.join(used) or 'none'}"
            elif isinstance(value, (int, float)) and not value >= 0:
                yield f"{key}: expected 0 or more, got {value}"
        for key in ("probability", "flip_probability"):
            if (value := getattr(self, key)) is not None and value > 1:
                yield f"{key}: expected a fraction in [0, 1], got {value}"


@dataclass(frozen=True, kw_only=True)
class Resolution(Strict):
    """Smaller images in the first epochs: `pixels[i]` on each side until epoch `until_epoch[i]`, then full size."""

    pixels: tuple[int, ...]
    until_epoch: tuple[int, ...]

    def _faults(self) -> Iterable[str]:
        if len(self.pixels) != len(self.until_epoch) or not self.pixels:
            yield f"pixels and until_epoch: expected equally many, got {len(self.pixels)} and {len(self.until_epoch)}"
        if any(value < 1 for value in self.pixels):
            yield f"pixels: expected 1 or more, got {list(self.pixels)}"
        if list(self.until_epoch) != sorted(set(self.until_epoch)) or any(epoch < 1 for epoch in self.until_epoch):
            yield f"until_epoch: expected rising epochs from 1 up, got {list(self.until_epoch)}"

    def pixels_at(self, epoch: int) -> int | None:
        """Pixels on each side in `epoch` (from 0); None for full size."""
        return next((size for size, end in zip(self.pixels, self.until_epoch, strict=True) if epoch < end), None)


@dataclass(frozen=True, kw_only=True)
class Averaging(Strict):
    """Score an exponential moving average of the trained net's weights and batch statistics.

    It starts as the net after the first step of epoch `from_epoch` (from 1); each later step moves it by 1 - `decay`
    towards the net (Polyak and Juditsky 1992; Izmailov et al. 2018 average the last epochs, too).
    """

    from_epoch: int
    decay: float

    def _faults(self) -> Iterable[str]:
        if self.from_epoch < 1:
            yield f"from_epoch: expected 1 or more, got {self.from_epoch}"
        if not 0 < self.decay < 1:
            yield f"decay: expected a fraction in (0, 1), got {self.decay}"


@dataclass(frozen=True, kw_only=True)
class Normalisation(Strict):
    """x → (x - mean) / std for pixels x in [0, 1]; one value a channel, or one for all channels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def _faults(self) -> Iterable[str]:
        if not self.mean or len(self.mean) != len(self.std):
            yield f"mean and std: expected equally many values, got {len(self.mean)} and {len(self.std)}"
        if not all(value > 0 for value in self.std):
            yield f"std: expected numbers above 0, got {list(self.std)}"


@dataclass(frozen=True, kw_only=True)
class Recipe(Strict):
    """How a model is trained. Only the recipe and the RunSpec around it affect a weight."""

    name: str
    epochs_total: int
    batch_size: int
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss
    normalisation: Normalisation
    augmentation: Augmentation
    resolution: Resolution | None
    streaming: "Streaming | None"
    averaging: Averaging | None
    clip_norm: float | None

    def _faults(self) -> Iterable[str]:
        for key in ("epochs_total", "batch_size"):
            if getattr(self, key) < 1:
                yield f"{key}: expected 1 or more, got {getattr(self, key)}"
        if self.clip_norm is not None and not self.clip_norm > 0:
            yield f"clip_norm: expected a number above 0 or null, got {self.clip_norm}"
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

    def _streaming_faults(self) -> Iterable[str]:
        if self.augmentation.name != "none" or self.resolution:
            yield "streaming: has its own augmentation; set augmentation.name to none and resolution to null"
        if self.optimizer.name == "lbfgs":
            yield "streaming: takes its images in batches, and L-BFGS does not"
        if self.optimizer.name == "muon":
            yield "streaming: groups the parameters by weight decay, and muon has groups of its own"
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
    batch_size: int
    transform: Transform
    normalisation: Normalisation

    def _faults(self) -> Iterable[str]:
        return [f"batch_size: expected 1 or more, got {self.batch_size}"] if self.batch_size < 1 else ()

    @property
    def epochs_total(self) -> int:
        return 0
