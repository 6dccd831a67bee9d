"""Hedging: a second attempt beside the first one that is slow (Dean and Barroso, "The Tail at Scale", 2013).

What is sent twice is acted on twice: only idempotent methods are ever hedged, whatever `retryNonIdempotent` says, and
only requests without a body, which need not be kept. A hedge costs the service what a retry costs, so it is in the same
budget; and, as retries, hedges do not multiply along a chain (`policy.chain`): who gets one hedges it no more.

The states of an attempt in a race, and what each event leads to:

    WAITING    its delay passes, `may_begin` says yes       RACING
    WAITING    its delay passes, `may_begin` says no        OUT
    RACING     a response head comes that the route takes   the race is won: all others are OUT, cancelled
    RACING     it fails, or the route may try it again      FAILED
    any        the race is won by another                   OUT

The race is over as soon as one has won, or if nobody is RACING: then the last one that failed stands for all, and
`policy.retry` decides on it as on any failed attempt. Attempts that still wait do not begin then: a failure is retried
with a backoff, not by a hedge.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from datum_router.model.policy import RetryPolicy
from datum_router.policy.retry import IDEMPOTENT


class RacerState(enum.Enum):
    """Where an attempt is in its race."""

    WAITING = "waiting"
    RACING = "racing"
    WON = "won"
    FAILED = "failed"
    OUT = "out"


ENDS = (RacerState.WON, RacerState.FAILED, RacerState.OUT)
"""How a race can end for an attempt that has begun."""


def is_hedged(policy: RetryPolicy, method: str, *, has_body: bool, is_tunnel: bool, is_retry: bool) -> bool:
    """Tell whether a request is to be hedged at all.

    Args:
        is_retry: A gateway before us has tried or hedged it already.
    """
    if policy.hedge_delay_s <= 0 or policy.hedge_attempts < 2:
        return False
    return method in IDEMPOTENT and not (has_body or is_tunnel or is_retry)


def begins_at(policy: RetryPolicy, number: int, *, begun_at: float) -> float:
    """Return when attempt `number` (1 = the first) of a race is due, in the seconds of `begun_at`."""
    return begun_at + policy.hedge_delay_s * (number - 1)


def may_begin(states: Sequence[RacerState], *, remaining_s: float, budget_ok: bool) -> bool:
    """Tell whether an attempt whose delay has passed may begin.

    Args:
        states: Those of all attempts of the race.
        remaining_s: Time until the request's deadline.
        budget_ok: `ServiceLimits.has_retry_budget`.
    """
    return RacerState.RACING in states and RacerState.WON not in states and remaining_s > 0 and budget_ok


def leader(states: Sequence[RacerState], ended: Sequence[int]) -> int | None:
    """Return the index of the attempt that decides the race; None while it is on.

    Args:
        ended: Indexes of the attempts that have won or failed, in the order in which they did.
    """
    for index in ended:
        if states[index] is RacerState.WON:
            return index
    if RacerState.RACING in states or not ended:
        return None
    return ended[-1]
