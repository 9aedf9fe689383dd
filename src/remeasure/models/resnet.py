"""ResNet-18 (He, Zhang, Ren and Sun 2016, "Deep residual learning for image recognition", Table 1), torchvision's.

With 10 classes and the stem that CIFAR-10 needs it has 11,173,962 parameters; the net for ImageNet, with 1,000 classes
and the paper's stem, 11,689,512, which articles print as 11.7M.
"""

from typing import Literal

import torch
from torch import Generator, nn

from remeasure.spec.base import InputError


def resnet18(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    generator: Generator,
    stem: Literal["cifar", "imagenet"],
    zero_init_residual: bool,
) -> nn.Module:
    """Eight residual blocks of 64, 128, 256 and 512 channels, batch normalisation, one linear layer.

    `stem`: `imagenet` is the paper's, 7x7 with stride 2, then pooling; `cifar` is 3x3 with stride 1 and no pooling, the
    usual change for 32x32 images (not in the paper, whose nets for CIFAR-10 are narrower). Weights: He et al.
    2015, normal, by fan-out, as torchvision draws them; the linear layer as torch draws it. `zero_init_residual`: each
    block begins as the identity (Goyal et al. 2017, section 5.1), which lets a short training take large steps.
    """
    from torchvision.models import resnet18 as build  # 4 s to import

    if stem == "cifar" and min(image_shape[1:]) < 8:
        raise InputError(f"model: resnet18 halves its images three times, so they need 8 pixels, got {image_shape}")
    with torch.random.fork_rng(devices=[]):  # torchvision draws from global state
        torch.manual_seed(generator.initial_seed())
        network: nn.Module = build(num_classes=num_classes, zero_init_residual=zero_init_residual)
        if stem == "cifar":
            network.maxpool = nn.Identity()
        if stem == "cifar" or image_shape[0] != 3:
            kernel, stride, padding = (3, 1, 1) if stem == "cifar" else (7, 2, 3)
            conv = nn.Conv2d(image_shape[0], 64, kernel, stride, padding, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            network.conv1 = conv
    return network
