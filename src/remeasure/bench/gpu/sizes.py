"""Amounts to measure: on a GPU, and in the rehearsal on the CPU."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rows are arguments of `reproduce.py measure`; `vit` and `resnet` are overrides of `train.py`.

    `steps`: of an epoch on noise.
    """

    first_rows: tuple[str, ...]
    last_rows: tuple[str, ...]
    matrix: int
    batches: tuple[int, ...]
    photograph_batches: tuple[int, ...]
    resnet: tuple[str, ...]
    resolutions: tuple[str, ...]
    hidden: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    checked_models: tuple[str, ...]
    checked_batch: int
    num_images: int
    vit: tuple[str, ...]
    repeats: int


FULL = Sizes(
    first_rows=("resnet18-cifar10", "--seeds", "5"),
    last_rows=("logreg-mnist", "mlp2-mnist", "mlp4-mnist", "lenet5-mnist", "--seeds", "10", "--together", "10"),
    matrix=8192,
    batches=(128, 512, 2048),
    photograph_batches=(64, 256, 512),
    resnet=("model=resnet18",),
    resolutions=("{pixels: [16], until_epoch: [15]}", "{pixels: [24], until_epoch: [15]}", "null"),
    hidden=(64, 256, 1024, 4096),
    seeds=(1, 10, 100),
    steps=500,
    checked_models=("mlp2", "mlp4", "lenet5"),
    checked_batch=256,
    num_images=4_000,
    vit=("model=vit_b16",),
    repeats=30,
)
TINY = Sizes(
    first_rows=("logreg-digits", "--demo", "--seeds", "2"),
    last_rows=("mlp2-digits", "--demo", "--seeds", "2", "--together", "2"),
    matrix=512,
    batches=(2, 4),
    photograph_batches=(2,),
    resnet=("model=resnet18", "precision=float32"),
    resolutions=("{pixels: [16], until_epoch: [15]}",),
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
