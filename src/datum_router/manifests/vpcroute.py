"""VPCRoute: which requests go to which services, and how."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from datum_router.manifests.meta import (
    MAX_HEADER_NAME_CHARS,
    MAX_HEADER_VALUE_CHARS,
    MAX_LABEL_KEY_CHARS,
    MAX_MATCH_CONDITIONS,
    MAX_NAME_CHARS,
    MAX_URL_PATH_CHARS,
    Conditions,
    Count,
    Duration,
    HeaderName,
    HeaderText,
    HeaderValue,
    HostText,
    Name,
    NamespaceName,
    NetworkText,
    ObjectMeta,
    ObjectRef,
    ObservedGeneration,
    PathText,
    Percent,
    Port,
    SpecPart,
    StatusPart,
    StatusText,
)
from datum_router.manifests.parts import CircuitBreaker, HttpHeader, RateLimit, Retries, Timeouts
from datum_router.manifests.routefilters import FaultInjection, LocalReplies, PluginRef
from datum_router.manifests.terms import (
    BALANCER_NAMES,
    BALANCER_TERMS,
    HASH_TERMS,
    MATCH_TYPE_TERMS,
    suggest_method,
)
from datum_router.routing.regex import MAX_PATTERN_BYTES

MAX_REGEX_BYTES = MAX_PATTERN_BYTES
"""Longest regular expression of a route, in bytes; the type bounds characters, validation bytes."""

Method = Annotated[
    str,
    Meta(
        pattern=r"^[A-Z][A-Z-]*$",
        max_length=32,
        extra={"expected": "an upper-case method such as GET", "suggest": suggest_method},
    ),
]
MAX_PLACES = 64
"""Places in one list of a route's `locality`."""
PlaceName = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
QueryName = Annotated[str, Meta(min_length=1, max_length=MAX_HEADER_NAME_CHARS)]
QueryText = Annotated[str, Meta(max_length=MAX_HEADER_VALUE_CHARS)]
MAX_TABLE_SIZE = 5_000_011
"""Largest Maglev table: a prime number, as that of Envoy."""
MAX_DESTINATION_FILTERS = 8
"""Filters of one of up to 64 destinations: with 16, the API server would find their rules too expensive."""
GRPC_SERVICE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"
GRPC_METHOD_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
MAX_BODY_BYTES = 1 << 40
"""Highest limit of a request body, in bytes."""
MAX_PARENTS = 32
"""Parents of one route."""


class MatchType(enum.StrEnum):
    """How a value is compared."""

    EXACT = "Exact"
    PREFIX = "Prefix"
    REGULAR_EXPRESSION = "RegularExpression"
    PRESENT = "Present"


class GrpcMatchType(enum.StrEnum):
    """How gRPC service and method are compared."""

    EXACT = "Exact"
    REGULAR_EXPRESSION = "RegularExpression"


class ValueMatch(SpecPart, frozen=True, kw_only=True):
    """A condition on a query parameter."""

    name: Annotated[QueryName, Meta(description="Name of the parameter.")]
    type: Annotated[MatchType, Meta(description="How the value is compared.", extra={"terms": MATCH_TYPE_TERMS})] = (
        MatchType.EXACT
    )
    value: Annotated[HeaderText | None, Meta(description="Value, prefix or expression; none for Present.")] = None
    invert: Annotated[bool, Meta(description="Match if the condition does not hold.")] = False


class HeaderMatch(ValueMatch, frozen=True, kw_only=True):
    """A condition on a header."""

    name: Annotated[HeaderName, Meta(description="Name of the header; upper and lower case are the same.")]


class RouteMatch(SpecPart, frozen=True, kw_only=True):
    """Conditions on a request, all of which must hold; a path has one kind of condition."""

    path_prefix: Annotated[
        PathText | None,
        Meta(description="Path prefix by whole segments: `/api` matches `/api` and `/api/x`, not `/apix`."),
    ] = None
    exact_path: Annotated[PathText | None, Meta(description="Whole path.")] = None
    path_regex: (
        Annotated[
            str,
            Meta(description="Regular expression (RE2) over the whole path.", min_length=1, max_length=MAX_REGEX_BYTES),
        ]
        | None
    ) = None
    methods: Annotated[
        tuple[Method, ...], Meta(description="Request methods; all if empty.", max_length=MAX_MATCH_CONDITIONS)
    ] = ()
    headers: Annotated[
        Annotated[Mapping[HeaderName, HeaderValue], Meta(max_length=MAX_MATCH_CONDITIONS)] | None,
        Meta(description="Headers with exact values; upper and lower case of names are the same."),
    ] = None
    header_matches: Annotated[
        tuple[HeaderMatch, ...], Meta(description="Further conditions on headers.", max_length=MAX_MATCH_CONDITIONS)
    ] = ()
    query_params: Annotated[
        Annotated[Mapping[QueryName, QueryText], Meta(max_length=MAX_MATCH_CONDITIONS)] | None,
        Meta(description="Query parameters with exact values."),
    ] = None
    query_param_matches: Annotated[
        tuple[ValueMatch, ...],
        Meta(description="Further conditions on query parameters.", max_length=MAX_MATCH_CONDITIONS),
    ] = ()
    grpc_service: (
        Annotated[
            str,
            Meta(
                description="gRPC service with its package, such as shop.v1.Cart: the first segment of the path.",
                min_length=1,
                max_length=255,
            ),
        ]
        | None
    ) = None
    grpc_method: (
        Annotated[
            str,
            Meta(
                description="gRPC method: the second segment of the path; needs grpcService.",
                min_length=1,
                max_length=255,
            ),
        ]
        | None
    ) = None
    grpc_match_type: Annotated[
        GrpcMatchType,
        Meta(description="How service and method are compared; expressions are those of RE2, over the whole name."),
    ] = GrpcMatchType.EXACT
    source_cidrs: Annotated[
        tuple[NetworkText, ...], Meta(description="Networks that the client must be in (one of them).", max_length=64)
    ] = msgspec.field(default=(), name="sourceCIDRs")


class ParentRef(SpecPart, frozen=True, kw_only=True):
    """Where a route is served."""

    kind: Annotated[str, Meta(description="Kind of the parent.", min_length=1, max_length=63)] = "VPCIngress"
    name: Annotated[Name, Meta(description="Name of the parent.")]
    namespace: Annotated[
        NamespaceName | None, Meta(description="Namespace of the parent; the route's own if not given.")
    ] = None
    section_name: Annotated[Name | None, Meta(description="Listener of the parent; all if not given.")] = None
    port: Annotated[Port | None, Meta(description="Port of the parent; all if not given.")] = None


class PathModifierType(enum.StrEnum):
    """What is replaced of a path."""

    REPLACE_FULL_PATH = "ReplaceFullPath"
    REPLACE_PREFIX_MATCH = "ReplacePrefixMatch"


class PathModifier(SpecPart, frozen=True, kw_only=True):
    """A new path."""

    type: Annotated[PathModifierType, Meta(description="What is replaced.")]
    replace_full_path: Annotated[PathText | None, Meta(description="The whole new path.")] = None
    replace_prefix_match: (
        Annotated[str, Meta(description="What takes the place of the matched prefix.", max_length=MAX_URL_PATH_CHARS)]
        | None
    ) = None


class HeaderModifier(SpecPart, frozen=True, kw_only=True):
    """Changes of headers: first `remove`, then `set`, then `add`."""

    set: Annotated[tuple[HttpHeader, ...], Meta(description="Headers that are replaced.", max_length=32)] = ()
    add: Annotated[tuple[HttpHeader, ...], Meta(description="Headers that are added.", max_length=32)] = ()
    remove: Annotated[tuple[HeaderName, ...], Meta(description="Headers that are removed.", max_length=32)] = ()


class RequestRedirect(SpecPart, frozen=True, kw_only=True):
    """A redirect, answered by the router itself."""

    scheme: (
        Annotated[
            str,
            Meta(
                description="http or https.",
                pattern="^(http|https)$",
                max_length=5,
                extra={"expected": "http or https"},
            ),
        ]
        | None
    ) = None
    hostname: Annotated[HostText | None, Meta(description="Host of the new location.")] = None
    port: Annotated[Port | None, Meta(description="Port of the new location.")] = None
    path: Annotated[PathModifier | None, Meta(description="Path of the new location.")] = None
    status_code: Annotated[int, Meta(description="301, 302, 303, 307 or 308.", ge=301, le=308)] = 302


class UrlRewrite(SpecPart, frozen=True, kw_only=True):
    """Changes of the request target on its way to the service."""

    hostname: Annotated[HostText | None, Meta(description="New host.")] = None
    path: Annotated[PathModifier | None, Meta(description="New path.")] = None


class RequestMirror(SpecPart, frozen=True, kw_only=True):
    """A copy of requests to a second service, whose answers are thrown away."""

    vpc_service_ref: Annotated[ObjectRef, Meta(description="Service that gets the copies.")]
    percent: Annotated[Percent, Meta(description="Share of the requests that is copied.")] = 100


class FilterType(enum.StrEnum):
    """What a filter does."""

    REQUEST_HEADER_MODIFIER = "RequestHeaderModifier"
    RESPONSE_HEADER_MODIFIER = "ResponseHeaderModifier"
    REQUEST_REDIRECT = "RequestRedirect"
    URL_REWRITE = "URLRewrite"
    REQUEST_MIRROR = "RequestMirror"
    RATE_LIMIT = "RateLimit"
    FAULT_INJECTION = "FaultInjection"
    PLUGIN = "Plugin"


class RouteFilter(SpecPart, frozen=True, kw_only=True):
    """One filter: `type`, and the field of that name with its settings."""

    type: Annotated[FilterType, Meta(description="What the filter does.")]
    request_header_modifier: Annotated[HeaderModifier | None, Meta(description="For RequestHeaderModifier.")] = None
    response_header_modifier: Annotated[HeaderModifier | None, Meta(description="For ResponseHeaderModifier.")] = None
    request_redirect: Annotated[RequestRedirect | None, Meta(description="For RequestRedirect.")] = None
    url_rewrite: Annotated[UrlRewrite | None, Meta(description="For URLRewrite.")] = None
    request_mirror: Annotated[RequestMirror | None, Meta(description="For RequestMirror.")] = None
    rate_limit: Annotated[RateLimit | None, Meta(description="For RateLimit.")] = None
    fault_injection: Annotated[FaultInjection | None, Meta(description="For FaultInjection.")] = None
    plugin: Annotated[PluginRef | None, Meta(description="For Plugin.")] = None


class Destination(SpecPart, frozen=True, kw_only=True):
    """A service that gets a share of the requests."""

    vpc_service_ref: Annotated[ObjectRef, Meta(description="The service.")]
    weight: Annotated[
        int,
        Meta(
            description="Share: weight by sum of weights; 0 takes none. While no endpoint of a service is usable, the "
            "others of its priority take its share; a service that is not there keeps its share, answered with 500.",
            ge=0,
            le=1_000_000,
        ),
    ] = 100
    port: Annotated[Port | None, Meta(description="Port that is dialled instead of the endpoints' own.")] = None
    filters: Annotated[
        tuple[RouteFilter, ...],
        Meta(description="Filters for this destination only.", max_length=MAX_DESTINATION_FILTERS),
    ] = ()
    priority: Annotated[
        int, Meta(description="0 is used first, higher ones when lower ones are unhealthy.", ge=0, le=128)
    ] = 0


class HashOn(enum.StrEnum):
    """What a consistent hash reads."""

    SOURCE_IP = "SourceIP"
    HEADER = "Header"
    COOKIE = "Cookie"
    QUERY_PARAM = "QueryParam"
    PATH = "Path"


class HashAlgorithm(enum.StrEnum):
    """How keys are spread over endpoints."""

    MAGLEV = "Maglev"
    RING = "Ring"


class HashCookie(SpecPart, frozen=True, kw_only=True):
    """The cookie that a consistent hash reads."""

    name: Annotated[HeaderName, Meta(description="Name of the cookie.")]
    ttl: Annotated[
        Duration | None,
        Meta(
            description="How long the cookie lives that the router gives clients without one; 0s: as long as the "
            "browser. Neither this nor `path`: it gives none."
        ),
    ] = None
    path: (
        Annotated[
            str,
            Meta(
                description="Path of the cookie that the router gives.",
                pattern=r"^/[ -:<-~]*$",
                max_length=MAX_URL_PATH_CHARS,
                extra={"expected": "a path that begins with /, of printable ASCII characters without ;"},
            ),
        ]
        | None
    ) = None


class LoadBalancingConfig(SpecPart, frozen=True, kw_only=True):
    """Settings of the balancer."""

    hash_on: Annotated[HashOn, Meta(description="What a consistent hash reads.", extra={"terms": HASH_TERMS})] = (
        HashOn.SOURCE_IP
    )
    header_name: Annotated[HeaderName | None, Meta(description="Header, for hashOn Header.")] = None
    cookie: Annotated[HashCookie | None, Meta(description="Cookie, for hashOn Cookie.")] = None
    query_param: Annotated[QueryName | None, Meta(description="Query parameter, for hashOn QueryParam.")] = None
    table_size: Annotated[
        int,
        Meta(
            description="Size of the Maglev table: a prime from 251 to 5000011. For over 50 endpoints or so choose "
            "a larger one, or algorithm Ring: else more keys than need be move when one leaves.",
            ge=251,
            le=MAX_TABLE_SIZE,
        ),
    ] = 65537
    slow_start: Annotated[
        Duration | None, Meta(description="Time in which a new endpoint's share grows to its full size.")
    ] = None
    algorithm: Annotated[HashAlgorithm, Meta(description="How keys are spread over endpoints.")] = HashAlgorithm.MAGLEV


class Cors(SpecPart, frozen=True, kw_only=True):
    """Cross-origin resource sharing: which pages of other origins may read the answers. Preflights are answered."""

    allowed_origins: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=MAX_URL_PATH_CHARS)], ...],
        Meta(
            description="Origins that may ask: https://shop.example.com, https://*.example.com for all names below, or "
            "* for every origin, without credentials only.",
            max_length=64,
        ),
    ] = ()
    allowed_methods: Annotated[
        tuple[Method, ...],
        Meta(description="Methods that they may use; GET, HEAD and POST always are.", max_length=MAX_MATCH_CONDITIONS),
    ] = ()
    allowed_headers: Annotated[
        tuple[HeaderName, ...],
        Meta(description="Headers that they may send; * for all but authorization.", max_length=64),
    ] = ()
    expose_headers: Annotated[
        tuple[HeaderName, ...], Meta(description="Headers of the answer that they may read; * for all.", max_length=64)
    ] = ()
    allow_credentials: Annotated[bool, Meta(description="Whether credentials may be sent.")] = False
    max_age_seconds: (
        Annotated[int, Meta(description="How long a browser may keep the answer to a preflight.", ge=0, le=86_400)]
        | None
    ) = None


class SessionAffinityType(enum.StrEnum):
    """Where a session is kept."""

    COOKIE = "Cookie"
    HEADER = "Header"


class SessionLifetime(enum.StrEnum):
    """When the browser forgets a session."""

    SESSION = "Session"
    PERMANENT = "Permanent"


class SessionAffinity(SpecPart, frozen=True, kw_only=True):
    """Requests of one session go to one endpoint (GEP-1619), as long as it takes requests."""

    type: Annotated[SessionAffinityType, Meta(description="Where the session is kept.")] = SessionAffinityType.COOKIE
    name: Annotated[
        HeaderName | None, Meta(description="Name of the cookie or header; the router's own if not given.")
    ] = None
    absolute_timeout: Annotated[Duration | None, Meta(description="Longest life of a session, 1s or more.")] = None
    idle_timeout: Annotated[Duration | None, Meta(description="Longest pause within a session, 1s or more.")] = None
    lifetime: Annotated[SessionLifetime, Meta(description="When the browser forgets the session.")] = (
        SessionLifetime.SESSION
    )


class LocalityMode(enum.StrEnum):
    """How the place of endpoints counts."""

    NONE = "None"
    PREFER_LOCAL = "PreferLocal"
    REQUIRE_LOCAL = "RequireLocal"
    NEAREST = "Nearest"
    WEIGHTED = "Weighted"


class PlaceWeight(SpecPart, frozen=True, kw_only=True):
    """A place and its share."""

    place: Annotated[PlaceName, Meta(description="Value of the topology key, or a Location.")]
    weight: Annotated[int, Meta(description="Share: weight by sum of weights.", ge=1, le=1_000_000)]


class LocalitySpec(SpecPart, frozen=True, kw_only=True):
    """Prefer endpoints that are near to the gateway, among the endpoints of each destination, or keep to places."""

    mode: Annotated[LocalityMode, Meta(description="How the place of endpoints counts.")] = LocalityMode.NONE
    topology_key: Annotated[
        str,
        Meta(
            description="What makes two places the same: a key of the topology of a Location or a service, or "
            "topology.kubernetes.io/zone, which EndpointSlices state. Services in different places: use "
            "`destinations[].priority`.",
            min_length=1,
            max_length=MAX_LABEL_KEY_CHARS,
        ),
    ] = "topology.datum.net/city-code"
    failover_order: Annotated[
        tuple[PlaceName, ...],
        Meta(
            description="Values of the topology key, or Locations, that come after the gateway's own place and before "
            "all others, next one first. With PreferLocal and Nearest.",
            max_length=MAX_PLACES,
        ),
    ] = ()
    spillover_percent: Annotated[
        Percent,
        Meta(
            description="Healthy share of a place's capacity below which it passes requests on to the next place, in "
            "proportion; 0: not before none of it is healthy. With PreferLocal, Nearest and Weighted."
        ),
    ] = 70
    allowed_locations: Annotated[
        tuple[PlaceName, ...],
        Meta(
            description="Locations, city codes, regions or values of the topology key: endpoints elsewhere, or of "
            "which nobody knows where they are, get no traffic, even if that means 503. Empty: anywhere. With every "
            "mode.",
            max_length=MAX_PLACES,
        ),
    ] = ()
    weights: Annotated[
        tuple[PlaceWeight, ...],
        Meta(
            description="Shares of places in all requests; other places take what these cannot. For Weighted alone.",
            max_length=MAX_PLACES,
            extra={"list_map_keys": ["place"]},
        ),
    ] = ()


class VPCRouteSpec(SpecPart, frozen=True, kw_only=True):
    """Which requests go to which services, and how."""

    name: Annotated[str, Meta(description="A name for people; nothing depends on it.", max_length=253)] | None = None
    match: Annotated[
        RouteMatch | None, Meta(description="Conditions; every request if neither this nor `matches` is given.")
    ] = None
    matches: Annotated[
        tuple[RouteMatch, ...], Meta(description="Sets of conditions, one of which must hold.", max_length=64)
    ] = ()
    hostnames: Annotated[
        tuple[HostText, ...],
        Meta(description="Host names, `*.` in front is a wildcard; all if empty.", max_length=16),
    ] = ()
    parent_refs: Annotated[
        tuple[ParentRef, ...],
        Meta(description="Where the route is served; everywhere if empty.", max_length=MAX_PARENTS),
    ] = ()
    destinations: Annotated[
        tuple[Destination, ...], Meta(description="Services that share the requests.", max_length=64)
    ] = ()
    load_balancing: Annotated[
        str,
        Meta(
            description="round-robin, least-connections, source-ip (or source-ip-hash), consistent-hash, random, or "
            "the name of a balancer that a plugin adds.",
            pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$",
            max_length=63,
            extra={
                "aliases": {"source-ip-hash": "source-ip"},
                "known": BALANCER_NAMES,
                "terms": BALANCER_TERMS,
                "expected": "a balancer name such as round-robin, least-connections or consistent-hash",
            },
        ),
    ] = "round-robin"
    load_balancing_config: Annotated[LoadBalancingConfig | None, Meta(description="Settings of the balancer.")] = None
    retries: Annotated[Retries | None, Meta(description="When a failed attempt is tried again.")] = None
    timeout_seconds: Annotated[
        int, Meta(description="Time limit of a request including retries; 0 switches it off.", ge=0, le=86_400)
    ] = 30
    timeouts: Annotated[Timeouts | None, Meta(description="Finer time limits; win over timeoutSeconds.")] = None
    cors: Annotated[Cors | None, Meta(description="Cross-origin resource sharing.")] = None
    source_vpc_attachment: Annotated[
        Name | None, Meta(description="Only traffic that arrived through this attachment.")
    ] = None
    filters: Annotated[
        tuple[RouteFilter, ...], Meta(description="Changes of requests and responses, in order.", max_length=16)
    ] = ()
    session_affinity: Annotated[SessionAffinity | None, Meta(description="Sessions stay at one endpoint.")] = None
    rate_limit: Annotated[RateLimit | None, Meta(description="How many requests are let through.")] = None
    circuit_breaker: Annotated[
        CircuitBreaker | None, Meta(description="Limits on what this route asks, beside those of its services.")
    ] = None
    local_replies: LocalReplies = ()
    max_request_body_bytes: (
        Annotated[
            int,
            Meta(
                description="Longest request body; longer ones are answered with 413. The limit of the VPCIngress, if "
                "it has one, holds as well.",
                ge=1,
                le=MAX_BODY_BYTES,
            ),
        ]
        | None
    ) = None
    locality: Annotated[LocalitySpec | None, Meta(description="Prefer endpoints that are near.")] = None


class ParentStatus(StatusPart, frozen=True, kw_only=True):
    """The route as one parent sees it."""

    parent_ref: Annotated[ParentRef, Meta(description="The parent, as in `spec.parentRefs`.")]
    controller_name: Annotated[StatusText, Meta(description="Who wrote this: router.datum.net/router-controller.")] = ""
    conditions: Conditions = ()


class VPCRouteStatus(StatusPart, frozen=True, kw_only=True):
    """What the router made of the route."""

    observed_generation: ObservedGeneration = 0
    ready: Annotated[bool, Meta(description="Whether the route is accepted, resolved and in force everywhere.")] = False
    active_destinations: Annotated[
        Count, Meta(description="Destinations that are there and take a share of the requests.")
    ] = 0
    conditions: Conditions = ()
    parents: Annotated[
        tuple[ParentStatus, ...],
        Meta(
            description="The route at each of its parents, in the order of `spec.parentRefs`.", max_length=MAX_PARENTS
        ),
    ] = ()


class VPCRoute(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, gc=False):
    """Which requests go to which services, and how."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: VPCRouteSpec
    status: VPCRouteStatus | None = None
