"""From a command line to a Config. The only file that sees a DictConfig, which it turns into a Config at once."""

import contextlib
import functools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from remeasure.spec.base import InputError, gathered, refuse
from remeasure.spec.config import Config, EvaluateConfig, TrainConfig
from remeasure.spec.run import ModelSpec
from remeasure.system import paths
from remeasure.system.validation import convert
from remeasure.training.engines.base import engine_of

if TYPE_CHECKING:
    from omegaconf import DictConfig


_ONE_AT_A_TIME = threading.RLock()  # Hydra's state is the process's


def checked(composed: "DictConfig") -> Config:
    """The config. InputError: all that is wrong with its values."""
    try:
        return _to_config(composed)
    except InputError as error:
        raise InputError(*dict.fromkeys([*error.faults, *_faults_of_choices(composed)])) from None


def compose(overrides: Sequence[str]) -> Config:
    """The config of `python src/train.py <overrides>`. Raises InputError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with _ONE_AT_A_TIME, contextlib.ExitStack() as entered:
        register_resolvers()
        if not GlobalHydra.instance().is_initialized():  # else inside `python src/train.py`
            entered.enter_context(initialize_config_dir(str(paths.conf_dir()), version_base="1.3"))
        return _to_config(hydra_compose("train", list(overrides)))


def _to_config(composed: "DictConfig") -> Config:
    from omegaconf import OmegaConf

    from remeasure.training import augment, losses, optimizers  # noqa: F401 - the recipe's choices; torch: seconds to import

    if missing := sorted(OmegaConf.missing_keys(composed)):
        raise InputError(*(f"{key}: has no value; give it one ({key}=…)" for key in missing))
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    if isinstance(model := values.get("model"), dict) and "model" in model:
        raise InputError("model.model: no such key; expected `# @package _global_` as the model file's first line")
    evaluates = isinstance(values.get("recipe"), dict) and values["recipe"].get("mode") == "evaluate"
    config: Config = convert(EvaluateConfig if evaluates else TrainConfig, values, where="")
    try:
        spec = config.spec(data_sha256="")
    except ValueError as error:  # what only the whole spec can tell
        raise InputError(*str(error).splitlines()) from None
    refuse(engine_of(spec).faults(spec))
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
        catalog.check_source(str(composed.data.source))
    return faults


def register_resolvers() -> None:
    """Also the node `open_choices` of conf/recipe_base.yaml, in which a command line may set keys that conf/ does not
    name: which arguments the chosen optimiser, augmentation or loss has, its class says.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    _search_packaged_configs()
    OmegaConf.register_new_resolver("divide", lambda dividend, divisor: dividend / divisor, replace=True)
    OmegaConf.register_new_resolver("at_most", lambda most, value: min(most, int(value)), replace=True)
    choices = {key: OmegaConf.create({}, flags={"struct": False}) for key in ("optimizer", "augmentation", "loss")}
    ConfigStore.instance().store("open_choices", OmegaConf.create(choices))
    OmegaConf.register_new_resolver("command", paths.command, replace=True)
    OmegaConf.register_new_resolver("runs", lambda name: str(paths.project_root() / "runs" / name), replace=True)


@functools.cache
def _search_packaged_configs() -> None:
    """Let Hydra look into the package's configs as well, after the user's."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class Packaged(SearchPathPlugin):  # type: ignore[misc]
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in paths.conf_dirs()[1:]:
                search_path.append("remeasure", f"file://{folder}")

    Plugins.instance().register(Packaged)
