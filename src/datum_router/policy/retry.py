"""Whether a failed attempt is tried again, and when. One decision, no state; the caller waits and picks.

    how the attempt ended                           condition (`retryOn`)   repeated if the upstream may have acted
    no connection, no TLS, no descriptor            connect-failure         (it cannot have)
    reset, closed, no head in time                  reset                   idempotent methods, or if the route says so
    REFUSED_STREAM                                  refused-stream          (it has not)
    a status of `retryOnStatus`                     -                       idempotent methods, or if the route says so
    a status of gRPC without messages               by its name             idempotent methods, or if the route says so

The rule that stands above all others (RFC 9110 section 9.2.2): what the upstream may have acted on is repeated only
if the method is idempotent, or if the user has said that it may (`retryNonIdempotent`). An attempt that provably was
not processed (no connection, REFUSED_STREAM, a stream above GOAWAY's last id: RFC 9113 section 8.7) may be repeated
with any method, as long as the body can be sent once more.
"""

from __future__ import annotations

import random
from typing import Final

import msgspec

from datum_router.model.outcome import Outcome
from datum_router.model.policy import RetryCondition, RetryPolicy
from datum_router.policy.backoff import full_jitter
from datum_router.reasons import Reason

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110 section 9.2.2. A method that is not known is not idempotent."""

CONDITION_OF: Final = {
    Reason.CONNECT_FAILED: RetryCondition.CONNECT_FAILURE,
    Reason.CONNECT_TIMEOUT: RetryCondition.CONNECT_FAILURE,
    Reason.LOCAL_RESOURCES: RetryCondition.CONNECT_FAILURE,
    Reason.UPSTREAM_TLS: RetryCondition.CONNECT_FAILURE,
    Reason.UPSTREAM_RESET: RetryCondition.RESET,
    Reason.RESPONSE_TIMEOUT: RetryCondition.RESET,
    Reason.PER_TRY_TIMEOUT: RetryCondition.RESET,
    Reason.UPSTREAM_REFUSED_STREAM: RetryCondition.REFUSED_STREAM,
}
RETRIABLE = frozenset(CONDITION_OF)
"""Failures that another endpoint may not have. Refusals by our own limits are none: retrying feeds an overload. Without
descriptors for a new connection another endpoint may still have an idle one."""


MAX_UNREACHED_RETRIES = 4
"""Attempts beyond the first that may follow one which reached nobody, even if the route allows fewer retries: several
endpoints that died together must not cost a request. A route with `maxRetries: 0` wants none at all."""


class RetryDecision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The verdict.

    Attributes:
        delay_s: How long to wait first; 0 without a retry.
        why: Which rule decided, a word from a closed set, for logs and tests.
    """

    retry: bool
    delay_s: float = 0.0
    why: str


def _no(why: str) -> RetryDecision:
    return RetryDecision(retry=False, why=why)


_RESPONSE_STARTED = _no("response_started")
_DOWNSTREAM_GONE = _no("downstream_gone")
_SUCCEEDED = _no("not_a_failure")
_NOT_RETRIABLE = _no("not_retriable")
_EXHAUSTED = _no("attempts_exhausted")
_NOT_IDEMPOTENT = _no("maybe_processed")
_NO_BODY = _no("body_not_replayable")
_NO_BUDGET = _no("budget_exhausted")
_NO_TIME = _no("deadline")
_TOLD_TO_WAIT = _no("retry_after")
_SETTLED = _no("settled_upstream")
_IS_RETRY = _no("retry_of_downstream")
_NOBODY = _no("no_other_endpoint")

REFUSALS = tuple(
    verdict.why
    for verdict in (
        _RESPONSE_STARTED,
        _DOWNSTREAM_GONE,
        _SUCCEEDED,
        _NOT_RETRIABLE,
        _EXHAUSTED,
        _NOT_IDEMPOTENT,
        _NO_BODY,
        _NO_BUDGET,
        _NO_TIME,
        _TOLD_TO_WAIT,
        _SETTLED,
        _IS_RETRY,
        _NOBODY,
    )
)
"""Every `why` of a decision against a retry."""


def decide(
    outcome: Outcome,
    *,
    attempt: int,
    method: str,
    policy: RetryPolicy,
    is_body_replayable: bool,
    is_response_started: bool,
    remaining_s: float,
    budget_ok: bool,
    rng: random.Random,
    grpc_status: int | None = None,
    retry_after_s: float | None = None,
    is_settled: bool = False,
    is_retry: bool = False,
    has_other: bool = True,
) -> RetryDecision:
    """Decide on one ended attempt.

    Args:
        attempt: How many attempts have been made, this one included: 1 after the first.
        is_body_replayable: The whole body can be sent again: there is none, it is kept, or none of it was taken yet.
        is_response_started: Any byte of the response has gone to the client (RFC 9110 allows no second one).
        remaining_s: Time until the request's deadline; infinity without one.
        budget_ok: `ServiceLimits.has_retry_budget`.
        grpc_status: Code of a gRPC response without messages (Trailers-Only); None for any other response.
        is_settled: The response says that what can be done was done nearer to the failure (`policy.chain`).
        is_retry: A gateway before us has tried before.
        has_other: There is an endpoint that has not been asked. Asked of responses only: they are better than anything
            that could be said in their place.
        retry_after_s: How long the upstream asked to be left alone (`policy.retry_after`); infinity: for good.
    """
    if is_response_started:
        return _RESPONSE_STARTED
    if outcome.reason is Reason.DOWNSTREAM_RESET:
        return _DOWNSTREAM_GONE
    if outcome.reason is Reason.ROUTED:
        if outcome.status not in policy.retry_on_status and grpc_status not in policy.retry_on_grpc:
            return _SUCCEEDED if outcome.status < 500 and not grpc_status else _NOT_RETRIABLE
        may_have_acted = True  # it answered
    elif CONDITION_OF.get(outcome.reason) in policy.retry_on:
        may_have_acted = outcome.is_sent and not outcome.is_unprocessed
    else:
        return _NOT_RETRIABLE
    is_safe = not may_have_acted or method in IDEMPOTENT or policy.retry_non_idempotent
    allowed = policy.max_retries
    if allowed and not _has_reached_upstream(outcome):
        allowed = max(allowed, MAX_UNREACHED_RETRIES)
    if attempt > allowed:
        return _EXHAUSTED
    if not is_safe:
        return _NOT_IDEMPOTENT
    if is_settled:
        return _SETTLED
    if is_retry and _has_reached_upstream(outcome):
        return _IS_RETRY
    if not has_other:
        return _NOBODY
    if not is_body_replayable:
        return _NO_BODY
    if not budget_ok:
        return _NO_BUDGET
    delay = 0.0
    if _has_reached_upstream(outcome):
        delay = full_jitter(attempt, initial_s=policy.initial_backoff_s, max_s=policy.max_backoff_s, rng=rng)
    if retry_after_s is not None:
        if retry_after_s > policy.max_backoff_s:
            return _TOLD_TO_WAIT
        delay += retry_after_s  # the jitter stays on top: all of its clients were told the same
    if remaining_s <= delay:
        return _NO_TIME
    why = "status" if outcome.status in policy.retry_on_status else "grpc_status"
    return RetryDecision(retry=True, delay_s=delay, why=why if outcome.status else outcome.reason.value)


def _has_reached_upstream(outcome: Outcome) -> bool:
    """Tell whether something at the other end was asked, so that asking again at once would press it.

    A failed dial and a connection that was going away go on at once, at another endpoint or on a fresh connection;
    REFUSED_STREAM comes from a living peer that has too much to do.
    """
    if outcome.reason is Reason.UPSTREAM_REFUSED_STREAM:
        return True
    return outcome.is_sent and not outcome.is_unprocessed
