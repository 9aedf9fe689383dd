"""Nobody is asked for what was not wanted, nobody from outside is answered, and no secret is written anywhere."""

import configparser
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
import pytest
from tests.support.photographed import make_folder
from tests.support.project import CHECKOUT, Command, Project, copy_project

from remeasure.data import cifar10, mnist
from remeasure.spec.base import InputError
from remeasure.system.redaction import masked
from remeasure.tracking import mlflow_runs, mlflow_store
from remeasure.tracking.best_effort import BestEffort

FULL = os.environ.get("REMEASURE_FAULTS") == "full"
RUN = ("model=mlp2", "data=digits", "recipe=article", "recipe.epochs_total=1", "device=cpu")
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "hunter2+aws/secret",
    "MLFLOW_TRACKING_USERNAME": "hunter2-user",
    "MLFLOW_TRACKING_PASSWORD": "hunter2-password",
    "HF_TOKEN": "hf_hunter2token",
    "GITHUB_TOKEN": "ghp_hunter2token",
}
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
# Python imports a module of this name as it starts, in every process of a command. It notes who is asked, and refuses.
WATCH = """
import os, sys

def _note(line):
    with open(os.environ["WATCHED"], "a") as notes:
        notes.write(f"{os.getpid()} {line}\\n")

def _watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.bind") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    _note(f"{event} {host.decode() if isinstance(host, bytes) else host}")
    if host not in ("127.0.0.1", "::1", "localhost", None):
        raise OSError(f"{host} is not asked in a test")

sys.addaudithook(_watch)
_note("began")
"""
# What tells mlflow that it is tested, and keeps it from reporting to its makers; and proxies, which hide who is asked.
HIDING = re.compile(r"PYTEST.*|CI|.*_CI|BUILD.*|TF_BUILD|GITHUB.*|.*_proxy|MLFLOW.*|DO_NOT_TRACK|HF_.*", re.IGNORECASE)


@contextmanager
def watch(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that is watched, in a folder of its own; meanwhile without what hides faults."""
    (folder / "watch").mkdir()
    (folder / "watch/sitecustomize.py").write_text(WATCH)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if HIDING.fullmatch(name)]:
            patch.delenv(name)
        yield {"WATCHED": str(folder / "watched"), "XDG_CACHE_HOME": str(folder / "cache")}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[dict[str, str]]:
    with watch(tmp_path) as environment:
        yield environment


def watching(project: Project, watched: dict[str, str]) -> dict[str, str]:
    """The same, for this project's commands."""
    return {**watched, "PYTHONPATH": f"{Path(watched['WATCHED']).parent}/watch:{project.root}/src"}


def asked(watched: dict[str, str]) -> set[str]:
    """Who was asked, or would have been, by name or address; it must have been watched."""
    lines = Path(watched["WATCHED"]).read_text().splitlines()
    assert any(line.endswith(" began") for line in lines)
    return {line.split(" ", 2)[2] for line in lines if not line.endswith(" began")}


# ---------------------------------------------------------------- nothing is fetched that was not asked for


def test_the_watch_sees_whoever_asks(project: Project, watched: dict[str, str], tmp_path: Path) -> None:
    """So that the tests below can fail."""
    code = "import urllib.request; urllib.request.urlopen('http://example.org/')"
    done = project.python("-c", code, cwd=tmp_path, **watching(project, watched))
    assert done.returncode == 1
    assert asked(watched) == {"example.org"}


class Run(NamedTuple):
    folder: Path
    watched: dict[str, str]
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the digits in a project of its own, watched from its imports on, with secrets in its environment."""
    folder = tmp_path_factory.mktemp("run")
    project = copy_project(folder / "project", store="")
    with watch(folder) as watched:
        script = str(project.root / "src/train.py")
        done = project.python(script, *RUN, cwd=folder, **watching(project, watched), **SECRETS)
    assert done.returncode == 0, done.stderr
    return Run(folder, watched, done)


def test_a_run_asks_nobody(a_run: Run) -> None:
    assert "test_accuracy_percent=" in a_run.done.stdout
    assert asked(a_run.watched) - LOOPBACK == set()


def test_a_campaign_and_its_workers_ask_nobody(tmp_path: Path, watched: dict[str, str]) -> None:
    project = copy_project(tmp_path / "project", store="runs/demo/mlflow.db")
    chosen = () if FULL else ("reproduce", "logreg-digits", "--seeds", "2")
    done = project.run("reproduce.py", *chosen, "--demo", cwd=tmp_path, **watching(project, watched))
    assert done.returncode == 0, done.stderr
    processes = {line.split()[0] for line in Path(watched["WATCHED"]).read_text().splitlines()}
    assert len(processes) > 1  # the workers are watched, too
    assert asked(watched) - LOOPBACK == set()


@pytest.mark.parametrize(("name", "mirrors"), [("mnist", mnist.MIRRORS), ("cifar10", cifar10.MIRRORS)])
def test_missing_data_are_asked_for_at_their_mirrors_alone(
    name: str, mirrors: tuple[str, ...], project: Project, watched: dict[str, str], tmp_path: Path
) -> None:
    model = {"mnist": "logreg", "cifar10": "resnet18"}[name]
    done = project.run("train.py", f"model={model}", "device=cpu", cwd=tmp_path, **watching(project, watched))
    assert done.returncode == 2, done.stderr
    assert "these files are missing" in done.stderr
    assert asked(watched) == {urlsplit(mirror).hostname for mirror in mirrors}


def test_missing_weights_are_asked_for_at_the_hub_alone(
    project: Project, watched: dict[str, str], tmp_path: Path
) -> None:
    there = {"REMEASURE_DATA": str(make_folder(tmp_path / "data")), "HF_HOME": str(tmp_path / "hub")}
    arguments = ("model=vit_b16", "data.num_test=7", "device=cpu")
    done = project.run("train.py", *arguments, cwd=tmp_path, **watching(project, watched), **there)
    assert done.returncode == 2, done.stderr
    assert "model.safetensors of timm/deit_base_patch16_224.fb_in1k" in done.stderr
    assert asked(watched) == {"huggingface.co"}


def test_missing_photographs_are_asked_for_nowhere(project: Project, watched: dict[str, str], tmp_path: Path) -> None:
    done = project.run("train.py", "model=vit_b16", "device=cpu", cwd=tmp_path, **watching(project, watched))
    assert done.returncode == 2
    assert "these photographs are missing" in done.stderr
    assert asked(watched) == set()


SWITCHES = """
import remeasure.tracking.mlflow_store
remeasure.tracking.mlflow_store._client("http://127.0.0.1:9")
from huggingface_hub import constants
from mlflow.telemetry.utils import is_telemetry_disabled
print(is_telemetry_disabled(), constants.HF_HUB_DISABLE_TELEMETRY)
"""


def test_telemetry_of_dependencies_is_off(project: Project, watched: dict[str, str], tmp_path: Path) -> None:
    done = project.python("-c", SWITCHES, cwd=tmp_path, **watching(project, watched))
    assert done.stdout.split() == ["True", "True"], done.stderr
    dvc = configparser.ConfigParser()
    dvc.read_string(re.sub(r"(?m)^\s+", "", (CHECKOUT / ".dvc/config").read_text()))
    assert dvc["core"]["analytics"] == "false"


# ---------------------------------------------------------------- who is answered


def recipe(target: str) -> str:
    """What `make <target>` runs, by absolute paths and without variables."""
    line = (CHECKOUT / "Makefile").read_text().partition(f"\n{target}: setup\n\t")[2].partition("\n")[0]
    assert line
    line = line.replace("$(python)", sys.executable).replace("src/", f"{CHECKOUT}/src/")
    return re.sub(r"\$\(if .*\)$", "", line)


class Ui(NamedTuple):
    folder: Path
    watched: dict[str, str]
    pid: int
    port: int


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """`make ui` on some free port, watched."""
    folder, port = tmp_path_factory.mktemp("ui"), free_port()
    with watch(folder) as watched, (folder / "ui.log").open("w") as log:
        environment = {**os.environ, **watched, "PYTHONPATH": f"{folder}/watch"}
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec env {recipe('ui')} --port {port}"],
            cwd=folder,
            env=environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while " (Ctrl-C ends it)" not in (folder / "ui.log").read_text():
                assert process.poll() is None, (folder / "ui.log").read_text()
                time.sleep(0.2)
            assert answers(port)  # the link is not printed before
            yield Ui(folder, watched, process.pid, port)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return bool(opener.open(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)
    except OSError:
        return False


def test_the_ui_prints_the_link_to_all_runs_where_no_row_was_measured_yet(ui: Ui) -> None:
    link = f"http://127.0.0.1:{ui.port}/#/experiments/1/runs?workflowType=machine_learning  (Ctrl-C ends it)\n"
    assert link in (ui.folder / "ui.log").read_text()


def test_the_ui_answers_this_machine_alone_and_asks_nobody(ui: Ui) -> None:
    family = [psutil.Process(ui.pid), *psutil.Process(ui.pid).children(recursive=True)]
    sockets, words = [], []
    for process in family:
        with suppress(psutil.NoSuchProcess):  # one of the server's children may end while we look
            sockets += process.net_connections("inet")
            words += process.cmdline()
    listening = {entry.laddr for entry in sockets if entry.status == psutil.CONN_LISTEN}
    assert ui.port in {address.port for address in listening}
    assert words
    assert not any("sqlite:" in word for word in words)  # a password would be in `ps`
    assert not any("mlflow.server.jobs" in word for word in words)  # eight processes for nothing
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert asked(ui.watched) - LOOPBACK == set()


# ---------------------------------------------------------------- secrets


def leaks(folder: Path) -> list[str]:
    """The files below that hold the word which all secrets of this file have in them."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


def test_no_secret_of_the_environment_is_written_anywhere(a_run: Run) -> None:
    assert list(a_run.folder.rglob("mlflow.db"))
    assert list(a_run.folder.rglob("mlartifacts/**/config.yaml"))
    assert leaks(a_run.folder) == []
    assert "hunter2" not in a_run.done.stdout + a_run.done.stderr


def test_the_password_of_a_server_is_written_nowhere(ui: Ui, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    uri = f"http://hunter2-user:hunter2%40password@127.0.0.1:{ui.port}"
    done = project.run("train.py", *RUN, cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done.stderr
    replayed = project.run("reproduce.py", "track", cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
    assert f"MLflow at http://***@127.0.0.1:{ui.port} holds 1 run of this checkout" in replayed.stderr
    assert re.search(r"mlflow_run_id=[0-9a-f]{32}", done.stdout)
    assert "hunter2" not in done.stdout + done.stderr + replayed.stdout + replayed.stderr
    assert leaks(tmp_path) + leaks(ui.folder) == []


URIS = [
    "http://me:hunter2secret@127.0.0.1:9",
    "http://me:hunter2%40secret@127.0.0.1:9",
    "http://me:hunter2@secret@127.0.0.1:9",
    "http://me:se/hunter2?cret@127.0.0.1:9",
    "http://me:it's\"hunter2 secret@127.0.0.1:9",
    "http://hunter2token@127.0.0.1:9",
    "http://127.0.0.1:9/?token=hunter2secret",
    "http://127.0.0.1:9/?a=b&api_key=hunter2secret&c=d",
    "http:/me:hunter2secret@127.0.0.1:9",
    "me:hunter2secret@127.0.0.1:9",
    "htp://me:hunter2secret@127.0.0.1:9",
    "postgresql://me:hunter2secret@127.0.0.1:9/db",
    "postgresql://me:hunter2%2Fsecret@127.0.0.1:9/db?sslmode=require",
    "postgresql://127.0.0.1:9/db?user=me&password=hunter2secret",
    "postgresql:/me:hunter2secret@127.0.0.1:9/db",
    "mysql+pymysql://me:hunter2secret@127.0.0.1:9/db",
    "sqlite:////nowhere/at/all.db?password=hunter2secret",
]


@pytest.mark.skipif(not mlflow_store.available(), reason="mlflow is not installed")
@pytest.mark.parametrize("uri", URIS)
def test_an_unreachable_store_is_named_without_its_password(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError) as refused:
        mlflow_runs.open_tracker(tmp_path)
    assert "cannot be used" in refused.value.faults[0]
    assert "***" in refused.value.faults[0]
    shown = capfd.readouterr()
    assert "hunter2" not in "".join(refused.value.faults) + shown.out + shown.err
    assert leaks(tmp_path) == []


@pytest.mark.parametrize("uri", URIS)
def test_a_store_that_dies_in_mid_run_is_reported_without_its_password(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    def send() -> str:
        raise RuntimeError(f"API request to {uri}/api/2.0/mlflow/runs/create failed")

    BestEffort()(send)
    assert "tracking is behind: API request to " in (shown := capsys.readouterr().err)
    assert "hunter2" not in shown


def test_a_traceback_shows_no_password(project: Project, here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "http://me:hunter2secret@127.0.0.1:9"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"API request to {uri} failed, and ?token=hunter2secret too")

    monkeypatch.setattr("remeasure.cli.reproduce.main", fail)
    ended = here(project, "reproduce.py", "track")
    assert ended.status == 1
    assert "Traceback" in ended.stderr
    assert "API request to http://***@127.0.0.1:9 failed" in ended.stderr
    assert "hunter2" not in ended.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:se/cr@t@host/db", "postgresql://***@host/db"),
        ("no http://token@host:80/x today", "no http://***@host:80/x today"),
        ("http://host/x?a=1&sslpassword=se&b=2", "http://host/x?a=1&sslpassword=***&b=2"),
        (
            "https://host/x?X-Amz-Signature=ab12&X-Amz-Credential=me",
            "https://host/x?X-Amz-Signature=***&X-Amz-Credential=***",
        ),
        ("http://host/x?metric_key=test_loss", "http://host/x?metric_key=test_loss"),
        ("http://host/x", "http://host/x"),
        ("a@b is at home", "a@b is at home"),
    ],
)
def test_secrets_of_uris_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    ("name", "value", "text", "expected"),
    [
        ("MLFLOW_TRACKING_PASSWORD", "hunter2!", "401 for me, hunter2!", "401 for me, ***"),
        ("MLFLOW_TRACKING_PASSWORD", "hunter 2", "401 for hunter%202", "401 for ***"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2/x", "key hunter2/x and hunter2%2Fx", "key *** and ***"),
        ("HTTPS_PROXY", "http://me:hunter2@proxy:3128", "nonnumeric port: 'hunter2'", "nonnumeric port: '***'"),
        ("TOKENIZERS_PARALLELISM", "falsehood", "falsehood", "falsehood"),
        ("GITHUB_TOKEN", "true", "true", "true"),
        ("PWD", "/home/someone", "/home/someone/x", "/home/someone/x"),
    ],
)
def test_secrets_of_the_environment_are_masked_wherever_they_stand(
    name: str, value: str, text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert masked(text) == expected
