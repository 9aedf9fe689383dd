"""Training: the same numbers as a plain loop, however it is cut into blocks and interrupted; and honest predictions."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.trained import LAST_BATCH, STEPS_PER_EPOCH, same, spec, trained, training, weights
from torch import Tensor, nn
from torch.nn import functional

import remeasure.training.inference
from remeasure.spec.base import DivergenceError
from remeasure.spec.run import RunSpec
from remeasure.training.augment import normalise
from remeasure.training.engines.serial import Training
from remeasure.training.inference import Predictions, predict
from remeasure.training.seeding import derive

CPU = torch.device("cpu")
DROPOUT = ("model=mlp4", "recipe.optimizer.lr_peak=0.01")
AFFINE = ("recipe=lenet5", "recipe.epochs_total=2", "recipe.schedule.epochs_warmup=1")
LBFGS = ("model=logreg", "recipe=lbfgs", "recipe.epochs_total=3")


SMALL_BLOCKS = "steps_per_block=4"  # 21 steps make five whole ones and a last of a single step


def by_hand(training: Training, *, num_epochs: int) -> list[tuple[float, float]]:
    """The recipe `article` as plain PyTorch, on training's network; (mean loss, percent correct) of each epoch."""
    network, optimizer = training.network, torch.optim.Adam(training.network.parameters(), lr=1e-3, fused=True)
    curve = []
    for epoch in range(num_epochs):
        loss_total, num_correct = 0.0, 0
        for chosen in training.order(epoch).split(64):
            images = normalise(training.images[chosen], normalisation=training.recipe.normalisation)
            labels = training.labels[chosen]
            logits = network(images)
            loss = functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            loss_total += loss.item() * len(labels)
            num_correct += int((logits.argmax(dim=1) == labels).sum())
        curve.append((loss_total / 1297, 100 * num_correct / 1297))
    return curve


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor]]:
    """Every optimiser step's (step, indices of its images), as they happen."""
    steps: list[tuple[int, Tensor]] = []
    original = Training.take

    def spy(self: Training, chosen: Tensor, *, step: int, **more: Any) -> tuple[Tensor, ...]:
        steps.append((step, chosen.clone()))
        return original(self, chosen, step=step, **more)

    monkeypatch.setattr(Training, "take", spy)
    return steps


# ---------------------------------------------------------------- the same as a plain loop


@pytest.mark.parametrize("steps_per_block", [1, 4, 100])
def test_lightning_and_blocks_train_as_a_plain_loop_does(steps_per_block: int, tmp_path: Path) -> None:
    in_blocks = spec(f"steps_per_block={steps_per_block}")
    plain = training(in_blocks)
    expected = by_hand(plain, num_epochs=2)
    ours = training(in_blocks)
    reports = trained(ours, spec=in_blocks, folder=tmp_path)
    assert same(weights(ours.network), weights(plain.network))
    assert [report["accuracy_percent"] for report in reports] == [accuracy for _, accuracy in expected]
    assert [report["loss"] for report in reports] == pytest.approx([loss for loss, _ in expected], rel=1e-5)


def test_an_epoch_takes_each_image_once_the_partial_last_batch_included(
    tmp_path: Path, seen: list[tuple[int, Tensor]]
) -> None:
    trained(training(spec()), spec=spec(), folder=tmp_path)
    assert [step for step, _ in seen] == list(range(2 * STEPS_PER_EPOCH))
    sizes = [len(chosen) for _, chosen in seen]
    assert sizes == 2 * [*[64] * (STEPS_PER_EPOCH - 1), LAST_BATCH]
    first, second = (
        torch.cat([chosen for _, chosen in seen[epoch * STEPS_PER_EPOCH :][:STEPS_PER_EPOCH]]) for epoch in (0, 1)
    )
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(1297))
    assert first.tolist() != second.tolist()


def test_reports_count_optimiser_steps_and_give_the_last_steps_rate(tmp_path: Path) -> None:
    linear = spec(SMALL_BLOCKS, "recipe.schedule.name=linear", "recipe.optimizer.lr_peak=0.5", "recipe.epochs_total=4")
    reports = trained(training(linear), spec=linear, folder=tmp_path)
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4]
    assert [report["step"] for report in reports] == [21, 42, 63, 84]
    assert [report["lr"] for report in reports] == pytest.approx([0.5 * (1 - step / 84) for step in (20, 41, 62, 83)])
    assert {report["split"] for report in reports} == {"train"}


def test_lbfgs_counts_a_step_an_epoch_however_often_it_evaluates(tmp_path: Path) -> None:
    evaluations = []
    full = training(spec(*LBFGS))
    full.network.register_forward_hook(lambda *_: evaluations.append(1))
    reports = trained(full, spec=spec(*LBFGS), folder=tmp_path)
    assert [report["step"] for report in reports] == [1, 2, 3]
    assert len(evaluations) > 3
    assert reports[0]["loss"] == pytest.approx(_loss_at_start(spec(*LBFGS)), rel=1e-6)
    assert reports[2]["loss"] < reports[1]["loss"] < reports[0]["loss"]


def test_lbfgs_evaluates_no_point_twice_and_the_weights_do_not_show_it(tmp_path: Path) -> None:
    """Against torch's own L-BFGS, which evaluates anew at the start of each step."""
    points: list[bytes] = []
    full = training(spec(*LBFGS))
    full.network.register_forward_hook(lambda *_: points.append(b"".join(map(_bytes, full.network.parameters()))))
    ours = [report["loss"] for report in trained(full, spec=spec(*LBFGS), folder=tmp_path)]
    assert len(points) == len(set(points)) > 3
    again = training(spec(*LBFGS))
    again.memory = None
    theirs = [report["loss"] for report in trained(again, spec=spec(*LBFGS), folder=tmp_path)]
    assert ours == theirs
    assert same(weights(full.network), weights(again.network))


def _bytes(parameter: Tensor) -> bytes:
    return parameter.detach().numpy().tobytes()


@pytest.mark.parametrize(
    "overrides",
    [(*LBFGS, "recipe.batch_size=64"), ("model=mlp4", *LBFGS[1:])],
    ids=["batches", "dropout"],
)
def test_what_is_not_a_function_of_the_weights_alone_is_evaluated_each_time(overrides: tuple[str, ...]) -> None:
    assert training(spec(*overrides)).memory is None
    assert training(spec(*LBFGS)).memory is not None


def _loss_at_start(spec: RunSpec) -> float:
    """Mean cross-entropy plus ½·l2·Σw² of the untrained network, in NumPy."""
    fresh = training(spec)
    weight, bias = (parameter.detach().double().numpy() for parameter in fresh.network.parameters())
    logits = fresh.images.double().flatten(1).numpy() / 255 @ weight.T + bias
    picked = logits[np.arange(1297), fresh.labels.numpy()]
    cross_entropy = np.mean(np.log(np.exp(logits).sum(axis=1)) - picked)
    return float(cross_entropy + 0.5 * spec.recipe.loss.l2_penalty * (weight**2).sum())


@pytest.mark.parametrize("clip_norm", [0.01, 0.1])
def test_clipping_bounds_the_norm_of_the_whole_gradient(clip_norm: float, tmp_path: Path) -> None:
    plain_descent = ("recipe.optimizer={name: sgd, lr_peak: 1.0}", "recipe.epochs_total=1")
    free = _moved(spec(*plain_descent, "recipe.clip_norm=null"), folder=tmp_path)
    clipped = _moved(spec(*plain_descent, f"recipe.clip_norm={clip_norm}"), folder=tmp_path)
    assert free > 0.2
    assert clipped == pytest.approx(clip_norm, rel=1e-3)


def _moved(spec: RunSpec, *, folder: Path) -> float:
    """How far one step of 64 images moves all weights together; at rate 1, the norm of the gradient."""
    one_step = training(spec, num_images=64)
    before = weights(one_step.network)
    trained(one_step, spec=spec, folder=folder)
    return math.sqrt(sum(float((one_step.network.state_dict()[name] - before[name]).square().sum()) for name in before))


def test_steps_on_a_cpu_do_not_look_for_a_gpu_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning has torch's optimisers do so at each step: 0.1 ms, a tenth of the article's whole step."""
    searches: list[int] = []
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: searches.append(1) or -1)
    trained(training(spec()), spec=spec(), folder=tmp_path)
    assert len(searches) < 2 * STEPS_PER_EPOCH


# ---------------------------------------------------------------- randomness


@pytest.mark.parametrize("overrides", [(), DROPOUT, AFFINE, LBFGS], ids=["plain", "dropout", "affine", "lbfgs"])
def test_a_seed_gives_the_same_weights_and_curve_and_another_seed_does_not(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    a_spec = spec(*overrides)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(results))  # global state must not matter
        one = training(a_spec, seed=seed)
        reports = trained(one, spec=a_spec, folder=tmp_path)
        results.append((weights(one.network), [(report["loss"], report["accuracy_percent"]) for report in reports]))
    (first, first_curve), (again, again_curve), (other, other_curve) = results
    assert same(first, again)
    assert first_curve == again_curve
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("weight"))
    assert first_curve != other_curve


def test_every_block_drops_other_units_and_distorts_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []  # the next number of either source of randomness, at each block's first step
    original = Training.take

    def spy(
        self: Training, chosen: Tensor, *, step: int, generator: torch.Generator, **more: Any
    ) -> tuple[Tensor, ...]:
        if step % STEPS_PER_EPOCH % 4 == 0:
            drawn.append((float(torch.rand(1)), float(torch.rand(1, generator=generator))))
        return original(self, chosen, step=step, generator=generator, **more)

    monkeypatch.setattr(Training, "take", spy)
    trained(training(spec(SMALL_BLOCKS)), spec=spec(SMALL_BLOCKS), folder=tmp_path)
    assert len(drawn) == 12
    assert len({number for pair in drawn for number in pair}) == 24


def test_derived_seeds_differ_by_seed_purpose_and_step() -> None:
    keys = [(seed, purpose, step) for seed in (0, 1, 11) for purpose in ("order", "dropout") for step in (0, 1, 11)]
    derived = {derive(seed, purpose=purpose, step=step) for seed, purpose, step in keys}
    assert len(derived) == len(keys)
    assert all(0 <= value < 2**63 for value in derived)


def test_a_batch_of_everything_keeps_its_own_order() -> None:
    """So that its sums round alike in every epoch, also after a resume."""
    full = training(spec(*LBFGS))
    assert full.order(0).tolist() == full.order(7).tolist() == list(range(1297))


# ---------------------------------------------------------------- small images, memory format, blocks

GROWING = ("recipe.resolution={pixels: [4, 6], until_epoch: [1, 3]}",)


def any_size(spec: RunSpec) -> Training:
    """A training whose network takes images of any size."""
    plain = training(spec)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(8), plain.network)
    return Training(network, spec=spec, seed=0, images=plain.images, labels=plain.labels)


def shapes_seen(network: nn.Module) -> list[tuple[int, ...]]:
    """The shape of each batch that the network gets from now on."""
    seen: list[tuple[int, ...]] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    return seen


def test_the_network_sees_small_images_at_first_and_all_pixels_in_the_end(tmp_path: Path) -> None:
    growing = spec(*GROWING, "recipe.epochs_total=4")
    ours = any_size(growing)
    seen = shapes_seen(ours.network)
    trained(ours, spec=growing, folder=tmp_path)
    for epoch, pixels in enumerate((4, 6, 6, 8)):
        shapes = set(seen[epoch * STEPS_PER_EPOCH :][:STEPS_PER_EPOCH])
        assert shapes == {(64, 1, pixels, pixels), (LAST_BATCH, 1, pixels, pixels)}
    seen.clear()
    predict(ours.network, ours.images, labels=ours.labels, spec=growing, device=CPU)
    assert {shape[2:] for shape in seen} == {(8, 8)}


def test_one_batch_of_everything_grows_too(tmp_path: Path) -> None:
    growing = spec(*LBFGS, "recipe.resolution={pixels: [4], until_epoch: [1]}")
    ours = any_size(growing)
    seen = shapes_seen(ours.network)
    trained(ours, spec=growing, folder=tmp_path)
    assert (seen[0], seen[-1]) == ((1297, 1, 4, 4), (1297, 1, 8, 8))


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_kernels_have_the_memory_format_of_the_spec(channels_last: bool, tmp_path: Path) -> None:
    a_spec = spec(f"channels_last={channels_last}", *GROWING, "recipe.epochs_total=4")
    plain = training(a_spec)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 10))
    colours = plain.images.repeat(1, 3, 1, 1)
    ours = Training(network, spec=a_spec, seed=0, images=colours, labels=plain.labels)
    seen: list[tuple[Tensor, Tensor]] = []
    network.register_forward_pre_hook(lambda net, given: seen.append((given[0], net[0].weight)))
    trained(ours, spec=a_spec, folder=tmp_path)
    predict(network, colours, labels=plain.labels, spec=a_spec, device=CPU)
    assert len(seen) == 4 * STEPS_PER_EPOCH + 2  # 1,297 images are scored in two batches
    for tensor in (tensor for pair in seen for tensor in pair):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert tensor.is_contiguous() != channels_last


@pytest.mark.parametrize(("steps_per_block", "blocks"), [(1, 21), (4, 6), (10, 3), (21, 1), (100, 1)])
def test_a_block_is_looked_at_once_however_many_steps_it_has(
    steps_per_block: int, blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the loss makes a GPU wait."""
    looks: list[int] = []
    original = torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda value: looks.append(1) or original(value))
    in_blocks = spec(f"steps_per_block={steps_per_block}")
    reports = trained(training(in_blocks), spec=in_blocks, folder=tmp_path)
    assert len(looks) == 2 * blocks
    assert [report["step"] for report in reports] == [21, 42]


# ---------------------------------------------------------------- divergence and precision


def test_a_loss_that_is_not_finite_stops_training_and_says_where(tmp_path: Path) -> None:
    wild = spec(SMALL_BLOCKS, "recipe.optimizer={name: sgd, lr_peak: 1.0e+30}", "recipe.clip_norm=null")
    with pytest.raises(DivergenceError, match=r"not finite after step 3 \(epoch 1\)") as raised:
        trained(training(wild), spec=wild, folder=tmp_path)
    assert (raised.value.epoch, raised.value.step) == (0, 3)


def test_bfloat16_trains_with_other_numbers_and_keeps_its_weights_in_float32(tmp_path: Path) -> None:
    results = {}
    for precision in ("float32", "bfloat16"):
        a_spec = spec(f"precision={precision}", "recipe.epochs_total=5")
        one = training(a_spec)
        reports = trained(one, spec=a_spec, folder=tmp_path)
        results[precision] = weights(one.network)
        assert reports[-1]["accuracy_percent"] > 95
    assert not same(results["float32"], results["bfloat16"])
    assert {value.dtype for value in results["bfloat16"].values()} == {torch.float32}


def test_bfloat16_distorts_images_as_float32_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel coordinates in bfloat16 would be up to half a pixel off."""
    batches: dict[str, list[Tensor]] = {"float32": [], "bfloat16": []}
    original = Training.batch
    for precision, kept in batches.items():

        def spy(self: Training, chosen: Tensor, *, kept: list[Tensor] = kept, **rest: Any) -> tuple[Tensor, Tensor]:
            batch = original(self, chosen, **rest)
            kept.append(batch[0])
            return batch

        monkeypatch.setattr(Training, "batch", spy)
        a_spec = spec(*AFFINE, f"precision={precision}")
        trained(training(a_spec), spec=a_spec, folder=tmp_path)
    assert len(batches["bfloat16"]) == 2 * STEPS_PER_EPOCH
    assert all(torch.equal(*pair) for pair in zip(batches["float32"], batches["bfloat16"], strict=True))


# ---------------------------------------------------------------- predictions


def a_network() -> nn.Module:
    """A linear net on (1, 2, 2) images with fixed weights: 3 classes."""
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1, 0, 2], [0.5, 1, -2, 0], [-1, 0, 1, 1]]))
        layer.bias.copy_(torch.tensor([0.25, -0.5, 0.0]))
    return nn.Sequential(nn.Flatten(), layer)


def scored(network: nn.Module, images: Tensor, labels: Tensor, *, precision: str = "float32") -> Predictions:
    """`predict` with (x - 0.5) / 0.25 as normalisation."""
    a_spec = spec(f"precision={precision}", "recipe.normalisation={mean: [0.5], std: [0.25]}")
    return predict(network, images, labels=labels, spec=a_spec, device=CPU)


def some_images(count: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(5)
    return torch.tensor(rng.integers(0, 256, (count, 1, 2, 2), np.uint8)), torch.tensor(rng.integers(0, 3, count))


def test_confidence_is_the_softmax_of_the_predicted_class_in_the_images_order() -> None:
    images, labels = some_images(50)
    network = a_network()
    weight, bias = (parameter.detach().double().numpy() for parameter in network.parameters())
    logits = (images.flatten(1).double().numpy() / 255 - 0.5) / 0.25 @ weight.T + bias
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ours = scored(network, images, labels)
    assert ours.predicted.tolist() == softmax.argmax(axis=1).tolist()
    assert len(set(ours.predicted.tolist())) == 3
    np.testing.assert_allclose(ours.confidence.numpy(), softmax.max(axis=1), rtol=1e-5)
    assert ours.loss == pytest.approx(-np.log(softmax[np.arange(50), labels.numpy()]).mean(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_the_size_of_evaluation_batches_does_not_matter(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = some_images(50)
    whole = scored(a_network(), images, labels)
    monkeypatch.setattr(remeasure.training.inference, "EVALUATION_BATCH", size)
    parts = scored(a_network(), images, labels)
    assert parts.predicted.tolist() == whole.predicted.tolist()
    torch.testing.assert_close(parts.confidence, whole.confidence)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


def test_dropout_is_off_when_predicting() -> None:
    images, labels = some_images(50)
    dropping = nn.Sequential(a_network(), nn.Dropout(0.9)).train()
    assert torch.equal(scored(dropping, images, labels).confidence, scored(a_network(), images, labels).confidence)


def test_bfloat16_predicts_with_other_confidences() -> None:
    images, labels = some_images(50)
    exact, rounded = (scored(a_network(), images, labels, precision=kind) for kind in ("float32", "bfloat16"))
    assert not torch.equal(exact.confidence, rounded.confidence)
    torch.testing.assert_close(exact.confidence, rounded.confidence, atol=0.05, rtol=0)
    assert rounded.confidence.dtype == torch.float32


def test_a_network_that_trained_on_the_last_batch_of_one_image_is_fine(tmp_path: Path) -> None:
    single = dataclasses.replace(spec(), recipe=dataclasses.replace(spec().recipe, epochs_total=1))
    reports = trained(training(single, num_images=65), spec=single, folder=tmp_path)
    assert reports[0]["step"] == 2
