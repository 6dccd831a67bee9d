"""Deadlines: one moment per request, in monotonic seconds; `NO_DEADLINE` is infinity, so arithmetic needs no cases."""

from __future__ import annotations

import math

from datum_router.model.policy import TimeoutPolicy

NO_DEADLINE = math.inf


def request_deadline(policy: TimeoutPolicy, *, now: float, grpc_timeout_s: float | None = None) -> float:
    """Return when the whole request must be over: the earlier of the route's limit and the client's `grpc-timeout`.

    Args:
        grpc_timeout_s: What the client stated, None if nothing. It can shorten the route's limit, never prolong it;
            0 or less means that the request is late already.
    """
    limit = now + policy.request_s if policy.request_s > 0 else NO_DEADLINE
    return limit if grpc_timeout_s is None else min(limit, now + grpc_timeout_s)


def remaining_s(deadline: float, *, now: float) -> float:
    """Return the seconds left, 0 if the deadline has passed, infinity without one."""
    return max(0.0, deadline - now)


def connect_deadline(policy: TimeoutPolicy, *, now: float, deadline: float, service_connect_timeout_s: float) -> float:
    """Return when a dial that begins now must be over: by the route's own limit if set, else the service's.

    Never after `deadline`; a limit of 0 is no limit.
    """
    limit = policy.connect_s if policy.connect_s is not None else service_connect_timeout_s
    return min(deadline, now + limit) if limit > 0 else deadline


def upstream_grpc_timeout_s(deadline: float, *, now: float) -> float | None:
    """Return the `grpc-timeout` to tell the upstream: the time left, None without a deadline.

    The upstream gets what is left, not what the client once stated: a retry must not outlive the client's patience.
    """
    return None if deadline == NO_DEADLINE else remaining_s(deadline, now=now)
