"""VPCService: a service inside a Galactic VPC that is to be reached from elsewhere."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from datum_router.manifests.meta import (
    MAX_STATUS_ENDPOINTS,
    MAX_THRESHOLD,
    AddressText,
    Conditions,
    Count,
    Duration,
    HostText,
    Labels,
    LocalRef,
    Name,
    ObjectMeta,
    ObjectRef,
    ObservedGeneration,
    PathText,
    Percent,
    Port,
    SpecPart,
    StatusPart,
    StatusText,
    Time,
)
from datum_router.manifests.parts import CircuitBreaker, HttpHeader, LabelSelector, TlsVersion
from datum_router.manifests.terms import PROTOCOL_TERMS, TLS_VERSION_TERMS, suggest_method
from datum_router.policy.peer_names import MAX_PEER_NAME_CHARS, PIN_PATTERN

GRPC_ALIAS = {"gRPC": "GRPC"}
MAX_SPEC_ENDPOINTS = 10_000
"""Endpoints that are written down in one VPCService."""
MAX_SOCKET_ADDRESS_CHARS = 72
"""An address in brackets and a port."""


class Protocol(enum.StrEnum):
    """What the service's endpoints speak."""

    HTTP = "HTTP"
    HTTPS = "HTTPS"
    H2C = "H2C"
    GRPC = "GRPC"
    TCP = "TCP"


class HealthCheckType(enum.StrEnum):
    """How an endpoint is probed."""

    HTTP = "HTTP"
    GRPC = "GRPC"
    TCP = "TCP"


class PassiveHealthCheck(SpecPart, frozen=True, kw_only=True):
    """Ejection of endpoints by the outcome of requests."""

    consecutive5xx: Annotated[
        int, Meta(description="5xx answers in a row that eject; 0 = off.", ge=0, le=MAX_THRESHOLD)
    ] = 5
    consecutive_gateway_errors: Annotated[
        int,
        Meta(description="Failures in a row (no answer, 502, 503, 504) that eject; 0 = off.", ge=0, le=MAX_THRESHOLD),
    ] = 5
    interval: Annotated[Duration, Meta(description="How often ejected endpoints are looked at.")] = "10s"
    base_ejection_time: Annotated[
        Duration, Meta(description="First ejection; each further one is twice as long, up to 5 minutes.")
    ] = "10s"
    max_ejection_percent: Annotated[
        Percent, Meta(description="Never more of the endpoints are out at once, but one may be; 0: none.")
    ] = 50
    half_open_requests: Annotated[
        int,
        Meta(description="Requests at once that try an endpoint whose ejection is over, in all.", ge=1, le=100),
    ] = 1


class HealthCheck(SpecPart, frozen=True, kw_only=True):
    """How the health of the endpoints is found out."""

    http_path: Annotated[
        PathText | None, Meta(description="Path that is asked, perhaps with a query; /healthz if not given.")
    ] = None
    interval_seconds: Annotated[int, Meta(description="Time between probes of one endpoint.", ge=1, le=86_400)] = 10
    timeout_seconds: Annotated[int, Meta(description="Time limit of one probe.", ge=1, le=3_600)] = 5
    unhealthy_threshold: Annotated[
        int, Meta(description="Failed probes in a row that take it out.", ge=1, le=MAX_THRESHOLD)
    ] = 3
    healthy_threshold: Annotated[
        int, Meta(description="Good probes in a row that take it in again.", ge=1, le=MAX_THRESHOLD)
    ] = 2
    type: Annotated[
        HealthCheckType | None,
        Meta(description="Kind of probe; follows `protocol` if not given.", extra={"aliases": GRPC_ALIAS}),
    ] = None
    port: Annotated[Port | None, Meta(description="Port that is probed; the endpoint's own if not given.")] = None
    host: Annotated[str, Meta(description="Host header of the probe.", min_length=1, max_length=261)] | None = None
    method: (
        Annotated[
            str,
            Meta(
                description="Request method; GET if not given.",
                pattern=r"^[A-Z][A-Z-]*$",
                max_length=32,
                extra={"expected": "an upper-case method such as GET", "suggest": suggest_method},
            ),
        ]
        | None
    ) = None
    expected_statuses: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=r"^[1-5][0-9]{2}(-[1-5][0-9]{2})?$",
                    max_length=7,
                    extra={"expected": "a status or a range such as 200-299"},
                ),
            ],
            ...,
        ],
        Meta(description="Statuses that count as healthy, such as `200-299`; 200-299 if empty.", max_length=32),
    ] = ()
    grpc_service: (
        Annotated[
            str, Meta(description="Service name of the gRPC health check; empty asks for the server.", max_length=255)
        ]
        | None
    ) = None
    headers: Annotated[tuple[HttpHeader, ...], Meta(description="Headers of the probe.", max_length=32)] = ()
    passive: Annotated[PassiveHealthCheck | None, Meta(description="Ejection by the outcome of requests.")] = None
    panic_threshold_percent: Annotated[
        Percent, Meta(description="With fewer healthy endpoints than this, health is ignored.")
    ] = 50


class DiscoveryMethod(enum.StrEnum):
    """Where endpoints come from."""

    MANUAL = "manual"
    KUBERNETES = "kubernetes"
    ATTACHMENT = "attachment"
    DNS = "dns"
    ENDPOINTSLICE = "endpointslice"


class Discovery(SpecPart, frozen=True, kw_only=True):
    """How endpoints are found beside those that are written here."""

    method: Annotated[
        DiscoveryMethod,
        Meta(
            description="Where endpoints come from; with kubernetes, ServiceBindings alone may give them; with "
            "endpointslice, those that other clusters export under this namespace and name come beside all others."
        ),
    ] = DiscoveryMethod.MANUAL
    dns_name: Annotated[HostText | None, Meta(description="Name that is looked up.")] = None


class EndpointSpec(SpecPart, frozen=True, kw_only=True):
    """A member of the service, written down."""

    address: Annotated[AddressText, Meta(description="IPv4 or IPv6 address, without prefix length.")]
    port: Annotated[Port | None, Meta(description="Port; `targetPort` or `port` of the service if not given.")] = None
    weight: Annotated[int, Meta(description="Share of the traffic; 0 takes none.", ge=0, le=1_000_000)] = 100
    location_ref: Annotated[LocalRef | None, Meta(description="Location of this endpoint.")] = None
    priority: Annotated[
        int, Meta(description="0 is used first, higher ones as far as lower ones lack health.", ge=0, le=128)
    ] = 0


class TlsMode(enum.StrEnum):
    """Whether TLS is spoken to the endpoints."""

    DISABLE = "Disable"
    SIMPLE = "Simple"
    MUTUAL = "Mutual"


class CertificateKind(enum.StrEnum):
    """Where certificates are kept."""

    CONFIG_MAP = "ConfigMap"
    SECRET = "Secret"


class CertificateRef(SpecPart, frozen=True, kw_only=True):
    """A reference to certificates in the same namespace."""

    name: Annotated[Name, Meta(description="Name of the object.")]
    kind: Annotated[CertificateKind, Meta(description="Kind of the object.")] = CertificateKind.CONFIG_MAP


class UpstreamTlsSpec(SpecPart, frozen=True, kw_only=True):
    """TLS towards the endpoints."""

    mode: Annotated[
        TlsMode | None,
        Meta(
            description="Simple for protocol HTTPS, Disable for others, if not given; Mutual shows a certificate of "
            "our own."
        ),
    ] = None
    sni: Annotated[HostText | None, Meta(description="Server name that is sent and verified.")] = None
    ca_certificate_refs: Annotated[
        tuple[CertificateRef, ...],
        Meta(description="CAs that are trusted, under the key `ca.crt`; the system's if empty.", max_length=16),
    ] = ()
    client_certificate_ref: Annotated[
        LocalRef | None,
        Meta(
            description="Secret with our own certificate and key, `tls.crt` and `tls.key`, for mode Mutual; the "
            "gateway's own identity if not given."
        ),
    ] = None
    subject_alt_names: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=PIN_PATTERN,
                    max_length=MAX_PEER_NAME_CHARS,
                    extra={"expected": "a DNS name, or a URI such as spiffe://example.org/ns/shop/sa/web"},
                ),
            ],
            ...,
        ],
        Meta(
            description="DNS names and URIs of which the certificate must hold one, exactly; `sni` is then sent, but "
            "not verified.",
            max_length=16,
        ),
    ] = ()
    min_version: Annotated[TlsVersion, Meta(description="Lowest TLS version.", extra={"terms": TLS_VERSION_TERMS})] = (
        TlsVersion.TLS_1_2
    )
    insecure_skip_verify: Annotated[bool, Meta(description="Accept any certificate. For tests only.")] = False


class TunnelTarget(SpecPart, frozen=True, kw_only=True):
    """What is asked for at the tunnel's far end."""

    host: Annotated[HostText, Meta(description="Host name or address.")]
    port: Annotated[Port, Meta(description="Port.")]


class Tunnel(SpecPart, frozen=True, kw_only=True):
    """An iroh tunnel to a service that no VPC reaches."""

    connector_ref: Annotated[LocalRef | None, Meta(description="Connector that leads there.")] = None
    endpoint_id: (
        Annotated[
            str,
            Meta(
                description="Id of the far endpoint: 64 hex digits.",
                pattern=r"^[0-9a-f]{64}$",
                max_length=64,
                extra={"expected": "64 hex digits in lower case"},
            ),
        ]
        | None
    ) = msgspec.field(default=None, name="endpointID")
    addresses: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=MAX_SOCKET_ADDRESS_CHARS)], ...],
        Meta(description="Known addresses of the far endpoint.", max_length=16),
    ] = ()
    relay_url: Annotated[str, Meta(description="Relay of the far endpoint.", max_length=2048)] | None = msgspec.field(
        default=None, name="relayURL"
    )
    target: Annotated[TunnelTarget | None, Meta(description="What is asked for at the far end.")] = None


class ExportNamespaces(enum.StrEnum):
    """Which namespaces may refer to the service."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


class ExportClusters(enum.StrEnum):
    """Which other clusters may use the service."""

    NONE = "None"
    ALL = "All"


class ExportTo(SpecPart, frozen=True, kw_only=True):
    """Consent to use by others: routes and ingresses of other namespaces, and other clusters.

    A ServiceBinding of another namespace needs a ReferenceGrant.
    """

    namespaces: Annotated[ExportNamespaces, Meta(description="Whose routes and ingresses may use the service.")] = (
        ExportNamespaces.SAME
    )
    selector: Annotated[
        LabelSelector | None, Meta(description="Labels of the namespaces; only with namespaces Selector.")
    ] = None
    clusters: Annotated[
        ExportClusters,
        Meta(
            description="Whether clusters that read this one may publish the endpoints for their own VPCService of "
            "the same namespace and name, if that asks for it (discovery.method: endpointslice)."
        ),
    ] = ExportClusters.NONE


class VPCServiceSpec(SpecPart, frozen=True, kw_only=True):
    """What the service speaks, where its endpoints are and how their health is found out."""

    vpc_attachment_ref: Annotated[
        ObjectRef | None, Meta(description="VPCAttachment whose addresses are the endpoints.")
    ] = None
    vpc_attachment_selector: Annotated[
        LabelSelector | None, Meta(description="VPCAttachments by label: one service over many attachments.")
    ] = None
    protocol: Annotated[
        Protocol,
        Meta(
            description="What the endpoints speak; `gRPC` is the same as GRPC.",
            extra={"aliases": GRPC_ALIAS, "terms": PROTOCOL_TERMS},
        ),
    ] = Protocol.HTTP
    port: Annotated[Port, Meta(description="Port of the service.")]
    target_port: Annotated[Port | None, Meta(description="Port of the endpoints; `port` if not given.")] = None
    labels: Annotated[Labels | None, Meta(description="Labels of the service, for selection.")] = None
    health_check: Annotated[HealthCheck | None, Meta(description="Health checks; none if not given.")] = None
    discovery: Annotated[Discovery | None, Meta(description="How endpoints are found.")] = None
    endpoints: Annotated[
        tuple[EndpointSpec, ...], Meta(description="Endpoints, written down.", max_length=MAX_SPEC_ENDPOINTS)
    ] = ()
    connect_timeout: Annotated[Duration, Meta(description="Time limit for making a connection.")] = "10s"
    idle_timeout: Annotated[Duration, Meta(description="How long an unused connection is kept.")] = "60s"
    circuit_breaker: Annotated[
        CircuitBreaker | None, Meta(description="Limits on concurrent work, and when the service is given a rest.")
    ] = None
    tls: Annotated[UpstreamTlsSpec | None, Meta(description="TLS towards the endpoints.")] = None
    location_ref: Annotated[LocalRef | None, Meta(description="Location of the service.")] = None
    topology: Annotated[
        Labels | None, Meta(description="Where the endpoints are, such as topology.datum.net/city-code: DFW.")
    ] = None
    tunnel: Annotated[Tunnel | None, Meta(description="iroh tunnel that leads to the service.")] = None
    export_to: Annotated[ExportTo | None, Meta(description="Consent to references from other namespaces.")] = None


class EndpointStatus(StatusPart, frozen=True, kw_only=True):
    """One endpoint as it was last seen."""

    ip: Annotated[StatusText, Meta(description="Address that is dialled.")] = ""
    port: Annotated[int, Meta(description="Port that is dialled.", ge=0, le=65535)] = 0
    ready: Annotated[bool, Meta(description="Whether where it comes from says that it takes traffic.")] = False
    healthy: Annotated[
        bool | None, Meta(description="What health checks found; not there if there are none, or none has ended.")
    ] = None
    reason: Annotated[StatusText, Meta(description="Why it takes no traffic, as one CamelCase word.")] = ""
    location: Annotated[StatusText, Meta(description="Where it is, such as a city code or zone.")] = ""
    source: Annotated[StatusText, Meta(description="What it comes from: manual, attachment or a ServiceBinding.")] = ""
    last_heartbeat: Annotated[Time | None, Meta(description="When it was last seen to be alive.")] = None


class VpcStatus(StatusPart, frozen=True, kw_only=True):
    """The VPC of the attachment."""

    name: Annotated[StatusText, Meta(description="Name of the VPC.")] = ""
    namespace: Annotated[StatusText, Meta(description="Namespace of the VPC.")] = ""
    identifier: Annotated[StatusText, Meta(description="What Galactic calls it: 12 hex digits.")] = ""


class VPCServiceStatus(StatusPart, frozen=True, kw_only=True):
    """What the router found."""

    observed_generation: ObservedGeneration = 0
    ready: Annotated[bool, Meta(description="Whether the service can take traffic: condition Ready in one word.")] = (
        False
    )
    endpoint_count: Annotated[Count, Meta(description="Endpoints in all, with those that are not listed.")] = 0
    last_update_time: Annotated[Time | None, Meta(description="When the endpoints last changed.")] = None
    endpoints: Annotated[
        tuple[EndpointStatus, ...],
        Meta(description="The first endpoints; see `endpointCount`.", max_length=MAX_STATUS_ENDPOINTS),
    ] = ()
    vpc: Annotated[VpcStatus | None, Meta(description="The VPC of the attachment.")] = None
    attachment_identifier: Annotated[
        StatusText, Meta(description="What Galactic calls the attachment: 4 hex digits.")
    ] = ""
    conditions: Conditions = ()


class VPCService(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, gc=False):
    """A service inside a Galactic VPC that is to be reached from elsewhere."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: VPCServiceSpec
    status: VPCServiceStatus | None = None
