"""The probe state machine: from probe results to up and down, with hysteresis.

States: UNKNOWN until the first probe ends, which decides at once, so that a fresh endpoint need not wait for a whole
threshold (Envoy does the same for its initial check). Then HEALTHY and UNHEALTHY, each left only after enough
contrary results in a row; one agreeing result starts the count anew.

UNKNOWN counts as usable: a gateway that restarts must not answer 503 until its first probes have ended.
"""

from __future__ import annotations

import enum

import msgspec

from datum_router.model.policy import ActiveHealthPolicy, ProbeType
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


def describe_active(policy: ActiveHealthPolicy | None) -> str:
    """Return how endpoints are probed, in words, for `explain`; of header fields only the names: values may be secret.

    Args:
        policy: None: they are not.
    """
    if policy is None:
        return "probes: none"
    asked = {
        ProbeType.HTTP: f"HTTP {policy.method} {policy.http_path}",
        ProbeType.TCP: "TCP connection",
        ProbeType.GRPC: "gRPC health check" + (f" of {policy.grpc_service}" if policy.grpc_service else ""),
    }[policy.type]
    asked += "" if policy.port is None else f" at port {policy.port}"
    if policy.type is not ProbeType.TCP:
        asked += f" for host {policy.host}" if policy.host else ""
        asked += f" with {', '.join(name for name, _ in policy.headers)}" if policy.headers else ""
    good = ""
    if policy.type is ProbeType.HTTP:
        ranges = (str(low) if low == high else f"{low}-{high}" for low, high in policy.expected_statuses)
        good = f", good is status {' or '.join(ranges)}"
    return (
        f"probes: {asked} every {policy.interval_s:g} s, for up to {policy.timeout_s:g} s{good}; down after "
        f"{policy.unhealthy_threshold} failures in a row, up after {policy.healthy_threshold} successes, the first "
        "probe decides at once"
    )
