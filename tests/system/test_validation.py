"""Configs and ledger entries become dataclasses, or every fault is named at once."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf.errors import InterpolationResolutionError

from remeasure.config.compose import compose
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row
from remeasure.spec.recipe import Optimizer, Recipe, Schedule
from remeasure.spec.run import DataSpec
from remeasure.system import paths
from remeasure.system.validation import convert, did_you_mean
from remeasure.training import augment, losses, optimizers  # noqa: F401 - the choices

OPTIMIZER: dict[str, Any] = {
    "name": "adam",
    "lr_peak": 0.001,
    "weight_decay": None,
    "betas": None,
    "eps": None,
}
SCHEDULE: dict[str, Any] = {
    "name": "constant",
    "epochs_warmup": 0.0,
    "lr_start_factor": 0.0,
    "lr_end_factor": 0.0,
    "milestones": [],
    "gamma": None,
}
RECIPE: dict[str, Any] = {
    "name": "r",
    "epochs_total": 2,
    "batch_size": 8,
    "optimizer": OPTIMIZER,
    "schedule": SCHEDULE,
    "loss": {"name": "cross_entropy", "label_smoothing": 0.0, "l2_penalty": 0.0},
    "normalisation": {"mean": [0.0], "std": [1.0]},
    "augmentation": {"name": "none"},
    "resolution": None,
    "streaming": None,
    "averaging": None,
    "clip_norm": None,
}


def faults(cls: type, value: object, *, where: str = "") -> tuple[str, ...]:
    with pytest.raises(InputError) as refused:
        convert(cls, value, where=where)
    return refused.value.faults


# ---------------------------------------------------------------- what is taken


def test_plain_values_become_the_dataclass_with_tuples_and_floats() -> None:
    recipe = convert(Recipe, {**RECIPE, "optimizer": {**OPTIMIZER, "lr_peak": 1, "betas": [0.5, 0.9]}}, where="")
    assert recipe.optimizer.betas == (0.5, 0.9)
    assert repr(recipe.optimizer.lr_peak) == "1.0"  # so that 1 and 1.0 in YAML are one spec
    assert recipe.normalisation.mean == (0.0,)


# ---------------------------------------------------------------- what is refused


def test_faults_of_several_blocks_are_named_together_each_with_its_dotted_key() -> None:
    value = {
        **RECIPE,
        "batch_size": "eight",
        "optimizer": {**OPTIMIZER, "lr_peak": -1.0, "momentum": 0.9},
        "schedule": {**SCHEDULE, "epochs_warmup": -1.0},
        "colour": "red",
    }
    found = faults(Recipe, value, where="recipe")
    assert set(found) == {
        "recipe.batch_size: expected a valid integer, got 'eight'",
        "recipe.optimizer.lr_peak: expected a number above 0, got -1.0",
        "recipe.optimizer.momentum: optimizer 'adam' has no such argument; it has lr_peak, weight_decay, betas, eps",
        "recipe.schedule.epochs_warmup: expected 0 or more, got -1.0",
        "recipe.colour: no such key; valid: name, epochs_total, batch_size, optimizer, schedule, loss, "
        "normalisation, augmentation, resolution, streaming, averaging, clip_norm",
    }
    assert len(found) == 5


def test_the_plain_fields_beside_a_faulty_block_are_checked_too() -> None:
    """Up to the check that needs the block: whether the schedule fits into the epochs nobody can tell yet."""
    value = {**RECIPE, "batch_size": 0, "schedule": {**SCHEDULE, "name": "cosine", "epochs_warmup": "one"}}
    assert faults(Recipe, value, where="recipe") == (
        "recipe.schedule.epochs_warmup: expected a valid number, got 'one'",
        "recipe.batch_size: expected 1 or more, got 0",
    )


def test_the_fields_before_a_faulty_one_are_checked_too() -> None:
    assert faults(Optimizer, {**OPTIMIZER, "lr_peak": -1.0, "eps": "abc"}) == (
        "eps: expected a valid number, got 'abc'",
        "lr_peak: expected a number above 0, got -1.0",
    )


def test_without_a_place_a_fault_begins_with_its_key() -> None:
    assert faults(Optimizer, {**OPTIMIZER, "lr_peak": -1.0}) == ("lr_peak: expected a number above 0, got -1.0",)


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("weight_decy", " (did you mean 'weight_decay'?)"),
        ("lr", " (did you mean 'lr_peak'?)"),  # the beginning of a key
        ("zzz", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_valid_ones_and_a_guess(key: str, guess: str) -> None:
    (fault,) = faults(Recipe, {**RECIPE, "optimizer": {**OPTIMIZER, key: 1}}, where="recipe")
    has = f"optimizer 'adam' has no such argument{guess}; it has lr_peak, weight_decay, betas, eps"
    assert fault == f"recipe.optimizer.{key}: {has}"


def test_an_unknown_key_inside_a_list_entry_is_placed() -> None:
    entry = yaml.safe_load((paths.conf_dir() / "demo.yaml").read_text())["rows"]["logreg-digits"]
    entry["published"]["sources"][0]["wher"] = "p. 1"
    (fault,) = faults(Row, {**entry, "name": "logreg-digits"}, where="rows.logreg-digits")
    place = "rows.logreg-digits.published.sources.0.wher"
    assert fault == f"{place}: no such key (did you mean 'where'?); valid: citation, where, says, grade"


def test_a_missing_key_is_named() -> None:
    assert faults(Optimizer, {"name": "muon", "momentum": 0.9}, where="recipe.optimizer") == (
        "recipe.optimizer.lr_peak: missing; muon needs it",
        "recipe.optimizer.sgd_lr_peak: missing; muon needs it",
    )
    assert faults(Optimizer, {"lr_peak": 0.9}, where="recipe.optimizer") == ("recipe.optimizer.name: missing",)
    short = {key: value for key, value in SCHEDULE.items() if key != "gamma"}
    assert faults(Schedule, short, where="recipe.schedule") == ("recipe.schedule.gamma: missing",)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr_peak", "0.1", "lr_peak: expected a valid number, got '0.1'"),  # text is never read as a number
        ("lr_peak", True, "lr_peak: expected a valid number, got True"),
        ("lr_peak", None, "lr_peak: expected a valid number, got None"),
        ("name", "adm", "name: expected 'adam', 'adamw', 'sgd', 'rmsprop', 'lbfgs', 'muon' or module:Class, got 'adm'"),
        ("betas", 0.9, "betas: expected a list, got 0.9"),
        ("betas", [0.9], "betas.1: missing"),
        ("betas", [0.9, "x"], "betas.1: expected a valid number, got 'x'"),
        ("lr_peak", float("nan"), "lr_peak: expected a finite number, got nan"),
        ("lr_peak", float("inf"), "lr_peak: expected a finite number, got inf"),
        ("betas", [0.9, float("nan")], "betas.1: expected a finite number, got nan"),
        ("lr_peak", {1, 2}, "lr_peak: expected text, number, list or mapping, got {1, 2}"),
        ("eps", {3: 4}, "eps.3: expected text as key, got 3; quote it"),
        ("name", "\udcff", "name: expected text that UTF-8 can hold, got '\\udcff'"),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_expected_and_what_came(key: str, value: object, message: str) -> None:
    assert message in faults(Optimizer, {**OPTIMIZER, key: value})


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("lbfgs", "history_size", 1.5, "history_size: expected a valid integer, got 1.5"),
        ("sgd", "nesterov", 1, "nesterov: expected a valid boolean, got 1"),
    ],
)
def test_a_wrong_type_is_refused_in_any_optimiser(name: str, key: str, value: object, message: str) -> None:
    assert faults(Optimizer, {"name": name, "lr_peak": 0.1, key: value}) == (message,)


def test_a_date_that_yaml_made_of_unquoted_text_is_refused_by_key() -> None:
    value = {**RECIPE, "name": yaml.safe_load("2026-11-22")}
    assert faults(Recipe, value, where="recipe") == (
        "recipe.name: expected text, number, list or mapping, got datetime.date(2026, 11, 22)",
    )


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_block_that_is_no_mapping_is_refused(value: object) -> None:
    (fault,) = faults(Recipe, {**RECIPE, "schedule": value}, where="recipe")
    assert fault == f"recipe.schedule: expected an object, got {value!r}"


def test_a_choice_that_is_named_in_place_of_its_block_shows_where_its_name_goes() -> None:
    (fault,) = faults(Recipe, {**RECIPE, "optimizer": "sgd"}, where="recipe")
    assert fault == "recipe.optimizer: expected an object, got 'sgd'; recipe.optimizer.name=sgd chooses one"


def test_too_many_values_are_refused() -> None:
    spec = yaml.safe_load((paths.conf_dir() / "data/digits.yaml").read_text())
    (fault,) = faults(DataSpec, {**spec, "image_shape": [1, 8, 8, 3]}, where="data")
    assert fault.startswith("data.image_shape: Tuple should have at most 3 items")


def test_did_you_mean_guesses_a_near_word_a_beginning_or_nothing() -> None:
    assert did_you_mean("mpl2", ["mlp2", "lenet5"]) == " (did you mean 'mlp2'?)"
    assert did_you_mean("keras", ["article", "keras_mlp"]) == " (did you mean 'keras_mlp'?)"
    assert did_you_mean("vit", ["mlp2", "lenet5"]) == ""
    assert did_you_mean("x", iter(())) == ""


# ---------------------------------------------------------------- the command line's way in


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("recipe.optimizer.lr_peak=-0.1", "recipe.optimizer.lr_peak: expected a number above 0, got -0.1"),
        ("recipe.optimizer.lr_peak=nan", "recipe.optimizer.lr_peak: expected a finite number, got nan"),
        ("recipe.epochs_total=ten", "recipe.epochs_total: expected a valid integer, got 'ten'"),
        ("seed=-1", "seed: expected 0 or more, got -1"),
        (
            "+recipe.loss.smoothing=0.1",
            "recipe.loss.smoothing: loss 'cross_entropy' has no such argument (did you mean 'label_smoothing'?); ",
        ),
        ("precision=float16", "precision: expected 'auto', 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_the_command_lines_faults_begin_with_the_key_as_it_is_typed(override: str, fault: str) -> None:
    with pytest.raises(InputError) as refused:
        compose([override])
    assert refused.value.faults[0].startswith(fault)


def names(group: str, *, folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / group).glob("*.yaml"))


COLOUR = {"deit_b", "deit_b_eval", "deit_b_timm_eval", "vit_in21k_eval"}  # three channels' statistics, as published


def test_every_recipe_composes_with_every_model_and_every_data_set_and_each_keeps_its_name() -> None:
    """Each pair with a recipe, and not each triple, which took minutes."""
    every = {group: names(group, folder=paths.conf_dir()) for group in ("model", "data", "recipe")}
    assert {"logreg", "mlp2", "mlp4", "lenet5", "lenet5_remake", "resnet18", "vit_b16"} <= set(every["model"])
    assert {"mnist", "digits", "cifar10", "imagenet"} <= set(every["data"])
    assert {"article", "keras_mlp", "lbfgs", "lenet5", "lenet5_plain", "resnet18_fast"} <= set(every["recipe"])
    every["recipe"].remove("published_eval")  # it reads what a model's file says was published; few do
    models, data_sets, recipes = every["model"], every["data"], every["recipe"]
    most = max(len(models), len(data_sets))
    for index, (shift, recipe) in itertools.product(range(most), enumerate(recipes)):
        model, data = models[index % len(models)], data_sets[(index + shift) % len(data_sets)]
        overrides = [f"model={model}", f"data={data}", f"recipe={recipe}"]
        if recipe in COLOUR and data in ("mnist", "digits"):
            with pytest.raises(InputError, match=r"recipe.normalisation: expected 1 value, .*got 3"):
                compose(overrides)
            continue
        if recipe == "lbfgs" and data.startswith("imagenet_"):  # a penalty over its training images, which are none
            with pytest.raises(InterpolationResolutionError, match="division by zero"):
                compose(overrides)
            continue
        config = compose(overrides)
        assert (config.model.name, config.data.name, config.recipe.name) == (model, data, recipe)


def test_a_recipe_that_follows_the_data_takes_its_numbers() -> None:
    mnist, digits = (compose([f"data={name}", "recipe=lbfgs"]).recipe for name in ("mnist", "digits"))
    assert (mnist.batch_size, digits.batch_size) == (60000, 1297)
    assert (mnist.loss.l2_penalty, digits.loss.l2_penalty) == (1 / 60000, 1 / 1297)
    config = compose(["data=digits", "recipe=article"])
    assert config.recipe.normalisation.mean == config.data.pixel_mean
    assert config.recipe.normalisation.std == config.data.pixel_std


def test_the_schedule_of_a_composed_recipe_is_whole() -> None:
    assert convert(Schedule, SCHEDULE, where="") == compose(["recipe=article"]).recipe.schedule
