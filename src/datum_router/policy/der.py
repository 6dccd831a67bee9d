"""The little of DER that `ssl` does not tell of a certificate of our own: its URIs and when it ends. Pure.

`ssl` describes the certificates of peers, not those that it serves. What is read here was loaded by OpenSSL before;
still every length is checked, and what is not as expected yields nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Final

SUBJECT_ALT_NAME: Final = bytes.fromhex("551d11")
"""OID 2.5.29.17 (RFC 5280 section 4.2.1.6)."""

_SEQUENCE: Final = 0x30
_OCTETS: Final = 0x04
_OID: Final = 0x06
_EXTENSIONS: Final = 0xA3
_URI: Final = 0x86
_VERSION: Final = 0xA0
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""UTCTime and GeneralizedTime as certificates have them (RFC 5280 section 4.1.2.5)."""

Element = tuple[int, bytes]


def elements(data: bytes) -> Iterator[Element]:
    """Yield tag and content of the elements that stand side by side; ends early where they are broken."""
    at = 0
    while at + 2 <= len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 4 or at + count > len(data):
                return
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + size > len(data):
            return
        yield tag, data[at : at + size]
        at += size


def _inside(data: bytes, tag: int) -> bytes:
    """Return the content of the first element of this tag; empty if there is none."""
    return next((content for found, content in elements(data) if found == tag), b"")


def uri_names(certificate: bytes) -> tuple[str, ...]:
    """Return the URIs among the subject alternative names of a certificate (RFC 5280 section 4.1)."""
    body = _inside(_inside(certificate, _SEQUENCE), _SEQUENCE)
    extensions = _inside(_inside(body, _EXTENSIONS), _SEQUENCE)
    for tag, extension in elements(extensions):
        if tag == _SEQUENCE and _inside(extension, _OID) == SUBJECT_ALT_NAME:
            names = _inside(_inside(extension, _OCTETS), _SEQUENCE)
            return tuple(content.decode("ascii", "replace") for kind, content in elements(names) if kind == _URI)
    return ()


def ends_at(certificate: bytes) -> float | None:
    """Return when a certificate ends, in Unix seconds (RFC 5280 section 4.1.2.5); None if that cannot be read."""
    fields = list(elements(_inside(_inside(certificate, _SEQUENCE), _SEQUENCE)))
    # serialNumber, signature, issuer, validity
    at = 4 if fields and fields[0][0] == _VERSION else 3
    times = list(elements(fields[at][1])) if len(fields) > at else []
    if len(times) != 2 or times[1][0] not in _TIMES:
        return None
    try:
        found = datetime.datetime.strptime(times[1][1].decode("ascii"), _TIMES[times[1][0]])
    except ValueError:
        return None
    # strptime takes two-digit years from 69 on for the last century, RFC 5280 from 50 on: no certificate is that old.
    return found.replace(tzinfo=datetime.UTC).timestamp()
