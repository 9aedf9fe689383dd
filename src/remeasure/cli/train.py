"""One run from the command line: config → run → what a person and a script read."""

import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from remeasure.config.compose import compose
from remeasure.config.resolve import identified, network_of, settled
from remeasure.data import catalog, fingerprint
from remeasure.judging import ledger, rules
from remeasure.judging.comparison import flat
from remeasure.judging.metrics import percent, unit
from remeasure.models import pretrained
from remeasure.runs import code, provenance
from remeasure.runs.folder import Outcome, Place, finished, other_code, tuned
from remeasure.spec.base import gathered, refuse
from remeasure.spec.claim import Row
from remeasure.spec.config import Config
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.tracking.observer import Sweep, build
from remeasure.training.device import resolve_device
from remeasure.training.engines.base import engine_of, find_world, refuse_callbacks


def run_single(config: Config, *, sweep: Sweep | None = None, tuned_once: bool = False) -> Outcome:
    """Train, or report a finished run, and print the contract's last line.

    `sweep`: the one that the run is a job of. `tuned_once`: a finished run on the validation split is reported, too.
    """
    place, spec = _prepared(config)
    row, departures = _row_of(config, spec=spec, place=place)
    outcome = None if config.fresh else finished(spec, seed=config.seed, place=place)
    if outcome is None and tuned_once:
        outcome = tuned(spec, seed=config.seed, place=place)
    tracked = outcome and (outcome.record.mlflow_run_id or config.data.split != "test")
    if outcome is None or not tracked:  # killed before MLflow was told, or MLflow was not there
        name = row.name if row and not departures else ""
        provenance.warn_of_unknown(place.project)
        with build(config.observer, project=place.project) as observers:
            observers.close_orphans(place.runs)
            if sweep:
                observers.sweep(sweep)
            if not config.fresh and (differs := other_code(spec, seed=config.seed, place=place)):
                observers.say(f"the run that is here was made by other code ({differs}): it begins anew")
            from remeasure.runs.execute import execute_together  # Lightning: seconds to import

            together = spec.together(config.seed)
            done = execute_together(
                spec,
                seed=config.seed,
                row=name,
                place=place,
                sink=observers,
                fresh=config.fresh,
                keeps={"all": together, "first": [0], "none": ()}[config.keep],
            )
            outcome = [observers.keep(each) for each in done][config.seed - together[0]]
    if row and not departures and config.data.split == "test":
        rules.first_rules(place.runs, row=row, finished={config.seed: outcome.record.finished_at})  # before it is told
    for line in _summary(outcome, row=row, departures=departures, split=config.data.split):
        print(line)
    return outcome


def _prepared(config: Config) -> tuple[Place, RunSpec]:
    """Where it runs, the spec, and every fault that can be found before a run is begun; those of the config first."""
    faults, asked = list[str](), config.spec(data_sha256="")
    with gathered(faults):
        device_kind = resolve_device(config.device)
        faults += engine_of(asked).device_faults(device_kind, devices=config.devices, num_nodes=config.num_nodes)
        find_world(asked, devices=config.devices, num_nodes=config.num_nodes, device_kind=device_kind)
    with gathered(faults):
        catalog.streamed(config.data)
    with gathered(faults):
        code.remember(asked)
        network = network_of(config)
    with gathered(faults):
        refuse_callbacks(asked)
    refuse(faults)
    root, data_root = paths.project_root(), paths.data_root()
    place = Place(
        runs=paths.writable(root / "runs"),
        project=root,
        data_root=data_root,
        device_kind=device_kind,
        doctor=config.doctor,
        devices=config.devices,
        num_nodes=config.num_nodes,
    )
    spec = identified(config, data_root=data_root, device_kind=device_kind)
    if departs := fingerprint.departure(spec.data, spec.data_sha256):
        print(departs, file=sys.stderr)
    if path := pretrained.locate(config):
        pretrained.load(network, path)  # or refuse it now
    return place, spec


def _row_of(config: Config, *, spec: RunSpec, place: Place) -> tuple[Row | None, list[str]]:
    """The ledger's row of these configs, which `rules` notes, and where this run departs from what the row would train
    or evaluate.

    A file of weights that is named departs from it: nobody can tell here that it is the published one.
    """
    rows, others = ledger.read_for(paths.conf_dir() / paths.LEDGER, model=config.model.name, data=config.data.name)
    if others:
        print(*others, "this run goes on: none of these is a row of its model and data", sep="\n", file=sys.stderr)
    names = {"model": config.model.name, "data": config.data.name, "recipe": config.recipe.name}
    rules.note(place.runs, rows=rows)
    row = ledger.for_configs(rows, **names, engine=spec.engine)
    if row is None:
        return None, []
    composed = compose([f"{key}={value}" for key, value in (names | {"engine": row.engine}).items()])
    own = settled(composed, device_kind=place.device_kind).spec(
        data_sha256=spec.data_sha256, weights_sha256=None if config.model.weights else spec.weights_sha256
    )
    if own.spec_sha256 == spec.spec_sha256:
        return row, []
    here, there = dict(flat(asdict(spec))), dict(flat(asdict(own)))
    return row, [f"{key}={here.get(key)}" for key in here | there if here.get(key) != there.get(key)]


def _summary(outcome: Outcome, *, row: Row | None, departures: Sequence[str], split: str) -> Iterator[str]:
    record = outcome.record
    accuracy = record.accuracy_percent
    if outcome.reused:
        again = "trains" if record.epochs else "evaluates"
        yield f"finished before ({record.finished_at}); fresh=true {again} it again"
    here = percent(record, metric=row.metric) if row else None
    if row and here is not None and split == "test":
        published = row.published
        gap, there = here - published.percent, f"{published.percent:.{published.num_digits}f} %{unit(row)}"
        claim = f"{row.name}: published {there}, here {here:.3f} %"
        decides = f"`{paths.command('reproduce')} {row.name}` decides"
        yield f"{claim}, gap {gap:+.3f} points ({'' if row.mode == 'evaluate' else 'one seed; '}{decides})"
    if row and departures:
        done = "evaluated" if row.mode == "evaluate" else "trained"
        yield f"{row.name} is {done} otherwise; this run departs from it: {', '.join(departures)}"
    shown = "" if accuracy is None else f"{accuracy:.3f}"
    line = f"{split}_accuracy_percent={shown} num_params={record.num_params} wall_seconds={record.wall_seconds:.1f}"
    line += f" mlflow_run_id={record.mlflow_run_id}"
    path = outcome.directory / "record.json"
    yield f"{line} record={os.path.relpath(path)}" if split == "test" else line


if __name__ == "__main__":  # `python -m remeasure.cli.train` is `python -m remeasure train`
    sys.argv.insert(1, "train")
    runpy.run_module("remeasure", run_name="__main__")
