"""Secrets masked in texts: every error message that is printed or stored passes through `masked`."""

import os
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

SECRET = r"[\w.-]*(?:password|passwd|passphrase|secret|token|(?:api|access|secret)[_-]?key|credential|signature)"
QUERY = rf"(?i)([?&;](?:{SECRET}|pwd|sig)=)([^&;\s'\"]+)"
SHORTEST = 6  # characters; a shorter value is not masked: "true" in TOKEN=true is no secret, and a common word


def masked(text: str) -> str:
    """The text with `***` in place of secrets in URIs and of secrets that environment variables hold.

    `scheme://user:secret@host` becomes `scheme://***@host`, `?password=secret` becomes `?password=***`.
    """
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = re.sub(r"://[^\s'\"]*@", "://***@", text)
    return re.sub(QUERY, r"\1***", text)


def _secrets() -> Iterator[str]:
    """The secrets as the environment has them, and as libraries print them: percent-decoded and percent-encoded."""
    for name, value in os.environ.items():
        for secret in _secrets_of(name, value):
            yield from (form for form in (secret, unquote(secret), quote(secret, safe="")) if len(form) >= SHORTEST)


def _secrets_of(name: str, value: str) -> Iterator[str]:
    """The value, if the variable's name says that it is a secret; from a URI, its user part and secrets in its query.

    By regular expressions, since passwords may contain characters that a URI parser refuses (quotes, spaces, @).
    """
    if re.fullmatch(SECRET, name, re.IGNORECASE):
        yield value
    if before_host := re.match(r"[\w+.-]+:/+(.*)@|([^\s/:]+:.*)@", value):
        user = before_host[1] or before_host[2] or ""
        yield from (user, user.partition(":")[2])
    yield from (found[2] for found in re.finditer(QUERY, value))
