"""Help by hand: what it prints is right, its exit status tells, and nothing is recorded."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.support import trained
from tests.support.photographed import make_folder
from tests.support.project import Command, Project
from torch import nn
from torch.nn import functional

import remeasure.models.registry
from remeasure.models import registry

SMALL_VIT = (
    *("model=vit_b16", "model.options.architecture=vit_tiny_patch16_224", "data.num_train=7", "data.num_test=7"),
    *("recipe=deit_b", "recipe.streaming.transform.crop_pixels=32", "recipe.optimizer.lr_peak=1e-3"),
    *("recipe.batch_size=4", "precision=float32", "debug.num_images=2"),
)
DIGITS = ("data=digits", "model=mlp2", "recipe=article")


@pytest.fixture(autouse=True)
def nothing_is_recorded(project: Project) -> Iterator[None]:
    before = project.journals(), sorted(path.name for path in project.root.iterdir())
    yield
    assert (project.journals(), sorted(path.name for path in project.root.iterdir())) == before


# ---------------------------------------------------------------- overfit_batch


@pytest.mark.parametrize("model", ["mlp2", "mlp4", "logreg", "article_mlp"])
def test_a_sound_net_overfits_one_batch(model: str, project: Project, here: Command) -> None:
    ended = here(project, "train.py", "data=digits", f"model={model}", "recipe=article", "debug=overfit_batch")
    assert ended.status == 0, ended.stdout
    assert "overfitted: the loss is below 0.023" in ended.stdout  # ln 10 / 100
    assert "32 of 32 correct" in ended.stdout


def test_a_net_that_cannot_move_does_not(project: Project, here: Command) -> None:
    ended = here(
        project, "train.py", *DIGITS, "debug=overfit_batch", "recipe.optimizer.lr_peak=1e-9", "debug.num_steps=4"
    )
    assert ended.status == 1
    assert "not overfitted" in ended.stdout


# ---------------------------------------------------------------- one_step


def test_the_tables_of_one_step_hold_what_plain_torch_computes(project: Project, here: Command) -> None:
    ended = here(project, "train.py", *DIGITS, "debug=one_step")
    training = trained.training(trained.spec())
    images, labels = training.batch(training.order(0)[:64], step=0, generator=None)
    logits = training.network(images)
    loss = functional.cross_entropy(logits, labels)
    loss.backward()
    lines = {line.split("  ")[0]: line.split() for line in ended.stdout.splitlines() if line}
    assert lines["3 Linear"][2:] == ["64×10", "float32", *(f"{value:.3g}" for value in statistics(logits))]
    assert lines["(input)"][1:] == ["64×1×8×8", "float32", *(f"{value:.3g}" for value in statistics(images))]
    for name, parameter in training.network.named_parameters():  # before they are clipped
        assert parameter.grad is not None
        assert lines[name][3:5] == [f"{parameter.norm():.3g}", f"{parameter.grad.norm():.3g}"]
    assert f"loss {loss:.6f} on 64 images" in ended.stdout
    assert ended.status == 0


def statistics(values: torch.Tensor) -> list[float]:
    seen = values.detach()
    return [float(value) for value in (seen.min(), seen.max(), seen.mean(), seen.std())]


def test_a_parameter_that_no_gradient_comes_to_is_named(
    project: Project, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = registry.build

    def frozen(*arguments: object, **more: object) -> nn.Module:
        network = original(*arguments, **more)  # type: ignore[arg-type]
        next(network.parameters()).requires_grad_(False)
        return network

    monkeypatch.setattr(remeasure.models.registry, "build", frozen)
    ended = here(project, "train.py", *DIGITS, "debug=one_step")
    assert ended.status == 1
    assert "no gradient comes to: 1.weight" in ended.stdout


# ---------------------------------------------------------------- profile


def test_the_shares_of_a_step_sum_to_one(project: Project, here: Command) -> None:
    ended = here(project, "train.py", *DIGITS, "debug=profile", "debug.num_steps=3")
    shares = dict(re.findall(r"^  (\w+) +([\d.]+)%$", ended.stdout, re.MULTILINE))
    assert list(shares) == ["data", "forward", "backward", "optimiser"]
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.3)  # rounded
    assert "aten::addmm" in ended.stdout
    assert ended.status == 0


# ---------------------------------------------------------------- any model, any data


def test_photographs_are_looked_at_too(
    project: Project, here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path)
    shutil.copytree(tmp_path / "imagenet/val", tmp_path / "imagenet/train")
    monkeypatch.setenv("REMEASURE_DATA", str(tmp_path))
    ended = here(project, "train.py", *SMALL_VIT, "debug=one_step")
    assert ended.status == 0, ended.stdout + ended.stderr
    assert re.search(r"^\(input\) +2×3×32×32 +float32", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["debug=nope"], "debug: there is no 'nope'; valid: one_step, overfit_batch, profile"),
        ([*DIGITS, "debug=profile", "debug.num_steps=0"], "debug.num_steps: expected 1 or more, got 0"),
        ([*DIGITS, "debug=one_step", "engine=numpy"], "debug: looks at engine=serial, got numpy"),
        (["model=vit_b16", "debug=one_step"], "debug: this recipe only evaluates"),
    ],
)
def test_wrong_input_is_refused(overrides: list[str], fault: str, project: Project, here: Command) -> None:
    ended = here(project, "train.py", *overrides)
    assert ended.status == 2
    assert fault in ended.stderr
