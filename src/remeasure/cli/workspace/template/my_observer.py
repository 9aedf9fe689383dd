"""An observer: whoever wants to know how runs end."""

from pathlib import Path
from typing import Any

from remeasure.tracking.observer import Observer


class Lines(Observer):
    """A line in a file for each run that has ended. Other events: started, epoch, finding, row, close."""

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)

    def finished(self, run: Path, event: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(f"{run.name}: {event['event']}\n")
