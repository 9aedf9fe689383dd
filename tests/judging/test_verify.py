import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.support.measured import LABELS, LEDGER, ROW, VERSIONS, curve, group, predictions, record, snapshot

from remeasure.judging import publish
from remeasure.judging.records import RowResults
from remeasure.judging.report.page import TestSplit, TestSplits
from remeasure.judging.verify import Report, verify
from remeasure.system.formats import predicted_sha256

SEALED = sorted(group().to_files())


def splits(labels: np.ndarray | None) -> TestSplits:
    """The test split of shapes, without images; None: it is not here."""
    return {"shapes": None if labels is None else TestSplit(labels)}.get


class Project:
    """A ledger, a results folder with the tiny row, and a README, all in agreement."""

    def __init__(self, root: Path, *, measured: RowResults) -> None:
        self.root, self.results, self.readme = root, root / "results", root / "README.md"
        self.ledger = root / "benchmark.yaml"
        self.results.mkdir()
        self.ledger.write_text(LEDGER)
        self.readme.write_text("# Title\n<!-- table:begin -->\n<!-- table:end -->\n")
        publish.publish(self.results, row=ROW, files=measured.to_files())
        publish.write(self.ledger, results=self.results, readme_path=self.readme, splits=splits(LABELS))

    def verify(self, *, labels: np.ndarray | None = LABELS) -> Report:
        return verify(self.ledger, results=self.results, splits=splits(labels), readme_path=self.readme)

    def replace(self, name: str, *, old: bytes, new: bytes) -> None:
        path = self.root / name
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, measured=group())


def assert_names(report: Report, file: str) -> None:
    assert not report.ok
    assert any(file in fault for fault in report.faults), report.faults


def test_an_untouched_folder_passes_and_says_what_was_checked(project: Project) -> None:
    report = project.verify()
    assert report.faults == ()
    assert report.ok
    assert report.lines == (
        f"{ROW}: 5 seeds, 200 predictions recomputed: ok",
        "other-shapes: no record yet",
        "report.html: ok",
        "table.csv: ok",
        "table.md: ok",
        "README.md: ok",
    )


def test_without_labels_all_but_the_accuracies_is_checked_and_said(project: Project) -> None:
    report = project.verify(labels=None)
    assert report.ok
    assert report.lines[0] == f"{ROW}: 5 seeds, 200 predictions: ok, but not compared with the labels of shapes, " + (
        "which are not here"
    )
    assert report.lines[2] == "report.html: ok, but not compared in what needs the test split of shapes"
    project.replace(f"results/curves/{ROW}.csv", old=b"81.250", new=b"81.251")
    assert_names(project.verify(labels=None), f"curves/{ROW}.csv")


def test_labels_are_asked_for_once_and_only_where_there_is_a_record(project: Project) -> None:
    project.ledger.write_text(
        LEDGER + LEDGER.removeprefix("rows:\n").replace("-shapes:", "-unseen:").replace("data: shapes", "data: unseen")
    )
    asked: list[str] = []
    verify(project.ledger, results=project.results, splits=asked.append, readme_path=project.readme)
    assert asked == ["shapes"]


def test_verifying_changes_no_file(project: Project) -> None:
    before = snapshot(project.root)
    project.verify()
    assert snapshot(project.root) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("results/table.csv", b"94.000", b"94.001"),
        ("results/table.md", b"94.00 ", b"94.01 "),
        ("README.md", b"94.00 ", b"94.01 "),
        (f"results/runs/{ROW}.csv", b"92.500,37", b"95.000,38"),
        (f"results/runs/{ROW}.csv", b'1.2,"Some', b'1.3,"Some'),
        (f"results/runs/{ROW}.csv", b"c0ffee", b"c0ffef"),
        (f"results/curves/{ROW}.csv", b"92.500", b"92.501"),
        (f"results/curves/{ROW}.csv", b"0.75", b"0.76"),
        (f"results/specs/{ROW}.yaml", b"batch_size: 8", b"batch_size: 9"),
        (f"results/specs/{ROW}.yaml", b"name: tiny", b"name: time"),
        (f"results/environments/{VERSIONS}.json", b"2.15.0", b"2.15.1"),
    ],
)
def test_one_changed_digit_fails_and_names_the_file(project: Project, name: str, old: bytes, new: bytes) -> None:
    project.replace(name, old=old, new=new)
    assert_names(project.verify(), name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"accuracy_percent: 94.0", b"accuracy_percent: 94.1"),
        (b"accuracy_percent: 50.25", b"accuracy_percent: 50.35"),
        (b"margin_pp: 3.0", b"margin_pp: 3.1"),
        (b"num_runs: 3", b"num_runs: 4"),
        (b"Nobody 1999", b"Nobody 1998"),
    ],
)
def test_one_changed_ledger_number_fails_and_names_the_table(project: Project, old: bytes, new: bytes) -> None:
    project.replace("benchmark.yaml", old=old, new=new)
    assert_names(project.verify(), "results/table.csv, line ")


def test_one_changed_prediction_fails_and_names_seed_and_file(project: Project) -> None:
    path = project.results / f"predictions/{ROW}.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["predicted"][3, 20] = (arrays["predicted"][3, 20] + 1) % 4
    np.savez(path, **arrays)
    assert_names(project.verify(), f"predictions/{ROW}.npz, SHA-256 of seed 3: expected")


@pytest.mark.parametrize(
    "name", [*(f"results/{name}" for name in SEALED), "results/table.csv", "results/table.md", "results/report.html"]
)
def test_every_flipped_bit_is_found(project: Project, name: str) -> None:
    path = project.root / name
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 10)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        report = project.verify(labels=None)
        assert not report.ok, f"byte {at} of {len(content)}"
    path.write_bytes(content)
    assert project.verify().ok


@pytest.mark.parametrize("name", [*(f"results/{name}" for name in SEALED), "results/table.csv", "README.md"])
def test_a_missing_file_is_named(project: Project, name: str) -> None:
    (project.root / name).unlink()
    assert_names(project.verify(), name)


def test_tables_that_are_not_rebuilt_yet_are_told_with_the_command(project: Project) -> None:
    """As after `remeasure measure` alone."""
    for name in ("table.csv", "report.html"):
        (project.results / name).unlink()
    readme = project.root / "README.md"
    readme.write_text(readme.read_text().replace("| verdict |", "| Verdict |"))
    report = project.verify()
    assert {"report.html: not built yet", "table.csv: not built yet", "README.md: FAULTY"} <= set(report.lines)
    command = "`remeasure table` (in a checkout `make report`) rebuilds it"
    for path in (readme, project.results / "table.csv", project.results / "report.html"):
        assert any(fault.startswith(f"{path}") and fault.endswith(f"; {command}") for fault in report.faults), path
    assert not any("b'" in fault for fault in report.faults)


def test_a_missing_header_of_an_unmeasured_row_is_named(project: Project) -> None:
    (project.results / "runs/other-shapes.csv").unlink()
    assert_names(project.verify(), "runs/other-shapes.csv: expected a file")


def test_records_cut_down_to_their_header_are_found(project: Project) -> None:
    runs = project.results / f"runs/{ROW}.csv"
    runs.write_text(runs.read_text().splitlines(keepends=True)[0])
    assert_names(project.verify(), f"runs/{ROW}.csv: expected the sealed records, found none")


def test_a_file_that_no_row_answers_for_is_named(project: Project) -> None:
    (project.results / "curves/old-shapes.csv").write_text("")
    assert_names(project.verify(), "curves/old-shapes.csv: belongs to no row")


def test_all_faults_are_listed_once_each(project: Project) -> None:
    project.replace("results/table.csv", old=b"94.000", new=b"94.001")
    project.replace("README.md", old=b"94.00 ", new=b"94.01 ")
    project.replace(f"results/curves/{ROW}.csv", old=b"0.75", new=b"0.76")
    report = project.verify()
    assert len(report.faults) == len(set(report.faults)) == 3
    project.replace(f"results/runs/{ROW}.csv", old=b"false", new=b"False")
    report = project.verify()
    assert len(report.faults) == len(set(report.faults)) == 3  # the cell, and two files that differ from the seal
    assert_names(report, f"runs/{ROW}.csv, line 2, column dirty")
    assert_names(report, f"curves/{ROW}.csv: differs")


# ---------------------------------------------------------------- forgeries that agree with themselves


def forged(*, num_correct: int, predicted: np.ndarray) -> RowResults:
    """The tiny row, sealed and consistent, whose seed 1 claims `num_correct` with these predictions."""
    percent = 2.5 * num_correct
    claim = record(1, num_correct=num_correct, accuracy_percent=percent, predicted_sha256=predicted_sha256(predicted))
    honest = group()
    classes = honest.predicted.copy()
    classes[1] = predicted
    curves = [point for point in honest.curves if point.seed != 1] + curve(1, accuracy_percent=percent)
    records = tuple(claim if entry.seed == 1 else entry for entry in honest.records)
    return dataclasses.replace(honest, records=records, predicted=classes, curves=tuple(curves))


@pytest.mark.parametrize(("num_correct", "num_wrong"), [(39, 3), (37, 2)])
def test_a_consistent_forgery_fails_against_the_labels(tmp_path: Path, num_correct: int, num_wrong: int) -> None:
    project = Project(tmp_path, measured=forged(num_correct=num_correct, predicted=predictions(num_wrong=num_wrong)))
    assert project.verify(labels=None).ok
    report = project.verify()
    assert report.lines[0] == f"{ROW}: 5 seeds, 200 predictions recomputed: FAULTY"
    (fault,) = report.faults
    assert f"runs/{ROW}.csv, num_correct of seed 1: expected {40 - num_wrong} " in fault
    assert fault.endswith(f"found {num_correct}")


def test_labels_of_another_length_are_a_fault_not_a_crash(project: Project) -> None:
    assert_names(project.verify(labels=LABELS[:39]), f"runs/{ROW}.csv, num_test: expected 39")


def test_verify_and_table_need_nothing_of_the_training_wing() -> None:
    heavy = ("torch", "pytorch_lightning", "mlflow", "hydra", "omegaconf")
    code = f"import sys, remeasure.judging.verify, remeasure.judging.table; print(*(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
