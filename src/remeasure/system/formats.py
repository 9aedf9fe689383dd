"""What results/ holds, to bytes and back: dataclasses, arrays and values; CSV, npz, YAML, JSON; SHA-256 of predictions.

Writing is deterministic: the same values give the same bytes on every machine. Reading is strict: anything that these
encoders would not write raises an InputError that begins with `name`, the file's name for messages.
"""

import csv
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import yaml

from remeasure.spec.base import LARGEST, InputError, refuse

T = TypeVar("T")
Array = npt.NDArray[Any]


def mismatch(what: str, *, expected: object, found: object) -> str:
    """The message of one fault, in the common form; `what` begins with the file's name."""
    return f"{what}: expected {expected}, found {found}"


# ---------------------------------------------------------------- CSV: percent 3 decimals, seconds 1, others 6 digits


class _Column(NamedTuple):
    kind: type
    optional: bool
    later: bool  # has a default: left out of a file in which no line has a value
    choices: tuple[str, ...]
    decimals: str


def encode_csv(lines: Iterable[object], *, cls: type) -> bytes:
    """A header of `cls`'s fields, then a line for each instance. None is an empty cell. ValueError: not finite.

    A field with a default of None has a column only if a line has a value there.
    """
    lines = list(lines)
    columns = {
        name: column
        for name, column in _columns(cls).items()
        if not column.later or any(getattr(line, name) is not None for line in lines)
    }
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(getattr(line, name), column=column) for name, column in columns.items()] for line in lines)
    return text.getvalue().encode()


def decode_csv(data: bytes, *, cls: type[T], name: str) -> list[T]:
    """The instances in a file that `encode_csv` wrote; one InputError names line and column of every fault."""
    columns = _columns(cls)
    try:
        header, *lines = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{name}: expected a CSV file that begins with its header ({error})") from None
    expected = [key for key, column in columns.items() if not column.later or key in header]
    if header != expected:
        raise InputError(mismatch(f"{name}, line 1", expected=",".join(expected), found=",".join(header)))
    columns = {key: columns[key] for key in header}
    refuse(
        f"{name}, line {number}{fault}"
        for number, cells in enumerate(lines, start=2)
        for fault in _line_faults(cells, columns=columns)
    )
    values = (
        (_value(cell, column=column) for cell, column in zip(cells, columns.values(), strict=True)) for cells in lines
    )
    instances = [cls(**dict(zip(columns, line, strict=True))) for line in values]
    if encode_csv(instances, cls=cls) != data:
        raise InputError(f"{name}: the quotes or line endings are not as remeasure writes them")
    return instances


def _columns(cls: type[Any]) -> dict[str, _Column]:
    hints = get_type_hints(cls)
    return {
        field.name: _column(hints[field.name], name=field.name, later=field.default is not MISSING)
        for field in fields(cls)
    }


def _column(hint: Any, *, name: str, later: bool) -> _Column:
    optional = type(None) in get_args(hint)
    kind = next(option for option in get_args(hint) if option is not type(None)) if optional else hint
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    decimals = ".3f" if name.endswith(("_percent", "_pp")) else ".1f" if "seconds" in name else ".6g"
    return _Column(kind=str if choices else kind, optional=optional, later=later, choices=choices, decimals=decimals)


def _cell(value: Any, *, column: _Column) -> str:
    if value is None:
        return ""
    if column.kind is bool:
        return "true" if value else "false"
    if column.kind is not float:
        return str(value)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number or None, got {value}")
    return format(value, column.decimals)


def _line_faults(cells: Sequence[str], *, columns: Mapping[str, _Column]) -> Iterator[str]:
    if len(cells) != len(columns):
        yield mismatch("", expected=f"{len(columns)} cells", found=len(cells))
        return
    for (name, column), cell in zip(columns.items(), cells, strict=True):
        try:
            canonical = _cell(_value(cell, column=column), column=column) == cell
        except ValueError:
            canonical = False
        if not canonical:
            expected = " or ".join(column.choices) or f"{column.kind.__name__} as remeasure writes it"
            yield mismatch(f", column {name}", expected=expected, found=repr(cell))


def _value(cell: str, *, column: _Column) -> Any:
    """The value of a cell. ValueError: it has no value of the column's type."""
    if not cell and column.optional:
        return None
    if column.choices and cell not in column.choices:
        raise ValueError(cell)
    value = cell == "true" if column.kind is bool else column.kind(cell)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(cell)
    return value


# ---------------------------------------------------------------- npz


def encode_npz(arrays: Mapping[str, Array]) -> bytes:
    """As `numpy.savez`, with a fixed time stamp; no compression, since its bytes depend on the zlib version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            archive.writestr(entry, member.getvalue())
    return buffer.getvalue()


def decode_npz(
    data: bytes, *, name: str, dtypes: Mapping[str, tuple[str, ...]], optional: Collection[str] = ()
) -> dict[str, Array]:
    """The arrays in a file that `encode_npz` wrote; `dtypes` lists each key's allowed types, such as "<u2".

    `optional`: keys that may be missing.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            if sum(entry.file_size for entry in archive.zip.infolist()) > len(data):
                raise ValueError("it is compressed, or claims to hold more than it can")
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # a broken zip raises a dozen types, from BadZipFile to MemoryError
        raise InputError(f"{name}: not a readable npz file ({type(error).__name__}: {error})") from None
    dtypes = {key: allowed for key, allowed in dtypes.items() if key in arrays or key not in optional}
    if list(arrays) != list(dtypes):
        raise InputError(mismatch(f"{name}, arrays", expected=", ".join(dtypes), found=", ".join(arrays)))
    refuse(
        mismatch(f"{name}, type of {key}", expected=" or ".join(allowed), found=arrays[key].dtype.str)
        for key, allowed in dtypes.items()
        if arrays[key].dtype.str not in allowed
    )
    return arrays


# ---------------------------------------------------------------- YAML and JSON mappings


def encode_yaml(value: Mapping[str, Any]) -> bytes:
    """Plain values (tuples as lists) in their own order, under a first line that says the file is generated."""
    return b"# Generated by remeasure; do not edit.\n" + yaml.safe_dump(dict(value), sort_keys=False).encode()


def decode_yaml(data: bytes, *, name: str) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        value = deepcopy(_parsed(data.decode()))
    except Exception as error:  # PyYAML raises a dozen types, from KeyError to RecursionError
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnicodeDecodeError):
            reason += "; save the file as UTF-8"
        raise InputError(f"{name}: not valid YAML ({reason})") from None
    return _mapping(value, name=name)


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Cached, as a campaign reads the specs in results/ after each row, and parsing takes longer than all the rest."""
    return yaml.safe_load(text)


def encode_json(value: Mapping[str, Any]) -> bytes:
    """Indented, keys sorted. ValueError: not a finite number."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode_json(data: bytes, *, name: str) -> dict[str, Any]:
    """The mapping in a JSON file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not valid JSON ({error})") from None
    return _mapping(value, name=name)


def _mapping(value: Any, *, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(mismatch(name, expected="a mapping", found=type(value).__name__))
    return value


def predicted_sha256(predicted: Array) -> str:
    """SHA-256 over one seed's predicted classes (N,): the bytes of the smallest unsigned type that holds them all.

    Little-endian; the same whatever integer type the array comes in. ValueError: a class below 0.
    """
    return hashlib.sha256(smallest_unsigned(predicted).tobytes()).hexdigest()


def smallest_unsigned(values: Array) -> Array:
    if values.size and values.min() < 0:
        raise ValueError(f"predicted: expected classes from 0 up, got {values.min()}")
    dtype = np.min_scalar_type(int(values.max()) if values.size else 0)
    return values.astype(dtype.newbyteorder("<"))
