"""Rules that a type cannot say: what excludes or needs what, and text whose grammar a pattern cannot hold.

Each function takes a manifest that has the right types and yields everything that is wrong with it; none raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datum_router.manifests import validate_route as _route
from datum_router.manifests.meta import parse_duration
from datum_router.manifests.parts import LabelSelector
from datum_router.manifests.problem import Problem, shown
from datum_router.manifests.rules import (
    check_address,
    check_header,
    check_host,
    check_host_port,
    check_hosts,
    check_network,
    check_path,
    check_retries,
    check_selector,
    check_timeouts,
    exclusive,
    invalid,
    is_address,
    missing,
    warning,
)
from datum_router.manifests.servicebinding import ServiceBinding
from datum_router.manifests.vpcegress import VPCEgress
from datum_router.manifests.vpcingress import ClientAuth, ClientAuthMode, IngressProtocol, TlsTermination, VPCIngress
from datum_router.manifests.vpcservice import (
    DiscoveryMethod,
    EndpointSpec,
    HealthCheck,
    HealthCheckType,
    Protocol,
    TlsMode,
    UpstreamTlsSpec,
    VPCService,
)

validate_route = _route.validate_route

_FOUND_ELSEWHERE = (DiscoveryMethod.KUBERNETES, DiscoveryMethod.ENDPOINTSLICE)
"""Methods with which a service need not name anything that gives it endpoints."""


def validate_service(manifest: VPCService) -> Iterator[Problem]:
    """Yield what is wrong with a VPCService."""
    spec = manifest.spec
    is_bound = spec.discovery is not None and spec.discovery.method in _FOUND_ELSEWHERE
    is_attached = spec.vpc_attachment_ref is not None or spec.vpc_attachment_selector is not None
    if not is_attached and not spec.endpoints and spec.tunnel is None and not is_bound:
        yield missing(
            "spec.vpcAttachmentRef",
            "the service has no endpoints: no vpcAttachmentRef, vpcAttachmentSelector or endpoints are given",
            "name a VPCAttachment or select some, write down endpoints, or set discovery.method: kubernetes and make a "
            "ServiceBinding",
        )
    yield from _endpoints(spec.endpoints, spec.target_port or spec.port)
    if parse_duration(spec.connect_timeout) <= 0:
        yield invalid("spec.connectTimeout", f"found {spec.connect_timeout}, expected more than nothing")
    if spec.health_check is not None:
        yield from _health_check(spec.health_check, spec.protocol)
    yield from _upstream_tls(spec.tls, spec.protocol)
    yield from check_selector("spec.vpcAttachmentSelector", spec.vpc_attachment_selector)
    if spec.export_to is not None:
        yield from check_selector("spec.exportTo.selector", spec.export_to.selector)
        yield from _selector_for("spec.exportTo", spec.export_to.namespaces.value, spec.export_to.selector)


def _selector_for(path: str, namespaces: str, selector: LabelSelector | None) -> Iterator[Problem]:
    if namespaces == "Selector":
        if selector is None:
            yield missing(f"{path}.selector", "namespaces Selector needs selector")
    elif selector is not None:
        yield exclusive(f"{path}.selector", f"namespaces {namespaces} reads no selector", "set namespaces: Selector")


def _endpoints(endpoints: Sequence[EndpointSpec], default_port: int) -> Iterator[Problem]:
    seen: set[tuple[str, int]] = set()
    for index, item in enumerate(endpoints):
        path = f"spec.endpoints[{index}]"
        yield from check_address(f"{path}.address", item.address)
        place = (item.address, item.port or default_port)
        if place in seen:
            yield invalid(path, f"found {item.address} port {place[1]} for the second time")
        seen.add(place)
    if endpoints and all(item.weight == 0 for item in endpoints):
        yield warning("spec.endpoints", "every weight is 0: its traffic is answered with 503")


_HTTP_ONLY = ("http_path", "method", "host", "expected_statuses", "headers")
_WIRE_NAMES = {"http_path": "httpPath", "expected_statuses": "expectedStatuses"}


def _health_check(health: HealthCheck, protocol: Protocol) -> Iterator[Problem]:
    path = "spec.healthCheck"
    kind = health.type
    if kind is None:
        is_grpc = protocol is Protocol.GRPC and health.http_path is None
        kind = HealthCheckType.GRPC if is_grpc else HealthCheckType.HTTP
    if kind is not HealthCheckType.HTTP:
        for name in _HTTP_ONLY:
            # gRPC probes have a host and headers, too: they are HTTP/2 requests.
            if getattr(health, name) and not (kind is HealthCheckType.GRPC and name in ("host", "headers")):
                wire = _WIRE_NAMES.get(name, name)
                yield exclusive(
                    f"{path}.{wire}", f"a {kind.value} probe has no {wire}", f"remove {wire}, or set type: HTTP"
                )
    if health.grpc_service and kind is not HealthCheckType.GRPC:
        yield exclusive(f"{path}.grpcService", f"a probe of type {kind.value} has no grpcService", "set type: GRPC")
    if health.http_path is not None:
        text = health.http_path
        if "#" in text or " " in text or not (text.isascii() and text.isprintable()):
            yield invalid(f"{path}.httpPath", f"found {shown(text)}, expected a path as it is sent")
        else:
            yield from check_path(f"{path}.httpPath", text.partition("?")[0])
    if health.host is not None:
        yield from check_host_port(f"{path}.host", health.host)
    for index, text in enumerate(health.expected_statuses):
        low, _, high = text.partition("-")
        if high and int(high) < int(low):
            yield invalid(f"{path}.expectedStatuses[{index}]", f"found {text}, expected {high}-{low}")
    for index, header in enumerate(health.headers):
        yield from check_header(f"{path}.headers[{index}].name", header.name, is_change=True)
    if health.passive is not None:
        for name, text in (
            ("interval", health.passive.interval),
            ("baseEjectionTime", health.passive.base_ejection_time),
        ):
            if parse_duration(text) <= 0:
                yield invalid(f"{path}.passive.{name}", f"found {text}, expected more than nothing")


def _upstream_tls(tls: UpstreamTlsSpec | None, protocol: Protocol) -> Iterator[Problem]:
    if tls is None:
        return
    path = "spec.tls"
    if tls.sni is not None:
        yield from check_host(f"{path}.sni", tls.sni, is_wildcard_allowed=False)
    if protocol is Protocol.HTTPS and tls.mode is TlsMode.DISABLE:
        yield exclusive(f"{path}.mode", "protocol HTTPS needs TLS, but its mode is Disable", "set protocol: HTTP")
    if protocol is Protocol.H2C and tls.mode in (TlsMode.SIMPLE, TlsMode.MUTUAL):
        yield exclusive(f"{path}.mode", "protocol H2C is HTTP/2 without TLS", "set protocol: HTTPS or GRPC")
    has_settings = bool(
        tls.sni
        or tls.ca_certificate_refs
        or tls.client_certificate_ref
        or tls.subject_alt_names
        or tls.insecure_skip_verify
    )
    if has_settings and tls.mode is None and protocol is not Protocol.HTTPS:
        yield exclusive(
            f"{path}.mode",
            f"there are TLS settings, but protocol {protocol.value} is spoken without TLS",
            "set tls.mode: Simple",
        )
    if tls.insecure_skip_verify and tls.ca_certificate_refs:
        yield exclusive(
            f"{path}.insecureSkipVerify", "caCertificateRefs have no effect while no certificate is verified"
        )
    if tls.insecure_skip_verify and tls.subject_alt_names:
        yield exclusive(f"{path}.insecureSkipVerify", "subjectAltNames have no effect while no certificate is verified")
    if tls.client_certificate_ref is not None and tls.mode is not None and tls.mode is not TlsMode.MUTUAL:
        yield exclusive(
            f"{path}.clientCertificateRef", f"mode {tls.mode.value} shows no certificate of ours", "set mode: Mutual"
        )
    elif tls.client_certificate_ref is not None and tls.mode is None and protocol is Protocol.HTTPS:
        yield exclusive(
            f"{path}.clientCertificateRef", "mode Simple, the default, shows no certificate of ours", "set mode: Mutual"
        )


def validate_binding(manifest: ServiceBinding) -> Iterator[Problem]:
    """Yield what is wrong with a ServiceBinding."""
    yield from check_selector("spec.podSelector", manifest.spec.pod_selector)
    seen: set[int] = set()
    for index, item in enumerate(manifest.spec.port_mappings):
        port = item.vpc_port or item.service_port
        if port in seen:
            yield exclusive(
                f"spec.portMappings[{index}]", f"vpcPort {port} is mapped twice", "map each port of the VPCService once"
            )
        seen.add(port)


def validate_ingress(manifest: VPCIngress) -> Iterator[Problem]:
    """Yield what is wrong with a VPCIngress."""
    spec = manifest.spec
    yield from check_host("spec.host", spec.host)
    yield from check_hosts("spec.hosts", spec.hosts)
    for index, rule in enumerate(spec.rules):
        yield from check_path(f"spec.rules[{index}].path", rule.path)
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
        if listener.protocol is IngressProtocol.HTTPS and spec.tls is None:
            yield missing("spec.tls", f"listener {listener.name} speaks HTTPS, but no certificate is named")
    yield from check_selector("spec.gatewaySelector", spec.gateway_selector)
    if spec.allowed_routes is not None:
        yield from check_selector("spec.allowedRoutes.selector", spec.allowed_routes.selector)
        yield from _selector_for(
            "spec.allowedRoutes", spec.allowed_routes.namespaces.value, spec.allowed_routes.selector
        )
    if spec.tls is not None:
        if len(set(spec.tls.alpn)) != len(spec.tls.alpn):
            yield invalid("spec.tls.alpn", f"found {', '.join(spec.tls.alpn)}, expected each protocol once")
        if spec.listeners and all(item.protocol is IngressProtocol.HTTP for item in spec.listeners):
            yield warning("spec.tls", "no listener speaks HTTPS, so the certificate is not used")
        if spec.tls.client_auth is not None:
            yield from _client_auth(spec.tls.client_auth, spec.tls.mode)


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


def validate_egress(manifest: VPCEgress) -> Iterator[Problem]:
    """Yield what is wrong with a VPCEgress."""
    spec = manifest.spec
    yield from check_selector("spec.sourceSelector", spec.source_selector)
    yield from check_timeouts("spec.timeouts", spec.timeouts)
    yield from check_retries("spec.retries", spec.retries)
    for index, item in enumerate(spec.destinations):
        path = f"spec.destinations[{index}]"
        if ":" in item.endpoint or is_address(item.endpoint):
            yield from check_address(f"{path}.endpoint", item.endpoint)
        else:
            yield from check_host(f"{path}.endpoint", item.endpoint, is_wildcard_allowed=False)
        if item.tls is not None and item.tls.sni is not None:
            yield from check_host(f"{path}.tls.sni", item.tls.sni, is_wildcard_allowed=False)
    if spec.match is None:
        return
    for index, text in enumerate(spec.match.destination_cidrs):
        yield from check_network(f"spec.match.destinationCidrs[{index}]", text)
    yield from check_hosts("spec.match.hostnames", spec.match.hostnames)
