"""Which certificate may speak for a peer: subject alternative names against pins and allow-lists. Pure.

Theory of operation. A pattern is a DNS name, a URI, or in an allow-list a SPIFFE ID that ends in `/*`. Names are
compared whole, with no normalising that could make two identities one:

- A DNS name is compared without regard to ASCII case (RFC 5280 section 7.2), and in no other way: a trailing dot is
  another name, and a wildcard in the certificate stands for nothing but itself, so that `*.shop.example` never speaks
  for `a.shop.example`.
- A URI is compared byte by byte, upper and lower case included. SPIFFE IDs must be in the form that the standard
  allows (SPIFFE-ID section 2); a certificate that holds several URIs has no SPIFFE ID at all (X.509-SVID section 2).
- `spiffe://example.org/*` stands for every ID of that trust domain with a path, `spiffe://example.org/ns/shop/*` for
  those below that path. That is sound since a path has neither empty nor dot segments, nor escapes.

The common name of the subject is never looked at (RFC 9525 section 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

MAX_PEER_NAME_CHARS: Final = 2048
"""Longest name; that of a SPIFFE ID (SPIFFE-ID section 2.3)."""

_SPIFFE: Final = "spiffe://"
_SEGMENT: Final = r"/([A-Za-z0-9_-]|\.[A-Za-z0-9_-]|\.\.[A-Za-z0-9._-])[A-Za-z0-9._-]*"
_SPIFFE_ID: Final = rf"spiffe://[a-z0-9._-]{{1,255}}({_SEGMENT})*"
_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_LAST_LABEL: Final = r"[0-9]{0,31}[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # not of digits alone: no IPv4 address
_DNS: Final = rf"(\*\.)?({_LABEL}\.)*{_LAST_LABEL}"
_URI: Final = r"https?://[!-~]+"

PIN_PATTERN: Final = rf"^({_SPIFFE_ID}|{_URI}|{_DNS})$"
"""What a certificate is to hold exactly; RE2 and Python read it alike."""
ALLOW_PATTERN: Final = rf"^({_SPIFFE_ID}(/\*)?|{_URI}|{_DNS})$"
"""The same, and prefixes of SPIFFE IDs."""

_IS_SPIFFE_ID: Final = re.compile(_SPIFFE_ID)
_IS_ALLOWED: Final = re.compile(ALLOW_PATTERN.removeprefix("^").removesuffix("$"))


class PeerNames(msgspec.Struct, frozen=True, kw_only=True):
    """The subject alternative names of a certificate, as they stand in it."""

    dns: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()

    @property
    def spiffe_id(self) -> str:
        """Return the certificate's one SPIFFE ID; empty if it has none, several URIs, or one that is malformed."""
        return self.uris[0] if len(self.uris) == 1 and is_spiffe_id(self.uris[0]) else ""

    def __str__(self) -> str:
        return ", ".join((*self.uris, *self.dns)) or "no name"


def names_of(alternatives: Iterable[tuple[str, str]]) -> PeerNames:
    """Return the names out of what `ssl` calls `subjectAltName`: (kind, value); those of `DNS` and `URI` count."""
    pairs = tuple(alternatives)
    return PeerNames(
        dns=tuple(value for kind, value in pairs if kind == "DNS"),
        uris=tuple(value for kind, value in pairs if kind == "URI"),
    )


def is_spiffe_id(text: str) -> bool:
    """Tell whether this is a SPIFFE ID in the form that the standard allows, with a path or without."""
    return len(text) <= MAX_PEER_NAME_CHARS and _IS_SPIFFE_ID.fullmatch(text) is not None


def is_pattern(text: str) -> bool:
    """Tell whether this can stand in an allow-list, or, without `/*` at its end, be a pin."""
    return len(text) <= MAX_PEER_NAME_CHARS and _IS_ALLOWED.fullmatch(text) is not None


class NameList:
    """Patterns, ready to be compared; what `is_pattern` refuses matches nothing."""

    __slots__ = ("_dns", "_prefixes", "_spiffe", "_uris")

    def __init__(self, patterns: Iterable[str]) -> None:
        known = [text for text in patterns if is_pattern(text)]
        spiffe = [text for text in known if text.startswith(_SPIFFE)]
        self._spiffe = frozenset(text for text in spiffe if not text.endswith("/*"))
        self._prefixes = tuple(text[:-1] for text in spiffe if text.endswith("/*"))
        self._uris = frozenset(text for text in known if text.startswith(("http://", "https://")))
        self._dns = frozenset(text.lower() for text in known if "://" not in text)

    def match(self, names: PeerNames) -> str:
        """Return the name of the certificate that a pattern stands for, empty if none does."""
        identity = names.spiffe_id
        if identity and (identity in self._spiffe or (self._prefixes and identity.startswith(self._prefixes))):
            return identity
        for uri in names.uris:
            if uri in self._uris:
                return uri
        for name in names.dns:
            if name.isascii() and name.lower() in self._dns:
                return name
        return ""
