"""Loops that a user would write instead of this project, each as plain and complete as in a tutorial.

All read MNIST's four unpacked files under `root`/MNIST/raw. Except for rows and LeNet-5 they train the article's net:
784-256-128-64-10 with dropout 0.3 after the first two hidden layers, Adam at 1e-3, batches of 64, float32, gradients
clipped at norm 1. The loop with Lightning is in bench/baselines/lightning_template.py.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from remeasure.data import catalog, mnist
from remeasure.models import registry
from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.training.augment import Affine
from remeasure.training.optimizers import Adam, Lbfgs, RmsProp

MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels, as every tutorial has them
LEARNING_RATE, BATCH_SIZE, CLIP_NORM = 1e-3, 64, 1.0
SCORED_AT_ONCE = 1000

Split = Literal["train", "test"]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """`seconds` of each epoch, training only; and the accuracy on the official test split, if it was asked for."""

    seconds: tuple[float, ...]
    accuracy_percent: float | None = None

    @property
    def mean_seconds(self) -> float:
        return sum(self.seconds) / len(self.seconds)


def unpack(data_root: Path, *, root: Path) -> Path:
    """Put MNIST's files under `root`, unpacked, in torchvision's layout; returns `root`.

    Raises DataMissingError: they can be neither found nor downloaded.
    """
    for split in catalog.SPLITS:
        catalog.load_split(catalog.read_config("mnist", conf_dirs=paths.conf_dirs()), split, root=data_root)
    return unpack_unseen(data_root, root=root)


def unpack_unseen(data_root: Path, *, root: Path) -> Path:
    """`unpack` without checking that the files exist and are intact."""
    source, target = data_root / "MNIST/raw", root / "MNIST/raw"
    target.mkdir(parents=True, exist_ok=True)
    for stem in mnist.ALL:
        packed = source / f"{stem}.gz"
        content = mnist.unpack(packed.read_bytes()) if packed.is_file() else (source / stem).read_bytes()
        (target / stem).write_bytes(content)
    return root


# ---------------------------------------------------------------- (a) the article's own loop


def article_net() -> nn.Sequential:
    """784-256-128-64-10: 242,762 parameters, with torch's default initial weights."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def article_loop(*, root: Path, epochs: int, seed: int, num_images: int | None = None, scored: bool = False) -> Timed:
    """The article's loop: torchvision's MNIST, a DataLoader, one step a batch."""
    torch.manual_seed(seed)
    model, loader = article_net(), article_loader(root, split="train", num_images=num_images)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
        seconds.append(time.perf_counter() - began)
    scored_percent = accuracy_percent(model, article_loader(root, split="test")) if scored else None
    return Timed(seconds=tuple(seconds), accuracy_percent=scored_percent)


def article_loader(root: Path, *, split: Split, num_images: int | None = None) -> "DataLoader[tuple[Tensor, Tensor]]":
    """Batches of 64 normalised images and their labels; of the first `num_images`, or of all."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    dataset = datasets.MNIST(str(root), train=split == "train", transform=transform)
    if num_images is not None:
        dataset = Subset(dataset, range(num_images))
    return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=split == "train")


@torch.no_grad()
def accuracy_percent(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy on the images of these batches."""
    model.eval()
    num_correct = num_seen = 0
    for images, labels in batches:
        num_correct += int((model(images).argmax(dim=1) == labels).sum())
        num_seen += len(labels)
    return 100 * num_correct / num_seen


# ---------------------------------------------------------------- (c) scikit-learn


def sklearn_mlp(*, root: Path, epochs: int, seed: int, num_images: int | None = None, scored: bool = False) -> Timed:
    """MLPClassifier with the same layers, batches and Adam; it has neither dropout nor clipping.

    Its epochs cannot be timed separately: each has the mean.
    """
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        hidden_layer_sizes=(256, 128, 64),
        solver="adam",
        batch_size=BATCH_SIZE,
        learning_rate_init=LEARNING_RATE,
        max_iter=epochs,
        random_state=seed,
    )
    fitted = _fitted(classifier, root=root, num_images=num_images, scored=scored, mean=MEAN, std=STD)
    assert classifier.n_iter_ == epochs
    return replace(fitted, seconds=(fitted.mean_seconds / epochs,) * epochs)


def sklearn_logistic(
    *, root: Path, epochs: int, seed: int, num_images: int | None = None, scored: bool = False
) -> Timed:
    """LogisticRegression on pixels in [0, 1]; `epochs` are L-BFGS iterations, `seconds` one value, of the whole fit."""
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(solver="lbfgs", max_iter=epochs, random_state=seed)
    return _fitted(classifier, root=root, num_images=num_images, scored=scored, mean=0.0, std=1.0)


def _fitted(classifier: Any, *, root: Path, num_images: int | None, scored: bool, mean: float, std: float) -> Timed:
    """Seconds of the whole fit, on pixels x in [0, 1] as (x - mean) / std."""
    from sklearn.exceptions import ConvergenceWarning

    def arrays(split: Split, *, num: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        images, labels = in_memory(root, split=split, num_images=num, mean=mean, std=std)
        return images.flatten(1).numpy(), labels.numpy()

    images, labels = arrays("train", num=num_images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed
        began = time.perf_counter()
        classifier.fit(images, labels)
        seconds = time.perf_counter() - began
    scored_percent = float(100 * classifier.score(*arrays("test"))) if scored else None
    return Timed(seconds=(seconds,), accuracy_percent=scored_percent)


# ---------------------------------------------------------------- (d) by hand, all images in memory


def in_memory(
    root: Path, *, split: Split, num_images: int | None = None, mean: float = MEAN, std: float = STD
) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) float32, x -> (x - mean) / std for pixels x in [0, 1], and labels (N,) int64."""
    images, labels = (
        torch.tensor(mnist.parse_idx((root / "MNIST/raw" / stem).read_bytes(), name=stem)[:num_images])
        for stem in mnist.STEMS[split]
    )
    return (images.unsqueeze(1) / 255 - mean) / std, labels.long()


def hand_loop(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    clip_norm: float | None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    change: Change | None = None,
) -> tuple[float, ...]:
    """Seconds of each epoch of a loop without DataLoader. `change`: a function applied to each batch of images."""
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        model.train()
        for chosen in torch.split(torch.randperm(len(images)), batch_size):
            batch = images.index_select(0, chosen)  # twice as fast as images[chosen]
            if change:
                batch = change(batch)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(batch), labels.index_select(0, chosen))
            loss.backward()  # type: ignore[no-untyped-call]
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            if scheduler:
                scheduler.step()
        seconds.append(time.perf_counter() - began)
    return tuple(seconds)


def hand_article(**how: Any) -> Timed:
    """Seconds of each epoch of the article's net in `hand_loop`; called as `article_loop`."""
    return _by_adam(article_net, clip_norm=CLIP_NORM, **how)


def plain_lenet5(*, flush_denormal: bool = False, **how: Any) -> Timed:
    """LeNet-5 as usually reimplemented, without distortions: 61,706 parameters; called as `article_loop`.

    `flush_denormal`: torch's option.
    """
    torch.set_flush_denormal(flush_denormal)
    return _by_adam(lenet5_net, clip_norm=None, **how)


def _by_adam(
    net: Callable[[], nn.Module],
    *,
    root: Path,
    epochs: int,
    seed: int,
    num_images: int | None = None,
    scored: bool = False,
    clip_norm: float | None,
) -> Timed:
    """Seconds of each epoch of a net in `hand_loop`, with the article's optimiser and batches."""
    torch.manual_seed(seed)
    images, labels = in_memory(root, split="train", num_images=num_images)
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    seconds = hand_loop(
        model, images, labels, epochs=epochs, batch_size=BATCH_SIZE, optimizer=optimizer, clip_norm=clip_norm
    )
    return Timed(seconds=seconds, accuracy_percent=accuracy_percent(model, scored_batches(root)) if scored else None)


def lenet5_net() -> nn.Sequential:
    """Tanh, average pooling, a dense C3, a linear output."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )


def scored_batches(root: Path, *, mean: float = MEAN, std: float = STD) -> Iterator[tuple[Tensor, Tensor]]:
    """The 10,000 images of the official test split, and their labels."""
    images, labels = in_memory(root, split="test", mean=mean, std=std)
    return zip(torch.split(images, SCORED_AT_ONCE), torch.split(labels, SCORED_AT_ONCE), strict=True)


# ---------------------------------------------------------------- (d) for a row's own net and recipe


def hand_row(
    *, spec: RunSpec, root: Path, epochs: int, seed: int, num_images: int | None = None, scored: bool = False
) -> Timed:
    """A row's own net with its recipe's optimiser, batches, rate and distortions.

    With L-BFGS `epochs` is the number of iterations, and `seconds` has one value, for all of them.
    """
    recipe = spec.recipe
    assert isinstance(recipe, Recipe)
    torch.manual_seed(seed)
    model = registry.build(spec.model, image_shape=spec.input_shape, num_classes=10, generator_seed=seed)
    mean, std = recipe.normalisation.mean[0], recipe.normalisation.std[0]
    affine = recipe.augmentation if isinstance(recipe.augmentation, Affine) else None
    known = {"mean": 0.0, "std": 1.0} if affine else {"mean": mean, "std": std}  # distortions pad with 0 pixels
    images, labels = in_memory(root, split="train", num_images=num_images, **known)
    if recipe.optimizer.searches_lines:
        seconds = _lbfgs(model, images, labels, recipe=recipe, iterations=epochs)
    else:
        optimizer = _optimizer(model, recipe=recipe)
        seconds = hand_loop(
            model,
            images,
            labels,
            epochs=epochs,
            batch_size=recipe.batch_size,
            optimizer=optimizer,
            clip_norm=recipe.clip_norm,
            scheduler=_one_cycle(optimizer, recipe=recipe, num_images=len(images), epochs=epochs),
            change=(lambda batch: (distorted(batch, affine) - mean) / std) if affine else None,
        )
    scored_percent = accuracy_percent(model, scored_batches(root, mean=mean, std=std)) if scored else None
    return Timed(seconds=seconds, accuracy_percent=scored_percent)


def _optimizer(model: nn.Module, *, recipe: Recipe) -> torch.optim.Optimizer:
    optimizer = recipe.optimizer
    if isinstance(optimizer, Adam):
        return torch.optim.Adam(model.parameters(), lr=optimizer.lr_peak)
    assert isinstance(optimizer, RmsProp)
    assert optimizer.alpha is not None
    assert optimizer.eps is not None
    return torch.optim.RMSprop(model.parameters(), lr=optimizer.lr_peak, alpha=optimizer.alpha, eps=optimizer.eps)


def _one_cycle(
    optimizer: torch.optim.Optimizer, *, recipe: Recipe, num_images: int, epochs: int
) -> torch.optim.lr_scheduler.OneCycleLR | None:
    """The one-cycle rate, scaled to `epochs` epochs; None for a constant rate."""
    schedule = recipe.schedule
    if schedule.name == "constant":
        return None
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.optimizer.lr_peak,
        total_steps=epochs * -(-num_images // recipe.batch_size) + 1,  # it also steps after the last batch
        pct_start=schedule.epochs_warmup / recipe.epochs_total,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=1 / schedule.lr_start_factor,
    )


def distorted(images: Tensor, augmentation: Affine) -> Tensor:
    """The images (N, 1, 28, 28) in [0, 1], each under its own random affine map, padded with 0.

    One grid_sample for all: torchvision's RandomAffine takes images one by one, and nine times as long.
    """
    num = len(images)
    scaling, squeezing, shear, shift_x, shift_y = torch.empty(5, num).uniform_(-1, 1)
    stretch_x = torch.exp(scaling * augmentation.scaling + squeezing * augmentation.squeezing)
    stretch_y = torch.exp(scaling * augmentation.scaling - squeezing * augmentation.squeezing)
    pixels = 2 * augmentation.translation_pixels / images.shape[-1]
    maps = torch.zeros(num, 2, 3)
    maps[:, 0, 0], maps[:, 0, 1], maps[:, 0, 2] = stretch_x, shear * augmentation.shear, shift_x * pixels
    maps[:, 1, 1], maps[:, 1, 2] = stretch_y, shift_y * pixels
    maps[torch.rand(num) >= augmentation.probability] = torch.eye(2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _lbfgs(model: nn.Module, images: Tensor, labels: Tensor, *, recipe: Recipe, iterations: int) -> tuple[float, ...]:
    """Seconds of full-batch L-BFGS with a line search, on the recipe's loss."""
    assert isinstance(recipe.optimizer, Lbfgs)
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=iterations,
        max_eval=25 * iterations,  # else evaluations in the line search end it too soon
        history_size=recipe.optimizer.history_size or 10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = 0.5 * recipe.loss.l2_penalty * sum(weight.square().sum() for weight in weights)
        loss = functional.cross_entropy(model(images), labels) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    began = time.perf_counter()
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (time.perf_counter() - began,)
