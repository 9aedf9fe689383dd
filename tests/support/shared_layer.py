"""A net whose two hidden layers are one and the same."""

from torch import Generator, nn


def build(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator) -> nn.Module:
    inputs = image_shape[0] * image_shape[1] * image_shape[2]
    hidden, head = nn.Linear(inputs, inputs), nn.Linear(inputs, num_classes)
    for layer in (hidden, head):
        nn.init.normal_(layer.weight, std=0.1, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), hidden, nn.ReLU(), head)
