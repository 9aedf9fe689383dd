"""What MLflow shows first: views that its page can read, and notes that say what a person asks for."""

import base64
import json
import zlib

from tests.support.project import CHECKOUT

from remeasure.judging import ledger
from remeasure.spec.claim import Verdict
from remeasure.tracking import views

TABLE = "| row | verdict |\n| --- | --- |\n| mlp2-mnist | reproduced |"


def state(name: str) -> dict[str, object]:
    """What the page makes of a view's tag."""
    tag = json.loads(views.experiment_tags()[f"mlflow.sharedViewState.{name}"])
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
    curves = state("curves-mlp2-and-mlp4")
    assert curves["searchFilter"] == "params.row LIKE 'mlp_-mnist'"
    assert curves["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "row"}]  # type: ignore[index]
    assert "start_time" not in str(curves["orderByKey"])  # ordered by time, the page adds the rows' own runs
    loss, *accuracies = curves["compareRunCharts"]  # type: ignore[misc]
    assert "range" not in loss
    assert [chart["range"] for chart in accuracies] == [{"yMin": 90, "yMax": 100}] * 2
    assert {chart["metricSectionId"] for chart in curves["compareRunCharts"]} == {"curves"}  # type: ignore[attr-defined]


def test_tags_are_the_same_at_every_start_and_the_note_has_the_table() -> None:
    assert views.experiment_tags(TABLE) == views.experiment_tags(TABLE)
    assert views.experiment_tags(TABLE)[views.NOTE_TAG].endswith(TABLE)
    assert views.NOTE_TAG not in views.experiment_tags()  # a start that knows no table leaves the one that is there


def test_a_rows_note_has_claim_sources_verdict_reason_and_command() -> None:
    row = ledger.read(CHECKOUT / "conf/benchmark.yaml")["mlp2-mnist"]
    note = views.row_note(
        row, verdict=Verdict(verdict="undecided", reason="3 of 40 seeds", num_seeds=3), percents=[98, 97.5, 97.8]
    )
    for text in (
        "**undecided**: 3 of 40 seeds",
        "3 seeds: from 97.50 to 98.00 %, median 97.80 %",
        "97.7 %",
        row.published.sources[0].citation,
        "make reproduce ROWS=mlp2-mnist",
    ):
        assert text in note
