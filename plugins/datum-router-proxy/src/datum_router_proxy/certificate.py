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
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from datum_router.manifests.problem import Problem
from datum_router.reasons import Reason

if TYPE_CHECKING:  # workers load pairs, too, and have no use for manifests' types
    from datum_router.manifests.secret import ConfigMap, Secret

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


C = TypeVar("C", bound=ssl.SSLContext)


def server_context(min_version: str) -> ssl.SSLContext:
    """Return a context for the listening side; `min_version` is 1.2 or 1.3."""
    return serving(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), min_version)


def serving(context: C, min_version: str) -> C:
    """Return the context with all that the listening side has."""
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


def load_revocations(context: ssl.SSLContext, crl_pem: str) -> None:
    """Load revocation lists, and have them looked at for every certificate of a chain.

    Each CA of a chain needs a list that has not ended: whoever cannot be known not to be revoked is refused.

    Raises:
        ValueError, ssl.SSLError, OSError: They cannot be used.
    """
    if "X509 CRL" not in crl_pem:
        raise ValueError("found no PEM block of an X509 CRL")
    with pem_file(crl_pem) as path:
        context.load_verify_locations(cafile=path)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def validate_secret(secret: Secret) -> Iterator[Problem]:
    """Yield why pair, CA bundle or revocation lists of a Secret cannot be used, if it holds any; never text of them."""
    yield from _validate_pair(secret)
    place = secret.string_data or {}
    # cert-manager leaves ca.crt empty where the issuer does not tell it.
    ca_pem, crl_pem = secret.text("ca.crt") or "", secret.text("ca.crl") or ""
    if ca_pem.strip() and not _is_readable(ca_pem):
        yield _unreadable("ca.crt", place, "a certificate of the CA bundle cannot be read", "CERTIFICATE")
    if crl_pem.strip():
        try:
            load_revocations(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), crl_pem)
        except (ssl.SSLError, ValueError):
            yield _unreadable("ca.crl", place, "a revocation list cannot be read", "X509 CRL")
        except OSError:
            return  # out of descriptors, say


def validate_config_map(config_map: ConfigMap) -> Iterator[Problem]:
    """Yield why the CA bundle of a ConfigMap cannot be used, if it holds one."""
    ca_pem = (config_map.data or {}).get("ca.crt", "")
    if ca_pem.strip() and not _is_readable(ca_pem):
        yield _unreadable("ca.crt", {}, "a certificate of the CA bundle cannot be read", "CERTIFICATE")


def _unreadable(name: str, text_data: Mapping[str, str], message: str, label: str) -> Problem:
    return Problem(
        path=f"{'stringData' if name in text_data else 'data'}[{name!r}]",
        reason=Reason.INVALID_VALUE,
        message=message,
        hint=f"put whole PEM blocks there, each beginning with -----BEGIN {label}-----",
    )


def _validate_pair(secret: Secret) -> Iterator[Problem]:
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


def load_authorities(context: ssl.SSLContext, ca_pem: str) -> None:
    """Trust the certificates of a bundle, and only those: an intermediate as well as a root.

    cert-manager writes into `ca.crt` the one or the other, as the issuer has it.

    Raises:
        ssl.SSLError, ValueError: There is none, or one cannot be read.
    """
    # What stands around the blocks may be written in any letters; Python takes only ASCII here.
    context.load_verify_locations(cadata=ca_pem.encode("ascii", "replace").decode("ascii"))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _is_readable(cert_pem: str) -> bool:
    try:
        load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert_pem)
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
