"""One composed config, conf/train.yaml with its groups, and the RunSpec built from it."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, Literal, get_args

from remeasure.spec.base import (
    CONFIG_NAME,
    FIRST_TUNING_SEED,
    Control,
    Count,
    CountOrZero,
    DeviceKind,
    Engine,
    Keep,
    Strict,
    Within,
)
from remeasure.spec.plugin import Plugin
from remeasure.spec.recipe import Evaluation, Recipe
from remeasure.spec.run import TRAINING_VERSION, DataSpec, ModelSpec, RunSpec, input_shape

CountOrNull = Annotated[int | None, Within("1 or more, or null", lambda value: value >= 1)]


@dataclass(frozen=True, kw_only=True)
class Debug(Strict):
    """A debugging mode in place of a run (conf/debug). `num_images`: batch size; null: the recipe's."""

    name: Literal["overfit_batch", "one_step", "profile"]
    num_images: Count | None
    num_steps: Count


@dataclass(frozen=True, kw_only=True)
class Config(Strict):
    """One composed config: conf/train.yaml with its groups, every interpolation resolved.

    `precision`: auto is bfloat16 where the device computes in it, else float32 (`resolve.settled`). `evaluate`: a run
    to score again in place of a training. `predict`: images, or folders of them, for its network. `devices` (of each
    machine), `num_nodes`: of a run on photographs; null: as torchrun or srun says, else all GPUs of this machine.
    """

    model: ModelSpec
    data: DataSpec
    recipe: Recipe | Evaluation
    seed: CountOrZero
    precision: Literal["auto", "float32", "bfloat16"]
    engine: Engine
    engine_width: Annotated[Count, Within("at most 1000", lambda width: width <= 1000)]
    compile: bool
    channels_last: bool
    steps_per_block: Count
    cpu_threads: Annotated[Count, Within("at most 1024", lambda num: num <= 1024)]
    control: Control
    callback: dict[str, Plugin]
    device: str
    devices: CountOrNull
    num_nodes: CountOrNull
    fresh: bool
    print_epochs: bool
    verbosity: Literal["quiet", "normal", "verbose"]
    doctor: bool
    keep: Keep
    evaluate: str | None
    predict: str | tuple[str, ...] | None
    observer: dict[str, Plugin]
    debug: Debug | None

    def _faults(self) -> Iterable[str]:
        if self.device not in ("auto", *get_args(DeviceKind)):
            yield f"device: expected auto, {', '.join(get_args(DeviceKind))}, got {self.device!r}"
        if self.predict is not None and self.evaluate is None:
            yield "predict: needs the run whose network predicts, evaluate=<run folder or MLflow run id>"
        for group in ("model", "data", "recipe"):
            if not CONFIG_NAME.fullmatch(name := getattr(self, group).name):
                yield f"{group}.name: expected up to 100 letters, digits, '_', '.' and '-', got {name[:120]!r}"
        if self.data.split == "validation" and 0 <= self.seed < FIRST_TUNING_SEED:
            yield f"seed: tuning on the validation split uses seeds from {FIRST_TUNING_SEED} up, got {self.seed}"
        if isinstance(self.recipe, Evaluation) and self.seed:
            yield f"seed: an evaluation draws nothing, so its seed is 0, got {self.seed}"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the model's input: the images' own shape, or the recipe's crop of a photograph."""
        return input_shape(self.data, recipe=self.recipe)

    def spec(self, *, data_sha256: str, weights_sha256: str | None = None) -> RunSpec:
        """The RunSpec, with the fingerprints of its data and, for an evaluation, of its published weights.

        A precision that is still `auto` becomes bfloat16.
        """
        # What both have by the same name.
        shared = {entry.name: getattr(self, entry.name) for entry in fields(RunSpec) if hasattr(self, entry.name)}
        shared["precision"] = "bfloat16" if self.precision == "auto" else self.precision
        return RunSpec(
            **shared,
            data_sha256=data_sha256,
            weights_sha256=weights_sha256,
            training_version=TRAINING_VERSION,
            callbacks=tuple(self.callback.values()),
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A config that trains."""

    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """A config that evaluates published weights."""

    recipe: Evaluation
