"""Listeners: bound addresses with their TLS bindings and limits."""

from __future__ import annotations

import msgspec


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
    """A certificate for some host names. `cert_pem` and `key_pem` are PEM text; never logged or dumped.

    Attributes:
        client_auth: Which certificates clients show; None = they are not asked.
    """

    hostnames: tuple[str, ...] = ()
    cert_pem: str = ""
    key_pem: str = ""
    client_auth: ClientAuth | None = None

    def __repr__(self) -> str:
        auth = "" if self.client_auth is None else f", client_auth={self.client_auth!r}"
        return f"TlsBinding(hostnames={self.hostnames!r}, cert_pem=<redacted>, key_pem=<redacted>{auth})"


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """One bound address.

    Attributes:
        name: Unique, for example `plain` or `production/shop:https`.
        host: IP literal to bind; port 0 lets the kernel choose.
        tls: Empty = plain: HTTP/1.1 and HTTP/2 with prior knowledge. The first binding serves unknown SNI names.
        alpn: Offered protocols in order of preference.
        trusted_hops: How many proxies in front of us may be believed in X-Forwarded-For.
        max_request_body_bytes: 0 = no limit.
        hostnames: Hosts it serves, empty = any; a TLS listener answers 421 to others.
        attachment: In a data plane, of the listener as one connection sees it: the VPCAttachment (`namespace/name`)
            behind the interface that it came in by. Always empty in a snapshot.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 0
    tls: tuple[TlsBinding, ...] = ()
    alpn: tuple[str, ...] = ("h2", "http/1.1")
    min_tls_version: str = "1.2"
    trusted_hops: int = 0
    max_request_body_bytes: int = 0
    hostnames: tuple[str, ...] = ()
    attachment: str = ""
