"""Plain values (from YAML or JSON) to the dataclasses of spec/run.py, with every fault named at once."""

import difflib
import json
import math
import re
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
    unfit: dict[str, str] = {}
    sayable, faults = _sayable(value, key=where, unfit=unfit), list[str]()
    try:
        converted: T = TypeAdapter(cls).validate_json(json.dumps(sayable), strict=True)
    except ValidationError as error:
        faults = [line for fault in error.errors() for line in _explain(fault, cls=cls, where=where)]
        faults += _around(cls, sayable, key=where)
    if unfit or faults:
        around = {key.rsplit(".", depth)[0] for key in unfit for depth in range(key.count(".") + 1)}
        more = [line for line in faults if line.partition(": ")[0] not in around]  # of null, which nobody wrote
        raise InputError(*dict.fromkeys([*unfit.values(), *more]))
    return converted


def _around(cls: type, value: object, *, key: str) -> Iterator[str]:
    """What can be told of the dataclasses around a faulty value: pydantic does not ask them once a field has failed."""
    if isinstance(value, Mapping):
        yield from _partly(cls, value, key=key)[1]


def _partly(cls: type, value: Mapping[str, Any], *, key: str) -> tuple[object, list[str]]:
    """A `cls` with what of `value` is one for it, something harmless for the rest; and what its own checks say."""
    sound: object = object.__new__(cls)
    hints = {entry.name: get_type_hints(cls)[entry.name] for entry in fields(cls) if entry.name in value}
    faulty = [name for name, hint in hints.items() if not _fits(sound, name=name, hint=hint, value=value[name])]
    told: list[str] = []
    plain = []
    for name in faulty:
        if is_dataclass(hint := hints[name]) and isinstance(hint, type) and isinstance(value[name], Mapping):
            inner, lines = _partly(hint, value[name], key=_dotted(key, name))
            object.__setattr__(sound, name, inner)
            told += lines
        else:
            object.__setattr__(sound, name, 1)  # until all have something: the checks look at them together
            plain.append(name)
    for name in plain:
        _set_harmless(sound, name=name, value=value[name])
    if faulty:
        told += (_dotted(key, line) for line in _checked(sound)[1] if re.split(r"[.:]", line)[0] not in faulty)
    return sound, told


def _set_harmless(sound: object, *, name: str, value: object) -> None:
    """Give the field the value, of a few, that leaves its dataclass with the least to say: that is not its doing."""
    lists = [(1,) * len(value), (0.5,) * len(value)] if isinstance(value, list) else []

    def told(stand_in: object) -> tuple[bool, int]:
        object.__setattr__(sound, name, stand_in)
        broken, lines = _checked(sound)
        return broken, len(lines)

    object.__setattr__(sound, name, min([*lists, 1, 10**6, 0.5, 0, None, ()], key=told))


def _checked(sound: object) -> tuple[bool, list[str]]:
    """Whether the dataclass's own checks broke off, for what is no value for them; and what they said until then."""
    lines: list[str] = []
    try:
        for line in getattr(sound, "_faults", tuple)():
            lines.append(line)  # one by one: some may come before it breaks off
    except (AttributeError, TypeError, KeyError, IndexError):
        return True, lines
    return False, lines


def _fits(sound: object, *, name: str, hint: Any, value: object) -> bool:
    """Set the attribute, if the value is one for it."""
    try:
        object.__setattr__(sound, name, TypeAdapter(hint).validate_json(json.dumps(value), strict=True))
    except ValidationError:
        return False
    return True


def _sayable(value: object, *, key: str, unfit: dict[str, str]) -> Any:
    """`value` with null in place of what JSON cannot say, such as NaN, or a date that YAML made of unquoted text.

    `unfit` takes a line for each of them, by its key.
    """
    if isinstance(value, Mapping):
        names = {name: str(name).encode(errors="replace").decode() for name in value}
        for name, said in names.items():
            if name != said or "\0" in said:
                unfit[_dotted(key, said)] = f"{_dotted(key, said)}: expected text as key, got {name!r}; quote it"
        return {said: _sayable(value[name], key=_dotted(key, said), unfit=unfit) for name, said in names.items()}
    if isinstance(value, list | tuple):
        return [_sayable(entry, key=_dotted(key, str(index)), unfit=unfit) for index, entry in enumerate(value)]
    if fault := _unfit(value):
        unfit[key] = f"{key}: {fault}"
        return None
    return value


def _unfit(value: object) -> str:
    """What is wrong with a value that is no mapping and no list; "" where it is plain."""
    match value:
        case float() if not math.isfinite(value):
            return f"expected a finite number, got {value}"
        case int() if abs(value) > LARGEST:  # beyond that, one becomes infinite where a float is expected
            return f"expected a number of at most {LARGEST}, got one of {value.bit_length()} bits"
        case str() if odd := _unwritable(value):
            return f"holds the character U+{ord(odd):04X}, which no file can hold; remove it"
        case None | str() | int() | float():
            return ""
        case _:
            return f"expected text, number, list or mapping, got {value!r}"


def _unwritable(text: str) -> str:
    """The first character, if any, that no name and no UTF-8 file can hold: NUL, or half of a surrogate pair."""
    return next((letter for letter in text if letter == "\0" or "\ud800" <= letter <= "\udfff"), "")


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
    near = nearest(word, valid)
    return f" (did you mean {near!r}?)" if near else ""


def nearest(word: str, valid: Iterable[str]) -> str:
    """The valid word that was probably meant, "" where none is near."""
    words = list(valid)
    near = difflib.get_close_matches(word, words, n=1) or [each for each in words if each.startswith(word)]
    return near[0] if near else ""
