from __future__ import annotations

import random
from collections import Counter

import pytest

from datum_router.balancing.base import ALL_USABLE, PickContext
from datum_router.balancing.hashing import hash64
from datum_router.balancing.maglev import Maglev, is_prime, maglev_table, next_prime, permutations
from datum_router.model.endpoint import Endpoint, make_endpoint
from datum_router.model.route import BalancingPolicy
from datum_router.testing.factories import make_endpoints

TABLE_DIGEST = 9568311363424445655
"""Of the table of five endpoints with 251 slots, as first released: versions side by side must agree."""


def endpoints(count: int, weight: int = 100) -> tuple[Endpoint, ...]:
    return tuple(make_endpoint(f"10.0.{n // 256}.{n % 256}", 80, weight=weight) for n in range(count))


def owners(candidates: tuple[Endpoint, ...], size: int = 65537) -> list[str]:
    return [candidates[index].key for index in maglev_table(candidates, size)]


def test_next_prime_keeps_primes_and_raises_others() -> None:
    assert [next_prime(n) for n in (-1, 2, 251, 252, 65537, 65536)] == [2, 2, 251, 257, 65537, 65537]
    assert not is_prime(1)


def test_table_has_known_owners_so_that_no_release_moves_keys_unseen() -> None:
    table = maglev_table(endpoints(5), 251)
    assert hash64(bytes(table)) == TABLE_DIGEST


def test_table_does_not_depend_on_the_order_of_endpoints() -> None:
    candidates = endpoints(20)
    shuffled = list(candidates)
    random.Random(1).shuffle(shuffled)
    assert owners(candidates, 1009) == owners(tuple(shuffled), 1009)


@pytest.mark.parametrize("count", [2, 7, 100])
def test_equal_weights_share_slots_evenly(count: int) -> None:
    counts = Counter(owners(endpoints(count)))
    assert len(counts) == count
    assert max(counts.values()) - min(counts.values()) <= 1


def test_weights_decide_the_share_of_slots() -> None:
    candidates = tuple(make_endpoint(f"10.0.0.{n}", 80, weight=weight) for n, weight in enumerate((1, 2, 7), 1))
    counts = Counter(owners(candidates))
    for candidate in candidates:
        assert abs(counts[candidate.key] / 65537 - candidate.weight / 10) < 0.005


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_removal_moves_at_most_two_percent_beyond_the_share_of_the_removed(count: int) -> None:
    before = endpoints(count)
    after = before[: count // 3] + before[count // 3 + 1 :]
    moved = sum(a != b for a, b in zip(owners(before), owners(after), strict=True)) / 65537
    assert moved <= 1 / count + 0.02


def test_a_thousand_endpoints_each_get_their_share_of_the_table() -> None:
    table = maglev_table(endpoints(1000), 65537)
    shares = [table.count(index) for index in range(1000)]
    assert sum(shares) == 65537
    assert max(shares) - min(shares) <= 1


def test_retry_goes_to_another_endpoint_always_the_same_one() -> None:
    candidates = endpoints(4)
    balancer = Maglev(BalancingPolicy(table_size=251))
    for client in range(50):
        key = hash64(b"%d" % client)
        first = balancer.pick(PickContext(rng=random.Random(0), hash_key=key), candidates, ALL_USABLE)
        assert first is not None
        retries = {
            balancer.pick(
                PickContext(rng=random.Random(seed), hash_key=key, excluded=frozenset({first.key})),
                candidates,
                ALL_USABLE,
            )
            for seed in range(5)
        }
        assert len(retries) == 1
        assert first not in retries


def test_requests_without_a_key_follow_the_weights() -> None:
    candidates = (make_endpoint("10.0.0.1", 80, weight=1), make_endpoint("10.0.0.2", 80, weight=3))
    balancer = Maglev()
    ctx = PickContext(rng=random.Random(4))
    counts = Counter(balancer.pick(ctx, candidates, ALL_USABLE) for _ in range(4000))
    assert abs(counts[candidates[0]] - 1000) <= 3 * (4000 * 0.25 * 0.75) ** 0.5


def test_no_two_endpoints_walk_the_same_path() -> None:
    # These two keys hash to one step (18,595 of 65,537); with it a third one's leaving moved twice 1/n of all keys.
    keys = [endpoint.key for endpoint in make_endpoints(21, port=44093)]
    _, skips = permutations(sorted(keys), 65537)
    assert len({min(skip, 65537 - skip) for skip in skips}) == 21


def test_small_tables_that_run_out_of_steps_are_still_filled() -> None:
    assert len(maglev_table(endpoints(200), 251)) == 251
