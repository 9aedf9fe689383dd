"""Trained arms on the digits: what they come to is measured right, chosen without the test split, and trained once."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.support import trained
from torch import nn

from remeasure.claims import trainings
from remeasure.claims.context import Lab
from remeasure.claims.ledger import Trainings
from remeasure.data import catalog
from remeasure.models import saved
from remeasure.runs.execute import execute
from remeasure.runs.folder import Outcome, Place
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.training import inference

COMMON = ["model=mlp2", "data=digits", "recipe=article", "recipe.epochs_total=2", "model.options.hidden_sizes=[16]"]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    place = Place(runs=tmp_path / "runs", project=tmp_path, data_root=tmp_path, device_kind="cpu")

    def train(wanted: Sequence[tuple[RunSpec, int]]) -> list[Outcome]:
        asked.append([(spec.data.split, seed) for spec, seed in wanted])
        done = (trainings.ended(spec, seed=seed, place=place) for spec, seed in wanted)
        return [
            outcome or execute(spec, seed=seed, row="", place=place, sink=trained.quiet, keeps=[seed])
            for outcome, (spec, seed) in zip(done, wanted, strict=True)
        ]

    asked: list[list[tuple[str, int]]] = []
    lab = Lab(place=place, results=tmp_path, train=train)
    lab.asked = asked
    return lab


def test_arms_are_measured_by_seed(lab: Lab) -> None:
    """Held back are 1,097 of 1,297: of 200 training images half a percent is one image."""
    sgd = ["recipe.optimizer.name=sgd", "recipe.optimizer.lr_peak=1e30", "recipe.clip_norm=null"]
    arms = {"sound": [], "lost": sgd}
    parameters = Trainings(common=[*COMMON, "data.num_validation=1097"], arms=arms, choose=[])
    numbers = trainings.trainings(parameters, seeds=[0, 1], lab=lab)
    assert [list(each) for each in numbers] == [parameters.numbers()] * 2
    assert lab.asked == [[("test", 0), ("test", 0), ("test", 1), ("test", 1)]]
    for seed, each in enumerate(numbers):
        record = trained_record(lab, parameters=parameters, seed=seed)
        assert each["sound.score_percent"] == record.accuracy_percent
        assert each["sound.train_percent"] % 0.5 == pytest.approx(0, abs=1e-9)
        assert each["sound.gap_pp"] == each["sound.train_percent"] - each["sound.score_percent"]
        assert each["sound.num_params"] == 64 * 16 + 16 + 16 * 10 + 10
        assert (each["sound.diverged"], each["lost.diverged"]) == (0, 1)
        assert (each["lost.score_percent"], each["lost.gap_pp"], each["lost.dead_share"]) == (10, 0, None)
    assert numbers[0] != numbers[1]


def trained_record(lab: Lab, *, parameters: Trainings, seed: int) -> RunRecord:
    outcome = trainings.ended(lab.spec([*parameters.common, *parameters.arms["sound"]]), seed=seed, place=lab.place)
    assert outcome is not None
    return outcome.record


def test_the_trained_network_is_the_one_that_is_measured(lab: Lab) -> None:
    """On its own test split its kept weights, with batch normalisation's means, give the record's accuracy."""
    spec = lab.spec([*COMMON, "model.options.batch_norm=true"])
    (outcome,) = lab.train([(spec, 0)])
    network = saved.load(outcome.directory).network
    split = catalog.load_split(spec.data, "test", root=lab.place.data_root)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    predicted = inference.predict(network, images, labels=labels, spec=spec, device=torch.device("cpu")).predicted
    assert int((predicted == labels).sum()) == outcome.record.num_correct


def test_dead_units_are_counted() -> None:
    """Of eight units one's bias is far below zero, and one is saturated where sigmoids saturate."""
    torch.manual_seed(0)
    images = torch.randn(50, 1, 2, 2)
    for activation, bias, share in (
        (nn.ReLU(), -100.0, 1 / 8),
        (nn.LeakyReLU(), -100.0, 0.0),
        (nn.Sigmoid(), 100.0, 1 / 8),
        (nn.ReLU(), 100.0, 0.0),
    ):
        layer = nn.Linear(4, 8)
        with torch.no_grad():
            layer.bias[3] = bias
        network = nn.Sequential(nn.Flatten(), layer, activation, nn.Linear(8, 2))
        assert trainings.dead_share(network, images) == share


def test_a_rate_is_chosen_on_the_validation_split_and_trained_once(lab: Lab) -> None:
    """At a rate of 1e-9 the net guesses. A choice leaves no record, and is not trained again for all that."""
    rates = ["recipe.optimizer.lr_peak=1e-9", "recipe.optimizer.lr_peak=0.01"]
    parameters = Trainings(common=[*COMMON, "data.num_validation=300"], arms={"plain": []}, choose=rates)
    (numbers,) = trainings.trainings(parameters, seeds=[0], lab=lab)
    assert numbers["plain.chosen"] == 1
    assert numbers["plain.score_percent"] > 50
    assert lab.asked == [[("validation", 1000)] * 2, [("test", 0)]]
    before = sorted(lab.place.runs.iterdir())
    assert len(before) == 3
    assert trainings.trainings(parameters, seeds=[0], lab=lab) == [numbers]
    assert sorted(lab.place.runs.iterdir()) == before


def test_seeds_of_arms_on_the_validation_split_are_tuning_seeds(lab: Lab) -> None:
    common = [*COMMON, "data.num_validation=300", "data.split=validation", "seed=1000"]
    trainings.trainings(Trainings(common=common, arms={"plain": []}, choose=[]), seeds=[0, 1], lab=lab)
    assert lab.asked == [[("validation", 1000), ("validation", 1001)]]
