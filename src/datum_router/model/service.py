"""A service as the data plane sees it: protocol, endpoints, health policy, TLS to the upstream."""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, Locality
from datum_router.model.limits import BreakerPolicy
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


UNRESOLVED = "# unresolved reference\n"
"""Stands for PEM text that should be there and is not: no connection can be made with it (F7, no silent downgrade)."""


class UpstreamTls(msgspec.Struct, frozen=True, kw_only=True):
    """TLS to the upstream. Certificates and keys are PEM text; never logged or dumped.

    Attributes:
        server_name: For SNI and verification; empty = the endpoint's address.
        ca_pem: CA bundle; empty = the system's.
        is_verified: False accepts any certificate (a loud warning goes with it).
        min_version: `1.2` or `1.3`.
        subject_alt_names: Pins, as `policy.peer_names` has them: the certificate must hold one of them, and the server
            name is sent, but not verified (Gateway API BackendTLSPolicy). Empty = the server name is verified.
        cert_pem, key_pem: Our own identity (mutual TLS); empty = none. Both are `UNRESOLVED` if there should be one.
    """

    server_name: str = ""
    ca_pem: str = ""
    is_verified: bool = True
    min_version: str = "1.2"
    subject_alt_names: tuple[str, ...] = ()
    cert_pem: str = ""
    key_pem: str = ""

    def __repr__(self) -> str:
        identity = "<redacted>" if self.cert_pem or self.key_pem else "none"
        return (
            f"UpstreamTls(server_name={self.server_name!r}, ca_pem={'<redacted>' if self.ca_pem else 'system'}, "
            f"is_verified={self.is_verified}, min_version={self.min_version!r}, "
            f"subject_alt_names={self.subject_alt_names!r}, identity={identity})"
        )


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled VPCService.

    Attributes:
        active: None switches probes off.
        breaker: None: failures of the service as a whole never keep requests from it.
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
    breaker: BreakerPolicy | None = None
    tls: UpstreamTls | None = None
    locality: Locality = UNKNOWN_LOCALITY
