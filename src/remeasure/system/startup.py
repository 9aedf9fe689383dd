"""Start and end of a process: faster with torch, Lightning and mlflow, and printable in every encoding; its cores.

Their imports create a million objects. Garbage collection takes a quarter of the import time; freeing the objects one
by one at the end takes two seconds, although the kernel reclaims the memory at once.
"""

import atexit
import codecs
import gc
import io
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

YOUNG_OBJECTS = 100_000  # Python's default of 700 starts a collection every few modules
# What is printed for a character that the terminal's encoding lacks; Greek letters are named, accents are left out.
STAND_INS = {
    **{"±": "+-", "×": "x", "·": "*", "−": "-", "–": "-", "—": "-", "≥": ">=", "≤": "<=", "→": "->", "←": "<-"},
    **{"√": "sqrt", "∂": "d", "‖": "||", "█": "#", "░": ".", "\N{FRACTION SLASH}": "/"},
    **dict.fromkeys(("\u2018", "\u2019"), "'"),
    **dict.fromkeys(("\u201c", "\u201d"), '"'),
}


def begin() -> None:
    """Make garbage collections rarer and every character printable. Call it before the imports."""
    gc.set_threshold(YOUNG_OBJECTS, 20, 100)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start; what opens a file must not get its number
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the whole process
    codecs.register_error("stand-in", _stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not a closed stream, nor what a test puts there
            stream.reconfigure(errors="stand-in")


def _stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of codecs: what replaces the first character that cannot be encoded, and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    character, after = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that could not be decoded
        return character.encode(errors="surrogateescape"), after
    plain = (STAND_INS.get(each, each) for each in unicodedata.normalize("NFKD", character))
    text = "".join(plain).encode("ascii", errors="ignore").decode()
    kind, _, name = unicodedata.name(character, "").rpartition(" LETTER ")
    greek = {"GREEK SMALL": name.lower(), "GREEK CAPITAL": name.capitalize()}.get(kind, "?")
    return text or greek, after


def run(main: Callable[[], int]) -> NoReturn:
    """Run main and end this process with its exit status: after the atexit handlers, without freeing memory."""
    _name_every_file()
    begin()
    status = 1
    atexit.register(lambda: end(status))  # registered first, so that atexit calls it last
    try:
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    sys.exit(status)


def _name_every_file() -> None:
    """Start again in Python's UTF-8 mode where the locale's encoding lacks characters that a file's name can have:
    torch and MLflow refuse such a name. What is printed stays in the locale's encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        if sys.stdout:
            os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def num_cores() -> int:
    """The cores that this process may use; all of the machine where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with(parent: int) -> None:
    """End this process within a second of its parent's end, however that ends."""

    def follow() -> NoReturn:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def end(status: int) -> NoReturn:
    """Flush stdout and stderr and end this process at once."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed before the start
            stream.flush()
    except OSError:  # the reader of the pipe has gone; Python itself ends with 120 then
        status = 120
    os._exit(status)
