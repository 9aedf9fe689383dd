"""The content of a row's MLflow run, which is the parent of the runs of its seeds."""

import time

from remeasure.runs import journal
from remeasure.tracking.content.base import SOURCE, STATUS, Content, Points, cut, milliseconds, points
from remeasure.tracking.observer import Standing
from remeasure.tracking.views import CAMPAIGN_TAG, NOTE_TAG, row_note


def row_content(standing: Standing) -> Content:
    """The content of a row's parent run, which groups the runs of its seeds."""
    row, verdict = standing.row, standing.verdict
    spec_sha256, device_kind = standing.spec_sha256, standing.device_kind
    time_ms = milliseconds(standing.at or journal.now())
    tags = {
        **{"row": row.name, "model": row.model, "data": row.data, "recipe": row.recipe, "mode": row.mode},
        **{"verdict": verdict.verdict, "reason": verdict.reason, "measured": standing.measured},
        **({"agreement": standing.agreement} if standing.agreement else {}),  # a later start, without one, keeps it
        **{"spec_sha256": spec_sha256, "device_kind": device_kind},
    }
    return Content(
        identity=(CAMPAIGN_TAG, campaign_name(row.name, spec_sha256=spec_sha256, device_kind=device_kind)),
        name=row.name,
        status=STATUS["started" if standing.state == "running" else standing.state],
        started_ms=time_ms,
        ended_ms=time_ms,
        tags={**{key: cut(value) for key, value in tags.items()}, NOTE_TAG: row_note(row, verdict=verdict), **SOURCE},
        points=_row_points(standing),
    )


def campaign_name(row: str, *, spec_sha256: str, device_kind: str) -> str:
    """The identity of a row's parent run: row, spec and device kind."""
    return f"{row}/{spec_sha256[:12]}/{device_kind}"


def _row_points(standing: Standing) -> Points:
    """All at step 0, now: MLflow shows the last value at the largest step, and a new campaign starts with few seeds."""
    verdict, published_percent = standing.verdict, standing.row.published.accuracy_percent
    mean = verdict.mean_percent
    values = {
        "row/mean_percent": mean,
        "row/sd_percent": verdict.sd_percent,
        "row/interval_low_percent": verdict.interval_low_percent,
        "row/interval_high_percent": verdict.interval_high_percent,
        "row/published_percent": published_percent,
        "row/gap_pp": None if mean is None else mean - published_percent,
        "row/num_seeds": standing.num_seeds,
        "row/num_seeds_judged": verdict.num_seeds,
    }
    return points(values, step=0, time_ms=round(1000 * time.time()))
