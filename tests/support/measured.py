"""A tiny measured row for tests: 5 seeds on 40 test items, of which 38, 37, 38, 37, 38 are right.

The doctor found something in seeds 1 and 3.
"""

import dataclasses
from pathlib import Path

import numpy as np

from remeasure.judging.records import RowResults, SeedResults, from_results, put_together
from remeasure.spec.base import canonical_sha256
from remeasure.spec.record import CurvePoint, FoundPoint, RunRecord
from remeasure.spec.run import TRAINING_VERSION, spec_sha256
from remeasure.system.formats import predicted_sha256

ROW = "tiny-shapes"
LABELS = np.arange(40) % 4
NUM_WRONG = (2, 3, 2, 3, 2)
ENVIRONMENT = {"python": "3.11.9", "torch": "2.15.0", "device": "two cores"}
VERSIONS = canonical_sha256(ENVIRONMENT)
SPEC = {
    "model": {"name": "tiny", "builder": "mlp", "options": {"widths": [4], "dropout": 0.25}},
    "data": {"name": "shapes", "num_classes": 4, "num_validation": 0, "split": "test", "pixel_mean": (0.5,)},
    "recipe": {"name": "short", "epochs_total": 2, "batch_size": 8, "optimizer": {"name": "adam", "lr_peak": 1e-5}},
    "precision": "float32",
    "engine": "serial",
    "engine_width": 1,
    "compile": False,
    "cpu_threads": 1,
    "data_sha256": "d" * 64,
    "training_version": TRAINING_VERSION,
}
LEDGER = f"""\
rows:
  {ROW}:
    model: tiny
    data: shapes
    recipe: short
    mode: train
    published:
      accuracy_percent: 94.0
      num_digits: 1
      num_params_text: '61'
      num_runs: null
      selection: null
      sources:
        - citation: Nobody 1999
          where: nowhere
          says: '94.0'
          grade: unsourced
      notes: made up
    rule:
      margin_pp: 3.0
  other-shapes:
    model: other
    data: shapes
    recipe: short
    mode: train
    published:
      accuracy_percent: 50.25
      num_digits: 2
      num_params_text: 1.2M
      num_runs: 3
      selection: last epoch
      sources:
        - citation: Nobody 2001
          where: table 2
          says: '50.25'
          grade: primary
      notes: made up
    rule:
      margin_pp: 0.5
"""


def predictions(*, num_wrong: int) -> np.ndarray:
    """(40,) uint8: the labels, but for the first `num_wrong` items."""
    return np.where(np.arange(40) < num_wrong, (LABELS + 1) % 4, LABELS).astype(np.uint8)


def record(seed: int, **changes: object) -> RunRecord:
    """A record of a seed with 40 - NUM_WRONG[seed % 5] right, and these changes."""
    predicted = predictions(num_wrong=NUM_WRONG[seed % 5])
    num_correct = 40 - NUM_WRONG[seed % 5]
    usual = RunRecord(
        row=ROW,
        seed=seed,
        spec_sha256=spec_sha256(SPEC),
        training_version=TRAINING_VERSION,
        accuracy_percent=2.5 * num_correct,
        num_correct=num_correct,
        num_test=40,
        loss=0.123456789,
        num_params=61,
        epochs=2,
        wall_seconds=1.25 + seed,
        device="Some CPU, two cores",
        device_kind="cpu",
        data_sha256="d" * 64,
        data_official="yes",
        commit="c0ffee",
        dirty=False,
        versions_sha256=VERSIONS,
        predicted_sha256=predicted_sha256(predicted),
        mlflow_run_id="",
        finished_at=f"2026-11-22T14:05:{10 + seed:02d}Z",
    )
    return dataclasses.replace(usual, **changes)


def curve(seed: int, *, accuracy_percent: float) -> list[CurvePoint]:
    """Two epochs of training, then the test."""
    common = {"row": ROW, "seed": seed, "lr": 1e-3}
    return [
        CurvePoint(epoch=1, split="train", loss=0.75, accuracy_percent=81.25, **common),
        CurvePoint(epoch=2, split="train", loss=0.5, accuracy_percent=90.0, **common),
        CurvePoint(epoch=2, split="test", loss=0.123456789, accuracy_percent=accuracy_percent, **common),
    ]


def group(**changes: object) -> RowResults:
    """The five seeds' results, and these changes."""
    predicted = np.stack([predictions(num_wrong=count) for count in NUM_WRONG])
    usual = {
        "row": ROW,
        "records": tuple(record(seed) for seed in range(5)),
        "seeds": np.arange(5),
        "predicted": predicted,
        "confidence": np.linspace(0.25, 1, predicted.size).reshape(predicted.shape).astype(np.float16),
        "curves": tuple(
            point for seed in range(5) for point in curve(seed, accuracy_percent=2.5 * (40 - NUM_WRONG[seed]))
        ),
        "filters": np.array([[0.5, -1.25], [2.0, 0.0]], dtype=np.float16),
        "spec": SPEC,
        "environments": {VERSIONS: ENVIRONMENT},
        "findings": tuple(
            FoundPoint(row=ROW, seed=seed, finding="dead units", evidence=f"{seed} of 4, on 8 images")
            for seed in (1, 3)
        ),
    }
    return RowResults(**{**usual, **changes})


def part(seed: int, **changes: object) -> SeedResults:
    like = from_results(group(findings=()))[seed % 5]
    curve = tuple(dataclasses.replace(point, seed=seed) for point in like.curve)
    return dataclasses.replace(like, record=record(seed, **changes), curve=curve, filters=None)


def seeds(*numbers: int, **changes: object) -> RowResults:
    """These seeds of the tiny row, with changes in each record."""
    return put_together(ROW, seeds=[part(number, **changes) for number in numbers])


def diverged(seed: int) -> SeedResults:
    lost = dict.fromkeys(("accuracy_percent", "num_correct", "loss", "predicted_sha256"))
    return dataclasses.replace(part(seed, **lost), predicted=None, confidence=None, curve=())


def otherwise_wrong(results: RowResults) -> RowResults:
    """The same accuracy by other predictions."""
    predicted = results.predicted.copy()
    predicted[:, 0] = (predicted[:, 0] + 1) % 4
    assert (predicted[:, 0] != LABELS[0]).all()
    hashes = [predicted_sha256(line) for line in predicted]
    records = [
        dataclasses.replace(entry, predicted_sha256=sha256)
        for entry, sha256 in zip(results.records, hashes, strict=True)
    ]
    return dataclasses.replace(results, predicted=predicted, records=tuple(records))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`: relative path to content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
