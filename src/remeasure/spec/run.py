"""The specification of one run: ModelSpec, DataSpec and RunSpec. The RunSpec's hash and the seed identify the run.

Percent appears only in names that end in `_percent` (or `_pp`, percentage points); every other rate is a fraction.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from remeasure.spec.base import Control, Count, CountOrZero, Engine, Mode, Precision, Strict, Within, canonical_sha256
from remeasure.spec.photographs import Transform
from remeasure.spec.plugin import Plugin
from remeasure.spec.recipe import Evaluation, Recipe

TRAINING_VERSION = 1  # raise it by hand whenever trained numbers change; tests/test_golden.py detects when


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Strict):
    """A builder of `remeasure.models` and the plain keywords it gets.

    `weights`: a file of published weights, for mode evaluate; null: those that the recipe names, from timm's hub.
    Their content is part of the run's identity (RunSpec.weights_sha256), their path is not.
    `published`: keys of an Evaluation, such as weights and transform, which recipe=published_eval reads.
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
    `class_names`: a name for each class, where they have names.
    """

    name: str
    source: str
    title: str
    num_classes: Count
    image_shape: Annotated[
        tuple[int, int, int], Within("channels, height and width from 1 up", lambda shape: min(shape) >= 1)
    ]
    num_train: CountOrZero
    num_test: Count
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    num_validation: int
    split: Literal["test", "validation"]
    files_md5: dict[str, str]
    official_sha256: str | None
    known_copies: dict[str, str]
    class_names: tuple[str, ...] = ()

    def _faults(self) -> Iterable[str]:
        for key in ("pixel_mean", "pixel_std"):
            if (num := len(getattr(self, key))) not in (1, self.image_shape[0]):
                yield f"{key}: expected 1 value, or one for each of {self.image_shape[0]} channels, got {num}"
        if self.class_names and len(self.class_names) != self.num_classes:
            yield f"class_names: expected {self.num_classes}, one a class, got {len(self.class_names)}"
        most = max(self.num_train - 1, 0)  # a set that is only evaluated on has no training images
        if not 0 <= self.num_validation <= most:
            yield f"num_validation: expected 0 to {most}, got {self.num_validation}"
        if self.split == "validation" and self.num_validation == 0:
            yield "num_validation: split=validation needs some, such as data.num_validation=10000"


def input_shape(data: DataSpec, *, recipe: Recipe | Evaluation) -> tuple[int, int, int]:
    """(C, H, W) of a model's input: the data set's image shape, or the recipe's crop of a photograph."""
    transform = recipe.transform
    return data.image_shape if transform is None else (data.image_shape[0], *(transform.crop_pixels,) * 2)


@dataclass(frozen=True, kw_only=True)
class RunSpec(Strict):
    """Everything that specifies a run except its seed. `spec_sha256` and the seed identify the run."""

    model: ModelSpec
    data: DataSpec
    recipe: Recipe | Evaluation
    precision: Precision
    engine: Engine
    engine_width: Count
    compile: bool
    channels_last: bool
    steps_per_block: Count
    cpu_threads: Count
    data_sha256: str
    weights_sha256: str | None
    training_version: int
    control: Control = "none"
    callbacks: tuple[Plugin, ...] = ()

    def _faults(self) -> Iterable[str]:
        num_channels, num_means = self.data.image_shape[0], len(self.recipe.normalisation.mean)
        if num_means not in (1, num_channels):
            yield f"recipe.normalisation: expected 1 value, or {num_channels} for the channels, got {num_means}"

    def together(self, seed: int) -> range:
        """The seeds that are trained together with `seed`: itself alone, or its group in the batched engine."""
        first = seed - seed % self.engine_width
        return range(first, first + self.engine_width)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the model's input."""
        return input_shape(self.data, recipe=self.recipe)

    @property
    def transform(self) -> Transform | None:
        """The transform of photographs that are scored; None: the images are scored as they are."""
        return self.recipe.transform

    @property
    def work_by_epoch(self) -> list[float]:
        """The area of the images of each epoch of a training, relative to those of the data set."""
        recipe, own = self.recipe, self.data.image_shape[1]
        assert isinstance(recipe, Recipe)
        sizes = (recipe.resolution and recipe.resolution.pixels_at(epoch) for epoch in range(recipe.epochs_total))
        return [((pixels or own) / own) ** 2 for pixels in sizes]

    @property
    def mode(self) -> Mode:
        return "train" if isinstance(self.recipe, Recipe) else "evaluate"

    @cached_property
    def spec_sha256(self) -> str:
        return spec_sha256(asdict(self))


# Keys added after the first records, with the value that equals the earlier behaviour: the hash leaves out a key with
# this value, so that earlier hashes stay valid.
_LATER: Mapping[str, Any] = {
    "channels_last": False,
    "steps_per_block": 100,
    "weights_sha256": None,
    "resolution": None,
    "streaming": None,
    "averaging": None,
    "dropout_masks": "bernoulli",
    "batch_norm": False,
    "control": "none",
}
# The recipe's choices, of which the hash holds what is set. The first specs held the arguments of all optimisers and
# augmentations of their time, null where they did not apply; the hash keeps these nulls, so that theirs stays valid.
_FIRST_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "optimizer": ("momentum", "nesterov", "weight_decay", "betas", "alpha", "eps", "history_size"),
    "augmentation": ("probability", "translation_pixels", "scaling", "squeezing", "shear"),
    "loss": (),
}


def spec_sha256(spec: Mapping[str, Any]) -> str:
    """SHA-256 over what in `asdict(RunSpec)` can affect a weight: no names, paths, devices, logging or budget."""
    recipe = {key: value for key, value in spec["recipe"].items() if key != "name"}
    recipe |= {key: _chosen(recipe[key], first=first) for key, first in _FIRST_ARGUMENTS.items() if key in recipe}
    identity = {
        "model": _said({key: spec["model"][key] for key in ("builder", "options")}),
        "data": {key: spec["data"][key] for key in ("num_classes", "num_validation", "split")},
        "recipe": _said(recipe),
        **{key: spec[key] for key in ("precision", "engine", "engine_width", "compile", "cpu_threads")},
        **{key: spec[key] for key in ("data_sha256", "training_version")},
        **_said(
            {key: spec[key] for key in ("channels_last", "steps_per_block", "weights_sha256", "control") if key in spec}
        ),
        **({"callbacks": spec["callbacks"]} if spec.get("callbacks") else {}),
    }
    return canonical_sha256(identity)


def _chosen(choice: Mapping[str, Any], *, first: Iterable[str]) -> dict[str, Any]:
    return dict.fromkeys(first) | {key: value for key, value in choice.items() if value is not None}


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without the `_LATER` keys that have their earlier value, nested mappings included."""
    kept = {key: value for key, value in values.items() if key not in _LATER or value != _LATER[key]}
    return {key: _said(value) if isinstance(value, Mapping) else value for key, value in kept.items()}
