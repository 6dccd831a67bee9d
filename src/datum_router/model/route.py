"""Rules: match conditions, weighted destinations, filters, policies. Plain data; `routing` compiles it into indexes."""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

from datum_router.model.affinity import AffinityPolicy, SetCookie
from datum_router.model.filters import CorsPolicy, Fault, Mirror, ReplyTemplate
from datum_router.model.limits import CircuitPolicy, RateLimitPolicy
from datum_router.model.policy import RetryPolicy, TimeoutPolicy
from datum_router.model.service import ServiceKey

RuleId = NewType("RuleId", str)
"""`namespace/name#3`: fourth match of that VPCRoute; `ingress:namespace/name#0` for a rule of a VPCIngress."""


class PathKind(enum.StrEnum):
    """How a path is compared. PREFIX is by whole segments: `/api` matches `/api` and `/api/x`, not `/apix`."""

    EXACT = "exact"
    REGEX = "regex"
    PREFIX = "prefix"


class PathMatch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A path condition. The prefix `/` matches every path. A prefix has no trailing slash unless it is `/`."""

    kind: PathKind = PathKind.PREFIX
    value: str = "/"


class ValueKind(enum.StrEnum):
    """How a header's or query parameter's value is compared. REGEX is a full match in linear time."""

    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"
    PRESENT = "present"


class ValueMatch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A condition on one header (lower-case name) or one query parameter (decoded name, case-sensitive)."""

    name: str
    kind: ValueKind = ValueKind.EXACT
    value: str = ""
    is_inverted: bool = False


class Match(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One condition set: all parts must hold. Empty parts always hold.

    Attributes:
        grpc_service, grpc_method: Both empty: not a gRPC condition. With a service they refine `path`
            (`/service/method` exact or `/service` prefix); a method alone compares the last segment.
        is_grpc_call: The path has exactly two segments: what keeps a pattern over them from reaching further.
        source_cidrs: Client address within any of these networks.
        source_attachment: Came in by this VPCAttachment of the gateway, `namespace/name`.
    """

    path: PathMatch = PathMatch()
    methods: tuple[str, ...] = ()
    headers: tuple[ValueMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()
    grpc_service: str = ""
    grpc_method: str = ""
    is_grpc_call: bool = False
    source_cidrs: tuple[str, ...] = ()
    source_attachment: str = ""


class HeaderEdit(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag="header_edit"):
    """Set, add and remove fields of the request (`is_response` False) or the response. Names lower-case."""

    is_response: bool = False
    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


class Redirect(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag="redirect"):
    """Answer with a redirect; empty parts keep the request's. At most one of full_path and prefix_path is set."""

    scheme: str = ""
    hostname: str = ""
    port: int | None = None
    full_path: str | None = None
    prefix_path: str | None = None
    status: int = 302


class Rewrite(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag="rewrite"):
    """Change authority and path before forwarding. `prefix_path` replaces the matched prefix."""

    hostname: str = ""
    full_path: str | None = None
    prefix_path: str | None = None


class PluginFilter(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag="plugin"):
    """A filter of a plugin by its registered name; `config` is JSON text that the plugin's config Struct decodes.

    Attributes:
        service: The service that it may ask; empty if none is named.
        problem: As `BackendRef.problem`, of that service.
    """

    name: str
    config: str = "{}"
    service: ServiceKey = ServiceKey("")
    problem: str = ""


FilterConfig = HeaderEdit | Redirect | Rewrite | Mirror | Fault | PluginFilter


class BackendRef(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A weighted reference to a service.

    Attributes:
        problem: Empty if usable; else the condition reason (`VPCServiceNotFound`, `RefNotPermitted`); its share is 500.
        port: Overrides the endpoints' port; None keeps theirs.
        priority: 0 first; a higher one only when no lower destination has a usable endpoint.
        filters: Edits of heads for this destination: after those of the rule on the way there, before on the way back.
    """

    service: ServiceKey
    weight: int = 100
    port: int | None = None
    priority: int = 0
    problem: str = ""
    filters: tuple[FilterConfig, ...] = ()


class HashOn(enum.StrEnum):
    """What a consistent hash reads."""

    SOURCE_IP = "SourceIP"
    HEADER = "Header"
    COOKIE = "Cookie"
    QUERY = "QueryParam"
    PATH = "Path"


class BalancingPolicy(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which balancer, and what it needs. `algorithm` is the registered balancer name.

    Attributes:
        cookie: Given to clients that have no cookie of the name that is hashed; None = none is.
    """

    algorithm: str = "round-robin"
    hash_on: HashOn = HashOn.SOURCE_IP
    hash_name: str = ""
    table_size: int = 65537
    slow_start_s: float = 0.0
    cookie: SetCookie | None = None


class LocalityMode(enum.StrEnum):
    """How the place of endpoints counts."""

    NONE = "None"
    PREFER_LOCAL = "PreferLocal"
    REQUIRE_LOCAL = "RequireLocal"
    NEAREST = "Nearest"
    WEIGHTED = "Weighted"


class LocalityPolicy(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which endpoints come first, and which must not be used, by where they are.

    Attributes:
        topology_key: Endpoints with the same value of it are at the same place.
        failover_order: Values of the topology key that come after the gateway's own, in this order, before all others.
        spillover_percent: Usable share of a place's capacity below which it passes requests on to the next; 0 = not
            before nothing of it is usable.
        allowed_locations: Names of Locations, cities, regions or values of the topology key; endpoints elsewhere are
            never used. Empty = anywhere.
        weights: Of WEIGHTED: values of the topology key and their shares (1 or more), sorted.
    """

    mode: LocalityMode = LocalityMode.NONE
    topology_key: str = "topology.datum.net/city-code"
    failover_order: tuple[str, ...] = ()
    spillover_percent: int = 70
    allowed_locations: tuple[str, ...] = ()
    weights: tuple[tuple[str, int], ...] = ()


class Rule(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One ordered unit: if `hostnames` and `match` hold, `filters` run and a destination is chosen.

    Attributes:
        route: `namespace/name` of the manifest it came from (bounded metric label).
        hostnames: Exact lower-case names or `*.suffix`; empty = any host.
        listeners: Listener names it is bound to; empty = all.
        rate_limits: All of them must let a request through, before the filters see it.
        circuit: Limits of the route, beside those of its services.
        affinity: Sessions; None = each request goes where the balancer sends it.
        created_at: Unix time of the manifest's creation, for ties; 0 = unknown.
        index: Position within its manifest, the last tie-breaker.
        cors: None: the rule knows nothing of other origins.
        replies: Bodies of the gateway's own answers; before those of the listener.
        max_request_body_bytes: 0 = none but the listener's.
        is_preflight: Made for the preflights of another rule of the manifest, whose conditions they do not meet.
    """

    id: RuleId
    route: str
    hostnames: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()
    match: Match = Match()
    destinations: tuple[BackendRef, ...] = ()
    filters: tuple[FilterConfig, ...] = ()
    balancing: BalancingPolicy = BalancingPolicy()
    locality: LocalityPolicy = LocalityPolicy()
    retry: RetryPolicy = RetryPolicy()
    timeouts: TimeoutPolicy = TimeoutPolicy()
    rate_limits: tuple[RateLimitPolicy, ...] = ()
    circuit: CircuitPolicy | None = None
    affinity: AffinityPolicy | None = None
    created_at: float = 0.0
    index: int = 0
    cors: CorsPolicy | None = None
    max_request_body_bytes: int = 0
    replies: tuple[ReplyTemplate, ...] = ()
    is_preflight: bool = False


def side_services(rule: Rule) -> tuple[tuple[ServiceKey, str], ...]:
    """Return the services that filters of a rule ask or send copies to, each with why it cannot be used."""
    return tuple(
        (item.service, item.problem)
        for item in rule.filters
        if isinstance(item, Mirror | PluginFilter) and item.service
    )
