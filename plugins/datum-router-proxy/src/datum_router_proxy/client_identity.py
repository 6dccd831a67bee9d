"""Who a client is, by its certificate: contexts that ask for one, and what is made of it after the handshake.

Theory of operation. OpenSSL verifies chain, dates, purpose, constraints and revocation lists. What it does not know is
looked at here once the handshake is complete: the allow-list of names, and, since a session that is resumed is not
verified anew, the dates once more; when it ends is kept for the time after (see `server.clients`). A session can be
resumed only by contexts that ask for the same, in this worker or another: ticket keys are derived from CAs, lists and
names, too, so no session outlives what it was verified by.

A context that asks for certificates serves a handshake from its first byte: OpenSSL takes the mode of verification from
the context that a handshake began with, so that one which is put in its place by the server name would ask nobody. See
`server.tls`.
"""

from __future__ import annotations

import hashlib
import math
import ssl
from typing import cast

from datum_router.model.listener import ClientAuth
from datum_router.policy.client_cert_header import MAX_ELEMENT_BYTES, ClientCertificate, Subject, element
from datum_router.policy.der import uri_names
from datum_router.policy.peer_names import NameList, names_of
from datum_router_proxy.certificate import load_authorities, load_revocations

_MAX_SHOWN = 300
"""Characters of a certificate's names in a log line."""


class ClientRefused(Exception):
    """Report a client whose certificate is verified, and yet not let in; the message says why, in ASCII."""


class ClientSession:
    """What a connection was held to, and whom it is from; immutable.

    Attributes:
        policy: What was asked.
        header: Element of X-Forwarded-Client-Cert; empty if nothing is to be told.
        is_known: The client has shown a certificate.
        ends_at: Until when that certificate is good (its notAfter), Unix seconds; `math.inf` if none was shown.
    """

    __slots__ = ("ends_at", "header", "is_known", "policy")

    def __init__(
        self, policy: ClientAuth, *, header: bytes = b"", is_known: bool = False, ends_at: float = math.inf
    ) -> None:
        self.policy = policy
        self.header = header
        self.is_known = is_known
        self.ends_at = ends_at


class BindingContext(ssl.SSLContext):
    """The context of one TLS binding, and what it asks of clients.

    Attributes:
        policy: None = nothing.
        allowed: Names that are let in; None = all.
        by: URIs in our own certificate.
    """

    policy: ClientAuth | None = None
    allowed: NameList | None = None
    by: tuple[str, ...] = ()

    @property
    def asks_clients(self) -> bool:
        """Tell whether clients are asked for a certificate."""
        return self.policy is not None


def ask_clients(context: BindingContext, policy: ClientAuth, cert_pem: str) -> None:
    """Make a context ask for certificates.

    Args:
        cert_pem: Our own certificate.

    Raises:
        ssl.SSLError, ValueError, OSError: CAs or revocation lists cannot be used.
    """
    load_authorities(context, policy.ca_pem)
    if policy.crl_pem:
        load_revocations(context, policy.crl_pem)
    context.verify_mode = ssl.CERT_REQUIRED if policy.is_required else ssl.CERT_OPTIONAL
    context.allowed = NameList(policy.names) if policy.names else None
    context.by = uri_names(ssl.PEM_cert_to_DER_cert(_first_block(cert_pem))) if policy.is_forwarded else ()
    context.policy = policy


def _first_block(pem: str) -> str:
    begin = pem.index("-----BEGIN CERTIFICATE-----")
    end = "-----END CERTIFICATE-----"
    return pem[begin : pem.index(end, begin) + len(end)]


def admit(connection: ssl.SSLObject, *, now: float) -> ClientSession | None:
    """Return what is known of the client of a complete handshake; None if nothing was asked.

    Args:
        now: Unix seconds.

    Raises:
        ClientRefused: Its certificate is good, but not for this listener.
    """
    context = connection.context
    if not isinstance(context, BindingContext) or context.policy is None:
        return None
    policy = context.policy
    der = connection.getpeercert(True)
    if der is None:
        if policy.is_required:
            raise ClientRefused("no certificate")
        return ClientSession(policy)
    try:
        told = connection.getpeercert() or {}
        ends_at = ssl.cert_time_to_seconds(str(told["notAfter"]))
        names = names_of(cast("tuple[tuple[str, str], ...]", told.get("subjectAltName", ())))
    except (KeyError, ValueError) as error:  # names that are no text, say
        raise ClientRefused("a certificate that cannot be read") from error
    if now > ends_at:
        raise ClientRefused("a certificate that has expired")
    if context.allowed is not None and not context.allowed.match(names):
        said = str(names).encode("ascii", "backslashreplace").decode("ascii")[:_MAX_SHOWN]
        raise ClientRefused(f"a certificate for {said}, which is not in subjectAltNames")
    if not policy.is_forwarded:
        return ClientSession(policy, is_known=True, ends_at=ends_at)
    certificate = ClientCertificate(
        digest=hashlib.sha256(der).hexdigest(),
        names=names,
        subject=cast(Subject, told.get("subject", ())),
        pem=ssl.DER_cert_to_PEM_cert(der) if "Cert" in policy.details else "",
        chain_pem=_chain(connection, der) if "Chain" in policy.details else "",
    )
    header = element(certificate, policy.details, by=context.by)
    if len(header) > MAX_ELEMENT_BYTES:
        raise ClientRefused(f"a certificate of which more than {MAX_ELEMENT_BYTES} bytes would have to be told")
    return ClientSession(policy, header=header, is_known=True, ends_at=ends_at)


def _chain(connection: ssl.SSLObject, der: bytes) -> str:
    """Return what the client sent, its own certificate first; that alone if the session was resumed."""
    # A public method from Python 3.13 on; before that it is there under the private object.
    chain = connection._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]
    return "".join(ssl.DER_cert_to_PEM_cert(one.public_bytes(2)) for one in chain) or ssl.DER_cert_to_PEM_cert(der)


REFUSALS = frozenset({"CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE"})
"""What OpenSSL says when it does not take a client's certificate, or misses one."""


def is_refusal(error: Exception) -> bool:
    """Tell whether a handshake ended because of the client's certificate."""
    return isinstance(error, ClientRefused) or (isinstance(error, ssl.SSLError) and error.reason in REFUSALS)


def why(error: Exception) -> str:
    """Return why a client was refused, in ASCII."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or "").lower().replace("_", " ")
    return str(error)
