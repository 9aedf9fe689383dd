"""The content of a row's MLflow run, which is the parent of the runs of its seeds."""

import hashlib
import json
import statistics
import time
from collections.abc import Sequence

from remeasure.judging.metrics import percent
from remeasure.judging.records import SeedResults
from remeasure.system.clock import now
from remeasure.tracking.content.base import SOURCE, STATUS, Content, Points, cut, milliseconds, params, points
from remeasure.tracking.content.datasets import inputs
from remeasure.tracking.content.figures import confusion
from remeasure.tracking.observer import Standing
from remeasure.tracking.views import CAMPAIGN_TAG, NOTE_TAG, row_note

SEEDS_FILE = "seeds.json"
TABLES_TAG = "mlflow.loggedArtifacts"  # by which the UI shows a JSON file as a table
_COLUMNS = ("seed", "accuracy_percent", "num_correct", "loss", "wall_seconds", "device", "commit", "finished_at")


def row_content(standing: Standing) -> Content:
    """The content of a row's parent run, which groups the runs of its seeds."""
    row, verdict = standing.row, standing.verdict
    spec_sha256, device_kind = standing.spec_sha256, standing.device_kind
    time_ms = milliseconds(standing.at or now())
    seeds = sorted(standing.seeds, key=lambda part: part.record.seed)
    table, first = _table(seeds), seeds[0] if seeds else None
    percents = [value for part in seeds if (value := percent(part.record, metric=row.metric)) is not None]
    tags = {
        **{"row": row.name, "model": row.model, "data": row.data, "recipe": row.recipe, "mode": row.mode},
        **{"verdict": verdict.verdict, "reason": verdict.reason, "measured": standing.measured},
        **({} if row.metric == "accuracy_percent" else {"metric": row.metric}),
        **({"agreement": standing.agreement} if standing.agreement else {}),  # a later start, without one, keeps it
        **{"spec_sha256": spec_sha256, "device_kind": device_kind},
    }
    return Content(
        identity=(CAMPAIGN_TAG, campaign_name(row.name, spec_sha256=spec_sha256, device_kind=device_kind)),
        name=row.name,
        status=STATUS["started" if standing.state == "running" else standing.state],
        started_ms=time_ms,
        ended_ms=time_ms,
        tags={
            **{key: cut(value) for key, value in tags.items()},
            **({TABLES_TAG: json.dumps([{"path": SEEDS_FILE, "type": "table"}])} if seeds else {}),
            **({"mlflow.source.git.commit": first.record.commit} if first else {}),
            **{NOTE_TAG: row_note(row, verdict=verdict, percents=percents, suite=standing.suite), **SOURCE},
        },
        points={**_row_points(standing), **_curves(seeds)},
        files=(standing.report,) if seeds and standing.report and standing.report.is_file() else (),
        made={SEEDS_FILE: lambda: table, "confusion.png": lambda: confusion(seeds)} if seeds else {},
        made_sha256=hashlib.sha256(table).hexdigest(),
        # Without the row's name, by which the views group seeds: the row's own curve would count as one more seed.
        params=params({"num_params": first.record.num_params}, config=first.spec) if first else {},
        datasets=inputs(first.spec, sha256=first.record.data_sha256) if first else (),
    )


def campaign_name(row: str, *, spec_sha256: str, device_kind: str) -> str:
    """The identity of a row's parent run: row, spec and device kind."""
    return f"{row}/{spec_sha256[:12]}/{device_kind}"


def _row_points(standing: Standing) -> Points:
    """All at step 0, now: MLflow shows the last value at the largest step, and a new campaign starts with few seeds."""
    verdict, published_percent = standing.verdict, standing.row.published.percent
    mean, keys = verdict.mean_percent, ("mean_percent", "sd_percent", "interval_low_percent", "interval_high_percent")
    values = {
        **{f"row/{key}": getattr(verdict, key) for key in keys},
        "row/published_percent": published_percent,
        "row/gap_pp": None if mean is None else mean - published_percent,
        "row/num_seeds": standing.num_seeds,
        "row/num_seeds_judged": verdict.num_seeds,
    }
    return points(values, step=0, time_ms=round(1000 * time.time()))


def _curves(seeds: Sequence[SeedResults]) -> Points:
    """By epoch, the mean over the seeds, named as a seed's own value, and their sample standard deviation, …_sd."""
    values: dict[tuple[str, int], list[float]] = {}
    for part in seeds:
        for point in part.curve:
            for key in ("loss", "accuracy_percent"):
                if (value := getattr(point, key)) is not None:
                    values.setdefault((f"{point.split}/{key}", point.epoch), []).append(value)
    found, now_ms = Points(), round(1000 * time.time())
    for (name, epoch), each in values.items():
        sd = statistics.stdev(each) if len(each) > 1 else None
        found |= points({name: statistics.fmean(each), f"{name}_sd": sd}, step=epoch, time_ms=now_ms)
    return found


def _table(seeds: Sequence[SeedResults]) -> bytes:
    """A line a seed, as pandas writes a table as JSON, orient="split", and as MLflow's log_table does."""
    lines = [[getattr(part.record, name) for name in _COLUMNS] for part in seeds]
    return json.dumps({"columns": _COLUMNS, "data": lines}).encode()
