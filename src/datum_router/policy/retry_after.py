"""How long an upstream asks to be left alone: `Retry-After` (RFC 9110 section 10.2.3), and gRPC's pushback.

A date is read relative to the response's own Date: so no clock is asked, and one that is wrong does no harm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final

_SECONDS: Final = re.compile(rb"[0-9]{1,9}")
"""delay-seconds; a longer one means nothing."""
_PUSHBACK: Final = re.compile(rb"[0-9]{1,10}")
"""`grpc-retry-pushback-ms`, a number of 32 bits (gRPC proposal A6)."""

_MONTHS: Final = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_IMF_FIXDATE: Final = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)


def retry_after_s(fields: Iterable[tuple[bytes, bytes]], *, is_grpc: bool = False) -> float | None:
    """Return the seconds to wait that a response head asks for; None if it asks for nothing that can be understood.

    Args:
        fields: Lower-case names.
        is_grpc: `grpc-retry-pushback-ms` counts, and comes first. Anything in it but a number from 0 means that there
            is to be no retry at all: infinity.
    """
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in (b"retry-after", b"date", b"grpc-retry-pushback-ms"):
            found.setdefault(name, value.strip(b" \t"))
    if is_grpc and (pushback := found.get(b"grpc-retry-pushback-ms")) is not None:
        return int(pushback) / 1000 if _PUSHBACK.fullmatch(pushback) else math.inf
    asked = found.get(b"retry-after")
    if asked is None:
        return None
    if _SECONDS.fullmatch(asked):
        return float(asked)
    until, now = _date(asked), _date(found.get(b"date", b""))
    return None if until is None or now is None else max(0.0, (until - now).total_seconds())


def _date(value: bytes) -> datetime | None:
    """Return an IMF-fixdate (RFC 9110 section 5.6.7), None if it is none.

    `email.utils` would do it as well, and would cost every worker 0.6 MB with all that it imports.
    """
    match = _IMF_FIXDATE.fullmatch(value)
    if match is None:
        return None
    day, month, year, hour, minute, second = match.groups()
    try:
        return datetime(  # both dates are GMT, and only their difference counts
            int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), min(59, int(second))
        )
    except ValueError:
        return None
