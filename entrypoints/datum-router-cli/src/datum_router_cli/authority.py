"""A development CA: makes certificates with names that `datum_router.policy.peer_names` knows. Pure but for its keys.

Not for production: its key lies in a file, nothing is revoked but by `Authority.revocations`, and nobody renews what it
issues. There, cert-manager or SPIRE do the same and keep the key.

Whoever imports this needs the package `cryptography` (the extra `certs`); `certs` does so only when it is asked to.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from datum_router.errors import ConfigError
from datum_router.policy.peer_names import is_spiffe_id
from datum_router.reasons import Reason

SKEW: Final = datetime.timedelta(minutes=5)
"""How long before now a certificate begins: clocks of peers differ."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate and its key, as PEM text; the key never appears in a representation."""

    cert_pem: str
    key_pem: str

    def __repr__(self) -> str:
        return "Pair(cert_pem=..., key_pem=<redacted>)"


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """From when to when a certificate is valid; whole seconds, UTC."""

    begins_at: datetime.datetime
    ends_at: datetime.datetime


def period(now: datetime.datetime, days: int) -> Period:
    """Return so many days from now, and `SKEW` before it."""
    start = now.replace(microsecond=0)
    return Period(begins_at=start - SKEW, ends_at=start + datetime.timedelta(days=days))


class Authority:
    """A CA that can issue.

    Attributes:
        cert_pem: Its certificate.
    """

    __slots__ = ("_cert", "_key", "cert_pem")

    def __init__(self, pair: Pair) -> None:
        """Take certificate and key of a CA.

        Raises:
            ConfigError: They cannot be read, do not belong together, or are no CA's.
        """
        try:
            self._cert = x509.load_pem_x509_certificate(pair.cert_pem.encode())
            key = serialization.load_pem_private_key(pair.key_pem.encode(), None)
        except (ValueError, TypeError):
            # Not chained: what the library says may quote the text.
            raise ConfigError("ca: certificate or key cannot be read", reason=Reason.INVALID_VALUE) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._cert.public_key():
            raise ConfigError("ca: certificate and key do not belong together", reason=Reason.INVALID_VALUE)
        constraints = _extension(self._cert, x509.BasicConstraints)
        if constraints is None or not constraints.ca:
            raise ConfigError("ca: found the certificate of no CA", reason=Reason.INVALID_VALUE)
        self._key = key
        self.cert_pem = pair.cert_pem

    @property
    def trust_domain(self) -> str:
        """Return the trust domain that stands in the CA's certificate; empty if none does."""
        domains = [uri.removeprefix("spiffe://") for uri in names_in(self._cert)[0] if is_spiffe_id(uri)]
        return domains[0].partition("/")[0] if len(domains) == 1 else ""

    def issue(
        self,
        common_name: str,
        *,
        valid: Period,
        uris: Sequence[str] = (),
        dns: Sequence[str] = (),
    ) -> Pair:
        """Issue a certificate for both roles, server and client.

        Args:
            common_name: For people; nobody takes it for an identity.
            uris, dns: Subject alternative names; with neither it has none.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = _builder(_name(common_name), self._cert.subject, key.public_key(), valid)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(is_ca=False), critical=True)
        builder = builder.add_extension(usage, critical=False)
        builder = builder.add_extension(_issuer_id(self._cert), critical=False)
        if uris or dns:
            builder = builder.add_extension(_alternatives(uris, dns), critical=False)
        return _pair(builder, key, self._key)

    def revocations(self, certificates: Iterable[str], *, valid: Period) -> str:
        """Return a revocation list, as PEM text, with these certificates (PEM) of this CA."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._cert.subject)
        builder = builder.last_update(valid.begins_at).next_update(valid.ends_at)
        for pem in certificates:
            serial = x509.load_pem_x509_certificate(pem.encode()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(valid.begins_at)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def intermediate(self, common_name: str, *, valid: Period, permitted_dns: Sequence[str] = ()) -> Pair:
        """Issue the certificate of a CA below this one.

        Args:
            permitted_dns: Domains for which it may issue; empty = all.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(common_name), self._cert.subject, key.public_key(), valid)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(is_ca=True), critical=True)
        builder = builder.add_extension(_issuer_id(self._cert), critical=False)
        if permitted_dns:
            constraints = x509.NameConstraints([x509.DNSName(one) for one in permitted_dns], None)
            builder = builder.add_extension(constraints, critical=True)
        return _pair(builder, key, self._key)


def make_authority(common_name: str, *, valid: Period, trust_domain: str = "", path_length: int | None = 0) -> Pair:
    """Return certificate and key of a new CA.

    Args:
        trust_domain: Stands in it as `spiffe://DOMAIN`, as SPIFFE has it for signing certificates.
        path_length: How many CAs may stand below it; None = any number.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(common_name), _name(common_name), key.public_key(), valid)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    builder = builder.add_extension(_key_usage(is_ca=True), critical=True)
    if trust_domain:
        builder = builder.add_extension(_alternatives((f"spiffe://{trust_domain}",), ()), critical=False)
    return _pair(builder, key, key)


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a certificate, for people and machines."""

    subject: str
    issuer: str
    uris: tuple[str, ...]
    dns: tuple[str, ...]
    is_ca: bool
    begins_at: datetime.datetime
    ends_at: datetime.datetime
    sha256: str


def describe(pem: str) -> list[Described]:
    """Return what stands in each certificate of a PEM text, in order.

    Raises:
        ConfigError: There is none, or one cannot be read.
    """
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise ConfigError(
            "found no certificate that can be read, expected PEM text", reason=Reason.INVALID_VALUE
        ) from None
    out = []
    for one in found:
        uris, dns = names_in(one)
        constraints = _extension(one, x509.BasicConstraints)
        out.append(
            Described(
                subject=one.subject.rfc4514_string(),
                issuer=one.issuer.rfc4514_string(),
                uris=tuple(uris),
                dns=tuple(dns),
                is_ca=constraints is not None and constraints.ca,
                begins_at=one.not_valid_before_utc,
                ends_at=one.not_valid_after_utc,
                sha256=one.fingerprint(hashes.SHA256()).hex(),
            )
        )
    return out


def names_in(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """Return URIs and DNS names of a certificate."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        return [], []
    return (
        names.get_values_for_type(x509.UniformResourceIdentifier),
        names.get_values_for_type(x509.DNSName),
    )


E = TypeVar("E", bound=x509.ExtensionType)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])] if common_name else [])


def _alternatives(uris: Sequence[str], dns: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [*(x509.UniformResourceIdentifier(one) for one in uris), *(x509.DNSName(one) for one in dns)]
    )


def _issuer_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]  # an EC key


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, valid: Period
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(valid.begins_at).not_valid_after(valid.ends_at)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _pair(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Pair:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    cert = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return Pair(cert_pem=cert.decode(), key_pem=private.decode())
