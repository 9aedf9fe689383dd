"""`python3 src/set_up.py run|dev`: make .venv with the versions of the lock file. `make` calls it before each command.

`run` is what measuring needs, `dev` adds DVC, the tests' and the linters' packages. uv installs them, or pip where uv
does not work: the same versions, checked by the same hashes. This file needs the standard library alone, and Python 3.6
reads it, so that an old Python can say what is missing.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCKS = {"run": "requirements.lock", "dev": "requirements-dev.lock"}  # dev has all that run has
OLDEST, NEWEST = (3, 11), (3, 13)
PLATFORMS = ("Linux x86_64", "Linux aarch64", "Darwin arm64")  # as in pyproject.toml's tool.uv.environments


def main(layer: str) -> int:
    """Exit status: 0 where .venv has the layer, 1 where the installer failed, 2 where this machine cannot have it."""
    if is_current(layer):
        return 0
    if VENV.is_symlink():
        VENV.unlink()  # what it points to belongs to another checkout
    fault = "" if has_versions(layer) else refusal()
    if fault:
        print(fault, file=sys.stderr)
        return 2
    began = time.monotonic()
    if not install(layer):
        return 1
    say(f"set-up took {time.monotonic() - began:.0f} s; it is done once")
    return 0


def refusal() -> str:
    """Why this Python on this machine cannot have .venv, and what can; "" if it can."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        (oldest, newest, this) = (".".join(map(str, each)) for each in (OLDEST, NEWEST, sys.version_info[:2]))
        need = f"remeasure needs Python {oldest} to {newest}, and {sys.executable} is {this}"
        return f"{need}; to choose another one: make reproduce PYTHON=python3.12"
    here = f"{platform.system()} {platform.machine()}"
    if here not in PLATFORMS:
        have = f"there are exact versions for {', '.join(PLATFORMS)} (WSL is Linux), and this is {here}"
        return f"{have}; `pip install -e '.[train]'` in an environment of your own may work"
    return ""


def is_current(layer: str) -> bool:
    """Whether .venv has the layer's versions, and runs the code of this folder."""
    return has_versions(layer) and stamp(layer).read_text() == wanted(layer)


def has_versions(layer: str) -> bool:
    """Whether .venv has the versions of the layer's lock file, perhaps with the code of a folder it was copied from."""
    return PYTHON.exists() and stamp(layer).exists() and stamp(layer).read_text()[:64] == wanted(layer)[:64]


def wanted(layer: str) -> str:
    digest = hashlib.sha256((ROOT / LOCKS[layer]).read_bytes()).hexdigest()
    return f"{digest} {ROOT}\n"


def stamp(layer: str) -> Path:
    return VENV / f".installed-{layer}"


def install(layer: str) -> bool:
    """Make .venv, or add to it what it lacks. Returns whether that worked."""
    steps = [["--no-build-isolation", "--no-deps", "-e", "."]]
    if not has_versions(layer):
        lock = LOCKS[layer]
        num = sum("==" in line for line in (ROOT / lock).read_text().splitlines())
        say(f"set-up: .venv gets the {num} packages of {lock}; this takes minutes")
        steps.insert(0, ["--require-hashes", "-r", lock])
        if not has_versions("run") and not succeeds([sys.executable, "-m", "venv", "--clear", str(VENV)]):
            return False
    for installer in installers():
        if all(succeeds([*installer, *step]) for step in steps):
            for each in ("run", "dev") if layer == "dev" else ("run",):
                stamp(each).write_text(wanted(each))
            return True
    return False


def installers() -> "Iterator[list[str]]":
    """uv's command, which is the machine's or the one that the lock file names, then pip's, for where uv fails."""
    pip = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    uv = shutil.which("uv") or fetched_uv(pip)
    if uv:
        index = pips_index()  # uv does not read pip's settings
        if index:
            os.environ.setdefault("UV_DEFAULT_INDEX", index)
        yield [uv, "pip", "install", "--quiet", "--python", str(PYTHON)]
        say("uv could not install it; pip tries")
    yield pip


def fetched_uv(pip: "list[str]") -> str:
    """The path of the uv that pip has put into .venv; "" if that did not work."""
    uv = VENV / "bin" / "uv"
    entry = re.search(r"^uv==.*?(?=^\S|\Z)", (ROOT / LOCKS["run"]).read_text(), re.M | re.S)
    if entry and not uv.exists():
        (VENV / "uv.lock").write_text(entry.group())
        succeeds([*pip, "--require-hashes", "-r", str(VENV / "uv.lock")])
    return str(uv) if uv.exists() else ""


def pips_index() -> str:
    """The package index, such as a mirror, that pip's environment or configuration names; "" if none."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return os.environ.get("PIP_INDEX_URL") or found.stdout.decode().strip()


def succeeds(command: "list[str]") -> bool:
    return subprocess.call(command, cwd=str(ROOT)) == 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
