"""An engine refuses by name what it does not implement, and no spec is trained as something else."""

import dataclasses

import pytest
from tests.support import trained

from remeasure.config.compose import compose
from remeasure.spec.base import InputError
from remeasure.spec.recipe import Evaluation, Recipe
from remeasure.spec.run import RunSpec
from remeasure.training.engines import base
from remeasure.training.engines.base import BATCHED, EVALUATION, NUMPY, PHOTOGRAPHS, SERIAL, can_be_batched, engine_of

PUBLISHED = ("model=vit_b16", "data=imagenet_sample", "recipe=deit_b_eval")
DEIT = ("model=vit_b16", "recipe=deit_b")
ENGINES = {
    SERIAL: ("model=mlp2",),
    BATCHED: ("model=mlp2", "engine=batched", "engine_width=2"),
    NUMPY: ("model=mlp2", "engine=numpy"),
    PHOTOGRAPHS: DEIT,
    EVALUATION: PUBLISHED,
}
EVERY = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.title)
TRAINING = pytest.mark.parametrize("engine", [one for one in ENGINES if one.trains], ids=lambda engine: engine.title)


def spec_of(engine: base.Engine) -> RunSpec:
    return compose([*ENGINES[engine], "precision=float32"]).spec(data_sha256="")


@EVERY
def test_each_spec_has_its_engine_which_supports_it(engine: base.Engine) -> None:
    spec = spec_of(engine)
    assert engine_of(spec) is engine
    assert list(engine.faults(spec)) == []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stopping(Recipe):
    """A recipe with a part that came later than the engines."""

    early_stopping: int | None = None


@TRAINING
def test_a_part_of_a_recipe_that_came_later_is_refused_until_an_engine_implements_it(engine: base.Engine) -> None:
    spec = spec_of(engine)
    parts = {field.name: getattr(spec.recipe, field.name) for field in dataclasses.fields(spec.recipe)}
    off, on = (dataclasses.replace(spec, recipe=Stopping(**parts, early_stopping=value)) for value in (None, 5))
    assert list(engine.faults(off)) == []
    (fault,) = engine.faults(on)
    assert fault.startswith(f"recipe.early_stopping: {engine.title} does not implement it; expected null")


def test_every_part_of_a_recipe_is_implemented_by_some_engine() -> None:
    for recipe, engines in ((Recipe, [SERIAL, BATCHED, NUMPY, PHOTOGRAPHS]), (Evaluation, [EVALUATION])):
        fields = {field.name for field in dataclasses.fields(recipe)}
        assert set().union(*(engine.parts for engine in engines)) == fields


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (("engine_width=2",), "engine_width: the serial engine has 1, got 2; engine=batched trains several seeds"),
        ((*DEIT, "control=shuffled_labels"), "control: training on photographs has none, got shuffled_labels"),
        ((*PUBLISHED, "control=shuffled_labels"), "control: an evaluation has none, got shuffled_labels"),
        ((*DEIT, "engine=numpy"), "recipe.streaming: the numpy engine does not implement it; expected null"),
        ((*PUBLISHED, "engine=numpy"), "engine: the numpy engine trains, and recipe deit_b_eval only evaluates"),
    ],
)
def test_a_config_that_its_engine_does_not_support_is_refused(overrides: tuple[str, ...], fault: str) -> None:
    with pytest.raises(InputError) as refused:
        compose(list(overrides))
    assert any(line.startswith(fault) for line in refused.value.faults)


def test_an_evaluation_reads_the_test_split() -> None:
    spec = spec_of(EVALUATION)
    tuning = dataclasses.replace(spec.data, num_train=10, num_validation=5, split="validation")
    (fault,) = EVALUATION.faults(dataclasses.replace(spec, data=tuning))
    assert fault == "data.split: an evaluation has test, got validation"


def test_no_job_is_built_of_a_spec_that_was_never_checked() -> None:
    """Such as one that a program made of another."""
    wrong = dataclasses.replace(trained.spec(), engine="batched", engine_width=2, compile=True)
    with pytest.raises(InputError, match="compile: the batched engine has false, got true; choose engine=serial"):
        BATCHED.build(wrong, seeds=[0, 1], data=None, device_kind="cpu")  # type: ignore[arg-type]


def test_numpy_computes_on_the_cpu() -> None:
    (fault,) = NUMPY.device_faults("cuda")
    assert fault == "device: the numpy engine computes on cpu, got cuda; choose device=cpu"
    assert not list(NUMPY.device_faults("cpu"))


def test_only_what_the_serial_engine_would_train_can_be_batched() -> None:
    assert [can_be_batched(spec_of(engine)) for engine in ENGINES] == [True, False, False, False, False]
    lbfgs = compose(["model=logreg", "recipe=lbfgs"]).spec(data_sha256="")
    assert not can_be_batched(lbfgs)
