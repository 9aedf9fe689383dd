"""`make claims`: measures the claims of conf/claims.yaml that have no measurement yet, judges all, writes the report.

    python -m remeasure.claims [names …] [--fresh] [--check] [--results FOLDER] [--runs FOLDER]

Writes results/claims.json (each seed's numbers, spec hashes, commit, versions, machine, data), results/claims.md and
results/claims/*.png. A claim is measured again where its experiment or parameters have changed, or with --fresh.
Trainings are kept in runs/claims; after an interruption the same command resumes them.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from remeasure.claims import ledger
from remeasure.claims.ledger import Claim
from remeasure.claims.verdict import judge, to_markdown
from remeasure.config import errors
from remeasure.config.compose import compose
from remeasure.runs import provenance
from remeasure.runs.folder import Place
from remeasure.spec.base import DataMissingError, refuse
from remeasure.system import paths, startup
from remeasure.system.atomic import write_atomic
from remeasure.system.clock import now
from remeasure.system.formats import decode_json, encode_json
from remeasure.system.locks import held_folder

KEYS = {
    *("measured_with", "seeds", "specs", "data_sha256", "pictures"),
    *("commit", "dirty", "environment", "measured_on", "wall_seconds"),
}
Experiment = Callable[..., list[dict[str, float | None]]]  # (parameters, seeds, lab) to each seed's numbers


def main(arguments: Sequence[str]) -> int:
    """Exit status: 1 if --check finds another report, or if the data of a claim are missing."""
    options = _options(arguments)
    claims = ledger.read(paths.conf_dir() / "claims.yaml")
    chosen = ledger.select(claims, options.names)
    if options.check:
        return check(claims, measured=read_measured(options.results, claims=claims), results=options.results)
    measured = publish(claims, new={}, results=options.results)
    judged = {name: judge(claim, measured=measured.get(name)) for name, claim in chosen.items()}
    wanted = [claim for name, claim in chosen.items() if options.fresh or judged[name].verdict == "not measured"]
    num_missing = len(wanted)
    for name, entry in _measurements(wanted, results=options.results, runs=options.runs):
        num_missing -= 1
        measured = publish(claims, new={name: entry}, results=options.results)
    for name, claim in chosen.items():
        verdict = judge(claim, measured=measured.get(name))
        print(f"{name:<28} {verdict.verdict:<14} {verdict.reason}")
    if others := [name for name in measured if name not in claims]:
        print(f"not in the ledger, kept in {options.results / 'claims.json'}: {', '.join(others)}", file=sys.stderr)
    return int(num_missing > 0)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m remeasure.claims", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("names", nargs="*", help="claims to measure; all by default")
    parser.add_argument("--fresh", action="store_true", help="measure again; trainings of this checkout are kept")
    parser.add_argument("--check", action="store_true", help="measure nothing; is claims.md what claims.json says?")
    root = paths.project_root()
    parser.add_argument("--results", type=Path, default=root / "results", help="where the results are")
    parser.add_argument("--runs", type=Path, default=root / "runs/claims", help="where trainings are kept")
    return parser.parse_args(arguments)


def read_measured(results: Path, *, claims: Mapping[str, Claim]) -> dict[str, dict[str, Any]]:
    """The entries of results/claims.json, {} without the file. InputError: wrong keys, or edited numbers."""
    path = results / "claims.json"
    if not paths.refuse_no_file(path).exists():
        return {}
    measured = decode_json(paths.read_file(path), name=str(path))
    odd = [name for name, entry in measured.items() if not isinstance(entry, dict) or entry.keys() != KEYS]
    refuse(f"{path}: {name}: expected the keys {', '.join(sorted(KEYS))}" for name in odd)
    unlike = [claim.name for claim in claims.values() if _is_unlike(claim, entry=measured.get(claim.name))]
    refuse(f"{path}: {name}: not the numbers that its experiment gives" for name in unlike)
    return measured


def _is_unlike(claim: Claim, *, entry: Mapping[str, Any] | None) -> bool:
    """Whether an entry of the same experiment has other names of numbers, or another number of seeds: it was edited."""
    if entry is None or entry["measured_with"] != claim.measured_with:
        return False
    names, seeds = set(claim.typed().numbers()), entry["seeds"]
    return len(seeds) != claim.num_seeds or any(set(seed) != names for seed in seeds)


def check(claims: Mapping[str, Claim], *, measured: Mapping[str, dict[str, Any]], results: Path) -> int:
    """0 if claims.md is what ledger and claims.json give, else 1."""
    path = results / "claims.md"
    if not measured and not path.exists():
        print(f"{path}: nothing is measured yet; `make claims` does")
        return 0
    committed = paths.read_file(path) if paths.refuse_no_file(path).exists() else None
    if committed == to_markdown(claims, measured=measured).encode():
        print(f"{path}: as claims.json and the ledger say")
        return 0
    print(f"{path}: not what claims.json and the ledger say; `make claims` writes it")
    return 1


def publish(
    claims: Mapping[str, Claim], *, new: Mapping[str, dict[str, Any]], results: Path
) -> dict[str, dict[str, Any]]:
    """Add new entries to claims.json, and write claims.md; returns all entries, also those of claims not in the ledger.

    The file is read again under a lock, because another process may have added its own.
    """
    paths.writable(results)
    with held_folder(results, writes=True):
        measured = {**read_measured(results, claims=claims), **new}
        write_atomic(results / "claims.json", encode_json(measured))
        write_atomic(results / "claims.md", to_markdown(claims, measured=measured).encode())
    return measured


def _measurements(claims: Sequence[Claim], *, results: Path, runs: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure one claim after the other: name and entry; a line on stderr for a claim whose data are missing."""
    if not claims:
        return
    provenance.warn_of_unknown(paths.project_root())  # reads the revision once, before an edit can come
    from remeasure.campaign.executors.local import Workers
    from remeasure.claims.context import Lab  # torch and Lightning: seconds to import
    from remeasure.claims.trainings import train_all
    from remeasure.tracking.observer import build

    place = Place(
        runs=paths.writable(runs),
        project=paths.project_root(),
        data_root=paths.data_root(),
        device_kind="cpu",
        doctor=False,  # some fail on purpose
        curve=False,  # images are held back only to train on fewer
    )
    with build(compose([]).observer, project=place.project) as observers, Workers(place) as workers:
        train = functools.partial(train_all, workers=workers, observers=observers)
        observers.close_orphans(place.runs)
        for number, claim in enumerate(claims, start=1):
            print(f"{number}/{len(claims)} {claim.name} …", file=sys.stderr, flush=True)
            lab = Lab(place=place, results=results, train=train)
            try:
                yield claim.name, measure(claim, lab=lab)
            except DataMissingError as error:
                print(f"{claim.name} is not measured here: {error}", file=sys.stderr)


def measure(claim: Claim, *, lab: Any) -> dict[str, Any]:
    """The claim's entry of results/claims.json: each seed's numbers, data, specs, commit and environment."""
    started = time.monotonic()
    seeds = experiments()[claim.experiment](claim.typed(), seeds=range(claim.num_seeds), lab=lab)
    revision = provenance.revision(lab.place.project)
    return {
        "measured_with": claim.measured_with,
        "seeds": seeds,
        "specs": lab.specs,
        "data_sha256": lab.data_sha256,
        "pictures": lab.pictures,
        "commit": revision.commit,
        "dirty": revision.dirty,
        "environment": provenance.environment(provenance.device_name("cpu")),
        "measured_on": now()[:10],
        "wall_seconds": round(time.monotonic() - started, 1),
    }


def experiments() -> dict[str, Experiment]:
    """Each experiment by its name in the ledger."""
    from remeasure.claims import analytic, filters, numpy_trainings, trainings

    alone: dict[str, Callable[..., dict[str, float | None]]] = {
        "activations": analytic.activations,
        "linear_map": analytic.linear_map,
        "depth_variance": analytic.depth_variance,
        "initialisation_name": analytic.initialisation_name,
        "dropout_expectation": analytic.dropout_expectation,
        "losses": analytic.loss_values,
        "committed": analytic.committed,
        "filters": filters.filters,
    }
    return {
        **{name: functools.partial(_each, each) for name, each in alone.items()},
        "scratch_trainings": numpy_trainings.scratch_trainings,
        "trainings": trainings.trainings,
    }


def _each(
    experiment: Callable[..., dict[str, float | None]], parameters: Any, *, seeds: Sequence[int], lab: Any
) -> list[dict[str, float | None]]:
    return [experiment(parameters, seed=seed, lab=lab) for seed in seeds]


if __name__ == "__main__":
    startup.run(lambda: errors.guarded(lambda: main(sys.argv[1:])))
