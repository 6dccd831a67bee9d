"""Full-jitter exponential backoff (Brooker 2015): uniform between 0 and the doubled bound."""

from __future__ import annotations

import random


def backoff_s(rng: random.Random, *, attempt: int, initial_s: float, max_s: float) -> float:
    """Return how long to wait before the attempt after `attempt` (1 = the first)."""
    bound: float = min(max_s, initial_s * 2 ** min(attempt - 1, 32))
    return rng.random() * bound
