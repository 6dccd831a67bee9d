from __future__ import annotations

import pytest

from datum_router.model.policy import RetryCondition, RetryPolicy, TimeoutPolicy
from datum_router.policy.explain import explain_policy, policy_lines, stream_policy_lines


@pytest.mark.parametrize(
    ("policy", "method", "repeats", "why"),
    [
        (RetryPolicy(), "GET", "always", "GET is idempotent"),
        (RetryPolicy(), "POST", "never", "POST is not idempotent, and retryNonIdempotent is false"),
        (RetryPolicy(retry_non_idempotent=True), "POST", "always", "retryNonIdempotent says so"),
        (RetryPolicy(max_retries=0), "GET", "never", "maxRetries is 0"),
    ],
)
def test_it_says_whether_what_may_have_been_processed_is_repeated_and_why(
    policy: RetryPolicy, method: str, repeats: str, why: str
) -> None:
    report = explain_policy(policy, TimeoutPolicy(), method)
    assert (report.repeats, report.why) == (repeats, why)


def test_the_lines_hold_all_that_is_in_force() -> None:
    retry = RetryPolicy(
        max_retries=2,
        retry_on=(RetryCondition.RESET,),
        retry_on_status=(503,),
        retry_on_grpc=(14,),
        budget_percent=10,
        hedge_delay_s=0.05,
        hedge_attempts=3,
        initial_backoff_s=0.025,
        max_backoff_s=1.0,
    )
    timeouts = TimeoutPolicy(
        request_s=9.0, connect_s=0.5, per_try_s=2.0, backend_request_s=4.0, stream_idle_s=60.0, propagates=True
    )
    assert policy_lines(explain_policy(retry, timeouts, "PUT")) == [
        "retries: up to 2 on reset, status 503, grpc-status 14",
        "    after a random wait of up to 0.025 s, twice as long each time, up to 1 s",
        "    as long as retries in flight are at most 10% of first tries, or 3",
        "    what may have been processed is repeated: PUT is idempotent",
        "hedging: without a body, up to 3 at once, another one after each 0.05 s without a response head",
        "timeouts: request 9 s, connect 0.5 s, one try, to its response head 2 s, one try as a whole 4 s, silence 60 s",
        "    the time left is told upstream, in x-envoy-expected-rq-timeout-ms or grpc-timeout",
    ]


def test_no_limits_and_no_retries_are_said_as_well() -> None:
    report = explain_policy(RetryPolicy(max_retries=0), TimeoutPolicy(request_s=0.0), "GET")
    assert policy_lines(report) == ["retries: none (maxRetries is 0)", "timeouts: none"]
    assert report.retry_on == ()


@pytest.mark.parametrize(
    ("delay_s", "method", "has_sessions", "is_spared"),
    [(0.05, "GET", True, True), (0.05, "GET", False, False), (0.05, "POST", True, False), (0.0, "GET", True, False)],
)
def test_of_hedges_it_says_that_sessions_are_left_alone(
    delay_s: float, method: str, has_sessions: bool, is_spared: bool
) -> None:
    report = explain_policy(RetryPolicy(hedge_delay_s=delay_s), TimeoutPolicy(), method, has_sessions=has_sessions)
    assert report.spares_sessions is is_spared
    said = "    a request that goes to the endpoint of its session is not hedged" in policy_lines(report)
    assert said is is_spared


@pytest.mark.parametrize(
    ("max_retries", "connect_s", "lines"),
    [
        (0, None, ["retries: none", "timeouts: silence as tcp_idle_timeout_s of the data plane says"]),
        (
            1,
            2.0,
            [
                "retries: up to 1 other if an endpoint cannot be reached",
                "timeouts: connect 2 s, silence as tcp_idle_timeout_s of the data plane says",
            ],
        ),
    ],
)
def test_bytes_that_are_carried_on_have_no_method_and_no_time_limit_of_a_request(
    max_retries: int, connect_s: float | None, lines: list[str]
) -> None:
    retry, timeouts = RetryPolicy(max_retries=max_retries), TimeoutPolicy(request_s=9.0, connect_s=connect_s)
    assert stream_policy_lines(retry, timeouts) == lines
