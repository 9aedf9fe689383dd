"""The command lines. The only file that sees a DictConfig, which it turns into a Config at once."""

import contextlib
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, get_type_hints

from remeasure import interrupts, paths
from remeasure.convert import convert, did_you_mean, nearest
from remeasure.masking import masked
from remeasure.spec import Config, EvaluateConfig, InputError, ModelSpec, TrainConfig, gathered

if TYPE_CHECKING:
    from omegaconf import DictConfig

EXIT_FAILED, EXIT_INPUT = 1, 2
SHOWN_CHARACTERS = 300  # of a command line
# A command line and config files within these limits are composed in a second and some megabytes.
MOST_ARGUMENTS, MOST_CHARACTERS, MOST_BRACKETS = 1000, 10_000, 200  # of a command line, and of one argument
COMPOSE_SECONDS = 10.0  # of processor time
FAULTS_TOGETHER = 20  # composed again for each
GROUPS = ("model", "data", "recipe", "experiment", "debug")
CONFIG_PACKAGES = ("hydra", "omegaconf", "yaml")  # whose errors mean that the command line or a config file is wrong


def train_main() -> int:
    """`python src/train.py`: Hydra composes, then each job trains: one, or those of a multirun, whatever fails.

    Returns the exit status.
    """
    interrupts.handle()  # imports take a while
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's own errors reach `guarded`
    _register_resolvers()
    import hydra

    statuses = []

    def job(composed: "DictConfig") -> None:
        with _limited(0):  # to train may take as long as it takes
            statuses.append(guarded(lambda: _train_one(composed)))

    def main() -> None:
        _refuse_oversized(sys.argv[1:])
        _refuse_anchors()
        try:
            with _limited(COMPOSE_SECONDS):
                hydra.main(config_path=str(paths.conf_dir()), config_name="train", version_base="1.3")(job)()
        except Exception as error:
            if not _is_config_error(error):
                raise
            raise InputError(*_all_faults(error, arguments=sys.argv[1:])) from None

    return guarded(main) or max(statuses, default=0)


def reproduce_main(arguments: Sequence[str]) -> int:
    """`python src/reproduce.py`; returns the exit status."""
    interrupts.handle()  # imports take a while
    from remeasure import reproduce

    return guarded(lambda: reproduce.main(arguments, compose=compose))


def _train_one(composed: "DictConfig") -> int:
    config = _checked(composed)
    if config.debug is not None:
        from remeasure.debugging import debug

        return debug(config)
    from remeasure.single import run_single  # torch and Lightning: seconds, so only once the config is right

    return run_single(config, compose=compose)


def _checked(composed: "DictConfig") -> Config:
    """The config. InputError: all that is wrong with its values."""
    try:
        return _to_config(composed)
    except InputError as error:
        raise InputError(*dict.fromkeys([*error.faults, *_faults_of_choices(composed)])) from None


def compose(overrides: Sequence[str]) -> Config:
    """The config of `python src/train.py <overrides>`. Raises InputError."""
    _register_resolvers()
    _refuse_anchors()
    return _to_config(_composed(overrides))


def _composed(overrides: Sequence[str]) -> "DictConfig":
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with contextlib.ExitStack() as entered:
        entered.enter_context(_limited(COMPOSE_SECONDS))
        if not GlobalHydra.instance().is_initialized():  # else inside `python src/train.py`
            entered.enter_context(initialize_config_dir(str(paths.conf_dir()), version_base="1.3"))
        composed: DictConfig = hydra_compose("train", list(overrides))
    return composed


def _to_config(composed: "DictConfig") -> Config:
    from omegaconf import OmegaConf

    with _limited(COMPOSE_SECONDS):
        if missing := sorted(OmegaConf.missing_keys(composed)):
            raise InputError(*(f"{key}: has no value; give it one ({key}=…)" for key in missing))
        values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    evaluates = isinstance(values.get("recipe"), dict) and values["recipe"].get("mode") == "evaluate"
    config: Config = convert(EvaluateConfig if evaluates else TrainConfig, values, where="")
    try:
        config.spec(data_sha256="")
    except ValueError as error:  # what only the whole spec can tell
        raise InputError(*str(error).splitlines()) from None
    return config


def _faults_of_choices(composed: "DictConfig") -> list[str]:
    """What only the builder of the model and the reader of the data can tell, beside the faults of a wrong config."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from remeasure import data, models  # torch: seconds to import

    faults: list[str] = []
    with contextlib.suppress(InputError, OmegaConfBaseException):  # a fault that is known already
        model = OmegaConf.to_container(composed.model, resolve=True)
        faults += models.faults(convert(ModelSpec, model, where="model"))
    with contextlib.suppress(OmegaConfBaseException), gathered(faults):
        data.check_source(composed.data.source)
    return faults


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("divide", lambda dividend, divisor: dividend / divisor, replace=True)
    OmegaConf.register_new_resolver("runs", lambda name: str(paths.project_root() / "runs" / name), replace=True)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """InputError where the block takes more processor time; 0: it may take any, whatever is around it."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        suspects = [_key(argument) for argument in sys.argv[1:] if re.search(r"[(,]|\$\{", argument)]
        raise InputError(
            f"{', '.join(suspects) or 'config files'}: not composed within {COMPOSE_SECONDS:.0f} s of processor time"
            "; is there an interpolation (${…}) that grows, or a sweep without end?"
        )

    handler = signal.signal(signal.SIGVTALRM, stop)
    left = signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)  # once more: a callback may have swallowed the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, *left)
        signal.signal(signal.SIGVTALRM, handler)


# ---------------------------------------------------------------- how a command ends


def guarded(main: Callable[[], Any]) -> int:
    """Run a command; its exit status: 0 done, 1 a run failed, 2 the input is wrong, 128 + n after signal n."""
    interrupts.handle()
    try:
        return int(main() or 0)
    except InputError as error:
        return _refuse(error.faults)
    except Exception as error:
        if _is_config_error(error):
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
        return _Refused(_key(override), f"{override}: expected key=value, such as seed=3 ({reason})", "")
    return None


def _key(argument: str) -> str:
    return re.split("[=@]", argument.lstrip("+~"))[0]


def _top_keys() -> list[str]:
    return [entry.name for entry in fields(Config)] + ["experiment"]


def _all_faults(error: Exception, *, arguments: Sequence[str]) -> list[str]:
    """What `error` tells, and what is told of the command line once that is mended, as Hydra tells one fault a time."""
    faults, left = list[str](), list(arguments)
    while len(faults) < FAULTS_TOGETHER:
        faults += _config_faults(error)
        refused = _refused(error)
        if refused is None or any(argument.startswith("-") for argument in arguments):
            break
        left = list(_mended(left, refused=refused))
        try:
            _checked(_composed(left))
            break
        except Exception as further:
            if not (isinstance(further, InputError) or _is_config_error(further)):
                raise
            error = further
    return list(dict.fromkeys(faults))


def _mended(arguments: Sequence[str], *, refused: _Refused) -> Iterator[str]:
    """The arguments with what was probably meant, else without what was refused.

    Where nobody can tell which choice was meant, they are without all that may depend on it.
    """
    keys, is_choice = [_key(argument) for argument in arguments], refused.key in GROUPS
    for key, argument in zip(keys, arguments, strict=True):
        if key != refused.key:
            if refused.near or not is_choice or "." not in key:
                yield argument
        elif refused.near and is_choice:
            yield f"{key}={refused.near}"
        elif refused.near and refused.near not in keys:
            yield f"{refused.near}={argument.partition('=')[2]}"


def _refuse_oversized(arguments: Sequence[str]) -> None:
    """Raise InputError for a command line that would take minutes, or all memory, to parse."""
    if len(arguments) > MOST_ARGUMENTS:
        raise InputError(f"the command line: expected at most {MOST_ARGUMENTS} arguments, got {len(arguments)}")
    faults = []
    for argument in arguments:
        key = argument.partition("=")[0][:SHOWN_CHARACTERS]
        if len(argument) > MOST_CHARACTERS:
            faults.append(f"{key}: expected at most {MOST_CHARACTERS} characters, got {len(argument)}")
        elif (brackets := len(re.findall(r"[\[{(]", argument))) > MOST_BRACKETS:
            faults.append(f"{key}: expected at most {MOST_BRACKETS} opening brackets, got {brackets}")
    if faults:
        raise InputError(*faults)


def _file_faults() -> Iterator[str]:
    """The config files that are no YAML or no UTF-8; whoever reads them does not always say which it was."""
    from remeasure.encoding import decode_yaml  # NumPy

    for path in sorted(paths.conf_dir().rglob("*.yaml")):
        try:
            decode_yaml(paths.read_file(path), name=str(path))
        except OSError as error:
            yield f"{path}: cannot be read ({error.strerror})"
        except InputError as error:
            yield from error.faults


def _refuse_anchors() -> None:
    """Raise InputError for a config file that is no file, as a pipe would be read for ever; and for one with anchors:
    by them a few lines stand for a value that no memory holds.
    """
    files = (paths.refuse_no_file(path) for path in sorted(paths.conf_dir().rglob("*.yaml")))
    if anchored := [path for path in files if path.exists() and _has_anchors(path.read_bytes())]:
        raise InputError(*(f"{path}: anchors (&) are refused; write the value out" for path in anchored))


def _has_anchors(content: bytes) -> bool:
    if re.search(rb"(?:^|[\s\[{,])&[\w-]", content) is None:  # quick, and nearly always enough
        return False
    import yaml

    with contextlib.suppress(yaml.YAMLError, ValueError, OverflowError):  # Hydra says so
        return any(getattr(event, "anchor", None) for event in yaml.parse(content, Loader=yaml.SafeLoader))
    return False


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
