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

from remeasure.runs import code, provenance
from remeasure.runs.provenance import cpu_name, device_name, environment, revision
from remeasure.spec.base import InputError


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


@pytest.mark.parametrize("name", ["src/extra.py", "src/models/extra.py", "my_net.py", "my_package/net.py"])
@pytest.mark.parametrize("shown", ["normal", "no"])
def test_a_new_file_of_code_is_dirty_too(name: str, shown: str, checkout: Path) -> None:
    git(checkout, "config", "status.showUntrackedFiles", shown)
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text("rate = 3\n")
    assert revision(checkout).dirty


def test_a_patch_is_one_whatever_is_configured(checkout: Path) -> None:
    git(checkout, "config", "diff.external", "echo")
    git(checkout, "config", "diff.noprefix", "true")
    (checkout / "src/train.py").write_text("rate = 2\n")
    assert revision(checkout).diff.startswith("diff --git a/src/train.py b/src/train.py\n")


def test_a_checkout_that_git_cannot_read_is_unknown_not_clean(checkout: Path) -> None:
    (checkout / "src/train.py").write_text("rate = 2\n")
    (checkout / ".git/index").write_bytes(b"damaged")
    assert (revision(checkout).commit, revision(checkout).dirty) == ("unknown", None)


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


UNKNOWN = provenance.Revision(commit="unknown", dirty=None, diff="")


def test_seeds_of_a_commit_are_told_apart_from_the_code_that_goes_on_from_them(checkout: Path) -> None:
    """Of this package's files, those that can move a weight."""
    for name in ("models/mlp.py", "runs/folder.py", "judging/table.py"):
        path = checkout / "src/remeasure" / name
        path.parent.mkdir(parents=True)
        path.write_text("rate = 1\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "two")
    commit = git(checkout, "rev-parse", "HEAD")
    assert code.changed_since(commit, project=checkout) == ""
    for path in (checkout / "src/remeasure").rglob("*.py"):
        path.write_text("rate = 2\n")
    git(checkout, "commit", "--quiet", "-a", "-m", "three")
    assert code.changed_since(commit, project=checkout) == "models/mlp.py differs"
    assert code.changed_since("unknown", project=checkout) == ""


def test_outside_git_or_without_a_commit_it_is_unknown_and_not_called_clean(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert revision(tmp_path / "plain") == UNKNOWN
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "--quiet")
    assert revision(tmp_path / "empty") == UNKNOWN
    assert str(UNKNOWN) == "unknown"


def test_without_git_on_the_machine_the_commit_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert revision(checkout) == UNKNOWN


def test_the_repository_around_the_project_is_not_its_own(checkout: Path) -> None:
    """A copy of the project inside another one's checkout."""
    (checkout / "copy/src").mkdir(parents=True)
    assert revision(checkout / "copy") == UNKNOWN


def test_git_dir_does_not_name_another_repository(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "--quiet")
    git(other, "commit", "--quiet", "--allow-empty", "-m", "another")
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(checkout))
    assert (revision(checkout).commit, revision(checkout).dirty) == (head, False)


@pytest.mark.parametrize(("behind", "dirty"), [("", False), ("-dirty", True)])
def test_the_commit_is_stated_where_git_cannot_say_it(
    behind: str, dirty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_COMMIT", "c0ffee00" * 5 + behind)
    found = revision(tmp_path)
    assert (found.commit, found.dirty) == ("c0ffee00" * 5, dirty)
    assert str(found) == "c0ffee00" * 5 + behind


def test_what_git_says_is_not_overruled(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMEASURE_COMMIT", "c0ffee00" * 5)
    assert revision(checkout).commit == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("text", ["main", "c0ffee", "C0FFEE00" * 5, "c0ffee00" * 5 + "-clean"])
def test_a_stated_commit_that_is_none_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMEASURE_COMMIT", text)
    with pytest.raises(InputError, match=f"REMEASURE_COMMIT: expected a commit .* got '{text}'"):
        revision(tmp_path)


def test_an_unknown_commit_is_told_once(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path_factory.mktemp("plain")
    for _ in range(2):
        provenance.warn_of_unknown(checkout)
        provenance.warn_of_unknown(plain)
    assert capsys.readouterr().err.count("commit unknown") == 1


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


def test_on_macos_the_processor_is_the_one_that_sysctl_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sysctl").write_text('#!/bin/sh\n[ "$*" = "-n machdep.cpu.brand_string" ] && echo Apple M9\n')
    (tmp_path / "sysctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert cpu_name() == "Apple M9"


def test_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_name("cpu") == cpu_name() != ""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert device_name("cuda") == "Some GPU"
    assert device_name("cuda", num=8) == "8 x Some GPU"
