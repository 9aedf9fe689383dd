"""The project's commands called in this process with input that may be wrong, and what must hold whatever it is."""

import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, Phase, settings
from tests.support.measured import LABELS, LEDGER, ROW, group, snapshot
from tests.support.project import Ended, Project

from remeasure.cli import commands, train
from remeasure.data import catalog, cifar10, mnist
from remeasure.judging import publish
from remeasure.judging.report.page import TestSplit
from remeasure.runs import execute
from remeasure.runs.folder import Outcome
from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.tracking.observer import Observers

LIMIT_SECONDS = 60.0  # for one command; nothing here takes more than two
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


def examples(num: int) -> settings:
    """How many examples a property takes; always the same ones."""
    return settings(
        max_examples=num,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),  # a command takes a while: what fails first is short enough
    )


class HungError(BaseException):
    """A command has not ended. No handler of `Exception` catches it."""


def _hang(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise HungError(f"no end after {LIMIT_SECONDS} s")


@dataclass(kw_only=True)
class Entry:
    """The commands of a scratch project, which has the tiny measured row, a ledger for it, and nothing else.

    `specs`: what the last command would have trained, or did.
    """

    project: Project
    specs: list[RunSpec] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.project.root

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def ledger(self) -> Path:
        return self.root / "conf/benchmark.yaml"

    def __call__(self, script: str, *arguments: str) -> Ended:
        """The command's end. Fails where it hangs, or where what it says cannot be written."""
        self.specs.clear()
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]), _limited():
            try:
                status = self._main(script, *arguments)
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        texts = []
        for stream in streams:
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        return Ended(status, *texts)

    def _main(self, script: str, *arguments: str) -> int:
        before = sys.argv
        sys.argv = [script, *arguments]
        try:
            return commands.train_main() if script == "train.py" else commands.reproduce_main(arguments)
        finally:
            sys.argv = before

    def begin(self, spec: RunSpec, **options: Any) -> list[Outcome]:
        """In place of run.execute_together: what is small is trained, and of the rest only noted that it would be."""
        self.specs.append(spec)
        assert_finite(asdict(spec))
        if not _is_small(spec):
            raise SystemExit(0)
        return EXECUTE(spec, **options)


EXECUTE = execute.execute_together


def shown(text: str) -> str:
    """As stderr shows it: half of a surrogate pair as its escape."""
    return text.encode(errors="backslashreplace").decode()


def _is_small(spec: RunSpec) -> bool:
    """Whether one epoch of it takes no time and no memory."""
    recipe = spec.recipe
    if not isinstance(recipe, Recipe) or recipe.streaming or spec.compile or spec.model.builder == "resnet18":
        return spec.mode == "evaluate"
    whole = recipe.augmentation.name == "none" and recipe.resolution is None
    return (
        whole and recipe.epochs_total <= 2 and recipe.batch_size >= 8 and max(spec.cpu_threads, spec.engine_width) < 5
    )


def assert_finite(value: object, *, key: str = "spec") -> None:
    """No NaN and no infinity in a plain value, however deep, and no whole number that becomes one."""
    match value:
        case Mapping():
            for name, entry in value.items():
                assert_finite(entry, key=f"{key}.{name}")
        case list() | tuple():
            for index, entry in enumerate(value):
                assert_finite(entry, key=f"{key}.{index}")
        case int() | float():
            assert math.isfinite(value), f"{key} is {value}"
            assert abs(value) <= 2**63 or isinstance(value, float), f"{key} is {value}"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """HungError after LIMIT_SECONDS; the commands' own handlers of signals are undone."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def entered(project: Project) -> Iterator[Entry]:
    """The entry to a scratch project: offline, unwatched, in a working directory of its own."""
    entry = Entry(project=project)
    _measure(entry)
    missing = ["not downloaded in a test"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("REMEASURE_DATA", str(entry.root / "data"))
        patch.setenv("XDG_CACHE_HOME", str(entry.root / "cache"))
        patch.setattr(paths, "_CHECKOUT", entry.root)
        patch.setattr(train, "build", lambda *_, **__: Observers([]))
        patch.setattr(execute, "execute_together", entry.begin)
        patch.setattr(catalog, "test_split", lambda spec, *, root: (LABELS, None))  # noqa: ARG005
        for reader in (mnist, cifar10):
            patch.setattr(reader, "download", lambda *_, **__: missing)
        (entry.root / "cwd").mkdir()
        patch.chdir(entry.root / "cwd")
        yield entry


def _measure(entry: Entry) -> None:
    """Put the tiny row, its ledger, its data's config and its table into the project."""
    mnist_config = (entry.root / "conf/data/mnist.yaml").read_text()  # whose files are not here
    (entry.root / "conf/data/shapes.yaml").write_text(mnist_config.replace("name: mnist", "name: shapes"))
    entry.ledger.write_text(LEDGER)
    entry.results.mkdir()
    publish.publish(entry.results, row=ROW, files=group().to_files())
    publish.write(
        entry.ledger,
        results=entry.results,
        readme_path=entry.root / "README.md",
        splits=lambda _: TestSplit(LABELS, None),
    )


# What may lie in place of a file, and is none: to read the pipe would wait for ever, the device would never end.
ODD: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@contextlib.contextmanager
def changed(path: Path, *, content: bytes | None = None, odd: str = "folder") -> Iterator[None]:
    """The file with other content, or (None) what is no file in its place, for a while."""
    before = path.read_bytes()
    path.unlink()
    ODD[odd](path) if content is None else path.write_bytes(content)
    try:
        yield
    finally:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(before)


@contextlib.contextmanager
def untouched(entry: Entry) -> Iterator[None]:
    """Fails where a command that is refused leaves another byte in results/ or in the README."""
    before = snapshot(entry.results), (entry.root / "README.md").read_bytes()
    yield
    after = snapshot(entry.results), (entry.root / "README.md").read_bytes()
    assert after == before


def assert_well_ended(ended: Ended, *, naming: Collection[str]) -> None:
    """Done, failed and said so, or refused with a message that holds one of the names; never a traceback."""
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.status in (0, 1, 2), ended
    if ended.status:
        assert any(shown(name) in ended.stderr for name in naming if name), (naming, ended.stderr)
