"""What a run starts from: its data and its weights, found and fingerprinted before anything is trained."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remeasure.data import catalog
from remeasure.data import fingerprint as data_fingerprint
from remeasure.data.fingerprint import Source
from remeasure.spec.base import DataMissingError, DeviceKind, InputError, noted
from remeasure.spec.config import Config
from remeasure.spec.recipe import Evaluation, Recipe
from remeasure.spec.run import DataSpec, RunSpec

if TYPE_CHECKING:
    from torch import nn

Fingerprint = Callable[..., Source]  # as data.fingerprint, or one that remembers


def settled(config: Config, *, device_kind: DeviceKind) -> Config:
    """The config with precision auto replaced by what the device computes in."""
    if config.precision != "auto":
        return config
    from remeasure.training.device import native_precision  # torch: seconds to import

    return replace(config, precision=native_precision(device_kind))


def identify(
    config: Config, *, data_root: Path, device_kind: DeviceKind, fingerprint: Fingerprint | None = None
) -> RunSpec | list[tuple[str, ...]]:
    """The config, `settled`, with its fingerprints; or, of each thing that is missing for them, the lines that say so.

    What is quick is looked at first, and nothing is downloaded where something else is missing. Raises InputError.
    """
    missing: list[tuple[str, ...]] = []
    weights_sha256 = None
    with noted(missing):
        if catalog.streamed(config.data):
            catalog.load_listing(config.data, "test", root=data_root)
    trains = not isinstance(config.recipe, Evaluation)
    if not trains:
        from remeasure.models import pretrained  # timm: seconds to import

        with noted(missing):
            weights_sha256 = pretrained.fingerprint(config, fetch=not missing)
    if missing:
        return missing
    with noted(missing):
        source = (fingerprint or data_fingerprint.fingerprint)(config.data, root=data_root, trains=trains)
        native = settled(config, device_kind=device_kind)
        return native.spec(data_sha256=source.data_sha256, weights_sha256=weights_sha256)
    return missing


def network_of(config: Config) -> "nn.Module":
    """The config's network, its weights of no seed. Raises InputError where it cannot be built, has nothing to train,
    cannot take the sizes of images that the recipe begins with or, from a builder outside this package, has no logits,
    or weights that do not follow from a seed. Tells where they are the same for each seed, or it gives probabilities.
    """
    from remeasure.models import registry  # torch: seconds to import

    shape = config.input_shape
    num_classes, builder = config.data.num_classes, config.model.builder

    def built(seed: int) -> "nn.Module":
        return registry.build(config.model, image_shape=shape, num_classes=num_classes, generator_seed=seed)

    network = built(0)
    if ":" in builder and isinstance(config.recipe, Recipe):
        if changed := registry.drawn_otherwise(network, built(0)):
            raise InputError(
                f"model.builder: {builder} makes another {changed[0]} at each call of one seed; draw from `generator`, "
                "or leave weights to torch, whose own generator is seeded"
            )
        if not registry.is_constant(network) and not registry.drawn_otherwise(network, built(1)):
            same = "its seeds differ in nothing but the order of images and their augmentation"
            print(f"model.builder: {builder} makes the same weights for each seed: {same}", file=sys.stderr)
    if ":" in builder:
        logits = registry.logits_of(network, builder=builder, image_shape=shape, num_classes=num_classes)
        if isinstance(config.recipe, Recipe) and registry.are_probabilities(logits):
            end = "unless the source has it so, leave out the softmax at its end"
            print(f"model.builder: {builder} gives probabilities, and the loss expects logits: {end}", file=sys.stderr)
    if isinstance(config.recipe, Recipe) and not registry.num_trainable(network):
        raise InputError(f"model: {config.model.name} has nothing to train: none of its parameters requires a gradient")
    if isinstance(config.recipe, Recipe) and config.recipe.resolution:
        registry.refuse_sizes(network, channels=shape[0], pixels=config.recipe.resolution.pixels)
    return network


def identified(
    config: Config, *, data_root: Path, device_kind: DeviceKind, fingerprint: Fingerprint | None = None
) -> RunSpec:
    """`identify` where nothing may be missing: raises DataMissingError, too."""
    found = identify(config, data_root=data_root, device_kind=device_kind, fingerprint=fingerprint)
    if not isinstance(found, RunSpec):
        raise DataMissingError(*(line for lines in found for line in lines))
    return found


def remembered() -> Fingerprint:
    """data.fingerprint, taken once for each data set; a download that failed is not tried again, either."""
    known: dict[tuple[str, bool], Source | DataMissingError] = {}

    def fingerprint(spec: DataSpec, *, root: Path, trains: bool) -> Source:
        key = (spec.name, trains)
        if key not in known:
            try:
                known[key] = data_fingerprint.fingerprint(spec, root=root, trains=trains)
            except DataMissingError as missing:
                known[key] = missing
        found = known[key]
        if isinstance(found, DataMissingError):
            raise found
        return found

    return fingerprint
