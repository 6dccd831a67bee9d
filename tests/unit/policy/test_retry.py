from __future__ import annotations

import math
import random

import pytest

from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome
from datum_router.model.policy import RetryCondition, RetryPolicy
from datum_router.model.service import ServiceKey
from datum_router.policy.retry import IDEMPOTENT, MAX_UNREACHED_RETRIES, RETRIABLE, RetryDecision, decide
from datum_router.reasons import Reason

METHODS = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "CONNECT", "PROPFIND", "get"]


def outcome(
    reason: Reason = Reason.ROUTED, *, status: int = 0, sent: bool = False, unprocessed: bool = False
) -> Outcome:
    return Outcome(
        service=ServiceKey("d/s"),
        endpoint=EndpointKey("10.0.0.1:80"),
        status=status,
        reason=reason,
        is_sent=sent,
        is_unprocessed=unprocessed,
    )


def verdict(
    ended: Outcome,
    *,
    method: str = "GET",
    attempt: int = 1,
    policy: RetryPolicy = RetryPolicy(max_retries=2, retry_on_status=(503,)),
    replayable: bool = True,
    started: bool = False,
    remaining: float = math.inf,
    budget: bool = True,
    grpc_status: int | None = None,
    retry_after_s: float | None = None,
    is_settled: bool = False,
    is_retry: bool = False,
    has_other: bool = True,
) -> RetryDecision:
    return decide(
        ended,
        attempt=attempt,
        method=method,
        policy=policy,
        is_body_replayable=replayable,
        is_response_started=started,
        remaining_s=remaining,
        budget_ok=budget,
        rng=random.Random(1),
        grpc_status=grpc_status,
        retry_after_s=retry_after_s,
        is_settled=is_settled,
        is_retry=is_retry,
        has_other=has_other,
    )


REFUSED = outcome(Reason.CONNECT_FAILED, unprocessed=True)
RESET = outcome(Reason.UPSTREAM_RESET, sent=True)
REFUSED_STREAM = outcome(Reason.UPSTREAM_REFUSED_STREAM, sent=True, unprocessed=True)
GOAWAY = outcome(Reason.UPSTREAM_RESET, sent=True, unprocessed=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ended", [REFUSED, REFUSED_STREAM, GOAWAY])
def test_what_was_not_processed_is_retried_with_any_method(ended: Outcome, method: str) -> None:
    assert verdict(ended, method=method).retry


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ended", [RESET, outcome(Reason.RESPONSE_TIMEOUT, sent=True), outcome(status=503, sent=True)])
def test_what_may_have_been_processed_is_retried_with_idempotent_methods_only(ended: Outcome, method: str) -> None:
    found = verdict(ended, method=method)
    assert found.retry is (method in IDEMPOTENT)
    if not found.retry:
        assert found.why == "maybe_processed"


@pytest.mark.parametrize("ended", [REFUSED, RESET, REFUSED_STREAM, GOAWAY, outcome(status=503, sent=True)])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"started": True}, "response_started"),
        ({"replayable": False}, "body_not_replayable"),
        ({"budget": False}, "budget_exhausted"),
        ({"attempt": 5}, "attempts_exhausted"),
        ({"remaining": 0.0}, "deadline"),
        ({"policy": RetryPolicy(max_retries=0, retry_on_status=(503,))}, "attempts_exhausted"),
    ],
)
def test_each_condition_alone_forbids_a_retry(ended: Outcome, change: dict[str, object], why: str) -> None:
    assert verdict(ended).retry
    assert verdict(ended, **change) == RetryDecision(retry=False, why=why)  # type: ignore[arg-type]  # as parametrised


@pytest.mark.parametrize("reason", sorted(set(Reason) - RETRIABLE - {Reason.ROUTED}))
def test_no_other_reason_is_retried(reason: Reason) -> None:
    assert not verdict(outcome(reason, unprocessed=True)).retry


def test_only_listed_statuses_are_retried() -> None:
    assert verdict(outcome(status=503, sent=True)).why == "status"
    assert verdict(outcome(status=500, sent=True)).why == "not_retriable"
    assert verdict(outcome(status=404, sent=True)).why == "not_a_failure"
    assert verdict(outcome(status=200, sent=True)).why == "not_a_failure"


def test_a_listed_status_of_a_non_idempotent_request_is_final_even_if_called_unprocessed() -> None:
    assert not verdict(outcome(status=503, sent=True, unprocessed=True), method="POST").retry


def test_failed_dials_and_connections_that_went_away_are_followed_at_once() -> None:
    assert verdict(REFUSED).delay_s == 0.0
    assert verdict(GOAWAY).delay_s == 0.0


def test_attempts_that_reached_the_upstream_wait_with_full_jitter() -> None:
    policy = RetryPolicy(max_retries=9, initial_backoff_s=0.1, max_backoff_s=10.0)
    for ended in (RESET, REFUSED_STREAM):
        waits = [
            decide(
                ended,
                attempt=3,
                method="GET",
                policy=policy,
                is_body_replayable=True,
                is_response_started=False,
                remaining_s=math.inf,
                budget_ok=True,
                rng=random.Random(seed),
            ).delay_s
            for seed in range(300)
        ]
        assert 0.0 <= min(waits) < 0.05
        assert 0.35 < max(waits) < 0.4


def test_a_wait_beyond_the_deadline_is_no_retry() -> None:
    delay = verdict(RESET).delay_s
    assert delay > 0.0
    assert verdict(RESET, remaining=delay).why == "deadline"
    assert verdict(RESET, remaining=delay * 1.01).retry


def test_default_policy_allows_one_retry_and_more_for_what_reached_nobody() -> None:
    assert verdict(RESET, policy=RetryPolicy()).retry
    assert not verdict(RESET, policy=RetryPolicy(), attempt=2).retry
    assert verdict(REFUSED, policy=RetryPolicy(), attempt=MAX_UNREACHED_RETRIES).retry
    assert not verdict(REFUSED, policy=RetryPolicy(), attempt=MAX_UNREACHED_RETRIES + 1).retry


ALL_OF = {
    RetryCondition.CONNECT_FAILURE: [Reason.CONNECT_FAILED, Reason.CONNECT_TIMEOUT, Reason.UPSTREAM_TLS],
    RetryCondition.RESET: [Reason.UPSTREAM_RESET, Reason.RESPONSE_TIMEOUT, Reason.PER_TRY_TIMEOUT],
    RetryCondition.REFUSED_STREAM: [Reason.UPSTREAM_REFUSED_STREAM],
}


@pytest.mark.parametrize("named", RetryCondition)
def test_only_conditions_that_are_named_are_tried_again(named: RetryCondition) -> None:
    policy = RetryPolicy(retry_on=(named,))
    for condition, reasons in ALL_OF.items():
        for reason in reasons:
            found = verdict(outcome(reason, unprocessed=True), policy=policy)
            assert found.retry is (condition is named)
            assert found.why == (reason.value if found.retry else "not_retriable")


@pytest.mark.parametrize("ended", [RESET, outcome(status=503, sent=True)])
def test_the_user_may_say_that_anything_may_be_made_twice(ended: Outcome) -> None:
    policy = RetryPolicy(retry_on_status=(503,), retry_non_idempotent=True)
    assert verdict(ended, method="POST", policy=policy).retry


@pytest.mark.parametrize(
    ("code", "non_idempotent", "why"),
    [
        (14, True, "grpc_status"),
        (14, False, "maybe_processed"),
        (0, True, "not_a_failure"),
        (13, True, "not_retriable"),
    ],
)
def test_codes_of_grpc_that_are_named(code: int, non_idempotent: bool, why: str) -> None:
    policy = RetryPolicy(retry_on_grpc=(8, 14), retry_non_idempotent=non_idempotent)
    assert verdict(outcome(status=200, sent=True), method="POST", policy=policy, grpc_status=code).why == why


def test_what_the_upstream_asks_for_is_waited_for_within_bounds() -> None:
    busy = outcome(status=503, sent=True)
    policy = RetryPolicy(retry_on_status=(503,), max_backoff_s=5.0)
    without = verdict(busy, policy=policy).delay_s
    assert verdict(busy, policy=policy, retry_after_s=3.0).delay_s == 3.0 + without
    assert verdict(busy, policy=policy, retry_after_s=5.1) == RetryDecision(retry=False, why="retry_after")
    assert verdict(busy, policy=policy, retry_after_s=3.0, remaining=3.0).why == "deadline"


def test_what_is_settled_upstream_is_not_tried_again() -> None:
    assert verdict(outcome(status=503, sent=True), is_settled=True).why == "settled_upstream"


@pytest.mark.parametrize(
    ("ended", "is_retried"), [(RESET, False), (REFUSED_STREAM, False), (REFUSED, True), (GOAWAY, True)]
)
def test_a_retry_of_a_gateway_before_us_is_tried_again_only_if_nobody_was_reached(
    ended: Outcome, is_retried: bool
) -> None:
    found = verdict(ended, is_retry=True)
    assert found.retry is is_retried
    assert is_retried or found.why == "retry_of_downstream"


def test_an_answer_is_better_than_nothing_if_there_is_nobody_else_to_ask() -> None:
    assert verdict(outcome(status=503, sent=True), has_other=False).why == "no_other_endpoint"
