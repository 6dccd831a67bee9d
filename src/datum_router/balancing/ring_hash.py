"""Ring hash (Karger et al. 1997): points of each endpoint on a circle, a key belongs to the next point."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from datum_router.balancing.base import HealthView, PickContext
from datum_router.balancing.hashing import hash_bytes
from datum_router.balancing.random_choice import draw_once
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy

POINTS_PER_ENDPOINT = 512
"""Points of an endpoint of average weight: shares differ by about 5 %."""

MAX_POINTS = 262_144
"""All points of a ring; beyond it each endpoint gets fewer, at least one."""


class RingHash:
    """Send equal keys to equal endpoints; without a key choose at random."""

    __slots__ = ("_endpoints", "_owners", "_points")

    def __init__(self, policy: BalancingPolicy | None = None) -> None:
        self._endpoints: Sequence[Endpoint] = ()
        self._points: list[int] = []
        self._owners: list[int] = []

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the owner of the key; if it is excluded, the next owner on the circle."""
        if not endpoints:
            return None
        if endpoints is not self._endpoints:
            self._endpoints = endpoints
            self._points, self._owners = build_ring(endpoints)
        excluded = ctx.excluded
        if ctx.hash_key is None:
            candidates = [item for item in endpoints if item.key not in excluded] if excluded else endpoints
            return draw_once(ctx, candidates) if candidates else None
        owners = self._owners
        start = bisect_right(self._points, ctx.hash_key)
        for step in range(len(owners)):
            found = endpoints[owners[(start + step) % len(owners)]]
            if found.key not in excluded:
                return found
        return None


def build_ring(endpoints: Sequence[Endpoint]) -> tuple[list[int], list[int]]:
    """Return sorted points and the index of each one's owner; number of points in proportion to weight."""
    total = sum(endpoint.weight for endpoint in endpoints)
    budget = min(POINTS_PER_ENDPOINT * len(endpoints), MAX_POINTS)
    ring: list[tuple[int, int]] = []
    for index, endpoint in enumerate(endpoints):
        count = max(1, round(budget * endpoint.weight / total))
        name = endpoint.key.encode()
        ring += [(hash_bytes(b"%s#%d" % (name, point)), index) for point in range(count)]
    # Equal points (not to be expected) go to the smaller key, so that the order of the list does not matter.
    ring.sort(key=lambda item: (item[0], endpoints[item[1]].key))
    return [point for point, _ in ring], [owner for _, owner in ring]
