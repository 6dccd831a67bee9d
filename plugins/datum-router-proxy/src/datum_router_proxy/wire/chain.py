"""What gateways in a chain tell each other about one request: the time left, how often it was tried, and who retries.

Names are those of the field where it has some: `x-envoy-expected-rq-timeout-ms` and `x-envoy-attempt-count` are of
Envoy; meshes and libraries know them. A time is relative, so that clocks need not agree (gRPC does the same). Both are
read from trusted peers only, and never passed on: what goes upstream is what holds for the next hop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

Field = tuple[bytes, bytes]

TIMEOUT: Final = b"x-envoy-expected-rq-timeout-ms"
"""Request field: milliseconds that are left for it."""
ATTEMPT: Final = b"x-envoy-attempt-count"
"""Request field: which try of the request this is, from 2; a first try has none."""
SETTLED: Final = (b"x-datum-retry", b"settled")
"""Response field: what a retry can do for the request has been done, nearer to the failure; do not try it again."""

_TIMEOUT_VALUE: Final = re.compile(rb"[0-9]{1,10}")
_ATTEMPT_VALUE: Final = re.compile(rb"[0-9]{1,4}")
MAX_ATTEMPT: Final = 9_999
"""Tries are counted no further."""


def timeout_s(value: bytes) -> float | None:
    """Return the seconds that a peer says are left; None if it says nothing that can be understood, or 0."""
    return int(value) / 1000 or None if _TIMEOUT_VALUE.fullmatch(value) else None


def attempt(value: bytes) -> int:
    """Return which try a peer says this is: 1 if it is the first, or if it says nothing that can be understood."""
    return max(1, int(value)) if _ATTEMPT_VALUE.fullmatch(value) else 1


def timeout_field(seconds: float) -> Field:
    """Return the field for the time left, at least a millisecond: 0 would mean that there is no limit."""
    return TIMEOUT, b"%d" % max(1, int(seconds * 1000))


def attempt_field(number: int) -> Field:
    """Return the field for try `number`."""
    return ATTEMPT, b"%d" % min(number, MAX_ATTEMPT)


def is_settled(fields: Iterable[Field]) -> bool:
    """Tell whether a response says that its request is not to be tried again."""
    return SETTLED in fields
