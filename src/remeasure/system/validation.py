"""Plain values (from YAML or JSON) to the dataclasses of spec/run.py, with every fault named at once."""

import contextlib
import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from remeasure.spec.base import LARGEST, InputError

T = TypeVar("T")


def convert(cls: type[T], value: object, *, where: str) -> T:
    """`value` (nested dicts, lists, scalars) as a `cls`; strict: no text is read as a number, no key is unknown.

    Raises InputError with one line for each fault; each begins with `where` and the dotted key.
    """
    faults = list(_not_plain(value, key=where))
    try:
        converted = _read(cls, value)
    except ValidationError as error:
        faults += [line for fault in error.errors() for line in _explain(fault, cls=cls, where=where)]
        faults += _beside(cls, value, key=where)
    if faults:
        raise InputError(*dict.fromkeys(faults))
    return converted


def _read(cls: type[T], value: object) -> T:
    """`value` as a `cls`, by way of JSON: there pydantic takes a list as a tuple, and is strict in all else."""
    text = json.dumps(value, default=repr, skipkeys=True, ensure_ascii=False).encode(errors="replace")
    return TypeAdapter(cls).validate_json(text, strict=True)


def _beside(cls: type, value: object, *, key: str) -> Iterator[str]:
    """The faults that a dataclass's own checks find in its other fields, up to the first check of a faulty field.

    pydantic runs these checks only where all fields have the right type and their own checks pass.
    """
    if not isinstance(value, Mapping):
        return
    partial: Any = object.__new__(cls)
    hints = get_type_hints(cls)
    for name in (entry.name for entry in fields(cls) if entry.name in value):
        try:
            object.__setattr__(partial, name, _read(hints[name], value[name]))
        except ValidationError:
            if isinstance(hint := hints[name], type) and is_dataclass(hint):
                yield from _beside(hint, value[name], key=_dotted(key, name))
    with contextlib.suppress(AttributeError):  # of a field that is faulty
        for line in partial._faults():
            yield _dotted(key, line)


def _not_plain(value: object, *, key: str) -> Iterator[str]:
    """A line for each value that JSON cannot hold, such as NaN, or a date that YAML made of unquoted text."""
    match value:
        case Mapping():
            for name, entry in value.items():
                if not isinstance(name, str):
                    yield f"{_dotted(key, str(name))}: expected text as key, got {name!r}; quote it"
                yield from _not_plain(entry, key=_dotted(key, str(name)))
        case list() | tuple():
            for index, entry in enumerate(value):
                yield from _not_plain(entry, key=_dotted(key, str(index)))
        case float() if not math.isfinite(value):
            yield f"{key}: expected a finite number, got {value}"
        case int() if abs(value) > LARGEST:  # beyond that, one becomes infinite where a float is expected
            yield f"{key}: expected a number of at most {LARGEST}, got one of {value.bit_length()} bits"
        case str() if value != value.encode(errors="replace").decode():
            yield f"{key}: expected text that UTF-8 can hold, got {value!r}"
        case None | str() | int() | float():
            return
        case _:
            yield f"{key}: expected text, number, list or mapping, got {value!r}"


def _dotted(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _explain(fault: Mapping[str, Any], *, cls: type, where: str) -> list[str]:
    key = _dotted(where, *(str(part) for part in fault["loc"]))
    match fault["type"]:
        case "unexpected_keyword_argument":
            valid = _keys_beside(cls, fault["loc"])
            return [f"{key}: no such key{did_you_mean(str(fault['loc'][-1]), valid)}; valid: {', '.join(valid)}"]
        case "missing":
            return [f"{key}: missing"]
        case "value_error":
            return [_dotted(key, line) for line in str(fault["ctx"]["error"]).splitlines()]
        case _:
            return [f"{key}: {fault['msg'].replace('Input should be', 'expected')}, got {fault['input']!r}"]


def _keys_beside(cls: type, location: tuple[str | int, ...]) -> list[str]:
    """The valid keys of the dataclass in which the last key of `location` stands."""
    for part in location[:-1]:
        cls = get_args(cls)[0] if isinstance(part, int) else get_type_hints(cls)[part]
    return [entry.name for entry in fields(cls)]


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Such as " (did you mean 'mlp2'?)", or nothing when no valid word is near."""
    words = list(valid)
    near = difflib.get_close_matches(word, words, n=1) or [each for each in words if each.startswith(word)]
    return f" (did you mean {near[0]!r}?)" if near else ""
