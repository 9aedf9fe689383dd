"""Plain values (from YAML or JSON) to the dataclasses of spec.py, with every fault named at once."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from remeasure.spec import InputError

T = TypeVar("T")


def convert(cls: type[T], value: object, *, where: str) -> T:
    """`value` (nested dicts, lists, scalars) as a `cls`; strict: no text is read as a number, no key is unknown.

    Raises InputError with one line for each fault; each begins with `where` and the dotted key.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: holds a value that is neither text, number, list nor mapping ({error})") from None
    try:
        converted: T = TypeAdapter(cls).validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(
            *(line for fault in error.errors() for line in _explain(fault, cls=cls, where=where))
        ) from None
    return converted


def _explain(fault: Mapping[str, Any], *, cls: type, where: str) -> list[str]:
    place = ".".join(str(part) for part in fault["loc"])
    key = f"{where}.{place}" if place and where else place or where
    match fault["type"]:
        case "unexpected_keyword_argument":
            valid = _keys_beside(cls, fault["loc"])
            return [f"{key}: no such key{did_you_mean(str(fault['loc'][-1]), valid)}; valid: {', '.join(valid)}"]
        case "missing" | "missing_keyword_only_argument" | "missing_argument":
            return [f"{key}: missing"]
        case "value_error":
            return [f"{key}.{line}" for line in str(fault["ctx"]["error"]).splitlines()]
        case _:
            return [f"{key}: {fault['msg'].replace('Input should be', 'expected')}, got {fault['input']!r}"]


def _keys_beside(cls: type, location: tuple[str | int, ...]) -> list[str]:
    """The valid keys of the dataclass in which the last key of `location` stands."""
    for part in location[:-1]:
        cls = get_args(cls)[0] if isinstance(part, int) else get_type_hints(cls)[part]
    return list(cls.__dataclass_fields__)  # type: ignore[attr-defined]


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Such as " (did you mean 'mlp2'?)", or nothing when no valid word is near."""
    near = difflib.get_close_matches(word, list(valid), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
