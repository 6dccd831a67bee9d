"""Retries: safe whatever the circumstances, and never more load than the budget says (threats U1, U3, U5, U6)."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.health.circuit import RETRY_BUDGET_PERCENT, ServiceLimits
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome
from datum_router.model.policy import ConnectionLimits, RetryPolicy
from datum_router.model.service import ServiceKey
from datum_router.policy.retry import decide
from datum_router.reasons import Reason

SAFE = {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}
OTHER_ENDPOINT_MAY_HELP = {
    Reason.CONNECT_FAILED,
    Reason.CONNECT_TIMEOUT,
    Reason.UPSTREAM_TLS,
    Reason.UPSTREAM_RESET,
    Reason.UPSTREAM_REFUSED_STREAM,
    Reason.RESPONSE_TIMEOUT,
}


@settings(max_examples=200, deadline=None)
@given(
    reason=st.sampled_from([Reason.ROUTED, *OTHER_ENDPOINT_MAY_HELP]) | st.sampled_from(Reason),
    status=st.sampled_from((0, 200, 404, 429, 500, 503)),
    is_sent=st.booleans(),
    is_unprocessed=st.booleans(),
    attempt=st.integers(1, 4),
    method=st.sampled_from(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "get", "QUERY")),
    max_retries=st.integers(0, 3),
    statuses=st.sampled_from(((), (503,), (429, 500, 503))),
    is_body_replayable=st.booleans(),
    is_response_started=st.booleans(),
    remaining_s=st.sampled_from((0.0, 0.05, 5.0, float("inf"))),
    budget_ok=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_retry_is_made_exactly_when_every_condition_holds(
    reason: Reason,
    status: int,
    is_sent: bool,
    is_unprocessed: bool,
    attempt: int,
    method: str,
    max_retries: int,
    statuses: tuple[int, ...],
    is_body_replayable: bool,
    is_response_started: bool,
    remaining_s: float,
    budget_ok: bool,
    seed: int,
) -> None:
    outcome = Outcome(
        service=ServiceKey("a/b"),
        endpoint=EndpointKey("10.0.0.1:80"),
        status=status if reason is Reason.ROUTED else 0,
        reason=reason,
        is_sent=is_sent,
        is_unprocessed=is_unprocessed,
    )
    policy = RetryPolicy(max_retries=max_retries, retry_on_status=statuses)
    decision = decide(
        outcome,
        attempt=attempt,
        method=method,
        policy=policy,
        is_body_replayable=is_body_replayable,
        is_response_started=is_response_started,
        remaining_s=remaining_s,
        budget_ok=budget_ok,
        rng=random.Random(seed),
    )
    if reason is Reason.ROUTED:
        is_wanted = outcome.status in statuses and method in SAFE
    else:
        is_wanted = reason in OTHER_ENDPOINT_MAY_HELP and (method in SAFE or not is_sent or is_unprocessed)
    is_possible = attempt <= max_retries and is_body_replayable and not is_response_started and budget_ok
    if decision.retry:
        assert is_wanted
        assert is_possible
        assert 0.0 <= decision.delay_s < remaining_s
        assert decision.delay_s <= min(policy.max_backoff_s, policy.initial_backoff_s * 2 ** (attempt - 1))
    else:
        assert decision.delay_s == 0.0
        # With all the time in the world nothing else may have refused it.
        assert not (is_wanted and is_possible and remaining_s >= 5.0)
    assert decision.why


class Permits:
    """What is under way, counted naively."""

    def __init__(self) -> None:
        self.first = 0
        self.retries = 0


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.sampled_from(("first", "first", "first", "retry", "retry", "end", "end-retry")), max_size=120),
    minimum=st.integers(0, 5),
    most=st.integers(1, 60),
)
def test_permits_stay_within_limits_and_budget(steps: list[str], minimum: int, most: int) -> None:
    limits = ServiceLimits(ConnectionLimits(max_parallel_requests=most, max_parallel_retries=minimum))
    held = Permits()
    for step in steps:
        total = held.first + held.retries
        if step == "first":
            is_free = total < most
            assert (limits.acquire_request() is None) is is_free
            held.first += is_free
        elif step == "retry":
            budget = max(minimum, total * RETRY_BUDGET_PERCENT // 100) if minimum else 0
            is_free = total < most and held.retries < budget
            assert limits.has_retry_budget is (held.retries < budget)
            assert (limits.acquire_request(is_retry=True) is None) is is_free
            held.retries += is_free
            if is_free:
                assert held.retries <= max(minimum, (held.first + held.retries) * RETRY_BUDGET_PERCENT / 100)
        elif step == "end" and held.first:
            limits.release_request()
            held.first -= 1
        elif step == "end-retry" and held.retries:
            limits.release_request(is_retry=True)
            held.retries -= 1
        assert (limits.requests, limits.retries) == (held.first + held.retries, held.retries)
