"""The identity of a run and the faults of its parts."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from remeasure.cli import compose
from remeasure.spec import (
    FIRST_TUNING_SEED,
    TRAINING_VERSION,
    Augmentation,
    Config,
    InputError,
    Loss,
    Normalisation,
    Optimizer,
    Recipe,
    RunSpec,
    Schedule,
    canonical_json,
    spec_sha256,
)

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
    "recipe.optimizer.momentum",
    "recipe.optimizer.nesterov",
    "recipe.optimizer.weight_decay",
    "recipe.optimizer.betas",
    "recipe.optimizer.alpha",
    "recipe.optimizer.eps",
    "recipe.optimizer.history_size",
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
    "recipe.clip_norm",
    "precision",
    "engine",
    "engine_width",
    "compile",
    "cpu_threads",
    "data_sha256",
    "training_version",
}
NO_IDENTITY = {  # names, and what the fingerprint already says
    "model.name",
    "recipe.name",
    "data.name",
    "data.source",
    "data.title",
    "data.image_shape",
    "data.num_train",
    "data.num_test",
    "data.pixel_mean",
    "data.pixel_std",
    "data.files_md5",
    "data.official_sha256",
    "data.known_copies",
}


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


# ---------------------------------------------------------------- faults

NO_AUGMENTATION = dict.fromkeys(["probability", "translation_pixels", "scaling", "squeezing", "shear"])
VALID: dict[type, dict[str, Any]] = {
    Optimizer: {**dict.fromkeys(field.name for field in dataclasses.fields(Optimizer)), "name": "adam", "lr_peak": 0.1},
    Schedule: {
        "name": "constant",
        "epochs_warmup": 0.0,
        "lr_start_factor": 0.0,
        "lr_end_factor": 0.0,
        "milestones": (),
        "gamma": None,
    },
    Loss: {"name": "cross_entropy", "label_smoothing": 0.0, "l2_penalty": 0.0},
    Augmentation: {"name": "none", **NO_AUGMENTATION},
    Normalisation: {"mean": (0.5,), "std": (0.5,)},
}
NAN = float("nan")
STEPS = {"name": "milestones", "milestones": (1, 2), "gamma": 0.1}
AFFINE = {"name": "affine", **dict.fromkeys(NO_AUGMENTATION, 0.5)}

FAULTS: list[tuple[type, dict[str, Any], str]] = [
    (Optimizer, {"lr_peak": 0.0}, "lr_peak: expected a number above 0, got 0.0"),
    (Optimizer, {"lr_peak": NAN}, "lr_peak: expected a number above 0, got nan"),
    (Optimizer, {"weight_decay": -0.1}, "weight_decay: expected 0 or more, got -0.1"),
    (Optimizer, {"name": "sgd", "momentum": 1.0}, "momentum: expected a number in [0, 1), got 1.0"),
    (Optimizer, {"name": "rmsprop", "alpha": -0.5}, "alpha: expected a number in [0, 1), got -0.5"),
    (Optimizer, {"betas": (0.9, 1.0)}, "betas: expected two numbers in [0, 1), got [0.9, 1.0]"),
    (Optimizer, {"eps": 0.0}, "eps: expected a number above 0, got 0.0"),
    (Optimizer, {"name": "lbfgs", "history_size": 0}, "history_size: expected 1 or more, got 0"),
    (Optimizer, {"momentum": 0.9}, "momentum: adam has no such argument; it has weight_decay, betas, eps"),
    (Optimizer, {"name": "adamw", "alpha": 0.9}, "alpha: adamw has no such argument; it has weight_decay, betas, eps"),
    (Optimizer, {"name": "sgd", "eps": 0.1}, "eps: sgd has no such argument; it has momentum, nesterov, weight_decay"),
    (
        Optimizer,
        {"name": "rmsprop", "nesterov": True},
        "nesterov: rmsprop has no such argument; it has alpha, eps, momentum, weight_decay",
    ),
    (
        Optimizer,
        {"name": "lbfgs", "weight_decay": 0.0},
        "weight_decay: lbfgs has no such argument; it has history_size",
    ),
    (Optimizer, {"name": "sgd", "nesterov": True}, "nesterov: needs a momentum above 0"),
    (Optimizer, {"name": "sgd", "nesterov": True, "momentum": 0.0}, "nesterov: needs a momentum above 0"),
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
    (Loss, {"label_smoothing": 1.0}, "label_smoothing: expected a fraction in [0, 1), got 1.0"),
    (Loss, {"label_smoothing": -0.1}, "label_smoothing: expected a fraction in [0, 1), got -0.1"),
    (Loss, {"l2_penalty": -0.1}, "l2_penalty: expected 0 or more, got -0.1"),
    (Augmentation, {"shear": 0.1}, "shear: augmentation 'affine' needs it, and 'none' takes none"),
    (Augmentation, {**AFFINE, "scaling": None}, "scaling: augmentation 'affine' needs it, and 'none' takes none"),
    (Augmentation, {**AFFINE, "squeezing": -1.0}, "squeezing: expected 0 or more, got -1.0"),
    (Augmentation, {**AFFINE, "probability": 1.5}, "probability: expected a fraction in [0, 1], got 1.5"),
    (Normalisation, {"mean": (0.5, 0.5)}, "mean and std: expected equally many values, got 2 and 1"),
    (Normalisation, {"mean": (), "std": ()}, "mean and std: expected equally many values, got 0 and 0"),
    (Normalisation, {"std": (0.0,)}, "std: expected numbers above 0, got [0.0]"),
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


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop", "lbfgs"])
def test_an_optimiser_hands_on_only_what_is_set(name: str) -> None:
    assert Optimizer(**{**VALID[Optimizer], "name": name}).arguments() == {}
    key = {"lbfgs": "history_size", "rmsprop": "alpha"}.get(name, "weight_decay")
    value = 5 if name == "lbfgs" else 0.5
    assert Optimizer(**{**VALID[Optimizer], "name": name, key: value}).arguments() == {key: value}


def a_recipe(**changes: object) -> Recipe:
    blocks = {"optimizer": Optimizer, "schedule": Schedule, "loss": Loss}
    blocks |= {"normalisation": Normalisation, "augmentation": Augmentation}
    parts = {key: cls(**VALID[cls]) for key, cls in blocks.items()}
    return Recipe(**{"name": "r", "epochs_total": 3, "batch_size": 8, "clip_norm": None, **parts, **changes})


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


def test_normalisation_has_one_value_or_one_a_channel() -> None:
    three = dataclasses.replace(a_spec().recipe, normalisation=Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3))
    message = "recipe.normalisation: expected 1 value, or 1 for the channels, got 3"
    assert fault(a_spec(), recipe=three) == message
    colour = dataclasses.replace(a_spec().data, image_shape=(3, 32, 32))
    assert dataclasses.replace(a_spec(), recipe=three, data=colour).recipe == three
    assert dataclasses.replace(a_spec(), data=colour).data == colour  # one value serves all three


def test_a_spec_out_of_range_is_refused() -> None:
    assert fault(a_spec(), cpu_threads=0) == "cpu_threads: expected 1 or more, got 0"
    assert fault(a_spec(), engine_width=2).endswith("the serial engine trains one seed at a time, got 2")


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


def test_the_validation_split_needs_some_images_and_leaves_some() -> None:
    mnist = compose([]).data
    message = "num_validation: split=validation needs some, such as data.num_validation=10000"
    assert fault(mnist, split="validation") == message
    for number in (-1, 60_000):
        assert fault(mnist, num_validation=number) == f"num_validation: expected 0 to 59999, got {number}"
    assert dataclasses.replace(mnist, num_validation=59_999).num_validation == 59_999
