"""A token bucket: so many at once, and so many a second. Pure: the clock is an argument."""

from __future__ import annotations


class TokenBucket:
    """Begins full.

    Args:
        rate: Tokens that come back each second, above 0.
        burst: Tokens that it holds, at least 1.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: int, *, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Take one token if there is one; `now` is monotonic seconds."""
        self._tokens = min(float(self.burst), self._tokens + max(0.0, now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
