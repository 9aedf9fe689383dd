"""The parts of a recipe: rates, updates, losses and distortions against torch, scikit-learn and hand arithmetic."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torchvision.transforms import functional

from remeasure.config.compose import compose
from remeasure.data import catalog
from remeasure.models import registry
from remeasure.spec.base import Choice
from remeasure.spec.recipe import Averaging, Normalisation, Optimizer, Recipe, Resolution, Schedule
from remeasure.system import paths
from remeasure.training.augment import Affine, Crop, NoAugmentation, normalise, resized
from remeasure.training.engines.loop import train
from remeasure.training.engines.serial import Training
from remeasure.training.losses import CrossEntropy, training_loss
from remeasure.training.optimizers import build_optimizer
from remeasure.training.recipe import learning_rate

STEPS, EPOCHS = 7, 10  # a run of 70 steps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def an_optimizer(name: str, **arguments: object) -> Optimizer:
    optimizer: Optimizer = Optimizer.choices[name](**{"lr_peak": 0.1, **arguments})
    return optimizer


def a_schedule(name: str, **changes: object) -> Schedule:
    plain = {"epochs_warmup": 0.0, "lr_start_factor": 0.0, "lr_end_factor": 0.0, "milestones": (), "gamma": None}
    return Schedule(**{**plain, **changes, "name": name})


def affine(**changes: float) -> Affine:
    still = {"probability": 1.0, "translation_pixels": 0.0, "scaling": 0.0, "squeezing": 0.0, "shear": 0.0}
    return Affine(**{**still, **changes})


def crop(**changes: float) -> Crop:
    still = {"pad_pixels": 0, "flip_probability": 0.0, "cutout_pixels": 0}
    return Crop(**{**still, **changes})


# ---------------------------------------------------------------- learning rate


def rates(schedule: Schedule, *, lr_peak: float = 0.5) -> list[float]:
    return [
        learning_rate(step, lr_peak=lr_peak, schedule=schedule, steps_per_epoch=STEPS, epochs_total=EPOCHS)
        for step in range(STEPS * EPOCHS)
    ]


def torch_rates(*build: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], switch: int = 0) -> list[float]:
    """What torch's schedulers, the second from step `switch` on, do to a rate of 0.5."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    parts = [make(optimizer) for make in build]
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, milestones=[switch]) if len(parts) > 1 else parts[0]
    found = []
    for _ in range(STEPS * EPOCHS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_constant_is_the_peak_throughout() -> None:
    assert rates(a_schedule("constant")) == [0.5] * 70


def test_linear_falls_as_torchs_linear_lr() -> None:
    expected = torch_rates(lambda it: lr_scheduler.LinearLR(it, start_factor=1, end_factor=0.2, total_iters=70))
    assert rates(a_schedule("linear", lr_end_factor=0.2)) == pytest.approx(expected)


def test_cosine_falls_as_torchs_cosine_annealing() -> None:
    expected = torch_rates(lambda it: lr_scheduler.CosineAnnealingLR(it, T_max=70, eta_min=0.05))
    assert rates(a_schedule("cosine", lr_end_factor=0.1)) == pytest.approx(expected)


def test_milestones_fall_as_torchs_multi_step_lr_counted_in_epochs() -> None:
    expected = torch_rates(lambda it: lr_scheduler.MultiStepLR(it, milestones=[3 * STEPS, 8 * STEPS], gamma=0.1))
    found = rates(a_schedule("milestones", milestones=(3, 8), gamma=0.1))
    assert found == pytest.approx(expected)
    assert [found[20], found[21], found[55], found[56]] == pytest.approx([0.5, 0.05, 0.05, 0.005])


def test_warm_up_and_decay_rise_and_fall_as_torchs_sequence_of_both() -> None:
    expected = torch_rates(
        lambda it: lr_scheduler.LinearLR(it, start_factor=0.25, total_iters=14),
        lambda it: lr_scheduler.CosineAnnealingLR(it, T_max=56, eta_min=0.0),
        switch=14,
    )
    found = rates(a_schedule("cosine", epochs_warmup=2.0, lr_start_factor=0.25))
    assert found == pytest.approx(expected)
    assert (found[0], found[14]) == (0.125, 0.5)


def test_one_rise_and_one_fall_by_hand() -> None:
    """5 of 10 epochs up from a tenth of the peak, then straight down: the middle step of each slope is its mean."""
    found = rates(a_schedule("linear", epochs_warmup=4.0, lr_start_factor=0.1, lr_end_factor=0.02), lr_peak=1.0)
    assert [found[0], found[14], found[28], found[49]] == pytest.approx([0.1, 0.55, 1.0, 0.51])
    assert max(found) == found[28]
    assert found[69] == pytest.approx(0.02 + 0.98 / 42)  # one of 42 steps before the end


def test_the_decay_reaches_its_end_factor_after_the_last_step() -> None:
    for name in ("linear", "cosine"):
        schedule = a_schedule(name, lr_end_factor=0.03)
        after = learning_rate(70, lr_peak=2.0, schedule=schedule, steps_per_epoch=STEPS, epochs_total=EPOCHS)
        assert after == pytest.approx(0.06)
        assert rates(schedule, lr_peak=2.0)[-1] > 0.06


def test_a_warm_up_may_be_a_fraction_of_an_epoch() -> None:
    found = rates(a_schedule("constant", epochs_warmup=0.5))  # 3.5 steps
    assert found[:5] == pytest.approx([0.0, 0.5 / 3.5, 1.0 / 3.5, 1.5 / 3.5, 0.5])


def test_milestones_follow_a_warm_up() -> None:
    found = rates(a_schedule("milestones", milestones=(5,), gamma=0.5, epochs_warmup=1.0, lr_start_factor=0.5))
    assert [found[0], found[7], found[34], found[35]] == [0.25, 0.5, 0.5, 0.25]


def test_every_rate_of_every_recipe_lies_between_zero_and_its_peak() -> None:
    for recipe in every_recipe():
        for step in range(0, 469 * recipe.epochs_total, 7):
            rate = learning_rate(
                step,
                lr_peak=recipe.optimizer.lr_peak,
                schedule=recipe.schedule,
                steps_per_epoch=469,
                epochs_total=recipe.epochs_total,
            )
            assert rate <= recipe.optimizer.lr_peak
            assert rate > 0 or step == recipe.schedule.lr_start_factor == 0


def every_recipe() -> Iterator[Recipe]:
    names = {path.stem for path in (paths.conf_dir() / "recipe").glob("*.yaml") if not path.stem.endswith("_eval")}
    assert names >= {"article", "keras_mlp", "lbfgs", "lenet5", "lenet5_plain"}
    for name in sorted(names):
        yield compose(["data=cifar10", f"recipe={name}"]).recipe


# ---------------------------------------------------------------- optimiser

START = [1.0, -2.0]
GRADIENTS = ([0.5, -3.0], [0.25, 1.0], [-0.125, 0.5])


def updated(optimizer: Optimizer) -> list[float]:
    """START after one step for each of GRADIENTS."""
    weights = nn.Parameter(torch.tensor(START, dtype=torch.float64))
    built = build_optimizer([weights], optimizer=optimizer)
    for gradient in GRADIENTS:
        weights.grad = torch.tensor(gradient, dtype=torch.float64)
        built.step()
    return weights.tolist()


def by_hand(step: Callable[[float, float, dict[str, float], int], float]) -> list[float]:
    """START after the textbook's `step(w, g, state, t)`, t from 1, for each of GRADIENTS."""
    found = []
    for w, gradients in zip(START, zip(*GRADIENTS, strict=True), strict=True):
        state: dict[str, float] = {"m": 0.0, "v": 0.0}
        for t, g in enumerate(gradients, start=1):
            w = step(w, g, state, t)
        found.append(w)
    return found


@pytest.mark.parametrize("arguments", [{}, {"betas": (0.5, 0.75), "eps": 0.25}, {"weight_decay": 0.125}])
def test_adam_is_kingma_and_bas(arguments: dict[str, object]) -> None:
    """Kingma and Ba 2015, algorithm 1; weight decay is added to the gradient."""
    beta1, beta2 = arguments.get("betas", (0.9, 0.999))
    eps, decay = arguments.get("eps", 1e-8), arguments.get("weight_decay", 0.0)

    def step(w: float, g: float, state: dict[str, float], t: int) -> float:
        g = g + decay * w
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = beta2 * state["v"] + (1 - beta2) * g * g
        return w - 0.1 * (state["m"] / (1 - beta1**t)) / (math.sqrt(state["v"] / (1 - beta2**t)) + eps)

    assert updated(an_optimizer("adam", **arguments)) == pytest.approx(by_hand(step), rel=1e-6)


@pytest.mark.parametrize("arguments", [{"weight_decay": 0.125}, {"weight_decay": 0.0, "betas": (0.5, 0.75)}])
def test_adamw_shrinks_the_weights_apart_from_the_gradient(arguments: dict[str, object]) -> None:
    """Loshchilov and Hutter 2019, algorithm 2."""
    beta1, beta2 = arguments.get("betas", (0.9, 0.999))

    def step(w: float, g: float, state: dict[str, float], t: int) -> float:
        w = w * (1 - 0.1 * arguments["weight_decay"])
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = beta2 * state["v"] + (1 - beta2) * g * g
        return w - 0.1 * (state["m"] / (1 - beta1**t)) / (math.sqrt(state["v"] / (1 - beta2**t)) + 1e-8)

    assert updated(an_optimizer("adamw", **arguments)) == pytest.approx(by_hand(step), rel=1e-6)


@pytest.mark.parametrize("nesterov", [None, False, True])
@pytest.mark.parametrize("decay", [None, 0.25])
def test_sgd_has_momentum_that_nesterov_looks_ahead_of(nesterov: bool | None, decay: float | None) -> None:
    """Sutskever et al. 2013 in torch's form: v ← μv + g; w ← w - lr·v, or w - lr·(g + μv) for Nesterov."""

    def step(w: float, g: float, state: dict[str, float], t: int) -> float:  # noqa: ARG001
        g = g + (decay or 0.0) * w
        state["v"] = 0.75 * state["v"] + g
        return w - 0.1 * (g + 0.75 * state["v"] if nesterov else state["v"])

    found = updated(an_optimizer("sgd", momentum=0.75, nesterov=nesterov, weight_decay=decay))
    assert found == pytest.approx(by_hand(step), rel=1e-6)


def test_sgd_alone_is_steepest_descent() -> None:
    assert updated(an_optimizer("sgd")) == pytest.approx([1.0 - 0.1 * 0.625, -2.0 + 0.1 * 1.5])


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_rmsprop_adds_eps_outside_the_root_as_keras_examples_did(momentum: float | None) -> None:
    """Tieleman and Hinton 2012: v ← ρv + (1-ρ)g²; w ← w - lr·g / (√v + ε)."""

    def step(w: float, g: float, state: dict[str, float], t: int) -> float:  # noqa: ARG001
        state["v"] = 0.75 * state["v"] + 0.25 * g * g
        state["m"] = (momentum or 0.0) * state["m"] + g / (math.sqrt(state["v"]) + 0.5)
        return w - 0.1 * state["m"]

    found = updated(an_optimizer("rmsprop", alpha=0.75, eps=0.5, momentum=momentum))
    assert found == pytest.approx(by_hand(step), rel=1e-6)


def test_lbfgs_reaches_the_optimum_of_a_convex_quadratic() -> None:
    """½xᵀAx - bᵀx with condition number 1000 has its minimum at A⁻¹b; one step is one iteration."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a = torch.tensor(basis @ np.diag(np.logspace(0, 3, 6)) @ basis.T)
    b = torch.tensor(rng.normal(size=6))
    x = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    built = build_optimizer([x], optimizer=an_optimizer("lbfgs", lr_peak=1.0, history_size=10))

    def closure() -> Tensor:
        built.zero_grad()
        value = 0.5 * x @ a @ x - b @ x
        value.backward()
        return value

    built.step(closure)
    assert built.state[x]["n_iter"] == 1
    for _ in range(40):
        built.step(closure)
    # torch stops where a step would gain less than 1e-9: at ½·λ·dx², 5e-5 from the optimum where the eigenvalue is 1
    np.testing.assert_allclose(x.detach().numpy(), np.linalg.solve(a, b), rtol=0, atol=1e-4)


def test_softmax_regression_with_the_lbfgs_recipe_is_scikit_learns() -> None:
    """LogisticRegression(C=1) minimises the same: mean cross-entropy + ½·‖W‖²/(C·N), biases free."""
    config = compose(["model=logreg", "data=digits"])
    assert config.recipe.loss.l2_penalty == 1 / 1297
    assert config.recipe.batch_size == 1297
    split = catalog.load_split(config.data, "train", root=Path("nowhere"))
    images = normalise(torch.tensor(split.images), normalisation=config.recipe.normalisation).double().flatten(1)
    theirs = LogisticRegression(C=1, tol=1e-9, max_iter=10_000).fit(images.numpy(), split.labels)

    layer = nn.Linear(64, 10).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    built = build_optimizer(layer.parameters(), optimizer=config.recipe.optimizer)

    def closure() -> Tensor:
        built.zero_grad()
        labels = torch.tensor(split.labels)
        value = training_loss(layer(images), labels, loss=config.recipe.loss, parameters=layer.parameters())
        value.backward()
        return value

    for _ in range(300):
        built.step(closure)
    # torch stops where a step would gain less than 1e-9; l2/2·dw² is that at dw = 0.0016. The weights reach 3.
    np.testing.assert_allclose(layer.weight.detach().numpy(), theirs.coef_, rtol=0, atol=2e-3)
    np.testing.assert_allclose(layer.bias.detach().numpy(), theirs.intercept_, rtol=0, atol=1e-2)
    ours = closure().item()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(theirs.coef_))
        layer.bias.copy_(torch.tensor(theirs.intercept_))
    assert ours == pytest.approx(closure().item(), rel=1e-6)


# ---------------------------------------------------------------- normalisation and loss


def test_normalise_works_on_pixels_of_0_to_255_channel_by_channel() -> None:
    images = torch.tensor([[[[0, 51]], [[102, 255]]]], dtype=torch.uint8)  # (1, 2, 1, 2): 0, 0.2; 0.4, 1
    found = normalise(images, normalisation=Normalisation(mean=(0.5, 0.25), std=(0.1, 0.5)))
    torch.testing.assert_close(found, torch.tensor([[[[-5.0, -3.0]], [[0.3, 1.5]]]]))
    assert found.dtype == torch.float32


def test_one_mean_and_std_serve_all_channels() -> None:
    images = torch.full((2, 3, 1, 1), 51, dtype=torch.uint8)
    found = normalise(images, normalisation=Normalisation(mean=(0.1,), std=(0.5,)))
    torch.testing.assert_close(found, torch.full((2, 3, 1, 1), 0.2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_leaves_its_input_alone(dtype: torch.dtype) -> None:
    images = torch.full((1, 1, 2, 2), 200, dtype=dtype)
    normalise(images, normalisation=Normalisation(mean=(0.5,), std=(0.5,)))
    assert (images == 200).all()


def test_lenet5_sees_the_papers_background_and_foreground() -> None:
    """LeCun et al. 1998, section II-B: white is -0.1 and black 1.175."""
    for name in ("lenet5", "lenet5_plain"):
        normalisation = compose([f"recipe={name}"]).recipe.normalisation
        ends = normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), normalisation=normalisation)
        torch.testing.assert_close(ends.flatten(), torch.tensor([-0.1, 1.175]))


LOGITS = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 0.0, math.log(6)]])  # softmax: ½ ¼ ¼ and ⅛ ⅛ ¾
LABELS = torch.tensor([0, 1])


def test_the_loss_is_mean_cross_entropy() -> None:
    found = training_loss(LOGITS, LABELS, loss=CrossEntropy(), parameters=[])
    assert found.item() == pytest.approx((math.log(2) + math.log(8)) / 2)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    """Szegedy et al. 2016: 1-ε on the label plus ε/K on each of the K classes."""
    found = training_loss(LOGITS, LABELS, loss=CrossEntropy(label_smoothing=0.3), parameters=[])
    first = 0.7 * math.log(2) + 0.1 * (math.log(2) + 2 * math.log(4))
    second = 0.7 * math.log(8) + 0.1 * (2 * math.log(8) - math.log(0.75))
    assert found.item() == pytest.approx((first + second) / 2)


def test_the_l2_penalty_is_half_the_sum_of_squares_of_matrices_and_kernels_but_not_biases() -> None:
    matrix, bias, kernel = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([100.0]), torch.full((1, 1, 2, 2), 0.5)
    plain = training_loss(LOGITS, LABELS, loss=CrossEntropy(), parameters=[])
    found = training_loss(LOGITS, LABELS, loss=CrossEntropy(l2_penalty=0.1), parameters=iter([matrix, bias, kernel]))
    assert (found - plain).item() == pytest.approx(0.05 * (1 + 4 + 9 + 16 + 4 * 0.25))


# ---------------------------------------------------------------- distortions


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the uniform draws u in [-1, 1]; those that are not named are 0."""

    def draw(*, scaling: float = 0, squeezing: float = 0, shear: float = 0, x: float = 0, y: float = 0) -> None:
        values = torch.tensor([scaling, squeezing, shear, x, y])

        def rand(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:  # noqa: ARG001
            return (values[:, None].expand(shape) + 1) / 2 if len(shape) == 2 else torch.zeros(shape)

        monkeypatch.setattr(torch, "rand", rand)

    return draw


COLOURS = Normalisation(mean=(0.5, 0.25, 0.0), std=(0.25, 0.5, 1.0))


def distorted(image: Tensor, augmentation: Affine) -> Tensor:
    return augmentation.distort(image[None, None], generator=generator())[0, 0]


def test_no_augmentation_normalises_and_no_more() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), generator=generator(), dtype=torch.uint8)
    nothing = NoAugmentation()
    found = nothing.apply(images, normalisation=COLOURS, generator=generator())
    assert torch.equal(found, normalise(images, normalisation=COLOURS))


def test_affine_images_are_normalised_after_they_were_distorted() -> None:
    """So that what comes in is black, and not the mean pixel."""
    images = torch.full((9, 3, 4, 4), 255, dtype=torch.uint8)
    moving = affine(translation_pixels=3.0)
    found = moving.apply(images, normalisation=COLOURS, generator=generator(1))
    expected = moving.distort(images, generator=generator(1))
    assert torch.equal(found, normalise(expected, normalisation=COLOURS))
    assert found[:, 0].min() == pytest.approx((0 - 0.5) / 0.25)


def test_probability_zero_distorts_nothing() -> None:
    images = torch.randint(0, 256, (50, 1, 28, 28), generator=generator(), dtype=torch.uint8)
    still = affine(probability=0.0, translation_pixels=9.0, scaling=0.5, squeezing=0.5, shear=0.5)
    found = still.distort(images, generator=generator())
    torch.testing.assert_close(found, images.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("probability", [0.1, 0.9, 1.0])
def test_the_distorted_share_is_the_probability(probability: float) -> None:
    maps = affine(probability=probability, shear=1.0).maps(20_000, size=28, generator=generator())
    share = (maps != torch.eye(2, 3)).any(dim=(1, 2)).float().mean().item()
    assert share == pytest.approx(probability, abs=5 * math.sqrt(probability * (1 - probability) / 20_000) + 1e-3)


def test_translation_moves_by_that_many_pixels_and_background_comes_in(drawn: Callable[..., None]) -> None:
    image = torch.arange(1.0, 65).view(8, 8)
    drawn(x=1.0)
    moved = distorted(image, affine(translation_pixels=2.0))  # u > 0 looks right, so that the image goes left
    torch.testing.assert_close(moved[:, :6], image[:, 2:], atol=1e-4, rtol=0)
    assert not moved[:, 6:].any()
    drawn(y=-1.0)
    moved = distorted(image, affine(translation_pixels=3.0))
    torch.testing.assert_close(moved[3:], image[:5], atol=1e-4, rtol=0)
    assert not moved[:3].any()
    drawn(x=0.5)
    torch.testing.assert_close(distorted(image, affine(translation_pixels=2.0))[:, :7], image[:, 1:], atol=1e-4, rtol=0)


SQUARE = torch.zeros(8, 8)
SQUARE[2:6, 2:6] = 1  # the middle quarter


def test_scaling_stretches_both_axes_alike(drawn: Callable[..., None]) -> None:
    drawn(scaling=1.0)
    torch.testing.assert_close(distorted(torch.ones(8, 8), affine(scaling=math.log(2))), SQUARE)  # exp(u) = 2
    drawn(scaling=-1.0)
    grown = distorted(SQUARE, affine(scaling=math.log(2)))
    assert (grown[1:7, 1:7] == 1).all()
    torch.testing.assert_close(grown[0, 1:7], torch.full((6,), 0.75))  # its edge lies in mid-pixel


def test_squeezing_stretches_one_axis_and_shrinks_the_other(drawn: Callable[..., None]) -> None:
    drawn(squeezing=1.0)
    found = distorted(SQUARE, affine(squeezing=math.log(2)))
    assert (found[1:7, 3:5] == 1).all()  # half as wide, twice as high
    torch.testing.assert_close(found[[0, 7], 3:5], torch.full((2, 2), 0.75))
    assert not found[:, [0, 1, 2, 5, 6, 7]].any()


def test_shear_moves_each_row_by_so_many_pixels_more_than_the_one_above(drawn: Callable[..., None]) -> None:
    upright = torch.zeros(9, 9)
    upright[:, 4] = 1
    drawn(shear=1.0)
    torch.testing.assert_close(distorted(upright, affine(shear=1.0)), torch.eye(9).fliplr(), atol=1e-5, rtol=0)
    drawn(shear=-0.5)
    torch.testing.assert_close(distorted(upright, affine(shear=2.0)), torch.eye(9), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("translation_pixels", 2.0, {(0, 2): (-1 / 7, 1 / 7), (1, 2): (-1 / 7, 1 / 7)}),  # of 28 pixels, in [-1, 1]
        ("scaling", 0.1, {(0, 0): (math.exp(-0.1), math.exp(0.1)), (1, 1): (math.exp(-0.1), math.exp(0.1))}),
        ("squeezing", 0.1, {(0, 0): (math.exp(-0.1), math.exp(0.1)), (1, 1): (math.exp(-0.1), math.exp(0.1))}),
        ("shear", 0.2, {(0, 1): (-0.2, 0.2)}),
    ],
)
def test_each_range_is_filled_evenly_to_both_bounds_and_moves_nothing_else(
    name: str, value: float, bounds: dict[tuple[int, int], tuple[float, float]]
) -> None:
    maps = affine(**{name: value}).maps(20_000, size=28, generator=generator())
    for at in np.ndindex(2, 3):
        entry = maps[:, at[0], at[1]]
        if at not in bounds:
            assert (entry == torch.eye(2, 3)[at]).all()
            continue
        low, high = bounds[at]
        width = (high - low) / 1000
        assert low - 1e-6 <= entry.min() < low + width
        assert high - width < entry.max() <= high + 1e-6
        middle = entry.log().mean() if low > 0 else entry.mean()
        assert abs(middle) < 5 * value / math.sqrt(3 * 20_000)  # sd of u/√n
    if name in ("scaling", "squeezing"):
        ratio = maps[:, 0, 0] / maps[:, 1, 1] if name == "scaling" else maps[:, 0, 0] * maps[:, 1, 1]
        torch.testing.assert_close(ratio, torch.ones(20_000))


def test_draws_are_independent_of_each_other() -> None:
    every = affine(translation_pixels=2.0, scaling=0.1, squeezing=0.1, shear=0.2)
    maps = every.maps(20_000, size=28, generator=generator()).double()
    x, y = maps[:, 0, 0].log(), maps[:, 1, 1].log()
    draws = torch.stack([x + y, x - y, maps[:, 0, 1], maps[:, 0, 2], maps[:, 1, 2]])
    torch.testing.assert_close(torch.corrcoef(draws), torch.eye(5).double(), atol=5 / math.sqrt(20_000), rtol=0)


def test_black_stays_black_and_the_range_stays_0_to_255() -> None:
    every = affine(translation_pixels=2.0, scaling=0.1, squeezing=0.1, shear=0.2)
    assert not every.distort(torch.zeros(9, 1, 28, 28), generator=generator()).any()
    found = every.distort(torch.full((9, 1, 28, 28), 255, dtype=torch.uint8), generator=generator())
    assert (found.dtype, found.shape) == (torch.float32, (9, 1, 28, 28))
    assert found.min() == 0
    assert 254.9 < found.max() <= 255.1


def test_the_same_generator_seed_gives_the_same_maps_and_another_one_others() -> None:
    every = affine(probability=0.9, translation_pixels=2.0, scaling=0.1, squeezing=0.1, shear=0.2)
    torch.manual_seed(1)
    first, again, other = (every.maps(9, size=28, generator=generator(seed)) for seed in (1, 1, 2))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all(dim=(1, 2)).any()
    assert torch.equal(after, torch.rand(1))  # global random state was not touched


# ---------------------------------------------------------------- crop, flip and cut-out

AS_THEY_ARE = Normalisation(mean=(0.0,), std=(1 / 255,))  # pixels stay 0 to 255, but for rounding


def random_images(num: int, *, size: tuple[int, int] = (6, 9)) -> Tensor:
    return torch.randint(1, 256, (num, 3, *size), generator=generator(5), dtype=torch.uint8)


def cropped(images: Tensor, *, seed: int = 0, normalisation: Normalisation = AS_THEY_ARE, **changes: float) -> Tensor:
    return crop(**changes).apply(images, normalisation=normalisation, generator=generator(seed))


def moves(images: Tensor, found: Tensor, *, pad: int) -> Tensor:
    """(N, 3): top and left of each image's crop in the framed image and whether it is mirrored, by torchvision."""
    framed, (height, width) = functional.pad(images, [pad] * 4), images.shape[-2:]
    candidates = [(top, left, flip) for top in range(2 * pad + 1) for left in range(2 * pad + 1) for flip in (0, 1)]
    fits = []
    for top, left, flip in candidates:
        theirs = functional.crop(framed, top, left, height, width)
        theirs = functional.hflip(theirs) if flip else theirs
        fits.append((theirs == found.round()).flatten(1).all(dim=1))
    assert (torch.stack(fits).sum(dim=0) == 1).all(), "an image is no crop of its own"
    return torch.tensor(candidates)[torch.stack(fits).int().argmax(dim=0)]


def assert_evenly_filled(drawn: Tensor, *, num_cells: int) -> None:
    """(N,) cell numbers: all cells are drawn, none more often than chance has it (five standard deviations)."""
    counts = torch.bincount(drawn, minlength=num_cells)
    expected = len(drawn) / num_cells
    assert len(counts) == num_cells
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


def test_a_crop_is_torchvisions_pad_crop_and_hflip_and_all_are_drawn_evenly_and_apart() -> None:
    images = random_images(5000)
    top, left, flip = moves(images, cropped(images, pad_pixels=2, flip_probability=0.5), pad=2).unbind(1)
    assert_evenly_filled((top * 5 + left) * 2 + flip, num_cells=50)
    for draw in (top, left, flip):  # nor does one image's draw tell the next one's
        pairs = torch.corrcoef(torch.stack([draw[1:], draw[:-1]]).double())
        assert abs(pairs[0, 1]) < 5 / math.sqrt(5000)


def test_a_crop_by_hand() -> None:
    """1 2 / 3 4 in a frame of one black pixel is 4x4; its nine crops begin at rows and columns 0 to 2."""
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    found = cropped(image.expand(500, 1, 2, 2), pad_pixels=1).round().int().flatten(1)
    assert {tuple(each) for each in found.tolist()} == {
        *((0, 0, 0, 1), (0, 0, 1, 2), (0, 0, 2, 0)),
        *((0, 1, 0, 3), (1, 2, 3, 4), (2, 0, 4, 0)),
        *((0, 3, 0, 0), (3, 4, 0, 0), (4, 0, 0, 0)),
    }


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_mirrored_share_is_the_probability(probability: float) -> None:
    images = random_images(5000)
    flip = moves(images, cropped(images, flip_probability=probability), pad=0)[:, 2]
    share = flip.double().mean().item()
    assert share == pytest.approx(probability, abs=5 * math.sqrt(probability * (1 - probability) / 5000))


def test_without_padding_mirror_and_square_images_are_only_normalised() -> None:
    images = random_images(9)
    found = cropped(images, normalisation=COLOURS)
    assert torch.equal(found, normalise(images, normalisation=COLOURS))
    assert (found.dtype, found.shape) == (torch.float32, images.shape)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_square_around_each_pixel_becomes_the_mean_pixel_clipped_at_the_border(size: int) -> None:
    images = torch.full((5000, 3, 6, 9), 200, dtype=torch.uint8)
    found = cropped(images, cutout_pixels=size, normalisation=COLOURS)
    whole = normalise(images[:1], normalisation=COLOURS)
    fits = []
    for row, column in np.ndindex(6, 9):  # the square's centre; of an even one, the pixel after the middle
        theirs = whole.clone()
        top, left = row - size // 2, column - size // 2
        theirs[..., max(top, 0) : top + size, max(left, 0) : left + size] = 0.0
        fits.append((theirs == found).flatten(1).all(dim=1))
    assert (torch.stack(fits).sum(dim=0) == 1).all()
    assert_evenly_filled(torch.stack(fits).int().argmax(dim=0), num_cells=54)


def test_a_square_stands_apart_from_crop_and_mirror() -> None:
    images = random_images(2000)
    plain, cut = (cropped(images, pad_pixels=2, flip_probability=0.5, cutout_pixels=size) for size in (0, 3))
    changed = cut != plain
    assert not cut[changed].any()
    assert 1 < changed.any(dim=1).flatten(1).sum(dim=1).max() <= 9  # pixels of an image


def test_black_padding_is_black_and_not_the_mean_pixel() -> None:
    found = cropped(torch.full((50, 3, 4, 4), 255, dtype=torch.uint8), pad_pixels=4, normalisation=COLOURS)
    assert found[:, 0].min() == (0 - 0.5) / 0.25


def test_a_crop_follows_from_its_generator_alone_and_leaves_its_input_alone() -> None:
    images = random_images(50)
    before, options = images.clone(), {"pad_pixels": 2, "flip_probability": 0.5, "cutout_pixels": 3}
    torch.manual_seed(1)
    first = cropped(images, seed=1, **options)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))  # global random state was not touched
    assert torch.equal(first, cropped(images, seed=1, **options))
    assert not torch.equal(first, cropped(images, seed=2, **options))
    assert torch.equal(images, before)


def test_reflected_padding_is_torchs() -> None:
    images = random_images(2000)
    found = cropped(images, pad_pixels=2, padding="reflect").round()
    framed = nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect")
    height, width = images.shape[-2:]
    fits = []
    for top, left in np.ndindex(5, 5):
        fits.append((framed[..., top : top + height, left : left + width] == found).flatten(1).all(dim=1))
    assert (torch.stack(fits).sum(dim=0) == 1).all()
    assert_evenly_filled(torch.stack(fits).int().argmax(dim=0), num_cells=25)


def test_alternating_flips_mirror_each_image_in_every_second_epoch() -> None:
    images = random_images(400)
    augmentation = crop(pad_pixels=0, flip_probability=0.5, cutout_pixels=0, flips="alternating")
    recipe = dataclasses.replace(
        BASE, augmentation=augmentation, resolution=None, batch_size=400, normalisation=AS_THEY_ARE
    )
    config = compose(["model=logreg", "data=digits"])
    training = Training(
        nn.Linear(2, 2),
        spec=dataclasses.replace(config.spec(data_sha256=""), recipe=recipe),
        seed=0,
        images=images,
        labels=torch.zeros(400, dtype=torch.int64),
    )
    chosen = torch.randperm(400, generator=generator())
    flips = []
    for epoch in range(4):
        batch, _ = training.batch(chosen, step=epoch, generator=generator(epoch))
        flips.append(moves(images[chosen], batch, pad=0)[:, 2])
    assert torch.equal(flips[0], flips[2])
    assert torch.equal(flips[1], flips[3])
    assert torch.equal(flips[0] + flips[1], torch.ones(400, dtype=flips[0].dtype))
    assert 150 < flips[0].sum() < 250


# ---------------------------------------------------------------- smaller images


@pytest.mark.parametrize(("pixels", "size"), [(16, 32), (24, 32), (5, 8), (12, 8)])
def test_smaller_images_are_those_that_pillow_makes(pixels: int, size: int) -> None:
    images = torch.randn(3, 2, size, size, generator=generator())
    found = resized(images, pixels=pixels)
    assert (found.dtype, found.shape) == (torch.float32, (3, 2, pixels, pixels))
    for image, ours in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        theirs = Image.fromarray(image.numpy()).resize((pixels, pixels), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), atol=1e-5)


def test_images_of_that_size_already_and_of_no_size_are_left_alone() -> None:
    images = torch.randn(3, 2, 8, 8, generator=generator())
    assert resized(images, pixels=8) is images
    assert resized(images, pixels=None) is images


# ---------------------------------------------------------------- every option moves the weights

SGD = an_optimizer("sgd", momentum=0.5, nesterov=False, weight_decay=0.0)
BASE = Recipe(
    name="base",
    epochs_total=3,
    batch_size=8,
    optimizer=SGD,
    schedule=a_schedule("linear", epochs_warmup=0.5),
    loss=CrossEntropy(),
    normalisation=Normalisation(mean=(0.25,), std=(0.5,)),
    augmentation=affine(),
    resolution=Resolution(pixels=(4,), until_epoch=(1,)),
    streaming=None,
    averaging=None,
    clip_norm=100.0,
)
ADAM = {"optimizer": an_optimizer("adam", betas=(0.9, 0.99), eps=1e-8)}
RMSPROP = {"optimizer": an_optimizer("rmsprop", alpha=0.9, eps=1e-8)}
LBFGS = {"optimizer": an_optimizer("lbfgs", history_size=10, lr_peak=0.5), "batch_size": 32, "epochs_total": 6}
STEPPED = {"schedule": a_schedule("milestones", milestones=(1,), gamma=0.5)}
SHEARED = {"augmentation": affine(shear=0.5)}
CROPPED = {"augmentation": crop(pad_pixels=1, flip_probability=0.5, cutout_pixels=2)}
MUON = {"optimizer": an_optimizer("muon", momentum=0.6, sgd_lr_peak=0.1)}
FLIPS: dict[str, tuple[dict[str, object], object]] = {  # option: (what it needs beside BASE, its other value)
    "epochs_total": ({}, 4),
    "batch_size": ({}, 16),
    "optimizer.name": (ADAM, "adamw"),
    "optimizer.lr_peak": ({}, 0.2),
    "optimizer.momentum": ({}, 0.9),
    "optimizer.nesterov": ({}, True),
    "optimizer.weight_decay": ({}, 0.1),
    "optimizer.betas": (ADAM, (0.5, 0.99)),
    "optimizer.eps": (ADAM, 1e-2),
    "optimizer.alpha": (RMSPROP, 0.5),
    "optimizer.history_size": (LBFGS, 1),
    "schedule.name": ({}, "cosine"),
    "schedule.epochs_warmup": ({}, 1.0),
    "schedule.lr_start_factor": ({}, 0.5),
    "schedule.lr_end_factor": ({}, 0.5),
    "schedule.milestones": (STEPPED, (2,)),
    "schedule.gamma": (STEPPED, 0.25),
    "loss.label_smoothing": ({}, 0.1),
    "loss.l2_penalty": ({}, 0.1),
    "normalisation.mean": ({}, (0.5,)),
    "normalisation.std": ({}, (0.25,)),
    "augmentation.name": (SHEARED, "none"),
    "augmentation.probability": (SHEARED, 0.5),
    "augmentation.translation_pixels": ({}, 2.0),
    "augmentation.scaling": ({}, 0.3),
    "augmentation.squeezing": ({}, 0.3),
    "augmentation.shear": ({}, 0.3),
    "augmentation.pad_pixels": (CROPPED, 2),
    "augmentation.flip_probability": (CROPPED, 0.0),
    "augmentation.cutout_pixels": (CROPPED, 0),
    "augmentation.padding": (CROPPED, "reflect"),
    "augmentation.flips": (CROPPED, "alternating"),
    "optimizer.sgd_lr_peak": (MUON, 0.2),
    "averaging": ({}, Averaging(from_epoch=2, decay=0.9)),
    "resolution": ({}, None),
    "resolution.pixels": ({}, (6,)),
    "resolution.until_epoch": ({}, (2,)),
    "clip_norm": ({}, 0.01),
}
ONLY_VALUES = {"loss.name"}  # options that have one valid value yet
ELSEWHERE = {"streaming"}  # tests/training/photographs/test_train.py flips its options


def options(recipe: Recipe) -> set[str]:
    """Every option of a recipe by its dotted key, but for its name, which trains nothing."""
    found = set()
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if isinstance(value, Choice):
            arguments = {name for choice in value.choices.values() for name in choice.argument_names()}
            found |= {f"{field.name}.{name}" for name in ("name", *arguments)}
        elif dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{inner.name}" for inner in dataclasses.fields(value)}
        elif field.name != "name":
            found.add(field.name)
    return found


def with_option(recipe: Recipe, option: str, value: object) -> Recipe:
    group, _, key = option.rpartition(".")
    if not group:
        return dataclasses.replace(recipe, **{key: value})
    block = getattr(recipe, group)
    if isinstance(block, Choice) and key == "name":
        other = block.choices[value]
        kept = {name: getattr(block, name) for name in block.argument_names() if name in other.argument_names()}
        return dataclasses.replace(recipe, **{group: other(**kept)})
    return dataclasses.replace(recipe, **{group: dataclasses.replace(block, **{key: value})})


def trained(recipe: Recipe, folder: Path) -> Tensor:
    """The scored weights of a narrow 8x8 network after a short run on 32 random images."""
    draw = generator()
    images = torch.randint(0, 256, (32, 1, 8, 8), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, 10, (32,), generator=draw)
    hidden = ["model=mlp2", "model.options.hidden_sizes=[6, 6]"]
    config = compose(["data=digits", *(hidden if recipe.optimizer.name == "muon" else ["model=logreg"])])
    network = registry.build(config.model, image_shape=(1, 8, 8), num_classes=10, generator_seed=0)
    any_size = nn.Sequential(nn.AdaptiveAvgPool2d(8), network)  # 8x8 images stay as they are
    spec = dataclasses.replace(config.spec(data_sha256=""), recipe=recipe)
    training = Training(any_size, spec=spec, seed=0, images=images, labels=labels)
    train(training, spec=spec, device_kind="cpu", checkpoint=folder / "checkpoint", reports=[lambda _: None])
    return nn.utils.parameters_to_vector(training.scored.parameters()).detach()


def test_every_option_of_a_recipe_is_flipped_below() -> None:
    assert options(BASE) | {"resolution"} == set(FLIPS) | ONLY_VALUES | ELSEWHERE


@pytest.mark.parametrize("option", FLIPS)
def test_flipping_an_option_moves_the_trained_weights(option: str, tmp_path: Path) -> None:
    needs, value = FLIPS[option]
    recipe = dataclasses.replace(BASE, **needs)
    assert not torch.equal(trained(recipe, tmp_path), trained(with_option(recipe, option, value), tmp_path))


def test_the_name_of_a_recipe_moves_nothing(tmp_path: Path) -> None:
    assert torch.equal(trained(BASE, tmp_path), trained(with_option(BASE, "name", "other"), tmp_path))
