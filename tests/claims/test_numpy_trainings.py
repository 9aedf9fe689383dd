"""Trainings from scratch take the steps that torch takes, forgotten gradients, clipping and squared error included."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from remeasure.claims import numpy_trainings
from remeasure.claims.context import Lab
from remeasure.claims.ledger import ScratchArm, ScratchTrainings
from remeasure.claims.numpy_trainings import Images
from remeasure.data import catalog
from remeasure.data.files import Split
from remeasure.models.scratch.layers import Dense
from remeasure.runs.folder import Place
from remeasure.spec.run import DataSpec

ARM = ScratchArm(
    hidden_sizes=[6],
    activation="tanh",
    std_factor=1.0,
    loss="cross_entropy",
    lr=0.3,
    clip_norm=None,
    clears_gradients=True,
)
RUNS = ScratchTrainings(
    data="digits", num_images=900, num_validation=300, batch_size=32, epochs_total=2, choose_lr=[], arms={"plain": ARM}
)
SOME = Images(inputs=np.random.default_rng(1).standard_normal((12, 4)).astype(np.float32), labels=np.arange(12) % 3)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    place = Place(runs=tmp_path / "runs", project=tmp_path, data_root=tmp_path, device_kind="cpu")
    return Lab(place=place, results=tmp_path, train=lambda wanted: [])  # noqa: ARG005


def by_torch(arm: ScratchArm, *, seed: int) -> list[torch.Tensor]:
    """The weights after an epoch in batches of 5, from the same initial ones, in the same order."""
    rng = np.random.default_rng(seed)
    layers = [
        layer for layer in numpy_trainings._network(arm, sizes=[4, 6, 3], rng=rng).layers if isinstance(layer, Dense)
    ]
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter, array in zip(net.parameters(), (a for layer in layers for a in layer.parameters), strict=True):
            parameter.copy_(torch.from_numpy(array))
    optimizer = torch.optim.SGD(net.parameters(), lr=arm.lr)
    order = torch.from_numpy(rng.permutation(12))
    inputs, labels = torch.from_numpy(SOME.inputs), torch.from_numpy(SOME.labels)
    for batch in order.split(5):
        if arm.clears_gradients:
            optimizer.zero_grad()
        logits = net(inputs[batch])
        if arm.loss == "mse":
            one_hot = nn.functional.one_hot(labels[batch], 3).float()
            loss = nn.functional.mse_loss(logits.softmax(dim=1), one_hot)
        else:
            loss = nn.functional.cross_entropy(logits, labels[batch])
        loss.backward()
        if arm.clip_norm:
            nn.utils.clip_grad_norm_(net.parameters(), arm.clip_norm)
        optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


@pytest.mark.parametrize(
    "changes", [{}, {"clears_gradients": False}, {"loss": "mse"}, {"clip_norm": 0.1}], ids=lambda each: str(each)
)
def test_the_steps_are_torchs(changes: dict[str, object]) -> None:
    arm = dataclasses.replace(ARM, **changes)
    parameters = dataclasses.replace(RUNS, batch_size=5, epochs_total=1)
    trained = numpy_trainings.fit(arm, parameters=parameters, images=SOME, seed=3)
    for ours, theirs in zip(trained.network.parameters, by_torch(arm, seed=3), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-6)
    if changes:
        plain = numpy_trainings.fit(ARM, parameters=parameters, images=SOME, seed=3)
        assert not np.allclose(plain.network.parameters[0], trained.network.parameters[0], rtol=1e-3)


def test_gradients_that_explode_are_seen_and_guess(lab: Lab) -> None:
    deep = dataclasses.replace(ARM, hidden_sizes=[16] * 6, activation="relu", lr=0.1)
    arms = {"he": deep, "large": dataclasses.replace(deep, std_factor=20.0)}
    parameters = dataclasses.replace(RUNS, arms=arms, epochs_total=1)
    (numbers,) = numpy_trainings.scratch_trainings(parameters, seeds=[0], lab=lab)
    assert list(numbers) == parameters.numbers()
    assert (numbers["he.diverged"], numbers["large.diverged"]) == (0, 1)
    assert numbers["large.score_percent"] == 10  # one class in ten
    steps = numbers["large.first_norm_decades"] - numbers["he.first_norm_decades"]
    assert steps == pytest.approx(6 * np.log10(20), abs=1.5)  # ∂L/∂W holds the six other layers' scales


def test_a_rate_is_chosen_without_the_test_split(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of 1e-6 leaves the net where it was."""
    read, seen = catalog.load_split, []

    def watched(spec: DataSpec, split: str, *, root: Path) -> Split:
        seen.append(split)
        return read(spec, split, root=root)

    fitted: list[tuple[str, int]] = []
    fit = numpy_trainings.fit

    def noted(arm: ScratchArm, **more: object) -> numpy_trainings.Trained:
        fitted.append((seen[-1], more["seed"]))
        return fit(arm, **more)

    lab.data_spec("digits")  # its fingerprint is over both splits, and taken once
    monkeypatch.setattr(catalog, "load_split", watched)
    monkeypatch.setattr(numpy_trainings, "fit", noted)
    parameters = dataclasses.replace(RUNS, choose_lr=[1e-6, 0.3], arms={"plain": dataclasses.replace(ARM, lr=1e-6)})
    (numbers,) = numpy_trainings.scratch_trainings(parameters, seeds=[0], lab=lab)
    assert numbers["plain.lr"] == 0.3
    assert fitted == [("train", 1000), ("train", 1000), ("train", 0)]
    assert seen == ["train", "test"]
