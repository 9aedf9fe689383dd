"""The command lines. The only file that sees a DictConfig, which it turns into a Config at once."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from remeasure import paths
from remeasure.convert import convert
from remeasure.spec import Config, InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

EXIT_INPUT = 2


def train_main() -> None:
    """`python src/train.py`: Hydra composes, then `_train_one` runs, once or once for each job of a multirun."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's own errors reach `_guarded`
    _register_resolvers()
    import hydra

    main = hydra.main(config_path=str(paths.conf_dir()), config_name="train", version_base="1.3")(_train_one)
    sys.exit(_guarded(main))


def reproduce_main(arguments: Sequence[str]) -> int:
    """`python src/reproduce.py`; returns the exit status."""
    from remeasure import reproduce

    return _guarded(lambda: reproduce.main(arguments, compose=compose))


def _train_one(composed: "DictConfig") -> int:
    config = _to_config(composed)
    from remeasure.single import run_single  # torch and Lightning: seconds, so only once the config is right

    return run_single(config, compose=compose)


def compose(overrides: Sequence[str]) -> Config:
    """The config of `python src/train.py <overrides>`. Raises InputError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    _register_resolvers()
    if GlobalHydra.instance().is_initialized():  # inside `python src/train.py`
        return _to_config(hydra_compose("train", list(overrides)))
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        return _to_config(hydra_compose("train", list(overrides)))


def _to_config(composed: "DictConfig") -> Config:
    from omegaconf import OmegaConf

    return convert(Config, OmegaConf.to_container(composed, resolve=True, throw_on_missing=True), where="")


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("divide", lambda dividend, divisor: dividend / divisor, replace=True)


def _guarded(main: Callable[[], Any]) -> int:
    """Run a command; its exit status: 0 done, 1 a run failed, 2 the input is wrong, 128 + n after signal n."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        return int(main() or 0)
    except InputError as error:
        return _refuse(error.faults)
    except Exception as error:
        if not _is_config_error(error):
            raise
        return _refuse([_shorten(str(error))])


def _stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise SystemExit(128 + number)


def _is_config_error(error: Exception) -> bool:
    """Whether Hydra or OmegaConf refused the command line or a config file."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, (HydraException, OmegaConfBaseException))


def _shorten(message: str) -> str:
    """Hydra's message without its config search path and blank lines."""
    lines = [line.rstrip() for line in message.split("\nConfig search path:")[0].splitlines()]
    return "\n".join(line for line in lines if line)


def _refuse(faults: Sequence[str]) -> int:
    for fault in faults:
        print(fault, file=sys.stderr)
    return EXIT_INPUT
