"""When which fault is due: drawn from the seed, in an order that leaves the second half to the memory samples."""

from __future__ import annotations

import random

import msgspec

from datum_soak.faults import EXHAUSTED, IDLE_RESTART, KILL, ROLLING
from datum_soak.slow import SLOW

SHARES = ((KILL, 0.05), (ROLLING, 0.12), (SLOW, 0.24), (EXHAUSTED, 0.42))
"""Fault and share of the soak's length after which it is due. Those that replace workers come first."""
STEADY_SHARE = 0.5
"""From here on only edits, endpoint churn, cut bodies and restarts of idle upstreams: memory is judged here."""
JITTER_SHARE = 0.02
IDLE_RESTARTS = 8


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One fault and when it is due, in seconds since the soak began."""

    at_s: float
    name: str


def plan(seconds: float, seed: int) -> list[Planned]:
    """Return all faults in order of time; equal arguments give equal plans."""
    chooser = random.Random(seed)
    shares = [(name, share + chooser.uniform(-JITTER_SHARE, JITTER_SHARE)) for name, share in SHARES]
    shares += [(IDLE_RESTART, (number + chooser.uniform(0.1, 0.9)) / IDLE_RESTARTS) for number in range(IDLE_RESTARTS)]
    return sorted((Planned(at_s=round(share * seconds, 1), name=name) for name, share in shares), key=_at)


def _at(planned: Planned) -> float:
    return planned.at_s
