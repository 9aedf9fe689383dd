"""The rivals are what they claim to be: loops that train the named net on all images, and learn."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from remeasure.bench.baselines import lightning_template, ours, pytorch_loops
from remeasure.bench.baselines.pytorch_loops import Timed
from remeasure.config.compose import compose
from remeasure.data import catalog
from remeasure.models import registry
from remeasure.runs.folder import Place
from remeasure.system import paths
from remeasure.training.augment import Affine

NUM_IMAGES, STEPS = 2_000, 32  # ceil(2000 / 64)
BATCHES = [64] * 31 + [16]  # 2000 - 31 * 64
ROW_STEPS = {"mlp2": 32, "mlp4": 16, "lenet5": 32}  # mlp4's batches hold 128
LOOPS: dict[str, Callable[..., Timed]] = {
    "article": pytorch_loops.article_loop,
    "template": lightning_template.lightning_template,
    "hand": pytorch_loops.hand_article,
    "plain lenet": pytorch_loops.plain_lenet5,
}


@pytest.fixture(scope="module")
def root(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pytorch_loops.unpack(data_root, root=tmp_path_factory.mktemp("torchvision"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two are slow beside other work."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def steps() -> Iterator[list[str]]:
    """The name of the optimiser of each step, of whatever torch optimiser."""
    taken: list[str] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: taken.append(type(optimizer).__name__))
    yield taken
    hook.remove()


@pytest.fixture
def norms() -> Iterator[list[float]]:
    """The norm of the whole gradient at each step."""
    found: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        found.append(float(nn.utils.get_total_norm([each for each in gradients if each is not None])))

    hook = register_optimizer_step_post_hook(look)
    yield found
    hook.remove()


@pytest.fixture
def shown() -> Iterator[list[Tensor]]:
    """The batches of images that a net in training mode was shown."""
    batches: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training and isinstance(module, nn.Sequential):
            batches.append(inputs[0].clone())

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    yield batches
    hook.remove()


def row(model: str, *, root: Path, epochs: int, overrides: tuple[str, ...] = (), **arguments: Any) -> Timed:
    spec = compose([f"model={model}", *overrides]).spec(data_sha256="")
    return pytorch_loops.hand_row(spec=spec, root=root, epochs=epochs, seed=0, num_images=NUM_IMAGES, **arguments)


def test_the_nets_have_the_parameters_that_are_published() -> None:
    assert registry.num_trainable(pytorch_loops.article_net()) == 242_762
    assert registry.num_trainable(lightning_template.ArticleModule()) == 242_762
    config = compose(["model=article_mlp"])
    built = registry.build(config.model, image_shape=(1, 28, 28), num_classes=10, generator_seed=0)
    assert registry.num_trainable(built) == 242_762
    assert (config.data.name, config.recipe.name) == ("mnist", "article")
    assert registry.num_trainable(pytorch_loops.lenet5_net()) == 61_706


def test_the_articles_net_drops_units_where_ours_does() -> None:
    built = registry.build(
        compose(["model=article_mlp"]).model, image_shape=(1, 28, 28), num_classes=10, generator_seed=0
    )
    for net in (pytorch_loops.article_net(), built):
        dropped = [layer.p for layer in net.modules() if isinstance(layer, nn.Dropout) and layer.p]
        assert dropped == [0.3, 0.3]


@pytest.mark.parametrize("name", LOOPS)
def test_every_torch_loop_sees_every_image_once_an_epoch_and_learns(
    name: str, root: Path, shown: list[Tensor], steps: list[str], norms: list[float]
) -> None:
    timed = LOOPS[name](root=root, epochs=2, seed=0, num_images=NUM_IMAGES, scored=True)
    assert steps == ["Adam"] * (2 * STEPS)
    assert [len(batch) for batch in shown] == BATCHES * 2
    expected, _ = pytorch_loops.in_memory(root, split="train", num_images=NUM_IMAGES, mean=0.1307, std=0.3081)
    first, second = torch.cat(shown[:STEPS]), torch.cat(shown[STEPS:])
    for epoch in (first, second):
        assert prints(epoch) == prints(expected)
    assert not torch.equal(first, second), "another order in the second epoch"
    clips = name != "plain lenet"  # whose gradients are longer than 1 at first
    assert (max(norms) <= 1.001) is clips
    assert len(timed.seconds) == 2
    assert timed.accuracy_percent is not None
    assert timed.accuracy_percent > 70, "chance is 10"


def prints(images: Tensor) -> Counter[float]:
    """Each image as one number; torchvision rounds otherwise than we do."""
    weights = torch.linspace(1, 2, 28 * 28, dtype=torch.float64)
    return Counter((images.double().flatten(1) @ weights).round(decimals=1).tolist())


@pytest.mark.parametrize("model", ROW_STEPS)
def test_a_row_by_hand_makes_our_steps_and_learns(model: str, root: Path, data_root: Path, steps: list[str]) -> None:
    timed = row(model, root=root, epochs=3, scored=True)
    by_hand = steps.copy()
    steps.clear()
    warmup = ("recipe.schedule.epochs_warmup=0.25",) if model == "lenet5" else ()
    config = compose([f"model={model}", "recipe.epochs_total=3", "data.num_validation=58000", *warmup])
    place = Place(runs=root / "runs", project=root, data_root=data_root, device_kind="cpu")
    ours.through_lightning(spec=config.spec(data_sha256=""), place=place, seed=0)
    assert by_hand == steps
    assert len(steps) == 3 * ROW_STEPS[model]
    assert len(timed.seconds) == 3
    assert timed.accuracy_percent is not None
    assert timed.accuracy_percent > 70


def test_l_bfgs_by_hand_comes_to_scikit_learns_answer(root: Path) -> None:
    penalty = f"recipe.loss.l2_penalty={1 / NUM_IMAGES}"  # scikit-learn's C = 1 for so many images
    by_hand = row("logreg", root=root, epochs=100, overrides=(penalty,), scored=True).accuracy_percent
    sklearn = pytorch_loops.sklearn_logistic(root=root, epochs=100, seed=0, num_images=NUM_IMAGES, scored=True)
    assert len(sklearn.seconds) == 1
    assert by_hand == pytest.approx(sklearn.accuracy_percent, abs=0.5)
    assert by_hand is not None
    assert by_hand > 80


def test_scikit_learns_mlp_learns(root: Path) -> None:
    timed = pytorch_loops.sklearn_mlp(root=root, epochs=3, seed=0, num_images=NUM_IMAGES, scored=True)
    assert len(timed.seconds) == 3
    assert timed.accuracy_percent is not None
    assert timed.accuracy_percent > 70


def test_images_in_memory_are_those_of_torchvision(root: Path) -> None:
    for split, num in (("train", 60_000), ("test", 10_000)):
        images, labels = pytorch_loops.in_memory(root, split=split, mean=0.1307, std=0.3081)
        assert (len(images), len(labels)) == (num, num)
        dataset = pytorch_loops.article_loader(root, split=split).dataset
        for index in (0, num - 1):
            torch.testing.assert_close(images[index], dataset[index][0])
            assert labels[index] == dataset[index][1]


def test_unpacking_reads_either_layout_and_leaves_the_data_root_alone(root: Path, tmp_path: Path) -> None:
    before = sorted(root.rglob("*"))
    again = pytorch_loops.unpack(root, root=tmp_path)
    assert sorted(root.rglob("*")) == before
    config = catalog.read_config("mnist", conf_dirs=paths.conf_dirs())
    raw = again / "MNIST/raw"
    assert len(list(raw.iterdir())) == 4
    assert catalog.load_split(config, "test", root=again, fetch=False).verified


def test_distorted_images_are_mapped_one_by_one_in_a_black_frame() -> None:
    augmentation = compose(["model=lenet5"]).recipe.augmentation
    assert isinstance(augmentation, Affine)
    image = torch.zeros(1, 1, 28, 28)
    image[..., 9:19, 9:19] = 1.0
    torch.manual_seed(0)
    moved = pytorch_loops.distorted(image.expand(400, 1, 28, 28), augmentation)
    assert moved.shape == (400, 1, 28, 28)
    untouched = sum(torch.allclose(one, image[0], atol=1e-5) for one in moved)
    assert 15 <= untouched <= 75, "one in ten: 40 of 400, and 6 standard deviations of 6"
    assert len({round(float(one.double().sum()), 6) for one in moved}) > 300
    assert not moved[..., [0, -1]].any()
    corners = pytorch_loops.distorted(torch.ones(400, 1, 28, 28), augmentation)
    assert (corners.amin(dim=(1, 2, 3)) == 0).sum() > 100, "what comes in from outside is 0"
