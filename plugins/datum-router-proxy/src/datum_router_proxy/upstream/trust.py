"""Whom we take an upstream for, and who we say we are: client contexts out of `UpstreamTls`.

Theory of operation. OpenSSL verifies the chain, its dates and constraints, and the server name. Where names are pinned
(`subject_alt_names`) the server name is sent only, and the certificate's own names are compared as soon as the
handshake is complete, before a byte of a request is written; `PinnedObject` does so, so that requests and probes, which
handshake in different ways, cannot differ in it. A context without certificate where there should be one cannot be
made.
"""

from __future__ import annotations

import contextlib
import functools
import ssl

from datum_router.model.service import UpstreamTls
from datum_router.policy.peer_names import NameList, names_of
from datum_router_proxy.certificate import harden, load_authorities, load_pair

CONTEXT_CACHE = 256
"""Client contexts kept, one per distinct (UpstreamTls, ALPN list)."""

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_MAX_SHOWN = 300
"""Characters of a certificate's names in an error message."""


class PinnedContext(ssl.SSLContext):
    """A client context that knows which names a certificate may have; None = the server name is verified."""

    pins: NameList | None = None


class PinnedObject(ssl.SSLObject):
    """An SSL object whose handshake ends in an error if the certificate has none of the pinned names."""

    def do_handshake(self) -> None:
        """Go on with the handshake.

        Raises:
            ssl.SSLCertVerificationError: The chain is trusted, but it is somebody else's.
            ssl.SSLError: As ever.
        """
        super().do_handshake()
        context = self.context
        if isinstance(context, PinnedContext) and context.pins is not None:
            check_pins(self, context.pins)


def check_pins(connection: ssl.SSLObject, pins: NameList) -> None:
    """Compare the names of a verified certificate.

    Raises:
        ssl.SSLCertVerificationError: None of them is pinned.
    """
    names = names_of((connection.getpeercert() or {}).get("subjectAltName", ()))  # type: ignore[arg-type]
    if not pins.match(names):
        said = str(names).encode("ascii", "backslashreplace").decode("ascii")
        error = ssl.SSLCertVerificationError(1, "certificate has no pinned name")
        error.verify_message = f"found {said[:_MAX_SHOWN]}, which is not in subjectAltNames"
        raise error


@functools.lru_cache(maxsize=CONTEXT_CACHE)
def client_context(tls: UpstreamTls, alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Return the context for these settings; a memo of a pure function, since loading CA bundles takes milliseconds.

    Raises:
        ssl.SSLError, ValueError: The CA bundle, or our certificate and key, cannot be used.
    """
    context = PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslobject_class = PinnedObject
    context.minimum_version = _VERSIONS.get(tls.min_version, ssl.TLSVersion.TLSv1_2)
    harden(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if not tls.is_verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_pem:
        load_authorities(context, tls.ca_pem)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if tls.is_verified and tls.subject_alt_names:
        context.check_hostname = False
        context.pins = NameList(tls.subject_alt_names)
    # The common name is not an identity (RFC 9110 section 4.3.4); OpenSSL would fall back on it.
    with contextlib.suppress(AttributeError):
        context.hostname_checks_common_name = False
    if tls.cert_pem or tls.key_pem:
        load_pair(context, tls.cert_pem, tls.key_pem)
    return context
