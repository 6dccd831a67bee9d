from __future__ import annotations

import pytest

from datum_router.health.active import UNPROBED, EndpointHealth, HealthState, advance, describe_active
from datum_router.model.policy import ActiveHealthPolicy, ProbeType
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


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (None, "probes: none"),
        (
            ActiveHealthPolicy(),
            "probes: HTTP GET /healthz every 10 s, for up to 5 s, good is status 200-299; down after 3 failures in a "
            "row, up after 2 successes, the first probe decides at once",
        ),
        (
            ActiveHealthPolicy(
                http_path="/live",
                method="HEAD",
                host="a.test",
                headers=(("x-a", "b"), ("authorization", "secret")),
                expected_statuses=((200, 204), (401, 401)),
                port=9000,
                interval_s=1.0,
                timeout_s=0.5,
                unhealthy_threshold=1,
                healthy_threshold=4,
            ),
            "probes: HTTP HEAD /live at port 9000 for host a.test with x-a, authorization every 1 s, for up to 0.5 s, "
            "good is status 200-204 or 401; down after 1 failures in a row, up after 4 successes, the first probe "
            "decides at once",
        ),
        (
            ActiveHealthPolicy(type=ProbeType.TCP, host="nobody.reads.this", port=1),
            "probes: TCP connection at port 1 every 10 s, for up to 5 s; down after 3 failures in a row, up after 2 "
            "successes, the first probe decides at once",
        ),
        (
            ActiveHealthPolicy(type=ProbeType.GRPC, grpc_service="shop.Cart", host="b.test"),
            "probes: gRPC health check of shop.Cart for host b.test every 10 s, for up to 5 s; down after 3 failures "
            "in a row, up after 2 successes, the first probe decides at once",
        ),
    ],
)
def test_probes_in_words(policy: ActiveHealthPolicy | None, words: str) -> None:
    assert describe_active(policy) == words
