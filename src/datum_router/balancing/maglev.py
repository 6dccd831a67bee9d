"""Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4): O(1) look-up, near-equal shares."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from datum_router.balancing.base import HealthView, PickContext
from datum_router.balancing.hashing import hash_bytes, mix
from datum_router.balancing.random_choice import draw_once
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy

DEFAULT_TABLE_SIZE = 65537


class Maglev:
    """Send equal keys to equal endpoints; without a key choose at random."""

    __slots__ = ("_endpoints", "_size", "_table")

    def __init__(self, policy: BalancingPolicy | None = None) -> None:
        self._size = DEFAULT_TABLE_SIZE if policy is None else policy.table_size
        self._endpoints: Sequence[Endpoint] = ()
        self._table = array("i")

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the owner of the key; if it is excluded, the owner of the key's next hash."""
        if not endpoints:
            return None
        key = ctx.hash_key
        if endpoints is not self._endpoints:
            self._endpoints = endpoints
            self._table = build_table(endpoints, self._size)
        excluded = ctx.excluded
        if key is None:
            candidates = [item for item in endpoints if item.key not in excluded] if excluded else endpoints
            return draw_once(ctx, candidates) if candidates else None
        found = endpoints[self._table[key % self._size]]
        if not excluded or found.key not in excluded:
            return found
        # A second owner that depends on the key alone: all retries of one key meet at the same endpoint.
        for _ in range(8 * len(endpoints)):
            key = mix(key + 0x9E3779B97F4A7C15)
            found = endpoints[self._table[key % self._size]]
            if found.key not in excluded:
                return found
        return next((item for item in endpoints if item.key not in excluded), None)


def build_table(endpoints: Sequence[Endpoint], size: int) -> array[int]:
    """Return the look-up table: `size` (a prime) indexes into `endpoints`, shares in proportion to weights.

    Endpoints take turns in order of their keys, so that the table does not depend on the order of the list. In each
    round an endpoint claims the next free entry of its own permutation; a lighter one sits out some rounds.
    """
    order = sorted(range(len(endpoints)), key=lambda index: endpoints[index].key)
    offsets, skips, weights = [], [], []
    heaviest = max(endpoint.weight for endpoint in endpoints)
    for index in order:
        name = endpoints[index].key.encode()
        offsets.append(hash_bytes(name, salt=b"maglev-offset") % size)
        skips.append(hash_bytes(name, salt=b"maglev-skip") % (size - 1) + 1)
        weights.append(endpoints[index].weight / heaviest)
    table = array("i", [-1]) * size
    credits = [0.0] * len(order)
    filled = 0
    while True:
        for turn, index in enumerate(order):
            credits[turn] += weights[turn]
            if credits[turn] < 1.0:
                continue
            credits[turn] -= 1.0
            position, skip = offsets[turn], skips[turn]
            while table[position] >= 0:
                position += skip
                if position >= size:
                    position -= size
            table[position] = index
            position += skip
            offsets[turn] = position - size if position >= size else position
            filled += 1
            if filled == size:
                return table
