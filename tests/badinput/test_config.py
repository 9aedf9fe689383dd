"""Whatever stands on train.py's command line or in a config file: it works, or is refused by name."""

import contextlib
import functools
import operator
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.badinput.entry import ODD, TALLY, Entry, assert_well_ended, changed, examples, untouched
from tests.badinput.strategies import BOMB, arguments, mutations
from tests.support.project import CHECKOUT

from remeasure.config import compose
from remeasure.spec.base import InputError

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


@examples(90, full=1000)
@given(given_arguments=arguments)
def test_whatever_the_command_line_says_it_works_or_is_refused_by_name(
    entry: Entry, given_arguments: list[str]
) -> None:
    with untouched(entry):
        ended = entry("train.py", *SHORT, *given_arguments)
    assert_well_ended(ended, naming=words(*given_arguments) | {*ALSO}, kind="command line")
    for spec in entry.specs if len(given_arguments) == 1 else ():
        assert_says(asdict(spec), override=given_arguments[0])


@examples(30, full=400)
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
    assert_well_ended(ended, naming={*keys, path.stem}, kind="config file")


@pytest.mark.parametrize("name", CONFIGS[:5])
@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_in_place_of_a_config_file_is_refused_by_name(entry: Entry, name: str, odd: str) -> None:
    with untouched(entry), changed(entry.root / "conf" / name, odd=odd):
        ended = entry("train.py", *SHORT)
    assert_well_ended(ended, naming={Path(name).stem}, kind="config file")
    assert ended.status == 2


def test_a_few_lines_that_stand_for_an_endless_value_are_refused(entry: Entry) -> None:
    path = entry.root / "conf/recipe/article.yaml"
    with changed(path, content=path.read_bytes() + BOMB):
        ended = entry("train.py", *SHORT)
    assert ended.status == 2
    assert f"{path}: anchors (&) are refused" in ended.stderr


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
    "data.title='\ud800'": "data.title: holds the character U+D800",
}


@examples(12, full=200)
@given(st.lists(st.sampled_from(sorted(FAULTS)), min_size=2, max_size=4, unique=True))
@example(["recipe.clip_norm=-2", f"recipe.epochs_total={'9' * 400}", "recipe.schedule.gamma=2"])
def test_all_faults_of_a_config_are_named_at_once(entry: Entry, planted: list[str]) -> None:
    ended = entry("train.py", *SHORT, *planted)
    TALLY["faults together: exit 2"] += 1
    assert ended.status == 2
    lines = ended.stderr.splitlines()
    assert [fault for fault in planted if not any(line.startswith(FAULTS[fault]) for line in lines)] == [], lines


def test_unknown_keys_choices_and_wrong_values_are_named_at_once(entry: Entry) -> None:
    ended = entry("train.py", "modle=mlp4", "recipe.lr=1", "recipe.epochs_total=-3", "seeed=1", "data=digitz", "a b")
    assert ended.status == 2
    for fault in (
        "modle: no such key (did you mean 'model'?)",
        "recipe.lr: no such key",
        "recipe.epochs_total: expected 1 or more, got -3",
        "seeed: no such key (did you mean 'seed'?)",
        "data: there is no 'digitz' (did you mean 'digits'?)",
        "a b: expected key=value",
    ):
        assert fault in ended.stderr


def test_of_keys_that_depend_on_an_unknown_model_nothing_is_told(entry: Entry) -> None:
    """With which model they are right, nobody can tell."""
    ended = entry("train.py", "model=xyzzy", "model.options.activation=relu", "seeed=1")
    assert ended.status == 2
    assert "model: there is no 'xyzzy'" in ended.stderr
    assert "seeed: no such key" in ended.stderr
    assert "activation" not in ended.stderr


GROWING = [f"++model.options.k{i}='${{model.options.k{i + 1}}}${{model.options.k{i + 1}}}'" for i in range(40)]


@pytest.mark.parametrize(
    ("given_arguments", "naming"),
    [
        ((*SHORT, *GROWING, "++model.options.k40=x"), "model.options.k0: InputError raised while resolving"),
        (("-m", *SHORT, "seed=range(0,1000000000)"), "seed: not composed within"),
        ((*SHORT, f"seed={'a' * 20_000}"), "seed: expected at most 10000 characters, got 20005"),
        ((*SHORT, f"seed={'[' * 300}"), "seed: expected at most 200 opening brackets, got 300"),
        ((*SHORT, *["seed=1"] * 1000), "the command line: expected at most 1000 arguments, got 1004"),
    ],
)
def test_what_would_grow_without_end_is_refused_by_name(
    entry: Entry, monkeypatch: pytest.MonkeyPatch, given_arguments: tuple[str, ...], naming: str
) -> None:
    monkeypatch.setattr(compose, "COMPOSE_SECONDS", 1.0)
    ended = entry("train.py", *given_arguments)
    assert (ended.status, "Traceback" in ended.stderr) == (2, False)
    assert naming in ended.stderr


def test_the_limit_is_told_again_to_who_swallows_it() -> None:
    """An exception that is raised while a callback of C runs is lost there."""

    def compose_for(seconds: float) -> None:
        started = time.process_time()
        while time.process_time() < started + seconds:
            pass

    with compose.limited(0.1):
        with contextlib.suppress(InputError):
            compose_for(20)
        with pytest.raises(InputError, match="not composed within"):
            compose_for(20)


def test_the_configs_of_this_checkout_are_the_ones_that_are_broken() -> None:
    assert [name for name in CONFIGS if not (CHECKOUT / "conf" / name).is_file()] == []
