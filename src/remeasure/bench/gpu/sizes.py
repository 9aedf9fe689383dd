"""Amounts to measure: on a GPU, and in the rehearsal on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rows are arguments of `reproduce.py measure`; `vit` and `resnet` are overrides of `train.py`.

    `steps`: of an epoch on noise.
    """

    first_rows: Sequence[str] = ("resnet18-cifar10", "--seeds", "5")
    last_rows: Sequence[str] = (
        *("logreg-mnist", "mlp2-mnist", "mlp4-mnist", "lenet5-mnist"),
        *("--seeds", "10", "--together", "10"),
    )
    matrix: int = 8192
    batches: Sequence[int] = (128, 512, 2048)
    photograph_batches: Sequence[int] = (64, 256, 512)
    resnet: Sequence[str] = ("model=resnet18",)
    resnet_pixels: Sequence[int | None] = (16, 24, None)
    hidden: Sequence[int] = (64, 256, 1024, 4096)
    seeds: Sequence[int] = (1, 10, 100)
    steps: int = 500
    checked_models: Sequence[str] = ("mlp2", "mlp4", "lenet5")
    checked_batch: int = 256
    num_images: int = 4_000
    vit: Sequence[str] = ("model=vit_b16",)
    repeats: int = 30


FULL = Sizes()
TINY = Sizes(
    first_rows=("logreg-digits", "--demo", "--seeds", "2"),
    last_rows=("mlp2-digits", "--demo", "--seeds", "2", "--together", "2"),
    matrix=512,
    batches=(2, 4),
    photograph_batches=(2,),
    resnet=("model=resnet18", "recipe=resnet18_fast", "precision=float32"),  # the row's Muon takes seconds a step
    resnet_pixels=(16, None),
    hidden=(16, 64),
    seeds=(1, 2),
    steps=3,
    checked_models=("mlp2",),
    checked_batch=2,
    num_images=16,
    vit=(
        "model=vit_b16",
        "model.options.architecture=vit_tiny_patch16_224",
        "recipe.batch_size=4",
        "precision=float32",
    ),
    repeats=2,
)
