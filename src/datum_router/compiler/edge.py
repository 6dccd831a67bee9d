"""What a VPCIngress asks of listeners, as values: policies of its hosts, how TLS is spoken, whom it lets in. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

import msgspec

from datum_router.compiler.clientauth import is_required
from datum_router.compiler.environment import HTTPS_PORT
from datum_router.compiler.replies import compile_replies
from datum_router.manifests.ciphers import openssl_suites
from datum_router.manifests.labels import selects
from datum_router.manifests.meta import ObjectKey, parse_duration
from datum_router.manifests.namespace import Namespace, namespace_labels
from datum_router.manifests.parts import LabelSelector, Retries, Timeouts
from datum_router.manifests.vpcingress import (
    AllowedRoutes,
    Hsts,
    IngressListener,
    IngressProtocol,
    IngressTls,
    RouteNamespaces,
    TlsTermination,
    VPCIngress,
)
from datum_router.manifests.vpcroute import RouteMatch, VPCRoute
from datum_router.model.filters import ReplyTemplate
from datum_router.model.listener import HostPolicy, Listener, ListenerMode, TlsBinding
from datum_router.model.policy import TimeoutPolicy
from datum_router.plugins.protocols import ManifestView

HTTP_PORT = 8080
WELL_KNOWN_HTTPS_PORT = 443
ALPN = ("h2", "http/1.1")

MODES: Mapping[IngressProtocol, ListenerMode] = {
    IngressProtocol.HTTP: ListenerMode.HTTP,
    IngressProtocol.HTTPS: ListenerMode.HTTP,
    IngressProtocol.TLS: ListenerMode.PASSTHROUGH,
    IngressProtocol.TCP: ListenerMode.TCP,
}


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """Which namespaces' routes a VPCIngress serves.

    Attributes:
        names: Namespaces that it does.
        known: Namespaces that were looked at; of others a selector sees the name alone.
    """

    names: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    selector: LabelSelector | None = None

    def admits(self, namespace: str) -> bool:
        """Tell whether routes of a namespace are served."""
        if namespace in self.names:
            return True
        if self.selector is None or namespace in self.known:
            return False
        return selects(self.selector, namespace_labels(namespace, None))


def allowed_routes(config: AllowedRoutes | None, namespace: str, view: ManifestView) -> Allowed | None:
    """Return whose routes are served, None for everybody's."""
    if config is None or config.namespaces is RouteNamespaces.ALL:
        return None
    if config.namespaces is RouteNamespaces.SAME or config.selector is None:
        return Allowed(names=(namespace,))
    found = [one for one in view.list("Namespace") if isinstance(one, Namespace)]
    names = [one.metadata.name for one in found]
    chosen = [
        name for name, one in zip(names, found, strict=True) if selects(config.selector, namespace_labels(name, one))
    ]
    return Allowed(names=tuple(chosen), known=tuple(names), selector=config.selector)


def wanted_listeners(ingress: VPCIngress) -> tuple[IngressListener, ...]:
    """Return the listeners that a VPCIngress asks for, those that it gets without asking included."""
    if ingress.spec.listeners:
        return ingress.spec.listeners
    plain = IngressListener(name="http", port=HTTP_PORT, protocol=IngressProtocol.HTTP)
    tls = ingress.spec.tls
    if tls is None:
        return (plain,)
    if tls.mode is TlsTermination.PASSTHROUGH:
        return (plain, IngressListener(name="tls", port=HTTPS_PORT, protocol=IngressProtocol.TLS))
    secure = IngressListener(name="https", port=HTTPS_PORT, protocol=IngressProtocol.HTTPS)
    return (secure,) if is_required(ingress) else (plain, secure)  # in the clear nobody shows a certificate


def listener_name(item: IngressListener) -> str:
    """Return the name of the listener that serves a port: the same for all VPCIngresses that share it."""
    name = f"{item.protocol.value.lower()}-{item.port}"
    return name if item.address is None else f"{name}-{ipaddress.ip_address(item.address)}"


def speaks(listener: Listener) -> str:
    """Return what a listener speaks, as `spec.listeners[].protocol` has it."""
    if listener.mode is not ListenerMode.HTTP:
        return listener.mode.value
    return "HTTPS" if listener.tls else "HTTP"


def redirect_port(ingress: VPCIngress) -> int | None:
    """Return the port of the HTTPS listener that plain requests are sent to, None if they are served.

    Without such a listener a proxy in front ends TLS, or nothing is in force: then it is HTTPS's own port.
    """
    if not ingress.spec.https_redirect:
        return None
    secure = (IngressProtocol.HTTPS, IngressProtocol.TLS)
    return next((item.port for item in wanted_listeners(ingress) if item.protocol in secure), WELL_KNOWN_HTTPS_PORT)


def hsts_value(hsts: Hsts | None) -> str:
    """Return the value of Strict-Transport-Security (RFC 6797 section 6.1), empty for none."""
    if hsts is None:
        return ""
    parts = [f"max-age={hsts.max_age_seconds}"]
    parts += ["includeSubDomains"] * hsts.include_subdomains + ["preload"] * hsts.preload
    return "; ".join(parts)


def tls_identity(key: ObjectKey, tls: IngressTls) -> str:
    """Return what tells ways of speaking TLS apart: the Secret, not what is in it, and all settings.

    Hosts of one identity may share a connection; others' requests on it are answered with 421.
    """
    return " ".join(
        (
            f"{key.namespace}/{tls.secret_name}",
            tls.min_version.value,
            ",".join(tls.alpn),
            ",".join(openssl_suites(tls.cipher_suites)),
        )
    )


def dressed(binding: TlsBinding, key: ObjectKey, tls: IngressTls) -> TlsBinding:
    """Return a certificate with the settings that its VPCIngress has for it."""
    return msgspec.structs.replace(
        binding,
        min_version=tls.min_version.value,
        alpn=tls.alpn or ALPN,
        ciphers=openssl_suites(tls.cipher_suites),
        identity=tls_identity(key, tls),
        owner=f"{key.namespace}/{key.name}",
    )


def host_policy(
    ingress: VPCIngress,
    key: ObjectKey,
    hostnames: tuple[str, ...],
    protocol: IngressProtocol,
    *,
    is_scheme_told: bool = False,
) -> HostPolicy:
    """Return what an ingress wants for these of its hosts on a listener of a protocol.

    Args:
        is_scheme_told: Trusted proxies say there how clients came: some may have come by HTTPS to an HTTP listener.
    """
    spec = ingress.spec
    is_tls = protocol is IngressProtocol.HTTPS
    return HostPolicy(
        owner=f"{key.namespace}/{key.name}",
        hostnames=hostnames,
        identity=tls_identity(key, spec.tls) if is_tls and spec.tls is not None else "",
        redirect_port=redirect_port(ingress) if protocol is IngressProtocol.HTTP else None,
        hsts=hsts_value(spec.hsts) if is_tls or is_scheme_told else "",
        is_logged=spec.access_log is None or spec.access_log.enabled,
    )


def unread_by_streams(route: VPCRoute) -> Iterator[tuple[str, str, bool]]:
    """Yield what a route says that nobody reads where bytes are carried on: (path, what, whether it keeps it out)."""
    spec = route.spec
    for index, match in enumerate(spec.matches or ((spec.match,) if spec.match is not None else ())):
        where = f"spec.matches[{index}]" if spec.matches else "spec.match"
        read = msgspec.structs.replace(RouteMatch(), source_cidrs=match.source_cidrs)
        if match not in (read, msgspec.structs.replace(read, path_prefix="/")):
            yield where, "conditions on requests", True
    for path, what, is_said in (
        ("spec.filters", "filters", bool(spec.filters)),
        ("spec.destinations", "filters of a destination", any(one.filters for one in spec.destinations)),
        ("spec.cors", "rules for other origins", spec.cors is not None),
        ("spec.rateLimit", "limits on requests", spec.rate_limit is not None),
        ("spec.localReplies", "bodies of answers", bool(spec.local_replies)),
        ("spec.maxRequestBodyBytes", "limits on bodies", spec.max_request_body_bytes is not None),
        ("spec.sessionAffinity", "sessions", spec.session_affinity is not None),
    ):
        if is_said:
            yield path, what, False
    if spec.timeouts is not None and (spec.timeouts.request or spec.timeouts.backend_request):
        yield "spec.timeouts", "time limits of requests", False
    if spec.retries is not None and spec.retries.retry_on_status != Retries().retry_on_status:
        yield "spec.retries.retryOnStatus", "statuses", False


class PortSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for a whole port: the oldest VPCIngress that uses it decides."""

    trusted_hops: int = 0
    trusted_proxies: tuple[str, ...] = ()
    has_proxy_protocol: bool = False
    max_request_body_bytes: int = 0
    replies: tuple[ReplyTemplate, ...] = ()
    is_sni_required: bool = False


def port_settings(ingress: VPCIngress, item: IngressListener) -> PortSettings:
    """Return what a VPCIngress wants for a whole port."""
    spec, client = ingress.spec, ingress.spec.client_ip
    is_http = MODES[item.protocol] is ListenerMode.HTTP
    return PortSettings(
        trusted_hops=0 if client is None or not is_http else client.hops,
        trusted_proxies=() if client is None else client.trusted_proxies,
        has_proxy_protocol=client is not None and client.proxy_protocol,
        max_request_body_bytes=(spec.max_request_body_bytes or 0) if is_http else 0,
        replies=compile_replies(spec.local_replies) if is_http else (),
        is_sni_required=item.protocol is IngressProtocol.HTTPS and spec.tls is not None and spec.tls.require_sni,
    )


def with_defaults(own: TimeoutPolicy, defaults: Timeouts | None) -> TimeoutPolicy:
    """Return time limits of a rule that states none of its own, given those of its VPCIngress."""
    if defaults is None:
        return own
    request_s = own.request_s if defaults.request is None else parse_duration(defaults.request)
    connect_s = own.connect_s if defaults.connect is None else parse_duration(defaults.connect)
    backend_request_s, stream_idle_s = own.backend_request_s, own.stream_idle_s
    if defaults.backend_request is not None:
        backend_request_s = parse_duration(defaults.backend_request)
    if defaults.stream_idle is not None:
        stream_idle_s = parse_duration(defaults.stream_idle)
    return msgspec.structs.replace(
        own,
        request_s=request_s,
        connect_s=connect_s,
        backend_request_s=backend_request_s,
        stream_idle_s=stream_idle_s,
        propagates=own.propagates or defaults.propagate,
    )
