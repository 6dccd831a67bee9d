"""The probe state machine: from probe results to up and down, with hysteresis.

States: UNKNOWN until the first probe ends, which decides at once, so that a fresh endpoint need not wait for a whole
threshold (Envoy does the same for its initial check). Then HEALTHY and UNHEALTHY, each left only after enough
contrary results in a row; one agreeing result starts the count anew.

UNKNOWN counts as usable: a gateway that restarts must not answer 503 until its first probes have ended.
"""

from __future__ import annotations

import enum

import msgspec

from datum_router.model.policy import ActiveHealthPolicy
from datum_router.plugins.protocols import ProbeResult


class HealthState(enum.StrEnum):
    """What probes say about an endpoint."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class EndpointHealth(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One endpoint's probe state.

    Attributes:
        streak: Results in a row that contradict `state`.
        changed_at: Monotonic seconds of the last flip; 0 while UNKNOWN.
        detail: What the last probe saw.
    """

    state: HealthState = HealthState.UNKNOWN
    streak: int = 0
    changed_at: float = 0.0
    detail: str = ""


UNPROBED = EndpointHealth()


def advance(current: EndpointHealth, probe: ProbeResult, policy: ActiveHealthPolicy, *, now: float) -> EndpointHealth:
    """Return the endpoint's health after one probe.

    Args:
        now: Monotonic seconds, the moment the probe ended.
    """
    seen = HealthState.HEALTHY if probe.is_ok else HealthState.UNHEALTHY
    if current.state is HealthState.UNKNOWN:
        return EndpointHealth(state=seen, changed_at=now, detail=probe.detail)
    if seen is current.state:
        return msgspec.structs.replace(current, streak=0, detail=probe.detail)
    needed = policy.healthy_threshold if probe.is_ok else policy.unhealthy_threshold
    streak = current.streak + 1
    if streak < needed:
        return msgspec.structs.replace(current, streak=streak, detail=probe.detail)
    return EndpointHealth(state=seen, changed_at=now, detail=probe.detail)
