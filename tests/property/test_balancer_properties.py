"""Every balancer: only untried candidates, None only when nobody is left; shares in proportion to weights."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.balancing.base import ALL_USABLE, Balancer, PickContext
from datum_router.balancing.least_request import LeastRequest
from datum_router.balancing.maglev import Maglev
from datum_router.balancing.random_choice import RandomChoice
from datum_router.balancing.ring_hash import RingHash
from datum_router.balancing.round_robin import RoundRobin
from datum_router.balancing.source_ip import SourceIp
from datum_router.balancing.split import Split
from datum_router.model.endpoint import Endpoint, make_endpoint
from datum_router.model.route import BalancingPolicy
from datum_router.testing.factories import make_destination

SMALL_TABLE = BalancingPolicy(table_size=251)
MAKERS: dict[str, Callable[[], Balancer]] = {
    "round-robin": RoundRobin,
    "least-connections": LeastRequest,
    "random": RandomChoice,
    "source-ip": lambda: SourceIp(SMALL_TABLE),
    "consistent-hash": lambda: Maglev(SMALL_TABLE),
    "consistent-hash-ring": RingHash,
}
SIGMAS = 5
weights_of_any_size = st.lists(st.sampled_from((1, 2, 3, 99, 100, 1_000_000)), min_size=1, max_size=9)


def endpoints(weights: list[int]) -> tuple[Endpoint, ...]:
    return tuple(make_endpoint(f"10.0.0.{n}", 80, weight=weight) for n, weight in enumerate(weights, 1))


def assert_shares(counts: Counter[str], weights: dict[str, int], picks: int) -> None:
    total = sum(weights.values())
    for name, weight in weights.items():
        share = weight / total
        bound = max(2.0, SIGMAS * (picks * share * (1 - share)) ** 0.5)
        assert abs(counts[name] - picks * share) <= bound, f"{name}: {counts[name]} of {picks}, weight {weight}/{total}"


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60, deadline=None)
@given(weights=weights_of_any_size, seed=st.integers(0, 2**32), data=st.data())
def test_picks_are_untried_candidates_and_none_means_all_were_tried(
    name: str, weights: list[int], seed: int, data: st.DataObject
) -> None:
    candidates = endpoints(weights)
    balancer = MAKERS[name]()
    rng = random.Random(seed)
    for _ in range(6):
        tried = data.draw(st.frozensets(st.sampled_from([endpoint.key for endpoint in candidates])))
        key = data.draw(st.none() | st.integers(0, 2**64 - 1))
        picked = balancer.pick(PickContext(rng=rng, hash_key=key, excluded=tried), candidates, ALL_USABLE)
        if len(tried) == len(candidates):
            assert picked is None
        else:
            assert picked in candidates
            assert picked.key not in tried


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    start=st.integers(0, 60),
    seed=st.integers(0, 2**32),
)
def test_round_robin_gives_every_turn_in_exact_proportion_wherever_it_begins(
    weights: list[int], start: int, seed: int
) -> None:
    candidates = endpoints(weights)
    balancer = RoundRobin()
    ctx = PickContext(rng=random.Random(seed))
    for _ in range(start):
        balancer.pick(ctx, candidates, ALL_USABLE)
    counts = Counter(balancer.pick(ctx, candidates, ALL_USABLE) for _ in range(sum(weights)))
    assert counts == {endpoint: endpoint.weight for endpoint in candidates}


@settings(max_examples=25, deadline=None)
@given(weights=weights_of_any_size, seed=st.integers(0, 2**16))
def test_random_choice_hits_in_proportion_to_weight(weights: list[int], seed: int) -> None:
    candidates = endpoints(weights)
    balancer = RandomChoice()
    ctx = PickContext(rng=random.Random(seed))
    counts: Counter[str] = Counter()
    for _ in range(2000):
        picked = balancer.pick(ctx, candidates, ALL_USABLE)
        assert picked is not None
        counts[picked.key] += 1
    assert_shares(counts, {endpoint.key: endpoint.weight for endpoint in candidates}, 2000)


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.sampled_from((0, 1, 2, 50, 1_000_000)), min_size=1, max_size=6), seed=st.integers(0, 2**16))
def test_splits_follow_weights_and_weight_zero_takes_nothing(weights: list[int], seed: int) -> None:
    split = Split([make_destination(f"d/{n}", weight) for n, weight in enumerate(weights)])
    rng = random.Random(seed)
    chosen = [split.choose(rng, lambda _ref: True) for _ in range(2000)]
    if not any(weights):
        assert set(chosen) == {None}
        return
    counts = Counter(str(ref.service) for ref in chosen if ref is not None)
    assert sum(counts.values()) == 2000
    assert all(counts[f"d/{n}"] == 0 for n, weight in enumerate(weights) if weight == 0)
    assert_shares(counts, {f"d/{n}": weight for n, weight in enumerate(weights) if weight}, 2000)


@settings(max_examples=50, deadline=None)
@given(
    loads=st.lists(st.integers(0, 20), min_size=2, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_least_request_never_takes_an_endpoint_that_is_busier_than_all_others(loads: list[int], seed: int) -> None:
    candidates = endpoints([100] * len(loads))
    active = {endpoint.key: load for endpoint, load in zip(candidates, loads, strict=True)}
    most = max(loads)
    balancer = LeastRequest()
    ctx = PickContext(rng=random.Random(seed), active=active)
    picked = [balancer.pick(ctx, candidates, ALL_USABLE) for _ in range(100)]
    if loads.count(most) == 1:
        assert all(endpoint is not None and active[endpoint.key] < most for endpoint in picked)
    mean = sum(active[endpoint.key] for endpoint in picked if endpoint is not None) / 100
    # Of two different ones the less loaded: on average never above the mean load, but for the spread of 100 picks.
    assert mean <= sum(loads) / len(loads) + SIGMAS * (most - min(loads)) / 2 / 10
