"""A token bucket: how many writes may go out now. Pure; who waits, waits elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from datum_router.errors import ConfigError
from datum_router.reasons import Reason

WRITE_QPS = 100.0
"""Writes per second, on average, leases aside."""
WRITE_BURST = 200
"""Writes that may go out at once after a quiet time."""

MOST_WRITES = 100_000
"""What either setting may be at most."""

N = TypeVar("N", int, float)


class TokenBucket:
    """Hold `burst` tokens at first and at most; get `rate` of them back a second."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, *, rate: float, burst: int, now: float) -> None:
        """Make a full bucket; `rate` > 0 per second, `burst` >= 1."""
        assert rate > 0, rate
        assert burst >= 1, burst
        self._rate = rate
        self._burst = float(burst)
        self._tokens = self._burst
        self._at = now

    def take(self, now: float) -> float:
        """Take a token and return 0; if there is none, take nothing and return the seconds until there is one."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now  # also if it is earlier: each run of an event loop has a clock of its own
        # A wait of what is returned must suffice, though floats round.
        if self._tokens >= 1.0 - 1e-9:
            self._tokens = max(0.0, self._tokens - 1.0)
            return 0.0
        return (1.0 - self._tokens) / self._rate


class WriteLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How often a process may write to the API; leases are written beside it.

    Attributes:
        qps: Writes per second on average, setting `writeQps`.
        burst: Writes at once after a quiet time, setting `writeBurst`.
    """

    qps: float = WRITE_QPS
    burst: int = WRITE_BURST


def write_limits(settings: Mapping[str, str]) -> WriteLimits:
    """Return the limits that settings `writeQps` and `writeBurst` give; others are not looked at.

    Raises:
        ConfigError: One is not a number of the right size.
    """
    return WriteLimits(
        qps=_number(settings, "writeQps", WRITE_QPS, float, least=0.01),
        burst=_number(settings, "writeBurst", WRITE_BURST, int, least=1),
    )


def _number(settings: Mapping[str, str], name: str, default: N, kind: Callable[[str], N], *, least: N) -> N:
    text = settings.get(name, "")
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= MOST_WRITES:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(
            f"setting {name}: found {text[:80]!r}, expected {what} from {least} to {MOST_WRITES}",
            reason=Reason.INVALID_VALUE,
        )
    return value
