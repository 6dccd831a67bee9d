"""What no engine serves yet, and what serves everything else: no field may be ignored silently.

Every field of every spec stands in exactly one of two tables: `NOT_SERVED` (it is refused when it says something else
than its default) or `SERVED` (with the place that acts on it). A test compares both with the Structs, so that a new
field cannot be forgotten. Paths are JSON paths with `[]` for any item; a refused field covers everything below it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from datum_router.manifests.problem import Problem
from datum_router.reasons import Reason


class NotServed(msgspec.Struct, frozen=True, kw_only=True):
    """A field, or some values of it, that nothing acts on yet.

    Attributes:
        path: Where, for example `spec.destinations[].filters`.
        values: Values that are refused; empty means every value but the default.
        hint: What to use instead.
    """

    path: str
    values: tuple[str, ...] = ()
    hint: str


_REMOVE: Final = "remove it"

NOT_SERVED: Final[Mapping[str, tuple[NotServed, ...]]] = {
    "VPCService": (
        NotServed(
            path="spec.discovery.method",
            values=("dns",),
            hint="use kubernetes with a ServiceBinding for a Kubernetes Service, or vpcAttachmentRef or endpoints",
        ),
        NotServed(path="spec.discovery.dnsName", hint="write the addresses into endpoints"),
        NotServed(path="spec.tunnel", hint="use vpcAttachmentRef or endpoints"),
    ),
    "VPCRoute": (
        NotServed(
            path="spec.destinations[].filters[].type",
            values=("RequestRedirect", "RequestMirror", "RateLimit", "FaultInjection", "Plugin"),
            hint="use it in spec.filters, for all destinations",
        ),
        *(
            NotServed(path=f"spec.destinations[].filters[].{name}", hint="use it in spec.filters, for all destinations")
            for name in ("requestRedirect", "requestMirror", "rateLimit", "faultInjection", "plugin")
        ),
        NotServed(path="spec.circuitBreaker.maxConnections", hint="connections are the service's: set it there"),
        NotServed(path="spec.circuitBreaker.maxPendingRequests", hint="connections are the service's: set it there"),
    ),
    "ServiceBinding": (NotServed(path="spec.portMappings[].protocol", values=("UDP",), hint="use TCP"),),
    "VPCIngress": (
        NotServed(path="spec.rules[].vpcAttachmentName", hint="use vpcAttachmentRef of the VPCService"),
        NotServed(
            path="spec.tls.secretVersion",
            hint="name a Secret for each version: the one before stays in force until the new one can be used",
        ),
        NotServed(path="spec.vpcAttachmentName", hint="use vpcAttachmentRef of the VPCService"),
    ),
    "VPCEgress": (
        NotServed(path="spec.connectorRef", hint="remove it: traffic leaves by the gateway's own routing table"),
        NotServed(path="spec.timeouts.backendRequest", hint="use timeouts.request"),
        NotServed(path="spec.timeouts.propagate", hint=_REMOVE),
        NotServed(path="spec.retries.perTryTimeout", hint="use timeouts.request, the limit of all attempts together"),
        NotServed(path="spec.retries.retryOn", hint="use retryOnStatus; failed connections are always tried again"),
        NotServed(path="spec.retries.budgetPercent", hint="use maxRetries"),
        NotServed(path="spec.retries.retryNonIdempotent", hint=_REMOVE),
        NotServed(path="spec.retries.hedging", hint=_REMOVE),
    ),
}
# `kind` of a parentRef is open text, so what is refused is everything but one value.
ONLY_SERVED: Final[Mapping[str, tuple[tuple[str, str, str], ...]]] = {
    "VPCRoute": (("spec.parentRefs[].kind", "VPCIngress", "name a VPCIngress"),),
}

_MATCH: Final = {
    "pathPrefix": "compiler/rules: path condition",
    "exactPath": "compiler/rules: path condition",
    "pathRegex": "compiler/rules: path condition, needs the re2 extra",
    "methods": "routing/method",
    "headers": "routing/headers",
    "headerMatches[].name": "routing/headers",
    "headerMatches[].type": "routing/headers",
    "headerMatches[].value": "routing/headers",
    "headerMatches[].invert": "routing/headers",
    "queryParams": "routing/query",
    "queryParamMatches[].name": "routing/query",
    "queryParamMatches[].type": "routing/query",
    "queryParamMatches[].value": "routing/query",
    "queryParamMatches[].invert": "routing/query",
    "grpcService": "routing/grpc",
    "grpcMethod": "routing/grpc",
    "grpcMatchType": "compiler/rules: Exact as it is, RegularExpression as a condition on the path",
    "sourceCIDRs": "routing/source",
}
_SELECTOR: Final = (
    "matchLabels",
    *(f"matchExpressions[].{name}" for name in ("key", "operator", "values")),
)
_RATES: Final = ("requests", "unit", "burst", "keys")
_PERMITS: Final = ("maxParallelRequests", "maxParallelRetries")
_BREAKER: Final = ("failureThreshold", "successThreshold", "openDuration")
_SESSION: Final = ("type", "name", "absoluteTimeout", "idleTimeout", "lifetime")
_HEADER_LISTS: Final = ("set[].name", "set[].value", "add[].name", "add[].value", "remove")
_PATH_PARTS: Final = ("path.type", "path.replaceFullPath", "path.replacePrefixMatch")

SERVED: Final[Mapping[str, Mapping[str, str]]] = {
    "VPCService": {
        "spec.vpcAttachmentRef.name": "plugin galactic: resolver",
        "spec.vpcAttachmentRef.namespace": "plugin galactic: resolver",
        **{f"spec.vpcAttachmentSelector.{name}": "plugin galactic: resolver" for name in _SELECTOR},
        "spec.protocol": "compiler/services: what the data plane speaks",
        "spec.port": "registry/endpoints: default port",
        "spec.targetPort": "registry/endpoints: port of endpoints",
        "spec.labels": "for people and selectors; no traffic depends on them",
        "spec.healthCheck.httpPath": "compiler/services: active_policy",
        "spec.healthCheck.intervalSeconds": "health/schedule",
        "spec.healthCheck.timeoutSeconds": "compiler/services: active_policy",
        "spec.healthCheck.unhealthyThreshold": "health/active",
        "spec.healthCheck.healthyThreshold": "health/active",
        "spec.healthCheck.type": "compiler/services: active_policy",
        "spec.healthCheck.port": "compiler/services: active_policy",
        "spec.healthCheck.host": "compiler/services: active_policy",
        "spec.healthCheck.method": "compiler/services: active_policy",
        "spec.healthCheck.expectedStatuses": "compiler/services: active_policy",
        "spec.healthCheck.grpcService": "compiler/services: active_policy",
        "spec.healthCheck.headers[].name": "compiler/services: active_policy",
        "spec.healthCheck.headers[].value": "compiler/services: active_policy",
        "spec.healthCheck.passive.consecutive5xx": "health/outlier",
        "spec.healthCheck.passive.consecutiveGatewayErrors": "health/outlier",
        "spec.healthCheck.passive.interval": "health/outlier",
        "spec.healthCheck.passive.baseEjectionTime": "health/outlier",
        "spec.healthCheck.passive.maxEjectionPercent": "health/outlier",
        "spec.healthCheck.passive.halfOpenRequests": "health/trial",
        "spec.healthCheck.panicThresholdPercent": "balancing/locality: panic threshold",
        **{f"spec.circuitBreaker.{name}": "health/circuit" for name in _PERMITS},
        "spec.circuitBreaker.maxConnections": "plugin proxy: upstream/pool",
        "spec.circuitBreaker.maxPendingRequests": "plugin proxy: upstream/pool",
        **{f"spec.circuitBreaker.{name}": "health/breaker" for name in _BREAKER},
        "spec.discovery.method": "manifests/validate: kubernetes needs neither vpcAttachmentRef nor endpoints",
        "spec.endpoints[].address": "registry/endpoints: StaticResolver",
        "spec.endpoints[].port": "registry/endpoints: StaticResolver",
        "spec.endpoints[].weight": "registry/endpoints: StaticResolver",
        "spec.endpoints[].priority": "balancing/locality: priority levels",
        "spec.endpoints[].locationRef.name": "compiler/places",
        "spec.connectTimeout": "compiler/services: dialling",
        "spec.idleTimeout": "compiler/services: connection pool",
        "spec.tls.mode": "compiler/services: upstream TLS",
        "spec.tls.sni": "compiler/services: upstream TLS",
        "spec.tls.caCertificateRefs[].name": "compiler/services: CA bundle",
        "spec.tls.caCertificateRefs[].kind": "compiler/services: CA bundle",
        "spec.tls.clientCertificateRef.name": "compiler/services: our own identity",
        "spec.tls.subjectAltNames": "policy/peer_names: pins",
        "spec.tls.minVersion": "compiler/services: upstream TLS",
        "spec.tls.insecureSkipVerify": "compiler/services: upstream TLS",
        "spec.locationRef.name": "compiler/places",
        "spec.topology": "balancing/locality",
        "spec.exportTo.namespaces": "compiler/refs: references from other namespaces",
        "spec.exportTo.clusters": "discovery/export: what other clusters get",
        **{f"spec.exportTo.selector.{name}": "manifests/labels: labels of namespaces" for name in _SELECTOR},
    },
    "VPCRoute": {
        "spec.name": "for people; no traffic depends on it",
        **{f"spec.match.{name}": place for name, place in _MATCH.items()},
        **{f"spec.matches[].{name}": place for name, place in _MATCH.items()},
        "spec.hostnames": "routing/host",
        "spec.parentRefs[].kind": "compiler/ingress: VPCIngress",
        "spec.parentRefs[].name": "compiler/ingress: attach",
        "spec.parentRefs[].namespace": "compiler/ingress: attach",
        "spec.parentRefs[].sectionName": "compiler/ingress: attach",
        "spec.parentRefs[].port": "compiler/ingress: attach",
        "spec.destinations[].vpcServiceRef.name": "compiler/refs: resolve_service",
        "spec.destinations[].vpcServiceRef.namespace": "compiler/refs: resolve_service",
        "spec.destinations[].weight": "balancing/split",
        "spec.destinations[].port": "compiler/refs: port_override",
        "spec.destinations[].priority": "balancing/split: lower priorities first",
        "spec.loadBalancing": "compiler/rules: balancer by name",
        "spec.loadBalancingConfig.hashOn": "compiler/rules: balancing policy",
        "spec.loadBalancingConfig.headerName": "compiler/rules: balancing policy",
        "spec.loadBalancingConfig.cookie.name": "compiler/rules: balancing policy",
        "spec.loadBalancingConfig.cookie.ttl": "policy/affinity: cookie for clients without one",
        "spec.loadBalancingConfig.cookie.path": "policy/affinity: cookie for clients without one",
        "spec.loadBalancingConfig.queryParam": "compiler/rules: balancing policy",
        "spec.loadBalancingConfig.tableSize": "balancing/maglev",
        "spec.loadBalancingConfig.slowStart": "balancing/locality: slow start",
        "spec.loadBalancingConfig.algorithm": "compiler/rules: Maglev or ring",
        "spec.retries.maxRetries": "policy/retry",
        "spec.retries.retryOnStatus": "policy/retry",
        "spec.retries.retryOn": "policy/retry: conditions",
        "spec.retries.hedging.delay": "policy/hedge",
        "spec.retries.hedging.maxAttempts": "policy/hedge",
        "spec.retries.budgetPercent": "health/circuit: retry budget",
        "spec.retries.retryNonIdempotent": "policy/retry",
        "spec.retries.perTryTimeout": "policy/timeout: try_deadline",
        "spec.retries.backoff.initialMs": "policy/backoff",
        "spec.retries.backoff.maxMs": "policy/backoff",
        "spec.timeoutSeconds": "policy/timeout",
        "spec.timeouts.request": "policy/timeout",
        "spec.timeouts.backendRequest": "policy/timeout: try_deadline",
        "spec.timeouts.connect": "policy/timeout",
        "spec.timeouts.propagate": "policy/timeout: the time left",
        "spec.timeouts.streamIdle": "policy/timeout: silence",
        "spec.filters[].type": "compiler/filters",
        "spec.destinations[].filters[].type": "compiler/filters",
        **{
            f"{where}[].{kind}.{name}": "filters/headers"
            for where in ("spec.filters", "spec.destinations[].filters")
            for kind in ("requestHeaderModifier", "responseHeaderModifier")
            for name in _HEADER_LISTS
        },
        **{
            f"spec.filters[].requestRedirect.{name}": "filters/redirect"
            for name in ("scheme", "hostname", "port", "statusCode", *_PATH_PARTS)
        },
        **{
            f"{where}[].urlRewrite.{name}": "filters/rewrite"
            for where in ("spec.filters", "spec.destinations[].filters")
            for name in ("hostname", *_PATH_PARTS)
        },
        **{
            f"spec.filters[].requestMirror.{name}": "filters/mirror, plugin proxy: mirror"
            for name in ("vpcServiceRef.name", "vpcServiceRef.namespace", "percent")
        },
        **{
            f"spec.filters[].faultInjection.{name}": "filters/fault"
            for name in ("delay.duration", "delay.percent", "abort.status", "abort.grpcStatus", "abort.percent")
        },
        **{
            f"spec.filters[].plugin.{name}": "compiler/filters, and the plugin that has this filter"
            for name in ("name", "vpcServiceRef.name", "vpcServiceRef.namespace", "config")
        },
        "spec.maxRequestBodyBytes": "plugin proxy: extras, 413",
        **{f"spec.localReplies[].{name}": "filters/reply" for name in ("statuses", "contentType", "body")},
        **{
            f"spec.cors.{name}": "filters/cors"
            for name in (
                "allowedOrigins",
                "allowedMethods",
                "allowedHeaders",
                "exposeHeaders",
                "allowCredentials",
                "maxAgeSeconds",
            )
        },
        **{f"spec.filters[].rateLimit.{name}": "policy/ratelimit" for name in _RATES},
        **{f"spec.rateLimit.{name}": "policy/ratelimit" for name in _RATES},
        **{f"spec.circuitBreaker.{name}": "health/circuit" for name in _PERMITS},
        **{f"spec.circuitBreaker.{name}": "health/breaker" for name in _BREAKER},
        **{f"spec.sessionAffinity.{name}": "policy/affinity" for name in _SESSION},
        "spec.sourceVpcAttachment": "routing/source: the attachment that a request came in by",
        "spec.locality.mode": "balancing/locality",
        "spec.locality.topologyKey": "balancing/locality",
        "spec.locality.failoverOrder": "balancing/locality: order of places",
        "spec.locality.spilloverPercent": "balancing/locality: capacity of a place",
        "spec.locality.allowedLocations": "balancing/place: is_allowed",
        "spec.locality.weights[].place": "balancing/locality: places that share",
        "spec.locality.weights[].weight": "balancing/locality: places that share",
    },
    "ServiceBinding": {
        "spec.serviceRef.name": "plugin kubernetes: resolver",
        "spec.serviceRef.namespace": "plugin kubernetes: resolver",
        "spec.vpcServiceRef.name": "plugin kubernetes: resolver",
        "spec.vpcServiceRef.namespace": "plugin kubernetes: resolver",
        "spec.portMappings[].servicePort": "plugin kubernetes: resolver",
        "spec.portMappings[].vpcPort": "plugin kubernetes: resolver",
        "spec.portMappings[].protocol": "plugin kubernetes: resolver",
        "spec.autoSync": "registry/endpoints: pinned endpoints",
        "spec.syncIntervalSeconds": "sources follow changes at once, which is never later than any interval",
        **{f"spec.podSelector.{name}": "plugin kubernetes: resolver" for name in _SELECTOR},
        "spec.addressSource": "plugin kubernetes: resolver",
        "spec.publishNotReadyAddresses": "plugin kubernetes: resolver",
        "spec.addressFamily": "plugin kubernetes: resolver",
    },
    "VPCIngress": {
        "spec.host": "compiler/ingress",
        "spec.hosts": "compiler/ingress",
        "spec.rules[].path": "compiler/ingress: rules",
        "spec.rules[].pathType": "compiler/ingress: rules",
        "spec.rules[].service.name": "compiler/ingress: rules",
        "spec.rules[].service.namespace": "compiler/ingress: rules",
        "spec.rules[].service.port": "compiler/ingress: rules",
        "spec.rules[].vpcRouteRef.name": "compiler/attach: routes that an ingress names",
        "spec.rules[].vpcRouteRef.namespace": "compiler/attach: routes that an ingress names",
        "spec.tls.secretName": "compiler/ingress: certificate",
        "spec.tls.mode": "compiler/ingress: terminate",
        "spec.tls.minVersion": "compiler/ingress: listener",
        "spec.tls.clientAuth.mode": "compiler/clientauth",
        "spec.tls.clientAuth.caSecretName": "compiler/clientauth: CA bundle",
        "spec.tls.clientAuth.crlSecretName": "compiler/clientauth: revocation lists",
        "spec.tls.clientAuth.subjectAltNames": "policy/peer_names: allow-list",
        "spec.tls.clientAuth.forwardClientCert": "policy/client_cert_header",
        "spec.tls.clientAuth.forwardDetails": "policy/client_cert_header",
        "spec.tls.alpn": "compiler/ingress: listener",
        "spec.tls.cipherSuites": "compiler/edge: how TLS is spoken",
        "spec.tls.requireSni": "compiler/edge: port settings",
        "spec.annotations": "for people; no traffic depends on them",
        "spec.listeners[].name": "compiler/ingress: sections of parentRefs",
        "spec.listeners[].port": "compiler/ingress: listener",
        "spec.listeners[].protocol": "compiler/ingress: listener",
        "spec.listeners[].address": "compiler/ingress: listener",
        "spec.httpsRedirect": "compiler/edgelink: redirects",
        "spec.hsts.maxAgeSeconds": "compiler/edgelink: response fields",
        "spec.hsts.includeSubdomains": "compiler/edgelink: response fields",
        "spec.hsts.preload": "compiler/edgelink: response fields",
        **{f"spec.gatewaySelector.{name}": "compiler/ingress: labels of the gateway" for name in _SELECTOR},
        "spec.allowedRoutes.namespaces": "compiler/attach",
        **{f"spec.allowedRoutes.selector.{name}": "compiler/attach" for name in _SELECTOR},
        "spec.defaultTimeouts.request": "policy/timeout",
        "spec.defaultTimeouts.connect": "policy/timeout",
        "spec.defaultTimeouts.backendRequest": "policy/timeout",
        "spec.defaultTimeouts.streamIdle": "policy/timeout",
        "spec.defaultTimeouts.propagate": "policy/timeout",
        "spec.accessLog.enabled": "plugin proxy: accounts",
        "spec.maxRequestBodyBytes": "compiler/ingress: listener",
        **{f"spec.localReplies[].{name}": "filters/reply" for name in ("statuses", "contentType", "body")},
        "spec.clientIP.trustedHops": "compiler/edge: port settings",
        "spec.clientIP.trustedProxies": "compiler/edge: port settings",
        "spec.clientIP.proxyProtocol": "compiler/edge: port settings",
        **{f"spec.rateLimit.{name}": "policy/ratelimit" for name in _RATES},
    },
    "VPCEgress": {
        "spec.sourceVpcAttachment": "egress/decide: whose rule it is",
        **{f"spec.sourceSelector.{name}": "compiler/egress: attachments" for name in _SELECTOR},
        "spec.match.destinationCidrs": "egress/decide",
        "spec.match.destinationPorts": "egress/decide",
        "spec.match.protocols": "egress/decide",
        "spec.match.sourceLabels": "egress/decide",
        "spec.match.hostnames": "egress/decide",
        "spec.match.methods": "egress/decide",
        "spec.match.pathPrefixes": "egress/decide",
        "spec.destinations[].endpoint": "egress/decide",
        "spec.destinations[].port": "egress/decide",
        "spec.destinations[].tls.enabled": "compiler/egress: TLS origination",
        "spec.destinations[].tls.sni": "compiler/egress: TLS origination",
        "spec.destinations[].tls.insecure": "compiler/egress: TLS origination",
        "spec.destinations[].tls.caSecretName": "compiler/egress: CA bundle",
        "spec.destinations[].tls.clientCertificateSecretName": "compiler/egress: our own identity",
        "spec.destinations[].tls.minVersion": "compiler/egress: TLS origination",
        "spec.policy": "egress/decide",
        "spec.priority": "egress/decide: order",
        "spec.defaultAction": "egress/decide",
        "spec.timeouts.request": "compiler/egress: requests that can be read",
        "spec.timeouts.connect": "compiler/egress: dialling",
        "spec.timeouts.streamIdle": "compiler/egress: tunnels",
        "spec.retries.maxRetries": "policy/retry",
        "spec.retries.retryOnStatus": "policy/retry",
        "spec.retries.backoff.initialMs": "policy/backoff",
        "spec.retries.backoff.maxMs": "policy/backoff",
        "spec.log": "data plane: a log line for each decision",
        "spec.rateLimit.requestsPerSecond": "data plane: decisions let through, in each worker",
        "spec.rateLimit.burstSize": "data plane: decisions let through, in each worker",
    },
}


def find_not_served(kind: str, manifest: msgspec.Struct) -> Iterator[Problem]:
    """Yield a problem for every field that says something no engine acts on."""
    if not _says_anything(kind, manifest, ""):
        return  # nearly every manifest: one walk down its fields in place of one for each row of the tables
    for entry in NOT_SERVED.get(kind, ()):
        for path, value, default in _values(manifest, entry.path.split("."), "", msgspec.NODEFAULT):
            if entry.values:
                if str(value) in entry.values:
                    yield _problem(path, f"{value} is not served yet", entry.hint)
            elif value != default:
                what = f"kind {kind}" if path == "spec" else path.rpartition(".")[2]
                yield _problem(path, f"{what} is not served yet", entry.hint)
    for where, served, hint in ONLY_SERVED.get(kind, ()):
        for path, value, _ in _values(manifest, where.split("."), "", msgspec.NODEFAULT):
            if value != served:
                yield _problem(path, f"{value!a} is not served yet, only {served}", hint)


@functools.cache
def refusals(kind: str) -> Mapping[str, NotServed]:
    """Return the rows of a kind by path: what a hint must not recommend."""
    return {entry.path: entry for entry in NOT_SERVED.get(kind, ())}


def _problem(path: str, message: str, hint: str) -> Problem:
    return Problem(path=path, reason=Reason.NOT_SERVED, message=message, hint=hint)


class _Step(NamedTuple):
    """A field whose value, or what stands below it, has to be looked at."""

    attribute: str
    is_list: bool
    refused: tuple[str, ...]
    served: str | None
    below: str


class _Plan(msgspec.Struct, frozen=True, gc=False):
    """What the tables say of one Struct: fields refused unless they are `unsaid`, and fields to look into."""

    values: Callable[[msgspec.Struct], object]
    unsaid: object
    steps: tuple[_Step, ...]


@functools.cache
def _plan(kind: str, prefix: str, struct: type[msgspec.Struct]) -> _Plan:
    """Return the plan for `struct` where it stands at `prefix` of a `kind`. As many as there are types and places."""
    refused = {entry.path: entry.values for entry in NOT_SERVED.get(kind, ())}
    served = {where: value for where, value, _ in ONLY_SERVED.get(kind, ())}
    known = (*refused, *served)
    steps: list[_Step] = []
    unsaid: dict[str, object] = {}
    for index, name in enumerate(struct.__struct_encode_fields__):
        attribute = struct.__struct_fields__[index]
        for is_list in (False, True):
            path = (f"{prefix}.{name}" if prefix else name) + ("[]" if is_list else "")
            if not is_list and refused.get(path) == ():
                unsaid[attribute] = _default_of(struct, index)
                continue
            below = path if any(other.startswith(f"{path}.") for other in known) else ""
            if path in refused or path in served or below:
                steps.append(_Step(attribute, is_list, refused.get(path, ()), served.get(path), below))
    values = operator.attrgetter(*unsaid) if unsaid else _nothing
    only = len(unsaid) == 1  # then an attrgetter gives the value itself
    return _Plan(values, next(iter(unsaid.values())) if only else tuple(unsaid.values()), tuple(steps))


def _nothing(_: msgspec.Struct) -> object:
    return ()


def _says_anything(kind: str, part: msgspec.Struct, prefix: str) -> bool:
    """Tell whether any row of the tables applies, without making up paths and words."""
    plan = _plan(kind, prefix, type(part))
    if plan.values(part) != plan.unsaid:
        return True
    for attribute, is_list, refused, served, below in plan.steps:
        value = getattr(part, attribute)
        if value is None:
            continue
        for item in value if is_list else (value,):
            if refused and str(item) in refused:
                return True
            if served is not None and item != served:
                return True
            if below and isinstance(item, msgspec.Struct) and _says_anything(kind, item, below):
                return True
    return False


def _default_of(struct: type[msgspec.Struct] | msgspec.Struct, index: int) -> object:
    # Defaults stand for the last fields; asking `msgspec.structs.fields` would evaluate all annotations again.
    from_end = index - len(struct.__struct_fields__) + len(struct.__struct_defaults__)
    return struct.__struct_defaults__[from_end] if from_end >= 0 else msgspec.NODEFAULT


def _values(part: object, names: list[str], path: str, default: object) -> Iterator[tuple[str, object, object]]:
    """Yield (JSON path, value, default) of every place that a path with `[]` leads to."""
    if not names:
        yield path, part, default
        return
    if not isinstance(part, msgspec.Struct):
        return  # an optional part that is not there
    name = names[0].removesuffix("[]")
    if name not in part.__struct_encode_fields__:
        return
    index = part.__struct_encode_fields__.index(name)
    value = getattr(part, part.__struct_fields__[index])
    where = f"{path}.{name}" if path else name
    if not names[0].endswith("[]"):
        yield from _values(value, names[1:], where, _default_of(part, index))
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            yield from _values(item, names[1:], f"{where}[{position}]", msgspec.NODEFAULT)
