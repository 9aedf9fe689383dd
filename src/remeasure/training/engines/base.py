"""What an engine is: the specs that it supports, and the job that trains or evaluates them.

An `Engine` lists what it supports and refuses everything else by name, so that nothing else is trained in silence. It
imports no torch: a wrong config is refused at once. Its `Job` holds the seeds of one spec that train together.

To add an engine, write a Job and add an Engine to `ENGINES`.
"""

import json
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from remeasure.spec.base import DeviceKind, DivergenceError, InputError
from remeasure.spec.recipe import Evaluation, Recipe
from remeasure.spec.run import RunSpec
from remeasure.training.photographs import world as worlds
from remeasure.training.photographs.world import World

if TYPE_CHECKING:
    from pytorch_lightning import Callback
    from torch import Tensor, nn

    from remeasure.data.listing import Listing
    from remeasure.training.diagnostics.nonfinite import Found
    from remeasure.training.inference import Predictions

Report = Callable[[dict[str, Any]], None]


class Data(Protocol):
    """The images of one spec. Each method reads them when it is called: the test split only after training."""

    def to_train(self, *, seed: int) -> "tuple[Tensor, Tensor]":
        """Images (N, C, H, W) uint8 and labels (N,) int64."""

    def to_validate(self) -> "tuple[Tensor, Tensor] | None":
        """The held-back images, as `to_train`, for a score after each epoch; None: there is to be none."""

    def to_score(self) -> "tuple[Tensor, Tensor]":
        """As `to_train`. Raises InputError if the files have changed or images are in both splits."""

    def listing(self, split: Literal["train", "test"]) -> "Listing":
        """Photographs as a list of files."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The result of a seed: the network, its predictions, the labels (N,) int64 that score them, and the seconds."""

    network: "nn.Module"
    predictions: "Predictions"
    labels: "Tensor"
    wall_seconds: float


class Job(Protocol):
    """Seeds that train together, built on their data; a seed is named by its position among them."""

    @property
    def num_params(self) -> int:
        """Trainable parameters of one seed's network."""

    def train(
        self, *, checkpoint: Path | None, reports: Sequence[Report], callbacks: "Sequence[Callback]" = ()
    ) -> Mapping[int, DivergenceError]:
        """Train to the last epoch, from the checkpoint if there is one; returns the seeds that diverged.

        `reports`: for each seed, a function that gets its epochs. `checkpoint` None: none is read or written.
        """

    def score(self, index: int, *, checkpoint: Path, progress: Report) -> Scored:
        """Evaluate a trained seed on the scored split. Raises DivergenceError: its loss there is not finite."""

    def trace(self, seeds: Collection[int], *, until: int, checkpoint: Path) -> "Mapping[int, Found]":
        """Train again, up to step `until`, and find the first value of each of these seeds that is not finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Engine:
    """What an engine supports. `job`: its Job, as module:class, called with spec, seeds, data and device_kind.

    Optimisers, losses and augmentations say themselves which engines implement them, by `name`. `parts`: the fields of
    a recipe that this engine implements; it refuses a recipe that sets another one. `supports`: for some keys of the
    spec, the values that it implements; it supports every value of the other keys.
    """

    name: str
    title: str
    job: str
    parts: Collection[str]
    supports: Mapping[str, tuple[object, ...]]
    device_kinds: tuple[DeviceKind, ...] = ("cpu", "cuda", "mps")
    trains: bool = True
    on_many_devices: bool = False  # its job takes a `world`, too
    takes_all_cores: bool = False  # whatever the spec's number of threads
    computes_in_numpy: bool = False
    takes_callbacks: bool = True  # the user's
    in_blocks: bool = True  # whether a Lightning batch is a block of optimiser steps
    advice: str = "; choose engine=serial"
    hints: Mapping[str, str] = field(default_factory=dict)  # by key, in place of the advice

    def faults(self, spec: RunSpec) -> Iterator[str]:
        """Each part of the spec that this engine does not support."""
        if self.trains != (spec.mode == "train"):
            yield f"engine: {self.title} trains, and recipe {spec.recipe.name} only evaluates{self.advice}"
            return
        if isinstance(spec.recipe, Recipe):
            unsupported = spec.recipe.unsupported(self.name)
            yield from (f"engine: {self.title} {fault}{self.advice}" for fault in unsupported)
        if spec.callbacks and not self.takes_callbacks:
            names = ", ".join(plugin.builder for plugin in spec.callbacks)
            yield f"callback: {self.title} takes none, got {names}{self.advice}"
        for part in fields(spec.recipe):
            if part.name not in self.parts and getattr(spec.recipe, part.name) is not None:
                yield f"recipe.{part.name}: {self.title} does not implement it; expected null{self.advice}"
        for key, values in self.supports.items():
            if (value := attrgetter(key)(spec)) not in values:
                expected = ", ".join(map(_shown, values))
                yield f"{key}: {self.title} has {expected}, got {_shown(value)}{self.hints.get(key, self.advice)}"

    def device_faults(
        self, device_kind: DeviceKind, *, devices: int | None = None, num_nodes: int | None = None
    ) -> Iterator[str]:
        """What of the device's kind, and of the number of devices and machines, it does not support."""
        for key, num in (("devices", devices), ("num_nodes", num_nodes)):
            if (num or 1) > 1 and not self.on_many_devices:
                yield f"{key}: {self.title} computes on one device, got {key}={num}; leave it out"
        if device_kind not in self.device_kinds:
            kinds = ", ".join(self.device_kinds)
            yield f"device: {self.title} computes on {kinds}, got {device_kind}; choose device={self.device_kinds[0]}"

    def build(
        self, spec: RunSpec, *, seeds: Sequence[int], data: Data, device_kind: DeviceKind, world: World | None = None
    ) -> Job:
        """The job of these seeds, with their initial weights. InputError: the spec, network or data do not fit it.

        `world`: the processes that it is divided among, if there are several.
        """
        if faults := [*self.faults(spec), *self.device_faults(device_kind)]:
            raise InputError(*faults)
        options = {"world": world} if world else {}
        job: Job = pkgutil.resolve_name(self.job)(spec, seeds=seeds, data=data, device_kind=device_kind, **options)
        return job


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


IN_MEMORY = (
    *("name", "epochs_total", "batch_size", "optimizer", "schedule", "loss", "normalisation", "augmentation"),
    *("resolution", "clip_norm"),
)
ALONE = {"engine_width": (1,)}
WIDTH_HINT = {"engine_width": "; engine=batched trains several seeds together"}
SERIAL = Engine(
    name="serial",
    title="the serial engine",
    job="remeasure.training.engines.serial:SerialJob",
    parts=(*IN_MEMORY, "averaging"),
    supports=ALONE,
    advice="",
    hints=WIDTH_HINT,
)
BATCHED = Engine(
    name="batched",
    title="the batched engine",
    job="remeasure.training.engines.batched:BatchedJob",
    parts=IN_MEMORY,
    supports={
        "control": ("none",),
        "channels_last": (False,),
        "compile": (False,),
    },
    hints={"control": "; it trains all its seeds on the same images: choose engine=serial"},
    takes_callbacks=False,
)
NUMPY = Engine(
    name="numpy",
    title="the numpy engine",
    job="remeasure.training.engines.numpy_engine:NumpyJob",
    parts=IN_MEMORY,
    supports={
        **ALONE,
        "precision": ("float32",),
        "channels_last": (False,),
        "compile": (False,),
    },
    device_kinds=("cpu",),
    computes_in_numpy=True,
    hints=WIDTH_HINT,
)
PHOTOGRAPHS = Engine(
    name="photographs",
    title="training on photographs",
    job="remeasure.training.photographs.jobs:PhotographsJob",
    parts=(*(part for part in IN_MEMORY if part != "resolution"), "streaming"),
    supports={
        **ALONE,
        "data.num_validation": (0,),
        "control": ("none",),
    },
    on_many_devices=True,
    in_blocks=False,
    advice="",
    hints={
        **WIDTH_HINT,
        "data.num_validation": "; photographs are listed class by class, so that the last ones are no sample",
    },
)
EVALUATION = Engine(
    name="evaluation",
    title="an evaluation",
    job="remeasure.training.photographs.jobs:EvaluationJob",
    parts=("name", "mode", "weights", "batch_size", "transform", "normalisation"),
    supports={**ALONE, "data.split": ("test",), "control": ("none",)},
    trains=False,
    on_many_devices=True,
    takes_callbacks=False,
    takes_all_cores=True,
    advice="",
)
ENGINES = {engine.name: engine for engine in (SERIAL, BATCHED, NUMPY)}  # by spec.engine


def engine_of(spec: RunSpec) -> Engine:
    """The engine of a spec; engine=serial means, for recipes on photographs, those for photographs."""
    if spec.engine != "serial":
        return ENGINES[spec.engine]
    if isinstance(spec.recipe, Evaluation):
        return EVALUATION
    return PHOTOGRAPHS if spec.recipe.streaming else SERIAL


def find_world(spec: RunSpec, *, devices: int | None, num_nodes: int | None, device_kind: DeviceKind) -> World:
    """The processes that a run is divided among. Raises InputError as `worlds.find` and `worlds.refuse_uneven`."""
    if not engine_of(spec).on_many_devices:
        return worlds.ALONE
    world = worlds.find(devices=devices, num_nodes=num_nodes, device_kind=device_kind)
    worlds.refuse_uneven(spec, world=world)
    return world


def refuse_callbacks(spec: RunSpec) -> None:
    """Raise InputError if a callback of the spec cannot be made, or has a hook that its engine never calls."""
    if spec.callbacks:
        from remeasure.training.engines.callbacks import built  # Lightning: seconds to import

        built(spec.callbacks, in_blocks=engine_of(spec).in_blocks)


def can_be_batched(spec: RunSpec) -> bool:
    """Whether the batched engine could train this spec in place of the serial one."""
    return engine_of(spec) is SERIAL and not any(BATCHED.faults(spec))
