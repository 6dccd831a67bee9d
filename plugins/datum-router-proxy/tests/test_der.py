"""Reading the URIs and the end of our own certificate, against `cryptography`, and whatever else may be given."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from datum_router.policy.der import elements, ends_at, uri_names

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def certificate(*names: x509.GeneralName) -> bytes:
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(KEY.public_key()).serial_number(1).not_valid_before(NOW)
    builder = builder.not_valid_after(NOW + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


URI = x509.UniformResourceIdentifier


def test_uris_are_found_among_other_names() -> None:
    ids = ("spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/" + "a" * 300)
    assert uri_names(certificate(x509.DNSName("a.example"), URI(ids[0]), URI(ids[1]))) == ids
    assert uri_names(certificate(x509.DNSName("a.example"))) == ()
    assert uri_names(certificate()) == ()


def test_the_end_is_found_in_both_forms_of_time() -> None:
    assert ends_at(certificate()) == (NOW + datetime.timedelta(days=1)).timestamp()
    late = datetime.datetime(2070, 1, 1, tzinfo=datetime.UTC)  # from 2050 on it is a GeneralizedTime
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(KEY.public_key()).serial_number(1).not_valid_before(NOW).not_valid_after(late)
    der = builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    assert ends_at(der) == late.timestamp()
    assert ends_at(b"") is None


WHOLE = certificate(URI("spiffe://example.org/web"))


@given(at=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_broken_input_yields_nothing_or_text(at: int, byte: int, cut: bool) -> None:
    data = WHOLE[:at] if cut else WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :]
    assert all(isinstance(name, str) for name in uri_names(data))
    assert ends_at(data) is None or isinstance(ends_at(data), float)
    assert sum(len(content) for _, content in elements(data)) <= len(data)


@given(data=st.binary(max_size=64))
def test_any_bytes_come_to_an_end(data: bytes) -> None:
    assert len(list(elements(data))) <= len(data)
    assert uri_names(data) == () or b"\x86" in data
