"""An installed package offers configs and code by an entry point."""

import json
import os
from pathlib import Path

import pytest
from tests.support.project import Project, write_all

MODEL = """
from torch import nn


def build(*, image_shape, num_classes, generator, width: int):
    hidden = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], width)
    nn.init.normal_(hidden.weight, std=0.1, generator=generator)
    return nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), nn.Linear(width, num_classes))
"""
CONFIG = """# @package _global_
defaults: [override /data: digits, override /recipe: their_recipe]
model: {name: their_net, builder: "their_nets.nets:build", options: {width: 16}}
"""
RECIPE = """defaults: ["/recipe_base@_here_", _self_]
name: their_recipe
epochs_total: 2
batch_size: 64
optimizer: {name: adam, lr_peak: 0.01}
normalisation: {mean: "${data.pixel_mean}", std: "${data.pixel_std}"}
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder of site packages in which the distribution their-nets is installed."""
    site = tmp_path / "site-packages"
    files = {
        "their_nets/__init__.py": "raise RuntimeError('imported, although only its configs were looked for')",
        "their_nets/nets.py": MODEL,
        "their_nets/conf/model/their_net.yaml": CONFIG,
        "their_nets/conf/recipe/their_recipe.yaml": RECIPE,
        "their_nets-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: their-nets\nVersion: 1.0\n",
        "their_nets-1.0.dist-info/entry_points.txt": "[remeasure.conf]\ntheir_nets = their_nets\n",
    }
    write_all(site, files)
    return site


def with_package(project: Project, site: Path, *arguments: str) -> tuple[int, str, str]:
    search = os.pathsep.join([str(project.root / "src"), str(site)])
    done = project.python("src/train.py", *arguments, cwd=project.root, PYTHONPATH=search)
    return done.returncode, done.stdout, done.stderr


def test_a_package_offers_a_model_and_a_recipe_by_name(project: Project, installed: Path) -> None:
    status, _, said = with_package(project, installed, "model=their_nut")
    assert (status, "did you mean 'their_net'" in said) == (2, True), said
    (installed / "their_nets" / "__init__.py").unlink()  # a package may have none
    status, printed, said = with_package(project, installed, "model=their_net", "observer=[terminal]")
    assert status == 0, said
    assert "num_params=1210" in printed.splitlines()[-1]
    (kept,) = project.runs.glob("their_net-digits-*/code.json")
    assert "their_nets/nets.py" in json.loads(kept.read_text())["files"]


def test_a_package_without_the_folder_is_told_by_name(project: Project, installed: Path) -> None:
    (installed / "their_nets-1.0.dist-info" / "entry_points.txt").write_text(
        "[remeasure.conf]\nnets = their_nets.more\n"
    )
    status, _, said = with_package(project, installed, "model=logreg")
    assert (status, said.count("\n")) == (2, 1)
    assert "installed package their-nets: its entry point remeasure.conf names their_nets.more" in said
