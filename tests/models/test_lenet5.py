"""The published net against LeCun et al. 1998, re-derived here map by map; the usual remake against torch's layers."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from remeasure.models.lenet5 import C3_INPUTS, AveragePool, RadialBasis, SparseConvolution, Subsampling, Tanh, lenet5
from remeasure.spec.base import InputError

# Table I once more, from its columns.
TABLE_I = [
    *("012", "123", "234", "345", "045", "015"),
    *("0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245", "0235"),
    "012345",
]

# Fig. 3, read off by eye: digits 1, 4 and 7.
ONE = """
...##..
..###..
.####..
...##..
...##..
...##..
...##..
...##..
...##..
.######
.......
.......
"""
FOUR = """
.#####.
.......
.......
.##..##
.##..##
###..##
##...##
##...##
##..###
.######
.....##
.....##
"""
SEVEN = """
#######
.....##
.....##
....##.
...##..
...##..
..##...
..##...
..##...
..##...
.......
.......
"""


def net(*, variant: str = "paper", background: float = -0.1, image_size: int = 28, num_classes: int = 10) -> nn.Module:
    return lenet5(
        image_shape=(1, image_size, image_size),
        num_classes=num_classes,
        generator=torch.Generator().manual_seed(5),
        variant=variant,
        background=background,
    )


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def squash(activations: Tensor) -> Tensor:
    return 1.7159 * torch.tanh(2 / 3 * activations)


def subsampled(maps: Tensor, layer: nn.Module) -> Tensor:
    """S2 and S4, unit by unit."""
    units = torch.empty(maps.shape[0], maps.shape[1], maps.shape[2] // 2, maps.shape[3] // 2, dtype=maps.dtype)
    for c in range(units.shape[1]):
        for i in range(units.shape[2]):
            for j in range(units.shape[3]):
                inputs = maps[:, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                units[:, c, i, j] = inputs.sum((1, 2)) * layer.coefficient[c] + layer.bias[c]
    return units


def published(model: nn.Module, images: Tensor) -> Tensor:
    """Logits as the paper describes the net, from the weights of `model` and 32x32 images."""
    x = squash(functional.conv2d(images, model.c1.weight, model.c1.bias))
    x = squash(subsampled(x, model.s2))
    kernels = iter(model.c3.weight)
    maps = [
        sum(functional.conv2d(x[:, int(source), None], next(kernels)[None, None])[:, 0] for source in inputs) + bias
        for inputs, bias in zip(TABLE_I, model.c3.bias, strict=True)
    ]
    x = squash(subsampled(squash(torch.stack(maps, 1)), model.s4))
    x = squash(functional.conv2d(x, model.c5.weight.view(120, 16, 5, 5), model.c5.bias))[:, :, 0, 0]
    x = squash(x @ model.f6.weight.T + model.f6.bias)
    return torch.stack([-0.5 * ((x - code) ** 2).sum(1) for code in model.output.codes], 1)


def test_the_paper_net_computes_what_the_paper_describes() -> None:
    model = net(image_size=32)
    images = random(2, 1, 32, 32)
    torch.testing.assert_close(model(images.float()), published(model, images.float()), rtol=1e-5, atol=0)
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(model(images), published(model, images), rtol=1e-12, atol=0)


def test_parameters_by_layer_are_the_published_60000() -> None:
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in net().named_children()}
    expected = {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}
    assert {name: count for name, count in counts.items() if count} == expected
    assert sum(counts.values()) == 60000


def test_c3_is_connected_as_in_table_1() -> None:
    assert ["".join(map(str, inputs)) for inputs in C3_INPUTS] == TABLE_I
    assert Counter(len(inputs) for inputs in C3_INPUTS) == {3: 6, 4: 9, 6: 1}
    assert Counter(source for inputs in C3_INPUTS for source in inputs) == dict.fromkeys(range(6), 10)


def test_initial_values_fill_the_published_range() -> None:
    model = net()
    layers = {"c1": 25, "s2": 4, "s4": 4, "c5": 400, "f6": 120}
    for name, fan_in in layers.items():
        values = torch.cat([parameter.flatten() for parameter in getattr(model, name).parameters()])
        assert 0.75 * 2.4 / fan_in < values.abs().max() <= 2.4 / fan_in, name
        assert values.min() < 0 < values.max(), name
    kernels = model.c3.weight.split([len(inputs) for inputs in TABLE_I])
    for inputs, kernel, bias in zip(TABLE_I, kernels, model.c3.bias, strict=True):
        bound = 2.4 / (25 * len(inputs))
        assert 0.9 * bound < kernel.abs().max() <= bound
        assert abs(bias) <= bound


@pytest.mark.parametrize(("digit", "drawing"), [(1, ONE), (4, FOUR), (7, SEVEN)])
def test_output_codes_are_the_bitmaps_of_figure_3(digit: int, drawing: str) -> None:
    expected = [1.0 if mark == "#" else -1.0 for mark in drawing if mark in "#."]
    assert RadialBasis().codes[digit].tolist() == expected


def test_a_state_on_a_code_has_logit_0_there_and_less_elsewhere() -> None:
    output = RadialBasis()
    assert output.codes.shape == (10, 84)
    assert output.codes.abs().eq(1).all()
    logits = output(output.codes)
    differing = (output.codes[:, None] != output.codes[None]).sum(2)  # each such bit is 2 apart: -½·2² = -2
    torch.testing.assert_close(logits, -2.0 * differing)
    assert differing.fill_diagonal_(99).min() > 0


def test_cross_entropy_on_the_logits_is_equation_9_with_halved_distances_and_no_j() -> None:
    states, digit = random(1, 84), 4
    output = RadialBasis()
    distances = [sum((x - w) ** 2 for x, w in zip(states[0], code, strict=True)) for code in output.codes.double()]
    expected = distances[digit] / 2 + torch.stack([torch.exp(-y / 2) for y in distances]).sum().log()
    loss = functional.cross_entropy(output(states), torch.tensor([digit]))
    torch.testing.assert_close(loss, expected)


def test_the_codes_are_not_trained() -> None:
    assert not list(RadialBasis().parameters())
    assert "output.codes" in net().state_dict()


def test_the_squashing_maps_plus_and_minus_1_to_themselves() -> None:
    ones = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(Tanh(amplitude=1.7159, slope=2 / 3)(ones), ones, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_squashing_is_a_scaled_tanh_in_every_precision(dtype: torch.dtype) -> None:
    activations = torch.cat([torch.linspace(-9, 9, 1000), torch.tensor([1e-3, -1e-3])]).to(dtype)
    result = Tanh(amplitude=1.7159, slope=2 / 3)(activations)
    relative = {torch.float32: 4e-4, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]  # the smallest input is 1e-3
    torch.testing.assert_close(result.double(), squash(activations.double()), rtol=relative, atol=0)


def test_the_squashing_is_close_to_the_last_digit_in_float32() -> None:
    activations = torch.linspace(-9, 9, 10001)
    torch.testing.assert_close(Tanh(amplitude=1, slope=1)(activations), torch.tanh(activations), rtol=0, atol=2.5e-7)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Tanh(amplitude=1.7159, slope=2 / 3), (2, 5)),
        (AveragePool(), (2, 3, 4, 6)),
        (Subsampling(3), (2, 3, 4, 6)),
        (SparseConvolution(torch.Generator().manual_seed(1)), (1, 6, 6, 6)),
        (RadialBasis(), (2, 84)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_gradients_agree_with_finite_differences(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = layer.double()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1, generator=torch.Generator().manual_seed(2))
    inputs = random(*shape).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def call(images: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (images,))

    assert torch.autograd.gradcheck(call, (inputs, *layer.parameters()), fast_mode=True)


def test_average_pool_is_torchs() -> None:
    maps = random(2, 3, 4, 6)
    torch.testing.assert_close(AveragePool()(maps), functional.avg_pool2d(maps, 2))


@pytest.mark.parametrize("variant", ["paper", "remake"])
def test_images_of_28_pixels_are_padded_to_32_with_the_background(variant: str) -> None:
    images = random(2, 1, 28, 28).float()
    padded = torch.full((2, 1, 32, 32), -0.1)
    padded[:, :, 2:30, 2:30] = images
    logits = net(variant=variant)(images)
    torch.testing.assert_close(logits, net(variant=variant, image_size=32)(padded))
    assert not torch.allclose(logits, net(variant=variant, background=0.0)(images), rtol=1e-6)


def test_the_remake_is_the_usual_net_of_torch_layers() -> None:
    usual = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    )
    remake = net(variant="remake", background=0.0)
    with torch.no_grad():
        for theirs, ours in zip(usual.parameters(), remake.parameters(), strict=True):
            theirs.copy_(ours)
    images = random(2, 1, 28, 28).float()
    torch.testing.assert_close(remake(images), usual(images), rtol=1e-5, atol=1e-6)


def test_the_remake_starts_within_torchs_bounds() -> None:
    bounds = [1 / 5, 1 / 150**0.5, 1 / 20, 1 / 120**0.5, 1 / 84**0.5]  # 1/√fan_in: 25, 150, 400, 120, 84
    parameters = list(net(variant="remake").parameters())
    for bound, weight, bias in zip(bounds, parameters[::2], parameters[1::2], strict=True):
        assert 0.95 * bound < weight.abs().max() <= bound
        assert 0.4 * bound < bias.abs().max() <= bound


def test_other_image_shapes_and_class_counts_are_refused_together() -> None:
    with pytest.raises(InputError) as refusal:
        net(image_size=8, num_classes=7)
    shape, classes = refusal.value.faults
    assert "1x28x28 or 1x32x32, got 1x8x8" in shape
    assert "10 classes, got 7" in classes
    assert net(variant="remake", num_classes=7)(torch.zeros(1, 1, 28, 28)).shape == (1, 7)
