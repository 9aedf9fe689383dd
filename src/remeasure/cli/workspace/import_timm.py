"""`remeasure import timm-results NAME…`: published rows of timm's results as rows of the ledger, and their models."""

import csv
import hashlib
import io
import urllib.request
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from remeasure.cli.options import Parser
from remeasure.cli.workspace.add_row import append
from remeasure.judging import ledger
from remeasure.spec.base import InputError
from remeasure.spec.claim import Metric
from remeasure.system import paths
from remeasure.system.atomic import read_bytes, write_atomic
from remeasure.system.validation import did_you_mean

URL = "https://raw.githubusercontent.com/huggingface/pytorch-image-models/main/results"
TABLES = {  # timm's file, to the data set that it is about, a file of conf/data
    "results-imagenet.csv": "imagenet",
    "results-imagenet-real.csv": "imagenet_real",
    "results-imagenet-a.csv": "imagenet_a",
    "results-imagenet-r.csv": "imagenet_r",
    "results-sketch.csv": "imagenet_sketch",
    "results-imagenetv2-matched-frequency.csv": "imagenet_v2",
}
COLUMNS = ("model", "img_size", "top1", "top5", "param_count", "crop_pct", "interpolation")
METRICS: Mapping[str, Metric] = {"top1": "accuracy_percent", "top5": "top5_percent"}
BATCH_SIZE = 64  # changes no number but the last digits of the loss


def main(arguments: Sequence[str]) -> int:
    """Append the entries, one after the other; returns the exit status. InputError: as `append`, or no such row."""
    given = _parser().parse_args(arguments)
    text = _fetched(given.table) if given.file is None else read_bytes(given.file)
    table, name = _read(text, name=str(given.file or given.table)), (given.file or Path(given.table)).name
    if unknown := [each for each in given.names if each not in table]:
        raise InputError(*(f"{name}: has no model {each!r}{did_you_mean(each, table)}" for each in unknown))
    data = given.data or TABLES.get(name)
    if data is None:
        raise InputError(f"{name}: is none of {', '.join(TABLES)}, so --data has to name its data set")
    if not paths.conf_file(f"data/{data}.yaml", folders=paths.conf_dirs()).is_file():
        raise InputError(f"data: there is no conf/data/{data}.yaml, of the images that {name} is about")
    sha256 = hashlib.sha256(text).hexdigest()
    for each in given.names:
        line = table[each]
        written = _write_model(each, line=line, data=data)
        variant = [] if given.metric == "top1" else [given.metric]
        entry = _entry(line, data=data, column=given.metric, table=name, sha256=sha256)
        try:
            row = append("-".join((each, data, *variant)), entry=entry)
        except InputError:
            for path in written:
                path.unlink()
            raise
        print(f"{row.name}: published {line[given.metric]} %, added; `remeasure reproduce {row.name}` measures it")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="remeasure import", description=__doc__)
    parser.add_argument("what", choices=["timm-results"])
    parser.add_argument("names", nargs="+", metavar="NAME", help="a model with its tag, such as resnet50.a1_in1k")
    table_help = "the file of timm's results to fetch (results-imagenet.csv)"
    parser.add_argument("--table", choices=list(TABLES), default=next(iter(TABLES)), metavar="TABLE", help=table_help)
    parser.add_argument("--from", dest="file", type=Path, metavar="FILE", help="that file, if it is here already")
    parser.add_argument("--data", help="the data set, a file of conf/data (default: by the file's name)")
    parser.add_argument("--metric", choices=list(METRICS), default="top1", help="the number that is the claim (top1)")
    return parser


def _fetched(table: str) -> bytes:
    try:
        with urllib.request.urlopen(f"{URL}/{table}", timeout=60) as answer:
            content: bytes = answer.read()
    except OSError as error:
        raise InputError(f"{URL}/{table}: cannot be fetched ({error}); --from FILE reads one that is here") from None
    return content


def _read(content: bytes, *, name: str) -> dict[str, dict[str, str]]:
    """The file's lines by model. InputError: it lacks a column, or a number is none."""
    lines = list(csv.DictReader(io.StringIO(content.decode(errors="replace"))))
    if missing := [column for column in COLUMNS if not lines or lines[0].get(column) is None]:
        raise InputError(f"{name}: expected timm's results, with the columns {', '.join(COLUMNS)}; no {missing[0]}")
    return {line["model"]: line for line in lines}


def _number(line: Mapping[str, str], column: str) -> Decimal:
    try:
        return Decimal(line[column].replace(",", ""))
    except InvalidOperation:
        raise InputError(f"{line['model']}: {column}: expected a number, got {line[column]!r}") from None


def _entry(line: Mapping[str, str], *, data: str, column: str, table: str, sha256: str) -> dict[str, Any]:
    """The row as the ledger has it, without its name."""
    printed, metric = _number(line, column), METRICS[column]
    num_digits = max(0, -int(printed.as_tuple().exponent))
    margin = ledger.margin_pp(num_digits=num_digits, num_runs=None, sd_pp=0.0, mode="evaluate")
    numbers = f"top-1 {line['top1']} %, top-5 {line['top5']} %, {line['param_count']} million parameters"
    seen = f"img_size {line['img_size']}, crop_pct {line['crop_pct']}, {line['interpolation']}"
    return {
        **{"model": line["model"], "data": data, "recipe": "published_eval", "mode": "evaluate"},
        **({} if metric == "accuracy_percent" else {"metric": metric}),
        "published": {
            metric: float(printed),
            "num_digits": num_digits,
            "num_params_text": f"{_number(line, 'param_count')}M",
            "num_runs": None,
            "selection": None,
            "sources": [
                {
                    "citation": f"timm's table of results, {table} (SHA-256 {sha256})",
                    "where": line["model"],
                    "says": f"{numbers}; {seen}",
                    "grade": "primary",
                }
            ],
            "notes": "Weights and transform as timm evaluated them.",
        },
        "rule": {"margin_pp": margin, "looks": [1]},
    }


def _write_model(name: str, *, line: Mapping[str, str], data: str) -> list[Path]:
    """Write the model's config, if there is none; returns the files that were written."""
    path = paths.project_conf_dir() / "model" / f"{name}.yaml"
    if path.exists():
        return []
    import timm  # 5 s to import

    config = timm.get_pretrained_cfg(name)
    if config is None or not timm.is_model(name.partition(".")[0]):
        raise InputError(f"{name}: the timm that is installed here ({timm.__version__}) has no such model with weights")
    transform = {
        "crop_pixels": int(_number(line, "img_size")),
        "crop_pct": float(_number(line, "crop_pct")),
        "interpolation": line["interpolation"],
    }
    model = {
        "name": name,
        "builder": "timm_net",
        "options": {"architecture": name.partition(".")[0]},
        "weights": None,
        "published": {
            "weights": name,
            "batch_size": BATCH_SIZE,
            "transform": transform,
            "normalisation": {"mean": list(config.mean), "std": list(config.std)},
        },
    }
    origin = f"{name} as timm evaluates it, by its table of results; mean and std: timm {timm.__version__}"
    head = f"# @package _global_\n# {origin}\n"
    body = {
        "defaults": [{"override /data": data}, {"override /recipe": "published_eval"}],
        "model": model,
        "precision": "auto",
        "cpu_threads": 2,
    }
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, (head + yaml.safe_dump(body, sort_keys=False, default_flow_style=None)).encode())
    return [path]
