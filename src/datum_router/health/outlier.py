"""Passive ejection: endpoints whose real answers fail are taken out for a while (Envoy outlier detection).

Two detectors count failures in a row: any 5xx, and gateway errors alone (502, 503, 504 and failures seen by us). A
success clears both; a plain 500 clears only the second. An ejection lasts base * (times ejected so far), up to a
maximum; for every `interval_s` that the endpoint then stays in, one ejection is forgotten. Outcomes of requests that
were under way when it was ejected are not counted.

Never more than `max_ejection_percent` of a service's endpoints are out at once, though one always may be. A detector
that fires while there is no room keeps its count: the next failure tries again.

Outcomes come as run-length batches, in order for each worker; "in a row" across workers means in order of arrival.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable

from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import OutlierPolicy


class Detector(enum.StrEnum):
    """What ejected an endpoint."""

    CONSECUTIVE_5XX = "consecutive_5xx"
    CONSECUTIVE_GATEWAY_ERRORS = "consecutive_gateway_errors"


class OutlierState:
    """One endpoint's counters. `ejected_until` is monotonic seconds, None while it is in."""

    __slots__ = ("ejected_until", "failures", "gateway_failures", "returned_at", "times_ejected")

    def __init__(self) -> None:
        self.failures = 0
        self.gateway_failures = 0
        self.times_ejected = 0
        self.ejected_until: float | None = None
        self.returned_at = 0.0


class OutlierDetector:
    """Decide ejections for one service. Single-threaded."""

    __slots__ = ("_policy", "_states")

    def __init__(self, policy: OutlierPolicy) -> None:
        self._policy = policy
        self._states: dict[EndpointKey, OutlierState] = {}

    @property
    def ejected(self) -> int:
        """Return how many endpoints are out."""
        return sum(state.ejected_until is not None for state in self._states.values())

    def capacity(self) -> int:
        """Return how many endpoints may be out at once: the policy's share, but at least one."""
        return max(1, len(self._states) * self._policy.max_ejection_percent // 100)

    def state(self, key: EndpointKey) -> OutlierState | None:
        """Return the live counters of an endpoint, read only."""
        return self._states.get(key)

    def is_ejected(self, key: EndpointKey) -> bool:
        """Tell whether an endpoint is out."""
        state = self._states.get(key)
        return state is not None and state.ejected_until is not None

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
            if state.ejected_until is not None or count <= 0:
                continue
            if kind is OutcomeClass.SUCCESS:
                state.failures = state.gateway_failures = 0
                continue
            state.failures += count
            state.gateway_failures = state.gateway_failures + count if kind is OutcomeClass.GATEWAY_ERROR else 0
            detector = self._fired(state)
            if detector is not None and self.ejected < self.capacity():
                self._eject(state, now)
                return detector
        return None

    def release_due(self, now: float) -> list[EndpointKey]:
        """Let endpoints back in whose time is over, and return them."""
        back: list[EndpointKey] = []
        for key, state in self._states.items():
            if state.ejected_until is not None and state.ejected_until <= now:
                self._return(state, state.ejected_until)
                back.append(key)
        return back

    def release(self, key: EndpointKey, *, now: float) -> bool:
        """Let one endpoint back in before its time; tell whether it was out."""
        state = self._states.get(key)
        if state is None or state.ejected_until is None:
            return False
        self._return(state, now)
        return True

    def next_release(self) -> float | None:
        """Return when the next ejection ends, in monotonic seconds; None if nobody is out."""
        return min((s.ejected_until for s in self._states.values() if s.ejected_until is not None), default=None)

    def _fired(self, state: OutlierState) -> Detector | None:
        policy = self._policy
        if 0 < policy.consecutive_gateway_errors <= state.gateway_failures:
            return Detector.CONSECUTIVE_GATEWAY_ERRORS
        if 0 < policy.consecutive_5xx <= state.failures:
            return Detector.CONSECUTIVE_5XX
        return None

    def _eject(self, state: OutlierState, now: float) -> None:
        policy = self._policy
        if state.times_ejected and policy.interval_s > 0:
            forgotten = math.floor(max(0.0, now - state.returned_at) / policy.interval_s)
            state.times_ejected = max(0, state.times_ejected - forgotten)
        state.times_ejected += 1
        longest = max(policy.base_ejection_time_s, policy.max_ejection_time_s)
        state.ejected_until = now + min(longest, policy.base_ejection_time_s * state.times_ejected)
        state.failures = state.gateway_failures = 0

    @staticmethod
    def _return(state: OutlierState, at: float) -> None:
        state.ejected_until = None
        state.returned_at = at
