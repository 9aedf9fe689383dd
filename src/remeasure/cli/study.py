"""`remeasure sweep`: Optuna chooses what is tried next, on held-back training images; a study that is killed goes on.

Hydra's own Optuna sweeper (hydra-optuna-sweeper 1.3) needs Optuna 2, whose storage fails with the SQLAlchemy that
MLflow needs. Ranges are written in Hydra's grammar, as that sweeper has them.
"""

import argparse
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from remeasure.cli.options import Parser
from remeasure.cli.sweep import Job, Sweeping
from remeasure.config.compose import compose
from remeasure.config.errors import EXIT_FAILED
from remeasure.spec.base import CONFIG_NAME, FIRST_TUNING_SEED, InputError
from remeasure.spec.config import Config
from remeasure.system import locks, paths
from remeasure.system.atomic import write_atomic

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna import Study
    from optuna.trial import Trial

Space = Mapping[str, "Override"]
DIGITS = 4  # significant, of a number that Optuna chooses
_DESCRIPTION = """\
Tries values that Optuna chooses, each scored on held-back training images; the test split is never read.
A key's range is interval(0,0.5), int(interval(1,8)), tag(log,interval(1e-4,1e-1)), or a list: 32,64,128.
The study is runs/sweeps/NAME.db; the same command goes on with it. The best trial becomes conf/recipe/NAME.yaml."""


def main(arguments: Sequence[str]) -> int:
    """Go on until there are as many trials as asked for; returns the exit status. InputError: the input is wrong."""
    parser = Parser(
        prog="remeasure sweep", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the study, and of the recipe that it finds")
    parser.add_argument("--trials", type=int, default=20, help="in all, those of earlier starts included (20)")
    parser.add_argument("--seeds", type=int, default=1, help=f"of each trial, from {FIRST_TUNING_SEED} up (1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as of `remeasure train`; or key=RANGE")
    given = parser.parse_intermixed_args(arguments)
    if not CONFIG_NAME.fullmatch(given.name) or min(given.trials, given.seeds) < 1:
        raise InputError("remeasure sweep: expected a NAME of letters, digits, '_', '.', '-', and counts from 1 up")
    try:
        import optuna
    except ImportError:
        raise InputError("optuna is not installed here; `pip install 'remeasure[sweep]'` installs it") from None
    fixed, space = _parsed(given.overrides)
    recipe = paths.project_conf_dir() / "recipe" / f"{given.name}.yaml"
    _refuse_foreign(recipe, name=given.name)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = paths.writable(paths.project_root() / "runs") / "sweeps"
    folder.mkdir(exist_ok=True)
    with locks.held(folder / f"{given.name}.lock"):
        study = optuna.create_study(
            storage=f"sqlite:///{folder / given.name}.db",
            study_name=given.name,
            direction="maximize",
            load_if_exists=True,
        )
        _refuse_other(study, asked={"overrides": sorted(given.overrides), "seeds": given.seeds})
        config = _run(study, fixed=fixed, space=space, num_trials=given.trials, num_seeds=given.seeds)
    sweeping = _so_far(study)
    for line in sweeping.standing("finished").table:
        print(line)
    if not any(trial.values for trial in study.trials):
        print(f"none of the {len(study.trials)} trials has a score")
        return EXIT_FAILED
    if config is not None:
        sweeping.end(config, state="finished")
    overrides = [*fixed, *study.best_trial.user_attrs["overrides"]]
    best = compose(overrides)
    beside = _beside_recipe(overrides, config=best)
    use = f"{paths.command('train')} {shlex.join([f'recipe={given.name}', *beside])}"
    command = shlex.join(["remeasure", "sweep", *arguments])
    lines = list(_recipe(study, overrides=overrides, config=best, command=command, use=use))
    write_atomic(recipe, ("\n".join(lines) + "\n").encode())
    print(f"{recipe}: the best of {len(study.trials)} trials, {study.best_value:.3f} % on the validation images")
    print(f"`{use}` trains with it")
    return 0


def _parsed(overrides: Sequence[str]) -> tuple[list[str], "Space"]:
    """The overrides that are the same in each trial, and by key those that are swept."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise InputError(f"{error.override}: {' '.join(str(error).split())}") from None
    space = {each.get_key_element(): each for each in parsed if each.is_sweep_override()}
    if not space:
        raise InputError(
            "remeasure sweep: expected a range, such as recipe.optimizer.lr_peak=tag(log,interval(1e-4,1e-1))"
        )
    if "seed" in space:
        raise InputError("seed: is no parameter to choose; --seeds says how many each trial has")
    fixed = [str(each.input_line) for each in parsed if not each.is_sweep_override()]
    if not any(each.startswith("experiment=") for each in fixed):
        fixed.insert(0, "experiment=tuning")
    return fixed, space


def _refuse_foreign(recipe: Path, *, name: str) -> None:
    if any((conf / "recipe" / recipe.name).exists() for conf in paths.conf_dirs()[1:]):
        raise InputError(f"{name}: is a recipe of remeasure's own, which the one found would hide; choose another NAME")
    if recipe.exists() and not recipe.read_text(errors="replace").startswith(_first_line(name)):
        raise InputError(f"{recipe}: is there, and no sweep has written it; choose another NAME")


def _first_line(name: str) -> str:
    return f"# Found by `remeasure sweep {name}`"


def _refuse_other(study: "Study", *, asked: dict[str, Any]) -> None:
    before = study.user_attrs.get("asked")
    if before is None:
        study.set_user_attr("asked", asked)
    elif before != asked:
        was = " ".join([*before["overrides"], f"--seeds {before['seeds']}"])
        raise InputError(f"the study {study.study_name} was begun with: {was}; go on with that, or choose another NAME")


class _EditedError(InputError):
    """The trials of a study would be of different code."""


def _refuse_edited(study: "Study", *, config: Config) -> None:
    """Raise _EditedError if a file that trains this config is not as it was for earlier trials."""
    from remeasure.runs import code  # torch: seconds to import

    now, before = code.files(config.spec(data_sha256="")), study.user_attrs.get("code") or {}
    if changed := sorted(name for name in now.keys() & before.keys() if now[name] != before[name]):
        raise _EditedError(
            f"the study {study.study_name} was begun with other code ({', '.join(changed[:3])} changed since); its "
            "trials would not be comparable: choose another NAME"
        )
    study.set_user_attr("code", {**before, **now})


def _run(study: "Study", *, fixed: Sequence[str], space: "Space", num_trials: int, num_seeds: int) -> Config | None:
    """Finish the trials that a killed process left, then add more; returns the config of the last one, if any ran.

    A seed whose training had ended before the kill is not trained again.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import Trial, TrialState

    from remeasure.cli.train import run_single  # torch and Lightning: seconds to import

    config = None
    while left := study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) or len(study.trials) < num_trials:
        number = left[0].number if isinstance(left, list) else len(study.trials)
        study.sampler = TPESampler(seed=number)  # a trial's values do not depend on restarts
        trial = Trial(study, left[0]._trial_id) if isinstance(left, list) else study.ask()
        overrides = [*fixed, *(f"{key}={_suggested(trial, each)}" for key, each in space.items())]
        trial.set_user_attr("overrides", overrides[len(fixed) :])
        accuracies = list[float | None]()
        try:
            for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + num_seeds):
                config = _config([*overrides, f"seed={seed}"])
                _refuse_edited(study, config=config)
                print(f"trial {number}: {' '.join([*overrides[len(fixed) :], f'seed={seed}'])}", flush=True)
                done = run_single(config, sweep=_so_far(study).standing("running"), tuned_once=True)
                accuracies.append(done.record.accuracy_percent)
        except InputError as error:
            if isinstance(error, _EditedError):
                raise
            if number == 0:  # the fault of the command line, not of one combination
                study.tell(trial, state=TrialState.FAIL)
                raise
            print(*error.faults, sep="\n")
        trial.set_user_attr("accuracies", accuracies)
        scored = [each for each in accuracies if each is not None]
        if len(scored) == num_seeds:
            study.tell(trial, statistics.fmean(scored))
        else:  # it diverged, or its combination of values is wrong
            study.tell(trial, state=TrialState.FAIL)
    return config


def _config(overrides: Sequence[str]) -> Config:
    config = compose(overrides)
    if config.data.split != "validation":
        raise InputError(f"data.split: a sweep is scored on held-back training images, got split={config.data.split}")
    return config


def _suggested(trial: "Trial", override: "Override") -> str:
    """The value that Optuna chooses for a key, as an override has it."""
    from hydra.core.override_parser.types import IntervalSweep

    key, value = override.get_key_element(), override.value()
    if not isinstance(value, IntervalSweep):
        return str(trial.suggest_categorical(key, list(override.sweep_string_iterator())))
    log = "log" in value.tags
    if isinstance(value.start, int) and isinstance(value.end, int):
        return str(trial.suggest_int(key, value.start, value.end, log=log))
    return f"{trial.suggest_float(key, value.start, value.end, log=log):.{DIGITS}g}"


def _so_far(study: "Study") -> Sweeping:
    """The trials so far, the best one first, then those without a score."""
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: -(trial.value or 0.0))
    started = min((trial.datetime_start for trial in trials if trial.datetime_start), default=None)
    jobs = [
        Job(overrides=(*trial.user_attrs["overrides"], f"seed={FIRST_TUNING_SEED + at}"), accuracy_percent=accuracy)
        for trial in trials
        for at, accuracy in enumerate(trial.user_attrs.get("accuracies", ()))
    ]
    sweeping = Sweeping(name=study.study_name, jobs=jobs)
    if started is not None:
        sweeping.started = started.astimezone().isoformat(timespec="seconds")
    return sweeping


def _beside_recipe(overrides: Sequence[str], *, config: Config) -> list[str]:
    """The overrides that a recipe cannot hold, but for those of tuning: model, its options, callbacks.

    A callback may monitor the score of the images that were held back, so these stay held back beside one.
    """
    of_tuning = ["recipe", "experiment=", "data.split", "seed", "observer", "verbosity"]
    of_tuning += [] if any(each.lstrip("+").startswith("callback") for each in overrides) else ["data.num_validation"]
    given = [each for each in overrides if not each.lstrip("+").startswith(tuple(of_tuning))]
    unnamed = [group for group in ("model", "data") if not any(each.startswith(f"{group}=") for each in given)]
    return [*(f"{group}={getattr(config, group).name}" for group in unnamed), *given]


def _recipe(study: "Study", *, overrides: Sequence[str], config: Config, command: str, use: str) -> Iterator[str]:
    """The best trial, of these overrides, as the lines of a recipe, with the table of all trials as a comment."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    yield f"{_first_line(study.study_name)}: mean accuracy in percent on the last {config.data.num_validation} training"
    yield f"# images of {config.data.title}, which were held back; the test split was not read. The command:"
    yield f"#   {command}"
    yield f"# To train with it: {use}"
    yield from (f"# {line}".rstrip() for line in _so_far(study).standing("finished").table)
    recipe: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+")
        if key.startswith("recipe."):
            _put(recipe, key.split(".")[1:], override.value())
    text = yaml.safe_dump({"name": study.study_name, **recipe}, sort_keys=False, default_flow_style=None)
    yield f"defaults: [{config.recipe.name}, _self_]"
    yield text.removesuffix("\n")


def _put(into: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        into = into.setdefault(key, {})
    into[keys[-1]] = value
