"""What MLflow shows first: views that its page can read, and notes that say what a person asks for."""

import base64
import json
import re
import zlib
from pathlib import Path

import pytest
from tests.support.project import CHECKOUT

from remeasure.judging import ledger
from remeasure.spec.claim import Verdict
from remeasure.tracking import views

ROWS = [
    views.Measured(row=row, model=row.partition("-")[0], published_percent=percent)
    for row, percent in (
        *(("mlp2-mnist", 97.7), ("mlp2-mnist-numpy", 97.7), ("mlp4-mnist", 98.3)),
        *(("my_net-insects", 61.0), ("my_net-insects-poor", 40.0)),
    )
]
HERE = "7"  # the experiment
TABLE = "| row | verdict |\n| --- | --- |\n| mlp2-mnist | reproduced |"


def state(name: str) -> dict[str, object]:
    """What the page makes of a view's tag."""
    tag = json.loads(views.experiment_tags(ROWS, experiment_id=HERE)[f"mlflow.sharedViewState.{name}"])
    kind, _, packed = tag["state"].partition(";")
    assert kind == "deflate"
    unpacked = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert isinstance(unpacked, dict)
    return unpacked


def test_the_first_view_lists_rows_alone_with_the_verdict_first() -> None:
    first = state(views.FIRST)
    assert first["searchFilter"] == "tags.`remeasure.campaign` LIKE '%'"
    columns = ["tags.`verdict`", "metrics.`row/published_percent`", "metrics.`row/mean_percent`"]
    assert first["selectedColumns"][:3] == columns  # type: ignore[index]


def test_curves_have_a_line_a_row() -> None:
    """A model's are those of its seeds; those of two rows, whose seeds are more than the page loads, their means."""
    rows, curves = state("curves-mlp2-and-mlp4"), state("curves-mlp2")
    assert rows["searchFilter"] == "tags.`remeasure.campaign` LIKE '%' AND tags.`row` LIKE 'mlp_-mnist'"
    assert "groupBy" not in rows
    assert rows["compareRunCharts"] == curves["compareRunCharts"]
    assert curves["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "row"}]  # type: ignore[index]
    assert "start_time" not in str(curves["orderByKey"])  # ordered by time, the page adds the rows' own runs
    loss, *accuracies = curves["compareRunCharts"]  # type: ignore[misc]
    assert "range" not in loss
    assert [chart["range"] for chart in accuracies] == [{"yMin": 90, "yMax": 100}] * 2
    assert {chart["metricSectionId"] for chart in curves["compareRunCharts"]} == {"curves"}  # type: ignore[attr-defined]


def test_each_model_has_a_view_of_its_rows_seeds() -> None:
    names = [key.removeprefix("mlflow.sharedViewState.") for key in views.experiment_tags(ROWS, experiment_id=HERE)]
    models = ["curves-mlp2", "curves-mlp4", "curves-my_net"]
    assert names == ["verdicts", "running", "curves-mlp2-and-mlp4", *models]
    present = "tags.`model` = 'my_net' AND params.row LIKE '%' AND tags.outcome != 'replaced'"
    assert state("curves-my_net")["searchFilter"] == present
    without = views.experiment_tags([each for each in ROWS if each.row != "mlp4-mnist"], experiment_id=HERE)
    assert "mlflow.sharedViewState.curves-mlp2-and-mlp4" not in without
    assert not any("curves" in key for key in views.experiment_tags(experiment_id=HERE))


def test_the_axis_of_accuracies_starts_at_four_times_the_error_of_the_worst_row() -> None:
    """98.3 % is 1.7 % of errors; 40 % is 60 %."""
    for name, lowest in (("curves-mlp4", 90), ("curves-my_net", 0)):
        assert state(name)["compareRunCharts"][1]["range"]["yMin"] == lowest  # type: ignore[index]


def test_views_that_were_made_once_go_and_a_users_own_stays() -> None:
    held = views.experiment_tags(ROWS, experiment_id=HERE, table=TABLE)
    wanted = views.experiment_tags(ROWS[2:], experiment_id=HERE)
    users = {"mlflow.sharedViewState.0f3a": '{"name": "mine", "createdAt": 1790000000000, "state": "deflate;eJw="}'}
    gone = [f"mlflow.sharedViewState.curves-{name}" for name in ("mlp2-and-mlp4", "mlp2")]
    assert views.former_views(held | users, wanted=wanted) == gone


def test_tags_are_the_same_at_every_start_and_the_note_has_the_table() -> None:
    made = views.experiment_tags(ROWS, experiment_id=HERE, table=TABLE)
    assert made == views.experiment_tags(ROWS, experiment_id=HERE, table=TABLE)
    assert made[views.NOTE_TAG].endswith(TABLE)
    # A start that knows no table leaves the one that is there.
    assert views.NOTE_TAG not in views.experiment_tags(experiment_id=HERE)


def test_the_note_begins_with_a_link_to_each_view_and_those_of_curves_open_charts() -> None:
    first = views.experiment_tags(ROWS, experiment_id=HERE, table=TABLE)[views.NOTE_TAG].splitlines()[0]
    links = dict(re.findall(r"\[([^]]+)\]\(#/experiments/7/runs\?workflowType=machine_learning&([^)]+)\)", first))
    assert len(links) == 6
    assert links["verdicts"] == "viewStateShareKey=verdicts"
    assert links["curves mlp2 and mlp4"] == "viewStateShareKey=curves-mlp2-and-mlp4&compareRunsMode=CHART"


def test_a_rows_note_has_claim_sources_verdict_reason_and_command() -> None:
    row = ledger.read(CHECKOUT / "conf/benchmark.yaml")["mlp2-mnist"]
    note = views.row_note(
        row, verdict=Verdict(verdict="undecided", reason="3 of 40 seeds", num_seeds=3), percents=[98, 97.5, 97.8]
    )
    for text in (
        "**undecided**: 3 of 40 seeds",
        "3 seeds: from 97.50 to 98.00 %, median 97.80 %",
        "97.7 %",
        'AiTechWorlds, "Deep Learning Explained',  # whose claim it is, for who does not know this project
        "make reproduce ROWS=mlp2-mnist",
    ):
        assert text in note
    of_the_demo = views.row_note(
        row, verdict=Verdict(verdict="undecided", reason="", num_seeds=0), percents=[], suite="demo"
    )
    assert of_the_demo.endswith("\n`make demo` measures it.")
    one = views.row_note(row, verdict=Verdict(verdict="undecided", reason="", num_seeds=1), percents=[98])
    assert "\n1 seed: 98.00 %\n" in one


@pytest.mark.parametrize(
    ("suite", "command"), [("", "remeasure reproduce mlp2-mnist"), ("demo", "remeasure reproduce mlp2-mnist --demo")]
)
def test_a_rows_note_of_the_installed_package_has_its_command(
    suite: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_CONF", str(tmp_path / "conf"))
    row = ledger.read(CHECKOUT / "conf/benchmark.yaml")["mlp2-mnist"]
    verdict = Verdict(verdict="undecided", reason="", num_seeds=0)
    assert f"\n`{command}` measures it." in views.row_note(row, verdict=verdict, percents=[], suite=suite)
