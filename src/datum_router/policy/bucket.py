"""The token bucket: how much may happen at once, and how much a second in the long run. The only one there is.

Theory of operation. A bucket holds `burst` tokens at most and gets one back every `period_s`. What is kept of it is its
*debt*: the seconds until it is full again, which is 0 for a bucket that nobody has taken from for long. A token may be
taken as long as the debt that it would leave is worth no more than `burst` tokens (GCRA, ITU-T I.371, says the same in
other words). So a bucket is one number, a full one is as good as a forgotten one, and no number grows with time.
"""

from __future__ import annotations

import math

EPSILON_S = 1e-10
"""Seconds by which a token may come too early: a wait of what is returned must suffice, though floats round."""


def draw(debt_s: float, *, burst: int, period_s: float) -> tuple[float, float]:
    """Take a token out of a bucket; return its debt from now on, and 0.

    If there is no token the debt stays as it is, and the second number is the seconds until there is one.

    Args:
        debt_s: Seconds until the bucket is full, 0 or more.
        burst: Tokens that it holds, 1 or more.
        period_s: Seconds in which it gets one back, above 0.
    """
    wait_s = debt_s - (burst - 1) * period_s
    if wait_s > EPSILON_S:
        return debt_s, wait_s
    return debt_s + period_s, 0.0


def tokens_left(debt_s: float, *, burst: int, period_s: float) -> int:
    """Return how many tokens could be taken at once."""
    return max(0, math.floor(burst - (debt_s - EPSILON_S) / period_s))


class TokenBucket:
    """A bucket that is full at first. Time comes in as monotonic seconds; a clock that steps back refills nothing.

    Attributes:
        debt_s: As of the last call, 0 if it is full; read-only.
    """

    __slots__ = ("_at", "_burst", "_period_s", "debt_s")

    def __init__(self, *, rate: float, burst: int) -> None:
        """Make a full bucket; `rate` > 0 tokens a second, `burst` >= 1."""
        assert rate > 0, rate
        assert burst >= 1, burst
        self._burst = burst
        self._period_s = 1.0 / rate
        self.debt_s = 0.0
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take a token and return 0; if there is none, take nothing and return the seconds until there is one."""
        if now > self._at:
            self.debt_s = max(0.0, self.debt_s - (now - self._at))
        self._at = now  # also if it is earlier: each run of an event loop has a clock of its own
        self.debt_s, wait_s = draw(self.debt_s, burst=self._burst, period_s=self._period_s)
        return wait_s

    def give_back(self) -> None:
        """Put a token back; one that is too many is lost."""
        self.debt_s = max(0.0, self.debt_s - self._period_s)
