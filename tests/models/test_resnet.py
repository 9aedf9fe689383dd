"""ResNet-18: torchvision's net with the stem that small images need, and the paper's net beside it."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from remeasure.models.registry import build, num_trainable
from remeasure.spec.base import InputError
from remeasure.spec.run import ModelSpec

SMALL, LARGE = (3, 32, 32), (3, 64, 64)


def resnet18(
    *,
    stem: str = "cifar",
    zero_init_residual: bool = False,
    image_shape: tuple[int, int, int] = SMALL,
    num_classes: int = 10,
    seed: int = 0,
) -> nn.Module:
    options = {"stem": stem, "zero_init_residual": zero_init_residual}
    spec = ModelSpec(name="resnet18", builder="resnet18", options=options)
    return build(spec, image_shape=image_shape, num_classes=num_classes, generator_seed=seed)


def random_images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def theirs(*, num_classes: int = 10) -> nn.Module:
    """torchvision's own ResNet-18; torch's global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        return torchvision.models.resnet18(num_classes=num_classes)


def test_parameter_counts_of_both_stems_by_hand() -> None:
    """He et al. 2016, Table 1: stages of 64 to 512 channels, two blocks of two 3x3 convolutions each, each with two
    numbers a channel for batch normalisation, and 1x1 convolutions where a stage begins with another width."""

    def convolution(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs

    def stage(inputs: int, outputs: int) -> int:
        shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
        return convolution(inputs, outputs, 3) + 3 * convolution(outputs, outputs, 3) + shortcut

    stages = stage(64, 64) + stage(64, 128) + stage(128, 256) + stage(256, 512)
    assert stages + convolution(3, 64, 3) + 513 * 10 == 11_173_962
    assert stages + convolution(3, 64, 7) + 513 * 1000 == 11_689_512
    assert num_trainable(resnet18()) == 11_173_962
    assert num_trainable(resnet18(stem="imagenet", image_shape=LARGE, num_classes=1000)) == 11_689_512


def test_the_papers_stem_is_torchvisions_net_as_it_is() -> None:
    ours, other = resnet18(stem="imagenet", image_shape=LARGE).eval(), theirs().eval()
    ours.load_state_dict(other.state_dict())
    batch = random_images(2, *LARGE)
    assert torch.equal(ours(batch), other(batch))


def test_the_small_stem_is_torchvisions_net_but_for_a_3x3_convolution_and_no_pooling() -> None:
    ours, other = resnet18().eval(), theirs()
    other.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    other.maxpool = nn.Sequential()
    other.eval().load_state_dict(ours.state_dict())
    batch = random_images(2, *SMALL)
    assert torch.equal(ours(batch), other(batch))
    assert ours.layer4(ours.layer3(ours.layer2(ours.layer1(ours.conv1(batch))))).shape == (2, 512, 4, 4)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_images_may_have_any_number_of_channels(stem: str, channels: int) -> None:
    net = resnet18(stem=stem, image_shape=(channels, 32, 32))
    kernel = 3 if stem == "cifar" else 7
    assert net.conv1.weight.shape == (64, channels, kernel, kernel)
    assert net.eval()(random_images(1, channels, 32, 32)).shape == (1, 10)


def test_kernels_are_drawn_as_he_et_al_2015_by_fan_out() -> None:
    net = resnet18()
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            sd_of_sd = (2 * layer.weight.numel()) ** -0.5
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=5 * sd_of_sd), name


@pytest.mark.parametrize("zero", [False, True])
def test_blocks_begin_as_the_identity_where_their_last_scale_is_zero(zero: bool) -> None:
    net = resnet18(zero_init_residual=zero).eval()
    inner = random_images(2, 64, 8, 8).relu()  # what a block passes on is never negative
    assert torch.equal(net.layer1(inner), inner) == zero


def test_the_cifar_stem_refuses_images_that_would_vanish() -> None:
    with pytest.raises(InputError, match=r"resnet18 halves its images three times.* 8 pixels, got \(3, 4, 4\)"):
        resnet18(image_shape=(3, 4, 4))
    assert resnet18(image_shape=(3, 8, 8)).eval()(random_images(1, 3, 8, 8)).shape == (1, 10)


def test_an_unknown_stem_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match=r"model.options.stem: .*'cifar' or 'imagenet', got 'resnext'"):
        resnet18(stem="resnext")


def test_bfloat16_autocast_gives_about_the_same_logits() -> None:
    net, batch = resnet18().eval().to(memory_format=torch.channels_last), random_images(2, *SMALL)
    with torch.no_grad():
        exact = net(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(batch.contiguous(memory_format=torch.channels_last))
    assert rounded.dtype == torch.bfloat16
    assert not torch.equal(rounded.float(), exact)
    torch.testing.assert_close(rounded.float(), exact, atol=0.05 * exact.abs().max().item(), rtol=0)
