"""From manifests to what limits traffic."""

from __future__ import annotations

from collections.abc import Iterable

from datum_router.manifests.meta import ObjectKey, parse_duration
from datum_router.manifests.parts import CircuitBreaker, RateLimit, RateUnit
from datum_router.manifests.vpcroute import VPCRoute
from datum_router.model.limits import BreakerPolicy, CircuitPolicy, RateLimitPolicy, RateScope
from datum_router.model.policy import ConnectionLimits

_WINDOWS_S = {RateUnit.SECOND: 1, RateUnit.MINUTE: 60, RateUnit.HOUR: 3600}
SOURCE_IP = "SourceIP"
HEADER_PREFIX = "Header:"


def rate_policy(spec: RateLimit, scope: RateScope, key: ObjectKey, index: int = 0) -> RateLimitPolicy:
    """Return a `rateLimit` of the object `key` as the model's; its keys have passed validation."""
    return RateLimitPolicy(
        scope=scope,
        owner=f"{key.namespace}/{key.name}",
        index=index,
        requests=spec.requests,
        window_s=_WINDOWS_S[spec.unit],
        burst=spec.burst or spec.requests,
        by_source=SOURCE_IP in spec.keys,
        by_headers=header_names(spec.keys),
    )


def header_names(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the header names among `keys`, lower case, each once and sorted: their order means nothing."""
    return tuple(sorted({key[len(HEADER_PREFIX) :].lower() for key in keys if key.startswith(HEADER_PREFIX)}))


def route_rates(route: VPCRoute, key: ObjectKey) -> tuple[RateLimitPolicy, ...]:
    """Return the rate limits of a route: its own first, then those of its filters in order."""
    spec = route.spec
    own = (rate_policy(spec.rate_limit, RateScope.ROUTE, key),) if spec.rate_limit is not None else ()
    return own + tuple(
        [
            rate_policy(item.rate_limit, RateScope.FILTER, key, index)
            for index, item in enumerate(spec.filters)
            if item.rate_limit is not None
        ]
    )


def circuit_policy(spec: CircuitBreaker) -> CircuitPolicy:
    """Return a `circuitBreaker` as the model's."""
    return CircuitPolicy(
        limits=ConnectionLimits(
            max_connections=spec.max_connections,
            max_pending_requests=spec.max_pending_requests,
            max_parallel_requests=spec.max_parallel_requests,
            max_parallel_retries=spec.max_parallel_retries,
            is_for_all=True,
        ),
        breaker=BreakerPolicy(
            failure_threshold=spec.failure_threshold,
            success_threshold=spec.success_threshold,
            open_s=parse_duration(spec.open_duration),
        ),
    )
