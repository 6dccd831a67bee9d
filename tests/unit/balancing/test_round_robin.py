from __future__ import annotations

import itertools
import random
from collections import Counter

from datum_router.balancing.base import ALL_USABLE, PickContext
from datum_router.balancing.round_robin import RoundRobin
from datum_router.model.endpoint import Endpoint, make_endpoint


def endpoints(*weights: int) -> tuple[Endpoint, ...]:
    return tuple(make_endpoint(f"10.0.0.{n}", 80, weight=weight) for n, weight in enumerate(weights, 1))


def picks(balancer: RoundRobin, candidates: tuple[Endpoint, ...], count: int, seed: int = 1) -> list[Endpoint | None]:
    ctx = PickContext(rng=random.Random(seed))
    return [balancer.pick(ctx, candidates, ALL_USABLE) for _ in range(count)]


def test_equal_weights_take_strict_turns() -> None:
    candidates = endpoints(5, 5, 5)
    found = picks(RoundRobin(), candidates, 9)
    assert found[:3] == found[3:6] == found[6:9]
    assert set(found[:3]) == set(candidates)


def test_workers_begin_at_different_endpoints() -> None:
    candidates = endpoints(1, 1, 1, 1)
    first = {picks(RoundRobin(), candidates, 1, seed=seed)[0] for seed in range(40)}
    assert first == set(candidates)


def test_unequal_weights_are_spread_evenly_within_a_cycle() -> None:
    candidates = endpoints(5, 1, 1)
    found = picks(RoundRobin(), candidates, 7 * 20)
    positions = [n for n, endpoint in enumerate(found) if endpoint is candidates[0]]
    # Two others may stand between its turns, never more: five turns of seven are not made in one go with a long rest.
    assert max(b - a for a, b in itertools.pairwise(positions)) <= 3
    assert Counter(found) == {candidates[0]: 100, candidates[1]: 20, candidates[2]: 20}


def test_turns_go_on_when_an_endpoint_joins() -> None:
    balancer = RoundRobin()
    three = endpoints(1, 1, 1)
    four = (*three, make_endpoint("10.0.0.9", 80, weight=1))
    last = picks(balancer, three, 2)[-1]
    following = picks(balancer, four, 1)[0]
    assert last is not None
    assert following is four[(three.index(last) + 1) % 4]


def test_a_service_that_changes_before_each_pick_still_loads_all_endpoints() -> None:
    balancer = RoundRobin()
    ctx = PickContext(rng=random.Random(3))
    counts = Counter(balancer.pick(ctx, endpoints(1, 2), ALL_USABLE) for _ in range(3000))
    assert all(count > 300 for count in counts.values())
    assert len(counts) == 2


def test_retry_takes_the_next_turn_that_was_not_tried() -> None:
    candidates = endpoints(1, 1, 1)
    balancer = RoundRobin()
    rng = random.Random(2)
    for _ in range(12):
        first = balancer.pick(PickContext(rng=rng), candidates, ALL_USABLE)
        assert first is not None
        second = balancer.pick(PickContext(rng=rng, excluded=frozenset({first.key})), candidates, ALL_USABLE)
        assert second is candidates[(candidates.index(first) + 1) % 3]


def test_a_rare_endpoint_is_found_when_all_frequent_ones_were_tried() -> None:
    candidates = endpoints(1_000_000, 1_000_000, 1)
    excluded = frozenset(endpoint.key for endpoint in candidates[:2])
    found = RoundRobin().pick(PickContext(rng=random.Random(1), excluded=excluded), candidates, ALL_USABLE)
    assert found is candidates[2]


def test_proportions_hold_after_very_many_turns() -> None:
    candidates = endpoints(3, 7)
    balancer = RoundRobin()
    picks(balancer, candidates, 1)
    turns = balancer._cache.get(candidates)
    far = 10**11
    turns.heap = [
        (phase / weight + far, index, phase, weight * far)
        for _, index, phase, _ in turns.heap
        for weight in [turns.weights[index]]
    ]
    turns.heap.sort()
    assert Counter(picks(balancer, candidates, 1000)) == {candidates[0]: 300, candidates[1]: 700}
