from __future__ import annotations

import random
from collections import Counter

from datum_router.balancing.base import ALL_USABLE, PickContext
from datum_router.balancing.least_request import LeastRequest
from datum_router.model.endpoint import Endpoint, EndpointKey, make_endpoint


def endpoints(*weights: int) -> tuple[Endpoint, ...]:
    return tuple(make_endpoint(f"10.0.0.{n}", 80, weight=weight) for n, weight in enumerate(weights, 1))


def test_of_two_endpoints_the_less_loaded_one_is_taken() -> None:
    candidates = endpoints(100, 100)
    ctx = PickContext(rng=random.Random(1), active={candidates[0].key: 2, candidates[1].key: 1})
    assert {LeastRequest().pick(ctx, candidates, ALL_USABLE) for _ in range(100)} == {candidates[1]}


def test_the_most_loaded_endpoint_is_never_taken() -> None:
    candidates = endpoints(1, 1, 1, 1)
    ctx = PickContext(rng=random.Random(1), active={candidates[2].key: 9})
    assert candidates[2] not in {LeastRequest().pick(ctx, candidates, ALL_USABLE) for _ in range(500)}


def test_load_is_compared_in_proportion_to_weight() -> None:
    candidates = endpoints(10, 1)
    ctx = PickContext(rng=random.Random(1), active={candidates[0].key: 5, candidates[1].key: 1})
    counts = Counter(LeastRequest().pick(ctx, candidates, ALL_USABLE) for _ in range(2000))
    # 5/10 < 1/1, so the small one is taken only when it is drawn twice: 1 in 121.
    assert counts[candidates[1]] < 50


def test_an_idle_service_follows_its_weights() -> None:
    candidates = endpoints(1, 3)
    ctx = PickContext(rng=random.Random(5))
    counts = Counter(LeastRequest().pick(ctx, candidates, ALL_USABLE) for _ in range(10_000))
    assert abs(counts[candidates[0]] - 2500) <= 3 * (10_000 * 0.25 * 0.75) ** 0.5


def test_queues_stay_short_where_random_choice_lets_them_grow() -> None:
    candidates = endpoints(*[1] * 50)
    balancer = LeastRequest()
    rng = random.Random(9)
    active: dict[EndpointKey, int] = {}
    for _ in range(5000):
        picked = balancer.pick(PickContext(rng=rng, active=active), candidates, ALL_USABLE)
        assert picked is not None
        active[picked.key] = active.get(picked.key, 0) + 1
    # 100 each on average; log log n above it with two choices, sqrt(n) above it (about 125) with one.
    assert max(active.values()) <= 104
