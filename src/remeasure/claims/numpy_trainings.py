"""Trainings of the network from scratch, for claims about a step that a framework would hide."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from remeasure.claims.context import Lab, Numbers
from remeasure.claims.ledger import ScratchArm, ScratchTrainings
from remeasure.data import catalog
from remeasure.models.scratch import losses
from remeasure.models.scratch.activations import ACTIVATIONS, Array
from remeasure.models.scratch.layers import Activate, Layer, Softmax
from remeasure.models.scratch.network import Network, dense, std
from remeasure.models.scratch.optimizers import Sgd, clip
from remeasure.spec.base import FIRST_TUNING_SEED
from remeasure.spec.run import DataSpec

Labels = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Images:
    """`inputs` (N, pixels) float32, normalised as in rows, and `labels` (N,)."""

    inputs: Array
    labels: Labels


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The network, whether its gradients became non-finite, and the norm of all gradients in the first step."""

    network: Network
    diverged: bool
    first_norm: float


def scratch_trainings(parameters: ScratchTrainings, *, seeds: Sequence[int], lab: Lab) -> list[Numbers]:
    """The numbers of each seed. The test split is read once, after all training."""
    spec = lab.data_spec(parameters.data)
    train = _images(spec, "train", lab=lab)
    seen, held_back = _cut(train, end=parameters.num_images), _cut(train, start=-parameters.num_validation)
    arms = {
        name: _chosen(arm, parameters=parameters, seen=seen, held_back=held_back)
        for name, arm in parameters.arms.items()
    }
    trained = [
        {name: fit(arm, parameters=parameters, images=seen, seed=seed) for name, arm in arms.items()} for seed in seeds
    ]
    test = _images(spec, "test", lab=lab)
    numbers: list[Numbers] = [{} for _ in seeds]
    for of_seed, by_arm in zip(numbers, trained, strict=True):
        for name, each in by_arm.items():
            finite = 0 < each.first_norm < math.inf
            of_seed[f"{name}.score_percent"] = score_percent(each, images=test)
            of_seed[f"{name}.diverged"] = float(each.diverged)
            of_seed[f"{name}.first_norm_decades"] = math.log10(each.first_norm) if finite else None
            of_seed[f"{name}.lr"] = arms[name].lr
    return numbers


def _images(spec: DataSpec, split: Literal["train", "test"], *, lab: Lab) -> Images:
    read = catalog.load_split(spec, split, root=lab.place.data_root)
    pixels = read.images.astype(np.float32) / 255
    mean, deviation = (
        np.array(values, dtype=np.float32).reshape(1, -1, 1, 1) for values in (spec.pixel_mean, spec.pixel_std)
    )
    return Images(inputs=((pixels - mean) / deviation).reshape(len(pixels), -1), labels=read.labels)


def _cut(images: Images, *, start: int | None = None, end: int | None = None) -> Images:
    return Images(inputs=images.inputs[start:end], labels=images.labels[start:end])


def _chosen(arm: ScratchArm, *, parameters: ScratchTrainings, seen: Images, held_back: Images) -> ScratchArm:
    """The arm with the rate that is best on the held-back images, with a tuning seed; unchanged without a choice."""
    if not parameters.choose_lr:
        return arm

    def validation_percent(candidate: ScratchArm) -> float:
        trained = fit(candidate, parameters=parameters, images=seen, seed=FIRST_TUNING_SEED)
        return score_percent(trained, images=held_back)

    return max((replace(arm, lr=lr) for lr in parameters.choose_lr), key=validation_percent)


def fit(arm: ScratchArm, *, parameters: ScratchTrainings, images: Images, seed: int) -> Trained:
    """Train to the last epoch, or until gradients are not finite; all random numbers follow from the seed."""
    rng = np.random.default_rng(seed)
    num_classes = int(images.labels.max()) + 1
    network = _network(arm, sizes=[images.inputs.shape[1], *arm.hidden_sizes, num_classes], rng=rng)
    optimizer, first_norm = Sgd(network.parameters), 0.0
    kept = [np.zeros_like(parameter) for parameter in network.parameters]
    with np.errstate(all="ignore"):
        for _ in range(parameters.epochs_total):
            order = rng.permutation(len(images.labels))
            for start in range(0, len(order), parameters.batch_size):
                batch = order[start : start + parameters.batch_size]
                _backward(network, arm=arm, inputs=images.inputs[batch], labels=images.labels[batch])
                gradients = network.gradients
                if not arm.clears_gradients:
                    for sum_so_far, gradient in zip(kept, gradients, strict=True):
                        sum_so_far += gradient
                    gradients = [gradient.copy() for gradient in kept]
                norm = clip(gradients, max_norm=arm.clip_norm or math.inf)
                first_norm = first_norm or norm
                if not math.isfinite(norm):
                    return Trained(network=network, diverged=True, first_norm=first_norm)
                optimizer.step(gradients, arm.lr)
    return Trained(network=network, diverged=False, first_norm=first_norm)


def _network(arm: ScratchArm, *, sizes: list[int], rng: np.random.Generator) -> Network:
    """Dense layers and activations; with the squared error, a softmax at the end."""
    layers: list[Layer] = []
    for fan_in, fan_out in pairwise(sizes):
        scale = arm.std_factor * std("he", fan_in=fan_in, fan_out=fan_out)
        layers += [dense(fan_in, fan_out, std=scale, rng=rng), Activate(ACTIVATIONS[arm.activation])]
    return Network([*layers[:-1], *([Softmax()] if arm.loss == "mse" else [])])


def _backward(network: Network, *, arm: ScratchArm, inputs: Array, labels: Labels) -> None:
    outputs = network.forward(inputs)
    if arm.loss == "mse":
        one_hot = np.eye(outputs.shape[1], dtype=outputs.dtype)[labels]
        _, gradient = losses.mean_squared_error(outputs, one_hot)
    else:
        _, gradient = losses.cross_entropy(outputs, labels)
    network.backward(gradient)


def score_percent(trained: Trained, *, images: Images) -> float:
    """Accuracy in percent; that of guessing if the training diverged."""
    if trained.diverged:
        return 100 / (int(images.labels.max()) + 1)
    with np.errstate(all="ignore"):
        answers = trained.network.forward(images.inputs).argmax(axis=1)
    return 100 * float((answers == images.labels).mean())
