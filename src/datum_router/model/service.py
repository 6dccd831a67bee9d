"""A service as the data plane sees it: protocol, endpoints, health policy, TLS to the upstream."""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, Locality
from datum_router.model.policy import ActiveHealthPolicy, ConnectionLimits, OutlierPolicy

ServiceKey = NewType("ServiceKey", str)
"""`namespace/name` of a VPCService."""


class UpstreamProtocol(enum.StrEnum):
    """What is spoken to a service's endpoints. HTTPS negotiates by ALPN; H2C and GRPC use HTTP/2 prior knowledge.

    TCP: nothing that the router knows; only listeners that carry bytes use it.
    """

    HTTP = "HTTP"
    HTTPS = "HTTPS"
    H2C = "H2C"
    GRPC = "GRPC"
    TCP = "TCP"


class UpstreamTls(msgspec.Struct, frozen=True, kw_only=True):
    """TLS to the upstream.

    Attributes:
        server_name: For SNI and verification; empty = the endpoint's address.
        ca_pem: CA bundle; empty = the system's.
        is_verified: False accepts any certificate (a loud warning goes with it).
        min_version: `1.2` or `1.3`.
    """

    server_name: str = ""
    ca_pem: str = ""
    is_verified: bool = True
    min_version: str = "1.2"


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled VPCService.

    Attributes:
        active: None switches probes off.
        panic_threshold_percent: Below this share of usable endpoints health is ignored; 0 = never ignore.
    """

    key: ServiceKey
    protocol: UpstreamProtocol = UpstreamProtocol.HTTP
    endpoints: tuple[Endpoint, ...] = ()
    active: ActiveHealthPolicy | None = None
    outlier: OutlierPolicy | None = None
    panic_threshold_percent: int = 50
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 60.0
    limits: ConnectionLimits = ConnectionLimits()
    tls: UpstreamTls | None = None
    locality: Locality = UNKNOWN_LOCALITY
