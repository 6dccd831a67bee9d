"""Rules of VPCRoute that a type cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datum_router.manifests.meta import parse_duration
from datum_router.manifests.problem import Problem
from datum_router.manifests.rules import (
    check_header,
    check_host,
    check_hosts,
    check_network,
    check_path,
    check_regex,
    check_retries,
    check_timeouts,
    exclusive,
    invalid,
    is_prime,
    missing,
    next_prime,
    warning,
)
from datum_router.manifests.validate_filters import check_cors, check_fault, check_grpc, check_plugin, check_replies
from datum_router.manifests.validate_limits import check_circuit_breaker, check_rate_limit, check_session_affinity
from datum_router.manifests.vpcroute import (
    FilterType,
    HashAlgorithm,
    HashOn,
    HeaderModifier,
    LoadBalancingConfig,
    LocalityMode,
    LocalitySpec,
    MatchType,
    PathModifier,
    PathModifierType,
    RouteFilter,
    RouteMatch,
    ValueMatch,
    VPCRoute,
    VPCRouteSpec,
)

REDIRECT_STATUSES = (301, 302, 303, 307, 308)
"""Statuses a redirect may have (RFC 9110 section 15.4)."""
DEFAULT_TABLE_SIZE = LoadBalancingConfig().table_size

NOT_HASHING = frozenset({"round-robin", "least-connections", "random", "source-ip"})
"""Balancers of the core that hash nothing a loadBalancingConfig could name; plugins' may read what they like."""

DEFAULT_SPILLOVER = LocalitySpec().spillover_percent

ORDERING = (LocalityMode.PREFER_LOCAL, LocalityMode.NEAREST)
"""Modes of locality that put one place after the other."""
SPILLING = (*ORDERING, LocalityMode.WEIGHTED)
"""Modes of locality in which places pass requests on."""

FILTER_FIELDS = {
    FilterType.REQUEST_HEADER_MODIFIER: ("request_header_modifier", "requestHeaderModifier"),
    FilterType.RESPONSE_HEADER_MODIFIER: ("response_header_modifier", "responseHeaderModifier"),
    FilterType.REQUEST_REDIRECT: ("request_redirect", "requestRedirect"),
    FilterType.URL_REWRITE: ("url_rewrite", "urlRewrite"),
    FilterType.REQUEST_MIRROR: ("request_mirror", "requestMirror"),
    FilterType.RATE_LIMIT: ("rate_limit", "rateLimit"),
    FilterType.FAULT_INJECTION: ("fault_injection", "faultInjection"),
    FilterType.PLUGIN: ("plugin", "plugin"),
}
"""The field that holds the settings of a type of filter: attribute, name on the wire."""


def validate_route(manifest: VPCRoute) -> Iterator[Problem]:
    """Yield what is wrong with a VPCRoute."""
    spec = manifest.spec
    if spec.match is not None and spec.matches:
        yield exclusive("spec.matches", "match and matches are both given", "move match into matches")
    if spec.match is not None:
        yield from _match("spec.match", spec.match)
    for index, item in enumerate(spec.matches):
        yield from _match(f"spec.matches[{index}]", item)
    yield from check_hosts("spec.hostnames", spec.hostnames)
    yield from _destinations(spec)
    if spec.filters:
        yield from _filters("spec.filters", spec.filters, spec)
    if spec.cors is not None:
        yield from check_cors("spec.cors", spec.cors)
    if spec.local_replies:
        yield from check_replies("spec.localReplies", spec.local_replies)
    if spec.load_balancing_config is not None:
        yield from _balancing(spec, spec.load_balancing_config)
    if spec.locality is not None:
        yield from _locality("spec.locality", spec.locality)
    yield from check_circuit_breaker("spec.circuitBreaker", spec.circuit_breaker)
    yield from check_session_affinity("spec.sessionAffinity", spec.session_affinity)
    yield from check_rate_limit("spec.rateLimit", spec.rate_limit)
    yield from check_retries("spec.retries", spec.retries)
    yield from check_timeouts("spec.timeouts", spec.timeouts)
    yield from _tries(spec)


def _tries(spec: VPCRouteSpec) -> Iterator[Problem]:
    """Warn of a limit of one attempt that the limit of the whole request leaves no time for."""
    retries, timeouts = spec.retries, spec.timeouts
    if retries is None or retries.per_try_timeout is None:
        return
    per_try_s = parse_duration(retries.per_try_timeout)
    if retries.hedging is not None and 0 < per_try_s <= parse_duration(retries.hedging.delay):
        yield warning(
            "spec.retries.hedging.delay",
            f"found {retries.hedging.delay}, but perTryTimeout ({retries.per_try_timeout}) ends an attempt before that",
            "make it shorter than perTryTimeout",
        )
    if timeouts is not None and timeouts.request is not None:
        whole, name = parse_duration(timeouts.request), f"timeouts.request ({timeouts.request})"
    else:
        whole, name = float(spec.timeout_seconds), f"timeoutSeconds ({spec.timeout_seconds})"
    if 0 < whole <= per_try_s:
        yield warning(
            "spec.retries.perTryTimeout",
            f"found {retries.per_try_timeout}, which never ends an attempt before {name} ends the request",
            "make it shorter than the limit of the request, by the number of tries",
        )


# --- matches ---------------------------------------------------------------------------------------------------


_PATH_FIELDS = ("exactPath", "pathPrefix", "pathRegex", "grpcService")


def _match(path: str, match: RouteMatch) -> Iterator[Problem]:
    paths = (match.exact_path, match.path_prefix, match.path_regex, match.grpc_service or match.grpc_method)
    if paths.count(None) < len(paths) - 1:
        given = [name for name, value in zip(_PATH_FIELDS, paths, strict=True) if value is not None]
        yield exclusive(
            path, f"{' and '.join(given)} are given, expected one condition on the path", "use matches for both"
        )
    if match.exact_path is not None:
        yield from check_path(f"{path}.exactPath", match.exact_path)
    if match.path_prefix is not None:
        yield from check_path(f"{path}.pathPrefix", match.path_prefix)
    if match.path_regex is not None:
        yield from check_regex(f"{path}.pathRegex", match.path_regex)
    if match.grpc_method is not None and match.grpc_service is None:
        yield missing(f"{path}.grpcService", "grpcMethod needs grpcService: a path is /service/method")
    yield from check_grpc(path, match)
    seen: dict[str, str] = {}
    for name in match.headers or ():
        where = f"{path}.headers.{name}"
        yield from check_header(where, name)
        if name.lower() in seen:
            yield exclusive(where, f"{name} and {seen[name.lower()]} are the same header")
        seen[name.lower()] = name
    for index, header in enumerate(match.header_matches):
        where = f"{path}.headerMatches[{index}]"
        yield from check_header(f"{where}.name", header.name)
        yield from _value_match(where, header)
    for index, parameter in enumerate(match.query_param_matches):
        yield from _value_match(f"{path}.queryParamMatches[{index}]", parameter)
    for index, text in enumerate(match.source_cidrs):
        yield from check_network(f"{path}.sourceCIDRs[{index}]", text)


def _value_match(path: str, match: ValueMatch) -> Iterator[Problem]:
    if match.type is MatchType.PRESENT:
        if match.value is not None:
            yield exclusive(f"{path}.value", "type Present takes no value", "use type: Exact to compare with a value")
    elif match.value is None:
        yield missing(f"{path}.value", f"type {match.type.value} needs a value", "use type: Present for any value")
    elif match.type is MatchType.REGULAR_EXPRESSION:
        yield from check_regex(f"{path}.value", match.value)
    elif match.type is MatchType.PREFIX and not match.value:
        yield invalid(f"{path}.value", "found an empty prefix", "use type: Present for any value")


# --- destinations and filters ----------------------------------------------------------------------------------


def _destinations(spec: VPCRouteSpec) -> Iterator[Problem]:
    is_redirect = FilterType.REQUEST_REDIRECT in [item.type for item in spec.filters]
    if is_redirect and spec.destinations:
        yield exclusive(
            "spec.destinations",
            "a RequestRedirect filter answers every request",
            "remove the destinations or the filter",
        )
    elif not is_redirect and not spec.destinations:
        yield missing(
            "spec.destinations", "the route has no destinations", "name a VPCService, or add a RequestRedirect"
        )
    for index, item in enumerate(spec.destinations):
        if item.filters:
            yield from _filters(f"spec.destinations[{index}].filters", item.filters, spec)
    if spec.destinations and all(item.weight == 0 for item in spec.destinations):
        yield warning("spec.destinations", "every weight is 0: its traffic is answered with 500")


def _filters(path: str, filters: Sequence[RouteFilter], spec: VPCRouteSpec) -> Iterator[Problem]:
    seen: dict[FilterType, int] = {}
    for index, item in enumerate(filters):
        where = f"{path}[{index}]"
        for kind, (attribute, name) in FILTER_FIELDS.items():
            is_given = getattr(item, attribute) is not None
            if kind is item.type and not is_given:
                yield missing(f"{where}.{name}", f"a filter of type {kind.value} needs {name}")
            elif kind is not item.type and is_given:
                yield exclusive(f"{where}.{name}", f"a filter of type {item.type.value} has no {name}")
        if item.type in (FilterType.REQUEST_REDIRECT, FilterType.URL_REWRITE) and item.type in seen:
            yield exclusive(where, f"found a second {item.type.value}, expected at most one")
        seen.setdefault(item.type, index)
        yield from _filter(where, item, spec)
    for kind, why in (
        (FilterType.URL_REWRITE, "a redirected request is not sent on, so nothing can be rewritten"),
        (FilterType.REQUEST_MIRROR, "a redirected request is not sent on, so there is nothing to copy"),
    ):
        if FilterType.REQUEST_REDIRECT in seen and kind in seen:
            yield exclusive(f"{path}[{seen[kind]}]", why)


def _filter(path: str, item: RouteFilter, spec: VPCRouteSpec) -> Iterator[Problem]:
    yield from check_rate_limit(f"{path}.rateLimit", item.rate_limit)
    if item.request_header_modifier is not None:
        yield from _header_modifier(f"{path}.requestHeaderModifier", item.request_header_modifier)
    if item.response_header_modifier is not None:
        yield from _header_modifier(f"{path}.responseHeaderModifier", item.response_header_modifier)
    redirect = item.request_redirect
    if redirect is not None:
        where = f"{path}.requestRedirect"
        if redirect.status_code not in REDIRECT_STATUSES:
            known = ", ".join(map(str, REDIRECT_STATUSES))
            yield invalid(f"{where}.statusCode", f"found {redirect.status_code}, expected one of {known}")
        if redirect.hostname is not None:
            yield from check_host(f"{where}.hostname", redirect.hostname, is_wildcard_allowed=False)
        yield from _path_modifier(f"{where}.path", redirect.path, spec)
        if redirect.scheme is None and redirect.hostname is None and redirect.port is None and redirect.path is None:
            yield missing(where, "the redirect leads to where the request came", "give scheme, hostname, port or path")
    rewrite = item.url_rewrite
    if rewrite is not None:
        where = f"{path}.urlRewrite"
        if rewrite.hostname is not None:
            yield from check_host(f"{where}.hostname", rewrite.hostname, is_wildcard_allowed=False)
        yield from _path_modifier(f"{where}.path", rewrite.path, spec)
        if rewrite.hostname is None and rewrite.path is None:
            yield missing(where, "the rewrite changes nothing", "give hostname or path")

    if item.fault_injection is not None:
        yield from check_fault(f"{path}.faultInjection", item.fault_injection)
    if item.plugin is not None:
        yield from check_plugin(f"{path}.plugin", item.plugin)


def _header_modifier(path: str, modifier: HeaderModifier) -> Iterator[Problem]:
    lists = (
        ("set", [(f"{path}.set[{index}].name", one.name) for index, one in enumerate(modifier.set)]),
        ("add", [(f"{path}.add[{index}].name", one.name) for index, one in enumerate(modifier.add)]),
        ("remove", [(f"{path}.remove[{index}]", name) for index, name in enumerate(modifier.remove)]),
    )
    owners: dict[str, str] = {}
    for action, names in lists:
        for where, name in names:
            yield from check_header(where, name, is_change=True)
            # `add` may repeat a name: fields may have several values.
            before = owners.get(name.lower())
            if before is not None and not (before == action == "add"):
                yield exclusive(where, f"{name} stands in {before} already", "say once what is to happen to a header")
            owners.setdefault(name.lower(), action)
    if not owners:
        yield missing(path, "the filter changes nothing", "give set, add or remove")


def _path_modifier(path: str, modifier: PathModifier | None, spec: VPCRouteSpec) -> Iterator[Problem]:
    if modifier is None:
        return
    is_full = modifier.type is PathModifierType.REPLACE_FULL_PATH
    wanted, other = ("replaceFullPath", "replacePrefixMatch") if is_full else ("replacePrefixMatch", "replaceFullPath")
    values = {"replaceFullPath": modifier.replace_full_path, "replacePrefixMatch": modifier.replace_prefix_match}
    if values[other] is not None:
        yield exclusive(f"{path}.{other}", f"type {modifier.type.value} has no {other}")
    text = values[wanted]
    if text is None:
        yield missing(f"{path}.{wanted}", f"type {modifier.type.value} needs {wanted}")
    elif text or is_full:  # an empty replacement of a prefix removes it
        yield from check_path(f"{path}.{wanted}", text)
    if is_full:
        return
    matches = [spec.match] if spec.match is not None else list(spec.matches)
    if len(matches) != 1 or matches[0].path_prefix is None:
        yield exclusive(
            f"{path}.type",
            "ReplacePrefixMatch needs exactly one match, and that with pathPrefix",
            "give each prefix a route of its own",
        )


# --- balancing ------------------------------------------------------------------------------------------------


def _balancing(spec: VPCRouteSpec, config: LoadBalancingConfig) -> Iterator[Problem]:
    path = "spec.loadBalancingConfig"
    named = {
        HashOn.HEADER: ("headerName", config.header_name),
        HashOn.COOKIE: ("cookie", config.cookie),
        HashOn.QUERY_PARAM: ("queryParam", config.query_param),
    }
    for kind, (name, value) in named.items():
        if kind is config.hash_on and value is None:
            yield missing(f"{path}.{name}", f"hashOn {kind.value} needs {name}")
        elif kind is not config.hash_on and value is not None:
            yield exclusive(
                f"{path}.{name}", f"hashOn {config.hash_on.value} reads no {name}", f"set hashOn: {kind.value}"
            )
    if config.header_name is not None:
        yield from check_header(f"{path}.headerName", config.header_name)
    if not is_prime(config.table_size):
        hint = f"the next one is {next_prime(config.table_size)}"
        yield invalid(f"{path}.tableSize", f"found {config.table_size}, expected a prime number", hint)
    is_default = config.hash_on is HashOn.SOURCE_IP and config.algorithm is HashAlgorithm.MAGLEV
    if spec.load_balancing in NOT_HASHING and not (is_default and config.table_size == DEFAULT_TABLE_SIZE):
        yield exclusive(
            path,
            f"loadBalancing {spec.load_balancing} reads neither hashOn nor algorithm nor tableSize",
            "set loadBalancing: consistent-hash",
        )
    elif config.algorithm is HashAlgorithm.RING and config.table_size != DEFAULT_TABLE_SIZE:
        yield exclusive(f"{path}.tableSize", "a ring has no table", "set algorithm: Maglev")


# --- locality -------------------------------------------------------------------------------------------------


def _locality(path: str, locality: LocalitySpec) -> Iterator[Problem]:
    mode = locality.mode
    if locality.failover_order and mode not in ORDERING:
        yield exclusive(f"{path}.failoverOrder", f"mode {mode.value} has no order", f"set mode: {_either(ORDERING)}")
    if locality.spillover_percent != DEFAULT_SPILLOVER and mode not in SPILLING:
        yield exclusive(
            f"{path}.spilloverPercent", f"with mode {mode.value} nothing spills over", f"set mode: {_either(SPILLING)}"
        )
    if mode is LocalityMode.WEIGHTED and not locality.weights:
        yield missing(f"{path}.weights", "mode Weighted needs weights", "give places and their shares")
    elif mode is not LocalityMode.WEIGHTED and locality.weights:
        yield exclusive(f"{path}.weights", f"mode {mode.value} has no weights", "set mode: Weighted")
    seen: set[str] = set()
    for index, item in enumerate(locality.weights):
        if item.place in seen:
            yield exclusive(f"{path}.weights[{index}]", f"found a second {item.place}, expected each place once")
        seen.add(item.place)


def _either(modes: Sequence[LocalityMode]) -> str:
    return " or ".join(mode.value for mode in modes)
