"""What a run starts from is looked for before anything is trained or fetched."""

import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from remeasure.config import resolve
from remeasure.config.compose import compose
from remeasure.data import catalog
from remeasure.models import mlp, pretrained, registry
from remeasure.spec.base import DataMissingError, InputError
from remeasure.spec.config import Config


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether weights were asked for with leave to download them, call by call; there are none."""
    seen: list[bool] = []

    def fingerprint(config: Config, *, fetch: bool) -> str:  # noqa: ARG001
        seen.append(fetch)
        raise DataMissingError("weights: not here")

    monkeypatch.setattr(pretrained, "fingerprint", fingerprint)
    return seen


def test_weights_are_not_downloaded_for_photographs_that_are_not_there(tmp_path: Path, asked: list[bool]) -> None:
    missing = resolve.identify(compose(["model=vit_b16"]), data_root=tmp_path, device_kind="cpu")
    assert asked == [False]
    assert isinstance(missing, list)
    assert len(missing) == 2  # both are named at once


def test_weights_may_be_downloaded_where_the_photographs_are(
    asked: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(catalog, "load_listing", lambda *_, **__: None)
    assert resolve.identify(compose(["model=vit_b16"]), data_root=tmp_path, device_kind="cpu") == [
        ("weights: not here",)
    ]
    assert asked == [True]


GROWING = "recipe.resolution={pixels: [%s], until_epoch: [1]}"


def test_small_images_that_the_net_cannot_take_are_refused_before_training() -> None:
    """LeNet-5's third convolution needs 5 pixels a side after two halvings; a ResNet pools whatever is left."""
    with pytest.raises(
        InputError, match=r"recipe\.resolution: the model cannot take images of .*: 8 \(.*\)"
    ) as refused:
        resolve.network_of(compose(["model=lenet5", GROWING % 8]))
    assert len(refused.value.faults) == 1
    network = resolve.network_of(compose(["model=resnet18", "model.options.stem=cifar", GROWING % 8]))
    assert network.training


def test_a_network_that_is_frozen_as_a_whole_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(**arguments: Any) -> nn.Module:
        return mlp.logistic_regression(**arguments).requires_grad_(False)

    frozen.__signature__ = inspect.signature(mlp.logistic_regression)  # type: ignore[attr-defined]
    monkeypatch.setitem(registry.BUILDERS, "logistic_regression", frozen)
    with pytest.raises(InputError, match="model: logreg has nothing to train: none of its parameters requires"):
        resolve.network_of(compose(["model=logreg", "data=digits"]))


def linear(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator) -> nn.Module:
    layer = nn.Linear(math.prod(image_shape), num_classes)
    nn.init.normal_(layer.weight, generator=generator)
    return nn.Sequential(nn.Flatten(), layer)


def seedless(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator) -> nn.Module:
    generator.manual_seed(int.from_bytes(os.urandom(4)))
    return linear(image_shape=image_shape, num_classes=num_classes, generator=generator)


def fixed(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator) -> nn.Module:
    torch.manual_seed(0)
    generator.manual_seed(0)
    return linear(image_shape=image_shape, num_classes=num_classes, generator=generator)


def constant(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator) -> nn.Module:
    network = linear(image_shape=image_shape, num_classes=num_classes, generator=generator)
    for weight in network.parameters():
        nn.init.zeros_(weight)
    return network


def softmaxed(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator) -> nn.Module:
    network = linear(image_shape=image_shape, num_classes=num_classes, generator=generator)
    return nn.Sequential(network, nn.Softmax(dim=1))


def own(builder: Callable[..., nn.Module]) -> Config:
    return compose(
        ["model=logreg", "data=digits", f"model.builder={__name__}:{builder.__name__}", "~model.options.initialisation"]
    )


def test_a_builder_whose_weights_follow_from_no_seed_is_refused() -> None:
    with pytest.raises(InputError, match=r":seedless makes another 1\.weight at each call of one seed; draw from"):
        resolve.network_of(own(seedless))


@pytest.mark.parametrize(("builder", "told"), [(fixed, True), (linear, False), (constant, False)])
def test_a_builder_that_draws_the_same_weights_for_each_seed_is_told(
    builder: Callable[..., nn.Module], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    resolve.network_of(own(builder))
    assert ("makes the same weights for each seed" in capsys.readouterr().err) is told


@pytest.mark.parametrize(("builder", "told"), [(softmaxed, True), (linear, False), (constant, False)])
def test_a_network_that_ends_in_a_softmax_is_told(
    builder: Callable[..., nn.Module], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    resolve.network_of(own(builder))
    assert ("gives probabilities, and the loss expects logits" in capsys.readouterr().err) is told


@pytest.mark.parametrize("engine", ["batched", "numpy"])
def test_an_optimiser_that_an_engine_has_not_is_refused_by_its_name(engine: str) -> None:
    with pytest.raises(InputError, match=r"not recipe\.optimizer\.name=lbfgs.*choose engine=serial"):
        compose(["model=logreg", "recipe=lbfgs", f"engine={engine}"])
