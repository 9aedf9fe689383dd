"""Trainings like those of rows: each arm's spec with each seed, run, journaled and resumed in runs/claims."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.local import Workers
from remeasure.claims.context import Lab, Numbers
from remeasure.claims.ledger import Trainings
from remeasure.models import saved
from remeasure.models.mlp import ACTIVATIONS as MODULES
from remeasure.models.scratch.activations import ACTIVATIONS
from remeasure.runs import journal
from remeasure.runs.folder import Outcome, Place, attempts, finished
from remeasure.spec.base import FIRST_TUNING_SEED
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.tracking.observer import Observers
from remeasure.training.augment import normalise
from remeasure.training.inference import predict

MOST_IMAGES = 10_000  # of the training split, for the training accuracy
NUM_PROBES = 2000  # training images; a unit without slope on all of them is dead
DEAD_SLOPE = 1e-6
TUNED_ON = 10_000  # training images held back while a setting is chosen


def trainings(parameters: Trainings, *, seeds: Sequence[int], lab: Lab) -> list[Numbers]:
    """The numbers of each seed. All arms are trained first, side by side."""
    chosen = _chosen(parameters, lab=lab)
    specs = {}
    for arm, overrides in parameters.arms.items():
        extra = [parameters.choose[chosen[arm]]] if parameters.choose else []
        specs[arm] = lab.spec([*parameters.common, *overrides, *extra])
    lab.specs |= {arm: spec.spec_sha256 for arm, spec in specs.items()}
    first = {arm: 0 if spec.data.split == "test" else FIRST_TUNING_SEED for arm, spec in specs.items()}
    wanted = [(arm, first[arm] + seed) for seed in seeds for arm in specs]
    outcomes = lab.train([(specs[arm], seed) for arm, seed in wanted])
    numbers: list[Numbers] = [{} for _ in seeds]
    for index, ((arm, _), outcome) in enumerate(zip(wanted, outcomes, strict=True)):
        measured = {**measure(specs[arm], outcome=outcome, lab=lab), "chosen": float(chosen[arm])}
        numbers[index // len(specs)] |= {f"{arm}.{name}": value for name, value in measured.items()}
    return numbers


def _chosen(parameters: Trainings, *, lab: Lab) -> dict[str, int]:
    """For each arm the index of the override that is best on the validation split; 0 where there is no choice."""
    if not parameters.choose:
        return dict.fromkeys(parameters.arms, 0)
    wanted = {}
    for arm, overrides in parameters.arms.items():
        for index, extra in enumerate(parameters.choose):
            tuned = [*parameters.common, *overrides, extra, "data.split=validation", f"seed={FIRST_TUNING_SEED}"]
            if not any(override.startswith("data.num_validation=") for override in tuned):
                tuned.append(f"data.num_validation={TUNED_ON}")
            wanted[arm, index] = lab.spec(tuned)
    outcomes = lab.train([(spec, FIRST_TUNING_SEED) for spec in wanted.values()])
    scores: dict[str, list[float]] = {arm: [] for arm in parameters.arms}
    for (arm, _), outcome in zip(wanted, outcomes, strict=True):
        scores[arm].append(outcome.record.accuracy_percent or 0.0)  # a diverged run has no accuracy
    return {arm: each.index(max(each)) for arm, each in scores.items()}


# ---------------------------------------------------------------- the numbers of one training


def measure(spec: RunSpec, *, outcome: Outcome, lab: Lab) -> Numbers:
    """The numbers of `Trainings.measures`, without `chosen`; a diverged run has the accuracy of guessing."""
    score_percent, num_params = outcome.record.accuracy_percent, float(outcome.record.num_params)
    if score_percent is None:
        guess = 100 / spec.data.num_classes
        lost = {"score_percent": guess, "train_percent": guess, "gap_pp": 0.0, "dead_share": None}
        return {**lost, "diverged": 1.0, "num_params": num_params}
    network, split = saved.load(outcome.directory).network, lab.train_split(spec.data)
    num = min(len(split.labels) - spec.data.num_validation, MOST_IMAGES)
    images, labels = torch.from_numpy(split.images[:num]), torch.from_numpy(split.labels[:num])
    predicted = predict(network, images, labels=labels, spec=spec, device=torch.device("cpu")).predicted
    train_percent = 100 * int((predicted == labels).sum()) / num
    return {
        "score_percent": score_percent,
        "train_percent": train_percent,
        "gap_pp": train_percent - score_percent,
        "dead_share": dead_share(network, normalise(images[:NUM_PROBES], normalisation=spec.recipe.normalisation)),
        "diverged": 0.0,
        "num_params": num_params,
    }


@torch.inference_mode()
def dead_share(network: nn.Module, images: Tensor) -> float:
    """The share of hidden units whose slope is at most DEAD_SLOPE on all of these images (N, C, H, W)."""
    names = {module: name for name, module in MODULES.items() if name in ACTIVATIONS}
    num_dead = num_units = 0
    for layer in network.children():
        if (name := names.get(type(layer))) is not None:
            slopes = np.abs(ACTIVATIONS[name].derivative(images.double().numpy()))
            num_dead += int((slopes.max(axis=0) <= DEAD_SLOPE).sum())
            num_units += slopes.shape[1]
        images = layer(images)
    return num_dead / num_units if num_units else 0.0


# ---------------------------------------------------------------- the workers


def train_all(wanted: Sequence[tuple[RunSpec, int]], *, workers: Workers, observers: Observers) -> list[Outcome]:
    """The outcomes of (spec, seed), in the same order: those that are not finished in runs/claims are trained on all
    cores, and shown by `observers`. Raises what a run raises.
    """
    specs = {(spec.spec_sha256, seed): spec for spec, seed in wanted}
    found = {key: ended(spec, seed=key[1], place=workers.place) for key, spec in specs.items()}
    done = {key: outcome for key, outcome in found.items() if outcome}
    waiting = {key: spec for key, spec in specs.items() if key not in done}
    tasks = [Task(row="", seed=seed, spec=spec, fresh=False, keeps=(seed,)) for (_, seed), spec in waiting.items()]
    done |= zip(waiting, workers.run(tasks, watch=observers, keep=observers.keep), strict=True)
    return [done[spec.spec_sha256, seed] for spec, seed in wanted]


def ended(spec: RunSpec, *, seed: int, place: Place) -> Outcome | None:
    """The finished run, if any; the record of a run that is scored on the validation split is only in its journal."""
    if spec.data.split == "test":
        return finished(spec, seed=seed, place=place)
    for directory in reversed(attempts(spec, seed=seed, place=place)):
        event: Mapping[str, Any] | None = journal.last(journal.read(directory), "finished")
        if event:
            return Outcome(record=RunRecord(**event["record"]), directory=directory, reused=True)
    return None
