"""One rule's balancer for one service: keeps the candidate levels, asks the algorithm.

Candidates are computed when endpoints or health change (and, while something is in slow start, at most every
`REFRESH_S`), not per pick. With one level and nothing excluded a pick is one call to the algorithm.
"""

from __future__ import annotations

import math

from datum_router.balancing.base import Balancer, HealthView, PickContext
from datum_router.balancing.locality import NOTHING, Candidates, candidates
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, Locality
from datum_router.model.route import BalancingPolicy, LocalityPolicy
from datum_router.model.service import Service

REFRESH_S = 0.25
"""How often weights of endpoints in slow start are looked at again."""


class ServiceBalancer:
    """Pick endpoints of one service for one rule. The algorithm's own state survives every change."""

    __slots__ = (
        "_balancer",
        "_candidates",
        "_gateway",
        "_health",
        "_locality",
        "_policy",
        "_refresh_at",
        "_service",
        "_single",
    )

    def __init__(
        self,
        service: Service,
        *,
        balancing: BalancingPolicy,
        locality: LocalityPolicy,
        balancer: Balancer,
        health: HealthView,
        gateway_locality: Locality = UNKNOWN_LOCALITY,
    ) -> None:
        self._service = service
        self._policy = balancing
        self._locality = locality
        self._balancer = balancer
        self._health = health
        self._gateway = gateway_locality
        self._candidates: Candidates = NOTHING
        self._single: tuple[Endpoint, ...] | None = None
        self._refresh_at = -math.inf

    @property
    def has_candidates(self) -> bool:
        """Tell whether a pick with nothing excluded would find an endpoint."""
        if self._refresh_at == -math.inf:
            self._refresh(0.0)
        return bool(self._candidates.levels)

    @property
    def is_panic(self) -> bool:
        """Tell whether health is being ignored."""
        return self._candidates.is_panic

    def update_service(self, service: Service, health: HealthView) -> None:
        """Take a new version of the service."""
        self._service = service
        self.update_health(health)

    def update_health(self, health: HealthView) -> None:
        """Take a new view of the endpoints' health."""
        self._health = health
        self._refresh_at = -math.inf

    def pick(self, ctx: PickContext) -> Endpoint | None:
        """Return an endpoint that is not excluded, None if there is none."""
        if ctx.now >= self._refresh_at:
            self._refresh(ctx.now)
        single = self._single
        if single is not None:
            return self._balancer.pick(ctx, single, self._health)
        levels = self._candidates.levels
        if not levels:
            return None
        point = ctx.rng.random()
        start = len(levels) - 1
        for index, level in enumerate(levels):
            point -= level.share
            if point < 0:
                start = index
                break
        # The drawn level first; then the others in order, for requests that have tried all of it in vain.
        for index in (start, *(other for other in range(len(levels)) if other != start)):
            found = self._balancer.pick(ctx, levels[index].endpoints, self._health)
            if found is not None:
                return found
        return None

    def _refresh(self, now: float) -> None:
        found = candidates(
            self._service.endpoints,
            self._health,
            now=now,
            panic_threshold_percent=self._service.panic_threshold_percent,
            locality=self._locality,
            gateway=self._gateway,
            slow_start_s=self._policy.slow_start_s,
        )
        if found != self._candidates:  # equal candidates keep their identity, and with it the algorithm's tables
            self._candidates = found
        self._refresh_at = now + REFRESH_S if found.is_warming else math.inf
        levels = self._candidates.levels
        self._single = levels[0].endpoints if len(levels) == 1 else None
