"""Which rules the API server runs on which Struct: what `validate` says of all kinds but VPCRoute (`cel_route`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from datum_router.manifests.cel import (
    CelRule,
    address,
    address_or_host,
    excludes,
    filled,
    given,
    header_changed,
    host,
    host_port,
    label_map,
    lasting,
    needs,
    network,
    path,
    texts,
)
from datum_router.manifests.cel_route import ROUTE_RULES
from datum_router.manifests.ciphers import TLS12_SUITES
from datum_router.manifests.parts import (
    GRPC_CONDITIONS,
    CircuitBreaker,
    Hedging,
    HttpHeader,
    LabelSelector,
    LabelSelectorRequirement,
    RateLimit,
    Retries,
    RetryBackoff,
    Timeouts,
)
from datum_router.manifests.rules import HOP_BY_HOP
from datum_router.manifests.servicebinding import ServiceBindingSpec
from datum_router.manifests.vpcegress import EgressDestination, EgressMatch, EgressTls
from datum_router.manifests.vpcingress import (
    AllowedRoutes,
    ClientAuth,
    ClientIp,
    IngressListener,
    IngressRule,
    IngressTls,
    VPCIngressSpec,
)
from datum_router.manifests.vpcservice import (
    EndpointSpec,
    ExportTo,
    HealthCheck,
    PassiveHealthCheck,
    UpstreamTlsSpec,
    VPCServiceSpec,
)
from datum_router.reasons import Reason

# --- parts of several kinds ------------------------------------------------------------------------------------

_SELECTOR: Final = (
    needs("values", "self.operator in ['In', 'NotIn']", "operators In and NotIn need values", is_list=True),
    excludes("values", "self.operator in ['Exists', 'DoesNotExist']", "only In and NotIn take values", is_list=True),
)
_NAMESPACES: Final = (
    needs("selector", "self.namespaces == 'Selector'", "namespaces Selector needs selector"),
    excludes("selector", "self.namespaces != 'Selector'", "only namespaces Selector reads a selector"),
)
_BACKOFF: Final = CelRule(
    rule="self.initialMs <= self.maxMs", message="expected initialMs to be at most maxMs", field="initialMs"
)
_RETRIES: Final = CelRule(
    rule=f"!({filled('retryOn')}) || !self.retryOn.exists(c, c in {texts(GRPC_CONDITIONS)}) || self.retryNonIdempotent",
    message="codes of gRPC in retryOn need retryNonIdempotent: true, since calls of gRPC are POST",
    field="retryNonIdempotent",
    reason=Reason.MISSING_FIELD,
)
_TIMEOUTS: Final = (
    lasting("connect"),
    CelRule(
        rule=f"!({given('request')} && {given('backendRequest')}) || duration(self.request) == duration('0s')"
        " || duration(self.backendRequest) <= duration(self.request)",
        message="expected backendRequest to be at most request",
        field="backendRequest",
    ),
)

_RATE_LIMIT: Final = CelRule(
    on="keys[]",
    rule=f"!self.startsWith('Header:') || !(self.substring(7).lowerAscii() in {texts(HOP_BY_HOP | {'host'})})",
    message="expected no header of a single connection, such as te, and not host",
)

# --- VPCService ------------------------------------------------------------------------------------------------

# As `validate`: a probe is of the type that is given, or gRPC for a gRPC service that names no path.
_IS_GRPC: Final = "self.protocol in ['GRPC', 'gRPC'] && !has(self.healthCheck.httpPath)"
_PROBE: Final = f"(has(self.healthCheck.type) ? self.healthCheck.type : {_IS_GRPC} ? 'GRPC' : 'HTTP')"


def _probe(name: str, kinds: str, message: str, *, is_list: bool = False) -> CelRule:
    return excludes(f"healthCheck.{name}", f"has(self.healthCheck) && !({_PROBE} in {kinds})", message, is_list=is_list)


_HTTP_ONLY: Final = "only a probe of type HTTP has"
_HAS_TLS_SETTINGS: Final = (
    f"{given('tls.sni')} || {filled('tls.caCertificateRefs')} || {given('tls.clientCertificateRef')}"
    f" || {filled('tls.subjectAltNames')} || {given('tls.insecureSkipVerify')}"
    " && self.tls.insecureSkipVerify"
)
_SERVICE: Final = (
    CelRule(
        rule=f"{given('vpcAttachmentRef')} || {given('vpcAttachmentSelector')} || {filled('endpoints')}"
        f" || {given('tunnel')}"
        f" || {given('discovery.method')} && self.discovery.method in ['kubernetes', 'endpointslice']",
        message="expected vpcAttachmentRef, vpcAttachmentSelector, endpoints, or discovery.method: kubernetes "
        "with a ServiceBinding",
        field="vpcAttachmentRef",
        reason=Reason.MISSING_FIELD,
    ),
    lasting("connectTimeout"),
    excludes("tls", "self.protocol == 'TCP'", "bytes of a service with protocol TCP are carried on as they are"),
    label_map("labels"),
    label_map("topology"),
    _probe("httpPath", "['HTTP']", f"{_HTTP_ONLY} httpPath"),
    _probe("method", "['HTTP']", f"{_HTTP_ONLY} method"),
    _probe("expectedStatuses", "['HTTP']", f"{_HTTP_ONLY} expectedStatuses", is_list=True),
    _probe("host", "['HTTP', 'GRPC', 'gRPC']", "a probe of type TCP has no host"),
    _probe("headers", "['HTTP', 'GRPC', 'gRPC']", "a probe of type TCP has no headers", is_list=True),
    CelRule(
        rule=f"!({given('healthCheck.grpcService')}) || self.healthCheck.grpcService == ''"
        f" || {_PROBE} in ['GRPC', 'gRPC']",
        message="only a probe of type GRPC has grpcService",
        field="healthCheck.grpcService",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        rule=f"self.protocol != 'HTTPS' || !({given('tls.mode')}) || self.tls.mode != 'Disable'",
        message="protocol HTTPS needs TLS: expected mode Simple, or protocol HTTP",
        field="tls.mode",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        rule=f"self.protocol != 'H2C' || !({given('tls.mode')}) || self.tls.mode == 'Disable'",
        message="protocol H2C is HTTP/2 without TLS: expected mode Disable, or protocol HTTPS or GRPC",
        field="tls.mode",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        rule=f"!({_HAS_TLS_SETTINGS}) || {given('tls.mode')} || self.protocol == 'HTTPS'",
        message="there are TLS settings, but the protocol is spoken without TLS: expected mode Simple",
        field="tls.mode",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
)
_UPSTREAM_TLS: Final = (
    host("sni", is_wildcard_allowed=False),
    CelRule(
        rule=f"!self.insecureSkipVerify || !({filled('caCertificateRefs')})",
        message="caCertificateRefs have no effect while no certificate is verified",
        field="insecureSkipVerify",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        rule=f"!self.insecureSkipVerify || !({filled('subjectAltNames')})",
        message="subjectAltNames have no effect while no certificate is verified",
        field="insecureSkipVerify",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        rule=f"!({given('clientCertificateRef')}) || {given('mode')} && self.mode == 'Mutual'",
        message="only mode Mutual shows a certificate of ours",
        field="clientCertificateRef",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
)
_STATUS_RANGE: Final = CelRule(
    on="expectedStatuses[]",
    rule="!self.contains('-') || int(self.substring(0, 3)) <= int(self.substring(4))",
    message="expected the lower status first",
)

# --- ServiceBinding and VPCIngress -----------------------------------------------------------------------------

_BINDING: Final = CelRule(
    on="portMappings",
    rule="self.all(a, self.exists_one(b, "
    + " == ".join(f"(has({x}.vpcPort) ? {x}.vpcPort : {x}.servicePort)" for x in "ab")
    + "))",
    message="expected each port of the VPCService to be mapped once",
    reason=Reason.MUTUALLY_EXCLUSIVE,
)


def _listener_mode(mode: str, protocol: str, field: str, message: str) -> CelRule:
    """Return that no listener speaks a protocol that the mode of TLS excludes."""
    rule = f"!has(self.tls) || self.tls.mode != '{mode}' || !has(self.listeners)"
    return CelRule(
        rule=f"{rule} || !self.listeners.exists(l, l.protocol == '{protocol}')",
        message=message,
        field=field,
        reason=Reason.MUTUALLY_EXCLUSIVE,
    )


_SUITES: Final = ", ".join(f"'{name.upper()}'" for pair in TLS12_SUITES.items() for name in pair)
_SCHEME_TOLD: Final = (
    f"{given('clientIP.trustedHops')} && self.clientIP.trustedHops > 0 || {filled('clientIP.trustedProxies')} && "
    "!(has(self.clientIP.proxyProtocol) && self.clientIP.proxyProtocol)"
)
"""Proxies in front are believed when they say how a client came, as `ClientIp.hops` has it."""
_INGRESS: Final = (
    host("host"),
    host("hosts[]"),
    label_map("annotations"),
    CelRule(
        on="listeners",
        rule="self.all(a, self.exists_one(b, a.port == b.port))",
        message="expected each port once",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        rule=f"{given('tls')} || !has(self.listeners) || !self.listeners.exists(l, l.protocol == 'HTTPS')",
        message="a listener speaks HTTPS, so a certificate must be named",
        field="tls",
        reason=Reason.MISSING_FIELD,
    ),
    needs(
        "tls",
        f"has(self.httpsRedirect) && self.httpsRedirect && !({_SCHEME_TOLD})",
        "httpsRedirect needs a listener to send clients to, or clientIP with proxies in front that end TLS",
    ),
    needs("tls", f"has(self.hsts) && !({_SCHEME_TOLD})", "hsts is only said over TLS"),
    _listener_mode("passthrough", "HTTPS", "tls.mode", "a listener speaks HTTPS, which is terminated here"),
    _listener_mode("terminate", "TLS", "listeners", "a listener passes TLS through, but tls.mode is terminate"),
)
_INGRESS_TLS: Final = (
    CelRule(on="alpn", rule="self.all(a, self.exists_one(b, a == b))", message="expected each protocol once"),
    needs("secretName", "self.mode == 'terminate'", "terminated TLS needs a certificate"),
    excludes("secretName", "self.mode == 'passthrough'", "passed-through TLS is the service's own to speak"),
    CelRule(
        on="cipherSuites[]",
        rule=f"self.upperAscii() in [{_SUITES}]",
        message="expected a suite of TLS 1.2 with forward secrecy and AEAD",
    ),
    excludes(
        "cipherSuites", "self.minVersion == '1.3'", "suites of TLS 1.2 mean nothing with minVersion 1.3", is_list=True
    ),
    CelRule(
        rule=f"!({given('clientAuth')}) || self.mode != 'passthrough' || self.clientAuth.mode == 'None'",
        message="with passthrough it is the service that sees certificates",
        field="clientAuth.mode",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
)
_INGRESS_LISTENER: Final = (
    CelRule(on="address", rule="isIP(self)", message="expected an IP address such as 192.0.2.1 or ::"),
)
_CLIENT_IP: Final = (
    network("trustedProxies[]"),
    needs(
        "trustedProxies",
        "has(self.proxyProtocol) && self.proxyProtocol",
        "expected the networks that may send PROXY headers",
        is_list=True,
    ),
)
_INGRESS_RULE: Final = (
    *path("path"),
    CelRule(
        rule="has(self.service) || has(self.vpcRouteRef)",
        message="a rule needs service or vpcRouteRef",
        field="service",
        reason=Reason.MISSING_FIELD,
    ),
    excludes("vpcRouteRef", "has(self.service)", "a rule has either service or vpcRouteRef"),
    CelRule(
        rule="!has(self.vpcRouteRef) || self.path == '/' && self.pathType == 'Prefix'",
        message="a rule with vpcRouteRef has the paths of that route",
        field="path",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
)

_CLIENT_AUTH: Final = (
    CelRule(
        rule="self.mode != 'None' || !"
        f"({given('caSecretName')} || {given('crlSecretName')} || {filled('subjectAltNames')}"
        f" || self.forwardClientCert)",
        message="mode None asks for no certificate: expected mode Request or Require, or nothing beside it",
        field="mode",
        reason=Reason.MUTUALLY_EXCLUSIVE,
    ),
    CelRule(
        rule=f"self.mode == 'None' || {given('caSecretName')}",
        message="expected the Secret with the CAs of clients",
        field="caSecretName",
        reason=Reason.MISSING_FIELD,
    ),
    CelRule(
        on="forwardDetails",
        rule="self.all(a, self.exists_one(b, a == b))",
        message="expected each detail once",
    ),
)

RULES: Final[Mapping[type[Struct], tuple[CelRule, ...]]] = {
    LabelSelector: (label_map("matchLabels"),),
    LabelSelectorRequirement: _SELECTOR,
    HttpHeader: (header_changed("name"),),
    RetryBackoff: (_BACKOFF,),
    Retries: (_RETRIES,),
    Hedging: (lasting("delay"),),
    Timeouts: _TIMEOUTS,
    RateLimit: (_RATE_LIMIT,),
    CircuitBreaker: (lasting("openDuration"),),
    VPCServiceSpec: _SERVICE,
    HealthCheck: (*path("httpPath", is_sent=True), host_port("host"), _STATUS_RANGE),
    PassiveHealthCheck: (lasting("interval"), lasting("baseEjectionTime")),
    EndpointSpec: (address("address"),),
    UpstreamTlsSpec: _UPSTREAM_TLS,
    ExportTo: _NAMESPACES,
    ServiceBindingSpec: (_BINDING,),
    VPCIngressSpec: _INGRESS,
    IngressRule: _INGRESS_RULE,
    IngressTls: _INGRESS_TLS,
    IngressListener: _INGRESS_LISTENER,
    ClientIp: _CLIENT_IP,
    ClientAuth: _CLIENT_AUTH,
    AllowedRoutes: _NAMESPACES,
    EgressMatch: (
        network("destinationCidrs[]"),
        host("hostnames[]"),
        label_map("sourceLabels"),
        *path("pathPrefixes[]"),
    ),
    EgressDestination: (address_or_host("endpoint"),),
    EgressTls: (
        host("sni", is_wildcard_allowed=False),
        *(
            excludes(name, "!has(self.enabled) || !self.enabled", "without enabled: true this has no effect")
            for name in ("sni", "caSecretName", "clientCertificateSecretName")
        ),
        excludes("caSecretName", "has(self.insecure) && self.insecure", "insecure accepts any certificate"),
    ),
    **ROUTE_RULES,
}
"""Rules by the Struct that they stand in; they hold wherever the Struct is used."""
