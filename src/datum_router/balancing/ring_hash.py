"""Ring hash (Karger et al. 1997, ketama's many points per endpoint): a key belongs to the next point clockwise.

An endpoint's points come from its key and its weight relative to the greatest one, so others' coming and going does not
move them. Compared with Maglev: keys move least when an endpoint leaves, shares are less even (about 6 % standard
deviation at 256 points), a look-up is a binary search.

The ring is bounded: a service of many endpoints gets fewer points for each (`points_per_endpoint`). Crossing one of
those two sizes moves most keys once; within a size class removal of one of n moves about 1/n of them.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b

from datum_router.balancing.base import HealthView, PickContext, TableCache, remaining
from datum_router.balancing.hashing import rendezvous
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy

SIZE_CLASSES = ((512, 256), (2048, 64))
"""Up to so many endpoints: so many points for the greatest weight. At most 131,072 points a ring in these classes."""

MIN_POINTS = 16
"""Points per endpoint beyond the last class: 160,000 points at the registry's limit of 10,000 endpoints."""

MAX_PROBES = 64
"""Points looked at to find an untried endpoint before the choice is made by rendezvous hashing among those left."""

_POINTS_PER_DIGEST = 8
_DIGEST = struct.Struct("<8Q")


def points_per_endpoint(count: int) -> int:
    """Return how many points an endpoint of the greatest weight gets in a ring of `count` endpoints."""
    for limit, points in SIZE_CLASSES:
        if count <= limit:
            return points
    return MIN_POINTS


class Ring:
    """Sorted points and who owns each."""

    __slots__ = ("owners", "points")

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        most = points_per_endpoint(len(endpoints))
        top = max(endpoint.weight for endpoint in endpoints)
        pairs: list[tuple[int, int]] = []
        # By key, so that equal points (one in 2**64) have the same owner whatever the order of endpoints.
        for index in sorted(range(len(endpoints)), key=lambda index: endpoints[index].key):
            endpoint = endpoints[index]
            wanted = max(1, round(most * endpoint.weight / top))
            key = endpoint.key.encode()
            for block in range(-(-wanted // _POINTS_PER_DIGEST)):
                digest = blake2b(key + b"#%d" % block, digest_size=64).digest()
                points = _DIGEST.unpack(digest)[: wanted - block * _POINTS_PER_DIGEST]
                pairs.extend((point, index) for point in points)
        pairs.sort(key=lambda pair: pair[0])
        self.points = array("Q", (point for point, _ in pairs))
        self.owners = array("H", (owner for _, owner in pairs))


class RingHash:
    """Look the key up on a ring. Registered as `consistent-hash-ring`. Without a key it picks at random by weight."""

    __slots__ = ("_cache",)

    def __init__(self, policy: BalancingPolicy = BalancingPolicy()) -> None:
        self._cache = TableCache(Ring)

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the key's endpoint, or for a retry the next one clockwise that was not tried."""
        if not endpoints:
            return None
        ring = self._cache.get(endpoints)
        owners = ring.owners
        key = ctx.hash_key
        if key is None:
            key = ctx.rng.getrandbits(64)
        at = bisect_left(ring.points, key)
        size = len(owners)
        endpoint = endpoints[owners[at if at < size else 0]]
        excluded = ctx.excluded
        if not excluded or endpoint.key not in excluded:
            return endpoint
        for probe in range(at + 1, at + MAX_PROBES):
            endpoint = endpoints[owners[probe % size]]
            if endpoint.key not in excluded:
                return endpoint
        left = remaining(ctx, endpoints)
        return rendezvous(key, left) if left else None
