"""Rules of VPCIngress that a type cannot say."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from datum_router.manifests.ciphers import suite_problem
from datum_router.manifests.parts import TlsVersion
from datum_router.manifests.problem import Problem, shown
from datum_router.manifests.rules import (
    check_host,
    check_hosts,
    check_network,
    check_path,
    check_selector,
    check_selector_for,
    check_timeouts,
    exclusive,
    invalid,
    missing,
    warning,
)
from datum_router.manifests.validate_filters import check_replies
from datum_router.manifests.validate_limits import check_rate_limit
from datum_router.manifests.vpcingress import (
    ClientAuth,
    ClientAuthMode,
    ClientIp,
    IngressListener,
    IngressProtocol,
    IngressRule,
    IngressTls,
    PathType,
    TlsTermination,
    VPCIngress,
    VPCIngressSpec,
)

_TLS = (IngressProtocol.HTTPS, IngressProtocol.TLS)


def validate_ingress(manifest: VPCIngress) -> Iterator[Problem]:
    """Yield what is wrong with a VPCIngress."""
    spec = manifest.spec
    yield from check_host("spec.host", spec.host)
    yield from check_hosts("spec.hosts", spec.hosts)
    yield from check_replies("spec.localReplies", spec.local_replies)
    for index, rule in enumerate(spec.rules):
        yield from _rule(f"spec.rules[{index}]", rule)
    yield from _listeners(spec)
    yield from check_rate_limit("spec.rateLimit", spec.rate_limit)
    yield from check_selector("spec.gatewaySelector", spec.gateway_selector)
    if spec.allowed_routes is not None:
        yield from check_selector("spec.allowedRoutes.selector", spec.allowed_routes.selector)
        yield from check_selector_for(
            "spec.allowedRoutes", spec.allowed_routes.namespaces.value, spec.allowed_routes.selector
        )
    yield from check_timeouts("spec.defaultTimeouts", spec.default_timeouts)
    if spec.tls is not None:
        yield from _tls(spec, spec.tls)
    if spec.client_ip is not None:
        yield from _client_ip(spec.client_ip)
    is_scheme_told = spec.client_ip is not None and spec.client_ip.hops > 0  # by a proxy that may end TLS
    if spec.https_redirect and not is_scheme_told and not _speaks(spec, *_TLS):
        yield missing(
            "spec.tls",
            "httpsRedirect needs a listener to send clients to, and none speaks HTTPS",
            "name a certificate, or with clientIP the proxies in front that end TLS",
        )
    if spec.https_redirect and not _speaks(spec, IngressProtocol.HTTP):
        yield warning("spec.httpsRedirect", "no listener speaks HTTP, so there is nothing to redirect")
    if not _speaks(spec, IngressProtocol.HTTP, IngressProtocol.HTTPS):
        unread = {"maxRequestBodyBytes": spec.max_request_body_bytes, "defaultTimeouts": spec.default_timeouts}
        for name, value in unread.items():
            if value is not None:
                yield warning(f"spec.{name}", "no listener speaks HTTP or HTTPS, so that nobody reads requests")
    if spec.hsts is not None:
        if not is_scheme_told and not _speaks(spec, IngressProtocol.HTTPS):
            yield missing("spec.tls", "hsts is only said over TLS (RFC 6797), and no listener speaks HTTPS")
        if spec.hsts.preload and not (spec.hsts.include_subdomains and spec.hsts.max_age_seconds >= 31_536_000):
            yield warning(
                "spec.hsts.preload",
                "browsers' lists take only hosts with includeSubdomains and maxAgeSeconds of at least 31536000",
            )


def _speaks(spec: VPCIngressSpec, *protocols: IngressProtocol) -> bool:
    """Tell whether a listener speaks one of these, those that an ingress gets without asking included."""
    if spec.listeners:
        return any(item.protocol in protocols for item in spec.listeners)
    is_required = spec.tls is not None and (
        spec.tls.client_auth is not None and spec.tls.client_auth.mode is ClientAuthMode.REQUIRE
    )
    if IngressProtocol.HTTP in protocols and not is_required:
        return True
    if spec.tls is None:
        return False
    is_passed = spec.tls.mode is TlsTermination.PASSTHROUGH
    return (IngressProtocol.TLS if is_passed else IngressProtocol.HTTPS) in protocols


def _rule(path: str, rule: IngressRule) -> Iterator[Problem]:
    yield from check_path(f"{path}.path", rule.path)
    if rule.service is None and rule.vpc_route_ref is None:
        yield missing(f"{path}.service", "a rule needs service or vpcRouteRef")
    elif rule.service is not None and rule.vpc_route_ref is not None:
        yield exclusive(f"{path}.vpcRouteRef", "a rule has either service or vpcRouteRef", "remove one of them")
    elif rule.vpc_route_ref is not None and (rule.path != "/" or rule.path_type is not PathType.PREFIX):
        yield exclusive(f"{path}.path", "a rule with vpcRouteRef has the paths of that route", "remove path")


def _listeners(spec: VPCIngressSpec) -> Iterator[Problem]:
    ports: dict[int, int] = {}
    names: dict[str, int] = {}
    for index, listener in enumerate(spec.listeners):
        path = f"spec.listeners[{index}]"
        if listener.port in ports:
            yield exclusive(f"{path}.port", f"port {listener.port} is that of listeners[{ports[listener.port]}], too")
        if listener.name in names:
            yield exclusive(f"{path}.name", f"name {listener.name} is that of listeners[{names[listener.name]}], too")
        ports.setdefault(listener.port, index)
        names.setdefault(listener.name, index)
        yield from _address(f"{path}.address", listener)
        is_terminating = spec.tls is not None and spec.tls.mode is TlsTermination.TERMINATE
        if listener.protocol is IngressProtocol.HTTPS and not is_terminating:
            if spec.tls is None:
                yield missing("spec.tls", f"listener {listener.name} speaks HTTPS, but no certificate is named")
            else:
                yield exclusive("spec.tls.mode", f"listener {listener.name} speaks HTTPS, which is terminated here")
        if listener.protocol is IngressProtocol.TLS and is_terminating:
            yield exclusive(
                f"{path}.protocol",
                f"listener {listener.name} passes TLS through, but tls.mode is terminate",
                "use HTTPS, or set tls.mode: passthrough",
            )


def _address(path: str, listener: IngressListener) -> Iterator[Problem]:
    if listener.address is None:
        return
    try:
        address = ipaddress.ip_address(listener.address)
    except ValueError:
        address = None
    if address is None or getattr(address, "scope_id", None):
        yield invalid(path, f"found {shown(listener.address)}, expected an IP address such as 192.0.2.1 or ::")


def _tls(spec: VPCIngressSpec, tls: IngressTls) -> Iterator[Problem]:
    is_passed = tls.mode is TlsTermination.PASSTHROUGH
    if not is_passed and tls.secret_name is None:
        yield missing("spec.tls.secretName", "terminated TLS needs a certificate")
    if is_passed:
        unread = {
            "secretName": tls.secret_name,
            "minVersion": tls.min_version if tls.min_version is not TlsVersion.TLS_1_2 else None,
            "cipherSuites": tls.cipher_suites,
            "requireSni": tls.require_sni,
        }
        for name, value in unread.items():
            if value:
                yield exclusive(
                    f"spec.tls.{name}", "TLS that is passed through is the service's own to speak", "remove it"
                )
    if len(set(tls.alpn)) != len(tls.alpn):
        yield invalid("spec.tls.alpn", f"found {', '.join(tls.alpn)}, expected each protocol once")
    for index, name in enumerate(tls.cipher_suites):
        message, hint = suite_problem(name)
        if message:
            yield invalid(f"spec.tls.cipherSuites[{index}]", message, hint)
    if tls.cipher_suites and tls.min_version is TlsVersion.TLS_1_3:
        yield exclusive(
            "spec.tls.cipherSuites", "suites of TLS 1.2 mean nothing with minVersion 1.3", "remove one of them"
        )
    if spec.listeners and not _speaks(spec, IngressProtocol.TLS if is_passed else IngressProtocol.HTTPS):
        protocol = "TLS" if is_passed else "HTTPS"
        what = "so nothing is passed through" if is_passed else "so the certificate is not used"
        yield warning("spec.tls", f"no listener speaks {protocol}, {what}")
    if tls.client_auth is not None:
        yield from _client_auth(tls.client_auth, tls.mode)


def _client_auth(auth: ClientAuth, termination: TlsTermination) -> Iterator[Problem]:
    path = "spec.tls.clientAuth"
    if auth.mode is ClientAuthMode.NONE:
        for name, value in (
            ("caSecretName", auth.ca_secret_name),
            ("crlSecretName", auth.crl_secret_name),
            ("subjectAltNames", auth.subject_alt_names),
            ("forwardClientCert", auth.forward_client_cert),
        ):
            if value:
                yield exclusive(
                    f"{path}.mode", f"mode None asks for no certificate, so {name} has no effect", "set mode: Require"
                )
                break
        return
    if termination is TlsTermination.PASSTHROUGH:
        yield exclusive(
            f"{path}.mode", "with passthrough it is the service that sees certificates", "set tls.mode: terminate"
        )
    if auth.ca_secret_name is None:
        yield missing(
            f"{path}.caSecretName", f"mode {auth.mode.value} needs the CAs of clients", "name a secret with ca.crt"
        )
    if len(set(auth.forward_details)) != len(auth.forward_details):
        yield invalid(f"{path}.forwardDetails", "found a detail for the second time, expected each once")


def _client_ip(client: ClientIp) -> Iterator[Problem]:
    for index, text in enumerate(client.trusted_proxies):
        yield from check_network(f"spec.clientIP.trustedProxies[{index}]", text)
    if client.proxy_protocol and not client.trusted_proxies:
        yield missing(
            "spec.clientIP.trustedProxies",
            "proxyProtocol lets whoever connects say who the client is, and nobody is named who may",
            "name the networks of the load balancer; 0.0.0.0/0 and ::/0 only where no one else can connect",
        )
