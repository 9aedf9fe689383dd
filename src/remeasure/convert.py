"""Plain values (from YAML or JSON) to the dataclasses of spec.py, with every fault named at once."""

import contextlib
import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from remeasure.spec import InputError

T = TypeVar("T")


def convert(cls: type[T], value: object, *, where: str) -> T:
    """`value` (nested dicts, lists, scalars) as a `cls`; strict: no text is read as a number, no key is unknown.

    Raises InputError with one line for each fault; each begins with `where` and the dotted key.
    """
    if faults := list(_unfit(value, key=where)):
        raise InputError(*faults)
    try:
        converted: T = TypeAdapter(cls).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        faults = [line for fault in error.errors() for line in _explain(fault, cls=cls, where=where)]
        raise InputError(*dict.fromkeys([*faults, *_around(cls, value, key=where)])) from None
    return converted


def _around(cls: type, value: object, *, key: str) -> Iterator[str]:
    """What can be told of the dataclasses around a faulty value: pydantic does not ask them once a field has failed."""
    if not isinstance(value, Mapping):
        return
    sound: object = object.__new__(cls)
    hints = {entry.name: get_type_hints(cls)[entry.name] for entry in fields(cls) if entry.name in value}
    faulty = [name for name, hint in hints.items() if not _fits(sound, name=name, hint=hint, value=value[name])]
    for name in faulty:
        if is_dataclass(hints[name]):
            yield from _around(hints[name], value[name], key=_dotted(key, name))
    if faulty:
        with contextlib.suppress(AttributeError):  # the faulty field's own: the checks from there on need it
            yield from (_dotted(key, line) for line in getattr(sound, "_faults", list)())


def _fits(sound: object, *, name: str, hint: Any, value: object) -> bool:
    """Set the attribute, if the value is one for it."""
    try:
        object.__setattr__(sound, name, TypeAdapter(hint).validate_json(json.dumps(value), strict=True))
    except ValidationError:
        return False
    return True


def _unfit(value: object, *, key: str) -> Iterator[str]:
    """One line for each value that JSON cannot hold, such as NaN, or a date that YAML made of unquoted text."""
    match value:
        case Mapping():
            for name, entry in value.items():
                yield from _unfit(entry, key=_dotted(key, str(name)))
                if not isinstance(name, str):
                    yield f"{_dotted(key, str(name))}: expected text as key, got {name!r}; quote it"
        case list() | tuple():
            for index, entry in enumerate(value):
                yield from _unfit(entry, key=_dotted(key, str(index)))
        case float() if not math.isfinite(value):
            yield f"{key}: expected a finite number, got {value}"
        case None | str() | int() | float():
            pass
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
