"""The content of a sweep's MLflow run, which is the parent of its jobs."""

from remeasure.tracking.content.base import SOURCE, STATUS, Content, milliseconds, points
from remeasure.tracking.observer import Sweep
from remeasure.tracking.views import NOTE_TAG


def sweep_content(sweep: Sweep) -> Content:
    """The content of the parent run, with the table of the jobs so far as its note."""
    time_ms = milliseconds(sweep.at)
    numbers = {"sweep/num_jobs": len(sweep.percents), "sweep/best_percent": max(sweep.percents, default=None)}
    return Content(
        identity=("remeasure.sweep", sweep.name),
        name=f"sweep {sweep.name}",
        status=STATUS["started" if sweep.state == "running" else sweep.state],
        started_ms=milliseconds(sweep.started),
        ended_ms=time_ms,
        tags={"sweep": sweep.name, NOTE_TAG: "\n".join(("```", *sweep.table, "```")), **SOURCE},
        points=points(numbers, step=0, time_ms=time_ms),
    )
