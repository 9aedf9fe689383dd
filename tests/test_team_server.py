"""deploy/: a team's MLflow server on PostgreSQL, with an S3-compatible store behind it, as people use it."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from mlflow import MlflowClient
from tests.support.project import CHECKOUT, Command, Project
from tests.support.servers import ACCOUNT, KEYS, Store, TrackingServer, no_postgresql, s3_store, team_server
from tests.support.suite import full_name, in_mlflow, small_suite

from remeasure.runs import journal

ROW = "logreg-digits"
RUN = ("train.py", "model=mlp2", "data=digits", "recipe=article", "recipe.epochs_total=1", "seed=7")
SEEDS = range(2)
BUCKET = "remeasure"
DEPLOY = CHECKOUT / "deploy"
needs_postgresql = pytest.mark.skipif(bool(no_postgresql()), reason=no_postgresql())


class Team(NamedTuple):
    server: TrackingServer
    store: Store


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with s3_store() as store, team_server(tmp_path_factory.mktemp("server"), store=store) as server:
        yield Team(server, store)


@pytest.fixture(scope="module")
def measured_offline(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose campaign, two seeds of one row, was tracked in its own SQLite database."""
    project = small_suite(tmp_path_factory.mktemp("offline") / "project", rows=[ROW])
    done = project.run("reproduce.py", "reproduce", ROW, "--seeds", str(len(SEEDS)), cwd=project.root)
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def member(here: Command, monkeypatch: pytest.MonkeyPatch, team: Team) -> Command:
    """`here`, with the server and the administrator's account in the environment, but nothing of its stores."""
    settings = {
        "MLFLOW_TRACKING_URI": team.server.uri,
        **ACCOUNT,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "300",  # it may be busy
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return here


def tracked(team: Team) -> tuple[list[str], int, dict[str, str]]:
    """Runs by name, the number of models, and the objects behind the server."""
    runs = in_mlflow(team.server.uri)
    models = MlflowClient(team.server.uri).search_logged_models([runs[0].info.experiment_id])
    return sorted(map(full_name, runs)), len(models), team.store.objects(BUCKET)


def login(monkeypatch: pytest.MonkeyPatch, *, username: str | None, password: str | None) -> None:
    """The account in the environment of the next commands; None leaves a variable out."""
    for name, value in zip(ACCOUNT, (username, password), strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


def make_account(team: Team, **account: str) -> None:
    """As docs/team.md says, by the administrator."""
    key = b64encode(":".join(ACCOUNT.values()).encode()).decode()
    request = urllib.request.Request(
        f"{team.server.uri}/api/2.0/mlflow/users/create",
        data=json.dumps(account).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Basic {key}"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        assert answer.status == 200


@needs_postgresql
def test_what_was_measured_offline_is_imported_once(measured_offline: Project, member: Command, team: Team) -> None:
    """Every seed with its files, the row with its report, and the first seed's network as a model."""
    first = member(measured_offline, "reproduce.py", "track")
    assert first.status == 0, first.stderr
    names, num_models, objects = tracked(team)
    assert names == [ROW, *(f"{ROW} seed {seed:03d}" for seed in SEEDS)]
    assert num_models == 1
    ends = [key.rpartition("/")[2] for key in objects]
    assert [ends.count(name) for name in ("record.json", "report.html", "MLmodel")] == [len(SEEDS), 1, 1]
    assert member(measured_offline, "reproduce.py", "track").status == 0
    assert tracked(team) == (names, num_models, objects)


@needs_postgresql
def test_another_member_adds_to_what_the_first_has_made_and_needs_no_key_of_the_store(
    measured_offline: Project, member: Command, team: Team, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not KEYS.keys() & os.environ.keys()
    assert member(measured_offline, "reproduce.py", "track").status == 0
    make_account(team, username="second", password="hunter2-of-the-second")
    login(monkeypatch, username="second", password="hunter2-of-the-second")
    ended = member(measured_offline, *RUN)
    assert ended.status == 0, ended.stderr
    assert "tracking is behind" not in ended.stderr
    (run_id,) = re.findall(r"mlflow_run_id=(\w{32})", ended.stdout)
    client = MlflowClient(team.server.uri)
    assert client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:")
    (kept,) = measured_offline.runs.glob("mlp2-*-s7-a1")
    sent = Path(client.download_artifacts(run_id, "record.json", str(tmp_path)))
    assert sent.read_bytes() == (kept / "record.json").read_bytes()
    assert any(f"/{run_id}/" in key for key in team.store.objects(BUCKET))
    again = member(measured_offline, "reproduce.py", "track")
    assert again.status == 0, again.stderr


@needs_postgresql
@pytest.mark.parametrize("password", ["hunter2-that-is-wrong", None])
def test_a_run_without_the_right_password_goes_on_and_track_sends_it_later(
    password: str | None, member: Command, team: Team, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project = small_suite(tmp_path / "project", rows=[ROW])
    login(monkeypatch, username="admin", password=password)
    ended = member(project, *RUN)
    assert ended.status == 0, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "tracking" in line]
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
    assert line.endswith("; `make track` completes it")
    refused = member(project, "reproduce.py", "track")
    assert refused.status == 2
    assert "does not accept this user name and password" in refused.stderr
    assert len(refused.stderr.splitlines()) <= 2
    assert "hunter2" not in ended.stdout + ended.stderr + refused.stdout + refused.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()] == []
    login(monkeypatch, username="admin", password=ACCOUNT["MLFLOW_TRACKING_PASSWORD"])
    assert member(project, "reproduce.py", "track").status == 0
    (directory,) = project.runs.glob("mlp2-*")
    own = journal.read(directory)[0]["run_id"]
    assert [run.data.tags.get("remeasure.run_id") for run in in_mlflow(team.server.uri)].count(own) == 1


# ---------------------------------------------------------------- the files of deploy/


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"])


def test_the_server_alone_can_be_reached_and_from_this_machine_alone(services: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in services.items()}
    assert ports == {"postgres": [], "s3": [], "mlflow": ["${BIND:-127.0.0.1}:5000:5000"]}


def test_no_password_has_a_value_that_works(services: dict[str, Any]) -> None:
    """Compose stops where one is missing; git ignores the file that has them."""
    values = [(name, value) for each in services.values() for name, value in each["environment"].items()]
    secrets = [value for name, value in values if re.search("PASSWORD|SECRET|KEY", name)]
    assert len(secrets) >= 8
    assert all(re.fullmatch(r"\$\{\w+:\?.+\}", value) for value in secrets)
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(), re.MULTILINE))
    assert example == dict.fromkeys(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()), "")
    assert "/deploy/.env" in (CHECKOUT / ".gitignore").read_text().splitlines()


def test_a_server_without_a_password_does_not_start(services: dict[str, Any]) -> None:
    """It names what it needs, all of which compose gives it."""
    command = [sys.executable, str(DEPLOY / "serve.py")]
    done = subprocess.run(command, env={"PGPASSWORD": "x"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    needed = re.findall(r"\b[A-Z_]{5,}\b", done.stderr)
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in needed
    assert "PGPASSWORD" not in needed
    assert {*needed, "PGPASSWORD"} <= services["mlflow"]["environment"].keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "short"}, "MLFLOW_AUTH_ADMIN_PASSWORD: expected at least 12 characters"),
        ({"PGHOST": "127.0.0.1", "PGPORT": "1"}, "PostgreSQL, by PGHOST, PGUSER, PGDATABASE and PGPASSWORD: "),
    ],
)
def test_what_the_server_cannot_start_with_is_said_at_once(changes: dict[str, str], said: str) -> None:
    given = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")
    environment = {**dict.fromkeys(given, "x"), "MLFLOW_AUTH_ADMIN_PASSWORD": "of 12 letters", **changes}
    command = [sys.executable, str(DEPLOY / "serve.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said)


def test_the_image_has_what_it_starts_and_the_versions_of_the_lock_file(services: dict[str, Any]) -> None:
    text = (CHECKOUT / services["mlflow"]["build"]["dockerfile"].replace("..", "")).read_text()
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert "deploy/serve.py" in copied
    assert all((CHECKOUT / path).is_file() for path in copied)
    (packages,) = re.findall(r"--constraint requirements-dev.lock (.*)$", text, re.MULTILINE)
    locked = re.findall(r"^([\w-]+)==", (CHECKOUT / "requirements-dev.lock").read_text(), re.MULTILINE)
    assert {re.sub(r"\W*\[.*", "", name).strip("'") for name in packages.split()} <= set(locked)
