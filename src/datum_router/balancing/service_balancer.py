"""One rule's view of one service: holds the candidates and asks the balancer for one of them.

Candidates are computed when endpoints or health change, not per pick. If nothing changed in a level it stays the same
tuple, so that the balancer keeps its tables. During slow start the weights are computed anew at most every
`RAMP_INTERVAL_S`. The balancer itself lives as long as this object: a round-robin does not begin anew when an
endpoint comes or goes.
"""

from __future__ import annotations

import math

import msgspec

from datum_router.balancing.base import ALL_USABLE, Balancer, HealthView, PickContext
from datum_router.balancing.hashkey import is_sticky
from datum_router.balancing.locality import Candidates, Level, SharedCandidates, ramped
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, EndpointKey, Locality
from datum_router.model.route import BalancingPolicy, LocalityPolicy
from datum_router.model.service import Service

RAMP_INTERVAL_S = 0.25
"""Least time between two computations of slow-start weights."""

_NEVER = math.inf
_AT_ONCE = -math.inf


class ServiceBalancer:
    """Pick endpoints of one service for one rule. Single-threaded.

    Consistent hashing (the three built-in hash balancers) takes no part in slow start: changing weights would move keys
    several times over, which costs more than the cold endpoint does.
    """

    __slots__ = (
        "_balancer",
        "_bounds",
        "_gateway_locality",
        "_health",
        "_is_sticky",
        "_levels",
        "_locality",
        "_originals",
        "_ramp_at",
        "_service",
        "_shared",
        "_slow_start_s",
        "_whole",
        "candidates",
    )

    def __init__(
        self,
        service: Service,
        *,
        balancing: BalancingPolicy,
        locality: LocalityPolicy,
        balancer: Balancer,
        gateway_locality: Locality = UNKNOWN_LOCALITY,
        health: HealthView = ALL_USABLE,
        shared: SharedCandidates | None = None,
    ) -> None:
        """Begin with the service as it is now.

        Args:
            shared: What all rules of the service share, so that candidates are computed once for all of them.
        """
        self._service = service
        self._shared = shared or SharedCandidates()
        self._locality = locality
        self._balancer = balancer
        self._gateway_locality = gateway_locality
        self._health = health
        self._is_sticky = is_sticky(balancing)
        self._slow_start_s = 0.0 if self._is_sticky else balancing.slow_start_s
        self._levels: tuple[tuple[Endpoint, ...], ...] = ()
        self._bounds: tuple[float, ...] = ()
        self._whole: tuple[Endpoint, ...] | None = None  # the first level if it takes every pick as it stands
        self._originals: dict[EndpointKey, Endpoint] | None = None
        self._ramp_at = _NEVER
        self.candidates = Candidates()
        self._compute()

    @property
    def has_candidates(self) -> bool:
        """Tell whether a usable endpoint is there. In a panic it may be False though `pick` gives one."""
        return self.candidates.usable > 0

    @property
    def is_panicking(self) -> bool:
        """Tell whether health is being ignored because too few endpoints are usable."""
        return self.candidates.is_panicking

    @property
    def is_spilling(self) -> bool:
        """Tell whether requests leave the first place or priority since it lacks usable capacity."""
        return self.candidates.spilled > 0

    def update_service(self, service: Service, health: HealthView) -> None:
        """Take a new version of the service, with its health; the balancer keeps its state."""
        self._service = service
        self._health = health
        self._compute()

    def update_health(self, health: HealthView) -> None:
        """Take a new view of the endpoints' health."""
        self._health = health
        self._compute()

    def update_place(self, gateway_locality: Locality) -> None:
        """Take the place where the gateway is now."""
        self._gateway_locality = gateway_locality
        self._compute()

    def pick(self, ctx: PickContext) -> Endpoint | None:
        """Return an endpoint that this request has not tried, None if none may be picked."""
        if ctx.now >= self._ramp_at:
            self._ramp(ctx.now)
        whole = self._whole
        if whole is not None:
            picked = self._balancer.pick(ctx, whole, self._health)
            if picked is not None or len(self._levels) == 1:
                return picked
        return self._pick_level(ctx)

    def _pick_level(self, ctx: PickContext) -> Endpoint | None:
        levels = self._levels
        if not levels:
            return None
        first = 0
        if self._bounds[0] < 1.0:
            at = self._position(ctx)
            while at >= self._bounds[first]:
                first += 1
        picked = self._balancer.pick(ctx, levels[first], self._health)
        if picked is None:
            # Everybody in that level was tried: any other level is better than giving up, the best one first.
            for index, endpoints in enumerate(levels):
                if index != first:
                    picked = self._balancer.pick(ctx, endpoints, self._health)
                    if picked is not None:
                        break
        if picked is None or self._originals is None:
            return picked
        return self._originals[picked.key]

    def _position(self, ctx: PickContext) -> float:
        """Return a number in [0, 1): random, or a key's own, so that a key stays at its level."""
        if self._is_sticky and ctx.hash_key is not None:
            # The low half: a ring orders by the high bits, so that those would give each level one arc of it only.
            return (ctx.hash_key & 0xFFFFFFFF) / 4294967296.0
        return ctx.rng.random()

    def _compute(self) -> None:
        new = self._shared.get(self._service, self._health, self._locality, self._gateway_locality)
        levels = tuple(level.endpoints for level in new.levels)
        before = [level.endpoints for level in self.candidates.levels]
        if before:
            # Equal candidates stay the same object: balancers keep tables by identity.
            levels = tuple(next((known for known in before if known == one), one) for one in levels)
            new = msgspec.structs.replace(
                new,
                levels=tuple(
                    Level(upto=level.upto, endpoints=endpoints)
                    for level, endpoints in zip(new.levels, levels, strict=True)
                ),
            )
        self.candidates = new
        self._bounds = tuple(level.upto for level in new.levels)
        self._use(levels, None)
        # Health brings no time with it: the next pick does the first ramp.
        self._ramp_at = _AT_ONCE if self._slow_start_s > 0 else _NEVER

    def _use(self, levels: tuple[tuple[Endpoint, ...], ...], originals: dict[EndpointKey, Endpoint] | None) -> None:
        self._levels = levels
        self._originals = originals
        self._whole = levels[0] if levels and self._bounds[0] >= 1.0 and originals is None else None

    def _ramp(self, now: float) -> None:
        levels = tuple(level.endpoints for level in self.candidates.levels)
        weighted = tuple(ramped(endpoints, self._health, self._slow_start_s, now) for endpoints in levels)
        originals: dict[EndpointKey, Endpoint] | None = None
        if any(new is not None for new in weighted):
            originals = {endpoint.key: endpoint for endpoints in levels for endpoint in endpoints}
        self._use(tuple(new or old for old, new in zip(levels, weighted, strict=True)), originals)
        is_ramping = any(
            now - self._health.usable_since(endpoint.key) < self._slow_start_s
            for endpoints in levels
            for endpoint in endpoints
        )
        self._ramp_at = now + RAMP_INTERVAL_S if is_ramping else _NEVER
