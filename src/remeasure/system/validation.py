"""Plain values (from YAML or JSON) to the dataclasses of spec/run.py, with every fault named at once."""

import contextlib
import difflib
import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import isabstract
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from remeasure.spec.base import LARGEST, Choice, InputError, gathered
from remeasure.spec.plugin import register

T = TypeVar("T")


def convert(cls: type[T], value: object, *, where: str) -> T:
    """`value` (nested dicts, lists, scalars) as a `cls`; strict: no text is read as a number, no key is unknown.

    Raises InputError with one line for each fault; each begins with `where` and the dotted key.
    """
    faults = list(_not_plain(value, key=where))
    for base, name in _choices_from_outside(value):
        with gathered(faults):
            register(base, name)
    value = _without_foreign_nulls(cls, value)
    try:
        converted: T = _read(cls, value)
    except ValidationError as error:
        faults += [line for fault in error.errors() for line in _explain(fault, cls=cls, where=where)]
        faults += _beside(cls, value, key=where)
    if faults:
        raise InputError(*dict.fromkeys(faults))
    return converted


def _choices_from_outside(value: object) -> Iterator[tuple[type[Choice], str]]:
    """Each choice of a config, with its base, that is named module:Class."""
    for base in Choice.__subclasses__():
        named = value
        for key in (*base.key.split("."), "name"):
            named = named.get(key) if isinstance(named, Mapping) else None
        if isinstance(named, str) and ":" in named:
            yield base, named


def _read(cls: Any, value: object) -> Any:
    """`value` as a `cls`, by way of JSON: there pydantic takes a list as a tuple, and is strict in all else."""
    text = json.dumps(value, default=repr, skipkeys=True, ensure_ascii=False).encode(errors="replace")
    choices = tuple(choice for base in Choice.__subclasses__() for choice in base.choices.values())
    return _adapter(cls, choices).validate_json(text, strict=True)


@functools.cache
def _adapter(cls: Any, choices: tuple[type[Choice], ...]) -> TypeAdapter[Any]:  # noqa: ARG001 - it reads them
    """pydantic's validator of the class; a further choice needs another. To make one is a fifth of a config's time."""
    return TypeAdapter(cls)


def _chosen(cls: Any, value: object) -> Any:
    """Of the base of choices, the one that `value` names; `cls` itself where it names none, and of all else."""
    name = value.get("name") if isinstance(value, Mapping) else None
    return cls.choices.get(name, cls) if _is_choice(cls) and isinstance(name, str) else cls


def _is_choice(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Choice)


def _without_foreign_nulls(cls: Any, value: object) -> object:
    """`value` without the nulls for arguments that only other choices have: the config of another optimiser, say, whose
    name the command line has changed.
    """
    if not isinstance(value, Mapping) or not is_dataclass(cls):
        return value
    if _is_choice(cls):
        chosen: Any = _chosen(cls, value)
        known = {name for choice in chosen.choices.values() for name in choice.argument_names()}
        foreign = known - set(chosen.argument_names())
        return {key: entry for key, entry in value.items() if entry is not None or key not in foreign}
    hints = get_type_hints(cls)
    return {key: _without_foreign_nulls(hints.get(key), entry) for key, entry in value.items()}


def _beside(cls: type, value: object, *, key: str) -> Iterator[str]:
    """The faults that a dataclass's own checks find in its other fields, up to the first check of a faulty field.

    pydantic runs these checks only where all fields have the right type and their own checks pass.
    """
    if not isinstance(value, Mapping):
        return
    cls = _chosen(cls, value)
    if isabstract(cls):  # a choice whose name is wrong
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
        for line in partial.faults():
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
    keys, around = _place(cls, fault["loc"])
    key, last = _dotted(where, *keys), keys[-1] if keys else ""
    match fault["type"]:
        case "unexpected_keyword_argument" if _is_choice(around):
            valid = around.argument_names()
            what = f"{around.key.rpartition('.')[2]} {_name(around)!r} has no such argument{did_you_mean(last, valid)}"
            return [f"{key}: {what}; it has {', '.join(valid) or 'none'}"]
        case "unexpected_keyword_argument":
            valid = [entry.name for entry in fields(around)]
            return [f"{key}: no such key{did_you_mean(last, valid)}; valid: {', '.join(valid)}"]
        case "union_tag_invalid" if ":" in fault["input"]["name"]:  # `register` has told why
            return []
        case "union_tag_invalid":
            expected = ", ".join(tag for tag in fault["ctx"]["expected_tags"].split(", ") if ":" not in tag)
            return [f"{_dotted(key, 'name')}: expected {expected} or module:Class, got {fault['input']['name']!r}"]
        case "missing" if _is_choice(around) and last in around.argument_names():
            return [f"{key}: missing; {_name(around)} needs it"]
        case "missing":
            return [f"{key}: missing"]
        case "union_tag_not_found":
            return [f"{_dotted(key, 'name')}: missing"]
        case "value_error":
            return [_dotted(key, line) for line in str(fault["ctx"]["error"]).splitlines()]
        case "dict_type" if isinstance(given := fault["input"], str) and _is_choice(get_type_hints(around).get(last)):
            return [f"{key}: expected an object, got {given!r}; {key}.name={given} chooses one"]
        case _:
            expected = fault["msg"].replace("Input should be", "expected").replace("a valid array", "a list")
            return [f"{key}: {expected}, got {fault['input']!r}"]


def _name(choice: type[Choice]) -> str:
    """As a config says it."""
    return next(name for name, each in choice.choices.items() if each is choice)


def _place(cls: Any, location: Iterable[str | int]) -> tuple[list[str], Any]:
    """The keys of pydantic's `location`, without the names of choices that it has among them; and the dataclass around
    the last one.
    """
    keys, around = list[str](), cls
    for part in location:
        if _is_choice(cls) and cls not in cls.choices.values():
            cls = around = cls.choices[part]
            continue
        keys.append(str(part))
        if not isinstance(part, int):
            around, hint = cls, get_type_hints(cls).get(part)
            cls = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
    return keys, around


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Such as " (did you mean 'mlp2'?)", or nothing when no valid word is near."""
    words = list(valid)
    near = difflib.get_close_matches(word, words, n=1) or [each for each in words if each.startswith(word)]
    return f" (did you mean {near[0]!r}?)" if near else ""


def counted(num: int, noun: str) -> str:
    """Such as "1 seed" and "2 seeds"."""
    return f"{num} {noun}{'s' * (num != 1)}"
