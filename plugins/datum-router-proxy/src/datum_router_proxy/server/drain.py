"""The graceful end as a timetable: which phase it is, given when it began (threats P3, P4, P9)."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

NEWCOMER_S: Final = 1.0
"""Time (seconds) that a client which has just connected, handshake included, has for its first byte while idle
connections are closed: it has been told nothing yet, and its request is likely to be on its way."""


class Phase(enum.IntEnum):
    """What the data plane does.

    SERVING: everything. LAMEDUCK: accepts and serves on, but says in every answer that it is the last one
    (`Connection: close`, GOAWAY), so that clients and balancers go elsewhere. FINISHING: accepts nothing new, closes
    idle connections, begins the closing handshake of WebSockets, finishes what is under way. CUTTING: resets the rest.
    """

    SERVING = 0
    LAMEDUCK = 1
    FINISHING = 2
    CUTTING = 3


class DrainPlan(msgspec.Struct, frozen=True, kw_only=True):
    """When a drain began (CLOCK_MONOTONIC seconds) and how long its phases last (seconds)."""

    began_at: float
    lameduck_s: float
    grace_s: float

    def phase(self, now: float) -> Phase:
        """Return the phase at `now`; phases follow each other and never come back."""
        age = now - self.began_at
        if age < self.lameduck_s:
            return Phase.LAMEDUCK
        return Phase.FINISHING if age < self.lameduck_s + self.grace_s else Phase.CUTTING
