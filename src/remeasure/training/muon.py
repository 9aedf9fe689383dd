"""Muon updates kernels by their orthogonalised momentum, and all other parameters by SGD.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", with the renormalised kernels of Jordan's
airbench94_muon. torch's own Muon takes only matrices, and timm's does not renormalise.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from remeasure.spec.base import InputError

# Of the quintic polynomial a·x + b·x³ + c·x⁵ (Jordan et al. 2024): five rounds bring singular values into 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ROUNDS = 5


def orthogonalised(matrix: Tensor, *, dtype: torch.dtype) -> Tensor:
    """(M, N) float32 → the matrix U·Vᵀ of its singular vectors, nearly, by Newton-Schulz rounds computed in `dtype`."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.t(), dtype=dtype).t()
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    x = x / (x.norm() + 1e-7)
    for _ in range(NUM_ROUNDS):
        square = x @ x.t()
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """One step of a kernel W, (out, …) seen as a matrix (out, N), with gradient G:

    M ← momentum·M + G;  W ← √out · W / ‖W‖ - lr · orthogonalised(G + momentum·M)

    Kernels are the weights of two or more dimensions except the first (stem) and the last (head). Stem, head, biases
    and norms take SGD with the same Nesterov momentum, weight decay, and the rate lr · `sgd_lr_peak` / peak of lr.
    InputError: a network without such kernels.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float | Tensor,
        momentum: float,
        sgd_lr_peak: float,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        every = list(parameters)
        kernels = [parameter for parameter in every if parameter.ndim > 1][1:-1]
        if not kernels:
            raise InputError(
                "recipe.optimizer: muon moves the kernels between the first and the last layer, and this network has "
                "none; choose adam or sgd"
            )
        known = {id(kernel) for kernel in kernels}
        rest = [parameter for parameter in every if id(parameter) not in known]
        groups = [{"params": kernels}, {"params": rest}]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._share, self._dtype = sgd_lr_peak / float(lr), dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step at the rate of the first group. `closure` computes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kernels, rest = self.param_groups
        for kernel, gradient in _with_gradients(kernels["params"]):
            ahead = self._ahead(kernel, gradient, momentum=kernels["momentum"])
            update = orthogonalised(ahead.flatten(1), dtype=self._dtype)
            kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
            kernel.sub_(kernels["lr"] * update.view(kernel.shape))
        for parameter, gradient in _with_gradients(rest["params"]):
            decayed = gradient.add(parameter, alpha=rest["weight_decay"])  # the gradient itself stays as it is
            parameter.sub_(kernels["lr"] * self._share * self._ahead(parameter, decayed, momentum=rest["momentum"]))
        return loss

    def _ahead(self, parameter: Tensor, gradient: Tensor, *, momentum: float) -> Tensor:
        """Nesterov's direction: the gradient plus momentum times the updated momentum buffer."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        moved = state["momentum_buffer"].mul_(momentum).add_(gradient)
        return gradient.add(moved, alpha=momentum)


def _with_gradients(parameters: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
