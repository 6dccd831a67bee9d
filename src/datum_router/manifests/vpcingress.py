"""VPCIngress: where traffic from outside enters, for which hosts, with which certificate."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from datum_router.manifests.meta import (
    Conditions,
    Count,
    HostText,
    Name,
    NamespaceName,
    Notes,
    ObjectMeta,
    ObjectRef,
    ObservedGeneration,
    PathText,
    Port,
    SpecPart,
    StatusPart,
    StatusText,
)
from datum_router.manifests.parts import LabelSelector, RateLimit, Timeouts, TlsVersion
from datum_router.manifests.routefilters import LocalReplies
from datum_router.manifests.terms import LISTENER_TERMS, PATH_TYPE_TERMS, TLS_VERSION_TERMS
from datum_router.policy.peer_names import ALLOW_PATTERN, MAX_PEER_NAME_CHARS

MAX_LISTENERS = 64
"""Ports that one VPCIngress opens."""
MAX_BODY_BYTES = 1 << 40
"""Highest limit on a request body: 1 TiB."""
MAX_HSTS_AGE_S = 2**31 - 1


class PathType(enum.StrEnum):
    """How a rule's path is compared."""

    PREFIX = "Prefix"
    EXACT = "Exact"


class IngressProtocol(enum.StrEnum):
    """What a listener speaks."""

    HTTP = "HTTP"
    HTTPS = "HTTPS"
    TLS = "TLS"
    TCP = "TCP"


class TlsTermination(enum.StrEnum):
    """What happens to TLS."""

    TERMINATE = "terminate"
    PASSTHROUGH = "passthrough"


class ClientAuthMode(enum.StrEnum):
    """Whether clients must show a certificate."""

    NONE = "None"
    REQUEST = "Request"
    REQUIRE = "Require"


class ClientCertDetail(enum.StrEnum):
    """What X-Forwarded-Client-Cert says of a certificate beside `By` and `Hash`."""

    CERT = "Cert"
    CHAIN = "Chain"
    SUBJECT = "Subject"
    URI = "URI"
    DNS = "DNS"


class IngressServiceRef(SpecPart, frozen=True, kw_only=True):
    """The VPCService of a rule."""

    name: Annotated[Name, Meta(description="Name of the VPCService.")]
    namespace: Annotated[
        NamespaceName | None, Meta(description="Namespace of the VPCService; the ingress's own if not given.")
    ] = None
    port: Annotated[Port | None, Meta(description="Port that is dialled instead of the endpoints' own.")] = None


class IngressRule(SpecPart, frozen=True, kw_only=True):
    """A path and the service behind it."""

    path: Annotated[PathText, Meta(description="Path, by whole segments for Prefix.")] = "/"
    path_type: Annotated[PathType, Meta(description="How the path is compared.", extra={"terms": PATH_TYPE_TERMS})] = (
        PathType.PREFIX
    )
    service: Annotated[
        IngressServiceRef | None, Meta(description="The service behind the path; this or `vpcRouteRef`.")
    ] = None
    vpc_attachment_name: Annotated[Name | None, Meta(description="Attachment that the gateway uses.")] = None
    vpc_route_ref: Annotated[
        ObjectRef | None,
        Meta(
            description="VPCRoute in place of a service: it is served here as if it named the ingress in `parentRefs`."
        ),
    ] = None


class ClientAuth(SpecPart, frozen=True, kw_only=True):
    """Certificates of clients."""

    mode: Annotated[
        ClientAuthMode,
        Meta(
            description="Whether clients must show a certificate. With Request they may have none; one that is shown "
            "must be good in any case."
        ),
    ] = ClientAuthMode.NONE
    ca_secret_name: Annotated[Name | None, Meta(description="Secret with the CAs of clients under `ca.crt`.")] = None
    subject_alt_names: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=ALLOW_PATTERN,
                    max_length=MAX_PEER_NAME_CHARS,
                    extra={"expected": "a DNS name, or a URI such as spiffe://example.org/ns/shop/*"},
                ),
            ],
            ...,
        ],
        Meta(
            description="DNS names and URIs of which the certificate must hold one, exactly; a SPIFFE ID that ends in "
            "`/*` stands for all that are longer. All that the CAs have signed if empty.",
            max_length=64,
        ),
    ] = ()
    crl_secret_name: Annotated[
        Name | None,
        Meta(description="Secret with revocation lists under `ca.crl`, one that is valid for each CA of the chain."),
    ] = None
    forward_client_cert: Annotated[
        bool,
        Meta(description="Tell the service about the certificate in X-Forwarded-Client-Cert, in Envoy's format."),
    ] = False
    forward_details: Annotated[
        tuple[ClientCertDetail, ...],
        Meta(description="What that header says beside `By` and `Hash`.", max_length=5),
    ] = (ClientCertDetail.SUBJECT, ClientCertDetail.URI, ClientCertDetail.DNS)


class IngressTls(SpecPart, frozen=True, kw_only=True):
    """TLS towards clients."""

    secret_name: Annotated[
        Name | None, Meta(description="Secret with `tls.crt` and `tls.key`; not given in mode passthrough.")
    ] = None
    secret_version: Annotated[str, Meta(description="Version of the secret.", max_length=253)] | None = None
    mode: Annotated[TlsTermination, Meta(description="What happens to TLS.")] = TlsTermination.TERMINATE
    min_version: Annotated[TlsVersion, Meta(description="Lowest TLS version.", extra={"terms": TLS_VERSION_TERMS})] = (
        TlsVersion.TLS_1_2
    )
    cipher_suites: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(description="Cipher suites of TLS 1.2 by OpenSSL's or IANA's name; those of RFC 9325.", max_length=64),
    ] = ()
    require_sni: Annotated[
        bool,
        Meta(
            description="Refuse handshakes without a server name or with an unknown one, instead of showing the oldest "
            "certificate of the port."
        ),
    ] = False
    client_auth: Annotated[ClientAuth | None, Meta(description="Certificates of clients.")] = None
    alpn: Annotated[
        tuple[
            Annotated[str, Meta(pattern=r"^(h2|http/1\.1)$", max_length=8, extra={"expected": "h2 or http/1.1"})], ...
        ],
        Meta(description="Protocols that are offered, best first.", max_length=2),
    ] = ("h2", "http/1.1")


class IngressListener(SpecPart, frozen=True, kw_only=True):
    """A port that is opened."""

    name: Annotated[Name, Meta(description="Name that `sectionName` of a route refers to.")]
    port: Annotated[Port, Meta(description="Port.")]
    protocol: Annotated[IngressProtocol, Meta(description="What is spoken on it.", extra={"terms": LISTENER_TERMS})] = (
        IngressProtocol.HTTP
    )
    address: (
        Annotated[
            str,
            Meta(
                description="IP address that the port is opened at; the gateway's setting if not given.", max_length=45
            ),
        ]
        | None
    ) = None


class Hsts(SpecPart, frozen=True, kw_only=True):
    """Strict-Transport-Security (RFC 6797)."""

    max_age_seconds: Annotated[int, Meta(description="How long clients remember it.", ge=0, le=MAX_HSTS_AGE_S)] = (
        31_536_000
    )
    include_subdomains: Annotated[bool, Meta(description="Whether it holds for subdomains.")] = False
    preload: Annotated[bool, Meta(description="Whether browsers may know it beforehand.")] = False


class RouteNamespaces(enum.StrEnum):
    """Which namespaces' routes may be served here."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


class AllowedRoutes(SpecPart, frozen=True, kw_only=True):
    """Which routes may be served here."""

    namespaces: Annotated[RouteNamespaces, Meta(description="Namespaces of the routes.")] = RouteNamespaces.ALL
    selector: Annotated[LabelSelector | None, Meta(description="Labels of the namespaces for Selector.")] = None


class ClientIp(SpecPart, frozen=True, kw_only=True):
    """How the client's address is found out."""

    trusted_hops: Annotated[
        int, Meta(description="Proxies in front whose X-Forwarded-For entries are believed.", ge=0, le=32)
    ] = 0
    proxy_protocol: Annotated[
        bool,
        Meta(description="Expect a PROXY protocol header, version 1 or 2, on each connection; needs `trustedProxies`."),
    ] = False
    trusted_proxies: Annotated[
        tuple[Annotated[str, Meta(min_length=2, max_length=49)], ...],
        Meta(
            description="Networks of the proxies in front: nobody else is believed in X-Forwarded-For or may send a "
            "PROXY protocol header.",
            max_length=64,
        ),
    ] = ()

    @property
    def hops(self) -> int:
        """Return how many proxies in front are believed in X-Forwarded-For and X-Forwarded-Proto.

        With `trustedProxies`, and no PROXY protocol that tells the client's address, it is one if nothing is said.
        """
        is_one = self.trusted_proxies and not self.proxy_protocol
        return self.trusted_hops or (1 if is_one else 0)


class AccessLog(SpecPart, frozen=True, kw_only=True):
    """What is logged of requests."""

    enabled: Annotated[bool, Meta(description="Whether requests are logged.")] = True


class VPCIngressSpec(SpecPart, frozen=True, kw_only=True):
    """Ports, hosts, certificate and paths."""

    host: Annotated[HostText, Meta(description="Host name, `*.` in front is a wildcard.")]
    hosts: Annotated[tuple[HostText, ...], Meta(description="Further host names.", max_length=64)] = ()
    rules: Annotated[tuple[IngressRule, ...], Meta(description="Paths and services.", max_length=256)] = ()
    tls: Annotated[IngressTls | None, Meta(description="TLS towards clients.")] = None
    vpc_attachment_name: Annotated[Name | None, Meta(description="Attachment that the gateway uses.")] = None
    annotations: Annotated[Notes | None, Meta(description="Notes; nothing depends on them.")] = None
    listeners: Annotated[
        tuple[IngressListener, ...],
        Meta(
            description="Ports; HTTP on 8080, and HTTPS on 8443 with `tls`, if empty.",
            max_length=MAX_LISTENERS,
            extra={"list_map_keys": ["name"]},
        ),
    ] = ()
    https_redirect: Annotated[bool, Meta(description="Redirect HTTP to HTTPS.")] = False
    hsts: Annotated[Hsts | None, Meta(description="Strict-Transport-Security.")] = None
    gateway_selector: Annotated[LabelSelector | None, Meta(description="Gateways that open the ports.")] = None
    allowed_routes: Annotated[AllowedRoutes | None, Meta(description="Which routes may be served here.")] = None
    default_timeouts: Annotated[Timeouts | None, Meta(description="Time limits of routes without their own.")] = None
    local_replies: LocalReplies = ()
    max_request_body_bytes: (
        Annotated[int, Meta(description="Longest request body; unlimited if not given.", ge=1, le=MAX_BODY_BYTES)]
        | None
    ) = None
    rate_limit: Annotated[RateLimit | None, Meta(description="How many requests are let through.")] = None
    client_ip: Annotated[ClientIp | None, Meta(description="How the client's address is found out.")] = msgspec.field(
        default=None, name="clientIP"
    )
    access_log: Annotated[AccessLog | None, Meta(description="What is logged of requests.")] = None


class IngressAddress(StatusPart, frozen=True, kw_only=True):
    """An address that the ingress is reached at."""

    ip: Annotated[StatusText, Meta(description="IP address.")] = ""
    hostname: Annotated[StatusText, Meta(description="Host name.")] = ""


class ListenerStatus(StatusPart, frozen=True, kw_only=True):
    """The state of one listener."""

    name: Annotated[Name, Meta(description="Name of the listener, as in `spec.listeners`.")]
    attached_routes: Annotated[Count, Meta(description="VPCRoutes that are served on it.")] = 0
    conditions: Conditions = ()


class VPCIngressStatus(StatusPart, frozen=True, kw_only=True):
    """What the router made of the ingress."""

    observed_generation: ObservedGeneration = 0
    ready: Annotated[bool, Meta(description="Whether it takes traffic: condition Ready in one word.")] = False
    load_balancer_ip: Annotated[StatusText, Meta(description="Address that clients are to use.")] = ""
    active_backends: Annotated[Count, Meta(description="VPCServices of its rules that are there.")] = 0
    ingress_addresses: Annotated[
        tuple[IngressAddress, ...], Meta(description="All addresses that it is reached at.", max_length=64)
    ] = ()
    listeners: Annotated[
        tuple[ListenerStatus, ...],
        Meta(description="The state of each listener.", max_length=MAX_LISTENERS, extra={"list_map_keys": ["name"]}),
    ] = ()
    conditions: Conditions = ()


class VPCIngress(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Where traffic from outside enters, for which hosts, with which certificate."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: VPCIngressSpec
    status: VPCIngressStatus | None = None
