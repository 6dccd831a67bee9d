"""The PROXY protocol, versions 1 and 2: what a proxy says of a connection before its first byte. Sans I/O, strict.

Source: the specification of the PROXY protocol by HAProxy, sections 2.1 (version 1), 2.2 (version 2), 2.2.3 (TLVs).
The receiver must know beforehand whether a header comes, and from whom; it never guesses. TLVs are read over.
"""

from __future__ import annotations

import ipaddress
import re
import struct

import msgspec

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""The first bytes of version 2."""
MAX_V1_BYTES = 107
"""Longest header of version 1, its CRLF included (section 2.1)."""
MAX_V2_BYTES = 2_048
"""Longest header of version 2 that is taken: addresses and some hundred bytes of TLVs are usual, 65,551 possible."""

_V1 = b"PROXY "
# "PROXY" SP ("TCP4" / "TCP6") SP source SP destination SP source port SP destination port, as printed numbers.
_V1_LINE = re.compile(
    rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]{2,45}) ([0-9A-Fa-f:.]{2,45}) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)
_LOCAL, _PROXY = 0, 1
_INET, _INET6 = 1, 2
_STREAM = 1
_HEAD_BYTES = 16


class ProxyHeader(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a header says.

    Attributes:
        size: Its length in bytes.
        source: Address and port of the client; None if the proxy speaks for itself (LOCAL), or does not know.
    """

    size: int
    source: tuple[str, int] | None = None


class BadProxyHeader(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """These bytes can become no header; `why` says which rule they break."""

    why: str


def read_proxy_header(data: bytes) -> ProxyHeader | BadProxyHeader | None:
    """Return what the first bytes of a connection say; None if more are needed, which is at most `MAX_V2_BYTES`."""
    if data.startswith(SIGNATURE[: len(data)]):
        return _read_v2(data) if len(data) >= _HEAD_BYTES else None
    if data.startswith(_V1[: len(data)]):
        return _read_v1(data)
    return BadProxyHeader(why="the connection does not begin with a PROXY header")


def _read_v1(data: bytes) -> ProxyHeader | BadProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        return BadProxyHeader(why="the line is too long") if len(data) >= MAX_V1_BYTES else None
    line, size = data[:end], end + 2
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return ProxyHeader(size=size)  # section 2.1: everything up to CRLF is to be ignored
    found = _V1_LINE.fullmatch(line)
    if found is None:
        return BadProxyHeader(why="the line is not that of version 1")
    version = 4 if found[1] == b"TCP4" else 6
    source, destination = _address(found[2], version), _address(found[3], version)
    ports = int(found[4]), int(found[5])
    if source is None or destination is None or max(ports) > 65_535:
        return BadProxyHeader(why="an address or port is none of that family")
    return ProxyHeader(size=size, source=(source, ports[0]))


def _address(text: bytes, version: int) -> str | None:
    try:
        address = ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        return None
    return _text(address) if address.version == version else None


def _read_v2(data: bytes) -> ProxyHeader | BadProxyHeader | None:
    version_command, family_transport, length = struct.unpack_from(">BBH", data, len(SIGNATURE))
    if version_command >> 4 != 2:
        return BadProxyHeader(why="the version is not 2")
    command = version_command & 0x0F
    if command not in (_LOCAL, _PROXY):
        return BadProxyHeader(why="the command is neither LOCAL nor PROXY")
    size = _HEAD_BYTES + length
    if size > MAX_V2_BYTES:
        return BadProxyHeader(why="the header is too long")
    if len(data) < size:
        return None
    family, transport = family_transport >> 4, family_transport & 0x0F
    if command == _LOCAL:
        return ProxyHeader(size=size)  # section 2.2: the addresses are to be discarded
    if family not in (_INET, _INET6):
        if family_transport == 0:
            return ProxyHeader(size=size)  # UNSPEC: the proxy does not know
        return BadProxyHeader(why="the addresses are neither IPv4 nor IPv6")
    if transport != _STREAM:
        return BadProxyHeader(why="the transport is no stream")
    width = 4 if family == _INET else 16
    if length < 2 * width + 4:
        return BadProxyHeader(why="the addresses are cut short")
    raw = data[_HEAD_BYTES : _HEAD_BYTES + width]
    (port,) = struct.unpack_from(">H", data, _HEAD_BYTES + 2 * width)
    return ProxyHeader(size=size, source=(_text(ipaddress.ip_address(raw)), port))


def _text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return an address as the rest of the gateway has it: IPv4 in IPv6 clothes as IPv4 (RFC 4291 section 2.5.5.2)."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
