"""Deadlines: moments in monotonic seconds; `NO_DEADLINE` is infinity, so arithmetic needs no cases.

A request has one deadline. Each of its attempts may have two more: one for its response head (`perTryTimeout`) and one
for its whole answer (`backendRequest`). The clock of an attempt stands while the router waits for the client's body:
how slow a client is says nothing about an endpoint, and Envoy too begins to count when it has the whole request.
"""

from __future__ import annotations

import functools
import math
import operator

from datum_router.model.policy import TimeoutPolicy
from datum_router.reasons import Reason

NO_DEADLINE = math.inf
SHARED_LIMITS = 256
"""Different limits of rules of which the first one is remembered."""


def request_deadline(policy: TimeoutPolicy, *, now: float, client_timeout_s: float | None = None) -> float:
    """Return when the whole request must be over: the earlier of the route's limit and the client's.

    Args:
        client_timeout_s: What the client stated (`grpc-timeout`, or a trusted peer's
            `x-envoy-expected-rq-timeout-ms`), None if nothing. It can shorten the route's limit, never prolong it;
            0 or less means that the request is late already.
    """
    limit = now + policy.request_s if policy.request_s > 0 else NO_DEADLINE
    return limit if client_timeout_s is None else min(limit, now + client_timeout_s)


def remaining_s(deadline: float, *, now: float) -> float:
    """Return the seconds left, 0 if the deadline has passed, infinity without one."""
    return max(0.0, deadline - now)


def upstream_grpc_timeout_s(deadline: float, *, now: float) -> float | None:
    """Return the `grpc-timeout` to tell the upstream: the time left, None without a deadline.

    The upstream gets what is left, not what the client once stated: a retry must not outlive the client's patience.
    """
    return None if deadline == NO_DEADLINE else remaining_s(deadline, now=now)


def has_try_limits(policy: TimeoutPolicy) -> bool:
    """Tell whether attempts have limits of their own, which must be noticed sooner than those of requests."""
    return policy.per_try_s > 0 or policy.backend_request_s > 0


def try_deadline(policy: TimeoutPolicy, *, begun_at: float, waited_s: float, is_answered: bool) -> float:
    """Return when an attempt must have got further, not looking at the request's deadline.

    Args:
        begun_at: When its endpoint was chosen.
        waited_s: How long of that it was the client's turn to send its body.
        is_answered: Its response head has come: what is left is `backend_request_s`.
    """
    limits = [policy.backend_request_s] if is_answered else [policy.backend_request_s, policy.per_try_s]
    return min((begun_at + waited_s + limit for limit in limits if limit > 0), default=NO_DEADLINE)


@functools.lru_cache(maxsize=SHARED_LIMITS)
def first_limit(policy: TimeoutPolicy) -> tuple[float, Reason]:
    """Return what a first attempt has until its response head, 0 = for ever, and what has expired then.

    That is what every other function here says of a request that is here whole, known before it comes. It is asked of
    each rule when it is linked, and nearly all have the same limits.
    """
    limits = (
        (policy.request_s, Reason.REQUEST_TIMEOUT),
        (try_deadline(policy, begun_at=0.0, waited_s=0.0, is_answered=False), Reason.PER_TRY_TIMEOUT),
        (policy.stream_idle_s or 0.0, Reason.STREAM_IDLE_TIMEOUT),
    )
    limit, reason = min(((limit or NO_DEADLINE, reason) for limit, reason in limits), key=operator.itemgetter(0))
    return (0.0, Reason.REQUEST_TIMEOUT) if limit == NO_DEADLINE else (limit, reason)


CHOSEN_SHARE = 0.5
"""A gateway before us passes on what is left of its own limit: only if that is less than this share of ours, it is not
our limit that has shown the endpoint to be slow. Nor is it if the client has used up this share of it."""


def is_clients_choice(policy: TimeoutPolicy, client_timeout_s: float | None, *, is_gateway: bool) -> bool:
    """Tell whether the deadline is the client's own: a tiny one must not make an endpoint look slow.

    Args:
        is_gateway: The client is one of the chain, and has limits as ours are.
    """
    if client_timeout_s is None:
        return False
    return policy.request_s <= 0 or client_timeout_s < policy.request_s * (CHOSEN_SHARE if is_gateway else 1.0)


def has_waited_for_client(policy: TimeoutPolicy, waited_s: float, *, is_clients_turn: bool) -> bool:
    """Tell whether a request's own limit says nothing of the endpoint: it was the client that it was spent on.

    A body that does not come, or an answer that nobody reads, must not make an endpoint look slow: whoever may ask
    could have all of them ejected.

    Args:
        waited_s: How long in all the client's body, or its reading, was waited for.
        is_clients_turn: Either is waited for now.
    """
    return is_clients_turn or (policy.request_s > 0 and waited_s >= policy.request_s * CHOSEN_SHARE)
