"""The files of `python -m remeasure.bench.gpu`: gpu.json and gpu.md, written after each step."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from remeasure.runs import provenance
from remeasure.spec.base import DeviceKind, InputError
from remeasure.system import paths
from remeasure.system.atomic import write_atomic
from remeasure.system.clock import now

Figures = list[dict[str, Any]]


class IncompleteError(Exception):
    """A step gave `lines`, but is not complete."""

    def __init__(self, reason: str, *, lines: Figures) -> None:
        super().__init__(reason)
        self.lines = lines


class Report:
    """The measurements so far in folder `out`. `tiny`: a rehearsal. `failures`: the steps of this call that failed.

    Raises InputError: the folder has a damaged file, or figures of another machine, version, commit or of a rehearsal.
    """

    def __init__(self, out: Path, *, kind: DeviceKind, tiny: bool) -> None:
        self.path, self.failures = out / "gpu.json", list[str]()
        self.head = {
            "environment": provenance.environment(provenance.device_name(kind)),
            "commit": str(provenance.revision(paths.project_root())),
            "rehearsal": tiny,
        }
        self.figures: dict[str, Any] = {}
        if self.path.is_file():
            try:
                found = json.loads(self.path.read_text())
                head, self.figures = found["head"], found["figures"]
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self.path}: damaged; remove it, or give another --out") from None
            if head != self.head:
                differs = ", ".join(key for key in self.head if head.get(key) != self.head[key])
                what = f"of another machine, version or commit, or a rehearsal ({differs})"
                raise InputError(f"{self.path} is {what}; give another --out")

    def lines(self, name: str) -> Figures:
        """The results of the step; [] if it was not measured."""
        return _lines(self.figures, name)

    def done(self, name: str) -> bool:
        return name in self.figures and "lacks" not in self.figures[name]

    def take(self, name: str, step: Callable[[], Figures]) -> None:
        """Measure the step and write its results; a failed or incomplete step is measured again next time."""
        _say(f"{name} …")
        began, lacks = time.monotonic(), dict[str, str]()
        try:
            lines = step()
        except IncompleteError as error:
            lines, lacks = error.lines, {"lacks": str(error)}
        except Exception as error:  # one step's fault; go on with the others
            self.failures.append(name)
            _say(f"{name} failed: {type(error).__name__}: {error}")
            return
        seconds = round(time.monotonic() - began, 1)
        self.figures[name] = {"measured_at": now(), "seconds": seconds, "lines": lines, **lacks}
        self.write()
        self.failures += [name] if lacks else []
        _say(f"{name} is not complete: {lacks['lacks']}" if lacks else f"{name}: {seconds} s")

    def write(self) -> None:
        content = {"head": self.head, "figures": self.figures}
        write_atomic(self.path, json.dumps(content, indent=1).encode())
        write_atomic(self.path.with_suffix(".md"), to_markdown(content).encode())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def to_markdown(content: Mapping[str, Any]) -> str:
    """gpu.md: the machine, the command, and a table for each step."""
    environment = content["head"]["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    lines = [
        f"# {'A rehearsal' if content['head']['rehearsal'] else 'Measured'} on {environment['device']}",
        "",
        "By `python -m remeasure.bench.gpu --out DIR`, at commit "
        f"{content['head']['commit']}; {environment['cpu']}, Python {environment['python']}, {packages}.",
    ]
    peak = next((line["tflops"] for line in _lines(content["figures"], "matrix products")), None)
    for name, figures in content["figures"].items():
        table = [_with_share(line, peak=peak) for line in figures["lines"]]
        columns = list(dict.fromkeys(key for line in table for key in line))
        lines += ["", f"## {name}", ""]
        lines += [f"Not complete: {figures['lacks']}.", ""] if "lacks" in figures else []
        lines += [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(_cell(line.get(column)) for column in columns)} |" for line in table]
    return "\n".join(lines) + "\n"


def _lines(figures: Mapping[str, Any], name: str) -> Figures:
    lines: Figures = figures.get(name, {"lines": []})["lines"]
    return lines


def _with_share(line: Mapping[str, Any], *, peak: float | None) -> dict[str, Any]:
    """The line with its speed also as a share of the rate of matrix products."""
    if not peak or "size" in line or not line.get("tflops"):
        return dict(line)
    return {**line, "share_of_matrix_products": round(line["tflops"] / peak, 3)}


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        case int():
            return f"{value:,}"
    return str(value)
