"""Least requests, power of two choices: of two random endpoints take the one with less load for its weight.

Two random choices keep the longest queue near log log n (Mitzenmacher 2001) without a scan or a heap that every start
and end of a request would have to touch, and without herds: a scan sends all workers to the same idle endpoint.
With unequal weights both are drawn in proportion to weight and compared by load / weight, the first one winning ties:
so an idle service follows its weights, and a loaded one evens out its load in proportion to them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from datum_router.balancing.base import HealthView, PickContext, TableCache, cumulative_weights, remaining
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy


class LeastRequest:
    """Pick the less loaded of two. Registered as `least-connections`."""

    __slots__ = ("_cache",)

    def __init__(self, policy: BalancingPolicy = BalancingPolicy()) -> None:
        self._cache = TableCache(lambda endpoints: (cumulative_weights(endpoints),))

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the less loaded of two random endpoints that this request has not tried."""
        sums: Sequence[int] | None
        if ctx.excluded:
            endpoints = remaining(ctx, endpoints)
            sums = cumulative_weights(endpoints) if endpoints else None
        else:
            sums = self._cache.get(endpoints)[0] if endpoints else None
        size = len(endpoints)
        if size < 2:
            return endpoints[0] if size else None
        random = ctx.rng.random
        active = ctx.active
        if sums is None:
            first = int(random() * size)
            second = int(random() * (size - 1))
            if second >= first:
                second += 1
            a, b = endpoints[first], endpoints[second]
            return a if active.get(a.key, 0) <= active.get(b.key, 0) else b
        total = sums[-1]
        a = endpoints[min(bisect_right(sums, random() * total), size - 1)]
        b = endpoints[min(bisect_right(sums, random() * total), size - 1)]
        return a if active.get(a.key, 0) * b.weight <= active.get(b.key, 0) * a.weight else b
