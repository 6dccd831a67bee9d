"""Whether a failed attempt is made again elsewhere. Never a second try for what may have been acted on, unless safe."""

from __future__ import annotations

import random

import msgspec

from datum_router.model.outcome import Outcome
from datum_router.model.policy import RetryPolicy
from datum_router.policy.backoff import backoff_s
from datum_router.reasons import Reason

# RFC 9110 section 9.2.2: repeating these has the effect of one.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


class RetryDecision(msgspec.Struct, frozen=True, gc=False):
    """Whether, after how many seconds, and why (one short sentence for logs and explain)."""

    retry: bool
    delay_s: float = 0.0
    why: str = ""


def decide(
    outcome: Outcome,
    *,
    attempt: int,
    method: str,
    policy: RetryPolicy,
    is_body_replayable: bool,
    is_response_started: bool,
    remaining_s: float,
    rng: random.Random,
) -> RetryDecision:
    """Decide on one more attempt.

    Args:
        attempt: Which one has just failed, from 1.
        is_body_replayable: The request body is still there from its first byte (or there is none).
        is_response_started: A byte of a response has left for the client: then nothing can be taken back.
        remaining_s: Until the request's deadline.
    """
    if is_response_started:
        return RetryDecision(False, why="the response has begun")
    if attempt > policy.max_retries:
        return RetryDecision(False, why=f"{attempt} attempts were made")
    if not is_body_replayable:
        return RetryDecision(False, why="the request body is gone")
    if remaining_s <= 0:
        return RetryDecision(False, why="the deadline has passed")
    if outcome.reason is Reason.DOWNSTREAM_RESET:
        return RetryDecision(False, why="the client has left")
    if outcome.is_unprocessed or not outcome.is_sent:
        return RetryDecision(True, why="the upstream never acted on it")
    if method not in IDEMPOTENT:
        return RetryDecision(False, why=f"{method} may have been acted on")
    if outcome.status and outcome.status not in policy.retry_on_status:
        return RetryDecision(False, why=f"status {outcome.status} is final")
    delay = backoff_s(rng, attempt=attempt, initial_s=policy.initial_backoff_s, max_s=policy.max_backoff_s)
    if delay >= remaining_s:
        return RetryDecision(False, why="no time is left for another attempt")
    return RetryDecision(True, delay, "the method is idempotent")
