"""The time that records, journals and rules state, in one form."""

from datetime import UTC, datetime


def now() -> str:
    """The current time in UTC, to the second, such as 2026-11-22T14:05:09Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
