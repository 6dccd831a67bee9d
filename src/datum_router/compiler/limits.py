"""From manifests to what limits traffic, and what keeps it in its place."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from datum_router.manifests.meta import ObjectKey, parse_duration
from datum_router.manifests.parts import CircuitBreaker, RateLimit, RateUnit
from datum_router.manifests.vpcroute import HashCookie, SessionAffinity, SessionLifetime, VPCRoute
from datum_router.model.affinity import AffinityKind, AffinityPolicy, SetCookie
from datum_router.model.limits import BreakerPolicy, CircuitPolicy, RateLimitPolicy, RateScope
from datum_router.model.policy import ConnectionLimits

_WINDOWS_S = {RateUnit.SECOND: 1, RateUnit.MINUTE: 60, RateUnit.HOUR: 3600}
SOURCE_IP = "SourceIP"
HEADER_PREFIX = "Header:"
DEFAULT_SESSION_HEADER = "x-session-affinity"


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


def affinity_policy(spec: SessionAffinity, route: str) -> AffinityPolicy:
    """Return a `sessionAffinity` of a route (`namespace/name`) as the model's.

    A cookie without a name gets one of the route's own: routes of one host must not take each other's.
    """
    kind = AffinityKind(spec.type.value)
    name = spec.name or ""
    if not name and kind is AffinityKind.COOKIE:
        name = "dr-" + hashlib.blake2b(route.encode(), digest_size=6).hexdigest()
    elif kind is AffinityKind.HEADER:
        name = name.lower() or DEFAULT_SESSION_HEADER
    return AffinityPolicy(
        kind=kind,
        name=name,
        absolute_s=parse_duration(spec.absolute_timeout) if spec.absolute_timeout else None,
        idle_s=parse_duration(spec.idle_timeout) if spec.idle_timeout else None,
        is_permanent=spec.lifetime is SessionLifetime.PERMANENT,
    )


def hash_cookie(spec: HashCookie | None) -> SetCookie | None:
    """Return the cookie that clients without one are given; None if neither `ttl` nor `path` asks for that."""
    if spec is None or (spec.ttl is None and spec.path is None):
        return None
    return SetCookie(ttl_s=math.ceil(parse_duration(spec.ttl)) if spec.ttl else 0, path=spec.path or "/")
