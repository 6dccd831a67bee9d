"""What a client of the forward proxy may write: heads of CONNECT, and destinations.

Properties: `RemoteProtocolError` is the only error; a destination has one spelling, which is read as itself; no name is
an address to libc; whoever may go anywhere outside is never let inside, whatever the spelling; and the decision on a
name is final before it is resolved, or lets through nothing that was not judged.
"""

from __future__ import annotations

import ipaddress
import socket

from datum_router.egress.address import ClosedRanges, faces, parse_address
from datum_router.egress.decide import EgressRequest, EgressTable
from datum_router.egress.destination import Destination, parse_authority_form, parse_destination
from datum_router.errors import RemoteProtocolError
from datum_router.model.egress import EgressPolicy, EgressRule, EgressSource
from datum_router_proxy.wire import connect
from datum_router_proxy.wire.http1 import Http1Limits

LIMITS = Http1Limits(max_head_bytes=1_024, max_target_bytes=256, max_fields=8, max_field_bytes=256)
SOURCE = EgressSource(namespaces=("default",))
ANYWHERE = EgressTable(
    EgressPolicy(rules=(EgressRule(name="default/all", namespace="default", networks=("0.0.0.0/0", "::/0")),))
)
CLOSED = ClosedRanges()
WORDS = (
    b"CONNECT ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"Host: a\r\n", b"\r\n\r\n", b":443", b":0", b":65536", b"[::1]",
    b"[::ffff:127.0.0.1]", b"[64:ff9b::7f00:1]", b"[2002:7f00:1::]", b"127.0.0.1", b"0177.0.0.1", b"0x7f000001",
    b"2130706433", b"127.1", b"localhost", b"xn--", b"xn--mnchen-3ya", b"@", b"%25eth0", b"..", b"_", b"-",
    b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"metadata.google.internal",
)  # fmt: skip


def check(data: bytes) -> None:
    """Check an input as a head, and as a destination by itself."""
    try:
        end = connect.find_end(data, LIMITS)
        if end:
            _check_destination(connect.parse(data[:end], LIMITS).target)
    except RemoteProtocolError as error:
        if error.status_hint not in (400, 414, 431, 501, 505):
            raise AssertionError(f"found status {error.status_hint}") from error
    text = data.decode("latin-1")
    _check_destination(text)
    found = parse_destination(text, 443)
    if isinstance(found, Destination):
        _check(found)


def _check_destination(text: str) -> None:
    found = parse_authority_form(text)
    if isinstance(found, Destination):
        _check(found)


def _check(found: Destination) -> None:
    assert bool(found.name) != bool(found.address), found
    assert 1 <= found.port <= 65535
    assert parse_authority_form(str(found)) == found, "one spelling"
    if found.name:
        assert found.name == found.name.lower()
        assert not _is_address_to_libc(found.name), found
        _check_verdict(found, ["127.0.0.1", "93.184.216.34", "::ffff:10.0.0.1"])
    else:
        _check_verdict(found, [])


def _check_verdict(found: Destination, addresses: list[str]) -> None:
    request = EgressRequest(destination=found)
    verdict = ANYWHERE.judge_name(SOURCE, request)
    if not verdict.is_final:
        verdict = ANYWHERE.judge_addresses(SOURCE, request, addresses)
    assert verdict.is_final
    assert verdict.is_allowed == bool(verdict.addresses)
    for text in verdict.addresses:
        address = parse_address(text)
        assert address is not None
        assert not any(CLOSED.find(face) for face in faces(address)), text
        if not any(face != address for face in faces(address)):
            assert not address.is_loopback, text
            assert not address.is_link_local, text
            assert isinstance(address, ipaddress.IPv6Address) or address.is_global, text


def _is_address_to_libc(name: str) -> bool:
    try:
        socket.inet_aton(name)
    except OSError:
        return False
    return True
