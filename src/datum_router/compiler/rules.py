"""From VPCRoute to rules: one rule for each match, with its destinations, filters and policies."""

from __future__ import annotations

from datum_router.compiler.cors import compile_cors, preflight_rules
from datum_router.compiler.diagnostics import Severity, did_you_mean
from datum_router.compiler.edge import unread_by_streams, with_defaults
from datum_router.compiler.filters import FilterCompiler, filter_findings, filter_remarks
from datum_router.compiler.ingress import IngressScope
from datum_router.compiler.limits import affinity_policy, circuit_policy, hash_cookie, route_rates
from datum_router.compiler.refs import Finding, created_at, port_override, resolve_service
from datum_router.compiler.replies import compile_replies
from datum_router.compiler.services import service_key
from datum_router.manifests import vpcroute as wire
from datum_router.manifests.meta import ObjectKey, key_of, parse_duration
from datum_router.manifests.parts import GRPC_CONDITIONS, STATUS_CONDITIONS
from datum_router.manifests.terms import BALANCER_TERMS
from datum_router.manifests.vpcroute import VPCRoute
from datum_router.manifests.vpcservice import Protocol
from datum_router.model.policy import RETRY_BUDGET_PERCENT, RetryCondition, RetryPolicy, TimeoutPolicy
from datum_router.model.route import (
    BackendRef,
    BalancingPolicy,
    HashOn,
    LocalityMode,
    LocalityPolicy,
    Match,
    PathKind,
    PathMatch,
    Rule,
    RuleId,
    ValueKind,
    ValueMatch,
)
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import ManifestView
from datum_router.reasons import Reason
from datum_router.routing.matcher import rule_problems
from datum_router.routing.regex import RegexEngine

DEFAULT_TIMEOUT_S = 30
"""What `spec.timeoutSeconds` is if a route says nothing (seconds)."""


class RouteCompiler:
    """Compile routes one by one."""

    __slots__ = ("_plugins", "_regex")

    def __init__(self, plugins: PluginSet, *, regex: RegexEngine | None) -> None:
        self._plugins = plugins
        self._regex = regex

    def compile(self, route: VPCRoute, view: ManifestView, scope: IngressScope) -> tuple[list[Rule], list[Finding]]:
        """Return the route's rules and what is wrong with it. A route that cannot be served as a whole gives none."""
        key = key_of("VPCRoute", route.metadata)
        name = f"{key.namespace}/{key.name}"
        findings: list[Finding] = []
        spec = route.spec
        hostnames, listeners, is_attached = scope.attach(route, findings)
        if not is_attached:
            return [], findings
        balancing = self._balancing(route, key, findings)
        if balancing is None:
            return [], findings
        if scope.are_streams(listeners):
            unread = list(unread_by_streams(route))
            findings += _unread(unread, key)
            if any(is_fatal for _, _, is_fatal in unread):
                return [], findings
        # Limits are no steps of the filters: all of them come first.
        steps = [index for index, item in enumerate(spec.filters) if item.type is not wire.FilterType.RATE_LIMIT]
        rates = route_rates(route, key)
        affinity = affinity_policy(spec.session_affinity, name) if spec.session_affinity is not None else None
        circuit = circuit_policy(spec.circuit_breaker) if spec.circuit_breaker is not None else None
        compiled = FilterCompiler(key, view, findings)
        destinations = _destinations(route, key, view, findings, compiled, is_stream=scope.are_streams(listeners))
        filters = compiled.compile(spec.filters, "spec.filters", steps)
        matches = spec.matches or (spec.match or wire.RouteMatch(),)
        cors = compile_cors(spec.cors)
        replies = compile_replies(spec.local_replies)
        locality, retry, timeouts = _locality(route), _retry(route), _timeouts(route)
        if spec.timeouts is None and spec.timeout_seconds == DEFAULT_TIMEOUT_S:
            timeouts = with_defaults(timeouts, scope.timeouts_for(route))
        created = created_at(route.metadata)
        attachment = f"{key.namespace}/{spec.source_vpc_attachment}" if spec.source_vpc_attachment else ""
        rules: list[Rule] = []
        for index, item in enumerate(matches):
            rule = Rule(
                id=RuleId(f"{name}#{index}"),
                route=name,
                hostnames=hostnames,
                listeners=listeners,
                match=compile_match(item, attachment),
                destinations=destinations,
                filters=filters,
                balancing=balancing,
                locality=locality,
                retry=retry,
                timeouts=timeouts,
                rate_limits=rates,
                circuit=circuit,
                affinity=affinity,
                created_at=created,
                index=index,
                cors=cors,
                replies=replies,
                max_request_body_bytes=spec.max_request_body_bytes or 0,
            )
            where = f"spec.matches[{index}]" if spec.matches else "spec.match"
            unusable = self._match_problems(rule, key, where, is_grpc=item.grpc_service is not None)
            if filters or any(ref.filters for ref in destinations):
                unusable += filter_findings(rule, key, steps, self._plugins.filters)
                findings += filter_remarks(rule, key)
            if unusable:
                findings += unusable
            else:
                rules.append(rule)
                if cors is not None:
                    rules += preflight_rules(rule)
        return rules, findings

    def _match_problems(self, rule: Rule, key: ObjectKey, path: str, *, is_grpc: bool) -> list[Finding]:
        return [
            Finding(
                key=key,
                path=f"{path}.{'grpcService' if is_grpc else 'pathRegex'}" if problem.part == "path" else path,
                reason=problem.reason,
                message=f"{problem.part}: {problem.message}",
                hint="pip install 'datum-router[re2]'" if problem.reason is Reason.REGEX_UNAVAILABLE else "",
            )
            for problem in rule_problems(rule, self._regex)
        ]

    def _balancing(self, route: VPCRoute, key: ObjectKey, findings: list[Finding]) -> BalancingPolicy | None:
        spec = route.spec
        config = spec.load_balancing_config
        name = spec.load_balancing
        if config is not None and config.algorithm is wire.HashAlgorithm.RING and name == "consistent-hash":
            name = "consistent-hash-ring"
        if name not in self._plugins.balancers:
            known = sorted(self._plugins.balancers)
            findings.append(
                Finding(
                    key=key,
                    path="spec.loadBalancing",
                    reason=Reason.UNKNOWN_BALANCER,
                    message=f"found {name!r}, expected one of {', '.join(known)}",
                    hint=did_you_mean(name, known, BALANCER_TERMS),
                )
            )
            return None
        if config is None:
            return BalancingPolicy(algorithm=name)
        hash_on = HashOn(config.hash_on.value)
        hash_name = {
            HashOn.HEADER: (config.header_name or "").lower(),
            HashOn.COOKIE: config.cookie.name if config.cookie is not None else "",
            HashOn.QUERY: config.query_param or "",
        }.get(hash_on, "")
        return BalancingPolicy(
            algorithm=name,
            hash_on=hash_on,
            hash_name=hash_name,
            table_size=config.table_size,
            cookie=hash_cookie(config.cookie) if hash_on is HashOn.COOKIE else None,
            slow_start_s=parse_duration(config.slow_start) if config.slow_start else 0.0,
        )


def _unread(unread: list[tuple[str, str, bool]], key: ObjectKey) -> list[Finding]:
    return [
        Finding(
            key=key,
            path=path,
            reason=Reason.INVALID_VALUE,
            message=f"{what} mean nothing on a listener with protocol TLS or TCP, where nobody reads requests",
            hint="name a section with protocol HTTPS, or remove it",
            severity=Severity.ERROR if is_fatal else Severity.WARNING,
        )
        for path, what, is_fatal in unread
    ]


def _destinations(
    route: VPCRoute,
    key: ObjectKey,
    view: ManifestView,
    findings: list[Finding],
    compiled: FilterCompiler,
    *,
    is_stream: bool,
) -> tuple[BackendRef, ...]:
    refs: list[BackendRef] = []
    for index, item in enumerate(route.spec.destinations):
        ref = item.vpc_service_ref
        result = resolve_service(
            view,
            referrer=key,
            path=f"spec.destinations[{index}].vpcServiceRef.name",
            name=ref.name,
            namespace=ref.namespace,
        )
        if result.finding is not None:
            findings.append(result.finding)
        problem = result.problem
        if result.service is not None and result.service.spec.protocol is Protocol.TCP and not is_stream:
            problem = Reason.INVALID_VALUE
            findings.append(
                Finding(
                    key=key,
                    path=f"spec.destinations[{index}].vpcServiceRef.name",
                    reason=Reason.INVALID_VALUE,
                    message=f"vpcservice {result.name} speaks TCP, which HTTP requests cannot be sent to; its share of "
                    "the traffic is answered with 500",
                    hint="name the section of a VPCIngress with protocol TLS or TCP in parentRefs",
                )
            )
        refs.append(
            BackendRef(
                service=service_key(ref.namespace or key.namespace, ref.name),
                weight=item.weight,
                port=port_override(item.port, result.service),
                priority=item.priority,
                filters=compiled.compile(item.filters, f"spec.destinations[{index}].filters"),
                problem=problem,
            )
        )
    return tuple(refs)


def compile_match(item: wire.RouteMatch, attachment: str = "") -> Match:
    """Return one match set of a manifest as the model's; `attachment` is the route's, `namespace/name` or empty."""
    path = PathMatch()
    is_pattern = False
    if item.exact_path is not None:
        path = PathMatch(kind=PathKind.EXACT, value=item.exact_path)
    elif item.path_regex is not None:
        path = PathMatch(kind=PathKind.REGEX, value=item.path_regex)
    elif item.path_prefix is not None:
        path = PathMatch(kind=PathKind.PREFIX, value=item.path_prefix.rstrip("/") or "/")
    elif item.grpc_match_type is wire.GrpcMatchType.REGULAR_EXPRESSION and item.grpc_service:
        path = PathMatch(kind=PathKind.REGEX, value=f"/(?:{item.grpc_service})/(?:{item.grpc_method or '.+'})")
        is_pattern = True
    elif item.grpc_service and item.grpc_method:
        path = PathMatch(kind=PathKind.EXACT, value=f"/{item.grpc_service}/{item.grpc_method}")
    elif item.grpc_service:
        path = PathMatch(kind=PathKind.PREFIX, value=f"/{item.grpc_service}")
    headers: list[ValueMatch] = []
    query: list[ValueMatch] = []
    if item.headers or item.header_matches:
        headers += [ValueMatch(name=name.lower(), value=value) for name, value in (item.headers or {}).items()]
        headers += [_value_match(one, lower=True) for one in item.header_matches]
        headers.sort(key=_value_key)
    if item.query_params or item.query_param_matches:
        query += [ValueMatch(name=name, value=value) for name, value in (item.query_params or {}).items()]
        query += [_value_match(one, lower=False) for one in item.query_param_matches]
        query.sort(key=_value_key)
    return Match(
        path=path,
        methods=item.methods,
        headers=tuple(headers),
        query=tuple(query),
        grpc_service="" if is_pattern else item.grpc_service or "",
        grpc_method="" if is_pattern else item.grpc_method or "",
        is_grpc_call=is_pattern,
        source_cidrs=item.source_cidrs,
        source_attachment=attachment,
    )


def _value_key(item: ValueMatch) -> tuple[str, str, str, bool]:
    return (item.name, item.kind, item.value, item.is_inverted)


def _value_match(item: wire.ValueMatch, *, lower: bool) -> ValueMatch:
    kind = {
        wire.MatchType.EXACT: ValueKind.EXACT,
        wire.MatchType.PREFIX: ValueKind.PREFIX,
        wire.MatchType.REGULAR_EXPRESSION: ValueKind.REGEX,
        wire.MatchType.PRESENT: ValueKind.PRESENT,
    }[item.type]
    name = item.name.lower() if lower else item.name
    return ValueMatch(name=name, kind=kind, value=item.value or "", is_inverted=item.invert)


def _locality(route: VPCRoute) -> LocalityPolicy:
    locality = route.spec.locality
    if locality is None:
        return LocalityPolicy()
    return LocalityPolicy(
        mode=LocalityMode(locality.mode.value),
        topology_key=locality.topology_key,
        failover_order=locality.failover_order,
        spillover_percent=locality.spillover_percent,
        allowed_locations=locality.allowed_locations,
        weights=tuple(sorted((item.place, item.weight) for item in locality.weights)),
    )


def _retry(route: VPCRoute) -> RetryPolicy:
    retries = route.spec.retries
    if retries is None:
        return RetryPolicy()
    backoff = retries.backoff
    named = retries.retry_on
    failures = tuple(one for one in RetryCondition if one.value in named)
    statuses = {*retries.retry_on_status, *(status for one in named for status in STATUS_CONDITIONS.get(one, ()))}
    return RetryPolicy(
        max_retries=retries.max_retries,
        retry_on=failures if named else tuple(RetryCondition),
        retry_on_status=tuple(sorted(statuses)),
        retry_on_grpc=tuple(sorted(GRPC_CONDITIONS[one] for one in named if one in GRPC_CONDITIONS)),
        retry_non_idempotent=retries.retry_non_idempotent,
        hedge_delay_s=0.0 if retries.hedging is None else parse_duration(retries.hedging.delay),
        hedge_attempts=2 if retries.hedging is None else retries.hedging.max_attempts,
        budget_percent=RETRY_BUDGET_PERCENT if retries.budget_percent is None else retries.budget_percent,
        initial_backoff_s=0.1 if backoff is None else backoff.initial_ms / 1000,
        max_backoff_s=10.0 if backoff is None else backoff.max_ms / 1000,
    )


def _timeouts(route: VPCRoute) -> TimeoutPolicy:
    spec = route.spec
    request_s = float(spec.timeout_seconds)
    connect_s: float | None = None
    backend_request_s = 0.0
    stream_idle_s: float | None = None
    if spec.timeouts is not None:
        if spec.timeouts.request is not None:
            request_s = parse_duration(spec.timeouts.request)
        if spec.timeouts.connect is not None:
            connect_s = parse_duration(spec.timeouts.connect)
        if spec.timeouts.stream_idle is not None:
            stream_idle_s = parse_duration(spec.timeouts.stream_idle)
        if spec.timeouts.backend_request is not None:
            backend_request_s = parse_duration(spec.timeouts.backend_request)
    retries = spec.retries
    per_try = None if retries is None else retries.per_try_timeout
    return TimeoutPolicy(
        request_s=request_s,
        connect_s=connect_s,
        per_try_s=0.0 if per_try is None else parse_duration(per_try),
        backend_request_s=backend_request_s,
        stream_idle_s=stream_idle_s,
        propagates=spec.timeouts is not None and spec.timeouts.propagate,
    )
