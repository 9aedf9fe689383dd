"""What it takes to add something, counted on a scratch copy of the project, in which one run then uses all of it."""

import pytest
from tests.support.project import Project, copy_project

MODEL = '''
"""A net of the user's."""

from torch import Generator, nn


def wide(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator, width: int) -> nn.Module:
    channels, height, pixels = image_shape
    hidden = nn.Linear(channels * height * pixels, width)
    nn.init.normal_(hidden.weight, std=0.1, generator=generator)
    return nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), nn.Linear(width, num_classes))
'''
DATA = '''
"""Images of the user's: noise with a bright row for each class."""

import numpy as np

from remeasure.data.files import Split


def read(split, root, files_md5, fetch):
    number = 200 if split == "train" else 50
    labels = np.arange(number) % 4
    images = np.random.default_rng(len(split)).integers(0, 50, (number, 1, 8, 8), dtype=np.uint8)
    images[np.arange(number), 0, 2 * labels] += 200
    return Split(images=images, labels=labels.astype(np.int64), verified=False)
'''
OPTIMIZER = '''

@dataclass(frozen=True, kw_only=True)
class SignSgd(Optimizer):
    """Adam without memory."""

    name: Literal["sign_sgd"] = "sign_sgd"
    eps: Positive = 1e-8

    def build(self, parameters: Any, *, rate: float | Tensor, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=rate, betas=(0.0, 0.0), eps=self.eps)
'''
LOSS = '''

@dataclass(frozen=True, kw_only=True)
class Focal(Loss):
    """Lin et al. 2017."""

    name: Literal["focal"] = "focal"
    focus: float

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        each = functional.cross_entropy(logits, labels, reduction="none")
        return ((1 - (-each).exp()) ** self.focus * each).mean()
'''
AUGMENTATION = '''

@dataclass(frozen=True, kw_only=True)
class Dimmed(Augmentation):
    """Darker images."""

    name: Literal["dimmed"] = "dimmed"
    share: float

    def apply(self, images: Tensor, *, normalisation: Normalisation, generator: torch.Generator | None) -> Tensor:
        return normalise((images * self.share).to(torch.uint8), normalisation=normalisation)
'''
ADDED = {
    "a model": {
        "src/remeasure/models/wide.py": MODEL,
        "conf/model/wide.yaml": (
            "# @package _global_\n"
            "defaults:\n  - override /data: rows\n  - override /recipe: article\n"
            "model:\n  name: wide\n  builder: remeasure.models.wide:wide\n  options: {width: 16}\n"
        ),
    },
    "a data set": {
        "rows.py": DATA,
        "conf/data/rows.yaml": (
            "name: rows\nsource: rows:read\ntitle: bright rows\nnum_classes: 4\n"
            "image_shape: [1, 8, 8]\nnum_train: 200\nnum_test: 50\npixel_mean: [0.2]\npixel_std: [0.3]\n"
            "num_validation: 0\nsplit: test\nfiles_md5: {}\nofficial_sha256: null\nknown_copies: {}\n"
        ),
    },
    "an optimiser": {"src/remeasure/training/optimizers.py": OPTIMIZER},
    "a loss": {"src/remeasure/training/losses.py": LOSS},
    "an augmentation": {"src/remeasure/training/augment.py": AUGMENTATION},
}
CHOSEN = (
    *("model=wide", "recipe.epochs_total=3"),
    "recipe.optimizer={name: sign_sgd, lr_peak: 0.01}",
    "recipe.loss={name: focal, focus: 2.0}",
    "recipe.augmentation={name: dimmed, share: 0.9}",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = copy_project(tmp_path_factory.mktemp("adding"))
    for files in ADDED.values():
        for name, text in files.items():
            with (project.root / name).open("a") as file:
                file.write(text)
    return project


def test_a_model_and_a_data_set_are_a_module_and_a_yaml_and_the_parts_of_a_recipe_a_class(project: Project) -> None:
    assert {kind: len(files) for kind, files in ADDED.items()} == {
        **{"a model": 2, "a data set": 2},
        **dict.fromkeys(("an optimiser", "a loss", "an augmentation"), 1),
    }
    done = project.run("train.py", *CHOSEN, "observer=[terminal]", cwd=project.root, REMEASURE_COMMIT="0" * 40)
    assert done.returncode == 0, done.stderr
    last = dict(part.split("=", 1) for part in done.stdout.splitlines()[-1].split())
    assert float(last["test_accuracy_percent"]) == 100.0, "a bright row is easy to see"
    assert last["num_params"] == str(64 * 16 + 16 + 16 * 4 + 4)


def test_what_cannot_be_imported_is_refused_by_name(project: Project) -> None:
    wrong = {"model.builder": "remeasure.models.wide:narrow", "data.source": "rows:write"}
    overrides = [f"{key}={name}" for key, name in wrong.items()]
    done = project.run("train.py", *CHOSEN, *overrides, cwd=project.root)
    assert (done.returncode, done.stdout) == (2, "")
    for key, name in wrong.items():
        assert f"{key}: {name} cannot be imported" in done.stderr
    assert "Traceback" not in done.stderr
