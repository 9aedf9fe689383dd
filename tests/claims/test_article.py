"""`experiment=article` is the article's own loop: its net, its settings, and a line an epoch."""

import pytest
from tests.conftest import Command
from tests.support.project import Project

from remeasure.config import compose
from remeasure.models import registry
from remeasure.models.registry import num_trainable
from remeasure.tracking import mlflow_observer


def test_it_trains_what_the_article_trains() -> None:
    """784·256 + 256 + 256·128 + 128 + 128·64 + 64 + 64·10 + 10 = 242,762 parameters."""
    config = compose.compose(["experiment=article"])
    network = registry.build(config.model, image_shape=(1, 28, 28), num_classes=10, generator_seed=0)
    assert num_trainable(network) == 242_762
    assert config.model.options["dropout"] == [0.3, 0.3, 0.0]
    recipe = config.recipe
    assert (recipe.optimizer.name, recipe.optimizer.lr_peak, recipe.schedule.name) == ("adam", 0.001, "constant")
    assert (recipe.batch_size, recipe.epochs_total, recipe.clip_norm) == (64, 10, 1.0)
    assert (config.data.name, config.data.split, config.seed) == ("mnist", "test", 0)


def test_each_epoch_has_a_line_and_the_test_split_the_last_one(
    here: Command, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_observer, "_tracker", lambda project: None)  # noqa: ARG005
    arguments = ("data=digits", "recipe.epochs_total=3", "device=cpu")
    ended = here(project, "train.py", "experiment=article", *arguments)
    assert ended.status == 0, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("Epoch ")]
    assert [line.partition(" loss ")[0] for line in lines] == [
        *(f"Epoch {number}/3, train" for number in (1, 2, 3)),
        "Epoch 3/3, test",
    ]
    accuracy = ended.stdout.partition("test_accuracy_percent=")[2].partition(" ")[0]
    assert lines[-1].endswith(f"test accuracy {float(accuracy):.2f} %")
    quiet = here(project, "train.py", "experiment=article", "print_epochs=false", "fresh=true", *arguments)
    assert "Epoch " not in quiet.stderr
