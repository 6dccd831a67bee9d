"""No text is a name to us and an address to somebody else: compared with libc, and with a list of closed ranges."""

from __future__ import annotations

import ipaddress
import socket

from hypothesis import example, given
from hypothesis import strategies as st

from datum_router.egress.address import faces, parse_address
from datum_router.egress.decide import EgressRequest, EgressTable
from datum_router.egress.destination import BadDestination, Destination, parse_destination
from datum_router.model.egress import EgressPolicy, EgressRule, EgressSource

SOURCE = EgressSource(namespaces=("default",))
ANYWHERE = EgressTable(
    EgressPolicy(rules=(EgressRule(name="default/all", namespace="default", networks=("0.0.0.0/0", "::/0")),))
)
NUMBERS = st.one_of(
    st.integers(0, 2**33).map(str),
    st.integers(0, 2**33).map(oct).map(lambda text: text.replace("0o", "0")),
    st.integers(0, 2**33).map(hex),
    st.integers(0, 300).map(lambda number: f"{number:03}"),
)
SPELLINGS = st.lists(NUMBERS, min_size=1, max_size=5).map(".".join)
NOISE = st.text("0123456789abcdefxX.:%[]@ ", max_size=24)


def reads_as(text: str) -> str | None:
    """Return the IPv4 address that libc takes a text for (inet_aton(3)); None if it takes it for none."""
    try:
        return socket.inet_ntoa(socket.inet_aton(text))
    except (OSError, UnicodeError, ValueError):
        return None


@given(SPELLINGS | NOISE)
@example("2130706433")
@example("0177.0.0.1")
@example("0x7f.1")
@example("127.1")
def test_what_libc_takes_for_an_address_is_that_address_or_refused(text: str) -> None:
    found = parse_destination(text, 80)
    meant = reads_as(text)
    if isinstance(found, Destination) and meant is not None:
        assert (found.name, found.address) == ("", meant)


@given(SPELLINGS | NOISE)
def test_a_name_is_never_a_number(text: str) -> None:
    found = parse_destination(text, 80)
    if isinstance(found, BadDestination) or not found.name:
        return
    last = found.name.rsplit(".", 1)[-1]
    assert not last.isdigit()
    assert not last.startswith("0x") or not all(char in "0123456789abcdef" for char in last[2:])


CARRIERS = (
    lambda inner: f"::ffff:{inner}",
    lambda inner: f"::{inner}",
    lambda inner: f"::ffff:0:{inner}",
    lambda inner: f"64:ff9b::{inner}",
    lambda inner: f"64:ff9b:1::{inner}",
    lambda inner: f"2606:4700::5efe:{inner}",
    lambda inner: str(ipaddress.IPv6Address((0x2002 << 112) | (int(ipaddress.IPv4Address(inner)) << 80) | 1)),
    lambda inner: str(
        ipaddress.IPv6Address(
            (0x20010000 << 96) | (0x08080808 << 64) | (int(ipaddress.IPv4Address(inner)) ^ 0xFFFFFFFF)
        )
    ),
)


@given(st.ip_addresses(v=4).map(str), st.sampled_from(CARRIERS))
@example("127.0.0.1", CARRIERS[0])
@example("169.254.169.254", CARRIERS[3])
def test_an_address_within_an_address_is_never_more_open_than_itself(inner: str, carry: object) -> None:
    assert callable(carry)
    outer = parse_address(carry(inner))
    assert outer is not None
    for text in (inner, str(outer)):
        address = parse_address(text)
        assert address is not None
        assert faces(address)
    if not allowed(inner):
        assert not allowed(str(outer)), f"{outer} carries {inner}"


def allowed(address: str) -> bool:
    request = EgressRequest(destination=Destination(name="a.example", port=80))
    return ANYWHERE.judge_addresses(SOURCE, request, [address]).is_allowed


@given(st.ip_addresses())
def test_nothing_inside_is_open_to_who_may_go_anywhere(address: ipaddress.IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        carried = [face for face in faces(address) if face != address]
        if not carried:
            assert not allowed(str(address))
