"""Permits: how much a service may be asked to do at once, and how many of that may be retries."""

from __future__ import annotations

from datum_router.model.policy import ConnectionLimits
from datum_router.reasons import Reason

RETRY_BUDGET = 0.2
"""Retries under way, as a share of requests under way."""

MIN_RETRIES = 3
"""Retries that may always be under way, so that a quiet service can retry at all."""


class ServiceLimits:
    """Counters of one service in one serving process."""

    __slots__ = ("_limits", "connections", "pending", "requests", "retries")

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self._limits = limits or ConnectionLimits()
        self.requests = 0
        self.retries = 0
        self.connections = 0
        self.pending = 0

    def update(self, limits: ConnectionLimits) -> None:
        """Take new limits; what is under way stays under way."""
        self._limits = limits

    def acquire_request(self, *, is_retry: bool = False) -> Reason | None:
        """Take a permit; return why not, None if it was granted."""
        if self.requests >= self._limits.max_parallel_requests:
            return Reason.CIRCUIT_OPEN
        if is_retry:
            if self.retries >= self.retry_limit:
                return Reason.CIRCUIT_OPEN
            self.retries += 1
        self.requests += 1
        return None

    def release_request(self, *, is_retry: bool = False) -> None:
        """Give a permit back."""
        assert self.requests > 0, "a request permit was given back twice"
        self.requests -= 1
        if is_retry:
            self.retries -= 1

    @property
    def retry_limit(self) -> int:
        """Return how many retries may be under way now: the budget, at least the minimum."""
        return max(MIN_RETRIES, self._limits.max_parallel_retries, int(self.requests * RETRY_BUDGET))
