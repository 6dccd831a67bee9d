"""Retries: safe whatever the circumstances, and never more load than the budget says (threats U1, U3, U5, U6)."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.health.circuit import ServiceLimits
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome
from datum_router.model.policy import ConnectionLimits, RetryCondition, RetryPolicy
from datum_router.model.service import ServiceKey
from datum_router.policy.retry import MAX_UNREACHED_RETRIES, decide
from datum_router.reasons import Reason

SAFE = {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}
OTHER_ENDPOINT_MAY_HELP = {
    Reason.LOCAL_RESOURCES,  # of a retry, which may find a kept connection
    Reason.CONNECT_FAILED,
    Reason.CONNECT_TIMEOUT,
    Reason.UPSTREAM_TLS,
    Reason.UPSTREAM_RESET,
    Reason.UPSTREAM_REFUSED_STREAM,
    Reason.RESPONSE_TIMEOUT,
    Reason.PER_TRY_TIMEOUT,
}


def outcomes() -> list[Outcome]:
    return [
        Outcome(
            service=ServiceKey("a/b"),
            endpoint=EndpointKey("10.0.0.1:80"),
            status=status,
            reason=reason,
            is_sent=is_sent,
            is_unprocessed=is_unprocessed,
        )
        for reason in Reason
        for status in ((200, 429, 503) if reason is Reason.ROUTED else (0,))
        for is_sent, is_unprocessed in itertools.product((False, True), repeat=2)
    ]


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "get", "QUERY"]
)
@pytest.mark.parametrize("attempt", [1, 2, 4, 5])
def test_a_retry_is_made_exactly_when_every_condition_holds(method: str, attempt: int) -> None:
    policy = RetryPolicy(max_retries=1, retry_on_status=(503,))
    rng = random.Random(attempt)
    for outcome in outcomes():
        if outcome.reason is Reason.ROUTED:
            is_wanted = outcome.status == 503 and method in SAFE
        else:
            is_wanted = outcome.reason in OTHER_ENDPOINT_MAY_HELP and (
                method in SAFE or not outcome.is_sent or outcome.is_unprocessed
            )
        has_reached = outcome.reason is Reason.UPSTREAM_REFUSED_STREAM or (
            outcome.is_sent and not outcome.is_unprocessed
        )
        allowed = policy.max_retries if has_reached else MAX_UNREACHED_RETRIES
        for body, started, budget, has_time in itertools.product((False, True), repeat=4):
            decision = decide(
                outcome,
                attempt=attempt,
                method=method,
                policy=policy,
                is_body_replayable=body,
                is_response_started=started,
                remaining_s=5.0 if has_time else 0.0,
                budget_ok=budget,
                rng=rng,
            )
            expected = is_wanted and attempt <= allowed and body and not started and budget and has_time
            assert decision.retry == expected, (outcome, body, started, budget, has_time)
            assert 0.0 <= decision.delay_s <= (policy.initial_backoff_s if expected else 0.0)
            assert decision.why


NEVER = {Reason.ROUTED, *Reason} - OTHER_ENDPOINT_MAY_HELP - {Reason.ROUTED}


@settings(max_examples=500, deadline=None)
@given(
    outcome=st.sampled_from(outcomes()),
    method=st.sampled_from(("GET", "PUT", "POST", "PATCH")),
    conditions=st.sets(st.sampled_from(RetryCondition)),
    non_idempotent=st.booleans(),
    grpc=st.sampled_from((None, 0, 8, 14)),
    asked_s=st.sampled_from((None, 0.0, 5.0, 10.0, 10.1, math.inf)),
    seed=st.integers(0, 1000),
)
def test_nothing_is_tried_twice_that_the_user_has_not_named_or_may_have_been_processed(
    outcome: Outcome,
    method: str,
    conditions: set[RetryCondition],
    non_idempotent: bool,
    grpc: int | None,
    asked_s: float | None,
    seed: int,
) -> None:
    policy = RetryPolicy(
        max_retries=2,
        retry_on=tuple(conditions),
        retry_on_status=(503,),
        retry_on_grpc=(14,),
        retry_non_idempotent=non_idempotent,
    )
    decision = decide(
        outcome,
        attempt=1,
        method=method,
        policy=policy,
        is_body_replayable=True,
        is_response_started=False,
        remaining_s=100.0,
        budget_ok=True,
        rng=random.Random(seed),
        grpc_status=grpc,
        retry_after_s=asked_s,
    )
    if decision.retry:
        assert outcome.reason not in NEVER
        if outcome.reason is Reason.ROUTED:
            assert outcome.status == 503 or grpc == 14
            assert method in SAFE or non_idempotent
        elif outcome.is_sent and not outcome.is_unprocessed:
            assert method in SAFE or non_idempotent
        assert asked_s is None or asked_s <= decision.delay_s <= asked_s + policy.max_backoff_s
        assert decision.delay_s <= 2 * policy.max_backoff_s, "whatever it asks for, the wait is bounded"
    elif outcome.reason in OTHER_ENDPOINT_MAY_HELP and conditions == set(RetryCondition) and asked_s is None:
        assert method not in SAFE, "with all conditions named only what is not safe is left"


class Permits:
    """What is under way, counted naively."""

    def __init__(self) -> None:
        self.first = 0
        self.retries = 0


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.sampled_from(("first", "first", "first", "retry", "retry", "end", "end-retry")), max_size=120),
    begun=st.integers(0, 30),
    minimum=st.sampled_from((0, 0, 1, 3)),
    percent=st.sampled_from((0, 20, 50, 100)),
    most=st.integers(1, 60),
)
def test_permits_stay_within_limits_and_budget(
    steps: list[str], begun: int, minimum: int, most: int, percent: int
) -> None:
    limits = ServiceLimits(ConnectionLimits(max_parallel_requests=most, max_parallel_retries=minimum))
    held = Permits()
    for step in [*["first"] * begun, *steps]:
        total = held.first + held.retries
        if step == "first":
            is_free = total < most
            assert (limits.acquire_request() is None) is is_free
            held.first += is_free
        elif step == "retry":
            budget = max(minimum, held.first * percent // 100) if minimum else 0
            is_free = total < most and held.retries < budget
            assert limits.has_retry_budget(percent) is (held.retries < budget)
            assert (limits.acquire_request(is_retry=True, budget_percent=percent) is None) is is_free
            held.retries += is_free
            if is_free:
                assert held.retries <= max(minimum, held.first * percent / 100)
        elif step == "end" and held.first:
            limits.release_request()
            held.first -= 1
        elif step == "end-retry" and held.retries:
            limits.release_request(is_retry=True)
            held.retries -= 1
        assert (limits.requests, limits.retries) == (held.first + held.retries, held.retries)


ACTS = ("connect", "connect", "connect", "close", "wait", "wait", "wait", "stop", "lower", "raise")


@given(acts=st.lists(st.sampled_from(ACTS), max_size=80), connections=st.integers(1, 5), waiting=st.integers(0, 3))
def test_connections_and_waits_stay_within_limits_that_may_change(
    acts: list[str], connections: int, waiting: int
) -> None:
    most, fewer = (
        ConnectionLimits(max_connections=connections + more, max_pending_requests=waiting + more) for more in (2, 0)
    )
    limits, now = ServiceLimits(most), most
    opened = pending = refused = 0
    for act in acts:
        if act in ("lower", "raise"):
            now = fewer if act == "lower" else most
            limits.update(now)
        elif act == "connect":
            is_free = opened < now.max_connections
            assert limits.acquire_connection() == (None if is_free else Reason.POOL_OVERFLOW)
            opened, refused = opened + is_free, refused + (not is_free)
        elif act == "wait":
            is_free = pending < now.max_pending_requests
            assert limits.acquire_pending() == (None if is_free else Reason.POOL_OVERFLOW)
            pending, refused = pending + is_free, refused + (not is_free)
        elif act == "close" and opened:
            limits.release_connection()
            opened -= 1
        elif act == "stop" and pending:
            limits.release_pending()
            pending -= 1
        assert (limits.connections, limits.pending, limits.refused) == (opened, pending, refused), "none is cut off"
