"""Negative controls: runs with a deliberate fault, under the row's own claim and rule, must be judged `falls short`.

A suite that judged them `reproduced` would measure nothing.
"""

import torch
from torch import Tensor

from remeasure.spec.base import Control
from remeasure.spec.recipe import Normalisation
from remeasure.spec.run import RunSpec

# Training statistics of another data set (conf/data): CIFAR-10's over all channels for grey images, MNIST's for others.
OTHER = {
    1: Normalisation(mean=(0.4734,), std=(0.2507,)),
    3: Normalisation(mean=(0.1307,), std=(0.3081,)),
}


def applied(images: Tensor, labels: Tensor, *, control: Control, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 and labels (N,) int64 with the fault in them; random draws depend on `seed` alone."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if control == "shuffled_labels":
        return images, labels[order]
    if control == "swapped_classes":
        swapped = torch.where(labels == 0, 1, torch.where(labels == 1, 0, labels))
        return images, swapped
    if control == "tenth_of_data":
        chosen = order[: len(labels) // 10]
        return images[chosen], labels[chosen]
    return images, labels


def evaluated_with(spec: RunSpec) -> Normalisation:
    """The normalisation of the scored images; training always uses the recipe's."""
    if spec.control == "other_normalisation":
        return OTHER[spec.data.image_shape[0]]
    return spec.recipe.normalisation
