"""What a balancer is: the protocol, what it is told, and the tools that every algorithm shares.

Theory of operation: `ServiceBalancer` decides *who may* be picked (health, weight 0, priority, locality, panic); a
`Balancer` decides *which one* of those it is. The candidates come as a tuple that stays the same object until
the set or a weight changes, so a balancer may keep what it computed from it (`TableCache`). Health is shown for
balancers with a preference of their own; they need not filter by it, and in a panic they must not: then
`endpoints` holds unhealthy ones on purpose.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

import msgspec

from datum_router.model.endpoint import Endpoint, EndpointKey

T = TypeVar("T")

ALWAYS = -math.inf
"""`usable_since` of an endpoint that has been usable for as long as we know: never in slow start."""

MAX_CACHED_TABLES = 16
"""Candidate sets (priority and locality levels) per balancer whose tables are kept; the oldest is dropped."""


class PickContext(msgspec.Struct, kw_only=True, gc=False):
    """What a balancer is told about one pick.

    Attributes:
        now: Monotonic seconds.
        hash_key: 64-bit hash of what the policy names (`hashkey.hash_key`); None if the request does not have it.
        active: Requests in flight per endpoint of the service, absent = 0. Read only.
        excluded: Endpoints that this request has already tried; must not be picked.
    """

    rng: random.Random
    now: float = 0.0
    hash_key: int | None = None
    active: Mapping[EndpointKey, int] = {}
    excluded: frozenset[EndpointKey] = frozenset()


class HealthView(Protocol):
    """An immutable view of the health of one service's endpoints."""

    def is_usable(self, key: EndpointKey) -> bool:
        """Tell whether the endpoint may take new requests; true for endpoints that nothing is known about."""
        ...

    def usable_since(self, key: EndpointKey) -> float:
        """Return the monotonic seconds at which it became usable, `ALWAYS` if it was from the beginning.

        Meaningless for an endpoint that is not usable.
        """
        ...


class AllUsable:
    """The view of a service whose endpoints are neither probed nor ejected."""

    __slots__ = ()

    def is_usable(self, key: EndpointKey) -> bool:
        """Return True."""
        return True

    def usable_since(self, key: EndpointKey) -> float:
        """Return `ALWAYS`."""
        return ALWAYS


ALL_USABLE = AllUsable()


class Balancer(Protocol):
    """Choose one of several endpoints. One object serves one rule and one service, from one thread."""

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return one of `endpoints` whose key is not in `ctx.excluded`, or None if there is none.

        Never raises and never changes what it is given. Equal calls with an equal `ctx.rng` state give equal picks.

        Args:
            endpoints: The candidates, each with weight >= 1. The same object until the candidates change.
        """
        ...


class TableCache(Generic[T]):
    """Remember what was computed from a candidate tuple, by the identity of the tuple.

    Holds the tuples themselves, so an identity cannot be reused while it is remembered. O(1); at most
    `MAX_CACHED_TABLES` entries.
    """

    __slots__ = ("_build", "_entries", "_last", "_table")

    def __init__(self, build: Callable[[Sequence[Endpoint]], T]) -> None:
        self._build = build
        self._entries: dict[int, tuple[Sequence[Endpoint], T]] = {}
        self._last: Sequence[Endpoint] | None = None
        self._table: T | None = None

    def get(self, endpoints: Sequence[Endpoint]) -> T:
        """Return the table of `endpoints` (at least one), building it if this object was not seen lately."""
        table = self._table
        if endpoints is self._last and table is not None:
            return table
        entry = self._entries.get(id(endpoints))
        if entry is None:
            if len(self._entries) >= MAX_CACHED_TABLES:
                del self._entries[next(iter(self._entries))]
            entry = (endpoints, self._build(endpoints))
            self._entries[id(endpoints)] = entry
        self._last, self._table = entry
        return entry[1]


def cumulative_weights(endpoints: Sequence[Endpoint]) -> list[int] | None:
    """Return running sums of the weights, or None if all weights are equal."""
    first = endpoints[0].weight
    if all(endpoint.weight == first for endpoint in endpoints):
        return None
    return list(accumulate(max(0, endpoint.weight) for endpoint in endpoints))


def remaining(ctx: PickContext, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return the endpoints that this request has not tried, in order. O(n): for retries only."""
    excluded = ctx.excluded
    return [endpoint for endpoint in endpoints if endpoint.key not in excluded]


def pick_weighted(ctx: PickContext, endpoints: Sequence[Endpoint]) -> Endpoint | None:
    """Return a random untried endpoint with probability in proportion to its weight. O(n): for retries only."""
    left = remaining(ctx, endpoints)
    if not left:
        return None
    at = ctx.rng.random() * sum(endpoint.weight for endpoint in left)
    for endpoint in left:
        at -= endpoint.weight
        if at < 0:
            return endpoint
    return left[-1]
