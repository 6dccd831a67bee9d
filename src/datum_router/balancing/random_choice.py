"""Random choice in proportion to weight: no state, no coordination."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from datum_router.balancing.base import HealthView, PickContext, TableCache, cumulative_weights, pick_weighted
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy


class RandomChoice:
    """Pick at random: O(1) for equal weights, O(log n) else."""

    __slots__ = ("_cache",)

    def __init__(self, policy: BalancingPolicy = BalancingPolicy()) -> None:
        # One-element tuples, since None (equal weights) is a value to remember.
        self._cache = TableCache(lambda endpoints: (cumulative_weights(endpoints),))

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return a random endpoint that this request has not tried."""
        if not endpoints:
            return None
        if ctx.excluded:
            return pick_weighted(ctx, endpoints)
        sums = self._cache.get(endpoints)[0]
        if sums is None:
            return endpoints[int(ctx.rng.random() * len(endpoints))]
        return endpoints[min(bisect_right(sums, ctx.rng.random() * sums[-1]), len(endpoints) - 1)]
