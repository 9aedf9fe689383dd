"""Optimisers, augmentations and losses: the arguments and faults of each; and that a new one is one class."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from tests.support import trained
from torch import Tensor
from torch.nn import functional

from remeasure.config.compose import compose
from remeasure.spec.base import Choice, InputError, Within
from remeasure.spec.recipe import Augmentation, Loss, Optimizer
from remeasure.spec.run import spec_sha256
from remeasure.training.augment import Affine, Crop, normalise
from remeasure.training.engines.base import can_be_batched
from remeasure.training.losses import CrossEntropy
from remeasure.training.optimizers import Adam, Lbfgs, Muon, RmsProp, Sgd

NAN = float("nan")
VALID: dict[type[Choice], dict[str, Any]] = {
    **{each: {"lr_peak": 0.1} for each in (Adam, Sgd, RmsProp, Lbfgs)},
    Muon: {"lr_peak": 0.1, "momentum": 0.6, "sgd_lr_peak": 0.1},
    CrossEntropy: {},
    Affine: dict.fromkeys(("probability", "translation_pixels", "scaling", "squeezing", "shear"), 0.5),
    Crop: {"pad_pixels": 4, "flip_probability": 0.5, "cutout_pixels": 0},
}
FAULTS: list[tuple[type[Choice], dict[str, Any], str]] = [
    (Adam, {"lr_peak": 0.0}, "lr_peak: expected a number above 0, got 0.0"),
    (Adam, {"lr_peak": NAN}, "lr_peak: expected a number above 0, got nan"),
    (Adam, {"weight_decay": -0.1}, "weight_decay: expected 0 or more, got -0.1"),
    (Adam, {"betas": (0.9, 1.0)}, "betas: expected two numbers in [0, 1), got [0.9, 1.0]"),
    (Adam, {"eps": 0.0}, "eps: expected a number above 0, got 0.0"),
    (Sgd, {"momentum": 1.0}, "momentum: expected a number in [0, 1), got 1.0"),
    (Sgd, {"nesterov": True}, "nesterov: needs a momentum above 0"),
    (Sgd, {"nesterov": True, "momentum": 0.0}, "nesterov: needs a momentum above 0"),
    (RmsProp, {"alpha": -0.5}, "alpha: expected a number in [0, 1), got -0.5"),
    (Lbfgs, {"history_size": 0}, "history_size: expected 1 or more, got 0"),
    (Muon, {"momentum": 0.0}, "momentum: expected a number in (0, 1), got 0.0"),
    (Muon, {"sgd_lr_peak": 0.0}, "sgd_lr_peak: expected a number above 0, got 0.0"),
    (CrossEntropy, {"label_smoothing": 1.0}, "label_smoothing: expected a fraction in [0, 1), got 1.0"),
    (CrossEntropy, {"label_smoothing": -0.1}, "label_smoothing: expected a fraction in [0, 1), got -0.1"),
    (CrossEntropy, {"l2_penalty": -0.1}, "l2_penalty: expected 0 or more, got -0.1"),
    (Affine, {"squeezing": -1.0}, "squeezing: expected 0 or more, got -1.0"),
    (Affine, {"probability": 1.5}, "probability: expected a fraction in [0, 1], got 1.5"),
    (Crop, {"pad_pixels": -1}, "pad_pixels: expected 0 or more, got -1"),
    (Crop, {"cutout_pixels": -1}, "cutout_pixels: expected 0 or more, got -1"),
    (Crop, {"flip_probability": 1.5}, "flip_probability: expected a fraction in [0, 1], got 1.5"),
]


@pytest.mark.parametrize(("cls", "changes", "message"), FAULTS, ids=lambda it: "" if isinstance(it, str) else None)
def test_a_value_out_of_its_range_is_refused_with_the_key_the_range_and_the_value(
    cls: type[Choice], changes: dict[str, Any], message: str
) -> None:
    cls(**VALID[cls])
    with pytest.raises(ValueError) as refused:
        cls(**{**VALID[cls], **changes})
    assert str(refused.value) == message


def test_faults_of_one_choice_are_named_together() -> None:
    with pytest.raises(ValueError) as refused:
        Adam(lr_peak=-1.0, eps=0.0)
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == ["lr_peak", "eps"]


@pytest.mark.parametrize(
    ("cls", "arguments"), [(Adam, {"weight_decay": 0.5}), (RmsProp, {"alpha": 0.5}), (Lbfgs, {"history_size": 5})]
)
def test_an_optimiser_hands_on_only_what_is_set(cls: type[Optimizer], arguments: dict[str, Any]) -> None:
    assert cls(lr_peak=0.1).arguments() == {}
    assert cls(lr_peak=0.1, **arguments).arguments() == arguments


# ---------------------------------------------------------------- a new one is one class


@pytest.fixture
def sign_sgd() -> Iterator[None]:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class SignSgd(Optimizer):
        """Bernstein et al. 2018: each weight moves by the rate, against the sign of its gradient."""

        name: Literal["sign_sgd"] = "sign_sgd"
        shrink: Annotated[float | None, Within("a number in [0, 1)", lambda value: 0 <= value < 1)] = None

        def build(self, parameters: Any, *, rate: float | Tensor, **_: Any) -> torch.optim.Optimizer:
            return torch.optim.Rprop(parameters, lr=rate, etas=(1 - (self.shrink or 1e-9), 1.0 + 1e-9))

    yield
    del Optimizer.choices["sign_sgd"]


@pytest.fixture
def noise() -> Iterator[None]:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Noise(Augmentation):
        """Gaussian noise of `sd` on the normalised pixels."""

        name: Literal["noise"] = "noise"
        sd: float

        def apply(self, images: Tensor, *, normalisation: Any, generator: torch.Generator | None) -> Tensor:
            plain = normalise(images, normalisation=normalisation)
            return plain + self.sd * torch.randn(plain.shape, generator=generator)

    yield
    del Augmentation.choices["noise"]


@pytest.fixture
def focal() -> Iterator[None]:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Focal(Loss):
        """Lin et al. 2017: cross-entropy, scaled by (1 - p)^gamma."""

        name: Literal["focal"] = "focal"
        gamma: float = 2.0
        engines = ("serial", "batched")

        def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
            return self.each(logits, labels).mean()

        def each(self, logits: Tensor, labels: Tensor) -> Tensor:
            losses = functional.cross_entropy(logits, labels, reduction="none")
            return (1 - torch.exp(-losses)) ** self.gamma * losses

    yield
    del Loss.choices["focal"]


NEW = ("sign_sgd", "noise", "focal")
CHOSEN = {
    "sign_sgd": "recipe.optimizer={name: sign_sgd, lr_peak: 0.001, shrink: 0.5}",
    "noise": "recipe.augmentation={name: noise, sd: 0.5}",
    "focal": "recipe.loss={name: focal, gamma: 1}",
}
KEYS = {"sign_sgd": "recipe.optimizer", "noise": "recipe.augmentation", "focal": "recipe.loss"}


@pytest.mark.parametrize("new", NEW)
def test_a_new_one_trains_and_its_arguments_are_part_of_the_identity(
    new: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.getfixturevalue(new)
    argument = {"sign_sgd": "optimizer.shrink=0.25", "noise": "augmentation.sd=0.25", "focal": "loss.gamma=3"}[new]
    shorter = "recipe.epochs_total=1"
    specs = [trained.spec(shorter, *more) for more in ((), (CHOSEN[new],), (CHOSEN[new], f"recipe.{argument}"))]
    assert len({spec.spec_sha256 for spec in specs}) == 3
    assert len({trained.run(spec, tmp_path).record.loss for spec in specs}) == 3


@pytest.mark.parametrize("new", NEW)
@pytest.mark.parametrize("engine", ["batched", "numpy"])
def test_a_new_one_is_refused_by_an_engine_that_does_not_implement_it(
    new: str, engine: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(new)
    if (new, engine) == ("focal", "batched"):
        assert can_be_batched(trained.spec(CHOSEN[new]))  # it says that it supports this engine
        return
    with pytest.raises(InputError, match=f"engine: the {engine} engine has .*, not {KEYS[new]}.name={new}; choose"):
        trained.spec(CHOSEN[new], f"engine={engine}")


def test_photographs_are_not_trained_with_a_new_one_unless_it_says_so(sign_sgd: None) -> None:  # noqa: ARG001
    with pytest.raises(InputError, match=r"streaming: has adam, .*, not recipe.optimizer.name=sign_sgd"):
        compose(
            [
                "recipe=deit_b",
                "data=imagenet",
                "model=vit_b16",
                "recipe.optimizer={name: sign_sgd, betas: null, eps: null, weight_decay: null}",
            ]
        )


def test_a_loss_that_supports_the_batched_engine_ends_at_the_serial_loss(focal: None, tmp_path: Path) -> None:  # noqa: ARG001
    plain = ("model=logreg", CHOSEN["focal"], "recipe.epochs_total=1")
    (batched,) = trained.run_together(trained.spec(*plain, "engine=batched"), tmp_path)
    assert batched.record.loss == pytest.approx(trained.run(trained.spec(*plain), tmp_path).record.loss, rel=1e-4)


def test_the_arguments_of_a_new_one_are_keys_with_the_faults_of_any_other(sign_sgd: None) -> None:  # noqa: ARG001
    def fault(*overrides: str) -> str:
        with pytest.raises(InputError) as refused:
            compose(["model=mlp2", *overrides])
        (line,) = refused.value.faults
        return line

    chosen = CHOSEN["sign_sgd"]
    key = "recipe.optimizer.shrink"
    assert fault(chosen, f"{key}=1.5") == f"{key}: expected a number in [0, 1), got 1.5"
    assert fault(chosen, f"{key}=abc") == f"{key}: expected a valid number, got 'abc'"
    has = "no such argument (did you mean 'shrink'?); it has lr_peak, shrink"
    assert fault(chosen, "recipe.optimizer.shrnk=0.1") == f"recipe.optimizer.shrnk: optimizer 'sign_sgd' has {has}"
    assert fault(f"{key}=0.5").startswith(f"{key}: optimizer 'adam' has no such argument; it has lr_peak, weight_decay")
    assert fault("recipe.optimizer.name=sgn").endswith("'lbfgs', 'muon', 'sign_sgd' or module:Class, got 'sgn'")


def test_another_optimiser_may_leave_the_nulls_of_the_one_before(sign_sgd: None) -> None:  # noqa: ARG001
    """As the command line leaves them, and configs from before each optimiser had its own arguments."""
    nulls = "recipe.optimizer={name: sign_sgd, momentum: null, history_size: null, shrink: null}"
    assert compose(["model=mlp2", nulls]) == compose(["model=mlp2", "recipe.optimizer.name=sign_sgd"])


def test_an_argument_that_is_not_set_is_no_part_of_the_identity() -> None:
    """So that an argument which an optimiser gets later moves no hash."""
    spec = dataclasses.asdict(trained.spec())
    for group in ("optimizer", "augmentation", "loss"):
        recipe = {**spec["recipe"], group: {**spec["recipe"][group], "later": None}}
        assert spec_sha256({**spec, "recipe": recipe}) == spec_sha256(spec)
        recipe[group] = {**recipe[group], "later": 0}
        assert spec_sha256({**spec, "recipe": recipe}) != spec_sha256(spec)


def test_a_name_is_given_once() -> None:
    with pytest.raises(TypeError, match=r"Twin: recipe.optimizer.name=adam is Adam already"):

        class Twin(Adam):
            name: Literal["adam"] = "adam"

    assert Optimizer.choices["adam"] is Adam
