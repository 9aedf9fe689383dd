"""What a config names of the user's own code: a builder, a reader, a part of a recipe, an observer, a callback."""

import inspect
import pkgutil
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from remeasure.spec.base import Choice, InputError, Strict

T = TypeVar("T")


_PACKAGE = str(Path(__file__).parents[1])
_REFERENCE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


def imported(reference: str, *, where: str) -> Any:
    """What "package.module:name" names. Raises InputError, which begins with `where`."""
    if not _REFERENCE.fullmatch(reference):
        raise InputError(f"{where}: expected module:name, such as package.module:Class, got {reference!r}")
    if ".py:" in reference:
        raise InputError(f"{where}: expected module:name, got {reference!r}; write {reference.replace('.py:', ':')}")
    try:
        return pkgutil.resolve_name(reference)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise InputError(f"{where}: {reference} cannot be imported: {error}") from None
    except Exception as error:
        raise InputError(f"{where}: {reference} cannot be imported: {raised(error)}") from error


def raised(error: Exception) -> str:
    """What an exception of the user's code says, and the line of it that raised it, or called what did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in frame.filename for part in ("site-packages", _PACKAGE))]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def register(base: type[Choice], name: str) -> None:
    """Make the class that "module:Class" names one of the choices of `base`, by this name.

    Raises InputError: it cannot be imported, or is no choice.
    """
    found = imported(name, where=f"{base.key}.name")
    expected = f"expected a subclass of {base.__module__}.{base.__name__}, @dataclass(frozen=True, kw_only=True)"
    if not (isinstance(found, type) and issubclass(found, base) and is_dataclass(found)):
        raise InputError(f"{base.key}.name: {name} is no {base.__name__}; {expected}")
    if missing := sorted(found.__abstractmethods__):
        raise InputError(f"{base.key}.name: {name} has no {', '.join(missing)}; {expected} with this method")
    if "__dataclass_params__" not in vars(found):
        raise InputError(f"{base.key}.name: {name} is no dataclass, so that its arguments are not known; {expected}")
    if "name" in vars(found):
        raise InputError(f"{base.key}.name: {name} has a field `name`; leave it out, the config has the name")
    base.choices[name] = found


@dataclass(frozen=True, kw_only=True)
class Plugin(Strict):
    """`builder`: "module:name" of a class or function; `options`: its keyword arguments."""

    builder: str
    options: dict[str, Any] = field(default_factory=dict)

    def _faults(self) -> Iterable[str]:
        if not _REFERENCE.fullmatch(self.builder):
            yield f"builder: expected module:name, such as package.module:Class, got {self.builder!r}"

    def build(self, kind: type[T], *, where: str, **context: object) -> T:
        """An instance of `kind`; `context`: further arguments, of which it gets those that its signature names.

        Raises InputError, which begins with `where`.
        """
        builder = imported(self.builder, where=f"{where}.builder")
        known = {key: value for key, value in context.items() if key in inspect.signature(builder).parameters}
        try:
            made = builder(**known, **self.options)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{where}: {self.builder}: {raised(error)}") from error
        if not isinstance(made, kind):
            raise InputError(f"{where}: {self.builder} makes {type(made).__name__}, expected {kind.__name__}")
        return made
