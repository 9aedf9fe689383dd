"""Where runs are trained: the executor that a file of conf/cluster names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remeasure.campaign.executors.base import Executor
from remeasure.runs.folder import Place
from remeasure.spec.base import InputError
from remeasure.system.atomic import read_bytes
from remeasure.system.formats import decode_yaml
from remeasure.system.paths import conf_file
from remeasure.system.validation import convert


@dataclass(frozen=True, kw_only=True)
class _Kind:
    executor: Literal["slurm", "ray"]


def build(name: str, *, place: Place, conf_dirs: Sequence[Path]) -> Executor:
    """The executor of conf/cluster/NAME.yaml. InputError: no such file, a wrong key, or what it needs is not there."""
    path = conf_file(f"cluster/{name}.yaml", folders=conf_dirs)
    if not path.is_file():
        known = sorted({"local", *(each.stem for folder in conf_dirs for each in (folder / "cluster").glob("*.yaml"))})
        raise InputError(f"--on: expected one of {', '.join(known)}, got {name!r}")
    values = decode_yaml(read_bytes(path), name=str(path))
    kind = convert(_Kind, {"executor": values.pop("executor", None)}, where=str(path)).executor
    try:
        if kind == "slurm":
            from remeasure.campaign.executors import slurm

            return slurm.Slurm(place, convert(slurm.Settings, values, where=str(path)))
        from remeasure.campaign.executors import ray

        return ray.Ray(place, convert(ray.Settings, values, where=str(path)))
    except ModuleNotFoundError as error:
        if error.name not in ("submitit", "ray"):
            raise
        raise InputError(
            f"--on {name}: {error.name} is not installed; `pip install {error.name}` installs it"
        ) from None
