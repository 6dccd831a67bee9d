"""Consistent hashing: few keys move, shares are near-equal, every process builds the same table."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.balancing.base import ALL_USABLE, Balancer, PickContext
from datum_router.balancing.hashing import hash64
from datum_router.balancing.maglev import Maglev, maglev_table, permutations
from datum_router.balancing.ring_hash import RingHash
from datum_router.model.endpoint import Endpoint, make_endpoint

KEYS = [hash64(b"client-%d" % number) for number in range(8000)]
BALANCERS = {"maglev": Maglev, "ring": RingHash}
MOVED = 1.3
"""Times 1/n of the keys may move when one of n leaves."""


def endpoints(count: int) -> tuple[Endpoint, ...]:
    return tuple(make_endpoint(f"10.3.0.{number}", 8080) for number in range(count))


def homes(balancer: Balancer, candidates: Sequence[Endpoint]) -> list[str]:
    found = []
    for key in KEYS:
        picked = balancer.pick(PickContext(rng=random.Random(0), hash_key=key), candidates, ALL_USABLE)
        assert picked is not None
        found.append(str(picked.key))
    return found


@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize("count", [2, 5, 20])
def test_few_keys_move_when_one_leaves_and_shares_are_near_equal(name: str, count: int) -> None:
    candidates = endpoints(count)
    before = homes(BALANCERS[name](), candidates)
    after = homes(BALANCERS[name](), candidates[1:])
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    assert moved <= MOVED * len(KEYS) / count
    counts = Counter(before)
    assert set(counts) == {endpoint.key for endpoint in candidates}
    assert max(counts.values()) <= MOVED * len(KEYS) / count
    assert min(counts.values()) >= len(KEYS) / count / MOVED


@settings(max_examples=15, deadline=None)
@given(count=st.integers(2, 12), seed=st.integers(0, 2**16), data=st.data())
def test_only_keys_of_the_endpoint_that_left_move_on_a_ring(count: int, seed: int, data: st.DataObject) -> None:
    candidates = endpoints(count)
    gone = data.draw(st.integers(0, count - 1))
    rng = random.Random(seed)
    left = tuple(endpoint for index, endpoint in enumerate(candidates) if index != gone)
    full, less = RingHash(), RingHash()
    for _ in range(200):
        ctx = PickContext(rng=rng, hash_key=rng.getrandbits(64))
        home = full.pick(ctx, candidates, ALL_USABLE)
        assert home is candidates[gone] or less.pick(ctx, left, ALL_USABLE) is home


@pytest.mark.parametrize("name", BALANCERS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_homes_do_not_depend_on_the_order_of_the_list(name: str, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    candidates = [make_endpoint(f"10.3.0.{number}", 80, weight=weight) for number, weight in enumerate(weights)]
    shuffled = data.draw(st.permutations(candidates))
    first, second = BALANCERS[name](), BALANCERS[name]()
    a, b = tuple(candidates), tuple(shuffled)
    for key in KEYS[:300]:
        ctx = PickContext(rng=random.Random(0), hash_key=key)
        assert first.pick(ctx, a, ALL_USABLE) == second.pick(ctx, b, ALL_USABLE)


HOMES = """
import random
from datum_router.balancing.base import ALL_USABLE, PickContext
from datum_router.balancing.hashing import hash64
from datum_router.balancing.maglev import Maglev
from datum_router.balancing.ring_hash import RingHash
from datum_router.model.endpoint import make_endpoint
candidates = tuple(make_endpoint(f"10.3.0.{n}", 80, weight=n + 1) for n in range(7))
for balancer in (Maglev(), RingHash()):
    for n in range(500):
        ctx = PickContext(rng=random.Random(0), hash_key=hash64(b"%d" % n))
        print(balancer.pick(ctx, candidates, ALL_USABLE).key)
"""


def test_another_process_with_another_hash_seed_has_the_same_tables() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", HOMES],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("11", "12")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == 1000


def slow_table(candidates: Sequence[Endpoint], size: int) -> list[int]:
    """The paper's population with weights, round by round: who has gathered a whole turn takes a slot."""
    order = sorted(range(len(candidates)), key=lambda index: candidates[index].key)
    offsets, skips = permutations([candidates[index].key for index in order], size)
    reference = {
        index: [(offset + step * skip) % size for step in range(size)]
        for index, offset, skip in zip(order, offsets, skips, strict=True)
    }
    top = max(endpoint.weight for endpoint in candidates)
    credit = dict.fromkeys(order, 0)
    table: dict[int, int] = {}
    while True:
        for index in order:
            credit[index] += candidates[index].weight
            if credit[index] < top:
                continue
            credit[index] -= top
            table[next(slot for slot in reference[index] if slot not in table)] = index
            if len(table) == size:
                return [table[slot] for slot in range(size)]


@settings(max_examples=80, deadline=None)
@given(weights=st.lists(st.integers(1, 60), min_size=1, max_size=12), size=st.sampled_from((2, 3, 13, 101)))
def test_maglev_table_equals_the_round_by_round_population(weights: list[int], size: int) -> None:
    candidates = [make_endpoint(f"10.3.0.{number}", 80, weight=weight) for number, weight in enumerate(weights)]
    assert list(maglev_table(candidates, size)) == slow_table(candidates, size)


def test_weights_far_apart_still_fill_the_table_by_weight() -> None:
    candidates = [
        make_endpoint(f"10.3.{number // 256}.{number % 256}", 80, weight=1_000_000 if number == 0 else 1)
        for number in range(1000)
    ]
    table = maglev_table(candidates, 65537)
    assert table.count(0) >= 65537 * 0.99
