"""Listeners: bound addresses with their TLS bindings and limits."""

from __future__ import annotations

import msgspec

from datum_router.model.egress import EgressListener
from datum_router.model.filters import ReplyTemplate
from datum_router.model.limits import HostRateLimit


class TlsBinding(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate for some host names. `cert_pem` and `key_pem` are PEM text; never logged or dumped."""

    hostnames: tuple[str, ...] = ()
    cert_pem: str = ""
    key_pem: str = ""

    def __repr__(self) -> str:
        return f"TlsBinding(hostnames={self.hostnames!r}, cert_pem=<redacted>, key_pem=<redacted>)"


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """One bound address.

    Attributes:
        name: Unique, for example `plain` or `production/shop:https`.
        host: IP literal to bind; port 0 lets the kernel choose.
        tls: Empty = plain: HTTP/1.1 and HTTP/2 with prior knowledge. The first binding serves unknown SNI names.
        alpn: Offered protocols in order of preference.
        trusted_hops: How many proxies in front of us may be believed in X-Forwarded-For.
        max_request_body_bytes: 0 = no limit.
        replies: Bodies of the gateway's own answers.
        hostnames: Hosts it serves, empty = any; a TLS listener answers 421 to others.
        rate_limits: Of what comes in for some of its hosts, before routes are looked at.
        attachment: In a data plane, of the listener as one connection sees it: the VPCAttachment (`namespace/name`)
            behind the interface that it came in by. Always empty in a snapshot.
        egress: It is for outbound traffic, and serves no routes; None: it is for requests from outside.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 0
    tls: tuple[TlsBinding, ...] = ()
    alpn: tuple[str, ...] = ("h2", "http/1.1")
    min_tls_version: str = "1.2"
    trusted_hops: int = 0
    max_request_body_bytes: int = 0
    replies: tuple[ReplyTemplate, ...] = ()
    hostnames: tuple[str, ...] = ()
    rate_limits: tuple[HostRateLimit, ...] = ()
    attachment: str = ""
    egress: EgressListener | None = None
