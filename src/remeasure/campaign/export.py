"""A row's trained network as a folder for others, who need torch and nothing of this package.

The program model.pt2 (torch.export) is what loads without our code: it is the graph that was scored, normalisation
included. A module written out from the builder's source would need whatever that imports, and to be kept the same.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCardData

from remeasure.judging.metrics import unit
from remeasure.judging.reader import read_row
from remeasure.judging.table import verdict_of
from remeasure.models import saved
from remeasure.runs.folder import attempt, read_record
from remeasure.runs.recorder import spec_of
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row, Verdict
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system.atomic import read_bytes, write_atomic
from remeasure.system.formats import encode_json

PROGRAM_FILE = "model.pt2"


def export(row: Row, *, runs: Path, results: Path, into: Path) -> Path:
    """Write into/<row>: model.safetensors, model.pt2, config.json and README.md, a model card; returns the folder.

    The network is that of the row's lowest seed that keeps one. Raises InputError: there is none here.
    """
    if row.mode == "evaluate":
        raise InputError(f"{row.name}: evaluates published weights, which are not exported; their publisher has them")
    group = read_row(results, row=row.name)
    measured = group.records if group else ()
    directory = _directory(row, runs=runs, measured=measured)
    record, spec, classifier = read_record(directory), spec_of(directory), saved.load(directory)
    into.mkdir(parents=True, exist_ok=True)
    for left in into.glob(f".{row.name}-*"):  # by an export that was killed
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=into, prefix=f".{row.name}-"))
    write_atomic(folder / saved.WEIGHTS_FILE, read_bytes(directory / saved.WEIGHTS_FILE))
    torch.export.save(saved.export(classifier), folder / PROGRAM_FILE)
    facts = {"row": row.name, "model": row.model, "data": row.data, "recipe": row.recipe, "torch": torch.__version__}
    labels = {str(index): name for index, name in enumerate(classifier.classes)}
    config = {**facts, **asdict(classifier.saved), "id2label": labels, "record": asdict(record)}
    write_atomic(folder / "config.json", encode_json(config))
    is_measured = record.predicted_sha256 in {each.predicted_sha256 for each in measured}
    verdict = verdict_of(row, records=measured if is_measured else ())
    card = "\n".join(_card(row, record=record, spec=spec, verdict=verdict, classifier=classifier))
    write_atomic(folder / "README.md", (card + "\n").encode())
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
    for path in runs.glob(f"*/{saved.WEIGHTS_FILE}"):
        try:
            record = json.loads((path.parent / "record.json").read_bytes())
        except (OSError, ValueError):  # unfinished, or damaged: then it is not the row's best one
            continue
        is_same = record["spec_sha256"] in {each.spec_sha256 for each in measured}
        if is_same or record["row"] == row.name:
            rank = 0 if (record["seed"], record["predicted_sha256"]) in seeds else 1 if is_same else 2
            found.append((rank, record["seed"], -attempt(path.parent), path.parent))
    if not found:
        raise InputError(
            f"{row.name}: no trained network is here; `make reproduce ROWS={row.name} FRESH=1` keeps the first seed's"
        )
    return min(found)[-1]


def _card(
    row: Row, *, record: RunRecord, spec: RunSpec, verdict: Verdict, classifier: saved.Classifier
) -> Iterator[str]:
    """The lines of README.md: the hub's metadata with its model-index, then the text."""
    assert record.accuracy_percent is not None
    published, digits = row.published, row.published.num_digits
    source = published.sources[0]
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
            f"published{unit(row)}": round(published.percent / 100, digits + 2),
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
    shape = ", ".join(map(str, classifier.input_shape))
    mean = "" if verdict.mean_percent is None else f"{verdict.mean_percent:.3f} % over {verdict.num_seeds} seeds"
    precision = "bfloat16 (autocast)" if spec.precision == "bfloat16" else "float32"
    yield f"---\n{data.to_yaml()}\n---\n"
    yield f"# remeasure-{row.name}\n"
    yield f"{row.model} on {spec.data.title}: one network, seed {record.seed}, of a row that measures a published"
    yield "accuracy again, by training with several seeds and a rule that was written before.\n"
    yield "| | |\n| --- | --- |"
    yield f"| published{unit(row)} | {published.percent:.{digits}f} % ({source.citation}, {source.where}) |"
    yield f"| this network | {record.accuracy_percent:.3f} % ({record.num_correct} of {record.num_test} test images) |"
    yield f"| the row's mean{unit(row)} | {mean or 'not measured'} |"
    yield f"| verdict | {verdict.verdict}: {verdict.reason or f'within {row.rule.margin_pp:g} points of it'} |\n"
    yield "## Use\n"
    yield "```python"
    yield "import torch"
    yield f'network = torch.export.load("{PROGRAM_FILE}").module()'
    yield f"images = torch.zeros(1, {shape}, dtype=torch.uint8)  # (N, C, H, W), 0 to 255; any N"
    yield f"logits = network(images)  # (N, {len(classifier.classes)}) float32"
    yield 'print(logits.argmax(dim=1))  # the classes\' names: "id2label" in config.json'
    yield "```\n"
    yield f"The program normalises the pixels itself and computes in {precision}. It was written by torch"
    yield f"{torch.__version__}, and wants that version or a newer one. `{saved.WEIGHTS_FILE}` has the same weights, by"
    yield "the names of the plain module (in the program, after `network.`).\n"
    yield "## Provenance\n"
    facts = {
        "training": f"recipe {row.recipe}, {record.epochs} epochs, {record.num_params:,} parameters, {record.device}",
        "commit": f"{record.commit}{' with uncommitted changes' if record.dirty else ''}",
        "spec": record.spec_sha256,
        "data": f"{record.data_sha256} (official: {record.data_official})",
        "predictions": record.predicted_sha256,
        "finished": record.finished_at,
    }
    yield from (f"- {name}: {value}" for name, value in facts.items())
