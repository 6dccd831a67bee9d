"""Weighted round-robin: each endpoint in turn, as often as its weight says, evenly spaced.

Equal weights: a plain index, O(1). Unequal weights: earliest deadline first in virtual time, O(log n): endpoint i is
due at (u_i + k) / w_i for its k-th turn, with a random phase u_i in [0, 1). Deadlines have period 1 (weights reduced
by their common divisor), so every run of sum(w) picks holds exactly w_i of endpoint i, wherever it begins. The phases
come from the rng because tables are made anew whenever endpoints or health change: with a fixed phase a service that
changes often, and every worker at its start, would load its first endpoint most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heapreplace

from datum_router.balancing.base import HealthView, PickContext, TableCache, cumulative_weights, pick_weighted
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy

MAX_SKIPS = 8
"""Turns that are passed over to find an untried endpoint before the pick is made at random by weight."""


class _Turns:
    """Turns of one candidate set. `heap` is filled at the first pick: (due, index, phase, turn)."""

    __slots__ = ("heap", "is_equal", "weights")

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.is_equal = cumulative_weights(endpoints) is None
        divisor = math.gcd(*(endpoint.weight for endpoint in endpoints)) or 1
        self.weights = [endpoint.weight // divisor for endpoint in endpoints]
        self.heap: list[tuple[float, int, float, int]] = []

    def next(self, ctx: PickContext) -> int:
        """Return the index whose turn it is and put it at the back of its queue."""
        heap = self.heap
        weights = self.weights
        if not heap:
            for index, weight in enumerate(weights):
                phase = ctx.rng.random()
                heap.append((phase / max(weight, 1), index, phase, 0))
            heapify(heap)
        _, index, phase, turn = heap[0]
        # From the whole turn number, not by adding 1/w up: rounding errors must not pile up over years.
        heapreplace(heap, ((phase + turn + 1) / max(weights[index], 1), index, phase, turn + 1))
        return index


class RoundRobin:
    """Take endpoints in turn. The position outlives a change of candidates."""

    __slots__ = ("_cache", "_position")

    def __init__(self, policy: BalancingPolicy = BalancingPolicy()) -> None:
        self._cache = TableCache(_Turns)
        self._position = -1

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the next endpoint in turn that this request has not tried."""
        if not endpoints:
            return None
        turns = self._cache.get(endpoints)
        excluded = ctx.excluded
        if turns.is_equal:
            size = len(endpoints)
            position = self._position
            if position < 0:
                position = int(ctx.rng.random() * size)
            position %= size
            if not excluded:
                self._position = position + 1
                return endpoints[position]
            for step in range(size):
                endpoint = endpoints[(position + step) % size]
                if endpoint.key not in excluded:
                    self._position = position + step + 1
                    return endpoint
            return None
        endpoint = endpoints[turns.next(ctx)]
        if not excluded or endpoint.key not in excluded:
            return endpoint
        for _ in range(MAX_SKIPS):
            endpoint = endpoints[turns.next(ctx)]
            if endpoint.key not in excluded:
                return endpoint
        return pick_weighted(ctx, endpoints)
