from __future__ import annotations

import random
from collections import Counter

import pytest

from datum_router.balancing.base import ALL_USABLE, PickContext
from datum_router.balancing.hashing import hash64
from datum_router.balancing.ring_hash import MIN_POINTS, Ring, RingHash, points_per_endpoint
from datum_router.model.endpoint import Endpoint, make_endpoint

KEYS = [hash64(b"key-%d" % n) for n in range(5000)]


RING_DIGEST = 15076562052421682400
"""Of the points of three endpoints, as first released: versions side by side must agree."""


def endpoints(count: int) -> tuple[Endpoint, ...]:
    return tuple(make_endpoint(f"10.0.{n // 256}.{n % 256}", 80) for n in range(count))


def placed(candidates: tuple[Endpoint, ...], keys: list[int] = KEYS) -> list[Endpoint | None]:
    balancer = RingHash()
    rng = random.Random(1)
    return [balancer.pick(PickContext(rng=rng, hash_key=key), candidates, ALL_USABLE) for key in keys]


def test_only_keys_of_the_removed_endpoint_move() -> None:
    before = endpoints(10)
    after = before[:4] + before[5:]
    for old, new in zip(placed(before), placed(after), strict=True):
        assert new is old or old is before[4]


def test_order_of_endpoints_does_not_matter() -> None:
    candidates = endpoints(12)
    assert placed(candidates) == placed(tuple(reversed(candidates)))


def test_weights_decide_the_share_of_keys() -> None:
    candidates = tuple(make_endpoint(f"10.0.0.{n}", 80, weight=weight) for n, weight in enumerate((1, 2, 2), 1))
    counts = Counter(placed(candidates))
    for candidate in candidates:
        assert abs(counts[candidate] / len(KEYS) - candidate.weight / 5) < 0.08


@pytest.mark.parametrize(("count", "points"), [(1, 256), (512, 256), (513, 64), (2048, 64), (2049, MIN_POINTS)])
def test_ring_is_bounded_by_size_classes(count: int, points: int) -> None:
    assert points_per_endpoint(count) == points
    if count <= 513:
        assert len(Ring(endpoints(count)).points) == count * points


def test_the_largest_service_keeps_the_ring_below_its_bound() -> None:
    assert max(points_per_endpoint(n) * n for n in (512, 2048, 10_000)) <= 160_000


def test_keys_at_both_ends_of_the_ring_have_an_owner() -> None:
    candidates = endpoints(3)
    ring = Ring(candidates)
    first = candidates[ring.owners[0]]
    assert placed(candidates, [0, 2**64 - 1, ring.points[0], ring.points[-1]]) == [
        first,
        first,
        first,
        candidates[ring.owners[-1]],
    ]


def test_ring_has_known_points_so_that_no_release_moves_keys_unseen() -> None:
    ring = Ring(endpoints(3))
    assert hash64(b"".join(point.to_bytes(8, "little") for point in ring.points)) == RING_DIGEST
