"""X-Forwarded-Client-Cert: what a service is told about the certificate of a client, in Envoy's format. Pure.

One element stands for one hop: `key=value` pairs, joined by `;`; elements are joined by `,`. A value that holds one of
`,;="` or a blank is put in double quotes, with a backslash before each quote and backslash in it (the subject is always
quoted). Certificates are PEM with everything escaped that URLs escape. Nothing of a certificate can end its own value:
what is neither visible ASCII nor a blank is percent-encoded, in a subject escaped as RFC 2253 section 2.4 says.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from datum_router.policy.peer_names import PeerNames

FIELD: Final = b"x-forwarded-client-cert"
MAX_ELEMENT_BYTES: Final = 16_384
"""Longest element. A certificate of which more would have to be said is refused, since half of it would be a lie."""

_ATTRIBUTES: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "emailAddress": "emailAddress",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "serialNumber": "serialNumber",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "userId": "UID",
}
"""Short names of attributes by what `ssl` calls them (RFC 2253 section 2.3, and OpenSSL's for the others)."""
_QUOTED: Final = frozenset(',;="\\ ')

Subject = Sequence[Sequence[tuple[str, str]]]
"""Relative distinguished names as `ssl` tells them: each a list of (attribute, value)."""


class ClientCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """A client's certificate, verified.

    Attributes:
        digest: SHA-256 of its DER form, in lower-case hex.
        pem: Of the certificate; chain_pem: of it and the others that the client sent. Empty if nobody wants them.
    """

    digest: str
    names: PeerNames = PeerNames()
    subject: Subject = ()
    pem: str = ""
    chain_pem: str = ""


def element(certificate: ClientCertificate, details: Iterable[str], *, by: Sequence[str] = ()) -> bytes:
    """Return the element for a certificate.

    Args:
        details: What it says beside By and Hash: of `Cert`, `Chain`, `Subject`, `URI` and `DNS`.
        by: URIs in our own certificate, the one that the client saw.
    """
    wanted = frozenset(details)
    pairs = [f"By={_value(uri)}" for uri in by]
    pairs.append(f"Hash={certificate.digest}")
    if "Cert" in wanted:
        pairs.append(f'Cert="{urllib.parse.quote(certificate.pem, safe="")}"')
    if "Chain" in wanted:
        pairs.append(f'Chain="{urllib.parse.quote(certificate.chain_pem, safe="")}"')
    if "Subject" in wanted:
        # As Envoy has it: what RFC 2253 escapes is what would have to be escaped between quotes.
        pairs.append(f'Subject="{rfc2253(certificate.subject)}"')
    if "URI" in wanted:
        pairs += [f"URI={_value(uri)}" for uri in certificate.names.uris]
    if "DNS" in wanted:
        pairs += [f"DNS={_value(name)}" for name in certificate.names.dns]
    return ";".join(pairs).encode("ascii")


def rfc2253(subject: Subject) -> str:
    """Return a distinguished name as text, in ASCII (RFC 2253 section 2): the last component first."""
    return ",".join(
        "+".join(f"{_ATTRIBUTES.get(name, name)}={_escaped(value)}" for name, value in component)
        for component in reversed(subject)
    )


def _escaped(value: str) -> str:
    out: list[str] = []
    for index, character in enumerate(value):
        is_at_end = index in (0, len(value) - 1)
        if character in ',+"\\<>;' or (character == "#" and index == 0) or (character == " " and is_at_end):
            out.append("\\" + character)
        elif character.isascii() and character.isprintable():
            out.append(character)
        else:
            out += (f"\\{byte:02X}" for byte in character.encode("utf-8", "replace"))
    return "".join(out)


def _value(text: str) -> str:
    visible = "".join(
        one if one.isascii() and one.isprintable() else urllib.parse.quote(one, errors="replace") for one in text
    )
    return _in_quotes(visible) if _QUOTED.intersection(visible) or not visible else visible


def _in_quotes(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
