"""Provenance: the commit, what is not committed, the versions; and nothing that tells who or where."""

import getpass
import json
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from remeasure import provenance
from remeasure.provenance import cpu_name, device_name, environment, revision


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with one commit of src/train.py and README.md."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/train.py").write_text("rate = 1\n")
    (tmp_path / "README.md").write_text("hello\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    return tmp_path


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    found = revision(checkout)
    assert found.commit == git(checkout, "rev-parse", "HEAD")
    assert len(found.commit) == 40
    assert (found.dirty, found.diff) == (False, "")


@pytest.mark.parametrize("staged", [False, True])
def test_uncommitted_code_is_dirty_and_kept_as_a_patch(staged: bool, checkout: Path) -> None:
    (checkout / "src/train.py").write_text("rate = 2\n")
    if staged:
        git(checkout, "add", ".")
    found = revision(checkout)
    assert found.dirty
    assert "-rate = 1\n+rate = 2\n" in found.diff
    git(checkout, "config", "color.ui", "always")
    git(checkout, "reset", "--quiet", "--hard")
    (checkout / "found.patch").write_text(found.diff)
    git(checkout, "apply", "found.patch")
    assert (checkout / "src/train.py").read_text() == "rate = 2\n"


def test_a_patch_has_no_colours(checkout: Path) -> None:
    git(checkout, "config", "color.ui", "always")
    (checkout / "src/train.py").write_text("rate = 2\n")
    assert "\x1b" not in revision(checkout).diff


def test_a_new_file_of_code_is_dirty_too(checkout: Path) -> None:
    (checkout / "src/extra.py").write_text("rate = 3\n")
    assert revision(checkout).dirty


def test_texts_results_and_ignored_files_do_not_make_code_dirty(checkout: Path) -> None:
    (checkout / "README.md").write_text("measured\n")
    (checkout / "results").mkdir()
    (checkout / "results/table.csv").write_text("row\n")
    (checkout / "src/__pycache__").mkdir()
    (checkout / "src/__pycache__/train.pyc").write_bytes(b"\0")
    assert (revision(checkout).dirty, revision(checkout).diff) == (False, "")


def test_a_patch_that_is_not_utf8_is_no_reason_to_fail(checkout: Path) -> None:
    (checkout / "src/train.py").write_bytes(b"name = 'caf\xe9'\n")
    assert revision(checkout).dirty


def test_the_state_at_the_start_counts_not_a_later_edit(checkout: Path) -> None:
    first = revision(checkout)
    (checkout / "src/train.py").write_text("rate = 2\n")
    assert revision(checkout) == first


def test_there_is_no_commit_outside_git_or_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = provenance.Revision(commit="", dirty=False, diff="")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    assert revision(tmp_path / "plain") == nothing
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "--quiet")
    assert revision(tmp_path / "empty") == nothing
    monkeypatch.setenv("PATH", "")
    (tmp_path / "another").mkdir()
    assert revision(tmp_path / "another") == nothing


def test_the_environment_has_versions_and_machine_and_nothing_that_tells_who_or_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "sesame"
    for name in ("USER", "LOGNAME", "HOSTNAME", "HOME", "PWD"):
        monkeypatch.setenv(name, f"/{secret}")
    monkeypatch.setattr(socket, "gethostname", lambda: secret)
    monkeypatch.setattr(platform, "node", lambda: secret)
    monkeypatch.setattr(getpass, "getuser", lambda: secret)
    (tmp_path / secret).mkdir()
    monkeypatch.chdir(tmp_path / secret)
    found = environment("Some CPU")
    assert list(found) == ["python", "system", "cpu", "device", "cuda", "cpu_capability", "packages"]
    assert found["device"] == "Some CPU"
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == metadata.version("torch")
    assert secret not in json.dumps(found)
    assert str(Path.home()) not in json.dumps(found)
    assert environment("Some CPU") == found


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package-anywhere"))
    assert environment("cpu")["packages"] == {"torch": metadata.version("torch"), "no-such-package-anywhere": None}


def test_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_name("cpu") == cpu_name() != ""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert device_name("cuda") == "Some GPU"
