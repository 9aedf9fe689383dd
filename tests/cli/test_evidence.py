"""`remeasure judge`, `compare` and `merge`: what they print and leave, and their exit status."""

from pathlib import Path

import pytest
from tests.support.measured import ROW, seeds
from tests.support.project import Command, Project
from tests.support.suite import in_mlflow, small_suite, sqlite_uri, statuses

import remeasure
from remeasure.judging.publish import publish
from remeasure.judging.reader import read_runs
from remeasure.judging.verdict import judge
from remeasure.spec.claim import Evidence, Rule

ASKED = ("--published", "93.0", "--margin")


def test_the_verdict_is_a_row_s_on_the_same_counts(here: Command, tmp_path: Path) -> None:
    """93.1 % of 1,000 images are 931; without --num-test, a printed digit is a step."""
    counts = dict(enumerate((931, 928, 934, 930, 932)))
    for margin, expected in (("0.5", "reproduced"), ("0.2", "undecided")):
        rule = Rule(margin_pp=float(margin), looks=(5,))
        row = judge(Evidence(num_correct=counts, num_test=1000), published_percent=93.0, rule=rule)
        assert row.verdict == expected
        ended = here(
            Project(root=tmp_path), "remeasure", "judge", *ASKED, margin, *["93.1,92.8", "93.4", "93.0,", "93.2"]
        )
        assert ended == (0, f"{expected}: 93.100 ± 0.224 % (n = 5); {row.reason}\n", "")
        assert remeasure.judge([93.1, 92.8, 93.4, 93.0, 93.2], published=93.0, margin=float(margin)) == row


def test_looks_and_the_number_of_images_count(here: Command, tmp_path: Path) -> None:
    same = [93.0] * 5
    assert remeasure.judge(same, published=93.0, margin=0.5).sd_percent == pytest.approx(0.1 / 12**0.5)
    assert remeasure.judge(same, published=93.0, margin=0.5, num_test=100).sd_percent == pytest.approx(1 / 12**0.5)
    for decimal_comma in ("92,9", "92,9,"):
        assert here(Project(root=tmp_path), "remeasure", "judge", *ASKED, "0.5", decimal_comma, "93.1").status == 2
    fine = remeasure.judge(["93.00"] * 5, published=93.0, margin=0.5, looks=[2, 5])
    assert (fine.num_seeds, fine.sd_percent) == (2, pytest.approx(0.01 / 12**0.5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("0.3", "93.1"), "accuracies: expected 2 or more, for a standard deviation, got 1"),
        (("0.3", "93.1", "high"), "accuracies: expected percentages from 0 to 100, got high"),
        (("0.3", "93.1", "nan"), "accuracies: expected percentages from 0 to 100, got nan"),
        (("0.3", "0.93", "0.94"), "accuracies: expected percent, such as 93.00, got 0.93"),
        (("0.3", "93.12", "93.2", "--num-test", "500"), "accuracies: 93.12 % is no share of 500 test images"),
        (("0", "93.1", "93.2"), "margin_pp: expected percentage points above 0, got 0.0"),
        (("0.3", "93.1", "93.2", "--published", "0.93"), "published: expected percent, such as 93.00, got 0.93"),
        (("0.3", "93.1", "93.2", "--published", "0"), "published: expected percent, such as 0, got 0"),
        (("0.3", "93.1", "93.2", "--published", "x"), "published: expected percentages from 0 to 100, got x"),
        (("wide", "93.1", "93.2"), "argument --margin: invalid float value: 'wide' (`remeasure judge --help`)"),
        (("0.3", "93.1", "93.2", "--looks", "5,2"), "looks: expected rising numbers of seeds, got [5, 2]"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], said: str, here: Command, tmp_path: Path) -> None:
    assert here(Project(root=tmp_path), "remeasure", "judge", *ASKED, *arguments) == (2, "", f"{said}\n")


def test_numbers_may_be_text_with_a_percent_sign_and_metrics_have_short_names(here: Command, tmp_path: Path) -> None:
    accuracies = ["6.9%", "7.2 %", "6.6"]
    asked = ("--metric", "error", "--published", "7.0%", "--margin", "1.5")
    ended = here(Project(root=tmp_path), "remeasure", "judge", *asked, *accuracies)
    verdict = remeasure.judge(accuracies, published="7.0", margin=1.5, metric="error_percent")
    assert ended == (0, f"{verdict.verdict}: 6.900 ± 0.300 % (n = 3); {verdict.reason}\n", "")


def test_two_folders_compared_end_with_1_where_a_row_differs(here: Command, tmp_path: Path) -> None:
    folders = {"a": seeds(0, 2, 4, 5), "b": seeds(0, 2), "c": seeds(1, 3, 6, 8, commit="decaf")}
    for name, results in folders.items():
        publish(tmp_path / name, row=ROW, files=results.to_files())
    same, other, none = (
        here(Project(root=tmp_path), "remeasure", "compare", str(tmp_path / "a"), str(tmp_path / name))
        for name in ("b", "c", ".")
    )
    assert same == (0, f"{ROW}: identical: 2 of 2 shared seeds have identical predictions\n", "")
    assert (other.status, other.stderr) == (1, "")
    lines = other.stdout.splitlines()
    assert lines[0].startswith(f"{ROW}: different: 95.000 % (4 seeds) and 92.500 %")
    assert lines[1:] == ["  commit: c0ffee → decaf"]
    assert none == (2, "", f"{tmp_path}: no results folder; it has no runs/\n")


def test_a_project_in_place_of_its_results_or_rows_without_a_match_are_no_success(
    here: Command, tmp_path: Path
) -> None:
    publish(tmp_path / "a", row=ROW, files=seeds(0, 2).to_files())
    publish(tmp_path / "mine/results", row=ROW, files=seeds(0, 2).to_files())
    (tmp_path / "b/runs").mkdir(parents=True)
    (tmp_path / "mine/runs").mkdir()
    project, other = (
        here(Project(root=tmp_path), "remeasure", "compare", str(tmp_path / "a"), str(tmp_path / name))
        for name in ("mine", "b")
    )
    folder = tmp_path / "mine"
    assert project == (2, "", f"{folder}: a project, not its results folder; name {folder}/results\n")
    assert (other.status, other.stdout.count("not compared")) == (2, 1)
    assert other.stderr == f"no row of {tmp_path / 'a'} could be compared with one of {tmp_path / 'b'}\n"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Another machine that has measured two seeds of a row."""
    project = small_suite(tmp_path_factory.mktemp("there") / "project", rows=["logreg-digits"])
    done = project.run("reproduce.py", "reproduce", "logreg-digits", "--seeds", "2", cwd=project.root)
    assert done.returncode == 0, done.stderr
    return project


def test_merged_seeds_are_judged_and_tracked_without_training(here: Command, measured: Project, tmp_path: Path) -> None:
    project = small_suite(tmp_path / "project", rows=["logreg-digits"])
    merged = here(project, "remeasure", "--conf", str(project.root), "merge", str(measured.root))
    assert (merged.status, merged.stderr) == (0, "")
    assert merged.stdout.splitlines()[0] == "logreg-digits: merged: seeds 0, 1"
    before = project.journals()
    rules = "rules/logreg-digits.json"
    assert (project.runs / rules).read_bytes() == (measured.runs / rules).read_bytes()
    ended = here(project, "reproduce.py", "reproduce", "logreg-digits", "--seeds", "2")
    assert ended.status == 0, ended.stderr
    assert project.journals() == before == measured.journals()
    ours, theirs = (read_runs(each.root / "results", row="logreg-digits") for each in (project, measured))
    assert [record.num_correct for record in ours] == [record.num_correct for record in theirs]
    assert set(statuses(sqlite_uri(project)).values()) == {"FINISHED"}
    assert len(in_mlflow(sqlite_uri(project))) == 3


def test_a_folder_to_merge_without_runs_is_refused_in_one_line(here: Command, tmp_path: Path) -> None:
    project = small_suite(tmp_path / "project", rows=["logreg-digits"])
    ended = here(project, "remeasure", "--conf", str(project.root), "merge", str(tmp_path))
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "no finished run in this folder" in ended.stderr
