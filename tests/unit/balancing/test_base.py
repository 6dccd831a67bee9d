from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from datum_router.balancing.base import (
    ALL_USABLE,
    ALWAYS,
    MAX_CACHED_TABLES,
    PickContext,
    TableCache,
    cumulative_weights,
    pick_weighted,
)
from datum_router.model.endpoint import Endpoint, EndpointKey, make_endpoint


def endpoints(*weights: int) -> tuple[Endpoint, ...]:
    return tuple(make_endpoint(f"10.0.0.{n}", 80, weight=weight) for n, weight in enumerate(weights, 1))


def test_table_is_built_once_for_one_candidate_tuple() -> None:
    built: list[int] = []

    def build(candidates: Sequence[Endpoint]) -> int:
        built.append(len(candidates))
        return len(candidates)

    cache = TableCache(build)
    one, two = endpoints(1), endpoints(1, 1)
    assert [cache.get(candidates) for candidates in (one, two, one, two, two)] == [1, 2, 1, 2, 2]
    assert built == [1, 2]


def test_cache_holds_at_most_its_limit_and_drops_the_oldest() -> None:
    built: list[int] = []

    def build(candidates: Sequence[Endpoint]) -> int:
        built.append(candidates[0].weight)
        return candidates[0].weight

    cache = TableCache(build)
    sets = [endpoints(number) for number in range(1, MAX_CACHED_TABLES + 2)]
    for candidates in sets:
        cache.get(candidates)
    assert len(cache._entries) == MAX_CACHED_TABLES
    assert cache.get(sets[1]) == 2
    assert cache.get(sets[0]) == 1
    assert built == [*range(1, MAX_CACHED_TABLES + 2), 1]


def test_cumulative_weights_are_none_for_equal_weights() -> None:
    assert cumulative_weights(endpoints(7, 7, 7)) is None
    assert cumulative_weights(endpoints(1, 2, 5)) == [1, 3, 8]


def test_pick_weighted_follows_the_weights_of_those_left() -> None:
    candidates = endpoints(1, 3, 1000)
    ctx = PickContext(rng=random.Random(7), excluded=frozenset({candidates[2].key}))
    counts = Counter(pick_weighted(ctx, candidates) for _ in range(4000))
    assert set(counts) == set(candidates[:2])
    assert abs(counts[candidates[1]] - 3000) < 3 * (4000 * 0.75 * 0.25) ** 0.5


def test_all_usable_knows_nothing_bad() -> None:
    assert ALL_USABLE.is_usable(EndpointKey("10.0.0.1:80"))
    assert ALL_USABLE.usable_since(EndpointKey("10.0.0.1:80")) == ALWAYS
