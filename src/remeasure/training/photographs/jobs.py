"""The engines for photographs: training on them (recipe.streaming), and evaluation of published weights."""

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import nn

from remeasure.models import pretrained, registry
from remeasure.spec.base import DeviceKind, DivergenceError, InputError
from remeasure.spec.run import RunSpec
from remeasure.system.startup import num_cores
from remeasure.training.diagnostics.nonfinite import Found, Tracer
from remeasure.training.engines.base import Data, Report, Scored
from remeasure.training.inference import Forward, refuse_not_finite
from remeasure.training.photographs import evaluate, train
from remeasure.training.photographs.world import ALONE, World
from remeasure.training.seeding import initial_network


class _Scoring:
    """What both jobs have: a network, and the photographs that score it, which the devices of a world share."""

    def __init__(
        self, spec: RunSpec, *, seeds: Sequence[int], data: Data, device_kind: DeviceKind, world: World = ALONE
    ) -> None:
        (self.seed,) = seeds
        self.spec, self.data, self.device_kind, self.world = spec, data, device_kind, world
        self.device = torch.device(f"cuda:{world.local_rank}" if device_kind == "cuda" else device_kind)
        self.scored_listing = data.listing("test")
        self.network = initial_network(spec, seed=self.seed)
        self.num_params = registry.num_trainable(self.network)

    def _scored(self, *, checkpoint: Path, progress: Report) -> Scored:
        run = Forward(self.network, spec=self.spec, device=self.device)
        wall_seconds, predictions = evaluate.evaluate(
            run, self.scored_listing, checkpoint=checkpoint, report=progress, world=self.world
        )
        labels = torch.tensor(self.scored_listing.labels)
        return Scored(network=self.network, predictions=predictions, labels=labels, wall_seconds=wall_seconds)


class PhotographsJob(_Scoring):
    """One seed, trained and scored by all devices of a world."""

    _wall_seconds = 0.0  # of the training

    def train(
        self, *, checkpoint: Path | None, reports: Sequence[Report], callbacks: Sequence[Callback] = ()
    ) -> Mapping[int, DivergenceError]:
        try:
            self._wall_seconds = self._fit(self.network, checkpoint=checkpoint, reports=reports, callbacks=callbacks)
        except DivergenceError as error:
            return {0: error}
        return {}

    def _fit(self, network: nn.Module, **more: Any) -> float:
        listing = self.data.listing("train")
        return train.train(
            network,
            spec=self.spec,
            seed=self.seed,
            paths=[f"{listing.place}/{name}" for name in listing.names],
            labels=listing.labels,
            device_kind=self.device_kind,
            world=self.world,
            num_workers=max(num_cores() // self.world.devices, 1),
            **more,
        )

    def score(self, index: int, *, checkpoint: Path, progress: Report) -> Scored:  # noqa: ARG002
        scored = self._scored(checkpoint=checkpoint.with_suffix(".npz"), progress=progress)
        refuse_not_finite(scored.predictions, spec=self.spec)
        return replace(scored, wall_seconds=self._wall_seconds)

    def trace(self, seeds: Collection[int], *, until: int, checkpoint: Path) -> Mapping[int, Found]:
        """Nothing on several devices: the other processes have ended, and a replay would wait for them."""
        tracer = Tracer(seeds, until=until)
        if self.world.size == 1:
            network = initial_network(self.spec, seed=self.seed)
            with contextlib.suppress(DivergenceError):
                self._fit(network, checkpoint=checkpoint, reports=[], callbacks=[tracer])
        return tracer.found


class EvaluationJob(_Scoring):
    """Published weights on the photographs of the test split."""

    def __init__(self, spec: RunSpec, **more: Any) -> None:
        super().__init__(spec, **more)
        path = pretrained.locate(spec)
        assert path is not None
        self.weights = path
        pretrained.load(self.network, path, sha256=spec.weights_sha256)

    def train(self, **_: Any) -> Mapping[int, DivergenceError]:
        """Nothing."""
        return {}

    def score(self, index: int, *, checkpoint: Path, progress: Report) -> Scored:  # noqa: ARG002
        """Raises InputError if the answers are not finite."""
        scored = self._scored(checkpoint=checkpoint, progress=progress)
        if not math.isfinite(scored.predictions.loss):
            raise InputError(
                f"{self.weights}: with these weights the net's answers are not finite in {self.spec.precision}"
            )
        return scored

    def trace(self, seeds: Collection[int], *, until: int, checkpoint: Path) -> Mapping[int, Found]:  # noqa: ARG002
        """Nothing."""
        return {}
