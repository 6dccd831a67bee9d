"""Permits: how much may be under way at one service in one process, so that a slow service fails fast.

Counters only; whoever acquires must release exactly once. Retries are limited by a budget: at most a share of the
*first tries* in flight (`RETRY_BUDGET_PERCENT`), so that an upstream where everything fails gets at most 1.2 times the
requests that came. A retry counts from its decision on, while it waits for its turn, and has its place then though the
first tries that made room for it may have ended: nobody waits for a permit that is gone by then. `max_parallel_retries`
may always run, so that a small service can retry at all. 0 retries mean none whatever the budget says. Hedges are
retries here: they cost an upstream the same.
"""

from __future__ import annotations

from datum_router.model.policy import RETRY_BUDGET_PERCENT, ConnectionLimits
from datum_router.reasons import Reason


def share(limits: ConnectionLimits, workers: int) -> ConnectionLimits:
    """Return the part of limits that is one worker's, rounded up: 0 stays 0, anything else is 1 at least."""
    if not limits.is_for_all or workers == 1:
        return limits
    return ConnectionLimits(
        max_connections=-(-limits.max_connections // workers),
        max_pending_requests=-(-limits.max_pending_requests // workers),
        max_parallel_requests=-(-limits.max_parallel_requests // workers),
        max_parallel_retries=-(-limits.max_parallel_retries // workers),
        is_for_all=True,
    )


class ServiceLimits:
    """Permits of one service in one process. Single-threaded.

    Attributes:
        requests: In flight, retries included.
        retries, pending, connections: Under way now.
        waiting_retries: Retries that are decided and wait for their backoff to pass.
        due_retries: Those whose wait is over, and that are about to be acquired.
        refused: How many permits were refused since the start.
        refused_requests, refused_retries: The same since telemetry has last set them back, by what was asked for.
    """

    __slots__ = (
        "_limits",
        "connections",
        "due_retries",
        "pending",
        "refused",
        "refused_requests",
        "refused_retries",
        "requests",
        "retries",
        "waiting_retries",
    )

    def __init__(self, limits: ConnectionLimits = ConnectionLimits()) -> None:
        self._limits = limits
        self.requests = 0
        self.retries = 0
        self.waiting_retries = 0
        self.due_retries = 0
        self.pending = 0
        self.connections = 0
        self.refused = 0
        self.refused_requests = 0
        self.refused_retries = 0

    @property
    def limits(self) -> ConnectionLimits:
        """Return the limits in force."""
        return self._limits

    def update(self, limits: ConnectionLimits) -> None:
        """Take new limits; what is under way stays, also above a lower limit."""
        self._limits = limits

    @property
    def is_full(self) -> bool:
        """Tell whether another request would be refused."""
        return self.requests >= self._limits.max_parallel_requests

    def has_retry_budget(self, percent: int = RETRY_BUDGET_PERCENT) -> bool:
        """Tell whether one more retry may start now, with retries up to `percent` of the first tries in flight."""
        least = self._limits.max_parallel_retries
        begun = self.retries + self.waiting_retries
        return least > 0 and begun < max(least, (self.requests - self.retries) * percent // 100)

    def hold_retry(self) -> None:
        """Keep a place in the budget for a retry that is decided; the caller has asked `has_retry_budget`."""
        self.waiting_retries += 1

    def let_go_retry(self) -> None:
        """Give the place back: the retry does not begin."""
        assert self.waiting_retries > 0, "retry let go that was not held"
        self.waiting_retries -= 1

    def begin_retry(self) -> None:
        """Let the retry that `acquire_request` is asked for next have the place; the caller says `end_turn` after."""
        self.let_go_retry()
        self.due_retries += 1

    def end_turn(self) -> None:
        """Give the place back that nobody has taken: the retry goes elsewhere, or was refused for another reason."""
        self.due_retries = 0

    def acquire_request(self, *, is_retry: bool = False, budget_percent: int = RETRY_BUDGET_PERCENT) -> Reason | None:
        """Begin a request (one attempt); return why it is refused, None if it may go."""
        if self.requests >= self._limits.max_parallel_requests:
            self.refused += 1
            self.refused_requests += 1
            return Reason.CIRCUIT_OPEN
        if is_retry:
            if self.due_retries:
                self.due_retries -= 1
            elif not self.has_retry_budget(budget_percent):
                self.refused += 1
                self.refused_retries += 1
                return Reason.CIRCUIT_OPEN
            self.retries += 1
        self.requests += 1
        return None

    def release_request(self, *, is_retry: bool = False) -> None:
        """End a request that was acquired with the same `is_retry`."""
        assert self.requests > 0, "request released that was not acquired"
        self.requests -= 1
        if is_retry:
            assert self.retries > 0, "retry released that was not acquired"
            self.retries -= 1

    def acquire_pending(self) -> Reason | None:
        """Begin to wait for a connection; return why that is refused, None if it may wait."""
        if self.pending >= self._limits.max_pending_requests:
            self.refused += 1
            return Reason.POOL_OVERFLOW
        self.pending += 1
        return None

    def release_pending(self) -> None:
        """End a wait."""
        assert self.pending > 0, "pending request released that was not acquired"
        self.pending -= 1

    def acquire_connection(self) -> Reason | None:
        """Open a connection; return why that is refused, None if it may be opened."""
        if self.connections >= self._limits.max_connections:
            self.refused += 1
            return Reason.POOL_OVERFLOW
        self.connections += 1
        return None

    def release_connection(self) -> None:
        """Forget a connection that is closed."""
        assert self.connections > 0, "connection released that was not acquired"
        self.connections -= 1
