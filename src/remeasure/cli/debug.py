"""`python src/train.py debug=…`: help by hand. Nothing is recorded: no run, no journal, nothing in MLflow."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import default_collate

from remeasure.cli.sweep import aligned
from remeasure.config.resolve import identified
from remeasure.data import catalog
from remeasure.runs.hardware import processor
from remeasure.spec.base import InputError
from remeasure.spec.config import Config, Debug
from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.training.augment import NoAugmentation, resized
from remeasure.training.device import resolve_device
from remeasure.training.engines.base import PHOTOGRAPHS, SERIAL, engine_of
from remeasure.training.engines.steps import take_step
from remeasure.training.inference import memory_format
from remeasure.training.losses import training_loss
from remeasure.training.optimizers import build_optimizer
from remeasure.training.seeding import derive, initial_network, permutation

OVERFITTED = 0.01  # of ln C, what guessing gets: a loss that is as good as 0
Images = Callable[[], tuple[Tensor, Tensor]]  # a batch as the net gets it: (B, C, H, W) float32, and labels (B,)


def debug(config: Config) -> int:
    """Print what `config.debug` asks for; the exit status."""
    assert config.debug is not None
    if not isinstance(config.recipe, Recipe):
        raise InputError("debug: this recipe only evaluates; choose one that trains, such as recipe=article")
    if engine_of(config.spec(data_sha256="")) not in (SERIAL, PHOTOGRAPHS):
        raise InputError(f"debug: looks at engine=serial, got {config.engine}")
    spec = identified(config, data_root=paths.data_root(), device_kind=resolve_device(config.device))
    modes = {"overfit_batch": overfit_batch, "one_step": one_step, "profile": profiled}
    with processor(spec):
        return modes[config.debug.name](_bench(spec, config=config), config.debug)


@dataclass(kw_only=True)
class Bench:
    """A net, its optimiser and a source of batches, on a device; `step` takes one optimiser step."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    images: Images
    spec: RunSpec
    recipe: Recipe
    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # of all steps so far, by part
    _ended: float = 0.0  # when the last part ended

    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (), logits (B, num_classes) and labels (B,), before the step."""
        self._ended = time.perf_counter()
        images, labels = self.images()
        self._end("data")
        loss, logits = take_step(
            self._forward, images, labels, optimizer=self.optimizer, loss=self._loss, clip=self._clip
        )
        self._end("optimiser")
        return loss, logits, labels

    def _forward(self, images: Tensor) -> Tensor:
        self._end("optimiser")
        with self._precision():
            logits: Tensor = self.network(images)
        return logits

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        with self._precision():
            loss = training_loss(logits, labels, loss=self.recipe.loss, parameters=self.network.parameters())
        self._end("forward")
        return loss

    def _clip(self) -> None:
        self._end("backward")
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)

    def _end(self, part: str) -> None:
        """The time since the last part ended was this part's."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        began, self._ended = self._ended, time.perf_counter()
        self.seconds[part] += self._ended - began

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.spec.precision == "bfloat16")


def _bench(spec: RunSpec, *, config: Config) -> Bench:
    """For overfit_batch without what makes a net harder to fit: distortions, smaller images, dropout, penalty,
    smoothing.
    """
    assert isinstance(config.recipe, Recipe)
    assert config.debug is not None
    plain = config.debug.name == "overfit_batch"
    device, recipe = torch.device(resolve_device(config.device)), config.recipe
    network = initial_network(replace(spec, compile=False), seed=config.seed)  # layers are looked into
    if plain:
        loss = recipe.loss.unregularised()
        recipe = replace(recipe, augmentation=NoAugmentation(), resolution=None, loss=loss)
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    if config.debug.name == "one_step":
        recipe = replace(recipe, clip_norm=None)  # gradients are shown as they are
    network = network.to(device).to(memory_format=memory_format(spec)).train()
    optimizer = build_optimizer(network.parameters(), optimizer=recipe.optimizer)
    torch.manual_seed(derive(config.seed, purpose="dropout", step=0))
    make = _streamed if recipe.streaming else _in_memory
    images = make(spec, recipe=recipe, seed=config.seed, num=config.debug.num_images, device=device)
    if plain:
        batch = images()
        images = lambda: batch  # noqa: E731 - the same images in each step
    return Bench(network=network, optimizer=optimizer, images=images, spec=spec, recipe=recipe, device=device)


def _in_memory(spec: RunSpec, *, recipe: Recipe, seed: int, num: int | None, device: torch.device) -> Images:
    """The first batch of the first epoch, distorted anew each time."""
    split = catalog.load_split(spec.data, "train", root=paths.data_root())
    num_kept = len(split.images) - spec.data.num_validation
    order = permutation(num_kept, seed=seed, epoch=0)[: num or recipe.batch_size]
    pixels, labels = torch.from_numpy(split.images)[order].to(device), torch.from_numpy(split.labels)[order].to(device)
    generator = torch.Generator().manual_seed(derive(seed, purpose="augmentation", step=0))

    def images() -> tuple[Tensor, Tensor]:
        batch: Tensor = recipe.augmentation.apply(pixels, normalisation=recipe.normalisation, generator=generator)
        if recipe.resolution:
            batch = resized(batch, pixels=recipe.resolution.pixels_at(0))
        return batch.contiguous(memory_format=memory_format(spec)), labels

    return images


def _streamed(spec: RunSpec, *, recipe: Recipe, seed: int, num: int | None, device: torch.device) -> Images:
    """The first photographs of the first epoch, distorted anew each time; not mixed."""
    import numpy as np

    from remeasure.training.photographs.augment import Photographs, augmentation, epoch_order  # timm: seconds to import

    assert recipe.streaming is not None
    listing = catalog.load_listing(spec.data, "train", root=paths.data_root())
    photographs = Photographs(
        files=np.array([f"{listing.place}/{name}".encode() for name in listing.names]),
        labels=listing.labels,
        seed=seed,
        transform=augmentation(recipe.streaming, normalisation=recipe.normalisation),
    )
    order = epoch_order(0, num_images=len(listing.names), num_repeats=1, seed=seed, world_size=1, rank=0)
    chosen = order[: num or recipe.batch_size]

    def images() -> tuple[Tensor, Tensor]:
        pixels, labels = default_collate([photographs[index, draw] for draw, index in enumerate(chosen)])
        return pixels.to(device).contiguous(memory_format=memory_format(spec)), labels.to(device)

    return images


# ---------------------------------------------------------------- overfit one batch


def overfit_batch(bench: Bench, asked: Debug) -> int:
    """Says how the loss on one batch falls, and whether it comes to 0."""
    least = OVERFITTED * math.log(bench.spec.data.num_classes)
    for step in range(asked.num_steps + 1):
        loss, logits, labels = bench.step()
        correct, value = int((logits.argmax(dim=1) == labels).sum()), float(loss)
        done = correct == len(labels) and value <= least
        if done or not math.isfinite(value) or step == asked.num_steps or step & (step - 1) == 0:
            print(f"step {step:5}  loss {value:.6f}  {correct} of {len(labels)} correct")
        if done or not math.isfinite(value):
            break
    if done:
        print(f"overfitted: the loss is below {least:.3g}, a hundredth of what guessing gets; the net can learn")
        return 0
    print(
        f"not overfitted: the loss is above {least:.3g}, or an answer wrong. Look at data and labels, then at the "
        "gradients (debug=one_step), then try another rate (recipe.optimizer.lr_peak) or more steps (debug.num_steps)"
    )
    return 1


# ---------------------------------------------------------------- one step


def one_step(bench: Bench, asked: Debug) -> int:
    """Two tables of the last step: what each layer puts out, and what its gradients are before they are clipped."""
    for _ in range(asked.num_steps - 1):
        bench.step()
    parameters = dict(bench.network.named_parameters())
    before = {name: float(parameter.detach().norm()) for name, parameter in parameters.items()}
    rows: list[tuple[str, ...]] = []
    with _outputs_into(rows, network=bench.network):
        loss, _, labels = bench.step()
    print(*aligned([("output of", "shape", "type", "min", "max", "mean", "deviation"), *rows]), sep="\n")
    norms = {name: None if part.grad is None else float(part.grad.norm()) for name, part in parameters.items()}
    rows = [
        (name, *_kind(part), f"{before[name]:.3g}", *_gradient(norms[name], weight=before[name]))
        for name, part in parameters.items()
    ]
    print("", *aligned([("parameter", "shape", "type", "norm", "gradient's norm", "ratio"), *rows]), sep="\n")
    guess = math.log(bench.spec.data.num_classes)
    print(f"\nloss {float(loss):.6f} on {len(labels)} images; guessing gets {guess:.6f}")
    faults = {
        "no gradient comes to": [name for name, norm in norms.items() if norm is None],
        "not finite is the gradient of": [name for name, norm in norms.items() if not math.isfinite(norm or 0.0)],
    }
    zero = [name for name, norm in norms.items() if norm == 0]  # as at first behind a scale that begins at 0
    for fault, names in (*faults.items(), ("0 is the gradient of", zero)):
        if names:
            print(f"{fault}: {', '.join(names)}")
    return int(any(faults.values()) or not math.isfinite(float(loss)))


@contextmanager
def _outputs_into(rows: list[tuple[str, ...]], *, network: nn.Module) -> Iterator[None]:
    """The input and each layer's outputs, one row each, as the first forward pass computes them."""

    def add(name: str, values: Tensor) -> None:
        seen = values.detach().float()
        numbers = (seen.min(), seen.max(), seen.mean(), seen.std())
        rows.append((name, *_kind(values), *(f"{float(number):.3g}" for number in numbers)))

    def watch(label: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            if isinstance(output, Tensor):
                add(label, output)

        return hook

    with ExitStack() as hooks:
        first = network.register_forward_pre_hook(lambda _, inputs: add("(input)", inputs[0]))
        hooks.callback(first.remove)
        for name, layer in network.named_modules():
            if not list(layer.children()):
                hooks.callback(layer.register_forward_hook(watch(f"{name} {type(layer).__name__}")).remove)
        yield


def _kind(values: Tensor) -> tuple[str, str]:
    return "×".join(map(str, values.shape)) or "()", str(values.dtype).removeprefix("torch.")


def _gradient(norm: float | None, *, weight: float) -> tuple[str, str]:
    if norm is None:
        return "none", ""
    return f"{norm:.3g}", f"{norm / weight:.2g}" if weight else ""


# ---------------------------------------------------------------- profile


def profiled(bench: Bench, asked: Debug) -> int:
    """The kernels that take longest, and the share of each part of a step."""
    for _ in range(3):  # memory is taken, kernels are chosen
        bench.step()
    bench.seconds.clear()
    kind = "cuda" if bench.device.type == "cuda" else "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if kind == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(asked.num_steps):
            bench.step()
    print(profiler.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=15))
    whole = sum(bench.seconds.values())
    milliseconds = 1000 * whole / asked.num_steps
    print(f"{asked.num_steps} steps, {milliseconds:.2f} ms each while the profiler looks on, which takes time itself:")
    for part in ("data", "forward", "backward", "optimiser"):
        print(f"  {part:10} {bench.seconds[part] / whole:6.1%}")
    return 0
