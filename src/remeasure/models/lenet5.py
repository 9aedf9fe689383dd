"""LeNet-5: as published (60,000 parameters), and as it is usually remade (61,706).

LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", section II-B. Input is
one plane of 32x32 pixels with background -0.1 and foreground 1.175, as the recipe's normalisation makes them; 28x28
images are padded with the background here.

From the paper: the trainable subsampling of S2 and S4, the connection table of C3 (Table I), 1.7159·tanh(2a/3)
through F6, Euclidean RBF outputs with fixed codes of ±1, initial values from U(±2.4/F) with F the fan-in.

Assumed:
- The codes were sampled from Fig. 3; the sign (ink is +1) is not stated.
- F counts a unit's inputs without its bias, and biases are drawn like weights.
- Logits are -½·Σ(x - w)², so that cross-entropy on them is the paper's eq. 9 with halved distances and without its
  unstated constant j (the "rubbish class" term): the log-density of a unit Gaussian around each code.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import FiniteFloat
from torch import Generator, Tensor, nn
from torch.nn import functional

from remeasure.models.mlp import drawn, linear
from remeasure.spec.base import refuse

# Table I: the maps of S2 that each map of C3 takes as inputs.
C3_INPUTS: tuple[tuple[int, ...], ...] = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

# Fig. 3, digits 0 to 9: 12 rows of 7 bits in hexadecimal, the most significant bit on the left, 1 = ink.
_BITMAPS = (
    "3e 00 1c 36 63 63 63 63 36 1c 00 00",
    "0c 1c 3c 0c 0c 0c 0c 0c 0c 3f 00 00",
    "3e 00 3e 63 43 06 1c 30 60 7f 00 00",
    "7f 03 06 0c 1e 03 03 03 63 3f 00 00",
    "3e 00 00 33 33 73 63 63 67 3f 03 03",
    "3e 00 7f 60 60 3c 1e 03 63 3f 00 00",
    "1e 30 60 60 7e 73 63 63 73 3f 00 00",
    "7f 03 03 06 0c 0c 18 18 18 18 00 00",
    "3e 63 63 63 3e 63 63 63 63 3e 00 00",
    "3e 67 63 63 67 3f 03 03 06 3c 00 00",
)


def lenet5(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    generator: Generator,
    variant: Literal["paper", "remake"],
    background: FiniteFloat,
) -> nn.Module:
    """LeNet-5; `background` is the normalised pixel value that pads 28x28 images to 32x32.

    InputError: images that are not one plane of 28x28 or 32x32; for variant=paper, other than 10 classes.
    """
    refuse(_faults(image_shape, num_classes=num_classes, variant=variant))
    pad = nn.ConstantPad2d((32 - image_shape[1]) // 2, background)
    if variant == "paper":
        return _paper(pad, generator=generator)
    return _remake(pad, num_classes=num_classes, generator=generator)


def _faults(image_shape: tuple[int, int, int], *, num_classes: int, variant: str) -> Iterator[str]:
    if image_shape not in ((1, 28, 28), (1, 32, 32)):
        shape = "x".join(str(size) for size in image_shape)
        yield f"model.builder: lenet5 takes images of 1x28x28 or 1x32x32, got {shape}; choose other data or model=mlp2"
    if variant == "paper" and num_classes != len(_BITMAPS):
        yield (
            f"model.options.variant: the paper has output codes for 10 classes, got {num_classes}; "
            "variant=remake takes any number"
        )


def _paper(pad: nn.Module, *, generator: Generator) -> nn.Module:
    """The published net; the layers have the paper's names."""
    squash = Tanh(amplitude=1.7159, slope=2 / 3)
    layers = {  # drawn in this order
        "pad": pad,  # (N, 1, 32, 32)
        "c1": drawn(nn.Conv2d(1, 6, 5, device="meta"), bound=2.4 / 25, generator=generator),  # (N, 6, 28, 28)
        "squash_c1": squash,
        "s2": drawn(Subsampling(6), bound=2.4 / 4, generator=generator),  # (N, 6, 14, 14)
        "squash_s2": squash,
        "c3": SparseConvolution(generator),  # (N, 16, 10, 10)
        "squash_c3": squash,
        "s4": drawn(Subsampling(16), bound=2.4 / 4, generator=generator),  # (N, 16, 5, 5)
        "squash_s4": squash,
        "flatten": nn.Flatten(),
        # C5 is a convolution, but its 5x5 kernels cover all of the 5x5 maps: one matrix product, three times as fast.
        "c5": drawn(nn.Linear(400, 120, device="meta"), bound=2.4 / 400, generator=generator),  # (N, 120)
        "squash_c5": squash,
        "f6": drawn(nn.Linear(120, 84, device="meta"), bound=2.4 / 120, generator=generator),  # (N, 84)
        "squash_f6": squash,
        "output": RadialBasis(),
    }
    return nn.Sequential(OrderedDict(layers))


def _remake(pad: nn.Module, *, num_classes: int, generator: Generator) -> nn.Module:
    """The net that most code calls LeNet-5: full C3, plain average pooling, tanh, a linear output; torch's init."""
    c1 = drawn(nn.Conv2d(1, 6, 5, device="meta"), bound=1 / math.sqrt(25), generator=generator)
    c3 = drawn(nn.Conv2d(6, 16, 5, device="meta"), bound=1 / math.sqrt(150), generator=generator)
    c5, f6, output = (
        linear(num_in, num_out, initialisation="torch_default", generator=generator)
        for num_in, num_out in ((400, 120), (120, 84), (84, num_classes))
    )
    tanh, average = Tanh(amplitude=1, slope=1), AveragePool()
    return nn.Sequential(pad, c1, tanh, average, c3, tanh, average, nn.Flatten(), c5, tanh, f6, tanh, output)


class Tanh(nn.Module):
    """amplitude·tanh(slope·a), elementwise.

    On the CPU it is computed as amplitude·(2·sigmoid(2·slope·a) - 1), equal to within 2e-7·amplitude: torch's sigmoid
    is seven times as fast there as its tanh, which makes the training step a sixth faster. Not in bfloat16, which would
    lose digits near 0, nor on GPUs, whose tanh is fast.
    """

    def __init__(self, *, amplitude: float, slope: float) -> None:
        super().__init__()
        self.amplitude, self.slope = amplitude, slope

    def forward(self, activations: Tensor) -> Tensor:
        if activations.device.type == "cpu" and activations.dtype != torch.bfloat16:
            return torch.sigmoid(activations * (2 * self.slope)) * (2 * self.amplitude) - self.amplitude
        return torch.tanh(activations * self.slope) * self.amplitude


def _sums_2x2(maps: Tensor) -> Tensor:
    """(N, C, 2H, 2W) to (N, C, H, W), each the sum of a 2x2 block; on the CPU twice as fast as torch's pooling."""
    rows = maps[:, :, ::2] + maps[:, :, 1::2]
    return rows[..., ::2] + rows[..., 1::2]


class AveragePool(nn.Module):
    """Means of 2x2 blocks."""

    def forward(self, maps: Tensor) -> Tensor:
        return _sums_2x2(maps) * 0.25


class Subsampling(nn.Module):
    """S2 and S4: the sum of each 2x2 block, times a trainable coefficient and plus a trainable bias for each map."""

    def __init__(self, num_maps: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(num_maps))
        self.bias = nn.Parameter(torch.empty(num_maps))

    def forward(self, maps: Tensor) -> Tensor:
        return _sums_2x2(maps) * self.coefficient[:, None, None] + self.bias[:, None, None]


class SparseConvolution(nn.Module):
    """C3: 16 maps, each with a bias and a 5x5 kernel for each of the maps of S2 that Table I connects it to.

    `weight` (60, 5, 5) holds only the kernels that exist, map by map in the order of C3_INPUTS; F is 25 times a
    map's number of inputs.
    """

    positions: Tensor

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        num_inputs = torch.tensor([len(inputs) for inputs in C3_INPUTS])
        bounds = 2.4 / (25 * num_inputs)
        weight = torch.empty(60, 5, 5).uniform_(-1, 1, generator=generator)
        self.weight = nn.Parameter(weight * bounds.repeat_interleave(num_inputs)[:, None, None])
        self.bias = nn.Parameter(torch.empty(16).uniform_(-1, 1, generator=generator) * bounds)
        positions = [6 * index + source for index, inputs in enumerate(C3_INPUTS) for source in inputs]
        self.register_buffer("positions", torch.tensor(positions))

    def forward(self, maps: Tensor) -> Tensor:
        kernel = self.weight.new_zeros(16 * 6, 5, 5).index_copy(0, self.positions, self.weight)
        return functional.conv2d(maps, kernel.view(16, 6, 5, 5), self.bias)


class RadialBasis(nn.Module):
    """The output: logits -½·Σ_j (x_j - w_ij)² (N, 10) from F6's x (N, 84) and the fixed codes w (10, 84)."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", _codes())

    def forward(self, states: Tensor) -> Tensor:
        return -0.5 * (states[:, None] - self.codes).square().sum(2)


def _codes() -> Tensor:
    """The bitmaps of Fig. 3, row by row, as (10, 84) float32: +1 for ink, -1 for none."""
    bits = [[bit for row in bitmap.split() for bit in f"{int(row, 16):07b}"] for bitmap in _BITMAPS]
    return torch.tensor([[1.0 if bit == "1" else -1.0 for bit in code] for code in bits])
