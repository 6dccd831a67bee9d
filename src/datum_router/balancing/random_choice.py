"""Random choice by weight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from datum_router.balancing.base import HealthView, PickContext, remaining
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy


class WeightedSampler:
    """Draw from endpoints in proportion to their weights; tables are kept for the same sequence object."""

    __slots__ = ("_endpoints", "_is_equal", "_sums")

    def __init__(self) -> None:
        self._endpoints: Sequence[Endpoint] = ()
        self._sums: list[int] = []
        self._is_equal = True

    def draw(self, ctx: PickContext, endpoints: Sequence[Endpoint]) -> Endpoint:
        """Return one of `endpoints`, which must not be empty."""
        if endpoints is not self._endpoints:
            self._endpoints = endpoints
            self._sums = list(accumulate(endpoint.weight for endpoint in endpoints))
            self._is_equal = len({endpoint.weight for endpoint in endpoints}) == 1
        if self._is_equal:
            return endpoints[int(ctx.rng.random() * len(endpoints))]
        return endpoints[bisect_right(self._sums, ctx.rng.random() * self._sums[-1])]


def draw_once(ctx: PickContext, endpoints: Sequence[Endpoint]) -> Endpoint:
    """Draw without keeping tables: for the rare pick with exclusions."""
    sums = list(accumulate(endpoint.weight for endpoint in endpoints))
    return endpoints[bisect_right(sums, ctx.rng.random() * sums[-1])]


class RandomChoice:
    """Choose at random, by weight."""

    __slots__ = ("_sampler",)

    def __init__(self, policy: BalancingPolicy | None = None) -> None:
        self._sampler = WeightedSampler()

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return a random one that is not excluded."""
        if not ctx.excluded:
            return self._sampler.draw(ctx, endpoints) if endpoints else None
        candidates = remaining(ctx, endpoints)
        return draw_once(ctx, candidates) if candidates else None
