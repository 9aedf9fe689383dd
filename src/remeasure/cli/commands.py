"""The two commands, `python src/train.py` and `python src/reproduce.py`: light to import, so that `--help` is quick."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from remeasure.config.compose import checked, compose, register_resolvers
from remeasure.config.errors import guarded
from remeasure.system import paths, signals

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train_main() -> int:
    """`python src/train.py`: Hydra composes, then each job trains: one, or those of a multirun, whatever fails.

    Returns the exit status.
    """
    signals.handle()  # imports take a while
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's own errors reach `guarded`
    register_resolvers()
    import hydra

    statuses = []

    def job(composed: "DictConfig") -> None:
        statuses.append(guarded(lambda: _train_one(composed)))

    main = hydra.main(config_path=str(paths.conf_dir()), config_name="train", version_base="1.3")(job)
    return guarded(main) or max(statuses, default=0)


def reproduce_main(arguments: Sequence[str]) -> int:
    """`python src/reproduce.py`; returns the exit status."""
    signals.handle()  # imports take a while
    from remeasure.cli import reproduce

    return guarded(lambda: reproduce.main(arguments, compose=compose))


def _train_one(composed: "DictConfig") -> int:
    config = checked(composed)
    if config.debug is not None:
        from remeasure.cli.debug import debug

        return debug(config)
    from remeasure.cli.train import run_single  # torch and Lightning: seconds, so only once the config is right

    return run_single(config, compose=compose)
