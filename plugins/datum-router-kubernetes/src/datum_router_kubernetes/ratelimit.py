"""How many writes may go out: the settings of the token bucket (`datum_router.policy.bucket`) that they wait for."""

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
