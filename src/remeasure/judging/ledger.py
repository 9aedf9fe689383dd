"""The ledger: published numbers, their sources and each row's decision rule. Read strictly; faults are named together.

The file is plain YAML: no anchors, aliases or tags. Unquoted null is null, unquoted decimals such as 5 or 92.6 are
numbers, true and false are refused by every key, and everything else is text as written: a date, `.nan`, `0x1F`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from decimal import ROUND_CEILING, Decimal
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from remeasure.spec.base import ROW_NAME, InputError, Mode, canonical_sha256, gathered, refuse
from remeasure.spec.claim import Article, Metric, Row
from remeasure.system.paths import read_file
from remeasure.system.validation import convert, did_you_mean

T = TypeVar("T")

_TEXT = "tag:yaml.org,2002:str"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")
_LONGEST_NAME = 100  # names are part of file names


def read(path: Path) -> dict[str, Row]:
    """The rows of the ledger at `path`, in file order.

    Raises InputError with one line for each fault; each names the file, the row and the key.
    """
    return read_with_article(path)[0]


def read_with_article(path: Path) -> tuple[dict[str, Row], Article | None]:
    """The rows, and where they were published if the ledger has the key `article`. InputError: as in `read`."""
    rows, article, faults = _read_all(path)
    refuse(chain.from_iterable(faults.values()))
    return rows, article


def read_sound(path: Path) -> tuple[dict[str, Row], list[str]]:
    """The rows without a fault, and the faults of all others. InputError: no row is without one, else as in `read`."""
    rows, _, faults = _read_all(path)
    found = list(chain.from_iterable(faults.values()))
    if not rows:
        refuse(found)
    return rows, found


def read_for(path: Path, *, model: str, data: str) -> tuple[dict[str, Row], list[str]]:
    """The rows without a fault, and the faults of rows of other models and data sets. InputError: any other fault."""
    rows, _, faults = _read_all(path)
    own = [name for name in faults if not name or f"{name}-".startswith(f"{model}-{data}-")]
    refuse(chain.from_iterable(faults.pop(name) for name in own))
    return rows, list(chain.from_iterable(faults.values()))


def _read_all(path: Path) -> tuple[dict[str, Row], Article | None, dict[str, list[str]]]:
    """The rows without a fault, the article, and all faults by row ("" for the file's), each with the file's name."""
    document, of_file = plain_document(path, top="rows", beside=("article",))
    rows, article, faults = dict[str, Row](), None, {"": of_file}
    folded = dict[str, str]()
    for name, entry in document["rows"].items():
        faults[name] = own = list(_entry_faults(entry, name=name))
        if (other := folded.setdefault(name.lower(), name)) != name:
            own.append(f"rows.{name}: is rows.{other} but for capitals, which some disks do not tell apart; rename one")
        with gathered(own):
            row = convert(Row, with_name(entry, name), where=f"rows.{name}")
            if not (own or of_file):
                rows[name] = row
    if "article" in document:
        faults["article"] = of_article = list[str]()
        with gathered(of_article):
            article = convert(Article, document["article"], where="article")
            if unknown := [name for name in article.names if name not in document["rows"]]:
                of_article.append(f"article.names: no such row: {', '.join(unknown)}")
    return rows, article, {name: [f"{path}: {fault}" for fault in found] for name, found in faults.items()}


def plain_document(path: Path, *, top: str, beside: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """The whole ledger as plain values, whose key `top` has a mapping, and the faults of its keys.

    The keys `beside` are optional, others are faults. Raises InputError for a file that is not plain YAML.
    """
    root = _compose(path)
    faults = list(_key_faults(root, tops=(top, *beside)))
    document = _plain(root) if root else None
    document = document if isinstance(document, dict) else {}
    if not isinstance(document.get(top), dict) or not document[top]:
        one = top.removesuffix("s")
        faults.append(
            f"expected the top-level key {top}, a mapping from each {one}'s name to its entry; found no {one}"
        )
        document[top] = {}
    return document, faults


def with_name(entry: Any, name: str) -> Any:
    """A ledger's entry with the key that it stands under; what is no mapping as it is."""
    return {**entry, "name": name} if isinstance(entry, dict) else entry


def check_configs(rows: Mapping[str, Row], *, conf_dirs: Sequence[Path]) -> None:
    """Raise InputError unless the model, data and recipe of each row are files in one of these folders.

    Pass only the rows that are about to be measured: other rows may name configs that do not exist yet.
    """
    refuse(
        f"row {row.name}: {group}: no {conf_dirs[0] / group / value}.yaml{did_you_mean(value, valid)}; "
        f"valid: {', '.join(valid)}"
        for row in rows.values()
        for group, value in (("model", row.model), ("data", row.data), ("recipe", row.recipe))
        if value not in (valid := sorted({file.stem for conf in conf_dirs for file in (conf / group).glob("*.yaml")}))
    )


def margin_pp(*, num_digits: int, num_runs: int | None, sd_pp: float, mode: Mode) -> float:
    """The margin of a claim in percentage points, a multiple of 0.05, fixed before the first measurement.

    Half a unit of the last of `num_digits` decimals + 1.96·sd/√(num_runs, 1 if None), rounded up; an evaluation has no
    seeds: half a unit + 0.05, rounded up. `sd_pp`: of the metric between seeds, from the literature.
    """
    half_unit = Decimal("0.5") / 10**num_digits
    noise = (
        Decimal("0.05")
        if mode == "evaluate"
        else Decimal("1.96") * Decimal(str(sd_pp)) / Decimal(max(num_runs or 1, 1)).sqrt()
    )
    step = Decimal("0.05")
    return float(((half_unit + noise) / step).to_integral_value(ROUND_CEILING) * step)


def row_sha256(row: Row) -> str:
    """SHA-256 of the row's entry as canonical JSON, without the name, which is the entry's key.

    Defaults of `confidence` and `looks` are included; a `first_seed` of 0, a `num_params_note` of null, a `control` of
    none, an `engine` of serial, a `metric` of accuracy and the other metrics' numbers are left out.
    """
    left_out = {"name": row.name, "control": "none", "engine": "serial", "metric": "accuracy_percent"}
    entry = {key: value for key, value in asdict(row).items() if (key, value) not in left_out.items()}
    if row.rule.first_seed == 0:
        del entry["rule"]["first_seed"]
    for key in (*get_args(Metric), "num_params_note"):
        if entry["published"][key] is None:
            del entry["published"][key]
    return canonical_sha256(entry)


def select(entries: Mapping[str, T], names: Sequence[str], *, kind: str = "row") -> dict[str, T]:
    """The entries with these names, in the ledger's order; all if `names` is empty. InputError for an unknown name."""
    unknown = [name for name in names if name not in entries]
    refuse(f"no {kind} {name!r}{did_you_mean(name, entries)}; valid: {', '.join(entries)}" for name in unknown)
    return {name: entry for name, entry in entries.items() if name in names or not names}


def for_configs(rows: Mapping[str, Row], *, model: str, data: str, recipe: str, engine: str = "serial") -> Row | None:
    """The first row of the ledger with these configs, or None."""
    wanted = (model, data, recipe, "numpy" if engine == "numpy" else "serial")
    return next((row for row in rows.values() if (row.model, row.data, row.recipe, row.engine) == wanted), None)


def _entry_faults(entry: Any, *, name: str) -> Iterator[str]:
    """Faults of a row's name, which also serves as file name and MLflow tag."""
    if not ROW_NAME.fullmatch(name):
        parted = "of A-Z, a-z, 0-9, '_' and '.', parted by single '-'"
        yield f"rows.{name}: expected a name <model>-<data>[-variant] {parted}"
    if len(name) > _LONGEST_NAME:
        yield f"rows.{name}: expected a name of at most {_LONGEST_NAME} characters, got {len(name)}"
    if not isinstance(entry, dict):
        return
    if "name" in entry:
        yield f"rows.{name}.name: no such key; the row's name is the key that its entry stands under"
    start = f"{entry.get('model')}-{entry.get('data')}"
    if {"model", "data"} <= entry.keys() and not f"{name}-".startswith(f"{start}-"):
        yield f"rows.{name}: expected the name {start} or {start}-<variant>, after the row's model and data"


# ---------------------------------------------------------------- from bytes to plain values


def _compose(path: Path) -> yaml.Node | None:
    """The tree of YAML nodes in a file, None if it is empty. InputError if it is not plain YAML."""
    text = _read(path)
    try:
        faults = list(_event_faults(yaml.parse(text, Loader=yaml.SafeLoader)))
        root = None if faults else yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{path}: {_at(error.problem_mark)}not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML overflows on an escape such as "\UFFFFFFFF"
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    refuse(f"{path}: {fault}" for fault in faults)
    return root


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected the ledger, a YAML file") from None


def _event_faults(events: Iterable[yaml.Event]) -> Iterator[str]:
    """Faults of legal YAML that a ledger must not use: anchors, aliases, tags, unprintable characters.

    They are found in the parser's events, before aliases are expanded and values are built.
    """
    for event in events:
        at = _at(event.start_mark)
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            yield f"{at}anchors and aliases are refused, got {event.anchor!r}; write the value out"
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
            yield f"{at}tags are refused, got {event.tag!r}; write the plain value"
        for odd in _unprintable(event.value) if isinstance(event, yaml.ScalarEvent) else ():
            yield f"{at}holds the character U+{ord(odd):04X}, which does not print; remove it"


def _unprintable(text: str) -> str:
    """The first character, if any, that is neither printable nor a line feed."""
    return next((letter for letter in text if letter != "\n" and not letter.isprintable()), "")


def _at(mark: Any) -> str:
    """Line and column of a yaml Mark, counted from 1; "" for None."""
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _key_faults(node: yaml.Node | None, *, tops: Sequence[str], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Faults of duplicate keys, keys that are not text, and top-level keys other than `tops`."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _key_faults(item, tops=tops, path=(*path, str(index)))
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key_node, value in node.value:
        key, line = _key(key_node), key_node.start_mark.line + 1
        place = f"{'.'.join((*path, key))}: line {line}"
        if key in lines:
            yield f"{place}: duplicate key, first in line {lines[key]}; keep one of them"
        elif key_node.tag != _TEXT:
            yield f"{place}: expected a key that is text; put it in quotes"
        elif not path and key not in tops:
            yield f"{place}: no such key{did_you_mean(key, tops)}; valid: {', '.join(tops)}"
        lines.setdefault(key, line)
        yield from _key_faults(value, tops=tops, path=(*path, key))


def _plain(node: yaml.Node) -> Any:
    """A node as dict, list, str, int, float, bool or None, by the rules at the top of this file."""
    if isinstance(node, yaml.MappingNode):
        return {_key(key): _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if node.tag == "tag:yaml.org,2002:null":
        return None
    if node.tag == "tag:yaml.org,2002:bool":
        return node.value.lower() in ("true", "yes", "on")
    return json.loads(node.value) if node.tag != _TEXT and _NUMBER.fullmatch(node.value) else node.value


def _key(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else "?"
