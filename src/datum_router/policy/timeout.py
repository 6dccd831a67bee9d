"""Deadline arithmetic: one moment for a whole request, whoever set it."""

from __future__ import annotations

import math


def deadline_at(*, now: float, request_s: float, grpc_timeout_s: float | None = None) -> float:
    """Return when a request must be over: the route's timeout or the client's, whichever is shorter.

    Args:
        request_s: 0 = the route sets none.
        grpc_timeout_s: The client's `grpc-timeout`, None if it sent none.
    """
    limit = request_s if request_s > 0 else math.inf
    if grpc_timeout_s is not None:
        limit = min(limit, grpc_timeout_s)
    return now + limit


def remaining_s(deadline: float, now: float) -> float:
    """Return the seconds left, 0 if none are."""
    return max(0.0, deadline - now)
