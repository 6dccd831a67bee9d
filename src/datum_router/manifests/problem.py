"""A finding of a validator, before it knows which object and which file it is about."""

from __future__ import annotations

import msgspec

from datum_router.compiler.diagnostics import Severity
from datum_router.reasons import Reason

MAX_SHOWN_CHARS = 80
"""Values in messages are cut to this length: a message is for people and must stay bounded."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong at a JSON path: see `Diagnostic` for the fields."""

    path: str
    reason: Reason
    message: str
    hint: str = ""
    severity: Severity = Severity.ERROR


def shown(value: object) -> str:
    """Return a value as messages show it: escaped, and cut to `MAX_SHOWN_CHARS`."""
    text = ascii(value) if not isinstance(value, str) else repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
