"""What `validate_route` says of VPCRoutes, for the API server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from datum_router.manifests.cel import (
    CelRule,
    excludes,
    filled,
    given,
    header_changed,
    header_map,
    header_matched,
    host,
    needs,
    network,
    path,
    text,
    texts,
)
from datum_router.manifests.cel_filters import CORS, FAULT, FAULT_ABORT, REPLY
from datum_router.manifests.meta import FIELD_TEXT_PATTERN, MAX_HEADER_NAME_CHARS
from datum_router.manifests.routefilters import FaultAbort, FaultInjection, LocalReply
from datum_router.manifests.rules import FRAMING, HOP_BY_HOP, is_prime
from datum_router.manifests.validate_route import (
    DEFAULT_SPILLOVER,
    DEFAULT_TABLE_SIZE,
    FILTER_FIELDS,
    NOT_HASHING,
    ORDERING,
    REDIRECT_STATUSES,
    SPILLING,
)
from datum_router.manifests.vpcroute import (
    GRPC_METHOD_PATTERN,
    GRPC_SERVICE_PATTERN,
    MAX_REGEX_BYTES,
    MAX_TABLE_SIZE,
    Cors,
    HeaderMatch,
    HeaderModifier,
    LoadBalancingConfig,
    LocalitySpec,
    PathModifier,
    RequestRedirect,
    RouteFilter,
    RouteMatch,
    SessionAffinity,
    UrlRewrite,
    ValueMatch,
    VPCRouteSpec,
)
from datum_router.reasons import Reason

# --- matches ---------------------------------------------------------------------------------------------------

_PATH_KINDS: Final = ", ".join(
    [*map(given, ("exactPath", "pathPrefix", "pathRegex")), f"{given('grpcService')} || {given('grpcMethod')}"]
)


def _is_ascii(subject: str) -> str:
    return rf"{subject}.matches(r'^[\x00-\x7f]*$')"


def _compiles(subject: str) -> str:
    """Return an expression that is true, or ends with the error of the server's engine, whose syntax is that of RE2."""
    return f"type(''.matches({subject})) == bool"


_MATCH: Final = (
    CelRule(
        rule=f"[{_PATH_KINDS}].filter(is_given, is_given).size() <= 1",
        message="expected at most one of exactPath, pathPrefix, pathRegex and grpcService: use matches for several",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    *(
        rule
        for name, pattern, example in (
            ("grpcService", GRPC_SERVICE_PATTERN, "shop.v1.Cart"),
            ("grpcMethod", GRPC_METHOD_PATTERN, "AddItem"),
        )
        for rule in (
            CelRule(
                rule=f"self.grpcMatchType != 'Exact' || !({given(name)}) || self.{name}.matches({text(pattern)})",
                message=f"expected a gRPC name such as {example}",
                field=name,
            ),
            CelRule(
                rule=f"self.grpcMatchType == 'Exact' || !({given(name)}) || "
                f"{_is_ascii(f'self.{name}')} && {_compiles(f'self.{name}')}",
                message=f"expected {name} to be a regular expression of RE2, in ASCII",
                field=name,
            ),
        )
    ),
    needs("grpcService", given("grpcMethod"), "grpcMethod needs grpcService: a path is /service/method"),
    *path("exactPath"),
    *path("pathPrefix"),
    CelRule(
        on="pathRegex",
        rule=f"{_is_ascii('self')} && {_compiles('self')}",
        message="expected a regular expression of RE2, in ASCII",
    ),
    *header_map("headers"),
    CelRule(
        on="queryParams",
        rule=f"self.all(k, k.size() >= 1 && k.size() <= {MAX_HEADER_NAME_CHARS} && k.matches(r'{FIELD_TEXT_PATTERN}'))",
        message=f"expected names of 1 to {MAX_HEADER_NAME_CHARS} characters, without control characters",
    ),
    network("sourceCIDRs[]"),
)
_VALUE: Final = (
    excludes("value", "self.type == 'Present'", "type Present takes no value"),
    needs("value", "self.type != 'Present'", "every type but Present needs a value"),
    CelRule(
        rule=f"self.type != 'Prefix' || !({given('value')}) || self.value != ''",
        message="expected a prefix: use type Present for any value",
        field="value",
    ),
    CelRule(
        rule=f"self.type != 'RegularExpression' || !({given('value')}) || "
        f"self.value.size() >= 1 && self.value.size() <= {MAX_REGEX_BYTES}",
        message=f"expected a regular expression of 1 to {MAX_REGEX_BYTES} bytes",
        field="value",
    ),
    CelRule(
        rule=f"self.type != 'RegularExpression' || !({given('value')}) || {_is_ascii('self.value')}",
        message="expected a regular expression in ASCII",
        field="value",
    ),
    CelRule(
        rule=f"self.type != 'RegularExpression' || !({given('value')}) || {_compiles('self.value')}",
        message="expected value to be a regular expression of RE2",
        field="value",
    ),
)

# --- destinations and filters ----------------------------------------------------------------------------------

_IS_REDIRECT: Final = "has(self.filters) && self.filters.exists(f, f.type == 'RequestRedirect')"
_MODIFIERS: Final = ("requestRedirect", "urlRewrite")
_REPLACES_PREFIX: Final = " || ".join(
    f"has(f.{name}) && has(f.{name}.path) && f.{name}.path.type == 'ReplacePrefixMatch'" for name in _MODIFIERS
)
_HAS_ONE_PREFIX: Final = (
    f"{given('match')} ? has(self.match.pathPrefix) : "
    f"has(self.matches) && self.matches.size() == 1 && has(self.matches[0].pathPrefix)"
)


def _at_most_one(kind: str) -> CelRule:
    return CelRule(
        on="filters",
        rule=f"self.filter(f, f.type == '{kind}').size() <= 1",
        message=f"expected at most one filter of type {kind}",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    )


_FILTERS: Final = (
    _at_most_one("RequestRedirect"),
    _at_most_one("URLRewrite"),
    CelRule(
        on="filters",
        rule="!(self.exists(f, f.type == 'RequestRedirect') && self.exists(f, f.type == 'URLRewrite'))",
        message="a redirected request is not sent on, so nothing can be rewritten",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        on="filters",
        rule="!(self.exists(f, f.type == 'RequestRedirect') && self.exists(f, f.type == 'RequestMirror'))",
        message="a redirected request is not sent on, so there is nothing to copy",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        rule=f"!has(self.filters) || !self.filters.exists(f, {_REPLACES_PREFIX}) || ({_HAS_ONE_PREFIX})",
        message="ReplacePrefixMatch needs exactly one match, and that with pathPrefix",
        field="filters",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
)
_FILTER: Final = tuple(
    rule
    for kind, (_, name) in FILTER_FIELDS.items()
    for rule in (
        needs(name, f"self.type == '{kind.value}'", f"a filter of type {kind.value} needs {name}"),
        excludes(name, f"self.type != '{kind.value}'", f"only a filter of type {kind.value} has {name}"),
    )
)
_NAMES: Final = " + ".join(
    f"(has(self.{name}) ? self.{name}.map(h, {item}) : [])"
    for name, item in (("set", "h.name.lowerAscii()"), ("remove", "h.lowerAscii()"))
)
_MODIFIER: Final = (
    CelRule(
        rule=f"{filled('set')} || {filled('add')} || {filled('remove')}",
        message="the filter changes nothing: expected set, add or remove",
        reason=Reason.MISSING_FIELD,
    ),
    header_changed("remove[]"),
    CelRule(
        # A list of one list gives that a name.
        rule=f"[{_NAMES}].all(names, names.all(a, names.exists_one(b, a == b))"
        " && (!has(self.add) || !self.add.exists(h, h.name.lowerAscii() in names)))",
        message="expected each header once, or several times in add and nowhere else",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
)
_PATH_MODIFIER: Final = (
    needs("replaceFullPath", "self.type == 'ReplaceFullPath'", "type ReplaceFullPath needs replaceFullPath"),
    excludes("replaceFullPath", "self.type != 'ReplaceFullPath'", "only type ReplaceFullPath has replaceFullPath"),
    needs(
        "replacePrefixMatch", "self.type == 'ReplacePrefixMatch'", "type ReplacePrefixMatch needs replacePrefixMatch"
    ),
    excludes(
        "replacePrefixMatch", "self.type != 'ReplacePrefixMatch'", "only type ReplacePrefixMatch has replacePrefixMatch"
    ),
    *path("replaceFullPath"),
    *path("replacePrefixMatch"),
)
_REDIRECT: Final = (
    CelRule(
        on="statusCode",
        rule=f"self in {list(REDIRECT_STATUSES)}",
        message=f"expected one of {', '.join(map(str, REDIRECT_STATUSES))}",
    ),
    host("hostname", is_wildcard_allowed=False),
    CelRule(
        rule=" || ".join(given(name) for name in ("scheme", "hostname", "port", "path")),
        message="the redirect leads to where the request came: expected scheme, hostname, port or path",
        reason=Reason.MISSING_FIELD,
    ),
)
_REWRITE: Final = (
    host("hostname", is_wildcard_allowed=False),
    CelRule(
        rule=f"{given('hostname')} || {given('path')}",
        message="the rewrite changes nothing: expected hostname or path",
        reason=Reason.MISSING_FIELD,
    ),
)

# --- balancing -------------------------------------------------------------------------------------------------

_DIVISORS: Final = [number for number in range(2, int(MAX_TABLE_SIZE**0.5) + 1) if is_prime(number)]
_BALANCING: Final = (
    *(
        rule
        for kind, name in (("Header", "headerName"), ("Cookie", "cookie"), ("QueryParam", "queryParam"))
        for rule in (
            needs(name, f"self.hashOn == '{kind}'", f"hashOn {kind} needs {name}"),
            excludes(name, f"self.hashOn != '{kind}'", f"only hashOn {kind} reads {name}"),
        )
    ),
    header_matched("headerName"),
    CelRule(
        on="tableSize",
        rule=f"{_DIVISORS}.all(divisor, self == divisor || self % divisor != 0)",
        message=f"expected a prime number such as {DEFAULT_TABLE_SIZE}",
    ),
    CelRule(
        rule=f"self.algorithm != 'Ring' || self.tableSize == {DEFAULT_TABLE_SIZE}",
        message="a ring has no table",
        field="tableSize",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
)
_HASHES_NOTHING: Final = texts({*NOT_HASHING, "source-ip-hash"})
_SETS_NO_HASH: Final = (
    "self.loadBalancingConfig.hashOn == 'SourceIP' && self.loadBalancingConfig.algorithm == 'Maglev'"
    f" && self.loadBalancingConfig.tableSize == {DEFAULT_TABLE_SIZE}"
)
# --- locality --------------------------------------------------------------------------------------------------

_LOCALITY: Final = (
    excludes(
        "failoverOrder",
        f"!(self.mode in {texts(mode.value for mode in ORDERING)})",
        f"only {' and '.join(mode.value for mode in ORDERING)} have an order",
        is_list=True,
    ),
    CelRule(
        rule=f"self.spilloverPercent == {DEFAULT_SPILLOVER} || self.mode in {texts(mode.value for mode in SPILLING)}",
        message=f"only with {', '.join(mode.value for mode in SPILLING)} something spills over",
        field="spilloverPercent",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    needs("weights", "self.mode == 'Weighted'", "mode Weighted needs weights", is_list=True),
    excludes("weights", "self.mode != 'Weighted'", "only mode Weighted has weights", is_list=True),
)

# --- sessions --------------------------------------------------------------------------------------------------


def _second(on: str) -> CelRule:
    return CelRule(on=on, rule="duration(self) >= duration('1s')", message="expected 1s or more")


_SESSION: Final = (
    needs(
        "absoluteTimeout",
        "self.type == 'Cookie' && self.lifetime == 'Permanent'",
        "lifetime Permanent needs absoluteTimeout, its length",
    ),
    CelRule(
        rule="self.type != 'Header' || self.lifetime != 'Permanent'",
        message="a header has no lifetime: expected type Cookie",
        field="lifetime",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        rule=f"self.type != 'Header' || !has(self.name) || !(self.name.lowerAscii() in {texts(HOP_BY_HOP | FRAMING)})",
        message="expected a header that may be changed: not host, content-length or one of a single connection",
        field="name",
    ),
    _second("absoluteTimeout"),
    _second("idleTimeout"),
    CelRule(
        rule=f"!({given('absoluteTimeout')} && {given('idleTimeout')})"
        " || duration(self.idleTimeout) <= duration(self.absoluteTimeout)",
        message="expected idleTimeout to be at most absoluteTimeout",
        field="idleTimeout",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
)

# --- the whole -------------------------------------------------------------------------------------------------

_ROUTE: Final = (
    excludes("matches", given("match"), "match and matches are both given: move match into matches", is_list=True),
    host("hostnames[]"),
    excludes(
        "destinations", _IS_REDIRECT, "a RequestRedirect filter answers every request: remove it or these", is_list=True
    ),
    needs(
        "destinations",
        f"!({_IS_REDIRECT})",
        "the route has no destinations: name a VPCService, or add a RequestRedirect",
        is_list=True,
    ),
    *_FILTERS,
    CelRule(
        rule=f"!({given('loadBalancingConfig')}) || !(self.loadBalancing in {_HASHES_NOTHING}) || {_SETS_NO_HASH}",
        message="only consistent-hash reads hashOn, algorithm and tableSize",
        field="loadBalancingConfig",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
)

ROUTE_RULES: Final[Mapping[type[Struct], tuple[CelRule, ...]]] = {
    VPCRouteSpec: _ROUTE,
    RouteMatch: _MATCH,
    ValueMatch: _VALUE,
    HeaderMatch: (*_VALUE, header_matched("name")),
    RouteFilter: _FILTER,
    HeaderModifier: _MODIFIER,
    PathModifier: _PATH_MODIFIER,
    RequestRedirect: _REDIRECT,
    UrlRewrite: _REWRITE,
    Cors: CORS,
    FaultInjection: FAULT,
    LocalReply: REPLY,
    FaultAbort: FAULT_ABORT,
    LoadBalancingConfig: _BALANCING,
    LocalitySpec: _LOCALITY,
    SessionAffinity: _SESSION,
}
