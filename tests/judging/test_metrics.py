"""Claims about another metric than accuracy, on the digits: from the ledger's entry to verdict and verification."""

import csv
import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score
from tests.support import trained

from remeasure import judge
from remeasure.campaign.collect import from_run
from remeasure.data import catalog
from remeasure.judging import ledger, metrics, publish, table, verify
from remeasure.judging.reader import read_row
from remeasure.judging.records import RowResults, put_together
from remeasure.judging.report.page import TestSplit
from remeasure.runs.folder import Outcome
from remeasure.spec.base import InputError
from remeasure.spec.claim import Metric

METRICS: tuple[Metric, ...] = ("error_percent", "top5_percent", "macro_f1_percent", "balanced_accuracy_percent")
ENTRY = """\
  mlp2-digits-{name}:
    model: mlp2
    data: digits
    recipe: article
    mode: train
    metric: {metric}
    published:
      {metric}: {published}
      num_digits: 1
      num_params_text: "19,210"
      num_runs: null
      selection: null
      sources: [{{citation: Nobody 1999, where: nowhere, says: a number, grade: unsourced}}]
      notes: made up
    rule: {{margin_pp: {margin}, looks: [2]}}
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Two seeds of one epoch."""
    folder, spec = tmp_path_factory.mktemp("runs"), trained.spec("recipe.epochs_total=1")
    return [trained.run(spec, folder, seed=seed) for seed in (0, 1)]


def labels() -> np.ndarray:
    return catalog.load_split(trained.spec().data, "test", root=Path("nowhere")).labels


def group(outcomes: list[Outcome], *, metric: Metric) -> RowResults:
    row = f"mlp2-digits-{metric.removesuffix('_percent')}"
    return put_together(row, seeds=[from_run(each, row=row, metric=metric) for each in outcomes])


def write_ledger(path: Path, **published: float) -> Path:
    entries = [
        ENTRY.format(name=metric.removesuffix("_percent"), metric=metric, published=number, margin=9.0)
        for metric, number in published.items()
    ]
    path.write_text("rows:\n" + "".join(entries))
    return path


def by_scikit_learn(outcome: Outcome) -> dict[Metric, float]:
    with np.load(outcome.directory / "predictions.npz") as kept:
        predicted, top5 = kept["predicted"], kept["top5"]
    scores = np.zeros((len(predicted), 10))
    np.put_along_axis(scores, top5.astype(int), np.arange(5, 0, -1), axis=1)
    return {
        "error_percent": 100 * float(np.mean(predicted != labels())),
        "top5_percent": 100 * top_k_accuracy_score(labels(), scores, k=5, labels=range(10)),
        "macro_f1_percent": 100 * f1_score(labels(), predicted, average="macro"),
        "balanced_accuracy_percent": 100 * balanced_accuracy_score(labels(), predicted),
    }


def test_a_claim_about_each_metric_gets_its_verdict_table_and_verification(
    outcomes: list[Outcome], tmp_path: Path
) -> None:
    values = {metric: [by_scikit_learn(outcome)[metric] for outcome in outcomes] for metric in METRICS}
    means = {metric: statistics.fmean(each) for metric, each in values.items()}
    assert 5 < means["error_percent"] < 50 < means["macro_f1_percent"] < means["top5_percent"]
    published = {metric: round(means[metric], 1) for metric in METRICS}
    path, results = write_ledger(tmp_path / "benchmark.yaml", **published), tmp_path / "results"
    results.mkdir()
    rows = ledger.read(path)
    for row in rows.values():
        assert publish.offer(results, group(outcomes, metric=row.metric), row=row)
    images, spec = labels(), trained.spec()
    splits = lambda _: TestSplit(images, classes=tuple("0123456789"))  # noqa: E731
    assert spec.data.num_test == len(images)
    publish.write(path, results=results, readme_path=None, splits=splits)
    with (results / "table.csv").open(newline="") as file:
        lines = {line["metric"]: line for line in csv.DictReader(file)}
    for metric in METRICS:
        line, own = lines[metric], values[metric]
        assert float(line["mean_percent"]) == pytest.approx(means[metric], abs=6e-4)
        assert float(line["sd_percent"]) == pytest.approx(max(statistics.stdev(own), 100 / 500 / 12**0.5), abs=6e-4)
        alone = judge([f"{value:.4f}" for value in own], published=published[metric], margin=9.0, metric=metric)
        assert line["verdict"] == alone.verdict
    shares = {metric for metric, line in lines.items() if line["wilson_low_percent"]}
    assert shares == {"error_percent", "top5_percent"}
    report = verify.verify(path, results=results, splits=splits, readme_path=None)
    assert report.faults == ()
    assert "(macro F1)" in (results / "table.md").read_text()
    assert "(top-5 accuracy)" in (results / "report.html").read_text()
    header = (results / "runs/mlp2-digits-macro_f1.csv").read_text().splitlines()[0]
    assert header.endswith(",finished_at,macro_f1,rule")


def test_a_recorded_value_that_the_predictions_do_not_give_is_a_fault(outcomes: list[Outcome], tmp_path: Path) -> None:
    path, results = write_ledger(tmp_path / "benchmark.yaml", top5_percent=99.0), tmp_path / "results"
    whole = group(outcomes, metric="top5_percent")
    first = dataclasses.replace(whole.records[0], num_top5_correct=7)
    publish.publish(
        results, row=whole.row, files=dataclasses.replace(whole, records=(first, *whole.records[1:])).to_files()
    )
    report = verify.verify(path, results=results, splits=lambda _: TestSplit(labels()), readme_path=None)
    assert any("num_top5_correct of seed 0: expected 4" in fault for fault in report.faults)


def test_records_without_the_metric_are_refused_by_name_and_the_row_is_measured_anew(
    outcomes: list[Outcome], tmp_path: Path
) -> None:
    path, results = write_ledger(tmp_path / "benchmark.yaml", macro_f1_percent=80.0), tmp_path / "results"
    (row,) = ledger.read(path).values()
    older = put_together(row.name, seeds=[from_run(each, row=row.name) for each in outcomes])
    publish.publish(results, row=row.name, files=older.to_files())
    verdict = table.verdict_of(row, records=older.records)
    assert (verdict.verdict, verdict.num_seeds) == ("not measured", 0)
    assert verdict.reason.startswith("its records hold no macro F1; `make reproduce ROWS=mlp2-digits-macro_f1`")
    faults = verify.verify(path, results=results, splits=lambda _: None, readme_path=None).faults
    assert any("mlp2-digits-macro_f1.csv: macro_f1_percent: its records hold no macro F1" in line for line in faults)
    new = put_together(row.name, seeds=[from_run(each, row=row.name, metric=row.metric) for each in outcomes])
    assert publish.offer(results, new, row=row)
    found = read_row(results, row=row.name)
    assert found is not None
    assert found.records[0].macro_f1 == outcomes[0].record.macro_f1


def test_the_published_number_stands_under_the_name_of_the_rows_metric(tmp_path: Path) -> None:
    path = write_ledger(tmp_path / "benchmark.yaml", error_percent=5.0)
    path.write_text(path.read_text().replace("metric: error_percent", "metric: top5_percent"))
    with pytest.raises(InputError, match=r"published\.error_percent: metric is top5_percent, so expected published"):
        ledger.read(path)


def test_classes_that_do_not_occur_are_left_out_of_the_means() -> None:
    truth, predicted = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 4])
    found = metrics.of_predictions(predicted, labels=truth, top5=None)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert found["balanced_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)  # the recalls of the classes 0, 1 and 3


def test_each_metric_and_each_class_is_told_from_the_stored_predictions(
    outcomes: list[Outcome], tmp_path: Path
) -> None:
    (row,) = ledger.read(write_ledger(tmp_path / "benchmark.yaml", top5_percent=99.0)).values()
    split, measured = TestSplit(labels(), classes=tuple("abcdefghij")), group(outcomes, metric="top5_percent")
    lines = [line.strip() for line in metrics.told(row, group=measured, split=split)]
    assert lines[0] == "mlp2-digits-top5, 2 seeds:"
    assert "are not here" in next(iter(metrics.told(row, group=measured, split=None)))
    values = [by_scikit_learn(outcome) for outcome in outcomes]
    for metric in METRICS:
        mean = statistics.fmean(each[metric] for each in values)
        sd = max(statistics.stdev(each[metric] for each in values), 100 / (len(labels()) * 12**0.5))
        assert f"{metrics.METRICS[metric].title}: {mean:.3f} ± {sd:.3f} %" in lines
    recalls = [float(line.split()[2]) for line in lines if line.startswith("class ")]
    assert statistics.fmean(recalls) == pytest.approx(
        statistics.fmean(each["balanced_accuracy_percent"] for each in values), abs=1e-3
    )


def test_an_error_rate_below_one_percent_is_taken_as_percent() -> None:
    verdict = judge([0.21, 0.23, 0.24], published=1.2, margin=0.2, metric="error_percent")
    assert verdict.verdict == "falls short"
    with pytest.raises(InputError, match="macro F1 is no share of test images"):
        judge([91.0, 92.0], published=91, margin=1, metric="macro_f1_percent", num_test=100)
