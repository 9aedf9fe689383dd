"""Fixtures that several test files share."""

import multiprocessing.util
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.forking import client as forking
from tests.support.project import Command, Ended, Project, add_store, copy_project

from remeasure.cli import commands
from remeasure.runs import code
from remeasure.spec.base import Choice
from remeasure.system import paths

# Tests run side by side, one a core, and the threads of a step would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that trains twice in one folder trains anew: on a slow machine, the first training would leave a checkpoint.
os.environ.setdefault("REMEASURE_CHECKPOINT_SECONDS", "1e9")
SPAWN = multiprocessing.util.spawnv_passfds
MNIST_STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
LONG = ("faults", "test_concurrency.py", "test_outages.py", "campaign", "cli", "bench", "test_network.py", "training")
SHORT = ("config", "models", "spec")
CIFAR10_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes begin first and quick ones last, so that all processes of pytest end at the same time."""
    root = Path(__file__).parent

    def turn(item: pytest.Item) -> int:
        first = item.path.relative_to(root).parts[0]
        return 0 if first in LONG else 2 if first in SHORT else 1

    items.sort(key=turn)


@pytest.fixture(autouse=True, scope="session")
def forked_workers() -> Iterator[None]:
    """Worker processes that tests start by multiprocessing have imported torch already; but see `spawned_workers`."""
    with pytest.MonkeyPatch.context() as patch:
        forking.fork_workers(patch)
        assert not forking.changed()  # else a package has set them as it was imported: put them into FREE
        yield


@pytest.fixture(autouse=True)
def variables() -> Iterator[None]:
    """What a test's code sets in the environment is undone: with Lightning's PL_GLOBAL_SEED no command is forked."""
    before = dict(os.environ)
    yield
    before["PYTEST_CURRENT_TEST"] = os.environ["PYTEST_CURRENT_TEST"]  # pytest's own
    for name in os.environ.keys() - before:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes of this test are new ones, as those of users."""
    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", SPAWN)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The data root, which holds MNIST: without it, tests are skipped, or fail where REMEASURE_REQUIRE_DATA is set."""
    root = paths.data_root()
    raw = root / "MNIST/raw"
    if not all((raw / f"{stem}.gz").is_file() or (raw / stem).is_file() for stem in MNIST_STEMS):
        _do_without(f"{raw} lacks MNIST")
    return root


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The data root, which holds the binary files of CIFAR-10; without them as above."""
    root = paths.data_root()
    folder = root / "cifar-10-batches-bin"
    if not all((folder / f"{name}.bin").is_file() for name in CIFAR10_BATCHES):
        _do_without(f"{folder} lacks CIFAR-10")
    return root


@pytest.fixture(scope="session")
def sample() -> Path:
    """The data root, which holds the hundred photographs of ImageNet; without them as above."""
    root = paths.data_root()
    if not (root / "imagenet-sample/val").is_dir():
        _do_without(f"{root} lacks imagenet-sample")
    return root


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a migrated database without the experiment."""
    return add_store(tmp_path_factory.mktemp("store") / "mlflow.db")


def _do_without(reason: str) -> NoReturn:
    if os.environ.get("REMEASURE_REQUIRE_DATA"):
        pytest.fail(f"REMEASURE_REQUIRE_DATA is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A scratch copy of the project, shared by the tests that only add runs of their own to it."""
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is unpacked, as an installer does; it is built offline, by the build backend itself."""
    project = copy_project(tmp_path_factory.mktemp("source"))
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    built = project.python("-c", code, str(project.root / "dist"), cwd=project.root)
    assert built.returncode == 0, built.stderr
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(project.root / "dist" / built.stdout.split()[-1]) as wheel:
        wheel.extractall(site)
    shutil.rmtree(project.root)
    return site


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Command]:
    """Call a script of a project in this process, which has imported torch already: `here(project, "train.py", …)`.

    `here(project, "remeasure", …)` is the command of that name.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("REMEASURE_CONF", "")  # what a command sets is undone
    monkeypatch.setattr(sys, "path", [*sys.path])
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}

    def call(project: Project, script: str, *arguments: str) -> Ended:
        for hashes in (
            code._files,
            code._paths,
            code._own_paths,
            code._remembered,
        ):  # a command takes them when its process begins
            hashes.cache_clear()
        monkeypatch.setattr(paths, "_CHECKOUT", project.root)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            sys.exit(
                commands.train_main()
                if script == "train.py"
                else commands.main(arguments)
                if script == "remeasure"
                else commands.reproduce_main(arguments)
            )
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *capfd.readouterr())

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
    folder = f"{tmp_path_factory.getbasetemp()}{os.sep}"
    of_projects = [
        name for name, module in sys.modules.items() if str(module.__dict__.get("__file__")).startswith(folder)
    ]
    for name in of_projects:  # another test's project may have a module of that name
        del sys.modules[name]
    for base in Choice.__subclasses__():
        for name in [name for name, choice in base.choices.items() if choice.__module__ in of_projects]:
            del base.choices[name]
