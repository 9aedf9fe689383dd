"""Estimates a seed's seconds from a few real steps, and how much of a seed is left to do."""

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from remeasure.runs import code, journal
from remeasure.runs import folder as runs_folder
from remeasure.runs.folder import Place
from remeasure.spec.recipe import Evaluation, Recipe, Resolution
from remeasure.spec.run import RunSpec
from remeasure.training.engines.base import engine_of

TIMED_SECONDS = 1.0  # time for timing a row: at least two steps of each image size, or one slow step
TIMED_SECONDS_CUDA = 0.5
SLOW_STEP_SECONDS = 10.0  # warm-up adds less than a second to the first step, unless it compiles
WARM_STEPS_CUDA = 8  # libraries choose their kernels, and a CUDA graph is captured
TIMED_BATCH_SECONDS = 1.0  # a batch this long suffices to measure the speed of an evaluation


def seconds_of_seed(spec: RunSpec, *, place: Place) -> float:
    """Seconds that a seed of `spec` takes here, estimated from a few steps on its data; leaves no files.

    For seeds that train together, one seed's share. For an evaluation, the network's time without image decoding. Of a
    run on several devices, one of them is timed with its share of a batch; what they tell each other is left out.
    """
    from remeasure.runs import hardware  # torch: seconds to import
    from remeasure.runs.execute import world_of

    code.remember(spec)  # the run itself may follow in this process
    num = world_of(spec, place=place).size
    hardware.keep_freed_memory()
    with hardware.processor(spec):
        if not engine_of(spec).trains:
            return spec.data.num_test * _seconds_per_image(spec, device_kind=place.device_kind) / num
        assert isinstance(spec.recipe, Recipe)
        recipe = replace(spec.recipe, batch_size=spec.recipe.batch_size // num) if num > 1 else spec.recipe
        seconds, sizes = 0.0, image_sizes(recipe)
        for pixels, num_epochs in sizes.items():
            sized = replace(spec, recipe=at_size(recipe, pixels=pixels))
            limit = (TIMED_SECONDS_CUDA if place.device_kind == "cuda" else TIMED_SECONDS) / len(sizes)
            seconds += num_epochs * _seconds_per_epoch(sized, place=place, limit_seconds=limit)
        return seconds / spec.engine_width / num


def image_sizes(recipe: Recipe) -> dict[int | None, int]:
    """Side of the training images in pixels (None: their own size), to the number of epochs at that size."""
    return dict(Counter(_pixels_at(recipe, epoch) for epoch in range(recipe.epochs_total)))


def _pixels_at(recipe: Recipe, epoch: int) -> int | None:
    return recipe.resolution.pixels_at(epoch) if recipe.resolution else None


def at_size(recipe: Recipe, *, pixels: int | None) -> Recipe:
    """The recipe with images of this size from its first epoch."""
    small = Resolution(pixels=(pixels,), until_epoch=(recipe.epochs_total - 1,)) if pixels else None
    return replace(recipe, resolution=small)


def _seconds_per_epoch(spec: RunSpec, *, place: Place, limit_seconds: float) -> float:
    """Time whole steps from outside: within a captured CUDA graph nothing may wait for the device."""
    from remeasure.runs.execute import job_of  # Lightning: seconds to import
    from remeasure.training.engines.steps import AfterSteps

    ahead = place.device_kind == "cuda"  # Python queues work ahead of the device
    slow_seconds = math.inf if ahead or spec.compile else SLOW_STEP_SECONDS
    job, now = job_of(spec, seed=0, place=place), _clock_of(place.device_kind)
    clock = StepClock(limit_seconds=limit_seconds, now=now, ahead=ahead, slow_seconds=slow_seconds)
    timed = AfterSteps(clock)
    with suppress(EnoughError):
        job.train(checkpoint=None, reports=[lambda _: None] * spec.engine_width, callbacks=[timed])
    return clock.seconds_per_step() * timed.module.steps_per_epoch


class EnoughError(Exception):
    """Enough steps were timed."""


class StepClock:
    """Call it after each optimiser step. The first step is warm-up. Raises EnoughError once the later steps have taken
    `limit_seconds`, or the first alone `slow_seconds`, of which warm-up is a small part.

    `ahead`: the first 8 steps are warm-up, and the time is read only after 8, 16, 32, … steps, because reading it waits
    for the device. Half of `limit_seconds` is then enough, since the next reading comes after twice as many steps.
    """

    def __init__(
        self, *, limit_seconds: float, now: Callable[[], float], ahead: bool = False, slow_seconds: float = math.inf
    ) -> None:
        self.limit_seconds, self.now, self.ahead, self.slow_seconds = limit_seconds, now, ahead, slow_seconds
        self.num_steps, self.marks = 0, [(0, now())]

    def __call__(self) -> None:
        self.num_steps += 1
        if self.ahead and (self.num_steps < WARM_STEPS_CUDA or self.num_steps.bit_count() > 1):
            return
        self.marks.append((self.num_steps, self.now()))
        if self.marks[1][1] - self.marks[0][1] >= self.slow_seconds:
            raise EnoughError
        seconds = self.marks[-1][1] - self.marks[1][1]
        if len(self.marks) > 2 and seconds >= self.limit_seconds / (2 if self.ahead else 1):
            raise EnoughError

    def seconds_per_step(self) -> float:
        """Mean seconds of a step, without the warm-up steps if others were timed."""
        if self.marks[-1][0] < self.num_steps:
            self.marks.append((self.num_steps, self.now()))
        (first, began), (last, ended) = self.marks[1 if len(self.marks) > 2 else 0], self.marks[-1]
        return (ended - began) / (last - first)


def _clock_of(device_kind: str) -> Callable[[], float]:
    """A clock in seconds that first waits for the device to finish its queued work."""
    import torch

    def now() -> float:
        if device_kind != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    return now


def _seconds_per_image(spec: RunSpec, *, device_kind: str) -> float:
    """The network's seconds for an image, on batches of noise that grow to TIMED_BATCH_SECONDS or the recipe's size."""
    import torch

    from remeasure.models import registry
    from remeasure.training.inference import Forward

    assert isinstance(spec.recipe, Evaluation)
    shape, num_classes = spec.input_shape, spec.data.num_classes
    network = registry.build(spec.model, image_shape=shape, num_classes=num_classes, generator_seed=0)
    run, now = Forward(network, spec=spec, device=torch.device(device_kind)), _clock_of(device_kind)
    num, seconds = 1, 0.0
    while seconds < TIMED_BATCH_SECONDS and num <= spec.recipe.batch_size:
        batch = torch.randint(0, 256, (num, *shape), dtype=torch.uint8, device=device_kind)
        for _ in range(2):  # the first is warm-up
            began = now()
            with torch.inference_mode():
                run(batch)
            seconds = now() - began
        per_image, num = seconds / num, 4 * num
    return per_image


def share_left(spec: RunSpec, *, seed: int, place: Place) -> float:
    """The share of a seed still to do: 1, or less if a checkpoint can be resumed."""
    attempts = runs_folder.attempts(spec, seed=spec.together(seed)[0], place=place)  # it holds the group's checkpoint
    if not attempts or not (attempts[-1] / "checkpoint.ckpt").is_file() or not engine_of(spec).trains:
        return 1.0
    epochs = [event["epoch"] for event in journal.read(attempts[-1]) if event["event"] == "epoch"]
    return sum(spec.work_by_epoch[max(epochs, default=0) :]) / sum(spec.work_by_epoch)
