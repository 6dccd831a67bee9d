"""Certificates and private keys: how they are loaded, and whether a pair can be served.

The data plane loads pairs for its listeners; whoever reads manifests asks the same functions beforehand, so that a
pair that no listener could serve is told at the Secret.

Key text is never logged, and never reaches a disk: OpenSSL reads it from an anonymous memory file.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from datum_router.manifests.problem import Problem
from datum_router.reasons import Reason

if TYPE_CHECKING:  # workers load pairs, too, and have no use for manifests' types
    from datum_router.manifests.secret import Secret

TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""TLS 1.2 suites: forward secrecy and AEAD only (RFC 9325 section 4.2; RFC 9113 appendix A forbids the others)."""

# OpenSSL's names for it: keys of one type that differ, and a key of another type (RSA, EC) than the certificate's.
_MISMATCH = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
_TOO_WEAK = {
    "EE_KEY_TOO_SMALL": "the key of the certificate is too short to be served",
    "CA_KEY_TOO_SMALL": "the key of an intermediate certificate is too short to be served",
    "CA_MD_TOO_WEAK": "a certificate is signed with a digest that is too weak to be served",
}
"""What OpenSSL's security level refuses though it can be read, by OpenSSL's names."""
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def server_context(min_version: str) -> ssl.SSLContext:
    """Return a context for the listening side; `min_version` is 1.2 or 1.3."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS.get(min_version, ssl.TLSVersion.TLSv1_2)
    context.set_ciphers(TLS12_CIPHERS)
    harden(context)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def harden(context: ssl.SSLContext) -> None:
    """Set what every context of the data plane has, either role.

    No compression (CRIME), no renegotiation (RFC 9113 section 9.2.1), and an end without close_notify is an error:
    CPython asks OpenSSL to take it for a clean end, which would hide truncation.
    """
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 1 << 7)


def load_pair(context: ssl.SSLContext, cert_pem: str, key_pem: str) -> None:
    """Load a certificate chain and its key into a context. Takes about a millisecond.

    Raises:
        ValueError, ssl.SSLError, OSError: They cannot be used; `explain` says why.
    """
    if not cert_pem.strip() or not key_pem.strip():
        raise ValueError("certificate or key is empty, expected PEM text")
    with pem_file(cert_pem) as cert, pem_file(key_pem) as key:
        context.load_cert_chain(cert, key, password=_refuse_password)


def validate_secret(secret: Secret) -> Iterator[Problem]:
    """Yield why the pair of a Secret cannot be served, if it holds one; never any text of it."""
    cert_pem, key_pem = secret.text("tls.crt"), secret.text("tls.key")
    if cert_pem is None or key_pem is None:
        return
    name, hint = "tls.key", "put the whole key there, without a passphrase"
    try:
        load_pair(server_context("1.2"), cert_pem, key_pem)
        return
    except ssl.SSLError as exc:
        if exc.reason in _MISMATCH:
            message = explain(exc)
            hint = "the first certificate of tls.crt must be the one that was issued for this key; intermediates follow"
        elif exc.reason in _TOO_WEAK:
            name, message = "tls.crt", explain(exc)
            hint = "issue a new one: ECDSA, or RSA of at least 2048 bits, signed with SHA-256 or better"
        elif _is_readable(cert_pem):
            message = "the private key cannot be read"
        else:
            name, hint = "tls.crt", "put the whole certificate there, then its intermediates"
            message = "a certificate cannot be read"
    except ValueError as exc:
        message = str(exc)
    except OSError:
        return  # out of descriptors, say: nothing that is wrong with the Secret
    yield Problem(
        path=f"{'stringData' if name in (secret.string_data or {}) else 'data'}[{name!r}]",
        reason=Reason.INVALID_VALUE,
        message=message,
        hint=hint,
    )


def _is_readable(cert_pem: str) -> bool:
    # What stands around the blocks may be written in any letters; Python takes only ASCII here.
    text = cert_pem.encode("ascii", "replace").decode("ascii")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        return False
    return True


def _refuse_password() -> str:
    # Without this OpenSSL would ask on the terminal.
    raise ValueError("private key is encrypted, expected one without a passphrase")


def explain(exc: Exception) -> str:
    """Return why `load_pair` failed, without any PEM text."""
    if isinstance(exc, ssl.SSLError):
        if exc.reason in _MISMATCH:
            return "certificate and private key do not belong together"
        if exc.reason in _TOO_WEAK:
            return _TOO_WEAK[exc.reason]
        return f"certificate or key cannot be read ({exc.reason or 'no PEM block found'})"
    if isinstance(exc, ValueError):
        return str(exc)
    return f"certificate or key cannot be loaded ({exc.strerror if isinstance(exc, OSError) else type(exc).__name__})"


@contextlib.contextmanager
def pem_file(text: str) -> Iterator[str]:
    """Give the text as a path that OpenSSL can open: an anonymous memory file, or a private file removed at once."""
    data = text.encode("utf-8")
    try:
        fd = os.memfd_create("pem", os.MFD_CLOEXEC)
    except OSError:  # a kernel or a seccomp profile without it
        with tempfile.TemporaryDirectory(prefix="datum-router-") as folder:  # made with mode 0700
            path = os.path.join(folder, "pem")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            yield path
        return
    with os.fdopen(fd, "wb", closefd=True) as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"
