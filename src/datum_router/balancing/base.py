"""The contract between balancers and the router: what a pick sees, what it may return."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from datum_router.model.endpoint import Endpoint, EndpointKey

NOTHING_EXCLUDED: frozenset[EndpointKey] = frozenset()


class HealthView(Protocol):
    """What is known of the health of one service's endpoints."""

    def is_usable(self, key: EndpointKey) -> bool:
        """Tell whether an endpoint may get requests."""
        ...

    def usable_since(self, key: EndpointKey) -> float:
        """Return when it last became usable, in monotonic seconds; minus infinity if it always was."""
        ...


class PickContext:
    """What one pick may look at.

    Attributes:
        rng: Randomness of the serving process.
        now: Monotonic seconds.
        hash_key: 64-bit key of the request for consistent hashing, None if the request has none.
        active: Requests in flight per endpoint; absent = 0.
        excluded: Endpoints that this request has already tried in vain.
    """

    __slots__ = ("active", "excluded", "hash_key", "now", "rng")

    def __init__(
        self,
        *,
        rng: random.Random,
        now: float = 0.0,
        hash_key: int | None = None,
        active: Mapping[EndpointKey, int] | None = None,
        excluded: frozenset[EndpointKey] = NOTHING_EXCLUDED,
    ) -> None:
        self.rng = rng
        self.now = now
        self.hash_key = hash_key
        self.active: Mapping[EndpointKey, int] = {} if active is None else active
        self.excluded = excluded


class Balancer(Protocol):
    """Choose an endpoint."""

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return one of `endpoints`, or None if there is none that is not excluded.

        Args:
            endpoints: Candidates, already filtered by health, priority and place, each of weight > 0. The same
                object until the set or its weights change, so that tables may be kept by identity.
        """
        ...


def remaining(ctx: PickContext, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Return the candidates that are not excluded; the same object if none is."""
    if not ctx.excluded:
        return endpoints
    return [endpoint for endpoint in endpoints if endpoint.key not in ctx.excluded]
