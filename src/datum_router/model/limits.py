"""What limits traffic: rates, circuits. Compiled from manifests; times are seconds."""

from __future__ import annotations

import enum

import msgspec

from datum_router.model.policy import ConnectionLimits


class RateScope(enum.StrEnum):
    """Where a rate limit is written."""

    ROUTE = "route"
    FILTER = "filter"
    INGRESS = "ingress"


class RateLimitPolicy(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A token bucket for each key: `burst` requests at once, `requests` in each `window_s` in the long run.

    Attributes:
        owner: `namespace/name` of the manifest that says so; requests of all of its rules share the buckets.
        index: Position among the filters of the manifest; 0 elsewhere.
        window_s: 1, 60 or 3600.
        by_source: Each client address (IPv6: each /64 network) has a bucket of its own.
        by_headers: Lower-case names: each combination of their values has one. All together if nothing is said.
    """

    scope: RateScope
    owner: str
    index: int = 0
    requests: int
    window_s: int = 1
    burst: int
    by_source: bool = False
    by_headers: tuple[str, ...] = ()

    @property
    def period_s(self) -> float:
        """Return the seconds in which one more request is let through."""
        return self.window_s / self.requests

    @property
    def label(self) -> str:
        """Return what clients are shown as the name of the policy: it tells nothing about objects."""
        return f"filter-{self.index}" if self.scope is RateScope.FILTER else str(self.scope)


class HostRateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A rate limit on what comes in for some hosts of a listener; names as in `Listener.hostnames`."""

    hostnames: tuple[str, ...]
    policy: RateLimitPolicy


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """When a service or route that fails is not asked any more, and when it is again: `health.breaker`."""

    failure_threshold: int = 5
    success_threshold: int = 2
    open_s: float = 60.0


class CircuitPolicy(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The circuit breaker of a route; of `limits` only those on requests and retries count."""

    limits: ConnectionLimits
    breaker: BreakerPolicy
