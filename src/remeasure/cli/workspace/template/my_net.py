"""A network: a function that gets plain keywords and returns a torch module."""

from torch import Generator, nn


def build(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator, channels: int) -> nn.Module:
    """Maps images (N, C, H, W) float32, normalised, to logits (N, num_classes).

    `generator` has the run's seed: draw initial weights from it. torch's own initialisation depends on the seed, too.
    `channels`: an option of conf/model/my_net.yaml; each option has a type, and the config states every one.
    """
    colours, height, width = image_shape
    layers = nn.Sequential(
        nn.Conv2d(colours, channels, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels * ((height + 1) // 2) * ((width + 1) // 2), num_classes),
    )
    nn.init.zeros_(layers[-1].bias)
    nn.init.normal_(layers[-1].weight, std=0.01, generator=generator)
    return layers
