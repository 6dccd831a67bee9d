"""Passive ejection: endpoints whose real answers fail are taken out for a while (Envoy outlier detection).

Two detectors count failures in a row: any 5xx, and gateway errors alone (502, 503, 504 and failures seen by us). A
success clears both; a plain 500 clears only the second.

Each endpoint has a circuit breaker (as in linkerd's `consecutive_failures`; Envoy lets everything in again at once):

    state      event                    next       what happens
    CLOSED     a detector fires         OPEN       ejected for base * 2 ** (times ejected - 1), up to a maximum
    OPEN       its time is over         HALF_OPEN  gets the number of its trial
    HALF_OPEN  the trial passed         CLOSED     back whole
    HALF_OPEN  the trial failed         OPEN       ejected once more, for twice as long
    not CLOSED released (by a probe)    CLOSED

Ejections are up to `JITTER` shorter than that, so that endpoints that failed together are not tried together. For
every `interval_s` that the endpoint stays in after its return one ejection is forgotten. Only verdicts with the number
of the trial that is on decide: requests that were under way when the endpoint was ejected are not counted.

Never more than `max_ejection_percent` of a service's endpoints are out at once, though one always may be, unless the
share is 0. A detector that fires while there is no room keeps its count: the next failure tries again. Half-open
endpoints are still out.

Outcomes come as run-length batches, in order for each worker; "in a row" across workers means in order of arrival.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Iterable, Iterator

from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import OutlierPolicy
from datum_router.policy.backoff import ceiling

JITTER = 0.1
"""Share of an ejection's length that is left to chance."""


class Detector(enum.StrEnum):
    """What ejected an endpoint."""

    CONSECUTIVE_5XX = "consecutive_5xx"
    CONSECUTIVE_GATEWAY_ERRORS = "consecutive_gateway_errors"


class BreakerState(enum.StrEnum):
    """State of an endpoint's circuit breaker: closed lets requests through, open none, half-open trials."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class OutlierState:
    """One endpoint's breaker and counters.

    Attributes:
        ejected_by: Which detector opened it; None while it is closed.
        ejected_until: Monotonic seconds; None unless it is open.
        trial: Number of the trial that is on; 0 unless it is half-open.
    """

    __slots__ = (
        "breaker",
        "ejected_by",
        "ejected_until",
        "failures",
        "gateway_failures",
        "returned_at",
        "times_ejected",
        "trial",
    )

    def __init__(self) -> None:
        self.breaker = BreakerState.CLOSED
        self.ejected_by: Detector | None = None
        self.trial = 0
        self.failures = 0
        self.gateway_failures = 0
        self.times_ejected = 0
        self.ejected_until: float | None = None
        self.returned_at = 0.0


class OutlierDetector:
    """Decide ejections for one service. Single-threaded."""

    __slots__ = ("_numbers", "_policy", "_rng", "_states")

    def __init__(self, policy: OutlierPolicy, *, rng: random.Random, numbers: Iterator[int]) -> None:
        """Begin without endpoints.

        Args:
            numbers: Gives each trial a number (1 or more) that no other trial ever has, of whatever service.
        """
        self._policy = policy
        self._rng = rng
        self._numbers = numbers
        self._states: dict[EndpointKey, OutlierState] = {}

    @property
    def ejected(self) -> int:
        """Return how many endpoints are out, half-open ones included."""
        return sum(state.breaker is not BreakerState.CLOSED for state in self._states.values())

    def capacity(self) -> int:
        """Return how many endpoints may be out at once: the policy's share, but at least one unless that is 0."""
        percent = self._policy.max_ejection_percent
        return max(1, len(self._states) * percent // 100) if percent else 0

    def state(self, key: EndpointKey) -> OutlierState | None:
        """Return the live counters of an endpoint, read only."""
        return self._states.get(key)

    def is_ejected(self, key: EndpointKey) -> bool:
        """Tell whether an endpoint is out, which a half-open one is."""
        state = self._states.get(key)
        return state is not None and state.breaker is not BreakerState.CLOSED

    def set_policy(self, policy: OutlierPolicy) -> None:
        """Take new settings; they rule the next decision, running ejections keep their end."""
        self._policy = policy

    def set_endpoints(self, keys: Iterable[EndpointKey]) -> None:
        """Take the service's endpoints. Those that are gone are forgotten.

        With fewer endpoints the share may be exceeded until ejections end; none is ended early for it.
        """
        self._states = {key: self._states.get(key) or OutlierState() for key in keys}

    def record(self, key: EndpointKey, runs: Iterable[tuple[OutcomeClass, int]], *, now: float) -> Detector | None:
        """Count outcomes in order; return what ejected the endpoint, None if it was not ejected by them.

        O(number of runs), whatever their lengths. Unknown endpoints are ignored.
        """
        state = self._states.get(key)
        if state is None:
            return None
        for kind, count in runs:
            if state.breaker is not BreakerState.CLOSED or count <= 0:
                continue
            if kind is OutcomeClass.SUCCESS:
                state.failures = state.gateway_failures = 0
                continue
            state.failures += count
            state.gateway_failures = state.gateway_failures + count if kind is OutcomeClass.GATEWAY_ERROR else 0
            detector = self._fired(state)
            if detector is not None and self.ejected < self.capacity():
                self._forget_ejections(state, now)
                self._open(state, detector, now)
                return detector
        return None

    def half_open_due(self, now: float) -> list[EndpointKey]:
        """Half-open the breakers whose time is over, and return their endpoints."""
        due: list[EndpointKey] = []
        for key, state in self._states.items():
            if state.ejected_until is not None and state.ejected_until <= now:
                state.breaker = BreakerState.HALF_OPEN
                state.ejected_until = None
                state.trial = next(self._numbers)
                due.append(key)
        return due

    def record_trial(self, key: EndpointKey, number: int, *, is_ok: bool, now: float) -> bool:
        """Take the verdict of a trial; tell whether it counted, which only the first of each number does."""
        state = self._states.get(key)
        if state is None or state.breaker is not BreakerState.HALF_OPEN or state.trial != number:
            return False
        if is_ok:
            self._close(state, now)
        else:
            self._open(state, state.ejected_by, now)
        return True

    def release(self, key: EndpointKey, *, now: float) -> bool:
        """Let one endpoint back in, whole, before its time; tell whether it was out."""
        state = self._states.get(key)
        if state is None or state.breaker is BreakerState.CLOSED:
            return False
        self._close(state, now)
        return True

    def next_half_open(self) -> float | None:
        """Return when the next breaker half-opens, in monotonic seconds; None if none is open."""
        return min((s.ejected_until for s in self._states.values() if s.ejected_until is not None), default=None)

    def _fired(self, state: OutlierState) -> Detector | None:
        policy = self._policy
        if 0 < policy.consecutive_gateway_errors <= state.gateway_failures:
            return Detector.CONSECUTIVE_GATEWAY_ERRORS
        if 0 < policy.consecutive_5xx <= state.failures:
            return Detector.CONSECUTIVE_5XX
        return None

    def _forget_ejections(self, state: OutlierState, now: float) -> None:
        interval_s = self._policy.interval_s
        if state.times_ejected and interval_s > 0:
            forgotten = math.floor(max(0.0, now - state.returned_at) / interval_s)
            state.times_ejected = max(0, state.times_ejected - forgotten)

    def _open(self, state: OutlierState, detector: Detector | None, now: float) -> None:
        policy = self._policy
        state.times_ejected += 1
        longest = max(policy.base_ejection_time_s, policy.max_ejection_time_s)
        length = ceiling(state.times_ejected, initial_s=policy.base_ejection_time_s, max_s=longest)
        state.breaker = BreakerState.OPEN
        state.ejected_by = detector
        state.ejected_until = now + length * (1.0 - JITTER * self._rng.random())
        state.trial = 0
        state.failures = state.gateway_failures = 0

    @staticmethod
    def _close(state: OutlierState, at: float) -> None:
        state.breaker = BreakerState.CLOSED
        state.ejected_by = None
        state.ejected_until = None
        state.trial = 0
        state.returned_at = at


def describe_outlier(policy: OutlierPolicy | None) -> str:
    """Return what takes endpoints out for their answers, and for how long, in words, for `explain`."""
    if policy is None or not (policy.consecutive_gateway_errors or policy.consecutive_5xx):
        return "ejection: none"
    if not policy.max_ejection_percent:
        return "ejection: none, since maxEjectionPercent is 0"
    counts = ((policy.consecutive_gateway_errors, "gateway errors"), (policy.consecutive_5xx, "answers with 5xx"))
    fired = " or ".join(f"{count} {what}" for count, what in counts if count)
    longest = max(policy.base_ejection_time_s, policy.max_ejection_time_s)
    return (
        f"ejection: after {fired} in a row for {policy.base_ejection_time_s:g} s, twice as long each time, up to "
        f"{longest:g} s; at most {policy.max_ejection_percent}% of the endpoints at once, or one; back in by "
        f"trials, {policy.half_open_requests} at once"
    )
