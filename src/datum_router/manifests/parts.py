"""Parts that several kinds use: selectors, limits, timeouts, retries, rate limits, TLS versions."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from datum_router.manifests.meta import (
    MAX_COUNT,
    MAX_SELECTOR_CONDITIONS,
    MAX_SELECTOR_VALUES,
    MAX_THRESHOLD,
    Duration,
    HeaderName,
    HeaderValue,
    LabelKey,
    Labels,
    LabelValue,
    Percent,
    SpecPart,
)


class TlsVersion(enum.StrEnum):
    """The lowest TLS version that is spoken."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


class SelectorOperator(enum.StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelSelectorRequirement(SpecPart, frozen=True, kw_only=True):
    """One condition on a label."""

    key: Annotated[LabelKey, Meta(description="Label key.")]
    operator: Annotated[SelectorOperator, Meta(description="How the label is compared.")]
    values: Annotated[
        tuple[LabelValue, ...], Meta(description="Values of In and NotIn.", max_length=MAX_SELECTOR_VALUES)
    ] = ()


class LabelSelector(SpecPart, frozen=True, kw_only=True):
    """Objects by label; all conditions must hold, no condition selects all."""

    match_labels: Annotated[Labels | None, Meta(description="Labels with exact values.")] = None
    match_expressions: Annotated[
        tuple[LabelSelectorRequirement, ...],
        Meta(description="Further conditions on labels.", max_length=MAX_SELECTOR_CONDITIONS),
    ] = ()


class HttpHeader(SpecPart, frozen=True, kw_only=True):
    """A header field."""

    name: Annotated[HeaderName, Meta(description="Field name; upper and lower case are the same.")]
    value: Annotated[HeaderValue, Meta(description="Field value.")]


class CircuitBreaker(SpecPart, frozen=True, kw_only=True):
    """Limits on what a service, or the services of a route, are asked at once, and when to stop asking.

    Limits are shared out among the workers of a gateway; each worker opens its circuit by itself. Failures are answers
    of 500 and above, and attempts without an answer. What is too much, or not asked, is answered with 503.
    """

    max_connections: Annotated[int, Meta(description="Open connections.", ge=1, le=MAX_COUNT)] = 1024
    max_pending_requests: Annotated[int, Meta(description="Requests waiting for a connection.", ge=0, le=MAX_COUNT)] = (
        1024
    )
    max_parallel_requests: Annotated[int, Meta(description="Requests in flight.", ge=1, le=MAX_COUNT)] = 1024
    max_parallel_retries: Annotated[int, Meta(description="Retries in flight.", ge=0, le=MAX_COUNT)] = 3
    failure_threshold: Annotated[
        int, Meta(description="Failures in a row that open the circuit.", ge=1, le=MAX_THRESHOLD)
    ] = 5
    success_threshold: Annotated[
        int, Meta(description="Successes in a row that close it again.", ge=1, le=MAX_THRESHOLD)
    ] = 2
    open_duration: Annotated[Duration, Meta(description="How long it stays open before it is tried again.")] = "60s"


class Timeouts(SpecPart, frozen=True, kw_only=True):
    """Time limits (GEP-1742)."""

    request: Annotated[
        Duration | None, Meta(description="Whole request including retries; 0s switches the limit off.")
    ] = None
    backend_request: Annotated[
        Duration | None, Meta(description="One attempt at a backend; no longer than `request`.")
    ] = None
    connect: Annotated[
        Duration | None, Meta(description="Making a connection; the service's `connectTimeout` if not given.")
    ] = None
    stream_idle: Annotated[
        Duration | None,
        Meta(
            description="Silence of both sides before a request, a stream or a WebSocket is ended; 0s: never. If not "
            "given, WebSockets end after the gateway's `tunnel_idle_timeout_s` (300 s)."
        ),
    ] = None
    propagate: Annotated[
        bool,
        Meta(
            description="Tell the backend how many milliseconds are left, in x-envoy-expected-rq-timeout-ms. gRPC "
            "backends are always told, in grpc-timeout."
        ),
    ] = False


class RetryBackoff(SpecPart, frozen=True, kw_only=True):
    """How long to wait between attempts: doubling from the first to the longest wait, with jitter."""

    initial_ms: Annotated[int, Meta(description="First wait in milliseconds.", ge=1, le=3_600_000)] = 100
    max_ms: Annotated[int, Meta(description="Longest wait in milliseconds.", ge=1, le=3_600_000)] = 10_000


class Hedging(SpecPart, frozen=True, kw_only=True):
    """A second attempt beside one that is slow; the first response head wins, the others are cancelled."""

    delay: Annotated[Duration, Meta(description="How long an attempt may be without a response head.")]
    max_attempts: Annotated[int, Meta(description="Attempts at once, the first included.", ge=2, le=5)] = 2


class RetryOn(enum.StrEnum):
    """What kind of failure is tried again; the names are Envoy's, of `retry_on` and `retry_grpc_on`."""

    CONNECT_FAILURE = "connect-failure"
    RESET = "reset"
    REFUSED_STREAM = "refused-stream"
    RETRIABLE_4XX = "retriable-4xx"
    GATEWAY_ERROR = "gateway-error"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    RESOURCE_EXHAUSTED = "resource-exhausted"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"


GRPC_CONDITIONS = {
    RetryOn.CANCELLED: 1,
    RetryOn.DEADLINE_EXCEEDED: 4,
    RetryOn.RESOURCE_EXHAUSTED: 8,
    RetryOn.INTERNAL: 13,
    RetryOn.UNAVAILABLE: 14,
}
"""Conditions that are codes of gRPC, with their numbers (gRPC status codes)."""
STATUS_CONDITIONS = {RetryOn.RETRIABLE_4XX: (409,), RetryOn.GATEWAY_ERROR: (502, 503, 504)}
"""Conditions that are statuses of HTTP."""


Status = Annotated[int, Meta(ge=100, le=599)]


class Retries(SpecPart, frozen=True, kw_only=True):
    """When and how often a failed attempt is tried again."""

    max_retries: Annotated[int, Meta(description="Attempts after the first one.", ge=0, le=100)] = 3
    retry_on_status: Annotated[
        tuple[Status, ...], Meta(description="Response statuses that are tried again.", max_length=64)
    ] = (502, 503, 504)
    backoff: Annotated[RetryBackoff | None, Meta(description="Waits between attempts.")] = None
    per_try_timeout: Annotated[Duration | None, Meta(description="Time limit of one attempt.")] = None
    retry_on: Annotated[
        tuple[RetryOn, ...],
        Meta(
            description="Failures that are tried again. connect-failure, reset and refused-stream are failures without "
            "a response, all three of them if none is given; retriable-4xx (409) and gateway-error (502, 503, 504) are "
            "added to retryOnStatus; the others are codes of gRPC and need retryNonIdempotent.",
            max_length=16,
        ),
    ] = ()
    budget_percent: Annotated[
        Percent | None,
        Meta(
            description="Retries in flight as a share of first tries in flight at the service, 20 if not given; 3 at "
            "once are always allowed."
        ),
    ] = None
    hedging: Annotated[
        Hedging | None,
        Meta(
            description="Hedges for requests without a body whose method is idempotent, within the budget of retries."
        ),
    ] = None
    retry_non_idempotent: Annotated[
        bool, Meta(description="Try again even if the backend may have acted on the first attempt.")
    ] = False


class RateUnit(enum.StrEnum):
    """What a number of requests is counted over."""

    SECOND = "Second"
    MINUTE = "Minute"
    HOUR = "Hour"


class RateLimit(SpecPart, frozen=True, kw_only=True):
    """How many requests are let through; others are answered with 429.

    All workers of a gateway count together, replicas do not, unless they share a store (setting `rate_limit_store`).
    Clients of one IPv6 network of 64 bits count as one. Requests without a header that is named count together.
    """

    requests: Annotated[int, Meta(description="Requests per unit.", ge=1, le=MAX_COUNT)]
    unit: Annotated[RateUnit, Meta(description="Unit of time.")] = RateUnit.SECOND
    burst: Annotated[int, Meta(description="Requests at once; `requests` if not given.", ge=1, le=MAX_COUNT)] | None = (
        None
    )
    keys: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=r"^(SourceIP|Header:[!#$%&'*+\-.^_`|~0-9A-Za-z]+)$",
                    max_length=256,
                    extra={"expected": "SourceIP or Header:NAME"},
                ),
            ],
            ...,
        ],
        Meta(description="What is counted separately: SourceIP, Header:NAME; all together if empty.", max_length=16),
    ] = ()
