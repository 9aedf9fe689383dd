"""What the two wings share: frozen dataclasses and their faults. Standard library only.

Percent appears only in names that end in `_percent` (or `_pp`, percentage points); every other rate is a fraction.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

TRAINING_VERSION = 1  # raised by hand whenever trained numbers change; tests/test_golden.py notices when it must be
PARAMS_TEXT = re.compile(r"([0-9]{1,3}(?:,[0-9]{3}){1,5}|[0-9]{1,15})(?:(?:\.([0-9]{1,6}))? ?([kKMB]))?")  # "11.7M"
CONFIG_NAME = re.compile(r"\w[\w.-]{0,99}")  # of a model, data set or recipe: part of folders' names
LARGEST = 2**63 - 1  # of whole numbers in a config, a ledger or a record: beyond it a float may be infinite
MOST_THREADS, MOST_TOGETHER = 1024, 1000
IN_ENGINE = {"batched": ("adam", "adamw", "sgd", "rmsprop"), "numpy": ("adam", "sgd")}  # optimisers; serial has all
FIRST_TUNING_SEED = 1000  # seeds below are the ledger's; tuning on the validation split uses seeds from here up

DeviceKind = Literal["cpu", "cuda", "mps"]
Precision = Literal["float32", "bfloat16"]
Engine = Literal["serial", "batched", "numpy"]
Mode = Literal["train", "evaluate"]
Control = Literal["none", "shuffled_labels", "swapped_classes", "tenth_of_data", "other_normalisation"]
Grade = Literal["primary", "secondary", "unsourced"]
VerdictName = Literal["reproduced", "exceeds", "falls short", "undecided", "not measured"]


class InputError(ValueError):
    """The input (config, data, ledger, command line) is wrong. `faults` holds one line for each fault."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@contextmanager
def gathered(faults: list[str]) -> Iterator[None]:
    """What is wrong with the input in the block joins the list, so that all of it can be told together."""
    try:
        yield
    except InputError as error:
        faults += error.faults


class Strict:
    """Unknown keys are faults wherever a dataclass is read from YAML or JSON (read by pydantic), and so is each line of
    `_faults`: one ValueError names them all.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if faults := tuple(self._faults()):
            raise ValueError("\n".join(faults))

    def _faults(self) -> Iterable[str]:
        return ()


# ---------------------------------------------------------------- what is trained


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Strict):
    """A builder of `remeasure.models` and the plain keywords it gets.

    `weights`: a file of published weights, for mode evaluate; null: those that the recipe names, from timm's hub.
    What is in them is part of a run's identity (RunSpec.weights_sha256), their path is not.
    `published`: what recipe=published_eval reads: keys of an Evaluation, such as weights and transform.
    """

    name: str
    builder: str
    options: dict[str, Any]
    weights: str | None = None
    published: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class DataSpec(Strict):
    """A data set, how much of its training split is held back, and the split that the run is scored on.

    `pixel_mean`, `pixel_std`: statistics of the official training pixels in [0, 1], one value a channel.
    `files_md5`: file name to the MD5 that torchvision checks. `known_copies`: fingerprint to description.
    """

    name: str
    source: str
    title: str
    num_classes: int
    image_shape: tuple[int, int, int]
    num_train: int
    num_test: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    num_validation: int
    split: Literal["test", "validation"]
    files_md5: dict[str, str]
    official_sha256: str | None
    known_copies: dict[str, str]

    def _faults(self) -> Iterable[str]:
        for key, least in (("num_classes", 1), ("num_train", 0), ("num_test", 1)):
            if getattr(self, key) < least:
                yield f"{key}: expected {least} or more, got {getattr(self, key)}"
        if any(size < 1 for size in self.image_shape):
            yield f"image_shape: expected channels, height and width from 1 up, got {list(self.image_shape)}"
        for key in ("pixel_mean", "pixel_std"):
            if (num := len(getattr(self, key))) not in (1, self.image_shape[0]):
                yield f"{key}: expected 1 value, or one for each of {self.image_shape[0]} channels, got {num}"
        most = max(self.num_train - 1, 0)  # a set that is only evaluated on has no training images
        if not 0 <= self.num_validation <= most:
            yield f"num_validation: expected 0 to {most}, got {self.num_validation}"
        if self.split == "validation" and self.num_validation == 0:
            yield "num_validation: split=validation needs some, such as data.num_validation=10000"


@dataclass(frozen=True, kw_only=True)
class Optimizer(Strict):
    """Arguments of the optimiser; those that an optimiser does not have must be null.

    `sgd_lr_peak`: with muon, the rate of all parameters that it leaves to SGD; both rates follow the schedule.
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
        """Those that are set, without name and learning rate."""
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

    `probability`: the share of images that are distorted. Each of the rest is the bound of a uniform u in ±:
    `translation_pixels` on each axis; `scaling`, both axes by exp(u); `squeezing`, the axes by exp(u) and exp(-u);
    `shear`, horizontal, pixels a row.

    `crop`: a random crop of the image's own size after `pad_pixels` of black on each side (He et al. 2016, section
    4.2); mirrored left to right with `flip_probability`; then a square of `cutout_pixels` at a random place becomes
    the mean pixel, clipped at the image's border (DeVries and Taylor 2017), 0 for none. `padding`: `reflect` mirrors
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
    """Training on smaller images at first: `pixels[i]` on each side until epoch `until_epoch[i]`, then all pixels."""

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
        """Pixels on each side in `epoch` (from 0); None for the images' own."""
        return next((size for size, end in zip(self.pixels, self.until_epoch, strict=True) if epoch < end), None)


@dataclass(frozen=True, kw_only=True)
class Averaging(Strict):
    """The net that is scored is a moving average of the trained one's weights, and of its batch statistics.

    It begins as the net after the first step of epoch `from_epoch` (from 1); each step moves it by 1 - `decay` towards
    the net (Polyak and Juditsky 1992; Izmailov et al. 2018 average the last epochs, too).
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
    """How a model is trained, from the first step to the last; nothing else moves a weight but the spec around it."""

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
class Transform(Strict):
    """From a photograph to the net's input: the shorter side is resized to crop_pixels / crop_pct (rounded down), the
    middle crop_pixels x crop_pixels are kept. Names and arithmetic are timm's (`timm.data.create_transform`).
    """

    crop_pixels: int
    crop_pct: float
    interpolation: Literal["bicubic", "bilinear"]

    def _faults(self) -> Iterable[str]:
        if self.crop_pixels < 1:
            yield f"crop_pixels: expected 1 or more, got {self.crop_pixels}"
        if not 0 < self.crop_pct <= 1:
            yield f"crop_pct: expected a fraction in (0, 1], got {self.crop_pct}"


@dataclass(frozen=True, kw_only=True)
class Streaming(Strict):
    """Training on photographs that are decoded as they are needed, by timm's means (Touvron et al. 2021, DeiT).

    Each is cropped at random to `transform`'s crop_pixels and mirrored, as timm does by default; the transform as a
    whole is how the test photographs are seen. `rand_augment`: a policy in timm's notation, null for none.
    `erase_probability`: a random rectangle becomes noise, pixel by pixel. `mixup_alpha`, `cutmix_alpha`: one of the two
    for each batch, 0 for never. `num_repeats`: with 3, an epoch shows a third of the images, three times each.
    `drop_path`: the probability that an image skips the last block's branches, rising from 0 in the first. `ema_decay`:
    of the moving average of the weights, at each step, null for none. `scored`: the weights that are measured.
    """

    transform: Transform
    rand_augment: str | None
    erase_probability: float
    mixup_alpha: float
    cutmix_alpha: float
    num_repeats: int
    drop_path: float
    ema_decay: float | None
    scored: Literal["model", "ema"]

    def _faults(self) -> Iterable[str]:
        if self.rand_augment is not None and not self.rand_augment.startswith("rand-"):
            yield f"rand_augment: expected a policy such as rand-m9-mstd0.5-inc1, or null, got {self.rand_augment!r}"
        for key in ("erase_probability", "drop_path"):
            if not 0 <= getattr(self, key) < 1:
                yield f"{key}: expected a fraction in [0, 1), got {getattr(self, key)}"
        for key in ("mixup_alpha", "cutmix_alpha"):
            if not getattr(self, key) >= 0:
                yield f"{key}: expected 0 or more, got {getattr(self, key)}"
        if self.num_repeats < 1:
            yield f"num_repeats: expected 1 or more, got {self.num_repeats}"
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            yield f"ema_decay: expected a fraction in (0, 1) or null, got {self.ema_decay}"
        if self.scored == "ema" and self.ema_decay is None:
            yield "scored: the moving average can be scored only where ema_decay says how it is made"


@dataclass(frozen=True, kw_only=True)
class Evaluation(Strict):
    """The recipe of a row of mode `evaluate`: which weights, and how they see each photograph. Nothing is trained.

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


def input_shape(data: DataSpec, *, recipe: Recipe | Evaluation) -> tuple[int, int, int]:
    """(C, H, W) of what a model sees: the data's images as they are, or what is cropped from their photographs."""
    seen = recipe.streaming if isinstance(recipe, Recipe) else recipe
    return data.image_shape if seen is None else (data.image_shape[0], *(seen.transform.crop_pixels,) * 2)


def _counts(run: "RunSpec | Config") -> Iterable[str]:
    for key in ("engine_width", "steps_per_block", "cpu_threads"):
        if getattr(run, key) < 1:
            yield f"{key}: expected 1 or more, got {getattr(run, key)}"


@dataclass(frozen=True, kw_only=True)
class RunSpec(Strict):
    """All that a run is, but for its seed. `spec_sha256` and the seed are the run's identity."""

    model: ModelSpec
    data: DataSpec
    recipe: Recipe | Evaluation
    precision: Precision
    engine: Engine
    engine_width: int
    compile: bool
    channels_last: bool
    steps_per_block: int
    cpu_threads: int
    data_sha256: str
    weights_sha256: str | None
    training_version: int
    control: Control = "none"

    def _faults(self) -> Iterable[str]:
        yield from _counts(self)
        if self.engine != "batched" and self.engine_width > 1:
            yield f"engine_width: the {self.engine} engine trains one seed at a time, got {self.engine_width}"
        if self.engine == "numpy":
            yield from (f"engine: the numpy engine {fault}; choose engine=serial" for fault in self._not_in_numpy())
        if self.engine == "batched":
            yield from (f"engine: the batched engine {fault}; choose engine=serial" for fault in self._not_batched())
        num_channels, num_means = self.data.image_shape[0], len(self.recipe.normalisation.mean)
        if num_means not in (1, num_channels):
            yield f"recipe.normalisation: expected 1 value, or {num_channels} for the channels, got {num_means}"
        if isinstance(self.recipe, Recipe) and self.recipe.streaming and self.data.num_validation:
            yield (
                "data.num_validation: photographs are listed class by class, so that the last ones are no sample; "
                f"expected 0, got {self.data.num_validation}"
            )
        if self.control != "none" and not (isinstance(self.recipe, Recipe) and self.recipe.streaming is None):
            yield f"control: {self.control} is for training on images in memory; expected none"
        if self.mode == "evaluate" and self.data.split != "test":
            yield "data.split: an evaluation reads the test split, got validation"

    @property
    def can_be_batched(self) -> bool:
        """Whether the batched engine could train it."""
        return not any(self._not_batched())

    def _not_batched(self) -> Iterable[str]:
        """What the batched engine cannot do of this."""
        if isinstance(self.recipe, Evaluation):
            yield "trains, and nothing is trained here"
            return
        if self.engine == "numpy":
            yield "is torch's"
        if (name := self.recipe.optimizer.name) not in IN_ENGINE["batched"]:
            has = f"has {', '.join(IN_ENGINE['batched'])}, not recipe.optimizer.name={name}"
            yield has + (": L-BFGS searches a line for each seed" if name == "lbfgs" else "")
        if self.recipe.averaging:
            yield "keeps no average of its nets (averaging: null)"
        if self.recipe.augmentation.flips:
            yield "draws all its seeds' flips anew (augmentation.flips: null)"
        if self.recipe.streaming:
            yield "needs its images in memory"
        if self.control != "none":
            yield "trains all its seeds on the same images (control: none)"
        if self.channels_last:
            yield "has its own memory format (channels_last: false)"
        if self.compile:
            yield "is not compiled (compile: false)"

    def _not_in_numpy(self) -> Iterable[str]:
        """What the network from scratch cannot do of this (its layers apart, which only the network tells)."""
        if isinstance(self.recipe, Evaluation):
            yield "trains, and nothing is trained here"
            return
        optimizer, loss = self.recipe.optimizer, self.recipe.loss
        if optimizer.name not in IN_ENGINE["numpy"]:
            yield f"has {', '.join(IN_ENGINE['numpy'])}, not recipe.optimizer.name={optimizer.name}"
        elif optimizer.weight_decay or optimizer.nesterov:
            yield "has SGD with momentum and Adam, without weight decay"
        if loss.label_smoothing or loss.l2_penalty:
            yield "has the cross-entropy alone (label_smoothing: 0, l2_penalty: 0)"
        if self.recipe.averaging:
            yield "keeps no average of its net (averaging: null)"
        if self.recipe.streaming:
            yield "needs its images in memory"
        if self.precision != "float32" or self.compile or self.channels_last:
            yield "knows nothing of precision, compile and channels_last"

    def together(self, seed: int) -> range:
        """The seeds that are trained together with `seed`: itself alone, or its group in the batched engine."""
        first = seed - seed % self.engine_width
        return range(first, first + self.engine_width)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the model sees."""
        return input_shape(self.data, recipe=self.recipe)

    @property
    def mode(self) -> Mode:
        return "train" if isinstance(self.recipe, Recipe) else "evaluate"

    @property
    def spec_sha256(self) -> str:
        return spec_sha256(asdict(self))


# Keys that came after the first records, and what they meant before: they count only where they say something else.
_LATER: Mapping[str, Any] = {
    "channels_last": False,
    "steps_per_block": 100,
    "weights_sha256": None,
    "resolution": None,
    "streaming": None,
    "dropout_masks": "bernoulli",
    "batch_norm": False,
    "control": "none",
    **dict.fromkeys(("pad_pixels", "flip_probability", "cutout_pixels", "padding", "flips")),
    **dict.fromkeys(("sgd_lr_peak", "averaging")),
}


def spec_sha256(spec: Mapping[str, Any]) -> str:
    """SHA-256 over what can move a weight in `asdict(RunSpec)`: never names, paths, devices, logging or budget."""
    identity = {
        "model": _said({key: spec["model"][key] for key in ("builder", "options")}),
        "data": {key: spec["data"][key] for key in ("num_classes", "num_validation", "split")},
        "recipe": _said({key: value for key, value in spec["recipe"].items() if key != "name"}),
        **{key: spec[key] for key in ("precision", "engine", "engine_width", "compile", "cpu_threads")},
        **{key: spec[key] for key in ("data_sha256", "training_version")},
        **_said(
            {key: spec[key] for key in ("channels_last", "steps_per_block", "weights_sha256", "control") if key in spec}
        ),
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the later keys that stand at their old meaning, in nested mappings, too."""
    kept = {key: value for key, value in values.items() if key not in _LATER or value != _LATER[key]}
    return {key: _said(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def canonical_json(value: object) -> str:
    """The one text of a plain value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Debug(Strict):
    """Help by hand in place of a run (conf/debug). `num_images`: of a batch; null: as many as the recipe says."""

    name: Literal["overfit_batch", "one_step", "profile"]
    num_images: int | None
    num_steps: int

    def _faults(self) -> Iterable[str]:
        counts = {"num_images": self.num_images, "num_steps": self.num_steps}
        return (f"{key}: expected 1 or more, got {n}" for key, n in counts.items() if n is not None and n < 1)


@dataclass(frozen=True, kw_only=True)
class Config(Strict):
    """One composed config: conf/train.yaml with its groups, every interpolation resolved.

    `precision`: auto is bfloat16 where the device computes in it, else float32 (`devices.with_native_precision`).
    """

    model: ModelSpec
    data: DataSpec
    recipe: Recipe | Evaluation
    seed: int
    precision: Literal["auto", "float32", "bfloat16"]
    engine: Engine
    engine_width: int
    compile: bool
    channels_last: bool
    steps_per_block: int
    cpu_threads: int
    control: Control
    device: str
    fresh: bool
    print_epochs: bool
    doctor: bool
    debug: Debug | None

    def _faults(self) -> Iterable[str]:
        for group in ("model", "data", "recipe"):
            if not CONFIG_NAME.fullmatch(name := getattr(self, group).name):
                yield f"{group}.name: expected up to 100 letters, digits, '_', '.' and '-', got {name[:120]!r}"
        yield from _counts(self)
        for key, most in (("engine_width", MOST_TOGETHER), ("cpu_threads", MOST_THREADS)):
            if getattr(self, key) > most:
                yield f"{key}: expected at most {most}, got {getattr(self, key)}"
        if self.device not in ("auto", *get_args(DeviceKind)):
            yield f"device: expected auto, {', '.join(get_args(DeviceKind))}, got {self.device!r}"
        tuning = self.data.split == "validation"
        if self.seed < 0:
            yield f"seed: expected 0 or more, got {self.seed}"
        elif tuning and self.seed < FIRST_TUNING_SEED:
            yield f"seed: tuning on the validation split uses seeds from {FIRST_TUNING_SEED} up, got {self.seed}"
        if isinstance(self.recipe, Evaluation) and self.seed:
            yield f"seed: an evaluation draws nothing, so its seed is 0, got {self.seed}"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the model sees: the images' own, or what the evaluation's transform leaves of them."""
        return input_shape(self.data, recipe=self.recipe)

    def spec(self, *, data_sha256: str, weights_sha256: str | None = None) -> RunSpec:
        """What is trained or evaluated, on data with that fingerprint, with published weights of that fingerprint.

        A precision that is still auto counts as bfloat16.
        """
        return RunSpec(
            model=self.model,
            data=self.data,
            recipe=self.recipe,
            precision="bfloat16" if self.precision == "auto" else self.precision,
            engine=self.engine,
            engine_width=self.engine_width,
            compile=self.compile,
            channels_last=self.channels_last,
            steps_per_block=self.steps_per_block,
            cpu_threads=self.cpu_threads,
            data_sha256=data_sha256,
            weights_sha256=weights_sha256,
            training_version=TRAINING_VERSION,
            control=self.control,
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A config that trains."""

    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """A config that evaluates published weights."""

    recipe: Evaluation


# ---------------------------------------------------------------- what came out


@dataclass(frozen=True, kw_only=True)
class RunRecord(Strict):
    """One finished seed: one line of results/runs/<row>.csv, whose columns are these fields in this order.

    `commit`: "unknown" where nobody could say which it is; `dirty` is None then.

    A seed that diverged has no accuracy, no num_correct, no loss and no predictions (None), and still its line.
    """

    row: str
    seed: int
    spec_sha256: str
    training_version: int
    accuracy_percent: float | None
    num_correct: int | None
    num_test: int
    loss: float | None
    num_params: int
    epochs: int
    wall_seconds: float
    device: str
    device_kind: DeviceKind
    data_sha256: str
    data_official: Literal["yes", "no", "unknown"]
    commit: str
    dirty: bool | None
    versions_sha256: str
    predicted_sha256: str | None
    mlflow_run_id: str
    finished_at: str


# ---------------------------------------------------------------- what was claimed, and the judgement


@dataclass(frozen=True, kw_only=True)
class Source(Strict):
    """Who says so: `citation`, `where` in it, what it `says`, and its grade."""

    citation: str
    where: str
    says: str
    grade: Grade

    def _faults(self) -> Iterable[str]:
        keys = ("citation", "where", "says")
        return (f"{key}: must not be empty" for key in keys if not getattr(self, key).strip())


@dataclass(frozen=True, kw_only=True)
class Published(Strict):
    """A published accuracy and what is known of how it was measured; null is 'not stated'.

    `num_digits` counts the decimals that were printed: 92.6 has 1, 99.05 has 2. `num_params_note`: why the printed
    number of parameters is not ours, where it differs.
    """

    accuracy_percent: float
    num_digits: int
    num_params_text: str
    num_runs: int | None
    selection: str | None
    sources: tuple[Source, ...]
    notes: str
    num_params_note: str | None = None

    def _faults(self) -> Iterable[str]:
        if not 0 < self.accuracy_percent <= 100:
            yield f"accuracy_percent: expected a percentage in (0, 100], got {self.accuracy_percent}"
        if not 0 <= self.num_digits <= 6 or round(self.accuracy_percent, self.num_digits) != self.accuracy_percent:
            yield f"num_digits: {self.num_digits} decimals cannot print {self.accuracy_percent}"
        if not PARAMS_TEXT.fullmatch(self.num_params_text.strip()):
            yield f"num_params_text: expected a count like '7,850', '60k' or '11.7M', got {self.num_params_text!r}"
        if self.num_runs is not None and self.num_runs < 1:
            yield f"num_runs: expected 1 or more, or null for not stated, got {self.num_runs}"
        if not self.sources:
            yield "sources: a bare number is refused; name at least one source, if only one graded 'unsourced'"


@dataclass(frozen=True, kw_only=True)
class Rule(Strict):
    """The rule of decision, written before the first measurement. `looks`: the seed counts at which it is applied.

    `first_seed`: look k uses seeds first_seed … first_seed + looks[k] - 1; a later rule takes seeds never used before.
    """

    margin_pp: float
    confidence: float = 0.95
    looks: tuple[int, ...] = (5, 10, 20)
    first_seed: int = 0

    def _faults(self) -> Iterable[str]:
        if not 0 < self.margin_pp < 100:
            yield f"margin_pp: expected percentage points above 0, got {self.margin_pp}"
        if not 0.5 < self.confidence < 1:
            yield f"confidence: expected a fraction in (0.5, 1), got {self.confidence}"
        if len(self.looks) == 0 or list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 1:
            yield f"looks: expected rising numbers of seeds, got {list(self.looks)}"
        elif self.first_seed < 0 or self.first_seed + self.looks[-1] > FIRST_TUNING_SEED:
            last = self.first_seed + self.looks[-1] - 1
            yield f"looks: expected seeds from 0 to {FIRST_TUNING_SEED - 1}, got {self.first_seed} to {last}"


@dataclass(frozen=True, kw_only=True)
class Row(Strict):
    """One row of the ledger: what to measure, what was published, and how it is decided.

    `control`: the fault on purpose of a negative control (conf/controls.yaml). `engine`: numpy for the network from
    scratch.
    """

    name: str
    model: str
    data: str
    recipe: str
    mode: Mode
    published: Published
    rule: Rule
    control: Control = "none"
    engine: Literal["serial", "numpy"] = "serial"

    def _faults(self) -> Iterable[str]:
        if self.mode == "evaluate" and self.rule.looks != (1,):
            yield f"rule.looks: mode 'evaluate' is deterministic, so looks is [1], got {list(self.rule.looks)}"
        if self.mode == "train" and self.rule.looks[0] < 2:
            yield f"rule.looks: a standard deviation needs 2 seeds or more, got {list(self.rule.looks)}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the seeds of one row showed: seed to correct predictions, None for a seed that diverged."""

    num_correct: Mapping[int, int | None]
    num_test: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement on one row. Percent values are unrounded; None is 'does not apply' or 'unknown'.

    `num_seeds` is the number that mean, sd and interval are over: the deciding look's, not what was run beyond it.
    """

    verdict: VerdictName
    reason: str
    num_seeds: int
    mean_percent: float | None = None
    sd_percent: float | None = None
    interval_low_percent: float | None = None
    interval_high_percent: float | None = None
    seeds_needed: int | None = None
