"""Destinations as clients write them: a canonical form, or a refusal. Nothing is guessed.

Two readers of one text that disagree are what attacks on filters are made of: the filter reads a name, the resolver an
address. So whatever has several readings has none here. An IPv4 address is four decimal numbers without leading zeros;
`2130706433`, `0177.0.0.1`, `0x7f.1` and `127.1`, which libc's inet_aton(3) would take for addresses, are refused (the
rule is that of the WHATWG URL standard: a host whose last label is numeric is an address or nothing). International
names come as A-labels (RFC 5891 section 4), and only if the label is what its decoded text encodes to.
"""

from __future__ import annotations

import re
import unicodedata

import msgspec

from datum_router.egress.address import parse_address

MAX_HOST_CHARS = 253
"""RFC 1035 section 2.3.4, without the trailing dot."""

# label = 1*63( ALPHA / DIGIT / "-" / "_" ), no "-" at either end      (RFC 1123 section 2.1, and `_` as in RFC 2782)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
# ends-in-a-number checker: all digits, or "0x" and hex digits                  (WHATWG URL standard, section 3.5)
_NUMERIC = re.compile(r"(?:[0-9]+|0[xX][0-9a-fA-F]*)\Z")
_IPV4 = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")
MAX_PORT = 65535


class Destination(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a connection is to go, in canonical form.

    Attributes:
        name: Lower-case A-labels without trailing dot; empty for an address.
        address: An address in canonical text; empty for a name.
    """

    name: str = ""
    address: str = ""
    port: int

    @property
    def host(self) -> str:
        """Return name or address."""
        return self.name or self.address

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.host}:{self.port}"


class BadDestination(msgspec.Struct, frozen=True, gc=False):
    """Why a text is no destination; `detail` says what was found, without the client's text."""

    detail: str


def parse_destination(host: str, port: int | str | None) -> Destination | BadDestination:
    """Return the canonical destination, or why there is none.

    Args:
        host: As written, IPv6 in brackets.
        port: A number, or its text; None where it is missing and has no default.
    """
    number = _port(port)
    if number is None:
        return BadDestination("no port" if port is None else "a port that is not a number from 1 to 65535")
    if host.startswith("["):
        address = parse_address(host[1:-1]) if host.endswith("]") else None
        if address is None or address.version != 6:
            return BadDestination("a malformed IPv6 address, or one with a zone")
        return Destination(address=str(address), port=number)
    name = canonical_name(host)
    if isinstance(name, BadDestination):
        return name
    if _IPV4.match(name) is not None and parse_address(name) is not None:
        return Destination(address=name, port=number)
    return Destination(name=name, port=number)


def parse_authority_form(text: str) -> Destination | BadDestination:
    """Return the destination of `host:port` as CONNECT has it (RFC 9112 section 3.2.3): the port is never left out."""
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        return BadDestination("no port" if not colon else "an IPv6 address without brackets")
    return parse_destination(host, port)


def canonical_name(text: str) -> str | BadDestination:
    """Return a host name or an IPv4 literal in canonical form, or why it is refused."""
    for is_found, detail in (
        (not text, "an empty host"),
        (not text.isascii(), "a non-ASCII character in the host: international names come as xn-- labels"),
        ("@" in text, "user information before the host"),
        ("%" in text, "a percent sign in the host: an escape or a zone"),
        (":" in text, "a colon in the host: an IPv6 address without brackets, or a second port"),
    ):
        if is_found:
            return BadDestination(detail)
    name = text.lower().removesuffix(".")
    if len(name) > MAX_HOST_CHARS:
        return BadDestination(f"a host of more than {MAX_HOST_CHARS} characters")
    labels = name.split(".")
    if _NUMERIC.match(labels[-1]) is not None:
        if _IPV4.match(name) is None or parse_address(name) is None:
            return BadDestination("a number where a name is expected: an address is four decimal numbers")
        if text.endswith("."):
            return BadDestination("an address with a trailing dot")
        return name
    for label in labels:
        if _LABEL.match(label) is None:
            return BadDestination("a character or label that may not stand in a host name")
        if label.startswith("xn--") and not _is_a_label(label):
            return BadDestination("an xn-- label that encodes nothing, or not what it seems to")
    return name


def _is_a_label(label: str) -> bool:
    """Tell whether a label is the encoding of a text that is not ASCII and that means nothing else when normalised."""
    try:
        text = label[4:].encode("ascii").decode("punycode")
        encoded = text.encode("punycode").decode("ascii")
    except (UnicodeError, ValueError):
        return False
    if text.isascii() or encoded != label[4:]:
        return False
    # What NFKC or case folding turns into something else may be read as that by others (RFC 5892 section 2.2).
    return (
        unicodedata.normalize("NFKC", text) == text
        and text.casefold() == unicodedata.normalize("NFKC", text.casefold())
        and not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp") for char in text)
    )


def _port(port: int | str | None) -> int | None:
    if isinstance(port, str):
        if _PORT.match(port) is None:
            return None
        port = int(port)
    return port if port is not None and 1 <= port <= MAX_PORT else None
