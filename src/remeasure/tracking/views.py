"""What MLflow shows first: named views of the runs page, and notes in Markdown. No mlflow.

A view is a tag of the experiment, `mlflow.sharedViewState.<name>` (MLflow 3.15 and later): JSON with the page's state,
deflated. The link's `viewStateShareKey=<name>` opens it.
"""

import base64
import json
import math
import statistics
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remeasure.judging.metrics import unit
from remeasure.spec.claim import Row, Verdict
from remeasure.system import paths

FIRST = "verdicts"  # the view that the link opens where a row is in the store
CAMPAIGN_TAG = "remeasure.campaign"  # of a row's run
IS_ROW = f"tags.`{CAMPAIGN_TAG}` LIKE '%'"  # MLflow's filter
NOTE_TAG = "mlflow.note.content"
REPLACED = "replaced"  # the outcome, as its tag, of a run whose seed was trained again (FRESH=1, or other code)
_VIEW_TAG = "mlflow.sharedViewState."
_ROWS = ("row/published_percent", "row/mean_percent", "row/sd_percent", "row/gap_pp", "row/num_seeds")
_MADE_AT = 1767225600000  # 2026-01-01: the same at every start, so that a tag does not change; and no user's own
_BY_ROW = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "row"}]}
# Rows of two models that the article compares, and their pattern in SQL, where _ is any one character.
_COMPARED = {"curves mlp2 and mlp4": (("mlp2-mnist", "mlp4-mnist"), "mlp_-mnist")}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row that the store holds."""

    row: str
    model: str
    published_percent: float


def link(experiment_id: str, view: str = "") -> str:
    """What follows the server's address in the link to a view ("": to all runs); one of curves opens its charts."""
    where = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    where += f"&viewStateShareKey={_key(view)}" if view else ""
    return f"{where}&compareRunsMode=CHART" if view.startswith("curves") else where


def _key(view: str) -> str:
    return view.replace(" ", "-")


def experiment_tags(rows: Sequence[Measured] = (), *, experiment_id: str, table: str = "") -> dict[str, str]:
    """The views, among them one of each model's curves, and the experiment's note with links to them and this Markdown
    table, if there is one.
    """
    states = {
        FIRST: _state(IS_ROW, tags=("verdict", "measured", "data"), metrics=_ROWS),
        "running": _state("attributes.status = 'RUNNING'", tags=("row", "seed"), metrics=("train/accuracy_percent",)),
    }
    for name, (compared, pattern) in _COMPARED.items():
        own = [each for each in rows if each.row in compared]
        if len({each.row for each in own}) == len(compared):
            # The rows' own runs, which have the mean curves of all seeds: the page would load 100 seeds of them.
            states[name] = _curves(f"{IS_ROW} AND tags.`row` LIKE '{pattern}'", rows=own)
    for model in sorted({each.model for each in rows}):
        seeds = f"tags.`model` = '{model}' AND params.row LIKE '%' AND tags.outcome != '{REPLACED}'"
        own = [each for each in rows if each.model == model]
        states[f"curves {model}"] = _curves(seeds, rows=own, groupBy=_BY_ROW)
    tags = {f"{_VIEW_TAG}{_key(name)}": _packed(name, state=state) for name, state in states.items()}
    links = ", ".join(f"[{name}]({link(experiment_id, name).removeprefix('/')})" for name in states)
    return tags | ({NOTE_TAG: f"Open {links}.\n\n{_HOW_TO}\n\n{table}"} if table else {})


def former_views(held: Mapping[str, str], *, wanted: Mapping[str, str]) -> list[str]:
    """The tags of views that were made here once and are none of `wanted`; a user's own views stay."""
    mine = f'"createdAt": {_MADE_AT}'
    return [key for key, value in held.items() if key.startswith(_VIEW_TAG) and mine in value and key not in wanted]


_HOW_TO = """Published accuracies, measured again. A parent run is a row of the ledger, its children are the seeds; the
older runs of a seed that was trained again are below its newest. These views are also in the menu at the top right of
the page. A model's curves are those of its first 100 seeds, which is what MLflow's page loads; a row's own run has the
mean curves of all its seeds, and their standard deviation."""


def row_note(row: Row, *, verdict: Verdict, percents: Sequence[float], suite: str = "") -> str:
    """The note of a row's parent run: its claim, sources, verdict, reason and the command that measures it.

    `percents`: of the seeds, of the row's metric; () where they are not all there yet. `suite`: as in Standing.
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
            f"`{_command(row, suite=suite)}` measures it.",
        )
    )


def _command(row: Row, *, suite: str) -> str:
    """What measures the row: in a checkout by its Makefile."""
    if (command := paths.command("reproduce")).startswith("remeasure"):
        return f"{command} {row.name}{f' --{suite}' * bool(suite)}"
    return f"make {suite}" if suite else f"make reproduce ROWS={row.name}"


def _spread(percents: Sequence[float]) -> str:
    if len(percents) == 1:
        return f"\n1 seed: {percents[0]:.2f} %"
    lowest, median, highest = min(percents), statistics.median(percents), max(percents)
    spread = f"from {lowest:.2f} to {highest:.2f} %, median {median:.2f} %"
    return f"\n{len(percents)} seeds: {spread}; each is in the artifact seeds.json"


def _state(search: str, *, tags: Sequence[str] = (), metrics: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    columns = [*(f"tags.`{name}`" for name in tags[:1]), *(f"metrics.`{name}`" for name in metrics)]
    columns += [f"tags.`{name}`" for name in tags[1:]]
    return {"searchFilter": search, "selectedColumns": columns, "columnOrder": columns, **more}


def _curves(runs: str, *, rows: Sequence[Measured], **more: Any) -> dict[str, Any]:
    """A line a row: loss of the training on a logarithmic scale, and both accuracies.

    `runs`: the search that finds the rows' own runs; or their seeds, which have a band where `more` groups them by row.
    MLflow's own axis of accuracies starts at 0, where the curves of good rows are one line; this one starts at about
    four times the largest published error.
    """
    lowest = max(0, 10 * math.floor(10 - 0.4 * (100 - min(each.published_percent for each in rows))))
    axis = {"yMin": lowest, "yMax": 100}
    charts = [
        _line("train/loss", scale="log"),
        _line("train/accuracy_percent", scale="linear", range=axis),
        _line("test/accuracy_percent", scale="linear", range=axis),
    ]
    section = {"uuid": "curves", "name": "curves", "display": True, "isReordered": False}
    return _state(
        runs,
        metrics=("test/accuracy_percent",),
        # Ordered by time, the page adds the rows' own runs, as one more group. It loads 100 runs: in the order of seeds
        # there are some of each row among them.
        orderByKey="tags.`mlflow.runName`",
        orderByAsc=True,
        compareRunCharts=charts,
        compareRunSections=[section],
        runsCountToCompare=100,
        **more,
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
    return json.dumps({"name": name, "createdAt": _MADE_AT, "updatedAt": _MADE_AT, "state": f"deflate;{packed}"})
