"""Passive ejection by outcomes (Envoy outlier detection): endpoints that fail in a row sit out for a while.

Workers report outcomes as runs in order, so that "in a row" survives the way to the supervisor.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import OutlierPolicy
from datum_router.model.service import ServiceKey


class OutcomeBatch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Outcomes of one endpoint in order, as runs of (class, count)."""

    service: ServiceKey
    endpoint: EndpointKey
    runs: tuple[tuple[OutcomeClass, int], ...]


class OutlierState(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of one endpoint.

    Attributes:
        errors, gateway_errors: Failures in a row up to now.
        ejections: How often it was ejected lately; lengthens the next ejection, falls by one per quiet interval.
        ejected_until: Monotonic seconds; 0 = it is not ejected.
        returned_at: When it came back or was last looked at.
    """

    errors: int = 0
    gateway_errors: int = 0
    ejections: int = 0
    ejected_until: float = 0.0
    returned_at: float = 0.0

    @property
    def is_ejected(self) -> bool:
        """Tell whether it sits out."""
        return self.ejected_until > 0


def record(
    state: OutlierState, runs: Sequence[tuple[OutcomeClass, int]], policy: OutlierPolicy
) -> tuple[OutlierState, str]:
    """Return the state after a batch, and the detector that wants an ejection (empty if none does)."""
    errors, gateway_errors, detector = state.errors, state.gateway_errors, ""
    for kind, count in runs:
        if kind == OutcomeClass.SUCCESS:
            errors = gateway_errors = 0
            continue
        errors += count
        gateway_errors = gateway_errors + count if kind == OutcomeClass.GATEWAY_ERROR else 0
        if 0 < policy.consecutive_gateway_errors <= gateway_errors:
            detector = "consecutive_gateway_errors"
        elif 0 < policy.consecutive_5xx <= errors:
            detector = detector or "consecutive_5xx"
    changed = (errors, gateway_errors) != (state.errors, state.gateway_errors)
    if changed:
        state = msgspec.structs.replace(state, errors=errors, gateway_errors=gateway_errors)
    return state, detector


def may_eject(ejected: int, total: int, policy: OutlierPolicy) -> bool:
    """Tell whether one more of `total` endpoints may be ejected while `ejected` are; one always may."""
    return ejected == 0 or (ejected + 1) * 100 <= policy.max_ejection_percent * total


def eject(state: OutlierState, policy: OutlierPolicy, *, now: float) -> OutlierState:
    """Return the state of an endpoint that is ejected now, for longer each time."""
    ejections = state.ejections + 1
    duration = min(policy.base_ejection_time_s * ejections, policy.max_ejection_time_s)
    return OutlierState(ejections=ejections, ejected_until=now + duration)


def tick(state: OutlierState, policy: OutlierPolicy, *, now: float) -> OutlierState:
    """Return the state at `now`: back if its time is over; its record fades by one per quiet interval."""
    if state.is_ejected:
        if now < state.ejected_until:
            return state
        return OutlierState(ejections=state.ejections, returned_at=now)
    if state.ejections and now - state.returned_at >= policy.interval_s:
        return msgspec.structs.replace(state, ejections=state.ejections - 1, returned_at=now)
    return state
