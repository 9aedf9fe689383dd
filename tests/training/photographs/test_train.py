"""DeiT-B's recipe: its values, its parts as timm has them, and tiny transformers that train through it."""

import dataclasses
import math
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.photographed import killed_loader
from tests.support.project import CHECKOUT
from tests.support.trained import same, weights
from timm.data import create_transform
from timm.data.mixup import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from remeasure.config.compose import compose
from remeasure.spec.base import DivergenceError, InputError
from remeasure.spec.photographs import Streaming
from remeasure.spec.recipe import Normalisation, Recipe
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.training.engines.base import Report
from remeasure.training.losses import training_loss
from remeasure.training.photographs import train as photographs_train
from remeasure.training.photographs import world as worlds
from remeasure.training.photographs.augment import Photographs, augmentation, epoch_order
from remeasure.training.photographs.train import StreamTraining, parameter_groups, set_drop_path

NUM_TRAIN = 1_281_167  # photographs of ImageNet's training split
NUM_FILES, BATCH, STEPS = 16, 4, 4  # of the small runs here: files, images a step, steps an epoch
SMALL = (
    "model=mlp2",  # the network is made here
    "data=cifar10",
    "recipe=deit_b",
    f"recipe.batch_size={BATCH}",
    "recipe.epochs_total=2",
    "recipe.schedule.epochs_warmup=0",
    "recipe.optimizer.lr_peak=1e-3",
    "recipe.streaming.transform.crop_pixels=16",
    "recipe.streaming.ema_decay=0.9",
    "recipe.streaming.scored=ema",
    "recipe.streaming.drop_path=0.5",
    "recipe.streaming.erase_probability=0.9",
    "steps_per_block=2",
)
PLAIN = (  # nothing is drawn but the order and each photograph's augmentation
    "recipe.streaming.mixup_alpha=0",
    "recipe.streaming.cutmix_alpha=0",
    "recipe.streaming.drop_path=0",
)


def spec(*overrides: str) -> RunSpec:
    return compose([*SMALL, *overrides]).spec(data_sha256="")


def deit_b(*overrides: str) -> Recipe:
    recipe = compose(["model=mlp2", "data=cifar10", "recipe=deit_b", *overrides]).recipe
    assert isinstance(recipe, Recipe)
    return recipe


def streaming_of(a_spec: RunSpec) -> Streaming:
    assert isinstance(a_spec.recipe, Recipe)
    assert a_spec.recipe.streaming is not None
    return a_spec.recipe.streaming


def tiny_vit(*, init: int = 0, num_classes: int = 10, pixels: int = 16, drop_path: float = 0.0) -> VisionTransformer:
    """Three blocks of 24 channels, 4 patches."""
    with torch.random.fork_rng():
        torch.manual_seed(init)
        return VisionTransformer(
            img_size=pixels,
            patch_size=pixels // 2,
            embed_dim=24,
            depth=3,
            num_heads=2,
            num_classes=num_classes,
            drop_path_rate=drop_path,
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photographs of noise, 40 x 30."""
    folder, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    made = [folder / f"{index}.JPEG" for index in range(NUM_FILES)]
    for path in made:
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return made


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    """100 real photographs: without them, tests are skipped, or fail where REMEASURE_REQUIRE_DATA is set."""
    root = paths.data_root() / "imagenet-sample/val"
    found = sorted(root.glob("*/*.JPEG"))
    if not found and os.environ.get("REMEASURE_REQUIRE_DATA"):
        pytest.fail(f"REMEASURE_REQUIRE_DATA is set, but {root} lacks the photographs")
    if not found:
        pytest.skip(f"{root} lacks the photographs")
    assert len(found) == 100
    return found


def labels_of(num: int, *, num_classes: int = 10) -> np.ndarray:
    return np.arange(num, dtype=np.int64) % num_classes


def train(
    a_spec: RunSpec,
    files: list[Path],
    folder: Path,
    *,
    network: nn.Module | None = None,
    seed: int = 0,
    num_workers: int = 0,
    report: Report = id,
) -> dict[str, torch.Tensor]:
    """The weights to score after training a tiny transformer."""
    network = network or tiny_vit()
    photographs_train.train(
        network,
        spec=a_spec,
        seed=seed,
        paths=files,
        labels=labels_of(len(files), num_classes=a_spec.data.num_classes),
        device_kind="cpu",
        num_workers=num_workers,
        checkpoint=folder / "checkpoint.ckpt",
        reports=[report],
    )
    return weights(network)


@pytest.fixture
def at_step() -> Iterator[Callable[[Callable[[int, torch.optim.Optimizer], None]], None]]:
    """Call a function of (step, optimizer) before each optimiser step."""
    handles = []

    def register(call: Callable[[int, torch.optim.Optimizer], None]) -> None:
        steps: list[int] = []

        def hook(optimizer: torch.optim.Optimizer, *_: object) -> None:
            steps.append(len(steps))
            call(steps[-1], optimizer)

        handles.append(register_optimizer_step_pre_hook(hook))

    yield register
    for handle in handles:
        handle.remove()


# ---------------------------------------------------------------- the recipe


def test_the_config_says_what_the_paper_says() -> None:
    """Touvron et al. 2021, Table 9; minimum, start and interpolation: their main.py."""
    recipe = deit_b()
    optimizer, schedule = recipe.optimizer, recipe.schedule
    assert (recipe.epochs_total, recipe.batch_size, recipe.clip_norm) == (300, 1024, None)
    assert (optimizer.name, optimizer.lr_peak, optimizer.weight_decay) == ("adamw", 0.0005 * 1024 / 512, 0.05)
    assert (schedule.name, schedule.epochs_warmup) == ("cosine", 5)
    assert schedule.lr_start_factor * optimizer.lr_peak == pytest.approx(1e-6)
    assert schedule.lr_end_factor * optimizer.lr_peak == pytest.approx(1e-5)
    assert recipe.loss.label_smoothing == 0.1
    expected = {
        "transform": {"crop_pixels": 224, "crop_pct": 0.875, "interpolation": "bicubic"},
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "erase_probability": 0.25,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "num_repeats": 3,
        "drop_path": 0.1,
        "ema_decay": 0.99996,
        "scored": "model",
    }
    assert recipe.streaming is not None
    assert dataclasses.asdict(recipe.streaming) == expected


def test_the_rate_follows_the_batch_and_its_ends_do_not() -> None:
    recipe = deit_b("recipe.batch_size=4096")
    assert recipe.optimizer.lr_peak == pytest.approx(4e-3)
    assert recipe.schedule.lr_start_factor * recipe.optimizer.lr_peak == pytest.approx(1e-6)
    assert recipe.schedule.lr_end_factor * recipe.optimizer.lr_peak == pytest.approx(1e-5)


def test_rates_are_those_of_timms_scheduler_on_imagenet() -> None:
    module = StreamTraining(
        tiny_vit(),
        spec=dataclasses.replace(spec(), recipe=deit_b()),
        seed=0,
        paths=[Path("nowhere")] * NUM_TRAIN,
        labels=labels_of(NUM_TRAIN),
        num_workers=0,
    )
    assert module.steps_per_epoch == 1251
    warmup, total = 5 * 1251, 300 * 1251
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=total - warmup,
        lr_min=1e-5,
        warmup_t=warmup,
        warmup_lr_init=1e-6,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    for step in (0, 1, 1251, warmup - 1, warmup, warmup + 1, total // 2, total - 1):
        assert module.learning_rate(step) == pytest.approx(theirs._get_lr(step)[0], rel=1e-9)
    assert module.learning_rate(0) == pytest.approx(1e-6)
    assert module.learning_rate(1251) == pytest.approx(1e-6 + (1e-3 - 1e-6) / 5)
    assert module.learning_rate(warmup) == pytest.approx(1e-3)
    assert module.learning_rate(total - 1) == pytest.approx(1e-5, rel=1e-6)


def test_every_step_has_its_rate_for_all_weights(files: list[Path], tmp_path: Path, at_step: Any) -> None:
    rates: list[set[float]] = []
    at_step(lambda _, optimizer: rates.append({group["lr"] for group in optimizer.param_groups}))
    train(spec("recipe.schedule.epochs_warmup=1"), files, tmp_path)
    warmup = [1e-6 + (1e-3 - 1e-6) * step / 4 for step in range(4)]
    decay = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert [len(values) for values in rates] == [1] * 8
    assert [min(values) for values in rates] == pytest.approx(warmup + decay)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("rand_augment=v0", "rand_augment: expected a policy such as rand-m9-mstd0.5-inc1, or null, got 'v0'"),
        ("erase_probability=1.5", "erase_probability: expected a fraction in [0, 1), got 1.5"),
        ("drop_path=-0.1", "drop_path: expected a fraction in [0, 1), got -0.1"),
        ("mixup_alpha=-1.0", "mixup_alpha: expected 0 or more, got -1.0"),
        ("cutmix_alpha=-1.0", "cutmix_alpha: expected 0 or more, got -1.0"),
        ("num_repeats=0", "num_repeats: expected 1 or more, got 0"),
        ("ema_decay=1.0", "ema_decay: expected a fraction in (0, 1) or null, got 1.0"),
    ],
)
def test_values_out_of_range_are_refused(override: str, fault: str) -> None:
    with pytest.raises(InputError) as refused:
        deit_b(f"recipe.streaming.{override}")
    assert refused.value.faults == (f"recipe.streaming.{fault}",)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (("recipe.streaming.scored=ema", "recipe.streaming.ema_decay=null"), "recipe.streaming.scored: the moving"),
        (("recipe.resolution={pixels: [16], until_epoch: [4]}",), "recipe.streaming: has its own augmentation"),
        (
            ("recipe.augmentation={name: crop, pad_pixels: 4, flip_probability: 0.5, cutout_pixels: 0}",),
            "recipe.streaming: has its own augmentation",
        ),
        (
            ("recipe.optimizer={name: lbfgs, weight_decay: null, betas: null, eps: null}",),
            "recipe.streaming: has adam, adamw, sgd, rmsprop, not recipe.optimizer.name=lbfgs",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(overrides: tuple[str, ...], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        deit_b(*overrides)


# ---------------------------------------------------------------- the parts


def test_augmentation_is_timms_with_the_arguments_of_deit(files: list[Path]) -> None:
    """datasets.py of their repository; its colour jitter of 0.4 does nothing beside RandAugment."""
    theirs = create_transform(
        16,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    recipe = deit_b("recipe.streaming.transform.crop_pixels=16")
    assert recipe.streaming is not None
    ours = augmentation(recipe.streaming, normalisation=recipe.normalisation)
    for seed, path in enumerate(files):
        with Image.open(path) as photograph:
            images = [_augmented(photograph, transform=transform, seed=seed) for transform in (theirs, ours)]
        assert images[0].shape == (3, 16, 16)
        assert torch.equal(*images)


def test_full_magnitude_leaves_no_bit_and_stops_nothing(files: list[Path]) -> None:
    """Posterising to 0 of 8 bits is black: x & ~255. Pillow 13 refuses it, and a run would end in its first steps."""
    streamed = dataclasses.replace(streaming_of(spec()), rand_augment="rand-m10-n1-inc1", erase_probability=0.0)
    transform = augmentation(streamed, normalisation=Normalisation(mean=(0.0,), std=(1.0,)))
    with Image.open(files[0]) as photograph:
        images = [_augmented(photograph, transform=transform, seed=seed) for seed in range(100)]
    num_black = sum(not image.any() for image in images)
    assert num_black > 0
    assert num_black < 30  # one operation of 15, applied to half of the images


def _augmented(photograph: Image.Image, *, transform: Any, seed: int) -> torch.Tensor:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return transform(photograph.convert("RGB"))


def test_one_mean_for_all_channels_is_three_alike() -> None:
    streamed = dataclasses.replace(streaming_of(spec()), rand_augment=None, erase_probability=0.0)
    grey = Image.new("RGB", (20, 20), (51, 102, 204))
    image = augmentation(streamed, normalisation=Normalisation(mean=(0.2,), std=(0.4,)))(grey)
    assert image[:, 0, 0].tolist() == pytest.approx([0.0, 0.5, 1.5])  # (51/255 - 0.2) / 0.4 and so on


def test_repeated_augmentation_shows_each_image_of_an_epoch_three_times() -> None:
    shared = {"num_images": 24, "num_repeats": 3, "seed": 0}
    order = epoch_order(0, **shared, world_size=1, rank=0)
    assert sorted(Counter(order).values()) == [3] * 8
    assert [order[place : place + 3] for place in range(0, 24, 3)] == [[index] * 3 for index in order[::3]]
    three = [epoch_order(0, **shared, world_size=3, rank=rank) for rank in range(3)]
    assert three[0] == three[1] == three[2] == order[::3]  # each device has one of the three
    two = [epoch_order(0, **shared, world_size=2, rank=rank) for rank in range(2)]
    assert [index for pair in zip(*two, strict=True) for index in pair] == order


def test_the_order_follows_the_seed_and_the_epoch_and_without_repeats_shows_all() -> None:
    def order(*, epoch: int, seed: int) -> list[int]:
        return epoch_order(epoch, num_images=300, num_repeats=1, seed=seed, world_size=1, rank=0)

    assert sorted(order(epoch=0, seed=0)) == list(range(300))
    assert order(epoch=0, seed=0) == order(epoch=0, seed=0)
    assert order(epoch=0, seed=0) != order(epoch=1, seed=0)
    assert order(epoch=0, seed=0) != order(epoch=0, seed=1)


def test_each_showing_of_an_image_is_another_draw_and_a_draw_is_always_the_same(files: list[Path]) -> None:
    streamed = streaming_of(spec())
    transform = augmentation(streamed, normalisation=deit_b().normalisation)
    shown = Photographs(
        files=np.array([os.fsencode(path) for path in files]), labels=labels_of(16), seed=0, transform=transform
    )
    other = Photographs(files=shown.files, labels=shown.labels, seed=1, transform=transform)
    images = [shown[3, draw][0] for draw in (0, 1, 2, 0)] + [other[3, 0][0]]
    assert shown[3, 0][1] == 3
    assert torch.equal(images[0], images[3])
    for first, second in ((0, 1), (0, 2), (1, 2), (0, 4)):
        assert not torch.equal(images[first], images[second])


def test_a_file_that_is_no_photograph_is_named(files: list[Path], tmp_path: Path) -> None:
    torn = tmp_path / "torn.JPEG"
    torn.write_bytes(files[0].read_bytes()[:300])
    for path in (torn, tmp_path / "missing.JPEG"):
        shown = Photographs(files=np.array([os.fsencode(path)]), labels=labels_of(1), seed=0, transform=lambda _: None)
        with pytest.raises(InputError, match=f"{path}: cannot be decoded"):
            shown[0, 0]


def test_decay_spares_biases_norms_positions_and_the_class_token() -> None:
    network = tiny_vit()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    spared, decayed = parameter_groups(network, weight_decay=0.05)
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    matrices = [
        f"blocks.{n}.{part}.weight" for n in range(3) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert {names[id(parameter)] for parameter in decayed["params"]} == {
        "patch_embed.proj.weight",
        "head.weight",
        *matrices,
    }
    assert {names[id(parameter)] for parameter in spared["params"]} == set(names.values()) - {
        names[id(parameter)] for parameter in decayed["params"]
    }
    assert {"pos_embed", "cls_token", "norm.weight", "head.bias"} <= {names[id(each)] for each in spared["params"]}


def test_drop_path_is_timms_and_leaves_weights_and_evaluation_alone() -> None:
    plain, ours, theirs = tiny_vit(), tiny_vit(), tiny_vit(drop_path=0.5)
    set_drop_path(ours, drop_path=0.5)
    assert [block.drop_path1.__class__.__name__ for block in ours.blocks] == ["Identity", "DropPath", "DropPath"]
    for name in ("drop_path1", "drop_path2"):
        rates = [[getattr(getattr(block, name), "drop_prob", 0.0) for block in net.blocks] for net in (ours, theirs)]
        assert rates[0] == rates[1] == [0.0, 0.25, 0.5]
    assert same(weights(ours), weights(plain))
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(ours(images), plain(images))
    assert torch.equal(ours.eval()(images), plain.eval()(images))
    set_drop_path(ours, drop_path=0.0)
    assert torch.equal(ours.train()(images), plain(images))


def test_drop_path_needs_a_network_with_blocks() -> None:
    set_drop_path(nn.Linear(2, 2), drop_path=0.0)
    with pytest.raises(InputError, match=r"recipe\.streaming\.drop_path: Linear has no residual blocks of timm's"):
        set_drop_path(nn.Linear(2, 2), drop_path=0.1)


def module(*overrides: str, files: list[Path]) -> StreamTraining:
    return StreamTraining(
        tiny_vit(), spec=spec(*overrides), seed=0, paths=files, labels=labels_of(len(files)), num_workers=0
    )


def test_without_mixing_the_targets_are_smoothed_labels(files: list[Path]) -> None:
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([3, 0, 9, 3])
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    plain = module(*PLAIN, files=files)
    unmixed, targets = plain.mixed(images, labels)
    assert unmixed is images
    assert targets[0].tolist() == pytest.approx([0.01, 0.01, 0.01, 0.91, *[0.01] * 6])  # 0.1 / 10, and 0.9 + 0.1 / 10
    loss = training_loss(logits, targets, loss=plain.loss, parameters=[])
    assert loss.item() == pytest.approx(LabelSmoothingCrossEntropy(0.1)(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("alphas", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)], ids=["both", "mixup", "cutmix"])
def test_mixing_and_its_loss_are_timms(alphas: tuple[float, float], files: list[Path]) -> None:
    mixing = module(
        f"recipe.streaming.mixup_alpha={alphas[0]}", f"recipe.streaming.cutmix_alpha={alphas[1]}", files=files
    )
    theirs = Mixup(mixup_alpha=alphas[0], cutmix_alpha=alphas[1], label_smoothing=0.1, num_classes=10)
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([3, 0, 9, 3])
    for draw in range(8):
        np.random.seed(draw)
        expected = theirs(images.clone(), labels)
        np.random.seed(draw)
        mixed = mixing.mixed(images.clone(), labels)
        assert torch.equal(mixed[0], expected[0])
        assert torch.equal(mixed[1], expected[1])
    assert not torch.equal(mixed[0], images)
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    loss = training_loss(logits, mixed[1], loss=mixing.loss, parameters=[])
    assert loss.item() == pytest.approx(SoftTargetCrossEntropy()(logits, mixed[1]).item(), rel=1e-6)


# ---------------------------------------------------------------- training


def test_a_tiny_transformer_trains_on_real_photographs(photographs: list[Path], tmp_path: Path) -> None:
    """DeiT-B's recipe as it is, but for sizes: bfloat16, channels last, two loader processes, the decayed batch."""
    network, points = tiny_vit(num_classes=100, pixels=32), []
    before = weights(network)
    sizes = ("recipe.batch_size=16", "recipe.epochs_total=2", "recipe.schedule.epochs_warmup=1")
    recipe = ("recipe=deit_b", *sizes, "recipe.streaming.transform.crop_pixels=32")
    a_spec = compose(["model=mlp2", "data=cifar10", "data.num_classes=100", *recipe, "precision=bfloat16"])
    a_spec = dataclasses.replace(a_spec.spec(data_sha256=""), channels_last=True)
    train(a_spec, photographs, tmp_path, network=network, num_workers=2, report=points.append)
    assert [(point["epoch"], point["step"]) for point in points] == [(1, 6), (2, 12)]
    assert all(3 < point["loss"] < 6 for point in points)  # log(100) = 4.6 is guessing
    after = weights(network)
    assert all(after[name].dtype == torch.float32 for name in after)
    assert [name for name in before if torch.equal(before[name], after[name])] == []


FLIPS = {
    "transform.interpolation": "bilinear",
    "rand_augment": "null",
    "erase_probability": "0",
    "mixup_alpha": "0",
    "cutmix_alpha": "0",
    "num_repeats": "1",
    "drop_path": "0",
    "ema_decay": "0.5",
    "scored": "model",
}
NOT_WEIGHTS = {"transform.crop_pixels", "transform.crop_pct"}  # the network's own size; how the test split is seen


def test_every_option_moves_the_weights_that_are_scored(files: list[Path], tmp_path: Path) -> None:
    options = {field.name for field in dataclasses.fields(Streaming)} - {"transform"}
    options |= {f"transform.{field.name}" for field in dataclasses.fields(streaming_of(spec()).transform)}
    assert options == set(FLIPS) | NOT_WEIGHTS
    plain = train(spec(), files, tmp_path)
    for option, value in FLIPS.items():
        flipped = train(spec(f"recipe.streaming.{option}={value}"), files, tmp_path)
        assert not same(flipped, plain), option


def test_spec_options_around_it_move_the_weights_too(files: list[Path], tmp_path: Path) -> None:
    plain = train(spec(), files, tmp_path)
    for override in (
        "recipe.loss.label_smoothing=0",
        "recipe.loss.l2_penalty=0.1",
        "recipe.optimizer.weight_decay=0",
        "recipe.normalisation.mean=[0.5, 0.5, 0.5]",
        "precision=bfloat16",
    ):
        assert not same(train(spec(override), files, tmp_path), plain), override


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_clipping_bounds_the_norm_of_the_whole_gradient(precision: str, files: list[Path], tmp_path: Path) -> None:
    norms: list[float] = []

    def measure(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"]]
        norms.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))

    handle = register_optimizer_step_post_hook(measure)
    try:
        train(spec("recipe.clip_norm=0.01", f"precision={precision}"), files, tmp_path)
        train(spec(f"precision={precision}"), files, tmp_path)
    finally:
        handle.remove()
    assert norms[: 2 * STEPS] == pytest.approx([0.01] * 2 * STEPS, rel=1e-3)
    assert min(norms[2 * STEPS :]) > 0.1


def test_an_epoch_decodes_as_many_photographs_as_there_are_each_as_its_own_draw(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items: list[tuple[int, int]] = []
    original = Photographs.__getitem__

    def spy(self: Photographs, item: tuple[int, int]) -> Any:
        items.append(item)
        return original(self, item)

    monkeypatch.setattr(Photographs, "__getitem__", spy)
    train(spec(), files, tmp_path)
    assert [draw for _, draw in items] == list(range(2 * NUM_FILES))
    counts = [Counter(index for index, _ in items[start : start + NUM_FILES]) for start in (0, NUM_FILES)]
    assert [sorted(count.values()) for count in counts] == [[1, *[3] * 5]] * 2  # 16 = 5 * 3 + 1
    assert counts[0].keys() != counts[1].keys()


def test_the_moving_average_is_hand_arithmetic(files: list[Path], tmp_path: Path) -> None:
    """Two epochs of one step each: 0.81·w0 + 0.09·w1 + 0.1·w2."""
    network = tiny_vit()
    seen = [weights(network)]
    one_step = spec(f"recipe.batch_size={NUM_FILES}")
    averaged = train(one_step, files, tmp_path, network=network, report=lambda _: seen.append(weights(network)))
    assert len(seen) == 3
    for name, value in averaged.items():
        expected = 0.81 * seen[0][name] + 0.09 * seen[1][name] + 0.1 * seen[2][name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    raw = train(spec(f"recipe.batch_size={NUM_FILES}", "recipe.streaming.scored=model"), files, tmp_path)
    assert same(raw, seen[2])


def test_a_seed_gives_the_same_weights_with_or_without_loader_processes_and_another_seed_does_not(
    files: list[Path], tmp_path: Path
) -> None:
    first = train(spec(), files, tmp_path)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert same(train(spec(), files, tmp_path, num_workers=2), first)
    assert not same(train(spec(), files, tmp_path, seed=1), first)


def test_a_loader_process_that_is_killed_ends_the_training(files: list[Path], tmp_path: Path) -> None:
    with killed_loader(), pytest.raises(ChildProcessError, match=r"SIGKILL \(out of memory\?\)"):
        train(spec("recipe.epochs_total=50"), files, tmp_path, num_workers=2)


@pytest.mark.parametrize("stop_before", [STEPS, STEPS + 3], ids=["epoch's end", "mid-epoch"])
def test_a_run_cut_short_goes_on_as_if_it_had_not_been(
    stop_before: int, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_step: Any
) -> None:
    unbroken: list[dict[str, Any]] = []
    (tmp_path / "unbroken").mkdir()
    expected = train(spec(), files, tmp_path / "unbroken", report=unbroken.append)
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")
    steps: list[int] = []

    def stop(step: int, _: torch.optim.Optimizer) -> None:
        steps.append(step)
        if step == stop_before:
            raise KeyboardInterrupt

    at_step(stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(spec(), files, tmp_path)
    resumed: list[dict[str, Any]] = []
    network = tiny_vit(init=1)  # all that counts is in the checkpoint, the moving average included
    assert same(train(spec(), files, tmp_path, network=network, report=resumed.append), expected)
    saved = stop_before // 2 * 2  # a block is two steps
    assert len(steps) == stop_before + 1 + 2 * STEPS - saved
    strip = [{key: value for key, value in point.items() if key != "seconds"} for point in (*resumed, unbroken[1])]
    assert strip[0] == strip[1]


def test_a_loss_that_is_not_finite_stops_the_run_at_the_end_of_its_block(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DivergenceError) as diverged:
        train(spec("recipe.optimizer.lr_peak=1e30"), files, tmp_path)
    assert (diverged.value.epoch, diverged.value.step) == (0, 1)


def test_a_batch_that_cannot_be_had_or_mixed_is_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.batch_size: expected at most the 16 images, got 17"):
        train(spec("recipe.batch_size=17"), files, tmp_path)
    with pytest.raises(InputError, match=r"recipe\.batch_size: expected an even number .* 1 devices .*, got 5 for all"):
        train(spec("recipe.batch_size=5"), files, tmp_path)
    train(spec("recipe.batch_size=5", *PLAIN), files, tmp_path)


def test_two_devices_train_as_one_does(files: list[Path], tmp_path: Path) -> None:
    """On CPUs, started as torchrun does it. What each device draws for itself is switched off."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **shared, "PYTHONPATH": f"{CHECKOUT}/src:{CHECKOUT}"}
    command = [sys.executable, __file__, str(files[0].parent), str(tmp_path)]
    both = [
        subprocess.Popen(command, env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    (first, points), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert same(first, second)
    expected: list[dict[str, Any]] = []
    alone = train(spec(*PLAIN), files, tmp_path, report=expected.append)
    for name, value in alone.items():
        # AdamW moves a weight by 1e-3 a step, and by a share of that where rounding decides a gradient's sign
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)
    assert [point["accuracy_percent"] for point in points] == [point["accuracy_percent"] for point in expected]
    assert [point["loss"] for point in points] == pytest.approx([point["loss"] for point in expected], rel=1e-4)


def _one_of_two(folder: Path, out: Path) -> None:
    """What each process of the test above does."""
    network, points = tiny_vit(), list[dict[str, Any]]()
    world = worlds.find(devices=2, num_nodes=None, device_kind="cpu")
    with worlds.connected(world, device_kind="cpu"):
        photographs_train.train(
            network,
            spec=spec(*PLAIN),
            seed=0,
            paths=[folder / f"{index}.JPEG" for index in range(NUM_FILES)],
            labels=labels_of(NUM_FILES),
            device_kind="cpu",
            num_workers=0,
            checkpoint=out / "checkpoint.ckpt",
            reports=[points.append],
            world=world,
        )
    torch.save((weights(network), points), out / f"{world.rank}.pt")


if __name__ == "__main__":
    _one_of_two(Path(sys.argv[1]), Path(sys.argv[2]))
