"""How short of memory the process is, and what follows from it: decisions only (threat E8).

`MemoryGauge` (module `memory`) measures, the data plane acts:

- SHED, from 95 % of the limit: answers say that they are the last of their connection (`Connection: close`, GOAWAY),
  caches and idle upstream connections are given up.
- REFUSE, from 98 %: new requests are answered 503 with Retry-After, too.

A level is left only `RELEASE` below where it began: what it sheds would otherwise bring it back at once.
"""

from __future__ import annotations

import enum
import math

SHED_AT = 0.95
REFUSE_AT = 0.98
RELEASE = 0.01
"""Shares of the limit (Envoy's overload manager, edge guide)."""
LAG_WINDOW_S = 10.0
"""A worst value is remembered for one to two such windows: longer than it takes to collect it."""


class Pressure(enum.IntEnum):
    """How short of memory the process is."""

    NONE = 0
    SHED = 1
    REFUSE = 2


def pressure(used: int, limit: int, before: Pressure) -> Pressure:
    """Return the level for `used` of `limit` bytes (0 = no limit), after `before`."""
    if limit <= 0:
        return Pressure.NONE
    share = used / limit
    for level, begins_at in ((Pressure.REFUSE, REFUSE_AT), (Pressure.SHED, SHED_AT)):
        if share >= begins_at - (RELEASE if before >= level else 0.0):
            return level
    return Pressure.NONE


class RecentWorst:
    """The highest value noted within the last one to two windows: a gauge that no collector misses (threat E10)."""

    __slots__ = ("_before", "_ends_at", "_now")

    def __init__(self) -> None:
        self._before = 0.0
        self._now = 0.0
        self._ends_at = -math.inf

    def note(self, value: float, now: float) -> None:
        """Take a value of the moment `now` (monotonic seconds)."""
        self._turn(now)
        self._now = max(self._now, value)

    def worst(self, now: float) -> float:
        """Return the highest value, 0 if there was none."""
        self._turn(now)
        return max(self._now, self._before)

    def _turn(self, now: float) -> None:
        if now < self._ends_at:
            return
        self._before = self._now if now < self._ends_at + LAG_WINDOW_S else 0.0
        self._now = 0.0
        self._ends_at = now + LAG_WINDOW_S
