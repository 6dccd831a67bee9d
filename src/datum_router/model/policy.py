"""Policies of services and rules: health, outlier ejection, retries, timeouts, limits. Durations are seconds."""

from __future__ import annotations

import enum

import msgspec


class ProbeType(enum.StrEnum):
    """How an endpoint is probed."""

    HTTP = "HTTP"
    TCP = "TCP"
    GRPC = "GRPC"


class ActiveHealthPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how a service's endpoints are probed, and what counts as up and down."""

    type: ProbeType = ProbeType.HTTP
    http_path: str = "/healthz"
    method: str = "GET"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    expected_statuses: tuple[tuple[int, int], ...] = ((200, 299),)
    grpc_service: str = ""
    port: int | None = None
    interval_s: float = 10.0
    timeout_s: float = 5.0
    unhealthy_threshold: int = 3
    healthy_threshold: int = 2


class OutlierPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Passive ejection by outcomes (Envoy outlier detection). 0 switches a detector off.

    Attributes:
        base_ejection_time_s: First ejection; each further one is twice as long, at most `max_ejection_time_s`.
        max_ejection_percent: Never more than this share of a service's endpoints is out, but one may be unless it is 0.
        half_open_requests: Trials, in flight at once over all workers, once an ejection's time is over.
    """

    consecutive_5xx: int = 5
    consecutive_gateway_errors: int = 5
    interval_s: float = 10.0
    base_ejection_time_s: float = 10.0
    max_ejection_time_s: float = 300.0
    max_ejection_percent: int = 50
    half_open_requests: int = 1


class RetryCondition(enum.StrEnum):
    """A kind of failure without a response, by Envoy's names of `retry_on`."""

    CONNECT_FAILURE = "connect-failure"
    RESET = "reset"
    REFUSED_STREAM = "refused-stream"


RETRY_BUDGET_PERCENT = 20
"""Retries in flight as a share of first tries in flight, if a route says nothing else (Envoy retry budget)."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a further attempt is made at another endpoint.

    Attributes:
        max_retries: Attempts beyond the first one.
        retry_on: Failures without a response that are tried again.
        retry_on_status: Statuses that are.
        retry_on_grpc: Codes of gRPC that are, in responses without messages (Trailers-Only).
        retry_non_idempotent: Try again even if the upstream may have acted on a request that is not idempotent.
        budget_percent: Retries in flight as a share of first tries in flight at the service.
        hedge_delay_s: How long an attempt may be without a response head before another one begins beside it; 0 = for
            ever.
        hedge_attempts: Attempts at once, the first included, if there are hedges.
        initial_backoff_s, max_backoff_s: Full-jitter exponential backoff between attempts that reached an upstream.
            `max_backoff_s` also bounds what `Retry-After` can ask for.
    """

    max_retries: int = 1
    retry_on: tuple[RetryCondition, ...] = tuple(RetryCondition)
    retry_on_status: tuple[int, ...] = ()
    retry_on_grpc: tuple[int, ...] = ()
    retry_non_idempotent: bool = False
    budget_percent: int = RETRY_BUDGET_PERCENT
    hedge_delay_s: float = 0.0
    hedge_attempts: int = 2
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 10.0


class TimeoutPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits of a rule; 0 = none.

    Attributes:
        request_s: The whole request with retries, to the last byte of the answer.
        connect_s: One dial; None: as the service says.
        per_try_s: One attempt, until its response head (Envoy's `per_try_timeout`).
        backend_request_s: One attempt, to the last byte of the answer (Gateway API `backendRequest`, GEP-1742).
        stream_idle_s: Silence of both sides of a request, a stream or a tunnel (Envoy's `idle_timeout` of routes);
            None: what the data plane has for tunnels, and no limit for anything else.
        propagates: The upstream is told how much time is left, also over HTTP; a chain that has begun goes on anyway.
    """

    request_s: float = 30.0
    connect_s: float | None = None
    per_try_s: float = 0.0
    backend_request_s: float = 0.0
    stream_idle_s: float | None = None
    propagates: bool = False


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on what is asked at once (Envoy circuit-breaker thresholds), for each worker.

    Attributes:
        is_for_all: They are for all workers of a gateway together: each gets an equal share (`health.circuit.share`).
    """

    max_connections: int = 1024
    max_pending_requests: int = 1024
    max_parallel_requests: int = 1024
    max_parallel_retries: int = 3
    is_for_all: bool = False
