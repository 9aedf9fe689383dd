"""Whatever stands on train.py's command line or in a config file: it works, or is refused by name."""

import functools
import operator
import re
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.badinput.entry import Entry, assert_well_ended, changed, examples, untouched
from tests.badinput.strategies import arguments, mutations
from tests.support.project import CHECKOUT

SHORT = ("model=mlp2", "data=digits", "recipe=article", "recipe.epochs_total=1")
CONFIGS = (
    *("train.yaml", "recipe_base.yaml", "recipe/article.yaml", "model/mlp2.yaml", "data/digits.yaml"),
    *("recipe/lbfgs.yaml", "experiment/tuning.yaml"),
)
# What a message may name that is not among the words of the command line.
ALSO = ("data: these files are missing", "diverged")


def words(*texts: str) -> set[str]:
    """What a message about these texts may name: the texts or how they begin, and the keys and values in them."""
    return {*(text[:100] or "''" for text in texts), *(word for text in texts for word in re.findall(r"\w{2,}", text))}


def assert_says(spec: dict[str, Any], *, override: str) -> None:
    """An accepted key=number stands in the spec as that number."""
    key, _, value = override.partition("=")
    first, *rest = key.split(".")
    if first in spec and re.fullmatch(r"-?\d+(\.\d+)?", value):
        found = functools.reduce(operator.getitem, rest, spec[first])
        assert found == pytest.approx(float(value)), override


@examples(16)
@given(given_arguments=arguments)
def test_whatever_the_command_line_says_it_works_or_is_refused_by_name(
    entry: Entry, given_arguments: list[str]
) -> None:
    with untouched(entry):
        ended = entry("train.py", *SHORT, *given_arguments)
    assert_well_ended(ended, naming=words(*given_arguments) | {*ALSO})
    for spec in entry.specs if len(given_arguments) == 1 else ():
        assert_says(asdict(spec), override=given_arguments[0])


@examples(8)
@given(st.sampled_from(CONFIGS), st.data())
def test_whatever_a_config_file_holds_it_works_or_is_refused_by_name(
    entry: Entry, name: str, data: st.DataObject
) -> None:
    path = entry.root / "conf" / name
    before = path.read_bytes()
    content = data.draw(mutations(before))
    also = ["recipe=lbfgs"] if "lbfgs" in name else ["experiment=tuning"] if "tuning" in name else []
    with untouched(entry), changed(path, content=content):
        ended = entry("train.py", *SHORT, *also)
    keys = re.findall(r"[\w.]{2,}", (before + content).decode(errors="replace"))
    assert_well_ended(ended, naming={*keys, path.stem})


# ---------------------------------------------------------------- all at once

# Faults of one config that have nothing to do with each other: override, and what its line must begin with.
FAULTS = {
    "seed=-1": "seed: expected 0 or more, got -1",
    "precision=float16": "precision: ",
    "compile=3": "compile: ",
    "cpu_threads=0": "cpu_threads: expected 1 or more, got 0",
    "steps_per_block=0": "steps_per_block: expected 1 or more, got 0",
    "engine_width=4000": "engine_width: expected at most 1000, got 4000",
    "device=tpu": "device: expected auto, cpu, cuda, mps, got 'tpu'",
    "control=chaos": "control: ",
    "model.name=a/b": "model.name: ",
    "model.options.dropout=[2.0]": "model.options.dropout.0: ",
    "model.options.activation=cubic": "model.options.activation: ",
    "data.source=tape": "data.source: no such reader 'tape'",
    "data.num_classes=0": "data.num_classes: expected 1 or more, got 0",
    "data.num_validation=-3": "data.num_validation: expected 0 to 1296, got -3",
    "recipe.batch_size=0": "recipe.batch_size: expected 1 or more, got 0",
    "recipe.clip_norm=-2": "recipe.clip_norm: expected a number above 0 or null, got -2",
    "recipe.optimizer.lr_peak=-1": "recipe.optimizer.lr_peak: expected a number above 0, got -1",
    "recipe.optimizer.eps=abc": "recipe.optimizer.eps: ",
    "recipe.schedule.gamma=2": "recipe.schedule.gamma: ",
    "recipe.loss.label_smoothing=1": "recipe.loss.label_smoothing: expected a fraction in [0, 1), got 1",
    "recipe.normalisation.std=[0.0]": "recipe.normalisation.std: expected numbers above 0",
    "recipe.augmentation.probability=1": "recipe.augmentation.probability: augmentation 'none' has no such argument",
    "recipe.normalisation.mean=[nan]": "recipe.normalisation.mean.0: expected a finite number, got nan",
    "recipe.optimizer.weight_decay=1e400": "recipe.optimizer.weight_decay: expected a finite number, got inf",
    f"recipe.epochs_total={'9' * 400}": "recipe.epochs_total: expected a number of at most",
}


@examples(4)
@given(st.lists(st.sampled_from(sorted(FAULTS)), min_size=2, max_size=4, unique=True))
@example(["recipe.clip_norm=-2", f"recipe.epochs_total={'9' * 400}", "recipe.schedule.gamma=2"])
def test_all_faults_of_a_config_are_named_at_once(entry: Entry, planted: list[str]) -> None:
    ended = entry("train.py", *SHORT, *planted)
    assert ended.status == 2
    lines = ended.stderr.splitlines()
    assert [fault for fault in planted if not any(line.startswith(FAULTS[fault]) for line in lines)] == [], lines


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ("modle=mlp4", "modle: no such key (did you mean 'model'?)"),
        ("recipe.lr=1", "recipe.lr: no such key"),
        ("data=digitz", "data: there is no 'digitz' (did you mean 'digits'?)"),
        ("a b", "a b: expected key=value"),
    ],
)
def test_the_first_argument_that_hydra_refuses_is_named(entry: Entry, wrong: str, fault: str) -> None:
    ended = entry("train.py", *SHORT, wrong, "seed=-1")
    assert ended.status == 2
    assert fault in ended.stderr


def test_the_configs_of_this_checkout_are_the_ones_that_are_broken() -> None:
    assert [name for name in CONFIGS if not (CHECKOUT / "conf" / name).is_file()] == []
