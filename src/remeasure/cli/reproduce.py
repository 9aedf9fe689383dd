"""The whole table from one command: plan, measure, table, verify. Also each of them alone, for DVC and for hand."""

import argparse
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from remeasure.cli.options import LOCAL, parser
from remeasure.config.errors import EXIT_FAILED, EXIT_INPUT, as_input_errors
from remeasure.data import catalog
from remeasure.judging import ledger, metrics, publish, rules, table, verify
from remeasure.judging.publish import ensure_header, recover
from remeasure.judging.reader import read_row, read_runs, read_specs
from remeasure.judging.report import terminal
from remeasure.judging.report.page import TestSplit
from remeasure.spec.base import DataMissingError, InputError, gathered, refuse
from remeasure.spec.claim import Row
from remeasure.spec.config import Config
from remeasure.system import paths
from remeasure.system.atomic import read_bytes, write_atomic
from remeasure.system.console import console, rendered
from remeasure.system.locks import held_folder

if TYPE_CHECKING:
    from remeasure.campaign.row import NotHere
    from remeasure.tracking.observer import Observers

MEASURE = ("reproduce", "measure", "plan")
Compose = Callable[[Sequence[str]], Config]


@dataclass(frozen=True, kw_only=True)
class Files:
    """The ledger and where its campaign writes; the demo has its own. `store`: the tracking database's folder, unless
    MLFLOW_TRACKING_URI names another store.
    """

    ledger: Path
    results: Path
    runs: Path
    store: Path
    readme: Path | None

    def retable(self) -> None:
        """Bring the table up to date if there is one and the ledger is right; the caller holds the lock of results/."""
        if (self.results / "table.csv").exists() and not ledger.read_sound(self.ledger)[1]:
            self.table()

    def table(self) -> None:
        """Write the table and the report."""
        faults = publish.write(self.ledger, results=self.results, readme_path=self.readme, splits=_split_if_sound)
        for fault in faults:
            _say(f"report.html stays as it is: {fault}")


def main(arguments: Sequence[str], *, compose: Compose) -> int:
    """Run one command; returns the exit status. Raises InputError."""
    options = parser().parse_intermixed_args(arguments)
    files = _files(suite=options.suite, results=options.results)
    if options.command == "ui":
        from remeasure.tracking import mlflow_store

        mlflow_store.serve(files.store, port=options.port)
    if not (options.suite or paths.in_project()):
        _say(f"no conf/{paths.LEDGER} here: remeasure's own ledger is used")
    if options.results and options.command not in MEASURE and not options.results.is_dir():
        raise InputError(f"--results: {options.results} is no folder")
    text = read_bytes(files.ledger)
    rows, faults = ledger.read_sound(files.ledger)
    measures = options.command in MEASURE
    if not (measures and rows.keys() >= set(options.rows)):
        refuse(faults)
    chosen = ledger.select(rows, options.rows)
    recover(files.results, then=files.retable)
    status, origins = 0, dict[str, str]()
    if faults:
        _say("\n".join((*faults, "the other rows go on; the table waits until the ledger is right")))
    if measures:
        if options.command != "plan":
            rules.note(files.runs, rows=rows)
        status, origins = _measure(chosen, files=files, options=options, compose=compose)
        if read_bytes(files.ledger) != text:
            _say(f"{files.ledger}: was edited meanwhile: the lines above and MLflow go by its earlier text,")
            _say("the table by its present one; the same command brings them together")
            status = max(status, EXIT_FAILED)
    if faults:
        return EXIT_INPUT
    with held_folder(files.results):  # what another campaign publishes meanwhile would not fit to what is read here
        if options.command in ("reproduce", "table"):
            files.table()
            records = {name: read_runs(files.results, row=name) for name in rows}
            origins = {name: "committed record" for name in rows if records[name]} | origins
            lines = table.build(rows, records=records, specs=read_specs(files.results, rows=rows))
            if options.json:
                write_atomic(options.json, table.to_json(lines))
            _print(terminal.shown(lines, rows=rows, origins=origins))
        if options.command in ("reproduce", "verify"):
            status = max(status, _verify(files, quiet=options.quiet))
    if options.command == "reproduce" and not options.quiet:
        suite = f" --{options.suite}" * bool(options.suite)
        runs = f"`{paths.command('reproduce').removesuffix(' reproduce')} ui{suite}` opens its runs in MLflow"
        print(f"{files.results / 'report.html'} has the evidence of each row; {runs}")
    if options.command in ("reproduce", "table") and options.suite == "controls":
        status = max(status, _controls(lines))
    if options.command == "export":
        _export(chosen, files=files)
    if options.command == "metrics":
        _metrics(chosen, results=files.results)
    if options.command == "track":
        from remeasure.tracking.replay import replay

        note = _note(rows, files=files)
        where = {"results": files.results, "runs": files.runs, "project": files.store}
        replay(rows, **where, table=note, say=_say, suite=options.suite)
    return status


def _files(*, suite: str, results: Path | None) -> Files:
    root, conf = paths.project_root(), paths.conf_dirs()
    runs = root / "runs" / "demo" if suite == "demo" else root / "runs"
    store = runs if suite == "demo" else root
    return Files(
        ledger=paths.conf_file(f"{suite}.yaml", folders=conf) if suite else conf[0] / paths.LEDGER,
        results=results or store / "results" / ("controls" if suite == "controls" else ""),
        runs=runs,
        store=store,
        readme=None if suite or results else root / "README.md",
    )


def _measure(
    rows: Mapping[str, Row], *, files: Files, options: argparse.Namespace, compose: Compose
) -> tuple[int, dict[str, str]]:
    """Measure these rows; returns the exit status, and for each row that was measured here that it was.

    A row whose config or data is wrong is named, and the others go on; InputError if none can.
    """
    if sys.stderr.isatty() and not options.quiet:
        _say("importing torch, Lightning and MLflow, reading the data …")
    from remeasure.campaign.campaign import Campaign
    from remeasure.campaign.executors import choose
    from remeasure.campaign.row import NotHere, Options, RowCampaign
    from remeasure.runs import provenance
    from remeasure.runs.folder import Place
    from remeasure.tracking.observer import build
    from remeasure.training.device import resolve_device

    root = paths.project_root()
    verbosity = "quiet" if options.quiet else "verbose" if options.verbose else "normal"
    overrides = [f"verbosity={verbosity}", *([f"+observer=[{options.observers}]"] if options.observers else [])]
    config = compose(overrides)
    place = Place(
        runs=files.runs,
        project=root,
        data_root=paths.data_root(),
        device_kind=resolve_device("auto"),
        devices=config.devices,
    )
    chosen = Options(**{entry.name: getattr(options, entry.name) for entry in fields(Options)})
    if options.command != "plan":
        provenance.warn_of_unknown(root)
    with build(config.observer, project=files.store) as observers:
        say = _print if options.command == "plan" else observers.say
        executor = choose.build(options.on, place=place, conf_dirs=paths.conf_dirs()) if options.on != LOCAL else None
        observers.close_orphans(files.runs, **({"is_alive": executor.is_alive} if executor else {}))
        campaign = Campaign(
            place=place,
            results=files.results,
            options=chosen,
            observers=observers,
            say=say,
            retable=files.retable,
            suite=options.suite,
            **({"new_workers": lambda _: executor} if executor else {}),
        )
        prepared, refused = list[RowCampaign | NotHere](), dict[str, list[str]]()
        for row in rows.values():
            try:
                with as_input_errors():  # a choice that Hydra does not find, too
                    ledger.check_configs({row.name: row}, conf_dirs=paths.conf_dirs())
                    prepared.append(campaign.prepare(row, compose=compose))
            except InputError as error:
                for fault in error.faults:  # rows share their data's faults
                    refused.setdefault(fault, []).append(row.name)
        campaigns = [entry for entry in prepared if isinstance(entry, RowCampaign)]
        if refused and not campaigns:
            raise InputError(*refused)
        for fault, names in refused.items():
            say(f"{', '.join(names)}: not measured, the input is wrong: {fault}")
        in_full = options.verbose or options.command == "plan" or bool(options.rows)
        for line in _missing_lines([entry for entry in prepared if isinstance(entry, NotHere)], in_full=in_full):
            say(line)
        if options.command == "plan":
            campaign.plan(campaigns)
        else:
            campaign.measure(campaigns)
        here = [entry.row.name for entry in campaigns if entry.measured_here]
        if options.command != "plan":
            _replay_committed(rows, here=here, observers=observers, files=files, suite=options.suite)
    status = EXIT_FAILED if any(entry.failures for entry in campaigns) else 0
    if refused or any(entry.wrong_input for entry in campaigns):
        status = EXIT_INPUT
    return status, dict.fromkeys(here, "measured here")


def _replay_committed(
    rows: Mapping[str, Row], *, here: Sequence[str], observers: "Observers", files: Files, suite: str
) -> None:
    """Rows that were not measured here stand in MLflow by their committed records; its note has the table."""
    from remeasure.tracking.mlflow_observer import MlflowObserver
    from remeasure.tracking.replay import replay_row

    tracking = [each for each in observers.each if isinstance(each, MlflowObserver)]
    trackers = [(each.best_effort.at_once, each.tracker) for each in tracking if each.tracker]
    for row in (row for row in rows.values() if row.name not in here):
        with held_folder(files.results):
            ensure_header(files.results, row=row.name)
        for at_once, tracker in trackers:
            at_once(replay_row, row, tracker=tracker, results=files.results, runs=files.runs, suite=suite)
    for at_once, tracker in trackers:
        whole, _ = ledger.read_sound(files.ledger)
        at_once(tracker.describe, _note(whole, files=files))


def _note(rows: Mapping[str, Row], *, files: Files) -> str:
    """The table in Markdown, of all rows of the ledger."""
    with held_folder(files.results):
        records = {name: read_runs(files.results, row=name) for name in rows}
        specs = read_specs(files.results, rows=rows)
    return table.short_markdown(table.build(rows, records=records, specs=specs), rows=rows)


def _export(rows: Mapping[str, Row], *, files: Files) -> None:
    """Export each row that has a network here. Raises InputError for those that have none, after the others."""
    from remeasure.campaign.export import export  # torch: seconds to import

    faults = list[str]()
    for row in rows.values():
        with gathered(faults):
            folder = export(row, runs=files.runs, results=files.results, into=files.store / "exports")
            print(f"{row.name}: {folder}")
    refuse(faults)


def _metrics(rows: Mapping[str, Row], *, results: Path) -> None:
    for row in rows.values():
        print(*metrics.told(row, group=read_row(results, row=row.name), split=_split(row.data)), sep="\n")


def _controls(lines: Sequence[table.TableRow]) -> int:
    """Exit status 1 where a negative control did not fall short: nothing else that was measured could be trusted."""
    num_passed = sum(line.verdict == "falls short" for line in lines)
    print(f"negative controls: {num_passed} of {len(lines)} fall short, as they must")
    return 0 if num_passed == len(lines) else EXIT_FAILED


def _print(content: RenderableType) -> None:
    print(rendered(content, on=console(sys.stdout)))


def _say(line: str) -> None:
    print(rendered(line, on=console(sys.stderr)), file=sys.stderr, flush=True)


def _missing_lines(not_here: "Sequence[NotHere]", *, in_full: bool) -> Iterator[str]:
    """What this machine cannot measure, and why; rows that lack the same are named together.

    Not `in_full`: a line each, with the command that tells more.
    """
    missing: dict[tuple[str, ...], list[str]] = {}
    for entry in not_here:
        for lines in entry.missing:
            missing.setdefault(lines, []).append(entry.row.name)
    for lines, names in missing.items():
        if in_full:
            yield "\n  ".join((f"{', '.join(names)}: not measured here, what is committed stands:", *lines))
        else:
            more = f"`{paths.command('plan')} {names[0]}` says more"
            yield f"{', '.join(names)}: not measured here: {re.split('[;:] ', lines[0], maxsplit=1)[0]}; {more}"


def _split(name: str) -> TestSplit | None:
    """The test split of the data set, or None where it is not here. InputError: its files are damaged."""
    spec = catalog.read_config(name, conf_dirs=paths.conf_dirs())
    try:
        return TestSplit(*catalog.test_split(spec, root=paths.data_root()), classes=catalog.own_class_names(spec))
    except DataMissingError:
        return None


def _split_if_sound(name: str) -> TestSplit | None:
    """The same; the report does without damaged files."""
    try:
        return _split(name)
    except InputError as error:
        _say("\n".join(error.faults))
        return None


def _verify(files: Files, *, quiet: bool) -> int:
    """The exit status. `quiet`: what is as it should be is not printed."""
    report = verify.verify(files.ledger, results=files.results, splits=_split, readme_path=files.readme)
    for line in report.lines:
        if not (quiet and line.endswith(": ok")):
            _print(line)
    for fault in report.faults:
        _say(fault)
    return 0 if report.ok else EXIT_FAILED


if __name__ == "__main__":  # `python -m remeasure.cli.reproduce` is `python -m remeasure reproduce`
    sys.argv.insert(1, "reproduce")
    runpy.run_module("remeasure", run_name="__main__")
