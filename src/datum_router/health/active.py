"""The state machine of active probes: values in, values out."""

from __future__ import annotations

import enum
import math

import msgspec

from datum_router.model.policy import ActiveHealthPolicy


class HealthState(enum.StrEnum):
    """What probes say of an endpoint. UNKNOWN counts as usable, so that a restart of the gateway causes no 503."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class EndpointHealth(msgspec.Struct, frozen=True, gc=False):
    """State, equal results in a row that disagree with it, and when it last changed (monotonic seconds)."""

    state: HealthState = HealthState.UNKNOWN
    streak: int = 0
    changed_at: float = -math.inf


def advance(current: EndpointHealth, *, is_ok: bool, policy: ActiveHealthPolicy, now: float) -> EndpointHealth:
    """Return an endpoint's health after one probe.

    The first probe decides at once, so that a fresh endpoint need not wait for a whole threshold (Envoy does the same).
    Later flips need `healthy_threshold` or `unhealthy_threshold` equal results in a row.
    """
    if current.state is HealthState.UNKNOWN:
        return EndpointHealth(HealthState.HEALTHY if is_ok else HealthState.UNHEALTHY, 0, now)
    if is_ok == (current.state is HealthState.HEALTHY):
        return current if current.streak == 0 else EndpointHealth(current.state, 0, current.changed_at)
    streak = current.streak + 1
    if streak < (policy.healthy_threshold if is_ok else policy.unhealthy_threshold):
        return EndpointHealth(current.state, streak, current.changed_at)
    return EndpointHealth(HealthState.HEALTHY if is_ok else HealthState.UNHEALTHY, 0, now)
