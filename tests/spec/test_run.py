"""The identity of a run and the faults of its parts."""

import csv
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from remeasure.config.compose import compose
from remeasure.judging import ledger
from remeasure.spec.base import FIRST_TUNING_SEED, InputError, canonical_json
from remeasure.spec.config import Config
from remeasure.spec.photographs import Transform
from remeasure.spec.recipe import Averaging, Evaluation, Normalisation, Recipe, Resolution, Schedule
from remeasure.spec.run import TRAINING_VERSION, RunSpec, spec_sha256
from remeasure.system import paths
from remeasure.training.augment import NoAugmentation
from remeasure.training.losses import CrossEntropy
from remeasure.training.optimizers import Adam

# Everything that a RunSpec holds, each with the decision whether it can move a weight. A new field must be put in one.
IDENTITY = {
    "model.builder",
    "model.options",
    "data.num_classes",
    "data.num_validation",
    "data.split",
    "recipe.epochs_total",
    "recipe.batch_size",
    "recipe.optimizer.name",
    "recipe.optimizer.lr_peak",
    "recipe.optimizer.weight_decay",
    "recipe.optimizer.betas",
    "recipe.optimizer.eps",
    "recipe.schedule.name",
    "recipe.schedule.epochs_warmup",
    "recipe.schedule.lr_start_factor",
    "recipe.schedule.lr_end_factor",
    "recipe.schedule.milestones",
    "recipe.schedule.gamma",
    "recipe.loss.name",
    "recipe.loss.label_smoothing",
    "recipe.loss.l2_penalty",
    "recipe.normalisation.mean",
    "recipe.normalisation.std",
    "recipe.augmentation.name",
    "recipe.augmentation.probability",
    "recipe.augmentation.translation_pixels",
    "recipe.augmentation.scaling",
    "recipe.augmentation.squeezing",
    "recipe.augmentation.shear",
    "recipe.resolution",
    "recipe.streaming",
    "recipe.averaging",
    "recipe.clip_norm",
    "precision",
    "engine",
    "engine_width",
    "compile",
    "channels_last",
    "steps_per_block",
    "cpu_threads",
    "data_sha256",
    "weights_sha256",
    "training_version",
    "control",
    "callbacks",
}
NO_IDENTITY = {  # names, and what the fingerprint already says
    "model.name",
    "model.weights",
    "model.published",
    "recipe.name",
    "data.name",
    "data.source",
    "data.title",
    "data.image_shape",
    "data.num_train",
    "data.num_test",
    "data.pixel_mean",
    "data.pixel_std",
    "data.class_names",
    "data.files_md5",
    "data.official_sha256",
    "data.known_copies",
}


RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted(path.stem for path in (RESULTS / "specs").glob("*.yaml"))


def records(row: str) -> list[dict[str, str]]:
    """The lines of results/runs/<row>.csv."""
    with (RESULTS / f"runs/{row}.csv").open() as lines:
        found = list(csv.DictReader(lines))
    assert found
    return found


@functools.cache
def a_spec() -> RunSpec:
    return compose(["model=lenet5"]).spec(data_sha256="d" * 64)


def leaves(value: object, *, key: str = "") -> Iterator[str]:
    """The dotted key of every field that is no dataclass itself."""
    assert dataclasses.is_dataclass(value)
    for field in dataclasses.fields(value):
        inner, dotted = getattr(value, field.name), f"{key}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, key=dotted)
        else:
            yield dotted


def changed(spec: dict[str, Any], dotted: str) -> dict[str, Any]:
    """A copy in which that one value is another."""
    key, _, rest = dotted.partition(".")
    return {**spec, key: changed(spec[key], rest) if rest else ["another", spec[key]]}


# ---------------------------------------------------------------- identity


def test_every_field_of_a_spec_is_decided_to_be_identity_or_not() -> None:
    found = list(leaves(a_spec()))
    assert sorted(found) == sorted(IDENTITY | NO_IDENTITY)
    assert not IDENTITY & NO_IDENTITY


@pytest.mark.parametrize("field", sorted(IDENTITY))
def test_another_value_of_what_can_move_a_weight_is_another_spec(field: str) -> None:
    spec = dataclasses.asdict(a_spec())
    assert spec_sha256(changed(spec, field)) != spec_sha256(spec)


@pytest.mark.parametrize("field", sorted(NO_IDENTITY))
def test_names_paths_and_checksums_are_no_part_of_the_identity(field: str) -> None:
    spec = dataclasses.asdict(a_spec())
    assert spec_sha256(changed(spec, field)) == spec_sha256(spec)


def test_two_fields_never_stand_for_each_other() -> None:
    """The values are hashed with their keys: no two single changes give the same hash."""
    spec = dataclasses.asdict(a_spec())
    assert len({spec_sha256(changed(spec, field)) for field in IDENTITY}) == len(IDENTITY)


def test_the_hash_is_of_the_spec_also_as_json_or_yaml_hold_it() -> None:
    spec = a_spec()
    assert spec.spec_sha256 == spec_sha256(dataclasses.asdict(spec))
    assert spec_sha256(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec.spec_sha256
    assert len(spec.spec_sha256) == 64


def test_an_option_of_a_model_changes_the_spec_and_the_order_of_options_does_not() -> None:
    spec = a_spec()
    options = spec.model.options
    other = {**options, "variant": "remake"}
    turned = dict(reversed(options.items()))
    hashes = [
        dataclasses.replace(spec, model=dataclasses.replace(spec.model, options=each)).spec_sha256
        for each in (options, turned, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_seed_device_and_fresh_are_no_part_of_the_spec() -> None:
    one, other = compose(["seed=0"]), compose(["seed=7", "device=cpu", "fresh=true"])
    assert one.spec(data_sha256="d") == other.spec(data_sha256="d")
    assert one.spec(data_sha256="d").training_version == TRAINING_VERSION


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": (1, 2.5), "a": {"d": None, "c": "ü"}}) == '{"a":{"c":"ü","d":null},"b":[1,2.5]}'
    assert hashlib.sha256(canonical_json({}).encode()).hexdigest().startswith("44136fa355b3678a")  # of "{}"
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Out of range float values"):
            canonical_json([value])


def test_an_input_error_holds_one_line_for_each_fault() -> None:
    error = InputError("a: wrong", "b: wrong")
    assert error.faults == ("a: wrong", "b: wrong")
    assert str(error) == "a: wrong\nb: wrong"


@pytest.mark.parametrize("row", COMMITTED)
def test_the_specs_of_committed_records_keep_their_hash(row: str) -> None:
    """Keys that came later do not move the identity of what was measured before."""
    recorded = yaml.safe_load((RESULTS / f"specs/{row}.yaml").read_text())
    assert {spec_sha256(recorded)} == {record["spec_sha256"] for record in records(row)}


@pytest.mark.parametrize("row", [row for row in COMMITTED if row.endswith(("-mnist", "-mnist-plain"))])
def test_todays_configs_of_the_mnist_rows_are_what_was_measured(row: str) -> None:
    entry = ledger.read(paths.conf_dir() / "benchmark.yaml")[row]
    config = compose([f"{key}={getattr(entry, key)}" for key in ("model", "data", "recipe")])
    for record in records(row):
        assert config.spec(data_sha256=record["data_sha256"]).spec_sha256 == record["spec_sha256"]


def test_all_mnist_rows_have_committed_records() -> None:
    """So that the two tests above do not pass on nothing."""
    assert {"logreg-mnist", "mlp2-mnist", "mlp4-mnist", "lenet5-mnist", "lenet5-mnist-plain"} <= set(COMMITTED)


def test_a_new_key_counts_as_soon_as_it_says_something_new() -> None:
    """Flipped one by one from what they meant when they did not exist."""
    spec = dataclasses.asdict(a_spec())
    flips: list[tuple[str, object]] = [("channels_last", True), ("steps_per_block", 10), ("weights_sha256", "w" * 64)]
    changed_specs = [{**spec, key: value} for key, value in flips]
    recipe = spec["recipe"]
    small = {"pixels": (16,), "until_epoch": (1,)}
    changed_specs += [{**spec, "recipe": {**recipe, "resolution": small}}]
    changed_specs += [{**spec, "recipe": {**recipe, "averaging": {"from_epoch": 1, "decay": 0.9}}}]
    changed_specs += [{**spec, "recipe": {**recipe, "optimizer": {**recipe["optimizer"], "sgd_lr_peak": 0.1}}}]
    cropped = (("pad_pixels", 0), ("flip_probability", 0.0), ("cutout_pixels", 0), ("padding", "reflect"))
    for key, value in (*cropped, ("flips", "alternating")):
        changed_specs.append({**spec, "recipe": {**recipe, "augmentation": {**recipe["augmentation"], key: value}}})
    assert len({spec_sha256(each) for each in (spec, *changed_specs)}) == 12
    for key, value in (("channels_last", False), ("steps_per_block", 100), ("weights_sha256", None)):
        assert spec_sha256({name: it for name, it in spec.items() if name != key}) == spec_sha256({**spec, key: value})


def test_batch_normalisation_counts_where_there_is_some() -> None:
    plain, normalised = (compose(["model=mlp2", f"model.options.batch_norm={value}"]) for value in ("false", "true"))
    assert plain.spec(data_sha256="").spec_sha256 != normalised.spec(data_sha256="").spec_sha256


# ---------------------------------------------------------------- faults

VALID: dict[type, dict[str, Any]] = {
    Adam: {"lr_peak": 0.1},
    Schedule: {
        "name": "constant",
        "epochs_warmup": 0.0,
        "lr_start_factor": 0.0,
        "lr_end_factor": 0.0,
        "milestones": (),
        "gamma": None,
    },
    CrossEntropy: {},
    NoAugmentation: {},
    Normalisation: {"mean": (0.5,), "std": (0.5,)},
    Resolution: {"pixels": (16,), "until_epoch": (1,)},
    Averaging: {"from_epoch": 1, "decay": 0.9},
    Transform: {"crop_pixels": 224, "crop_pct": 0.875, "interpolation": "bicubic"},
}
NAN = float("nan")
STEPS = {"name": "milestones", "milestones": (1, 2), "gamma": 0.1}

FAULTS: list[tuple[type, dict[str, Any], str]] = [
    (Schedule, {"epochs_warmup": -0.5}, "epochs_warmup: expected 0 or more, got -0.5"),
    (Schedule, {"epochs_warmup": NAN}, "epochs_warmup: expected 0 or more, got nan"),
    (Schedule, {"lr_start_factor": 1.5}, "lr_start_factor: expected a fraction in [0, 1], got 1.5"),
    (Schedule, {"lr_end_factor": -0.1}, "lr_end_factor: expected a fraction in [0, 1], got -0.1"),
    (
        Schedule,
        {"milestones": (1,)},
        "milestones: schedule 'milestones' needs a list of epochs, and no other schedule takes one",
    ),
    (
        Schedule,
        {**STEPS, "milestones": ()},
        "milestones: schedule 'milestones' needs a list of epochs, and no other schedule takes one",
    ),
    (Schedule, {**STEPS, "milestones": (2, 1)}, "milestones: expected rising epochs from 1 up, got [2, 1]"),
    (Schedule, {**STEPS, "milestones": (2, 2)}, "milestones: expected rising epochs from 1 up, got [2, 2]"),
    (Schedule, {**STEPS, "milestones": (0, 2)}, "milestones: expected rising epochs from 1 up, got [0, 2]"),
    (Schedule, {"gamma": 0.1}, "gamma: schedule 'milestones' needs one, and no other schedule takes one"),
    (Schedule, {**STEPS, "gamma": None}, "gamma: schedule 'milestones' needs one, and no other schedule takes one"),
    (Schedule, {**STEPS, "gamma": 1.0}, "gamma: expected a fraction in (0, 1), got 1.0"),
    (Averaging, {"from_epoch": 0, "decay": 0.9}, "from_epoch: expected 1 or more, got 0"),
    (Averaging, {"from_epoch": 1, "decay": 1.0}, "decay: expected a fraction in (0, 1), got 1.0"),
    (Normalisation, {"mean": (0.5, 0.5)}, "mean and std: expected equally many values, got 2 and 1"),
    (Normalisation, {"mean": (), "std": ()}, "mean and std: expected equally many values, got 0 and 0"),
    (Normalisation, {"std": (0.0,)}, "std: expected numbers above 0, got [0.0]"),
    (Resolution, {"pixels": (16, 24)}, "pixels and until_epoch: expected equally many, got 2 and 1"),
    (Resolution, {"pixels": (), "until_epoch": ()}, "pixels and until_epoch: expected equally many, got 0 and 0"),
    (Resolution, {"pixels": (0,)}, "pixels: expected 1 or more, got [0]"),
    (Resolution, {"until_epoch": (0,)}, "until_epoch: expected rising epochs from 1 up, got [0]"),
    (
        Resolution,
        {"pixels": (16, 24), "until_epoch": (4, 4)},
        "until_epoch: expected rising epochs from 1 up, got [4, 4]",
    ),
    (
        Resolution,
        {"pixels": (16, 24), "until_epoch": (8, 4)},
        "until_epoch: expected rising epochs from 1 up, got [8, 4]",
    ),
    (Transform, {"crop_pixels": 0}, "crop_pixels: expected 1 or more, got 0"),
    (Transform, {"crop_pct": 0.0}, "crop_pct: expected a fraction in (0, 1], got 0.0"),
    (Transform, {"crop_pct": 1.1}, "crop_pct: expected a fraction in (0, 1], got 1.1"),
]


def fault(value: object, **changes: object) -> str:
    """What the dataclass says to these changes."""
    with pytest.raises(ValueError) as refused:
        dataclasses.replace(value, **changes)  # type: ignore[type-var]
    return str(refused.value)


@pytest.mark.parametrize(("cls", "changes", "message"), FAULTS, ids=lambda it: "" if isinstance(it, str) else None)
def test_a_value_out_of_its_range_is_refused_with_the_key_the_range_and_the_value(
    cls: type, changes: dict[str, Any], message: str
) -> None:
    assert fault(cls(**VALID[cls]), **changes) == message


def test_faults_of_one_block_are_named_together() -> None:
    found = fault(Schedule(**VALID[Schedule]), epochs_warmup=-1.0, lr_start_factor=2.0, gamma=0.5)
    assert [line.split(":")[0] for line in found.splitlines()] == ["epochs_warmup", "lr_start_factor", "gamma"]


def a_recipe(**changes: object) -> Recipe:
    blocks = {"optimizer": Adam, "schedule": Schedule, "loss": CrossEntropy}
    blocks |= {"normalisation": Normalisation, "augmentation": NoAugmentation}
    parts = {key: cls(**VALID[cls]) for key, cls in blocks.items()}
    unset = dict.fromkeys(("resolution", "streaming", "averaging", "clip_norm"))
    return Recipe(**{"name": "r", "epochs_total": 3, "batch_size": 8, **unset, **parts, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs_total": 0}, "epochs_total: expected 1 or more, got 0\n"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"clip_norm": 0.0}, "clip_norm: expected a number above 0 or null, got 0.0"),
        ({"clip_norm": NAN}, "clip_norm: expected a number above 0 or null, got nan"),
    ],
)
def test_a_recipe_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    assert fault(a_recipe(), **changes).startswith(message)


@pytest.mark.parametrize("schedule", [{"epochs_warmup": 3.0}, {**STEPS, "milestones": (1, 3)}])
def test_a_schedule_that_is_longer_than_the_run_is_refused(schedule: dict[str, Any]) -> None:
    longer = Schedule(**{**VALID[Schedule], **schedule})
    assert fault(a_recipe(), schedule=longer) == (
        "schedule: reaches to epoch 3, but the run ends after epochs_total=3; shorten the schedule or train longer"
    )
    assert a_recipe(schedule=longer, epochs_total=4).schedule == longer


def test_a_milestone_inside_the_warm_up_is_refused() -> None:
    hidden = Schedule(**{**VALID[Schedule], **STEPS, "epochs_warmup": 1.0})
    message = "schedule: a milestone lies in the warm-up, which ends after epoch 1"
    assert fault(a_recipe(), schedule=hidden) == message
    assert a_recipe(schedule=dataclasses.replace(hidden, epochs_warmup=0.5)).schedule.epochs_warmup == 0.5


def test_small_images_until_the_very_end_are_refused() -> None:
    small = Resolution(pixels=(16, 24), until_epoch=(1, 3))
    assert fault(a_recipe(), resolution=small) == (
        "resolution: small images until epoch 3, but the run ends after epochs_total=3; the last epochs must see "
        "all pixels"
    )
    assert a_recipe(resolution=small, epochs_total=4).resolution == small


def test_pixels_at_is_the_size_in_that_epoch_and_none_once_all_pixels_are_seen() -> None:
    small = Resolution(pixels=(16, 24), until_epoch=(2, 3))
    assert [small.pixels_at(epoch) for epoch in range(6)] == [16, 16, 24, None, None, None]


def an_evaluation(**changes: object) -> Evaluation:
    parts = {"transform": Transform(**VALID[Transform]), "normalisation": Normalisation(**VALID[Normalisation])}
    return Evaluation(**{"name": "e", "mode": "evaluate", "weights": "w", "batch_size": 8, **parts, **changes})


def test_an_evaluation_trains_no_epoch_and_takes_images_in_batches() -> None:
    assert an_evaluation().epochs_total == 0
    assert fault(an_evaluation(), batch_size=0) == "batch_size: expected 1 or more, got 0"
    spec = dataclasses.replace(a_spec(), recipe=an_evaluation())
    assert (a_spec().mode, spec.mode) == ("train", "evaluate")


@pytest.mark.parametrize("flip", [{"weights": "others"}, {"batch_size": 9}, {"weights_sha256": "w" * 64}])
def test_another_evaluation_is_another_spec(flip: dict[str, Any]) -> None:
    spec = dataclasses.replace(a_spec(), recipe=an_evaluation())
    if "weights_sha256" in flip:
        other = dataclasses.replace(spec, **flip)
    else:
        other = dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, **flip))
    assert other.spec_sha256 != spec.spec_sha256


def test_normalisation_has_one_value_or_one_a_channel() -> None:
    three = dataclasses.replace(a_spec().recipe, normalisation=Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3))
    message = "recipe.normalisation: expected 1 value, or 1 for the channels, got 3"
    assert fault(a_spec(), recipe=three) == message
    colour = dataclasses.replace(a_spec().data, image_shape=(3, 32, 32))
    assert dataclasses.replace(a_spec(), recipe=three, data=colour).recipe == three
    assert dataclasses.replace(a_spec(), data=colour).data == colour  # one value serves all three


def test_a_spec_out_of_range_is_refused() -> None:
    assert fault(a_spec(), cpu_threads=0) == "cpu_threads: expected 1 or more, got 0"
    assert fault(a_spec(), steps_per_block=0) == "steps_per_block: expected 1 or more, got 0"
    assert fault(a_spec(), engine_width=0) == "engine_width: expected 1 or more, got 0"


# ---------------------------------------------------------------- seeds and splits


def the_config(**changes: object) -> Config:
    return dataclasses.replace(compose([]), **changes)


def test_ledger_seeds_never_tune() -> None:
    tuning = dataclasses.replace(compose([]).data, num_validation=10_000, split="validation")
    assert FIRST_TUNING_SEED == 1000
    message = "seed: tuning on the validation split uses seeds from 1000 up, got 999"
    assert fault(the_config(), data=tuning, seed=999) == message
    assert the_config(data=tuning, seed=1000).seed == 1000
    assert the_config(seed=999).seed == 999


def test_a_negative_seed_is_refused() -> None:
    assert fault(the_config(), seed=-1) == "seed: expected 0 or more, got -1"


def test_pixels_have_one_mean_for_all_channels_or_one_for_each() -> None:
    mnist = compose([]).data
    assert fault(mnist, pixel_mean=()) == "pixel_mean: expected 1 value, or one for each of 1 channels, got 0"
    assert fault(mnist, pixel_std=(0.3, 0.3)) == "pixel_std: expected 1 value, or one for each of 1 channels, got 2"


def test_the_validation_split_needs_some_images_and_leaves_some() -> None:
    mnist = compose([]).data
    message = "num_validation: split=validation needs some, such as data.num_validation=10000"
    assert fault(mnist, split="validation") == message
    for number in (-1, 60_000):
        assert fault(mnist, num_validation=number) == f"num_validation: expected 0 to 59999, got {number}"
    assert dataclasses.replace(mnist, num_validation=59_999).num_validation == 59_999
