"""What MLflow shows first: named views of the runs page, and notes in Markdown. No mlflow.

A view is a tag of the experiment, `mlflow.sharedViewState.<name>` (MLflow 3.15 and later): JSON with the page's state,
deflated. The link's `viewStateShareKey=<name>` opens it.
"""

import base64
import json
import statistics
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from remeasure.judging.metrics import unit
from remeasure.judging.table import COMMAND
from remeasure.spec.claim import Row, Verdict

FIRST = "verdicts"  # the view that the link opens
CAMPAIGN_TAG = "remeasure.campaign"  # of a row's run
NOTE_TAG = "mlflow.note.content"
_VIEW_TAG = "mlflow.sharedViewState."
_ROWS = ("row/published_percent", "row/mean_percent", "row/sd_percent", "row/gap_pp", "row/num_seeds")
# By model family, as SQL LIKE takes it. The page loads 100 runs: the many seeds of a variant would hide others.
# Then where the axis of accuracies starts: MLflow's own starts at 0, where the rows' curves are one line.
_FAMILIES = {
    "curves mlp2 and mlp4": ("mlp_-mnist", 90),
    "curves logreg": ("logreg%", 80),
    "curves lenet5": ("lenet5%", 80),
    "curves resnet18": ("resnet18%", 0),
    "curves vit": ("vit%", 0),
}


def experiment_tags(table: str = "") -> dict[str, str]:
    """The views, and the experiment's note with this Markdown table, if there is one."""
    states = {
        FIRST: _state(f"tags.`{CAMPAIGN_TAG}` LIKE '%'", tags=("verdict", "measured", "data"), metrics=_ROWS),
        "running": _state("attributes.status = 'RUNNING'", tags=("row", "seed"), metrics=("train/accuracy_percent",)),
        **{name: _curves(family, lowest_percent=lowest) for name, (family, lowest) in _FAMILIES.items()},
    }
    tags = {f"{_VIEW_TAG}{name.replace(' ', '-')}": _packed(name, state=state) for name, state in states.items()}
    return tags | ({NOTE_TAG: f"{_HOW_TO}\n\n{table}"} if table else {})


_HOW_TO = f"""Published accuracies, measured again. A parent run is a row of the ledger, its children are the seeds. The
views **{FIRST}**, **running** and **curves …** are in the menu at the top right of the runs page."""


def row_note(row: Row, *, verdict: Verdict, percents: Sequence[float]) -> str:
    """The note of a row's parent run: its claim, sources, verdict, reason and the command that measures it.

    `percents`: of the seeds, of the row's metric; () where they are not all there yet.
    """
    published = row.published
    percent = f"{published.percent:.{published.num_digits}f} %{unit(row)}"
    sources = [f"- {each.citation}, {each.where}: {each.says} ({each.grade})" for each in published.sources]
    return "\n".join(
        (
            f"**{verdict.verdict}**: {verdict.reason}",
            *([_spread(percents)] if percents else []),
            "",
            f"Published: {percent}, margin {row.rule.margin_pp:g} points",
            *sources,
            "",
            f"`{COMMAND} ROWS={row.name}` measures it.",
        )
    )


def _spread(percents: Sequence[float]) -> str:
    lowest, median, highest = min(percents), statistics.median(percents), max(percents)
    spread = f"from {lowest:.2f} to {highest:.2f} %, median {median:.2f} %"
    return f"\n{len(percents)} seeds: {spread}; each is in the artifact seeds.json"


def _state(search: str, *, tags: Sequence[str] = (), metrics: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    columns = [*(f"tags.`{name}`" for name in tags[:1]), *(f"metrics.`{name}`" for name in metrics)]
    columns += [f"tags.`{name}`" for name in tags[1:]]
    return {"searchFilter": search, "selectedColumns": columns, "columnOrder": columns, **more}


def _curves(family: str, *, lowest_percent: int) -> dict[str, Any]:
    """A line a row with its band over seeds: loss of the training on a logarithmic scale, and both accuracies."""
    charts = [
        _line("train/loss", scale="log"),
        _line("train/accuracy_percent", scale="linear", range={"yMin": lowest_percent, "yMax": 100}),
        _line("test/accuracy_percent", scale="linear", range={"yMin": lowest_percent, "yMax": 100}),
    ]
    by_row = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "row"}]}
    section = {"uuid": "curves", "name": "curves", "display": True, "isReordered": False}
    return _state(
        f"params.row LIKE '{family}'",
        metrics=("test/accuracy_percent",),
        groupBy=by_row,
        orderByKey="tags.`mlflow.runName`",  # ordered by time, the page adds the rows' own runs, as one more group
        orderByAsc=True,
        compareRunCharts=charts,
        compareRunSections=[section],
        runsCountToCompare=100,
    )


def _line(metric: str, *, scale: str, **more: Any) -> dict[str, Any]:
    return {
        **more,
        **{"uuid": metric, "type": "LINE", "metricSectionId": "curves", "deleted": False, "isGenerated": False},
        **{"metricKey": metric, "selectedMetricKeys": [metric], "xAxisKey": "step", "xAxisScaleType": "linear"},
        **{"scaleType": scale, "lineSmoothness": 0, "useGlobalLineSmoothing": False, "runsCountToCompare": 100},
    }


def _packed(name: str, *, state: Mapping[str, Any]) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    at = 1767225600000  # 2026-01-01: the same at every start, so that the tag does not change
    return json.dumps({"name": name, "createdAt": at, "updatedAt": at, "state": f"deflate;{packed}"})
