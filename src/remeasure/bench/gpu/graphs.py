"""Steps as CUDA graphs: do they train to the same numbers, and how much time do they save?

Captured steps run in a separate process, so that a failed capture does not affect other measurements.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from remeasure.bench.gpu import speeds
from remeasure.bench.gpu.report import Figures
from remeasure.bench.gpu.sizes import Sizes
from remeasure.bench.gpu.timing import Apart, fault, here, median_seconds, modes
from remeasure.config.compose import compose
from remeasure.spec.base import DeviceKind
from remeasure.spec.config import Config
from remeasure.training.engines.batched import BatchedTraining
from remeasure.training.engines.blocks import BlockTraining
from remeasure.training.engines.capture import Captured
from remeasure.training.engines.loop import train
from remeasure.training.engines.serial import Training

EPOCHS = ("recipe.epochs_total=2", "recipe.schedule.epochs_warmup=0")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of training two epochs on noise: weights, seconds of a step in the second epoch, number of graphs."""

    weights: list[Tensor]
    seconds_per_step: float
    num_graphs: int


def trained(config: Config, *, num_steps: int, captured: bool, kind: DeviceKind) -> Trained:
    """Train as in a run; an epoch has `num_steps` full batches and a short one."""
    images, labels = speeds.noise(config, num=num_steps * config.recipe.batch_size + 7)
    spec, seeds = config.spec(data_sha256=""), range(config.engine_width)
    networks = [speeds.network_of(config, device=torch.device("cpu"), seed=seed) for seed in seeds]
    named: dict[str, Any] = {"spec": spec, "images": images, "labels": labels}
    training: BlockTraining = (
        BatchedTraining(networks, seeds=seeds, **named)
        if config.engine == "batched"
        else Training(networks[0], seed=0, **named)
    )
    ends: list[float] = []  # of epochs; the loss has been read, so the device has finished
    with (
        modes(deterministic=kind == "cuda"),
        mock.patch.dict(os.environ, REMEASURE_CAPTURE=str(int(captured))),
        tempfile.TemporaryDirectory() as folder,
    ):
        checkpoint = Path(folder) / "checkpoint.ckpt"
        train(
            training,
            spec=spec,
            device_kind=kind,
            checkpoint=checkpoint,
            reports=[lambda _: ends.append(time.perf_counter()), *[lambda _: None] * (config.engine_width - 1)],
        )
    weights = [parameter.detach().cpu() for parameter in training.network.parameters()]
    seconds = (ends[1] - ends[0]) / training.steps_per_epoch
    return Trained(weights=weights, seconds_per_step=seconds, num_graphs=len(training.captured.graphs))


def graph_check(sizes: Sizes, *, kind: DeviceKind) -> Figures:
    """Do captured steps train to the same numbers as others, with dropout, distortions and growing images?"""
    lines, width = Figures(), max(sizes.seeds[:2])
    together = ("engine=batched", f"engine_width={width}")
    configs = {name: compose([f"model={name}", *EPOCHS, *together]) for name in sizes.checked_models}
    growing = "recipe.resolution={pixels: [16], until_epoch: [1]}"
    batch = f"recipe.batch_size={sizes.checked_batch}"
    configs["resnet18"] = compose([*sizes.resnet, *EPOCHS, growing, batch])
    with Apart() as apart:
        for name, config in configs.items():
            num_steps = min(sizes.steps, 50) if name == "resnet18" else sizes.steps
            lines += _checked(name, config, num_steps=num_steps, kind=kind, apart=apart)
    return lines


def holds(lines: Figures) -> bool:
    """Whether all captured steps of the check trained to the same numbers as others."""
    return bool(lines) and not any("fault" in line or line.get("identical") is False for line in lines)


def _checked(name: str, config: Config, *, num_steps: int, kind: DeviceKind, apart: Apart) -> Figures:
    """A line without and one with capture; the last one also says whether the weights are equal."""
    lines, ends = Figures(), list[Trained]()
    for captured in (False, True) if kind == "cuda" else (False,):
        line = {"model": name, "seeds": config.engine_width, "captured": captured}
        run = apart if captured else here
        try:
            end = run(trained, config, num_steps=num_steps, captured=captured, kind=kind)
        except Exception as error:
            lines.append(line | fault(error))
            continue
        ends.append(end)
        milliseconds = float(f"{1000 * end.seconds_per_step:.4g}")
        lines.append(line | {"milliseconds": milliseconds, "graphs": end.num_graphs})
    if len(ends) == 2:
        lines[-1] |= _compared(*(end.weights for end in ends))
    return lines


def _compared(plain: list[Tensor], captured: list[Tensor]) -> dict[str, Any]:
    pairs = list(zip(plain, captured, strict=True))
    differences = [float((one - other).norm() / one.norm()) for one, other in pairs]
    return {
        "identical": all(torch.equal(*pair) for pair in pairs),
        "largest_relative_difference": float(f"{max(differences):.3g}"),
    }


def seeds_together(sizes: Sizes, *, kind: DeviceKind) -> Figures:
    """Milliseconds of an optimiser step of `sizes.seeds` seeds, launched kernel by kernel and captured as a graph.

    If a step cannot be captured, its line says why, and no later step is captured.
    """
    lines = Figures()
    ways = (False, True) if kind == "cuda" else (False,)
    with Apart() as apart:
        for model, num, captured in itertools.product(("mlp2", "lenet5"), sizes.seeds, ways):
            if captured and os.environ.get("REMEASURE_CAPTURE", "1") == "0":
                continue
            line: dict[str, Any] = {"model": model, "seeds": num, "captured": captured}
            config = compose([f"model={model}", *EPOCHS, "engine=batched", f"engine_width={num}"])
            run = apart if captured else here
            try:
                seconds = run(seconds_per_step, config, num_steps=sizes.steps, captured=captured, kind=kind)
            except Exception as error:
                if not captured:
                    raise
                os.environ["REMEASURE_CAPTURE"] = "0"
                lines.append(line | fault(error))
                continue
            each = {"milliseconds": seconds, "milliseconds_per_seed": seconds / num}
            lines.append(line | {key: float(f"{1000 * value:.4g}") for key, value in each.items()})
    return lines


def seconds_per_step(config: Config, *, num_steps: int, captured: bool, kind: DeviceKind) -> float:
    return trained(config, num_steps=num_steps, captured=captured, kind=kind).seconds_per_step


# ---------------------------------------------------------------- modes of the row's own step

WAYS: dict[str, dict[str, bool]] = {  # torch's modes, and whether the step is captured
    "plain": {},
    "deterministic": {"deterministic": True},
    "deterministic, memory filled": {"deterministic": True, "fill": True},
    "cudnn.benchmark": {"benchmark": True},
    "captured": {"captured": True},
    "captured, deterministic": {"captured": True, "deterministic": True},  # as a run trains
}


def resnet_ways(sizes: Sizes, *, kind: DeviceKind) -> Figures:
    """Milliseconds of the row's optimiser step at its three sizes of images, by torch's modes."""
    lines = Figures()
    with Apart() as apart:
        for pixels, (way, options) in itertools.product(sizes.resnet_pixels, WAYS.items()):
            if options.get("captured") and kind != "cuda":
                continue
            run = apart if options.get("captured") else here
            line: dict[str, Any] = {"pixels": pixels or "all", "way": way}
            resolution = f"{{pixels: [{pixels}], until_epoch: [1]}}" if pixels else "null"
            batch = sizes.checked_batch
            overrides = (*sizes.resnet, f"recipe.batch_size={batch}", f"recipe.resolution={resolution}")
            try:
                config = compose(overrides)
                first, seconds = run(way_seconds, config, kind=kind, repeats=sizes.repeats, **options)
            except Exception as error:
                lines.append(line | fault(error))
                continue
            speed = {"milliseconds": float(f"{1000 * seconds:.4g}"), "images_per_second": round(batch / seconds, 1)}
            lines.append(line | {"first_call_seconds": round(first, 3), **speed})
    return lines


def way_seconds(
    config: Config, *, kind: DeviceKind, repeats: int, captured: bool = False, **switches: bool
) -> tuple[float, float]:
    """`median_seconds` of a step in these modes."""
    device = torch.device(kind)
    with modes(**{"deterministic": False, **switches}):
        call: Callable[[], object] = speeds.training_call(config, compiled=False, device=device)
        if captured:
            take = call

            def step(_: Tensor) -> tuple[Tensor, ...]:
                take()
                return ()

            call = partial(Captured(), step, torch.zeros((), device=device), key=None)
            for _ in range(4):  # the last one captures
                call()
        return median_seconds(call, device=device, repeats=repeats)
