"""What every model config promises. A new file under conf/model joins by one line in PUBLISHED_PARAMS."""

import copy
import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from remeasure.models.registry import (
    BUILDERS,
    build,
    drawn_otherwise,
    first_layer_weights,
    logits_of,
    num_trainable,
)
from remeasure.spec.base import InputError
from remeasure.spec.run import ModelSpec

CONFIGS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))}
PUBLISHED_PARAMS = {
    "article_mlp": 242_762,
    "lenet5": 60_000,
    "lenet5_remake": 61_706,
    "logreg": 7_850,
    "mlp2": 203_530,
    "mlp4": 669_706,
    "resnet18": 11_173_962,
    "vit_b16": 86_567_656,
}
HOME_DATA = {  # image shape, classes
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "imagenet": ((3, 224, 224), 1000),
}
SMALLER = {"vit_b16": {"architecture": "vit_tiny_patch16_224"}}  # of the same blocks, where not its size is tested
EVERY_MODEL = pytest.mark.parametrize("name", CONFIGS)


def config(name: str) -> dict[str, Any]:
    return yaml.safe_load(CONFIGS[name].read_text())


def home(name: str) -> tuple[tuple[int, int, int], int]:
    return HOME_DATA[config(name)["defaults"][0]["override /data"]]


def model(name: str, *, seed: int = 0) -> nn.Module:
    """A net of one's own, in training mode."""
    return copy.deepcopy(drawn(name, seed=seed)).train()


@functools.cache
def drawn(name: str, *, seed: int) -> nn.Module:
    return build_home(name, seed=seed)


def build_home(name: str, *, seed: int) -> nn.Module:
    image_shape, num_classes = home(name)
    entry = config(name)["model"]
    spec = ModelSpec(**{**entry, "options": {**entry["options"], **SMALLER.get(name, {})}})
    return build(spec, image_shape=image_shape, num_classes=num_classes, generator_seed=seed)


def images(name: str, *, count: int) -> Tensor:
    return torch.randn(count, *home(name)[0], generator=torch.Generator().manual_seed(11))


def net_is_small(net: nn.Module) -> bool:
    return num_trainable(net) < 10**6


def mlp(**options: object) -> nn.Module:
    spec = ModelSpec(name="mlp", builder="mlp", options=options)
    return build(spec, image_shape=(1, 28, 28), num_classes=10, generator_seed=0)


def test_every_config_is_held_to_this_contract() -> None:
    assert list(CONFIGS) == sorted(PUBLISHED_PARAMS)
    assert {config(name)["model"]["builder"] for name in CONFIGS} == set(BUILDERS)


@EVERY_MODEL
def test_a_config_names_itself_its_home_and_its_published_count(name: str) -> None:
    text = CONFIGS[name].read_text()
    comments = [line for line in text.partition("defaults:")[0].splitlines() if line.startswith("# ")]
    assert comments[0] == "# @package _global_"
    assert f"{PUBLISHED_PARAMS[name]:,}" in " ".join(comments[1:])
    assert [list(entry) for entry in config(name)["defaults"]] == [["override /data"], ["override /recipe"]]
    assert config(name)["model"]["name"] == name


@EVERY_MODEL
def test_the_parameter_count_is_the_published_one(name: str) -> None:
    image_shape, num_classes = home(name)
    spec = ModelSpec(**config(name)["model"])
    network = build(spec, image_shape=image_shape, num_classes=num_classes, generator_seed=0)
    assert num_trainable(network) == PUBLISHED_PARAMS[name]


@EVERY_MODEL
def test_logits_have_a_row_for_each_image_and_a_column_for_each_class(name: str) -> None:
    logits = model(name)(images(name, count=3))
    assert logits.shape == (3, home(name)[1])
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@EVERY_MODEL
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    net = model(name)
    num = 8 if net_is_small(net) else 2
    for key, parameter in net.named_parameters():
        if key.endswith("weight") and not parameter.any():  # a scale that begins at zero lets nothing flow back yet
            nn.init.ones_(parameter)
    labels = torch.arange(num) % home(name)[1]
    nn.functional.cross_entropy(net(images(name, count=num)), labels).backward()
    for key, parameter in net.named_parameters():
        assert parameter.requires_grad, key
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@EVERY_MODEL
def test_an_image_alone_scores_as_in_a_batch(name: str) -> None:
    net = model(name).eval()
    batch = images(name, count=2)
    torch.testing.assert_close(net(batch[:1]), net(batch)[:1], rtol=1e-4, atol=1e-5)


@EVERY_MODEL
def test_only_evaluation_is_deterministic_where_there_is_dropout(name: str) -> None:
    net, batch = model(name), images(name, count=2)
    assert net.training
    assert torch.equal(net(batch), net(batch)) != any(
        isinstance(layer, nn.Dropout) and layer.p > 0 for layer in net.modules()
    )
    net.eval()
    assert torch.equal(net(batch), net(batch))


@EVERY_MODEL
def test_weights_follow_from_the_seed_and_leave_global_randomness_alone(name: str) -> None:
    first = drawn(name, seed=0).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = build_home(name, seed=0), build_home(name, seed=1).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], value) for key, value in again.state_dict().items())
    # zero biases, and scales of one, are nobody's draw
    keys = [key for key, _ in again.named_parameters() if first[key].unique().numel() > 1]
    assert keys
    assert not any(torch.equal(first[key], other[key]) for key in keys)


@EVERY_MODEL
def test_first_layer_weights_look_at_the_image(name: str) -> None:
    net = model(name)
    weights = first_layer_weights(net)
    channels, height, width = home(name)[0]
    assert weights.shape[1] in (channels, channels * height * width)
    assert sum(torch.equal(weights, parameter) for parameter in net.parameters()) == 1
    weights.zero_()
    assert first_layer_weights(net).any()  # a copy


def test_an_unknown_builder_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match="no 'vgg'; choose from logistic_regression, mlp, lenet5"):
        build(ModelSpec(name="x", builder="vgg", options={}), image_shape=(1, 8, 8), num_classes=2, generator_seed=0)


def test_all_faults_in_the_options_come_together() -> None:
    with pytest.raises(InputError) as refusal:
        mlp(hidden_sizes=[256, 0], activation="swish", dropout=[1.0, "0.2"], width=3, generator=4)
    faults = dict(fault.split(": ", 1) for fault in refusal.value.faults)
    valid = "hidden_sizes, activation, dropout, dropout_masks, batch_norm, initialisation"
    assert faults.pop("model.options.dropout_masks") == f"missing; mlp needs {valid}"
    assert faults.pop("model.options.batch_norm") == f"missing; mlp needs {valid}"
    assert faults.pop("model.options.initialisation") == f"missing; mlp needs {valid}"
    assert faults.pop("model.options.width") == f"unknown; mlp takes {valid}"
    assert faults.pop("model.options.generator") == f"unknown; mlp takes {valid}"
    assert "'silu' or 'none', got 'swish'" in faults.pop("model.options.activation")
    assert "greater than 0, got 0" in faults.pop("model.options.hidden_sizes.1")
    assert "less than 1, got 1.0" in faults.pop("model.options.dropout.0")
    assert "valid number, got '0.2'" in faults.pop("model.options.dropout.1")
    assert not faults


def bare(*, image_shape, num_classes, generator, channels) -> nn.Module:  # type: ignore[no-untyped-def]  # noqa: ARG001
    raise AssertionError("is not called")


def lone(num_classes: int, channels: int) -> nn.Module:  # noqa: ARG001
    raise AssertionError("is not called")


def no_net(*, image_shape: object, num_classes: int, generator: object, channels: int) -> int:  # noqa: ARG001
    return channels


@pytest.mark.parametrize(
    ("builder", "says"),
    [
        (bare, "has no annotation for channels"),
        (lone, "has no argument image_shape, has no argument generator"),
        (no_net, "makes no torch module, got int"),
    ],
)
def test_a_function_that_is_no_builder_is_told_what_a_builder_is(
    builder: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILDERS, "own", builder)
    spec = ModelSpec(name="x", builder="own", options={"channels": 3})
    with pytest.raises(InputError) as refused:
        build(spec, image_shape=(1, 8, 8), num_classes=2, generator_seed=0)
    assert refused.value.faults == (
        f"model.builder: own {says}; expected def net(*, image_shape, num_classes, generator, channels: int) "
        "-> nn.Module",
    )


def test_a_builder_from_outside_that_raises_is_named_with_its_line() -> None:
    with pytest.raises(InputError) as refused:
        build(
            ModelSpec(name="x", builder=f"{__name__}:raises", options={"channels": 3}),
            image_shape=(1, 8, 8),
            num_classes=2,
            generator_seed=0,
        )
    (fault,) = refused.value.faults
    said = "ZeroDivisionError: division by zero (test_registry.py, line "
    assert fault.startswith(f"model.builder: {__name__}:raises: {said}")


def raises(*, image_shape: object, num_classes: int, generator: object, channels: int) -> nn.Module:  # noqa: ARG001
    raise ZeroDivisionError("division by zero")


def lazy(*, image_shape: object, num_classes: int, generator: object) -> nn.Module:  # noqa: ARG001
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))


def test_lazy_layers_get_their_shapes_and_weights_from_the_seed() -> None:
    spec = ModelSpec(name="x", builder=f"{__name__}:lazy", options={})
    first, again, other = (build(spec, image_shape=(1, 8, 8), num_classes=3, generator_seed=seed) for seed in (1, 1, 2))
    assert first.training
    assert num_trainable(first) == 4 * 9 + 4 + 8 + 4 * 36 * 3 + 3
    assert drawn_otherwise(first, again) == []
    assert drawn_otherwise(first, other) == ["0.weight", "0.bias", "3.weight", "3.bias"]


def eager(*, image_shape: object, num_classes: int, generator: object) -> nn.Module:  # noqa: ARG001
    return nn.Flatten()


@pytest.mark.parametrize(
    ("builder", "options", "says"),
    [
        (f"{__name__}.eager", {}, f"or give {__name__}:eager"),
        ("my_net.py:build", {}, "expected module:name, got 'my_net.py:build'; write my_net:build"),
        (f"{__name__}:eager", {"channels": 3}, f"unknown; {__name__}:eager takes no options"),
    ],
)
def test_what_is_wrong_with_a_builder_s_name_or_options_is_told(
    builder: str, options: dict[str, int], says: str
) -> None:
    spec = ModelSpec(name="x", builder=builder, options=options)
    with pytest.raises(InputError) as refused:
        build(spec, image_shape=(1, 8, 8), num_classes=2, generator_seed=0)
    assert refused.value.faults[0].endswith(says)


class Doubled(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.double()


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (nn.Flatten(), r"gives \(2, 64\) torch.float32; expected logits \(2, 10\) float32 of images \(2, 1, 8, 8\)"),
        (nn.Linear(7, 10), "mine:net makes: RuntimeError: .* cannot be multiplied .*; expected logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Doubled()), "torch.float64; expected logits"),
    ],
)
def test_a_module_from_outside_that_gives_no_logits_is_refused(network: nn.Module, says: str) -> None:
    with pytest.raises(InputError, match=says):
        logits_of(network, builder="mine:net", image_shape=(1, 8, 8), num_classes=10)


def test_a_module_that_gives_logits_is_as_it_was() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, 10))
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    logits_of(network, builder="mine:net", image_shape=(1, 8, 8), num_classes=10)
    assert network.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("draw", [lambda: torch.rand(()).item(), lambda: np.random.rand(), random.random])
def test_a_builder_that_draws_from_a_global_generator_depends_on_the_seed_alone(
    monkeypatch: pytest.MonkeyPatch, draw: Callable[[], float]
) -> None:
    def careless(*, image_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator) -> nn.Module:  # noqa: ARG001
        return nn.Linear(1, 1).requires_grad_(requires_grad=False).apply(lambda layer: layer.bias.fill_(draw()))

    monkeypatch.setitem(BUILDERS, "careless", careless)
    model = ModelSpec(name="careless", builder="careless", options={})

    def built(seed: int) -> tuple[float, float]:
        net = build(model, image_shape=(1, 1, 1), num_classes=1, generator_seed=seed)
        return net.weight.item(), net.bias.item()

    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = built(2**62 + 1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    draw()
    assert built(2**62 + 1) == first
    other = built(2)  # torch reads the low 32 bits alone
    assert other[0] != first[0]
    assert other[1] != first[1]
