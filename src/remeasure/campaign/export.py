"""A row's trained network as a folder for others, who need torch and nothing of this package.

The program model.pt2 (torch.export) is what loads without our code: it is the graph that was scored, normalisation
included. A module written out from the builder's source would need whatever that imports, and to be kept the same.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import StrictUndefined, Template

from remeasure.judging.metrics import unit
from remeasure.judging.reader import read_row
from remeasure.judging.table import verdict_of
from remeasure.models import saved
from remeasure.runs import code
from remeasure.runs.folder import attempt, directories, read_record
from remeasure.runs.recorder import spec_of
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row, Verdict
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system.atomic import read_bytes, read_json, write_atomic
from remeasure.system.formats import encode_json

PROGRAM_FILE = "model.pt2"
_CARD = Path(__file__).parent / "card.md.j2"


def export(row: Row, *, runs: Path, results: Path, into: Path) -> Path:
    """Write into/<row>: model.safetensors, model.pt2, config.json and README.md, a model card; returns the folder.

    The network is that of the row's lowest seed that keeps one. Raises InputError: there is none here, or the code that
    would build it is not the code that trained it.
    """
    if row.mode == "evaluate":
        raise InputError(f"{row.name}: evaluates published weights, which are not exported; their publisher has them")
    group = read_row(results, row=row.name)
    measured = group.records if group else ()
    directory = _directory(row, runs=runs, measured=measured)
    record, spec = read_record(directory), spec_of(directory)
    if differs := code.network_changed(directory, spec=spec):
        raise InputError(
            f"{row.name}: {directory} was trained by other code ({differs}), so that its accuracy may not be this "
            f"network's; undo the change, or `make reproduce ROWS={row.name} FRESH=1` trains it again"
        )
    classifier = saved.load(directory)
    into.mkdir(parents=True, exist_ok=True)
    for left in into.glob(f".{row.name}-*"):  # by an export that was killed
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=into, prefix=f".{row.name}-"))
    write_atomic(folder / saved.WEIGHTS_FILE, read_bytes(directory / saved.WEIGHTS_FILE))
    torch.export.save(saved.export(classifier), folder / PROGRAM_FILE)
    facts = {
        "row": row.name,
        "model": spec.model.name,
        "data": spec.data.name,
        "recipe": spec.recipe.name,
        "torch": torch.__version__,
    }
    labels = {str(index): name for index, name in enumerate(classifier.classes)}
    config = {**facts, **asdict(classifier.saved), "id2label": labels, "record": asdict(record)}
    write_atomic(folder / "config.json", encode_json(config))
    is_measured = record.predicted_sha256 in {each.predicted_sha256 for each in measured}
    verdict = verdict_of(row, records=measured if is_measured else (), spec=asdict(spec))
    card = _card(row, record=record, spec=spec, verdict=verdict, classifier=classifier)
    write_atomic(folder / "README.md", card.encode())
    return _in_place(folder, of=into / row.name)


def _in_place(folder: Path, *, of: Path) -> Path:
    """Give the whole folder its name; an older one of that name is removed, so that none has files of both."""
    folder.chmod(0o755)
    if of.exists():
        of.rename(old := Path(f"{folder}-old"))
        folder.rename(of)
        shutil.rmtree(old)
    else:
        folder.rename(of)
    return of


def _directory(row: Row, *, runs: Path, measured: Sequence[RunRecord]) -> Path:
    """The folder of a network: of the lowest seed that is in the row's record; else of the latest attempt at the lowest
    seed of this spec, or of the row.
    """
    found, seeds = list[tuple[int, int, int, Path]](), {(each.seed, each.predicted_sha256) for each in measured}
    for directory in directories(runs):
        record = read_json(directory / "record.json")
        if not (record and (directory / saved.WEIGHTS_FILE).exists()):  # unfinished, damaged, or nothing is kept
            continue
        is_same = record["spec_sha256"] in {each.spec_sha256 for each in measured}
        if is_same or record["row"] == row.name:
            rank = 0 if (record["seed"], record["predicted_sha256"]) in seeds else 1 if is_same else 2
            found.append((rank, record["seed"], -attempt(directory), directory))
    if not found:
        raise InputError(
            f"{row.name}: no trained network is here; `make reproduce ROWS={row.name} FRESH=1` keeps the first seed's"
        )
    return min(found)[-1]


def _card(row: Row, *, record: RunRecord, spec: RunSpec, verdict: Verdict, classifier: saved.Classifier) -> str:
    """README.md: the hub's metadata with its model-index, then the text of card.md.j2."""
    assert record.accuracy_percent is not None
    accuracy = EvalResult(
        task_type="image-classification",
        task_name="Image Classification",
        dataset_type=spec.data.name,
        dataset_name=spec.data.title,
        dataset_split="test",
        dataset_revision=record.data_sha256,
        metric_type="accuracy",
        metric_name="accuracy",
        metric_value=round(record.accuracy_percent / 100, 6),
        metric_args={
            f"published{unit(row)}": round(row.published.percent / 100, row.published.num_digits + 2),
            "verdict": verdict.verdict,
            "seed": record.seed,
        },
    )
    data = ModelCardData(
        model_name=f"remeasure-{row.name}",
        library_name="pytorch",
        pipeline_tag="image-classification",
        tags=["remeasure", row.model],
        eval_results=[accuracy],
    )
    template = Template(_CARD.read_text(encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True)
    card: str = template.render(
        metadata=data.to_yaml(),
        row=row,
        record=record,
        spec=spec,
        verdict=verdict,
        unit=unit(row),
        source=row.published.sources[0],
        torch_version=torch.__version__,
        program_file=PROGRAM_FILE,
        weights_file=saved.WEIGHTS_FILE,
        shape=", ".join(map(str, classifier.input_shape)),
        num_classes=len(classifier.classes),
    )
    return card
