"""From when until when a certificate is valid, read out of its PEM text. Pure, and only as much X.509 as that takes.

Sources: RFC 5280 sections 4.1 and 4.1.2.5 (TBSCertificate, Validity), X.690 sections 8.1 and 10.1 (DER), RFC 7468
(PEM).
"""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Iterator

import msgspec

EXPIRY_WARNING_S = 14 * 86_400.0
"""A certificate with less left than this is spoken of (threat F5)."""

_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"
_INTEGER, _SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x02, 0x30, 0xA0, 0x17, 0x18


class Validity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Unix seconds; both ends belong to it (RFC 5280 section 4.1.2.5)."""

    not_before: float
    not_after: float


def read_validity(pem: str) -> Validity | None:
    """Return the validity of the first certificate of a chain, the one of the server; None if it cannot be read."""
    return next(_validities(pem), None)


def read_bundle_validity(pem: str) -> Validity | None:
    """Return from when until when one certificate of a bundle is valid at least; None if none of them can be read."""
    found = [one for one in _validities(pem) if one is not None]
    if not found:
        return None
    return Validity(not_before=min(one.not_before for one in found), not_after=max(one.not_after for one in found))


def _validities(pem: str) -> Iterator[Validity | None]:
    """Yield the validity of each certificate in a text, None for one that cannot be read."""
    at = 0
    while (start := pem.find(_BEGIN, at)) >= 0 and (end := pem.find(_END, start)) >= 0:
        yield _read(pem[start + len(_BEGIN) : end])
        at = end + len(_END)


def _read(text: str) -> Validity | None:
    try:
        der = base64.b64decode("".join(text.split()), validate=True)
        certificate, _ = _enter(der, 0, _SEQUENCE)
        at, _ = _enter(der, certificate, _SEQUENCE)
        if der[at] == _VERSION:
            at = _skip(der, at)
        for kind in (_INTEGER, _SEQUENCE, _SEQUENCE):  # serial number, signature algorithm, issuer
            _enter(der, at, kind)
            at = _skip(der, at)
        at, _ = _enter(der, at, _SEQUENCE)
        return Validity(not_before=_time(der, at), not_after=_time(der, _skip(der, at)))
    except (binascii.Error, IndexError, ValueError):
        return None


def _head(der: bytes, at: int) -> tuple[int, int]:
    """Return where the content of an element begins and ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        width = length & 0x7F
        if not 1 <= width <= 4:
            raise ValueError("length of no DER element")
        length, start = int.from_bytes(der[start : start + width], "big"), start + width
    if start + length > len(der):
        raise ValueError("element goes beyond the text")
    return start, start + length


def _enter(der: bytes, at: int, kind: int) -> tuple[int, int]:
    if der[at] != kind:
        raise ValueError("element of another type")
    return _head(der, at)


def _skip(der: bytes, at: int) -> int:
    return _head(der, at)[1]


def _time(der: bytes, at: int) -> float:
    start, end = _head(der, at)
    text = der[start:end].decode("ascii", "strict")
    if der[at] == _UTC_TIME:  # two digits of the year: 50 to 99 are of the last century
        text = ("19" if text[:2] >= "50" else "20") + text
    elif der[at] != _GENERALIZED_TIME:
        raise ValueError("element of another type")
    moment = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ")
    return moment.replace(tzinfo=datetime.UTC).timestamp()
