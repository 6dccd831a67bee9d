"""Source-IP affinity: consistent hashing of the client address, whatever `hashOn` says (see `hashkey.hash_key`)."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.balancing.base import HealthView, PickContext
from datum_router.balancing.maglev import Maglev
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import BalancingPolicy


class SourceIp:
    """Keep a client at one endpoint while that endpoint is usable. An unknown address is placed at random."""

    __slots__ = ("_maglev",)

    def __init__(self, policy: BalancingPolicy = BalancingPolicy()) -> None:
        self._maglev = Maglev(policy)

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the client's endpoint, or for a retry one that was not tried."""
        return self._maglev.pick(ctx, endpoints, health)
