"""VPCEgress: which traffic may leave a VPC, and where to."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta, Struct

from datum_router.manifests.meta import (
    MAX_COUNT,
    Conditions,
    Count,
    HostText,
    Labels,
    LocalRef,
    Name,
    NetworkText,
    ObjectMeta,
    ObservedGeneration,
    PathText,
    Port,
    SpecPart,
    StatusPart,
)
from datum_router.manifests.parts import LabelSelector, Retries, Timeouts, TlsVersion
from datum_router.manifests.vpcroute import Method


class Verdict(enum.StrEnum):
    """What happens to traffic."""

    ALLOW = "Allow"
    DENY = "Deny"


class TrafficProtocol(enum.StrEnum):
    """What traffic is, as far as the router can tell: all is TCP; requests that it can read are HTTP; connections that
    begin with a TLS handshake for the destination's name are TLS, and HTTPS is another word for that.
    """

    TCP = "TCP"
    HTTP = "HTTP"
    TLS = "TLS"
    HTTPS = "HTTPS"


class EgressMatch(SpecPart, frozen=True, kw_only=True):
    """Conditions on outbound traffic, all of which must hold; an empty one holds for any."""

    destination_cidrs: Annotated[
        tuple[NetworkText, ...], Meta(description="Networks of the destination.", max_length=256)
    ] = ()
    destination_ports: Annotated[tuple[Port, ...], Meta(description="Ports of the destination.", max_length=256)] = ()
    protocols: Annotated[
        tuple[TrafficProtocol, ...],
        Meta(
            description="TCP holds for all, HTTP for requests that can be read, TLS and HTTPS for handshakes.",
            max_length=16,
        ),
    ] = ()
    source_labels: Annotated[
        Labels | None, Meta(description="Labels of the sender's VPCAttachment, with exact values.")
    ] = None
    hostnames: Annotated[
        tuple[HostText, ...], Meta(description="Host names, `*.` in front is a wildcard.", max_length=256)
    ] = ()
    methods: Annotated[
        tuple[Method, ...],
        Meta(
            description="Methods of requests. Unreadable traffic is never allowed by these, but denied.", max_length=64
        ),
    ] = ()
    path_prefixes: Annotated[
        tuple[PathText, ...],
        Meta(
            description="Paths of requests begin with one of these, by whole segments. Unreadable traffic is never "
            "allowed by these, but denied.",
            max_length=64,
        ),
    ] = ()


class EgressTls(SpecPart, frozen=True, kw_only=True):
    """TLS towards the destination."""

    enabled: Annotated[bool, Meta(description="Whether plain requests for this destination are sent to it by TLS.")] = (
        False
    )
    sni: Annotated[
        HostText | None, Meta(description="Server name that is sent and verified; the endpoint if not given.")
    ] = None
    insecure: Annotated[bool, Meta(description="Accept any certificate. For tests only.")] = False
    ca_secret_name: Annotated[Name | None, Meta(description="Secret with the CAs that are trusted.")] = None
    client_certificate_secret_name: Annotated[
        Name | None, Meta(description="Secret with our own certificate, shown to a server that asks for one.")
    ] = None
    min_version: Annotated[TlsVersion, Meta(description="Lowest TLS version.")] = TlsVersion.TLS_1_2


class EgressDestination(SpecPart, frozen=True, kw_only=True):
    """An external service."""

    endpoint: Annotated[HostText, Meta(description="IP address or host name.")]
    port: Annotated[Port, Meta(description="Port.")]
    tls: Annotated[EgressTls | None, Meta(description="TLS towards it.")] = None


class EgressRateLimit(SpecPart, frozen=True, kw_only=True):
    """How many requests are let through."""

    requests_per_second: Annotated[int, Meta(description="Requests per second.", ge=1, le=MAX_COUNT)]
    burst_size: Annotated[int, Meta(description="Requests at once.", ge=1, le=MAX_COUNT)] | None = None


class VPCEgressSpec(SpecPart, frozen=True, kw_only=True):
    """Whose traffic, where to, and whether it may pass."""

    source_vpc_attachment: Annotated[
        Name | None,
        Meta(description="Attachment whose traffic this is about; the whole namespace without it and sourceSelector."),
    ] = None
    source_selector: Annotated[LabelSelector | None, Meta(description="Attachments by label.")] = None
    match: Annotated[EgressMatch | None, Meta(description="Conditions on the traffic.")] = None
    destinations: Annotated[
        tuple[EgressDestination, ...],
        Meta(description="External services that are meant; any if empty.", max_length=64),
    ] = ()
    policy: Annotated[Verdict, Meta(description="What happens to the traffic.")] = Verdict.ALLOW
    priority: Annotated[int, Meta(description="Lower numbers first; Deny wins a tie.", ge=0, le=65535)] = 1000
    default_action: Annotated[
        Verdict | None, Meta(description="What happens to other traffic of the same source; Deny if no rule says.")
    ] = None
    connector_ref: Annotated[LocalRef | None, Meta(description="Connector that the traffic takes.")] = None
    timeouts: Annotated[Timeouts | None, Meta(description="Time limits.")] = None
    retries: Annotated[Retries | None, Meta(description="When a failed attempt is tried again.")] = None
    log: Annotated[bool, Meta(description="Whether the traffic is logged.")] = False
    rate_limit: Annotated[EgressRateLimit | None, Meta(description="How many requests are let through.")] = None


class VPCEgressStatus(StatusPart, frozen=True, kw_only=True):
    """What the router made of the egress."""

    observed_generation: ObservedGeneration = 0
    active: Annotated[bool, Meta(description="Whether the rule is in force.")] = False
    connection_count: Annotated[Count, Meta(description="Connections that it let through and that are open.")] = 0
    conditions: Conditions = ()


class VPCEgress(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Which traffic may leave a VPC, and where to."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: VPCEgressSpec
    status: VPCEgressStatus | None = None
