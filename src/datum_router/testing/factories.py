"""Short builders for rules, request heads, endpoints and services: what tests need, all else at its default.

Builders only fill in; they never correct what the caller gives, so that a test may build bad values too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping

from datum_router.health.outlier import OutlierDetector
from datum_router.health.view import HealthBook
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, Locality, make_endpoint
from datum_router.model.policy import (
    ActiveHealthPolicy,
    ConnectionLimits,
    OutlierPolicy,
    RetryPolicy,
    TimeoutPolicy,
)
from datum_router.model.request import Headers, RequestHead, ResponseHead
from datum_router.model.route import (
    BackendRef,
    BalancingPolicy,
    FilterConfig,
    LocalityPolicy,
    Match,
    PathKind,
    PathMatch,
    Rule,
    RuleId,
    ValueKind,
    ValueMatch,
)
from datum_router.model.service import Service, ServiceKey, UpstreamProtocol


class Unvaried(random.Random):
    """A generator that always gives 0.0: backoff and ejections without jitter."""

    def random(self) -> float:
        """Return 0.0."""
        return 0.0


def make_health_book() -> HealthBook:
    """Build an empty book whose ejections last exactly as long as the policy says."""
    return HealthBook(Unvaried())


def make_outlier_detector(policy: OutlierPolicy = OutlierPolicy()) -> OutlierDetector:
    """Build a detector without endpoints, whose ejections last exactly as long as the policy says."""
    return OutlierDetector(policy, rng=Unvaried(), numbers=itertools.count(1))


HeaderInput = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]


def _octets(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def make_headers(fields: HeaderInput = ()) -> Headers:
    """Build headers from a mapping or from pairs; names are lower-cased, text is encoded as UTF-8."""
    pairs = fields.items() if isinstance(fields, Mapping) else fields
    return Headers((_octets(name).lower(), _octets(value)) for name, value in pairs)


def make_head(
    target: str = "/",
    *,
    method: str = "GET",
    host: str = "example.test",
    authority: str | None = None,
    scheme: str = "http",
    headers: HeaderInput = (),
    client_ip: str = "192.0.2.1",
    listener: str = "plain",
    attachment: str = "",
) -> RequestHead:
    """Build a request head; `target` is path and query and is taken as it stands (not normalised).

    Args:
        authority: None = the same as `host`.
    """
    path, mark, query = target.partition("?")
    return RequestHead(
        method=method,
        scheme=scheme,
        authority=host if authority is None else authority,
        host=host,
        path=path,
        query=query if mark else None,
        headers=make_headers(headers),
        client_ip=client_ip,
        listener=listener,
        attachment=attachment,
    )


def make_response(status: int = 200, headers: HeaderInput = ()) -> ResponseHead:
    """Build a response head."""
    return ResponseHead(status=status, headers=make_headers(headers))


def _value_matches(conditions: Mapping[str, str] | Iterable[ValueMatch]) -> tuple[ValueMatch, ...]:
    if isinstance(conditions, Mapping):
        return tuple(ValueMatch(name=name, value=value) for name, value in conditions.items())
    return tuple(conditions)


def value_match(
    name: str, value: str = "", kind: ValueKind = ValueKind.EXACT, *, is_inverted: bool = False
) -> ValueMatch:
    """Build a condition on a header or a query parameter."""
    return ValueMatch(name=name, kind=kind, value=value, is_inverted=is_inverted)


def make_match(
    path: str = "/",
    kind: PathKind = PathKind.PREFIX,
    *,
    methods: Iterable[str] = (),
    headers: Mapping[str, str] | Iterable[ValueMatch] = (),
    query: Mapping[str, str] | Iterable[ValueMatch] = (),
    grpc_service: str = "",
    grpc_method: str = "",
    source_cidrs: Iterable[str] = (),
    source_attachment: str = "",
) -> Match:
    """Build a condition set; a mapping of headers or query parameters means exact values."""
    return Match(
        path=PathMatch(kind=kind, value=path),
        methods=tuple(methods),
        headers=_value_matches(headers),
        query=_value_matches(query),
        grpc_service=grpc_service,
        grpc_method=grpc_method,
        source_cidrs=tuple(source_cidrs),
        source_attachment=source_attachment,
    )


def make_destination(
    service: str = "default/backend",
    weight: int = 100,
    *,
    port: int | None = None,
    priority: int = 0,
    problem: str = "",
) -> BackendRef:
    """Build a weighted reference to a service."""
    return BackendRef(service=ServiceKey(service), weight=weight, port=port, priority=priority, problem=problem)


def make_rule(
    path: str = "/",
    kind: PathKind = PathKind.PREFIX,
    *,
    route: str = "default/route",
    index: int = 0,
    id: str = "",
    hosts: Iterable[str] = (),
    listeners: Iterable[str] = (),
    match: Match | None = None,
    methods: Iterable[str] = (),
    headers: Mapping[str, str] | Iterable[ValueMatch] = (),
    query: Mapping[str, str] | Iterable[ValueMatch] = (),
    grpc_service: str = "",
    grpc_method: str = "",
    source_cidrs: Iterable[str] = (),
    source_attachment: str = "",
    to: Iterable[str | BackendRef] = ("default/backend",),
    filters: Iterable[FilterConfig] = (),
    balancing: BalancingPolicy = BalancingPolicy(),
    locality: LocalityPolicy = LocalityPolicy(),
    retry: RetryPolicy = RetryPolicy(),
    timeouts: TimeoutPolicy = TimeoutPolicy(),
    created_at: float = 0.0,
) -> Rule:
    """Build a rule. Its id is `<route>#<index>` unless given; `match` replaces all the single conditions.

    Args:
        to: Service keys or whole references, each key with weight 100.
    """
    return Rule(
        id=RuleId(id or f"{route}#{index}"),
        route=route,
        hostnames=tuple(hosts),
        listeners=tuple(listeners),
        match=match
        or make_match(
            path,
            kind,
            methods=methods,
            headers=headers,
            query=query,
            grpc_service=grpc_service,
            grpc_method=grpc_method,
            source_cidrs=source_cidrs,
            source_attachment=source_attachment,
        ),
        destinations=tuple(make_destination(item) if isinstance(item, str) else item for item in to),
        filters=tuple(filters),
        balancing=balancing,
        locality=locality,
        retry=retry,
        timeouts=timeouts,
        created_at=created_at,
        index=index,
    )


def make_endpoints(count: int = 3, *, port: int = 8080, locality: Locality = UNKNOWN_LOCALITY) -> tuple[Endpoint, ...]:
    """Build `count` endpoints 10.0.x.y:port (at most 65,536), all alike."""
    return tuple(make_endpoint(f"10.0.{n // 256}.{n % 256}", port, locality=locality) for n in range(count))


def make_service(
    key: str = "default/backend",
    endpoints: int | Iterable[Endpoint] = 3,
    *,
    protocol: UpstreamProtocol = UpstreamProtocol.HTTP,
    active: ActiveHealthPolicy | None = None,
    outlier: OutlierPolicy | None = None,
    panic_threshold_percent: int = 50,
    limits: ConnectionLimits = ConnectionLimits(),
    locality: Locality = UNKNOWN_LOCALITY,
) -> Service:
    """Build a service; a number of endpoints means that many alike ones."""
    return Service(
        key=ServiceKey(key),
        protocol=protocol,
        endpoints=make_endpoints(endpoints) if isinstance(endpoints, int) else tuple(endpoints),
        active=active,
        outlier=outlier,
        panic_threshold_percent=panic_threshold_percent,
        limits=limits,
        locality=locality,
    )
