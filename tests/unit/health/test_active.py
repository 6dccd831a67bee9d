from __future__ import annotations

import pytest

from datum_router.health.active import UNPROBED, EndpointHealth, HealthState, advance
from datum_router.model.policy import ActiveHealthPolicy
from datum_router.plugins.protocols import ProbeResult

POLICY = ActiveHealthPolicy(unhealthy_threshold=3, healthy_threshold=2)


def after(results: str, start: EndpointHealth = UNPROBED, policy: ActiveHealthPolicy = POLICY) -> EndpointHealth:
    """Return the health after probes written as `+` and `-`, one a second."""
    health = start
    for second, sign in enumerate(results, 1):
        health = advance(health, ProbeResult(is_ok=sign == "+", detail=sign), policy, now=float(second))
    return health


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("", HealthState.UNKNOWN),
        ("+", HealthState.HEALTHY),
        ("-", HealthState.UNHEALTHY),
        ("+--", HealthState.HEALTHY),
        ("+---", HealthState.UNHEALTHY),
        ("+--+--", HealthState.HEALTHY),
        ("-+", HealthState.UNHEALTHY),
        ("-++", HealthState.HEALTHY),
        ("-+-+-+", HealthState.UNHEALTHY),
        ("+---++", HealthState.HEALTHY),
    ],
)
def test_state_after_a_run_of_probes(results: str, state: HealthState) -> None:
    assert after(results).state is state


def test_a_flapping_endpoint_keeps_its_state() -> None:
    assert after("+" + "--+" * 50).state is HealthState.HEALTHY
    assert after("-" + "+-" * 50).state is HealthState.UNHEALTHY


def test_changed_at_is_the_moment_of_the_last_flip() -> None:
    assert after("++---").changed_at == 5.0
    assert after("++----").changed_at == 5.0


def test_detail_tells_what_the_last_probe_saw() -> None:
    assert after("+-").detail == "-"
    assert after("+-+").detail == "+"


def test_threshold_of_one_flips_at_once() -> None:
    assert after("+-", policy=ActiveHealthPolicy(unhealthy_threshold=1)).state is HealthState.UNHEALTHY
