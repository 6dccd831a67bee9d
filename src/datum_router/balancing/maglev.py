"""Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4): a table of prime size filled in turns.

Each endpoint has a permutation of the slots, (offset + j * skip) mod M, from a hash of its key. Endpoints take turns
(as often as weight / greatest weight says) and each claims the next free slot of its own permutation. The table
depends on keys and weights alone, not on the order of endpoints: it is the same on every worker and after a restart.
A look-up is one index. Filling takes about M ln M steps (tens of milliseconds), so a table is made once for each
candidate set.

Shares are even to about 1 %, but removal of one endpoint moves some keys of others too: with 65,537 slots under 1.3 /
n in all up to about 50 endpoints, and less than 1 % of all keys beyond 1 / n at any number. `consistent-hash-ring`
moves less.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from heapq import heapify, heapreplace

from datum_router.balancing.base import HealthView, PickContext, TableCache, remaining
from datum_router.balancing.hashing import rendezvous
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy

MAX_PROBES = 64
"""Slots looked at to find an untried endpoint before the choice is made by rendezvous hashing among those left."""


MAX_REHASHES = 16
"""Steps tried for one endpoint before an equal one is put up with: small tables run out of distinct steps."""


def is_prime(number: int) -> bool:
    """Tell whether a number (below 10**12, trial division) is prime."""
    return number >= 2 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def next_prime(number: int) -> int:
    """Return the smallest prime that is not below `number`."""
    number = max(2, number)
    while not is_prime(number):
        number += 1
    return number


def permutations(keys: Sequence[str], size: int) -> tuple[list[int], list[int]]:
    """Return each key's first slot and its step, from its hash.

    Equal (or opposite) steps make two endpoints walk the same path and chase each other: when a third one leaves, both
    lose far more slots than they should (twice 1/n in all was measured). With 21 endpoints and 65,537 slots that
    happens once in a few hundred sets, so the later key of such a pair takes a step from a further hash.
    """
    offsets: list[int] = []
    skips: list[int] = []
    taken: set[int] = set()
    for key in keys:
        digest = blake2b(key.encode(), digest_size=16).digest()
        offsets.append(int.from_bytes(digest[:8], "little") % size)
        for _ in range(MAX_REHASHES):
            skip = int.from_bytes(digest[8:], "little") % (size - 1) + 1
            if skip not in taken:
                break
            digest = blake2b(digest, digest_size=16).digest()
        taken.update((skip, size - skip))
        skips.append(skip)
    return offsets, skips


def maglev_table(endpoints: Sequence[Endpoint], size: int) -> array[int]:
    """Return the table: slot -> index into `endpoints`.

    Args:
        endpoints: 1 to 65,535 endpoints of weight >= 1; more than `size` leaves some without a slot.
        size: Prime.
    """
    order = sorted(range(len(endpoints)), key=lambda index: endpoints[index].key)
    table = array("H", [0]) * size
    if len(order) == 1:
        return table
    free = bytearray(b"\x01") * size
    next_slot, skips = permutations([endpoints[index].key for index in order], size)
    weights = [endpoints[index].weight for index in order]
    top = max(weights)
    turns = itertools.cycle(range(len(order))) if min(weights) == top else _weighted_turns(weights, top)
    left = size
    for rank in turns:
        slot = next_slot[rank]
        skip = skips[rank]
        while not free[slot]:
            slot += skip
            if slot >= size:
                slot -= size
        free[slot] = 0
        table[slot] = order[rank]
        left -= 1
        if not left:
            break
        slot += skip
        next_slot[rank] = slot - size if slot >= size else slot
    return table


def _weighted_turns(weights: Sequence[int], top: int) -> Iterator[int]:
    """Yield ranks for ever: the k-th turn of a rank is in round ceil(k * top / weight), ties by rank.

    O(log n) a turn, however far apart weights are: going round everybody to find who has a turn would take rounds in
    proportion to the slots for each endpoint that hardly ever has one.
    """
    heap = [(-(-top // weight), rank, 1) for rank, weight in enumerate(weights)]
    heapify(heap)
    while True:
        _, rank, turn = heap[0]
        yield rank
        heapreplace(heap, (-(-(turn + 1) * top // weights[rank]), rank, turn + 1))


class Maglev:
    """Look the key up in a Maglev table of `policy.table_size` slots (raised to the next prime).

    Registered as `consistent-hash`. Without a key it picks at random by weight.
    """

    __slots__ = ("_cache", "_size")

    def __init__(self, policy: BalancingPolicy = BalancingPolicy()) -> None:
        size = next_prime(policy.table_size)
        self._size = size
        self._cache = TableCache(lambda endpoints: maglev_table(endpoints, size))

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the key's endpoint, or for a retry the next one in table order that was not tried."""
        if not endpoints:
            return None
        table = self._cache.get(endpoints)
        key = ctx.hash_key
        if key is None:
            key = ctx.rng.getrandbits(64)
        slot = key % self._size
        endpoint = endpoints[table[slot]]
        excluded = ctx.excluded
        if not excluded or endpoint.key not in excluded:
            return endpoint
        for probe in range(slot + 1, slot + MAX_PROBES):
            endpoint = endpoints[table[probe % self._size]]
            if endpoint.key not in excluded:
                return endpoint
        left = remaining(ctx, endpoints)
        return rendezvous(key, left) if left else None
