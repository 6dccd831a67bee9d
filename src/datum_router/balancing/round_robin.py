"""Weighted round-robin: equal weights take turns by index, unequal ones by smooth interleaving (as nginx does)."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from datum_router.balancing.base import HealthView, PickContext, remaining
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy

MAX_SCHEDULE = 10_000
"""Longest precomputed turn; beyond it weights are scaled down, each staying at least 1."""


class RoundRobin:
    """Take turns."""

    __slots__ = ("_endpoints", "_schedule", "_turn")

    def __init__(self, policy: BalancingPolicy | None = None) -> None:
        self._endpoints: Sequence[Endpoint] = ()
        self._schedule: Sequence[Endpoint] = ()
        self._turn = 0

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the next one in turn that is not excluded."""
        if endpoints is not self._endpoints:
            self._endpoints = endpoints
            self._schedule = interleave(endpoints)
        schedule = self._schedule
        size = len(schedule)
        if not size:
            return None
        turn = self._turn
        if turn >= size:
            turn %= size
        self._turn = turn + 1
        found = schedule[turn]
        if not ctx.excluded or found.key not in ctx.excluded:
            return found
        if not remaining(ctx, endpoints):
            return None
        for step in range(1, size):
            found = schedule[(turn + step) % size]
            if found.key not in ctx.excluded:
                self._turn = turn + step + 1
                return found
        return None


def interleave(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Return one whole turn in which each endpoint stands as often as its weight says, spread evenly."""
    weights = [endpoint.weight for endpoint in endpoints]
    if len(set(weights)) <= 1:
        return endpoints
    divisor = gcd(*weights)
    weights = [weight // divisor for weight in weights]
    total = sum(weights)
    if total > MAX_SCHEDULE:
        weights = [max(1, round(weight * MAX_SCHEDULE / total)) for weight in weights]
        total = sum(weights)
    slots = [
        ((2 * index + 1) * total / (2 * weight), position)
        for position, weight in enumerate(weights)
        for index in range(weight)
    ]
    slots.sort()
    return [endpoints[position] for _, position in slots]
