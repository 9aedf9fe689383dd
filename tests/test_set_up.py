"""src/set_up.py: .venv gets what a command needs, once, by uv or pip; who cannot have it is told so at once."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.project import CHECKOUT

import set_up

# It notes how it is called; as pip, it installs uv where the lock file has one.
INSTALLER = """\
#!/bin/sh
echo "$*" >> {log}
case "$*" in *uv.lock) cp installer .venv/bin/uv; esac
exit {status}
"""
# `python -m venv` finds this one first: its environment's own Python only notes how it is called.
VENV = """\
import shutil, sys
from pathlib import Path
*options, folder = sys.argv[1:]
if "--clear" in options:
    shutil.rmtree(folder, ignore_errors=True)
(Path(folder) / "bin").mkdir(parents=True)
shutil.copy("installer", Path(folder) / "bin/python")
"""
LOCKED, OWN = "--require-hashes -r {}", "--no-build-isolation --no-deps -e ."


@dataclass(frozen=True)
class Folder:
    """A project with one package in each lock file, and a PATH without uv."""

    root: Path

    def write(self, name: str, *, status: int = 0) -> Path:
        """A program that notes how it is called."""
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(INSTALLER.format(log=self.root / "calls", status=status))
        path.chmod(0o755)
        return path

    def set_up(self, layer: str, *, before: str = "") -> subprocess.CompletedProcess[str]:
        """`before`: code that runs before the script, to give it another Python or system."""
        script = self.root / "src/set_up.py"
        lines = ["import platform, runpy, sys", before, f"sys.argv = ['', {layer!r}]"]
        code = "\n".join([*lines, f"runpy.run_path({str(script)!r}, None, '__main__')"])
        (self.root / "calls").unlink(missing_ok=True)
        environment = {"PATH": f"{self.root}/bin:/usr/bin:/bin"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def installed(self) -> list[str]:
        """What was installed by the last set-up, in order."""
        calls = (self.root / "calls").read_text().splitlines() if (self.root / "calls").exists() else []
        return [re.sub(r"^.*(--require-hashes|--no-build-isolation)", r"\1", call) for call in calls]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "project")
    (folder.root / "src").mkdir(parents=True)
    (folder.root / "src/set_up.py").write_text((CHECKOUT / "src/set_up.py").read_text())
    (folder.root / "venv.py").write_text(VENV)
    folder.write("installer")
    for name in ("requirements.lock", "requirements-dev.lock"):
        (folder.root / name).write_text("one==1.0 \\\n    --hash=sha256:00\n")
    return folder


def test_each_layer_is_installed_once(folder: Folder) -> None:
    first = folder.set_up("run")
    assert first.returncode == 0, first.stderr
    assert folder.installed() == [LOCKED.format("requirements.lock"), OWN]
    assert "the 1 packages of requirements.lock" in first.stderr
    again = folder.set_up("run")
    assert (again.returncode, again.stdout + again.stderr, folder.installed()) == (0, "", [])


def test_the_tests_packages_are_added_to_what_is_there(folder: Folder) -> None:
    folder.set_up("run")
    (folder.root / ".venv/own").touch()
    folder.set_up("dev")
    assert folder.installed() == [LOCKED.format("requirements-dev.lock"), OWN]
    assert (folder.root / ".venv/own").exists()


def test_who_has_the_tests_packages_has_all_that_measuring_needs(folder: Folder) -> None:
    folder.set_up("dev")
    assert folder.installed() == [LOCKED.format("requirements-dev.lock"), OWN]
    folder.set_up("run")
    assert folder.installed() == []


def test_other_versions_begin_anew(folder: Folder) -> None:
    folder.set_up("dev")
    (folder.root / ".venv/own").touch()
    with (folder.root / "requirements.lock").open("a") as lock:
        lock.write("two==2.0 --hash=sha256:00\n")
    folder.set_up("run")
    assert folder.installed() == [LOCKED.format("requirements.lock"), OWN]
    assert not (folder.root / ".venv/own").exists()
    folder.set_up("dev")
    assert folder.installed() == [LOCKED.format("requirements-dev.lock"), OWN]


def test_in_a_folder_that_was_moved_only_the_package_itself_is_installed(folder: Folder) -> None:
    """Its versions are there, so it works without a network; the old folder's code would be imported otherwise."""
    folder.set_up("run")
    moved = Folder(folder.root.rename(folder.root.with_name("moved")))
    moved.write(".venv/bin/python")
    moved.set_up("run")
    assert moved.installed() == [OWN]


def test_another_checkout_s_environment_behind_a_link_stays_as_it_is(folder: Folder, tmp_path: Path) -> None:
    folder.set_up("run")
    other = (folder.root / ".venv").rename(tmp_path / "of-another-checkout")
    (folder.root / ".venv").symlink_to(other)
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    (folder.root / "requirements.lock").write_text("newer==2\n")
    assert folder.set_up("run").returncode == 0
    assert not (folder.root / ".venv").is_symlink()
    assert before == {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}


def test_uv_installs_where_it_is_there(folder: Folder) -> None:
    folder.write("bin/uv")
    folder.set_up("run")
    calls = (folder.root / "calls").read_text().splitlines()
    assert all(call.startswith(f"pip install --quiet --python {folder.root}/.venv/bin/python") for call in calls)
    assert folder.installed() == [LOCKED.format("requirements.lock"), OWN]


def test_pip_fetches_uv_first(folder: Folder) -> None:
    """It is a single package, and then installs the others in a fraction of pip's time."""
    with (folder.root / "requirements.lock").open("a") as lock:
        lock.write("uv==1.0 \\\n    --hash=sha256:01\nvine==1.0 \\\n    --hash=sha256:02\n")
    folder.set_up("run")
    assert folder.installed() == [
        LOCKED.format(f"{folder.root}/.venv/uv.lock"),
        LOCKED.format("requirements.lock"),
        OWN,
    ]
    assert (folder.root / ".venv/uv.lock").read_text() == "uv==1.0 \\\n    --hash=sha256:01\n"
    calls = (folder.root / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["-m", "pip", "pip"]


def test_uv_is_told_of_the_mirror_that_pip_uses(folder: Folder) -> None:
    uv = folder.write("bin/uv")
    uv.write_text(f'#!/bin/sh\necho "$UV_DEFAULT_INDEX" >> {folder.root}/calls\n')
    folder.set_up("run", before="import os; os.environ['PIP_INDEX_URL'] = 'mirror'")
    assert folder.installed() == ["mirror", "mirror"]


def test_pip_tries_where_uv_fails(folder: Folder) -> None:
    """uv does not read pip's settings, such as the address of a mirror."""
    folder.write("bin/uv", status=1)
    done = folder.set_up("run")
    assert done.returncode == 0, done.stderr
    assert "pip tries" in done.stderr
    assert folder.installed() == [LOCKED.format("requirements.lock"), LOCKED.format("requirements.lock"), OWN]


def test_a_set_up_that_failed_is_not_taken_for_one_that_worked(folder: Folder) -> None:
    folder.write("installer", status=1)
    assert folder.set_up("run").returncode == 1
    folder.write("installer")
    assert folder.set_up("run").returncode == 0
    assert folder.installed() == [LOCKED.format("requirements.lock"), OWN]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("sys.version_info = (3, 10, 4)", "remeasure needs Python 3.11 to 3.13, and "),
        ("sys.version_info = (3, 14, 0)", "is 3.14; to choose another one: make reproduce PYTHON=python3.12"),
        ("platform.system = lambda: 'Windows'", "(WSL is Linux), and this is Windows "),
        ("platform.machine = lambda: 'riscv64'", "this is Linux riscv64; "),
    ],
)
def test_the_first_line_says_what_this_machine_lacks(before: str, said: str, folder: Folder) -> None:
    done = folder.set_up("run", before=before)
    assert (done.returncode, folder.installed()) == (2, [])
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_with_what_is_there_every_python_is_right(folder: Folder) -> None:
    """`make reproduce PYTHON=python3.12` once; then `make reproduce`, where python3 is an old one."""
    folder.set_up("run")
    assert folder.set_up("run", before="sys.version_info = (3, 8, 0)").returncode == 0


def test_an_old_python_can_read_what_says_that_it_is_too_old() -> None:
    """3.6 is RHEL 8's python3."""
    ast.parse((CHECKOUT / "src/set_up.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_file_has_hashes_for_each_platform_and_no_address(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    assert "--index" not in text
    assert "://" not in text
    entries = re.findall(r"^(\S+?)==\S+(?: ; (.*?))? \\\n((?:    --hash=sha256:\w+(?: \\)?\n)+)", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^\S+==", text, re.MULTILINE)) > 100
    markers = {entry[0]: entry[1] for entry in entries}
    for package in ("torch", "pytorch-lightning", "timm", "mlflow"):
        assert all(machine in markers[package] for machine in ("'arm64'", "'aarch64'", "'x86_64'")), package


def test_the_tests_have_the_versions_that_people_measure_with() -> None:
    locked = [dict(re.findall(r"^(\S+?)==(\S+)", (CHECKOUT / name).read_text(), re.MULTILINE)) for name in LOCKS]
    assert locked[0].items() < locked[1].items()


LOCKS = ("requirements.lock", "requirements-dev.lock")


def test_the_image_and_the_devcontainer_set_up_as_make_does() -> None:
    """There is no Docker daemon here to build them."""
    text = (CHECKOUT / "Dockerfile").read_text()
    (minor,) = re.findall(r"^FROM python:3\.(\d+)-slim$", text, re.MULTILINE)
    assert set_up.OLDEST <= (3, int(minor)) <= set_up.NEWEST
    (layer,) = re.findall(r"^ARG LAYER=(\w+)\nRUN python3 src/set_up.py \$\{LAYER\}$", text, re.MULTILINE)
    assert layer in set_up.LOCKS
    editor = json.loads((CHECKOUT / ".devcontainer/devcontainer.json").read_text())
    assert f"\n{editor['postCreateCommand'].removeprefix('make ')}:\n" in (CHECKOUT / "Makefile").read_text()
    generated = {line.strip("/") for line in (CHECKOUT / ".gitignore").read_text().splitlines() if line[:1] != "#"}
    left_out = {line.removeprefix("**/") for line in (CHECKOUT / ".dockerignore").read_text().splitlines()}
    assert generated - left_out == {"results/**/.*"}
