"""The validation curve: held-back images are scored after each epoch."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from remeasure.spec.run import RunSpec
from remeasure.training.engines.steps import TrainingModule
from remeasure.training.inference import predict
from remeasure.training.seeding import initial_network


class Validation:
    """Scores images (N, C, H, W) uint8 and labels (N,) int64, on a network of its own that gets the weights.

    So hooks, modes and statistics of the network that trains stay as they are; and each block of steps seeds the
    generators anew, whatever was drawn before. `forward`: the module whose forward pass scores a network.
    """

    def __init__(
        self,
        spec: RunSpec,
        *,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
        forward: Callable[[nn.Module], nn.Module],
    ) -> None:
        self._spec, self._device, self._forward = spec, device, forward
        self._images, self._labels = images.to(device), labels
        self._network = initial_network(replace(spec, compile=False), seed=0).to(device)

    def __call__(self, training: TrainingModule, index: int) -> dict[str, float]:
        """Loss and accuracy_percent of one seed, as if it were scored now."""
        self._network.load_state_dict(training.scored_state(index))
        network = self._forward(self._network)
        predictions = predict(network, self._images, labels=self._labels, spec=self._spec, device=self._device)
        num_correct = int((predictions.predicted == self._labels).sum())
        return {"loss": predictions.loss, "accuracy_percent": 100 * num_correct / len(self._labels)}
