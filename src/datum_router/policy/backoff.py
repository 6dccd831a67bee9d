"""Backoff with full jitter: a random wait between nothing and an exponentially growing bound.

Full jitter spreads clients that failed together over the whole interval, so that retries do not come in waves.
"""

from __future__ import annotations

import random

MAX_EXPONENT = 32
"""Doublings that are counted; far beyond any real bound, keeps the arithmetic finite."""


def ceiling(attempt: int, *, initial_s: float, max_s: float) -> float:
    """Return the bound of the wait after attempt `attempt` (1 = the first): initial * 2 ** (attempt - 1), capped."""
    exponent = min(max(attempt, 1) - 1, MAX_EXPONENT)
    return max(0.0, min(max_s, initial_s * float(2**exponent)))


def full_jitter(attempt: int, *, initial_s: float, max_s: float, rng: random.Random) -> float:
    """Return the wait in seconds after attempt number `attempt`, uniform in [0, ceiling)."""
    return rng.random() * ceiling(attempt, initial_s=initial_s, max_s=max_s)
