"""Least requests in flight, by the power of two choices (Mitzenmacher 2001): draw two, take the less loaded."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.balancing.base import HealthView, PickContext, remaining
from datum_router.balancing.random_choice import WeightedSampler, draw_once
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy


class LeastRequest:
    """Draw two by weight and take the one with fewer requests in flight for its weight."""

    __slots__ = ("_sampler",)

    def __init__(self, policy: BalancingPolicy | None = None) -> None:
        self._sampler = WeightedSampler()

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the less loaded of two that are not excluded."""
        if ctx.excluded:
            candidates = remaining(ctx, endpoints)
            if not candidates:
                return None
            first, second = draw_once(ctx, candidates), draw_once(ctx, candidates)
        else:
            if not endpoints:
                return None
            first, second = self._sampler.draw(ctx, endpoints), self._sampler.draw(ctx, endpoints)
        active = ctx.active
        # Compared by (active + 1) / weight without a division, so that an idle heavy endpoint beats an idle light one.
        load_first = (active.get(first.key, 0) + 1) * second.weight
        load_second = (active.get(second.key, 0) + 1) * first.weight
        return first if load_first <= load_second else second
