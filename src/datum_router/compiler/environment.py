"""Certificates that the gateway itself is given, beside those that manifests name: `ROUTER_TLS_*`, `ROUTER_CLIENT_*`.

Whoever reads their files puts them into the store as Secrets of a namespace of their own, so that they are validated,
kept when they break, and looked at like all others. What they are for is said here.
"""

from __future__ import annotations

from typing import Final

import msgspec

from datum_router.manifests.secret import Secret
from datum_router.model.listener import Listener, TlsBinding
from datum_router.plugins.protocols import ManifestView

NAMESPACE: Final = "datum-router-environment"
SERVER: Final = "router-tls"
CLIENT: Final = "router-client"
AUTHORITIES: Final = "router-client-ca"
HTTPS_PORT: Final = 8443


class OwnCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway is given.

    Attributes:
        has_server: A certificate for clients: HTTPS on 8443, and for server names that no VPCIngress has one for.
        has_client: An identity for services in mode Mutual that name none.
        has_authorities: CAs for services that name none; else the system's.
        is_verifying: False: the certificate of a service that names neither CAs nor names is not verified.
    """

    has_server: bool = False
    has_client: bool = False
    has_authorities: bool = False
    is_verifying: bool = True


NOTHING: Final = OwnCredentials()


def pair(view: ManifestView, name: str) -> tuple[str, str] | None:
    """Return certificate and key of one of the gateway's own Secrets; None if they could not be read yet."""
    secret = view.get("Secret", NAMESPACE, name)
    return secret.pair() if isinstance(secret, Secret) else None


def authorities(view: ManifestView) -> str:
    """Return the gateway's own CA bundle; empty if it could not be read yet."""
    secret = view.get("Secret", NAMESPACE, AUTHORITIES)
    return (secret.text("ca.crt") or "").strip() if isinstance(secret, Secret) else ""


def own_listener(view: ManifestView, own: OwnCredentials, host: str) -> Listener | None:
    """Return the HTTPS listener that serves all routes by the gateway's own certificate; None without one."""
    found = pair(view, SERVER) if own.has_server else None
    if found is None:
        return None
    binding = TlsBinding(cert_pem=found[0], key_pem=found[1])
    return Listener(name=f"https-{HTTPS_PORT}", host=host, port=HTTPS_PORT, tls=(binding,))


def with_default(listener: Listener, own: Listener | None) -> Listener:
    """Return a listener that shows the gateway's own certificate to clients that ask for a name nobody else has."""
    if own is None or not listener.tls:
        return listener
    return msgspec.structs.replace(listener, tls=(*own.tls, *listener.tls))
