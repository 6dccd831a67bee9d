"""A circuit breaker over everything that a service, or a route, is asked: opened by failures in a row.

It stands beside the breakers of single endpoints (`health.outlier`), which take out what fails and leave the rest: this
one is for a service that fails as a whole, so that neither it nor its clients spend time on what cannot succeed.

    state      event                                    next
    CLOSED     `failure_threshold` failures in a row    OPEN for `open_s`
    OPEN       a request, once that time is over        HALF_OPEN; the request is its trial
    HALF_OPEN  a trial succeeds                         HALF_OPEN; CLOSED after `success_threshold` in a row
    HALF_OPEN  a trial fails                            OPEN for `open_s`

While it is half-open one trial is under way at a time; everybody else is refused. A trial that says nothing (the client
left, a limit of ours) lets the next request try; so does one that has not ended in `open_s`, since it may be waiting
for its own client: whoever sends slowly must not keep everybody else out. An attempt is judged by its response head:
5xx, or none, is a failure. Attempts that began before the last change of state say nothing about the state that is on,
and are not counted.

Each process has a breaker of its own. Time moves when requests ask: a failure is dated by the last one that did.
"""

from __future__ import annotations

import math

from datum_router.health.circuit import ServiceLimits
from datum_router.health.outlier import BreakerState
from datum_router.model.limits import BreakerPolicy, CircuitPolicy
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import RETRY_BUDGET_PERCENT, ConnectionLimits
from datum_router.model.request import LocalReply
from datum_router.reasons import Reason

HALF_OPEN_RETRY_S = 1.0
"""When to come again if a trial is under way: it is not known how long it takes."""


class Breaker:
    """See the module. Single-threaded; `now` is monotonic seconds.

    Attributes:
        refused: Requests that were refused.
    """

    __slots__ = (
        "_failures",
        "_is_trying",
        "_now",
        "_open_until",
        "_policy",
        "_state",
        "_successes",
        "_trial_until",
        "_turn",
        "refused",
    )

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._state = BreakerState.CLOSED
        self._turn = 0  # counts changes of state
        self._failures = 0
        self._successes = 0
        self._open_until = 0.0
        self._is_trying = False
        self._trial_until = 0.0
        self._now = 0.0
        self.refused = 0

    @property
    def state(self) -> BreakerState:
        """Return the state; an open one stays so until the next request asks."""
        return self._state

    def update(self, policy: BreakerPolicy) -> None:
        """Take new settings; they rule the next decision, an open breaker keeps its end."""
        self._policy = policy

    def admit(self, now: float) -> int | None:
        """Let an attempt begin; return its turn, which `settle` wants back, or None if it is refused."""
        self._now = max(self._now, now)
        if self._state is BreakerState.CLOSED:
            return self._turn
        if self._state is BreakerState.OPEN and now >= self._open_until:
            self._enter(BreakerState.HALF_OPEN)
        if self._state is BreakerState.HALF_OPEN and not (self._is_trying and now < self._trial_until):
            self._is_trying = True
            self._trial_until = now + self._policy.open_s
            return self._turn
        self.refused += 1
        return None

    def retry_after_s(self, now: float) -> float:
        """Return when an attempt could be let through; 0 if one would be now."""
        if self._state is BreakerState.OPEN:
            return max(0.0, self._open_until - now)
        is_taken = self._is_trying and now < self._trial_until
        return HALF_OPEN_RETRY_S if self._state is BreakerState.HALF_OPEN and is_taken else 0.0

    def settle(self, turn: int, kind: OutcomeClass | None) -> None:
        """Take how an attempt of a turn ended, None if it says nothing; once for each attempt that was let begin."""
        if turn != self._turn:
            return
        is_failure = kind is not None and kind is not OutcomeClass.SUCCESS
        if self._state is BreakerState.HALF_OPEN:
            self._is_trying = False
            if is_failure:
                self._enter(BreakerState.OPEN)
            elif kind is OutcomeClass.SUCCESS:
                self._successes += 1
                if self._successes >= self._policy.success_threshold:
                    self._enter(BreakerState.CLOSED)
        elif kind is OutcomeClass.SUCCESS:
            self._failures = 0
        elif is_failure:
            self._failures += 1
            if self._failures >= self._policy.failure_threshold:
                self._enter(BreakerState.OPEN)

    def _enter(self, state: BreakerState) -> None:
        self._state = state
        self._turn += 1
        self._failures = self._successes = 0
        self._is_trying = False
        if state is BreakerState.OPEN:
            self._open_until = self._now + self._policy.open_s


class Ticket:
    """What one attempt owes to breakers and permits; `settle` tells the former once, `end` gives the latter back."""

    __slots__ = ("_breakers", "_is_retry", "_is_settled", "_permits")

    def __init__(self, *, is_retry: bool) -> None:
        self._breakers: list[tuple[Breaker, int]] = []
        self._permits: ServiceLimits | None = None
        self._is_retry = is_retry
        self._is_settled = False

    def owe(self, breaker: Breaker, turn: int, permits: ServiceLimits | None = None) -> None:
        """Note a breaker that has let the attempt begin in a turn, and where its permit is to be given back, if any."""
        self._breakers.append((breaker, turn))
        self._permits = permits or self._permits

    def settle(self, kind: OutcomeClass | None) -> None:
        """Tell how the attempt ended; further calls do nothing."""
        if self._is_settled:
            return
        self._is_settled = True
        for breaker, turn in self._breakers:
            breaker.settle(turn, kind)

    def end(self) -> None:
        """Give everything back; to be called once."""
        self.settle(None)
        if self._permits is not None:
            self._permits.release_request(is_retry=self._is_retry)


def describe_circuit(what: str, limits: ConnectionLimits, breaker: BreakerPolicy) -> str:
    """Return a circuit breaker in words, for `explain`."""
    held = [f"{limits.max_parallel_requests} requests", f"{limits.max_parallel_retries} retries"]
    if what != "route":
        held += [f"{limits.max_connections} connections", f"{limits.max_pending_requests} that wait for one"]
    return (
        f"circuit breaker of the {what}: at once {', '.join(held)}; open for {breaker.open_s:g} s after "
        f"{breaker.failure_threshold} failures in a row, then closed by {breaker.success_threshold} successes; else 503"
    )


class RouteCircuit:
    """What a route may ask at once, and its breaker: one for all of its rules, over all versions of the route."""

    __slots__ = ("__weakref__", "breaker", "limits", "route")

    def __init__(self, route: str, policy: CircuitPolicy) -> None:
        self.route = route
        self.limits = ServiceLimits(policy.limits)
        self.breaker = Breaker(policy.breaker)

    def update(self, policy: CircuitPolicy) -> None:
        """Take new settings; what is under way stays."""
        self.limits.update(policy.limits)
        self.breaker.update(policy.breaker)

    def acquire(self, now: float, *, is_retry: bool, budget_percent: int = RETRY_BUDGET_PERCENT) -> int | Reason:
        """Begin an attempt; return its turn at the breaker, or why it is refused."""
        refused = self.limits.acquire_request(is_retry=is_retry, budget_percent=budget_percent)
        if refused is not None:
            return refused
        turn = self.breaker.admit(now)
        if turn is None:
            self.limits.release_request(is_retry=is_retry)
            return Reason.CIRCUIT_TRIPPED
        return turn

    def give_back(self, turn: int, *, is_retry: bool) -> None:
        """End an attempt that came to nothing."""
        self.breaker.settle(turn, None)
        self.limits.release_request(is_retry=is_retry)


def tripped(breaker: Breaker, what: str, now: float) -> LocalReply:
    """Return the reply while a circuit breaker is open."""
    return LocalReply(
        status=503,
        reason=Reason.CIRCUIT_TRIPPED,
        detail=f"the {what} has failed too often in a row and is not asked for a while",
        headers=((b"retry-after", b"%d" % max(1, math.ceil(breaker.retry_after_s(now)))),),
    )
