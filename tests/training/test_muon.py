"""Muon against singular value decompositions, the equation by hand, and torch's SGD."""

import copy

import pytest
import torch
from torch import Tensor, nn

from remeasure.config.compose import compose
from remeasure.models import registry
from remeasure.spec.base import InputError
from remeasure.training.muon import Muon, orthogonalised
from remeasure.training.optimizers import build_optimizer

ARGUMENTS = {"lr": 0.1, "momentum": 0.6, "sgd_lr_peak": 0.02, "weight_decay": 0.01}


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def with_gradients(chosen: list[nn.Parameter], *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in chosen:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_about_1_and_singular_vectors_stay(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrix, dtype=dtype)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rotated = left.t() @ found @ right.t()  # diagonal: the new singular values
    kept = values > 0.05 * values.max()  # the rounds lift smaller ones only in part
    assert found.dtype == torch.float32
    assert ((rotated.diagonal()[kept] > 0.6) & (rotated.diagonal()[kept] < 1.25)).all()
    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)


def test_a_step_of_a_kernel_is_the_equation() -> None:
    stem, kernel, head = parameters((4, 3, 3, 3), (8, 4, 3, 3), (10, 8))
    optimizer = Muon([stem, kernel, head], **ARGUMENTS)
    moved = torch.zeros(8, 36)
    for seed in (1, 2):
        before = kernel.detach().clone()
        with_gradients([stem, kernel, head], seed=seed)
        gradient = kernel.grad.flatten(1).clone()
        optimizer.step()
        moved = 0.6 * moved + gradient
        direction = orthogonalised(gradient + 0.6 * moved, dtype=torch.float32)
        expected = 8**0.5 * before.flatten(1) / before.norm() - 0.1 * direction
        torch.testing.assert_close(kernel.detach().flatten(1), expected)


def test_stem_head_biases_and_norms_take_torchs_sgd() -> None:
    ours = parameters((4, 3, 3, 3), (4,), (8, 4, 3, 3), (8,), (10, 8), (10,))
    theirs = copy.deepcopy([parameter for index, parameter in enumerate(ours) if index != 2])
    optimizer = Muon(ours, **ARGUMENTS)
    sgd = torch.optim.SGD(theirs, lr=0.02, momentum=0.6, nesterov=True, weight_decay=0.01)
    for seed, rate in ((1, 1.0), (2, 0.5)):
        with_gradients(ours, seed=seed)
        for parameter, source in zip(theirs, ours[:2] + ours[3:], strict=True):
            parameter.grad = source.grad.clone()
        optimizer.param_groups[0]["lr"], sgd.param_groups[0]["lr"] = 0.1 * rate, 0.02 * rate
        optimizer.step()
        sgd.step()
    for parameter, expected in zip(ours[:2] + ours[3:], theirs, strict=True):
        torch.testing.assert_close(parameter, expected)


def test_in_a_resnet18_the_kernels_between_stem_and_head_are_muons() -> None:
    config = compose(["model=resnet18"])
    network = registry.build(config.model, image_shape=(3, 32, 32), num_classes=10, generator_seed=0)
    kernels, rest = Muon(network.parameters(), **ARGUMENTS).param_groups
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert len(kernels["params"]) == 19  # He et al. 2016: 16 kernels in 8 blocks, 3 projections
    assert all(".conv" in names[id(kernel)] or ".downsample.0" in names[id(kernel)] for kernel in kernels["params"])
    assert {"conv1.weight", "fc.weight", "fc.bias", "bn1.weight"} <= {
        names[id(parameter)] for parameter in rest["params"]
    }


def test_a_restored_optimiser_goes_on_bit_for_bit() -> None:
    ours = parameters((4, 6), (4,), (5, 4), (10, 5))
    optimizer = Muon(ours, **ARGUMENTS)
    with_gradients(ours, seed=1)
    optimizer.step()
    twins = copy.deepcopy(ours)
    restored = Muon(twins, **ARGUMENTS)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for chosen, goes_on in ((ours, optimizer), (twins, restored)):
        with_gradients(chosen, seed=2)
        goes_on.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, twins, strict=True))


def test_the_closure_computes_the_gradients() -> None:
    stem, kernel, head = parameters((4, 6), (5, 4), (10, 5))
    optimizer = Muon([stem, kernel, head], **{**ARGUMENTS, "sgd_lr_peak": 1e-4})

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (head @ kernel @ stem).square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).detach().item() for _ in range(3)]
    assert losses[2] < losses[0]


def test_muon_computes_in_the_runs_precision() -> None:
    optimizer = compose(["model=resnet18", "recipe=resnet18_muon"]).recipe.optimizer
    ours = parameters((4, 6), (5, 4), (10, 5))
    steps = []
    for precision in ("float32", "bfloat16"):
        twins = copy.deepcopy(ours)
        with_gradients(twins, seed=1)
        build_optimizer(twins, optimizer=optimizer, precision=precision).step()
        steps.append(twins[1].detach())
    assert not torch.equal(*steps)
    torch.testing.assert_close(*steps, atol=0.01, rtol=0.0)


def test_a_network_without_inner_layers_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="muon moves the kernels between the first and the last layer"):
        Muon(parameters((10, 784), (10,)), **ARGUMENTS)
