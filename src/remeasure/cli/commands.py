"""The commands: `python src/train.py`, `python src/reproduce.py`, and `remeasure`, which has these and more.

Light to import, so that `--help` is quick.
"""

import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from remeasure.cli import options, sweep
from remeasure.cli.sweep import Job, Sweeping
from remeasure.config.compose import checked, compose, register_resolvers
from remeasure.config.errors import EXIT_FAILED, guarded
from remeasure.spec import __version__
from remeasure.spec.base import InputError
from remeasure.system import paths, signals, startup
from remeasure.system.validation import did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from remeasure.spec.config import Config

COMMANDS = {
    "new": "a folder for your own table: ledger, an example of each config, model, data set, tests",
    "add-data": "a data set in a folder: its config, with sizes, statistics and fingerprint worked out",
    "add-row": "one more claim in the ledger, with its margin worked out",
    "import": "timm-results NAME…: published rows of timm's results as claims, with their models",
    "train": "one run: model=… data=… recipe=… key=value …",
    **options.COMMANDS,
    "report": "the same as table",
    "sweep": "a study: Optuna chooses what to try on held-back training images; a recipe with its table comes out",
    "judge": "the verdict on accuracies that somebody else measured; no training",
    "merge": "finished runs of other machines, taken over into runs/",
    "compare": "two results folders, of other machines or commits, row by row",
}
OUTSIDE = ("new", "judge", "compare")  # commands that need no project
OWN = {  # the functions of the commands that are neither of Hydra nor of the table; each is imported when it is called
    "new": "workspace.new:main",
    "judge": "evidence:judge",
    "compare": "evidence:compare",
    "merge": "evidence:merge",
    "add-data": "workspace.add_data:main",
    "import": "workspace.import_timm:main",
    "add-row": "workspace.add_row:main",
    "sweep": "study:main",
}
HELP = """\
usage: remeasure [--version] [--conf DIR] COMMAND …

Measures a table of published benchmark accuracies again, and judges each number.
Works in the current folder if that has conf/benchmark.yaml, else with the project's own ledger.

{commands}

--conf DIR   the folder of another benchmark.yaml, or the project around it
`remeasure COMMAND --help` says more."""


def main(arguments: Sequence[str]) -> int:
    """The command `remeasure`; returns the exit status."""
    return guarded(lambda: _dispatch(arguments))


def _dispatch(arguments: Sequence[str]) -> int:
    parser = options.Parser(prog="remeasure", add_help=False, allow_abbrev=False)
    parser.add_argument("--conf", type=Path)
    given, rest = parser.parse_known_args(arguments)
    name, more = (rest[0], rest[1:]) if rest else ("--help", [])
    if name in ("--help", "-h"):
        print(HELP.format(commands="\n".join(f"  {each:<10} {text}" for each, text in COMMANDS.items())))
        return 0
    if name == "--version":
        print(f"remeasure {__version__}")
        return 0
    if name not in COMMANDS:
        raise InputError(f"no command {name!r}{did_you_mean(name, COMMANDS)}; valid: {', '.join(COMMANDS)}")
    if name not in OUTSIDE:
        paths.enter(given.conf)
    if name in OWN:
        command: Callable[[Sequence[str]], int] = pkgutil.resolve_name(f"remeasure.cli.{OWN[name]}")
        return command(more)
    sys.argv = ["remeasure", *more]
    if name == "train":
        return train_main()
    return reproduce_main(["table" if name == "report" else name, *more])


def train_main() -> int:
    """`python src/train.py`: Hydra composes, then each job trains: one, or those of a multirun, whatever fails.

    Returns the exit status.
    """
    signals.handle()  # imports take a while
    paths.make_importable()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's own errors reach `guarded`
    register_resolvers()
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    statuses, sweeping, configs = list[int](), Sweeping(), list["Config"]()

    def job(composed: "DictConfig") -> float | None:
        given = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        assert isinstance(given, list)
        accuracies, overrides = list[float](), tuple(map(str, given))
        sweeps = sweeping if HydraConfig.get().mode == RunMode.MULTIRUN else None

        def train() -> int:
            configs.append(checked(composed))
            return _train_one(configs[-1], overrides=overrides, sweeping=sweeps, accuracies=accuracies)

        statuses.append(guarded(train))
        accuracy = accuracies[0] if accuracies else None
        if sweeps:
            sweeps.jobs.append(Job(overrides=overrides, accuracy_percent=accuracy))
        return accuracy  # for a sweeper that searches

    main = hydra.main(config_path=str(paths.conf_dir()), config_name="train", version_base="1.3")(job)
    status = guarded(main) or max(statuses, default=0)
    if any(each.accuracy_percent is not None for each in sweeping.jobs):
        print(*sweep.table(sweeping.jobs), sep="\n")
        sweeping.end(configs[-1], state="finished")
    return status


def reproduce_main(arguments: Sequence[str]) -> int:
    """`python src/reproduce.py`; returns the exit status."""
    signals.handle()  # imports take a while
    paths.make_importable()
    from remeasure.cli import reproduce

    return guarded(lambda: reproduce.main(arguments, compose=compose))


def _train_one(
    config: "Config", *, overrides: Sequence[str], sweeping: Sweeping | None, accuracies: list[float]
) -> int:
    """The exit status; prints the title of a sweep's job, and appends the run's accuracy in percent, if it has one."""
    if sweeping:
        print(f"job {len(sweeping.jobs)}: {' '.join(overrides)}")
    if config.evaluate is not None:
        from remeasure.cli.models import use

        return use(config, overrides=overrides)
    if config.debug is not None:
        from remeasure.cli.debug import debug

        return debug(config)
    if sys.stderr.isatty() and config.verbosity != "quiet":
        print("importing torch and Lightning, reading the data …", file=sys.stderr, flush=True)
    from remeasure.cli.train import run_single  # torch and Lightning: seconds, so only once the config is right

    standing = sweeping.standing("running") if sweeping else None
    accuracy = run_single(config, sweep=standing).record.accuracy_percent
    if accuracy is None:
        return EXIT_FAILED
    accuracies.append(accuracy)
    return 0


if __name__ == "__main__":
    startup.run(lambda: main(sys.argv[1:]))
