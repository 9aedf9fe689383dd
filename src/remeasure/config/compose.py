"""From a command line to a Config. The only file that sees a DictConfig, which it turns into a Config at once."""

import contextlib
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from remeasure.spec.base import InputError, gathered
from remeasure.spec.config import Config, EvaluateConfig, TrainConfig
from remeasure.spec.run import ModelSpec
from remeasure.system import paths
from remeasure.system.validation import convert

if TYPE_CHECKING:
    from omegaconf import DictConfig


SHOWN_CHARACTERS = 300  # of a command line
# A command line and config files within these limits are composed in a second and some megabytes.
MOST_ARGUMENTS, MOST_CHARACTERS, MOST_BRACKETS = 1000, 10_000, 200  # of a command line, and of one argument
COMPOSE_SECONDS = 10.0  # of processor time


def checked(composed: "DictConfig") -> Config:
    """The config. InputError: all that is wrong with its values."""
    try:
        return _to_config(composed)
    except InputError as error:
        raise InputError(*dict.fromkeys([*error.faults, *_faults_of_choices(composed)])) from None


def compose(overrides: Sequence[str]) -> Config:
    """The config of `python src/train.py <overrides>`. Raises InputError."""
    register_resolvers()
    refuse_anchors()
    return _to_config(compose_with_hydra(overrides))


def compose_with_hydra(overrides: Sequence[str]) -> "DictConfig":
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with contextlib.ExitStack() as entered:
        entered.enter_context(limited(COMPOSE_SECONDS))
        if not GlobalHydra.instance().is_initialized():  # else inside `python src/train.py`
            entered.enter_context(initialize_config_dir(str(paths.conf_dir()), version_base="1.3"))
        composed: DictConfig = hydra_compose("train", list(overrides))
    return composed


def _to_config(composed: "DictConfig") -> Config:
    from omegaconf import OmegaConf

    with limited(COMPOSE_SECONDS):
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

    from remeasure.data import catalog  # torch: seconds to import
    from remeasure.models import registry

    faults: list[str] = []
    with contextlib.suppress(InputError, OmegaConfBaseException):  # a fault that is known already
        model = OmegaConf.to_container(composed.model, resolve=True)
        faults += registry.faults(convert(ModelSpec, model, where="model"))
    with contextlib.suppress(OmegaConfBaseException), gathered(faults):
        catalog.check_source(composed.data.source)
    return faults


def register_resolvers() -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("divide", lambda dividend, divisor: dividend / divisor, replace=True)
    OmegaConf.register_new_resolver("runs", lambda name: str(paths.project_root() / "runs" / name), replace=True)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """InputError where the block takes more processor time; 0: it may take any, whatever is around it."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        suspects = [key_of(argument) for argument in sys.argv[1:] if re.search(r"[(,]|\$\{", argument)]
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


def key_of(argument: str) -> str:
    return re.split("[=@]", argument.lstrip("+~"))[0]


def refuse_oversized(arguments: Sequence[str]) -> None:
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


def refuse_anchors() -> None:
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
