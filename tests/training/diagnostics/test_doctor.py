"""The doctor: each fault, planted in a real short training, is named, and nothing else is; healthy runs are silent."""

import json
import re
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from tests.support import trained
from torch import Tensor, nn

import remeasure.runs.execute
import remeasure.training.diagnostics.doctor
import remeasure.training.engines.loop
import remeasure.training.seeding
from remeasure.config.compose import compose
from remeasure.config.resolve import settled
from remeasure.data import catalog
from remeasure.data.files import Split
from remeasure.models import registry
from remeasure.runs.execute import execute
from remeasure.runs.folder import Place
from remeasure.runs.journal import Journal, read, under_way
from remeasure.runs.splits import Splits
from remeasure.spec.findings import ADVICE, CHECKLIST, EXPLAINS, Finding, finding
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.tracking.content.runs import run_content
from remeasure.tracking.terminal import Progress
from remeasure.training.diagnostics.curves import CurveMonitor
from remeasure.training.diagnostics.doctor import Doctor, Look, is_due, neighbours_agree

SIX = "recipe.epochs_total=6"
PLAIN_SGD = "recipe.optimizer={name: sgd, lr_peak: 0.001}"
ENGINES = {"serial": [], "numpy": ["engine=numpy"], "batched": ["engine=batched", "engine_width=2"]}
DEEP = "model.options.hidden_sizes=[64,64,64,64,64,64,64]"


class CutError(Exception):
    """The lights go out."""


def found(spec: RunSpec, folder: Path, *, seed: int = 0) -> list[Event]:
    """The findings in the journal of a run; of seeds that train together, those of `seed`."""
    outcome = trained.run(spec, folder, seed=seed)
    return [event for event in read(outcome.directory) if event["event"] == "finding"]


def names(spec: RunSpec, folder: Path, *, seed: int = 0) -> list[str]:
    return [event["name"] for event in found(spec, folder, seed=seed)]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[nn.Module], None]], None]:
    """Change each network as it is built."""
    original = registry.build

    def planted(change: Callable[[nn.Module], None]) -> None:
        def build(*given: Any, **named: Any) -> nn.Module:
            network = original(*given, **named)
            with torch.no_grad():
                change(network)
            return network

        monkeypatch.setattr(registry, "build", build)

    return planted


def linears(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


# ---------------------------------------------------------------- planted in the config


@pytest.mark.parametrize("engine", ["serial", "numpy", "batched"])
def test_shuffled_labels_are_named_in_every_engine(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Splits.to_train

    def shuffled(splits: Splits, *, seed: int) -> tuple[Tensor, Tensor]:
        images, labels = original(splits, seed=seed)
        return images, labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]

    monkeypatch.setattr(Splits, "to_train", shuffled)
    (event,) = found(trained.spec(SIX, *ENGINES[engine]), tmp_path)
    assert event["name"] == "labels look shuffled"
    assert event["evidence"].startswith("of 1000 training images ")
    assert "10.0% would have it by chance" in event["evidence"]


def test_shuffled_labels_of_real_digits_are_named_though_units_die_of_them(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["model=mlp2", "control=shuffled_labels", "recipe.epochs_total=3", "recipe.optimizer.lr_peak=0.01"]
    events = real(overrides, root=data_root, folder=tmp_path, num=10_000, monkeypatch=monkeypatch)
    assert [event["name"] for event in events] == ["labels look shuffled"]


def test_two_classes_swapped_are_seen_on_the_test_split_and_not_called_shuffled(tmp_path: Path) -> None:
    assert names(trained.spec(SIX, "control=swapped_classes"), tmp_path) == ["overfitting"]


@pytest.mark.parametrize(
    ("mean", "std"),
    [(0.0, 1 / 255), (0.0, 255.0)],
    ids=["pixels in 0..255", "divided by 255 twice"],
)
def test_an_input_that_is_not_normalised_is_named(mean: float, std: float, tmp_path: Path) -> None:
    spec = trained.spec(SIX, f"recipe.normalisation={{mean: [{mean}], std: [{std}]}}")
    assert names(spec, tmp_path) == ["input not normalised"]


def test_the_evidence_for_an_input_is_its_own_mean_and_deviation(tmp_path: Path) -> None:
    """The first batch in pixels of 0..255, by hand."""
    spec = trained.spec("recipe.normalisation={mean: [0.0], std: [0.00392156862745098]}")
    split = catalog.load_split(spec.data, "train", root=Path("nowhere"))
    first = torch.from_numpy(split.images)[remeasure.training.seeding.permutation(1297, seed=0, epoch=0)[:64]].float()
    (event,) = found(spec, tmp_path)
    assert f"mean {first.mean():.3g} and standard deviation {first.std():.3g}" in event["evidence"]


@pytest.mark.parametrize("engine", ["serial", "numpy", "batched"])
def test_a_loss_that_does_not_fall_from_the_start_is_named_in_every_engine(engine: str, tmp_path: Path) -> None:
    spec = trained.spec(SIX, "recipe.optimizer.lr_peak=1e-9", *ENGINES[engine])
    assert names(spec, tmp_path) == ["loss not falling"]


def test_a_plateau_is_named(tmp_path: Path) -> None:
    """The rate drops to nothing after the third epoch, long before the loss is low."""
    early = "recipe.schedule={name: milestones, milestones: [3], gamma: 1.0e-6}"
    spec = trained.spec("recipe.epochs_total=10", "recipe.optimizer={name: sgd, lr_peak: 0.01}", early)
    assert names(spec, tmp_path) == ["plateau"]


def test_a_net_that_knows_its_images_by_heart_is_named(tmp_path: Path) -> None:
    """57 images to train, 1,240 to validate."""
    held_back = ("data.num_validation=1240", "data.split=validation", "seed=1000")
    assert names(trained.spec("recipe.epochs_total=40", *held_back), tmp_path, seed=1000) == ["overfitting"]


def test_a_run_that_diverges_is_named_with_the_step_and_layer(tmp_path: Path) -> None:
    spec = trained.spec("recipe.optimizer={name: sgd, lr_peak: 1.0e+9}", "recipe.clip_norm=null")
    outcome = trained.run(spec, tmp_path)
    (event,) = [event for event in read(outcome.directory) if event["event"] == "finding"]
    fault = json.loads((outcome.directory / "divergence.json").read_text())
    assert event["name"] == "not finite"
    assert (
        event["evidence"] == f"the {fault['what']} of {fault['layer']} is not finite in step {fault['step']} (epoch 1)"
    )
    assert outcome.record.accuracy_percent is None


# ---------------------------------------------------------------- planted in the network


Plant = Callable[[Callable[[nn.Module], None]], None]


def test_dead_units_are_named_and_counted(plant: Plant, tmp_path: Path) -> None:
    """120 of the 256 units get a bias that no image overcomes; a few others may be 0 by nature."""

    def kill(network: nn.Module) -> None:
        linears(network)[0].bias[:120] = -1000.0

    plant(kill)
    (event,) = found(trained.spec(SIX), tmp_path)
    assert event["name"] == "dead units"
    counted = re.fullmatch(r"(\d+) of the 256 units of 2 \(ReLU\) are 0 on all of 640 images", event["evidence"])
    assert counted is not None
    assert 120 <= int(counted[1]) <= 125


def test_a_third_of_dead_units_is_not_named(plant: Plant, tmp_path: Path) -> None:
    def kill(network: nn.Module) -> None:
        linears(network)[0].bias[:85] = -1000.0

    plant(kill)
    assert names(trained.spec(SIX), tmp_path) == []


def test_a_frozen_layer_is_named(plant: Plant, tmp_path: Path) -> None:
    def freeze(network: nn.Module) -> None:
        linears(network)[1].weight.requires_grad_(False)

    plant(freeze)
    (event,) = found(trained.spec(SIX, "model=mlp4", "model.options.hidden_sizes=[32,32]"), tmp_path)
    assert event["name"] == "parameters without gradient"
    assert event["evidence"] == "in 10 steps none came to 1 of 6: 4.weight"


@pytest.mark.parametrize(("factor", "name"), [(0.3, "vanishing gradients"), (20.0, "exploding gradients")])
def test_vanishing_and_exploding_gradients_are_named(factor: float, name: str, plant: Plant, tmp_path: Path) -> None:
    """Eight layers of small weights take the gradient down by more than a factor of 3 each; those of large ones, up."""

    def scale(network: nn.Module) -> None:
        for layer in linears(network)[1:]:
            layer.weight.mul_(factor)

    plant(scale)
    assert names(trained.spec(SIX, DEEP, PLAIN_SGD), tmp_path) == [name]


def test_a_net_that_always_gives_one_answer_is_named(plant: Plant, tmp_path: Path) -> None:
    """Class 3 begins 1,000 ahead, and steps of this size never take that away."""

    def prefer(network: nn.Module) -> None:
        linears(network)[-1].bias[3] = 1000.0

    plant(prefer)
    (event,) = found(trained.spec(SIX, "recipe.optimizer={name: sgd, lr_peak: 1.0e-6}"), tmp_path)
    assert event["name"] == "accuracy stuck at 1/C"
    assert "one class gets 100% of the answers" in event["evidence"]


# ---------------------------------------------------------------- healthy runs of every row


HEALTHY = {
    "logreg-mnist": ["model=logreg", "recipe=lbfgs"],
    "mlp2-mnist": ["model=mlp2", "recipe.epochs_total=10"],
    "mlp2-mnist, batched": ["model=mlp2", "recipe.epochs_total=10", "engine=batched", "engine_width=2"],
    "mlp4-mnist": ["model=mlp4", "recipe=keras_mlp", "recipe.epochs_total=10"],
    "logreg-mnist-numpy": ["model=logreg", "engine=numpy", "recipe.epochs_total=10"],
    "mlp2-mnist-numpy": ["model=mlp2", "engine=numpy", "recipe.epochs_total=10"],
    "article": ["model=article_mlp", "recipe.epochs_total=10"],
}


@pytest.mark.parametrize("row", HEALTHY)
def test_a_healthy_run_is_silent(row: str, tmp_path: Path) -> None:
    assert found(trained.spec(*HEALTHY[row]), tmp_path) == []


def real(
    overrides: list[str], *, root: Path, folder: Path, num: int, monkeypatch: pytest.MonkeyPatch, seed: int = 0
) -> list[Event]:
    """The findings of a run on the first `num` training images of real data, scored on as many test images."""

    spec, loaded = settled(compose(overrides), device_kind="cpu").spec(data_sha256="0" * 64), {}
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    for split in splits:
        whole = catalog.load_split(spec.data, split, root=root)
        loaded[split] = Split(images=whole.images[:num], labels=whole.labels[:num], verified=True)
    monkeypatch.setattr(Splits, "_load", lambda _, split: loaded[split])
    place = Place(runs=folder / "runs", project=folder, data_root=root, device_kind="cpu")
    outcome = execute(spec, seed=seed, row="", place=place, sink=trained.quiet)
    return [event for event in read(outcome.directory) if event["event"] == "finding"]


@pytest.mark.parametrize(("recipe", "seed"), [("lenet5", 0), ("lenet5_plain", 0), ("lenet5_plain", 1)])
def test_a_healthy_lenet_is_silent(
    recipe: str, seed: int, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first the gradients that come to its first layer are a thousandth of those that come to its last one."""
    overrides = ["model=lenet5", f"recipe={recipe}", "recipe.epochs_total=4", "recipe.schedule.epochs_warmup=1"]
    overrides += ["steps_per_block=100"]
    assert real(overrides, root=data_root, folder=tmp_path, num=3840, monkeypatch=monkeypatch, seed=seed) == []


def test_a_healthy_resnet_is_silent(cifar10_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 steps, most of them on images of 8 pixels; the rate is scaled with the batch. Muon takes a second a step."""
    overrides = ["model=resnet18", "recipe.epochs_total=4", "recipe.batch_size=4", "recipe.optimizer.lr_peak=0.003125"]
    overrides += ["recipe.resolution={pixels: [8], until_epoch: [3]}", "recipe.schedule.epochs_warmup=0.8"]
    overrides += ["cpu_threads=1"]  # two wait for each other on a busy machine
    assert real(overrides, root=cifar10_root, folder=tmp_path, num=16, monkeypatch=monkeypatch) == []


def test_who_asks_for_no_doctor_gets_none(tmp_path: Path) -> None:
    """A seed whose labels a batched look would have called shuffled, and whose loss does not fall."""
    folder = tmp_path / "runs"
    place = Place(runs=folder, project=tmp_path, data_root=tmp_path, device_kind="cpu", doctor=False)
    for engine in ("serial", "batched"):
        spec = trained.spec(SIX, "recipe.optimizer.lr_peak=1e-9", *ENGINES[engine])
        outcome = execute(spec, seed=0, row="", place=place, sink=trained.quiet)
        assert not [event for event in read(outcome.directory) if event["event"] == "finding"]


# ---------------------------------------------------------------- it only looks


@pytest.mark.parametrize("overrides", [["model=mlp4"], ["model=logreg", "recipe=lbfgs"]], ids=["dropout", "lbfgs"])
def test_a_run_that_is_looked_at_ends_at_the_same_weights(overrides: list[str], tmp_path: Path) -> None:
    spec = trained.spec(*overrides, "recipe.epochs_total=3", "steps_per_block=4")
    ends = []
    for callbacks in ([], [Doctor([chart()])]):
        training = trained.training(spec)
        state = torch.get_rng_state()
        trained.trained(training, spec=spec, folder=tmp_path, callbacks=callbacks)
        ends.append((trained.weights(training.network), torch.get_rng_state()))
        torch.set_rng_state(state)
    assert trained.same(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])  # nothing was drawn


def test_it_looks_at_ten_steps_at_first_and_again_whenever_twice_as_many_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """84 steps, in blocks of 4 but for each epoch's 21st: the first ones that begin after 20, 40 and 80 are these."""
    spec = trained.spec("recipe.epochs_total=4", "steps_per_block=4")
    training, began = trained.training(spec), []
    original = remeasure.training.diagnostics.doctor.Look.__init__

    def spy(self: Look, *arguments: Any, **more: Any) -> None:
        began.append(training.num_steps)
        original(self, *arguments, **more)

    monkeypatch.setattr(remeasure.training.diagnostics.doctor.Look, "__init__", spy)
    trained.trained(training, spec=spec, folder=tmp_path, callbacks=[Doctor([chart()])])
    assert began == [0, 20, 41, 83]
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in training.network.modules())


def test_when_it_looks_follows_from_the_step_alone() -> None:
    """So that a run that goes on from step 60 is looked at where an unbroken one is."""
    assert [step for step in range(700) if is_due(step, batch_steps=1)] == [0, 20, 40, 80, 160, 320, 640]
    assert [step for step in range(0, 2000, 100) if is_due(step, batch_steps=100)] == [0, 100, 200, 400, 700, 1300]


def test_the_nearest_neighbour_is_found_as_by_scikit_learn() -> None:
    split = catalog.load_split(trained.spec().data, "train", root=Path("nowhere"))
    images, labels = split.images[:300], split.labels[:300]
    flat = images.reshape(300, -1).astype(float)
    _, nearest = NearestNeighbors(n_neighbors=2).fit(flat).kneighbors(flat)
    agreeing, expected = neighbours_agree(torch.from_numpy(images), labels=torch.from_numpy(labels))
    assert agreeing == pytest.approx(float((labels[nearest[:, 1]] == labels).mean()), abs=1 / 300)  # ties
    assert expected == pytest.approx(float(np.square(np.bincount(labels) / 300).sum()), rel=1e-6)


# ---------------------------------------------------------------- what a chart says


def chart(*, known: Sequence[str] = (), told: list[Finding] | None = None) -> CurveMonitor:
    """Of ten classes and ten epochs."""
    report = (told if told is not None else list[Finding]()).append
    return CurveMonitor(num_classes=10, epochs_total=10, report=report, known=known)


def point(epoch: int, *, loss: float, accuracy_percent: float, step: int = 100) -> dict[str, Any]:
    return {"epoch": epoch, "step": step, "loss": loss, "accuracy_percent": accuracy_percent}


def told_of(losses: Sequence[float], *, accuracies: Sequence[float], **more: Any) -> list[str]:
    told: list[Finding] = []
    seen = chart(told=told)
    for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), start=1):
        seen.see(point(epoch, loss=loss, accuracy_percent=accuracy, **more))
    return [each.name for each in told]


def test_accuracy_at_a_guess_while_the_loss_moves_is_stuck() -> None:
    assert told_of([90.0, 30.0, 4.0], accuracies=[9.9, 10.1, 10.0]) == ["accuracy stuck at 1/C"]
    assert told_of([90.0, 30.0, 4.0], accuracies=[9.9, 10.1, 15.1]) == []


def test_nothing_is_said_of_a_start_of_two_epochs_or_fewer_than_fifty_steps() -> None:
    assert told_of([2.3, 2.3], accuracies=[10.0, 10.0]) == []
    assert told_of([2.3, 2.3, 2.3], accuracies=[10.0, 10.0, 10.0], step=49) == []
    assert told_of([2.3, 2.3, 2.3], accuracies=[10.0, 10.0, 10.0], step=50) == ["loss not falling"]


def test_a_low_loss_that_stands_still_has_converged() -> None:
    """Half of ln 10 is 1.151."""
    assert told_of([2.0, 1.1, 1.1, 1.1, 1.1, 1.1], accuracies=[50.0] * 6) == []
    assert told_of([2.0, 1.2, 1.2, 1.2, 1.2, 1.2], accuracies=[50.0] * 6) == ["plateau"]


def test_ten_points_between_train_and_held_out_images_and_twice_the_loss_are_overfitting() -> None:
    for accuracy, loss, expected in ((88.1, 0.9, []), (88.0, 0.9, ["overfitting"]), (88.0, 0.7, [])):
        told: list[Finding] = []
        seen = chart(told=told)
        seen.see(point(1, loss=0.4, accuracy_percent=98.0))
        seen.scored(split="validation", loss=loss, accuracy_percent=accuracy)
        assert [each.name for each in told] == expected


def test_a_finding_is_told_once_and_its_consequences_not_at_all() -> None:
    told: list[Finding] = []
    seen = chart(told=told)
    for name in ("dead units", "loss not falling", "overfitting", "overfitting"):
        seen.note(name, "…")
    assert [each.name for each in told] == ["dead units", "overfitting"]


def test_what_was_told_before_an_interruption_is_not_told_again() -> None:
    told: list[Finding] = []
    chart(known=["dead units"], told=told).note("dead units", "…")
    assert told == []


def test_each_finding_has_causes_and_steps_in_the_order_of_the_checklist() -> None:
    order = list(CHECKLIST.values())
    for name in ADVICE:
        advised = finding(name, "…")
        assert advised.causes
        places = [order.index(step) for step in advised.next_steps]
        assert places
        assert places == sorted(places)
        assert len(places) == len(ADVICE[name][1])  # each step that is named exists
    assert {name for causes in EXPLAINS.items() for name in (causes[0], *causes[1])} <= set(ADVICE)


# ---------------------------------------------------------------- where it is told


def test_a_finding_is_told_on_the_terminal_in_the_journal_and_as_tags_and_the_run_ends_as_ever(tmp_path: Path) -> None:
    stream, spec = StringIO(), trained.spec(SIX, "recipe.optimizer.lr_peak=1e-9")
    outcome = trained.run(spec, tmp_path, sink=Progress(stream))
    (event,) = [event for event in read(outcome.directory) if event["event"] == "finding"]
    assert set(event) == {"event", "time", "name", "evidence", "causes", "next_steps"}
    lines = stream.getvalue().splitlines()
    start = lines.index(f"mlp2-digits seed 0: loss not falling: {event['evidence']}")
    assert lines[start + 1] == f"  try first: {event['next_steps'][0]} (docs/doctor.md)"
    content = run_content(outcome.directory, parent_id="")
    assert content is not None
    assert content.status == "FINISHED"
    assert (content.tags["findings"], content.tags["finding.loss_not_falling"]) == (event["name"], event["evidence"])
    assert outcome.record.accuracy_percent is not None


def test_a_healthy_run_has_no_such_tags(tmp_path: Path) -> None:
    content = run_content(trained.run(trained.spec(), tmp_path).directory, parent_id="")
    assert content is not None
    assert not [tag for tag in content.tags if tag.startswith("finding")]


def test_a_run_with_a_finding_is_still_under_way(tmp_path: Path) -> None:
    log = Journal(tmp_path)
    log.write("started", run_id="a")
    log.write("finding", name="plateau")
    assert under_way(tmp_path)


def test_a_run_that_was_cut_short_tells_each_finding_once(tmp_path: Path) -> None:
    spec = trained.spec(SIX, "recipe.normalisation={mean: [0.0], std: [0.00392156862745098]}")

    def cut(_: Path, event: Event) -> None:
        if event["event"] == "epoch":
            raise CutError

    with pytest.raises(CutError):
        trained.run(spec, tmp_path, sink=cut)
    assert names(spec, tmp_path) == ["input not normalised"]
