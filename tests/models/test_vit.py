"""Nets of timm: the published ViT-B/16 and any other, drawn from the seed alone."""

import pytest
import timm
import torch
from torch import Tensor, nn

from remeasure.models import registry
from remeasure.spec.base import InputError
from remeasure.spec.run import ModelSpec


def _build(
    architecture: str, *, image_shape: tuple[int, int, int], seed: int = 0, num_classes: int = 1000
) -> nn.Module:
    model = ModelSpec(name="any", builder="timm_net", options={"architecture": architecture})
    return registry.build(model, image_shape=image_shape, num_classes=num_classes, generator_seed=seed)


def _weights(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def test_vit_b16_has_the_published_86_567_656_parameters() -> None:
    network = _build("vit_base_patch16_224", image_shape=(3, 224, 224))
    assert registry.num_trainable(network) == 86_567_656
    assert registry.first_layer_weights(network).shape == (768, 3, 16, 16)


def test_the_net_is_timms_own_drawn_from_the_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = timm.create_model("test_vit", num_classes=7)
    network = _build("test_vit", image_shape=(3, 160, 160), seed=3, num_classes=7)
    assert torch.equal(_weights(network), _weights(expected))
    assert not torch.equal(_weights(network), _weights(_build("test_vit", image_shape=(3, 160, 160), num_classes=7)))


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _build("test_vit", image_shape=(3, 160, 160))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(_weights(first), _weights(_build("test_vit", image_shape=(3, 160, 160))))


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("image_shape", [(3, 160, 160), (3, 64, 64), (1, 96, 96)])
def test_nets_of_either_kind_take_other_sizes_and_channels(
    architecture: str, image_shape: tuple[int, int, int]
) -> None:
    network = _build(architecture, image_shape=image_shape, num_classes=5).eval()
    assert network(torch.zeros(2, *image_shape)).shape == (2, 5)


def test_every_parameter_gets_a_gradient() -> None:
    network = _build("test_vit", image_shape=(3, 160, 160), num_classes=5)
    network(torch.randn(2, 3, 160, 160)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_an_unknown_architecture_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InputError) as error:
        _build("vit_base_patch16_22", image_shape=(3, 224, 224))
    assert error.value.faults == (
        "model.options.architecture: timm has no net 'vit_base_patch16_22' (did you mean 'vit_base_patch16_224'?)",
    )


def test_a_name_of_weights_is_no_architecture() -> None:
    with pytest.raises(InputError, match=r"timm has no net 'test_vit.r160_in1k' \(did you mean 'test_vit'"):
        _build("test_vit.r160_in1k", image_shape=(3, 160, 160))
