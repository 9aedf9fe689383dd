"""How a command ends: its exit status, and what Hydra, OmegaConf or YAML refused, told in our words."""

import errno
import re
import select
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from remeasure.spec.base import InputError
from remeasure.spec.config import Config, TrainConfig
from remeasure.system import paths, signals
from remeasure.system.atomic import read_bytes
from remeasure.system.redaction import masked
from remeasure.system.validation import did_you_mean

EXIT_FAILED, EXIT_INPUT = 1, 2
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # an error of print names no file
SHOWN_CHARACTERS = 300  # of a command line
CONFIG_PACKAGES = ("hydra", "omegaconf", "yaml")  # whose errors mean that the command line or a config file is wrong


def guarded(main: Callable[[], Any]) -> int:
    """Run a command; its exit status: 0 done, 1 a run failed, 2 the input is wrong, 128 + n after signal n."""
    signals.handle()
    try:
        return int(main() or 0)
    except InputError as error:
        return _refuse(error.faults)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return EXIT_FAILED
        if _is_config_error(error):
            return _refuse(_config_faults(error))
        told = isinstance(error, OSError) and error.strerror and (error.filename or error.errno in DISK_FAULTS)
        if told or isinstance(error, (TimeoutError, ChildProcessError)):
            print(_stopped_by(error), file=sys.stderr)
            return EXIT_FAILED
        print(masked(traceback.format_exc()), end="", file=sys.stderr)
        return EXIT_FAILED


@contextmanager
def as_input_errors() -> Iterator[None]:
    """Raise what Hydra, OmegaConf or YAML refuse in the block as InputError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not _is_config_error(error):
            raise
        raise InputError(*_config_faults(error)) from None


def _reader_has_gone() -> bool:
    """Whether what is printed goes to a pipe that nobody reads any more, as after `… | head`."""
    pipe = select.poll()
    pipe.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in pipe.poll(0))


def _stopped_by(error: Exception) -> str:
    """Why a run cannot go on: a disk that is full or read-only, a folder that has gone, a lock, a process that died."""
    what = str(error)
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.filename or 'what is printed, or a temporary file'}: {error.strerror}"
    return f"{what}; everything finished is kept, and the same command goes on from it"


def _is_config_error(error: Exception) -> bool:
    """Whether a package that reads configs raised it, be it an error of its own or one of what it calls."""
    frames = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [name.partition(".")[0] for name in (*frames, type(error).__module__)]
    return next(name for name in reversed(packages) if name in (*CONFIG_PACKAGES, "remeasure")) in CONFIG_PACKAGES


def _refuse(faults: Sequence[str]) -> int:
    for fault in faults:
        print(fault, file=sys.stderr)
    return EXIT_INPUT


def _config_faults(error: Exception) -> list[str]:
    """What Hydra, OmegaConf or YAML refused, in our words where theirs name no remedy, or one that does not work."""
    if fault := _override_fault(error):
        return [fault]
    message = str(error).split("\nConfig search path:")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [type(error).__name__]
    if key_name := getattr(error, "full_key", ""):
        return [f"{key_name}: {lines[0]}"]
    given = shlex.join(sys.argv[1:])[:SHOWN_CHARACTERS]
    return list(_file_faults()) or [*lines, f"  (the command line: {given})"]


def _override_fault(error: Exception) -> str:
    """The choice, the key or the argument of the command line that Hydra has refused; "" where it is none of these."""
    if choice := re.match(r"In '.*': Could not (?:find|load) '(.+)/(.+)'", str(error)):  # load: of a list
        group, name = choice[1], choice[2]
        valid = sorted({path.stem for folder in paths.conf_dirs() for path in (folder / group).glob("*.yaml")})
        return f"{group}: there is no {name!r}{did_you_mean(name, valid)}; valid: {', '.join(valid) or 'none yet'}"
    if lost := re.match(r"In '((\w+)/.+)': Could not override '\w+@\2\.", str(error)):
        return f"conf/{lost[1]}.yaml: expected `# @package _global_` as its first line; without it, `override` fails"
    if key := re.match(r"Could not override '(.+?)'", str(error)):
        return _unknown_key(key[1])
    if override := getattr(error, "override", ""):
        lines = (line.strip() for line in str(error).splitlines())
        reason = next((line for line in lines if line and not line.startswith(("Error parsing", "See http"))), "")
        return f"{override[:SHOWN_CHARACTERS]}: expected key=value, such as seed=3 ({reason[:SHOWN_CHARACTERS]})"
    return ""


def _file_faults() -> Iterator[str]:
    """The config files that are no YAML or no UTF-8; whoever reads them does not always say which it was."""
    from remeasure.system.formats import decode_yaml  # NumPy

    for path in (path for folder in paths.conf_dirs() for path in sorted(folder.rglob("*.yaml"))):
        try:
            decode_yaml(read_bytes(path), name=str(path))
        except InputError as error:
            yield from error.faults


def _unknown_key(key: str) -> str:
    """The fault of a dotted key that no config has, with the names that are valid where it goes wrong."""
    valid, hints = [*(entry.name for entry in fields(Config)), "experiment"], get_type_hints(TrainConfig)
    parts = key.split(".")
    known = 0
    while parts[known] in hints and is_dataclass(cls := hints[parts[known]]) and known + 1 < len(parts):
        valid, hints, known = [entry.name for entry in fields(cls)], get_type_hints(cls), known + 1
    if parts[known] in hints:  # a key of its options, or below a plain value
        return f"{key}: no such key; `{paths.command('train')} --cfg job` shows all there are, with this model"
    wrong = ".".join(parts[: known + 1])
    return f"{wrong}: no such key{_meant(wrong, valid=valid)}; valid: {', '.join(valid)}"


def _meant(wrong: str, *, valid: Sequence[str]) -> str:
    """As `did_you_mean`; a key further down whose last part begins so comes first: recipe.epochs_total for epochs."""
    around, _, word = wrong.rpartition(".")
    below = (key for key in _dotted_keys(TrainConfig) if key.startswith(around))
    begun = {key: key.rpartition(".")[2] for key in below if key.rpartition(".")[2].startswith(word)}
    return f" (did you mean {min(begun, key=lambda key: len(begun[key]))!r}?)" if begun else did_you_mean(word, valid)


def _dotted_keys(cls: Any) -> Iterator[str]:
    hints = get_type_hints(cls)
    for name in (entry.name for entry in fields(cls)):
        yield name
        if is_dataclass(hints[name]):
            yield from (f"{name}.{key}" for key in _dotted_keys(hints[name]))
