"""The models of the table: `build` turns a ModelSpec into a torch module whose initial weights follow from a seed.

`builder` in conf/model is a name in BUILDERS, or "package.module:function" from outside.
"""

import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from remeasure.models import lenet5, mlp, resnet, vit
from remeasure.spec.base import InputError, refuse
from remeasure.spec.plugin import imported, raised
from remeasure.spec.run import ModelSpec


class Builder(Protocol):
    """Makes a network on the CPU, whose initial weights follow from a generator.

    Its arguments are keywords: `image_shape`, which is (C, H, W), `num_classes`, `generator` (torch's own generator has
    the same seed), and its options, each with an annotation, all of which the config states. The network maps images
    (N, C, H, W) float32, normalised by the recipe, to logits (N, num_classes) float32.
    """

    def __call__(self, *_: Any, **arguments: Any) -> nn.Module: ...


BUILDERS: dict[str, Builder] = {
    "logistic_regression": mlp.logistic_regression,
    "mlp": mlp.mlp,
    "lenet5": lenet5.lenet5,
    "resnet18": resnet.resnet18,
    "timm_net": vit.timm_net,
}
_CONTEXT = ("image_shape", "num_classes", "generator")  # arguments of every builder, besides its options


def build(model: ModelSpec, *, image_shape: tuple[int, int, int], num_classes: int, generator_seed: int) -> nn.Module:
    """The model on the CPU in training mode, its weights drawn from a generator seeded with `generator_seed`.

    Around the builder, the global generators of torch, NumPy and Python are seeded with it as well, then restored: a
    builder that ignores `generator` depends on the seed, too. Lazy layers get their shapes, and weights, from a forward
    pass then. InputError, with every fault: an unknown builder, an option that is unknown, missing or out of its range,
    data that the model cannot take; a function that is no builder.
    """
    refuse(faults(model))
    builder = builder_of(model.builder)
    generator = torch.Generator().manual_seed(generator_seed)
    try:
        with _seeded(generator_seed):
            network: object = builder(
                image_shape=image_shape, num_classes=num_classes, generator=generator, **model.options
            )
            if isinstance(network, nn.Module) and any(isinstance(each, LazyModuleMixin) for each in network.modules()):
                with torch.no_grad():
                    network.eval()(torch.zeros(2, *image_shape))
                network.train()
    except (RuntimeError, MemoryError, OverflowError) as error:  # larger than the memory, or than torch's integers
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"model: {model.builder} with options {dict(model.options)} cannot be built for images {image_shape} and "
            f"{num_classes} classes ({reason})"
        ) from None
    except Exception as error:
        if isinstance(error, InputError) or model.builder in BUILDERS:
            raise
        raise InputError(f"model.builder: {model.builder}: {raised(error)}; {_expected(model)}") from error
    if not isinstance(network, nn.Module):
        made = type(network).__name__
        raise InputError(f"model.builder: {model.builder} makes no torch module, got {made}; {_expected(model)}")
    return network


def _expected(model: ModelSpec) -> str:
    options = [f"{name}: {type(value).__name__}" for name, value in model.options.items()]
    return f"expected def net(*, {', '.join((*_CONTEXT, *options))}) -> nn.Module"


def drawn_otherwise(first: nn.Module, second: nn.Module) -> list[str]:
    """The names of the weights and buffers that two networks of one builder do not have in common."""
    ours, others = (dict([*each.named_parameters(), *each.named_buffers()]) for each in (first, second))
    return [name for name, values in ours.items() if not torch.equal(values, others[name])]


def is_constant(network: nn.Module) -> bool:
    """Whether each weight and bias is one number, such as 0, so that no seed can matter."""
    return all((values == values.flatten()[:1]).all() for values in network.parameters())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU with a 64-bit seed, and restore them after the block."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators' as well
    np.random.seed((seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@torch.inference_mode()
def refuse_sizes(network: nn.Module, *, channels: int, pixels: Sequence[int]) -> None:
    """Raise InputError if the network cannot take images of these sizes, those of `recipe.resolution`."""
    was_training, network = network.training, network.eval()
    refused = []
    for size in pixels:
        try:
            network(torch.zeros(1, channels, size, size))
        except RuntimeError as error:
            refused.append(f"{size} ({str(error).partition(chr(10))[0]})")
    network.train(was_training)
    if refused:
        raise InputError(
            f"recipe.resolution: the model cannot take images of these pixels a side: {', '.join(refused)}"
        )


@torch.inference_mode()
def logits_of(network: nn.Module, *, builder: str, image_shape: tuple[int, int, int], num_classes: int) -> Tensor:
    """The logits (2, num_classes) of two black images. Raises InputError: the network, made by a builder from outside,
    gives something else.
    """
    images, was_training = torch.zeros(2, *image_shape), network.training
    wanted = f"expected logits {(2, num_classes)} float32 of images {tuple(images.shape)}"
    try:
        with _seeded(0):
            logits: object = network.eval()(images)
    except Exception as error:
        raise InputError(f"model.builder: the module that {builder} makes: {raised(error)}; {wanted}") from error
    network.train(was_training)
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes) or logits.dtype != torch.float32:
        got = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"model.builder: the module that {builder} makes gives {got}; {wanted}")
    return logits


def are_probabilities(outputs: Tensor) -> bool:
    """Whether each row of these outputs (N, num_classes) is in 0..1 and sums to 1, as behind a softmax."""
    sums = outputs.sum(dim=1)
    return bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums))


def faults(model: ModelSpec) -> Iterator[str]:
    """Faults of the model that do not depend on the data: an unknown builder, or options that do not fit it."""
    try:
        types = _annotations(builder_of(model.builder))
    except InputError as error:
        yield from error.faults
        return
    lacking = [f"has no argument {name}" for name in _CONTEXT if name not in types]
    lacking += [f"has no annotation for {name}" for name, known in types.items() if known is inspect.Parameter.empty]
    if lacking:
        yield f"model.builder: {model.builder} {', '.join(lacking)}; {_expected(model)}"
        return
    options = {name: known for name, known in types.items() if name not in _CONTEXT}
    for name in options:
        if name not in model.options:
            yield f"model.options.{name}: missing; {model.builder} needs {', '.join(options)}"
    for name, value in model.options.items():
        if name not in options:
            yield f"model.options.{name}: unknown; {model.builder} takes {', '.join(options) or 'no options'}"
            continue
        try:
            TypeAdapter(options[name]).validate_python(value, strict=True)
        except ValidationError as error:
            for fault in error.errors():
                where = ".".join(str(part) for part in (name, *fault["loc"]))
                yield f"model.options.{where}: {fault['msg']}, got {fault['input']!r}"


def builder_of(name: str) -> Builder:
    """The function that `builder` in conf/model names. Raises InputError."""
    if name in BUILDERS:
        return BUILDERS[name]
    if ":" not in name:
        given = ":".join(name.rsplit(".", 1)) if "." in name else "module:function"
        raise InputError(f"model.builder: there is no {name!r}; choose from {', '.join(BUILDERS)}, or give {given}")
    builder: Builder = imported(name, where="model.builder")
    return builder


def _annotations(builder: Builder) -> dict[str, Any]:
    """The annotation of each argument; of the builder's context, None. One that cannot be evaluated is empty."""
    try:
        parameters = inspect.signature(builder, eval_str=True).parameters
    except NameError:  # imported only for type checkers
        return dict.fromkeys(inspect.signature(builder).parameters, inspect.Parameter.empty)
    return {name: None if name in _CONTEXT else parameter.annotation for name, parameter in parameters.items()}


def num_trainable(module: nn.Module) -> int:
    """The number of trainable parameters, which tables print as the parameter count."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def first_layer_weights(module: nn.Module) -> Tensor:
    """A copy of the first weight matrix or convolution kernel, (out, in, ...), on the CPU."""
    weights = (getattr(layer, "weight", None) for layer in module.modules())
    first = next(weight for weight in weights if isinstance(weight, nn.Parameter) and weight.ndim > 1)
    return first.detach().cpu().clone()
