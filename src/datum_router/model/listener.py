"""Listeners: bound addresses with their TLS bindings and limits."""

from __future__ import annotations

import enum

import msgspec

from datum_router.model.egress import EgressListener
from datum_router.model.filters import ReplyTemplate
from datum_router.model.limits import HostRateLimit


class ListenerMode(enum.StrEnum):
    """What a listener does with a connection.

    HTTP: it speaks HTTP, over TLS if there are bindings. PASSTHROUGH: it reads the server name of a TLS ClientHello and
    carries the bytes on as they are. TCP: it carries bytes on without looking at them.
    """

    HTTP = "HTTP"
    PASSTHROUGH = "TLS"
    TCP = "TCP"


class ClientAuth(msgspec.Struct, frozen=True, kw_only=True):
    """Which certificates clients show on connections for some host names. PEM text is never logged or dumped.

    Attributes:
        is_required: False: a client may show none; one that is shown must be good all the same.
        ca_pem: The CAs whose clients are taken.
        crl_pem: Revocation lists, one for each CA; empty = none is looked at.
        names: Allow-list, as `policy.peer_names` has it; empty = whoever the CAs have signed.
        is_forwarded: Requests carry X-Forwarded-Client-Cert.
        details: What that says beside By and Hash, of `Cert`, `Chain`, `Subject`, `URI` and `DNS`.
    """

    is_required: bool = True
    ca_pem: str = ""
    crl_pem: str = ""
    names: tuple[str, ...] = ()
    is_forwarded: bool = False
    details: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"ClientAuth(is_required={self.is_required}, names={self.names!r}, is_forwarded={self.is_forwarded}, "
            f"has_crl={bool(self.crl_pem)}, ca_pem=<redacted>)"
        )


class TlsBinding(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate for some host names, with how TLS is spoken for them.

    Attributes:
        hostnames: Exact lower-case names or `*.suffix`.
        cert_pem, key_pem: PEM text; never logged or dumped.
        client_auth: Which certificates clients show; None = they are not asked.
        min_version: `1.2` or `1.3`; empty = the listener's.
        alpn: Offered protocols in order of preference; empty = the listener's.
        ciphers: TLS 1.2 suites by OpenSSL's names; empty = the gateway's own choice. TLS 1.3 has its own, always on.
        identity: Bindings of one identity are one to a client: what a connection was opened for by one of them may be
            asked for the hosts of the other (RFC 9113 section 9.1.1), if they ask the same of clients (see
            `routing.client_guard`). It stays when a certificate is rotated.
        owner: VPCIngress (`namespace/name`), for metrics and messages.
    """

    hostnames: tuple[str, ...] = ()
    cert_pem: str = ""
    key_pem: str = ""
    client_auth: ClientAuth | None = None
    min_version: str = ""
    alpn: tuple[str, ...] = ()
    ciphers: tuple[str, ...] = ()
    identity: str = ""
    owner: str = ""

    def __repr__(self) -> str:
        auth = "" if self.client_auth is None else f", client_auth={self.client_auth!r}"
        return (
            f"TlsBinding(hostnames={self.hostnames!r}, owner={self.owner!r}, cert_pem=<redacted>, "
            f"key_pem=<redacted>{auth})"
        )


class HostPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What one VPCIngress wants for its hosts on a listener.

    Attributes:
        owner: The VPCIngress, `namespace/name`.
        hostnames: Exact lower-case names or `*.suffix`; those that an older one of the listener has are not among them.
        identity: Of the binding that serves them, see `TlsBinding`; empty without TLS.
        redirect_port: Port of the HTTPS listener that all requests are sent to instead of being served; None = served.
        hsts: Value of Strict-Transport-Security on every answer to a client that came by HTTPS; empty = none.
        is_logged: False keeps the requests out of the access log.
    """

    owner: str
    hostnames: tuple[str, ...] = ()
    identity: str = ""
    redirect_port: int | None = None
    hsts: str = ""
    is_logged: bool = True

    def said_hsts(self, scheme: str) -> str:
        """Return what answers to a client that came by `scheme` say: nothing but over TLS (RFC 6797 section 7.2)."""
        return self.hsts if scheme == "https" else ""


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """One bound address.

    Attributes:
        name: Unique, for example `plain` or `production/shop:https`.
        host: IP literal to bind; port 0 lets the kernel choose.
        mode: What is done with a connection.
        tls: Empty = plain: HTTP/1.1 and HTTP/2 with prior knowledge. The first binding serves unknown SNI names.
        is_sni_required: A handshake without a server name, or with one that no binding has, fails: no default.
        alpn: Offered protocols in order of preference.
        trusted_hops: How many proxies in front of us may be believed in X-Forwarded-For.
        trusted_proxies: Networks (CIDR) of peers that are believed, in X-Forwarded-For or a PROXY header; empty = all.
        has_proxy_protocol: Every connection begins with a PROXY header, version 1 or 2, of a trusted peer.
        max_request_body_bytes: 0 = no limit.
        replies: Bodies of the gateway's own answers.
        hostnames: Hosts it serves, empty = any; a TLS listener answers 421 to others.
        rate_limits: Of what comes in for some of its hosts, before routes are looked at.
        policies: What the owners of those hosts want for them.
        attachment: In a data plane, of the listener as one connection sees it: the VPCAttachment (`namespace/name`)
            behind the interface that it came in by. Always empty in a snapshot.
        egress: It is for outbound traffic, and serves no routes; None: it is for requests from outside.
        identity: Likewise: that of the binding that the connection's TLS handshake was made with.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 0
    mode: ListenerMode = ListenerMode.HTTP
    tls: tuple[TlsBinding, ...] = ()
    is_sni_required: bool = False
    alpn: tuple[str, ...] = ("h2", "http/1.1")
    min_tls_version: str = "1.2"
    trusted_hops: int = 0
    trusted_proxies: tuple[str, ...] = ()
    has_proxy_protocol: bool = False
    max_request_body_bytes: int = 0
    replies: tuple[ReplyTemplate, ...] = ()
    hostnames: tuple[str, ...] = ()
    rate_limits: tuple[HostRateLimit, ...] = ()
    policies: tuple[HostPolicy, ...] = ()
    attachment: str = ""
    egress: EgressListener | None = None
    identity: str = ""
