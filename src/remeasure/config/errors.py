"""How a command ends: its exit status, and what Hydra, OmegaConf or YAML refused, told in our words."""

import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, get_type_hints

from remeasure.config.compose import SHOWN_CHARACTERS, checked, compose_with_hydra, key_of
from remeasure.spec.base import InputError
from remeasure.spec.config import Config, TrainConfig
from remeasure.system import paths, signals
from remeasure.system.redaction import masked
from remeasure.system.validation import did_you_mean, nearest

EXIT_FAILED, EXIT_INPUT = 1, 2
FAULTS_TOGETHER = 20  # composed again for each
GROUPS = ("model", "data", "recipe", "experiment", "debug")
CONFIG_PACKAGES = ("hydra", "omegaconf", "yaml")  # whose errors mean that the command line or a config file is wrong


def guarded(main: Callable[[], Any]) -> int:
    """Run a command; its exit status: 0 done, 1 a run failed, 2 the input is wrong, 128 + n after signal n."""
    signals.handle()
    try:
        return int(main() or 0)
    except InputError as error:
        return _refuse(error.faults)
    except Exception as error:
        if is_config_error(error):
            return _refuse(_config_faults(error))
        if isinstance(error, OSError) and error.filename and error.strerror:
            print(_stopped_by(error), file=sys.stderr)
            return EXIT_FAILED
        print(masked(traceback.format_exc()), end="", file=sys.stderr)
        return EXIT_FAILED


def _stopped_by(error: OSError) -> str:
    """A disk that is full or read-only, a folder that has gone: which file, and what the system says of it."""
    kept = "everything finished is kept, and the same command goes on from it"
    return f"{error.filename}: {error.strerror}; {kept}"


def is_config_error(error: Exception) -> bool:
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
    if refused := _refused(error):
        return [refused.fault]
    message = str(error).split("\nConfig search path:")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [type(error).__name__]
    if key_name := getattr(error, "full_key", ""):
        return [f"{key_name}: {lines[0]}"]
    given = shlex.join(sys.argv[1:])[:SHOWN_CHARACTERS]
    return list(_file_faults()) or [*lines, f"  (the command line: {given})"]


class _Refused(NamedTuple):
    """A choice that is none, or a key: its fault, and the choice, or the group, that was probably meant ("": none)."""

    key: str
    fault: str
    near: str


def _refused(error: Exception) -> _Refused | None:
    """What Hydra has refused of the command line, if that is one choice, one key or one argument."""
    if choice := re.match(r"In '.*': Could not find '(.+)/(.+)'", str(error)):
        group, name, valid = choice[1], choice[2], list(getattr(error, "options", None) or ())
        fault = f"{group}: there is no {name!r}{did_you_mean(name, valid)}; valid: {', '.join(valid) or 'none yet'}"
        return _Refused(group, fault, nearest(name, valid))
    if key := re.match(r"Could not override '(.+?)'", str(error)):
        near = "" if "." in key[1] else nearest(key[1], _top_keys())
        return _Refused(key[1], _unknown_key(key[1]), near if near in GROUPS else "")
    if override := getattr(error, "override", ""):
        lines = (line.strip() for line in str(error).splitlines())
        reason = next((line for line in lines if line and not line.startswith(("Error parsing", "See http"))), "")
        return _Refused(key_of(override), f"{override}: expected key=value, such as seed=3 ({reason})", "")
    return None


def _top_keys() -> list[str]:
    return [entry.name for entry in fields(Config)] + ["experiment"]


def all_faults(error: Exception, *, arguments: Sequence[str]) -> list[str]:
    """What `error` tells, and what is told of the command line once that is mended, as Hydra tells one fault a time."""
    faults, left = list[str](), list(arguments)
    while len(faults) < FAULTS_TOGETHER:
        faults += _config_faults(error)
        refused = _refused(error)
        if refused is None or any(argument.startswith("-") for argument in arguments):
            break
        left = list(_mended(left, refused=refused))
        try:
            checked(compose_with_hydra(left))
            break
        except Exception as further:
            if not (isinstance(further, InputError) or is_config_error(further)):
                raise
            error = further
    return list(dict.fromkeys(faults))


def _mended(arguments: Sequence[str], *, refused: _Refused) -> Iterator[str]:
    """The arguments with what was probably meant, else without what was refused.

    Where nobody can tell which choice was meant, they are without all that may depend on it.
    """
    keys, is_choice = [key_of(argument) for argument in arguments], refused.key in GROUPS
    for key, argument in zip(keys, arguments, strict=True):
        if key != refused.key:
            if refused.near or not is_choice or "." not in key:
                yield argument
        elif refused.near and is_choice:
            yield f"{key}={refused.near}"
        elif refused.near and refused.near not in keys:
            yield f"{refused.near}={argument.partition('=')[2]}"


def _file_faults() -> Iterator[str]:
    """The config files that are no YAML or no UTF-8; whoever reads them does not always say which it was."""
    from remeasure.system.formats import decode_yaml  # NumPy

    for path in sorted(paths.conf_dir().rglob("*.yaml")):
        try:
            decode_yaml(paths.read_file(path), name=str(path))
        except OSError as error:
            yield f"{path}: cannot be read ({error.strerror})"
        except InputError as error:
            yield from error.faults


def _unknown_key(key: str) -> str:
    """The fault of a dotted key that no config has, with the names that are valid where it goes wrong."""
    valid, hints = _top_keys(), get_type_hints(TrainConfig)
    parts = key.split(".")
    known = 0
    while parts[known] in hints and is_dataclass(cls := hints[parts[known]]) and known + 1 < len(parts):
        valid, hints, known = [entry.name for entry in fields(cls)], get_type_hints(cls), known + 1
    if parts[known] in hints:  # a key of its options, or below a plain value
        return f"{key}: no such key; `python src/train.py --cfg job` shows all there are, with this model"
    wrong = ".".join(parts[: known + 1])
    return f"{wrong}: no such key{did_you_mean(parts[known], valid)}; valid: {', '.join(valid)}"
