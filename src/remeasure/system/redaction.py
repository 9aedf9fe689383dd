"""Texts without the secrets of this machine: whatever is printed or kept of an error goes through here."""

import os
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

SECRET = r"[\w.-]*(?:password|passwd|passphrase|secret|token|(?:api|access|secret)[_-]?key|credential|signature)"
QUERY = rf"(?i)([?&;](?:{SECRET}|pwd|sig)=)([^&;\s'\"]+)"
SHORTEST = 6  # characters of what is masked wherever it stands: "true" in TOKEN=true is no secret, and a common word


def masked(text: str) -> str:
    """The text with `***` for the secrets of the URIs in it, and for each that an environment variable holds.

    `scheme://user:secret@host` becomes `scheme://***@host`, `?password=secret` becomes `?password=***`.
    """
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = re.sub(r"://[^\s'\"]*@", "://***@", text)
    return re.sub(QUERY, r"\1***", text)


def _secrets() -> Iterator[str]:
    """As they stand in the environment, and as libraries write them: decoded, and percent-encoded."""
    for name, value in os.environ.items():
        for secret in _secrets_of(name, value):
            yield from (form for form in (secret, unquote(secret), quote(secret, safe="")) if len(form) >= SHORTEST)


def _secrets_of(name: str, value: str) -> Iterator[str]:
    """The value of a variable that is called a secret; of a URI what stands before its host, and its query's secrets.

    A password may hold what no URI may (quotes, spaces, @), and a URI may be one that nothing can parse.
    """
    if re.fullmatch(SECRET, name, re.IGNORECASE):
        yield value
    if before_host := re.match(r"[\w+.-]+:/+(.*)@|([^\s/:]+:.*)@", value):
        user = before_host[1] or before_host[2] or ""
        yield from (user, user.partition(":")[2])
    yield from (found[2] for found in re.finditer(QUERY, value))
