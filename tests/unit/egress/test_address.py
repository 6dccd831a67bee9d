"""Closed ranges, and what IPv6 addresses carry."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.egress.address import (
    CLOSED,
    ClosedRanges,
    RangeKind,
    dialled,
    faces,
    parse_address,
    parse_network,
    parse_networks,
)

RANGES = ClosedRanges()


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("::ffff:10.0.0.1", ["10.0.0.1"]),
        ("::ffff:0:10.0.0.1", ["10.0.0.1"]),
        ("::10.0.0.1", ["10.0.0.1"]),
        ("64:ff9b::10.0.0.1", ["10.0.0.1"]),
        ("64:ff9b:1::10.0.0.1", ["64:ff9b:1::a00:1", "10.0.0.1"]),
        ("2002:a00:1::", ["10.0.0.1"]),
        ("2002:a00:1:2::3", ["10.0.0.1"]),
        ("2001:0:808:808::f5ff:fffe", ["2001:0:808:808::f5ff:fffe", "8.8.8.8", "10.0.0.1"]),
        ("2606:4700::5efe:10.0.0.1", ["2606:4700::5efe:a00:1", "10.0.0.1"]),
        ("2606:4700::200:5efe:10.0.0.1", ["2606:4700::200:5efe:a00:1", "10.0.0.1"]),
        ("2606:4700::1111", ["2606:4700::1111"]),
        ("::1", ["::1"]),
        ("::", ["::"]),
        ("8.8.8.8", ["8.8.8.8"]),
    ],
)
def test_an_address_that_carries_another_is_judged_as_that_one(text: str, inner: list[str]) -> None:
    address = parse_address(text)
    assert address is not None
    assert [str(one) for one in faces(address)] == inner


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("127.0.0.1", RangeKind.LOOPBACK),
        ("127.255.255.254", RangeKind.LOOPBACK),
        ("::1", RangeKind.LOOPBACK),
        ("169.254.0.1", RangeKind.LINK_LOCAL),
        ("fe80::1", RangeKind.LINK_LOCAL),
        ("169.254.169.254", RangeKind.METADATA),
        ("fd00:ec2::254", RangeKind.METADATA),
        ("168.63.129.16", RangeKind.METADATA),
        ("100.100.100.200", RangeKind.METADATA),
        ("10.96.0.1", RangeKind.PRIVATE),
        ("172.31.0.1", RangeKind.PRIVATE),
        ("192.168.1.1", RangeKind.PRIVATE),
        ("fd00::1", RangeKind.PRIVATE),
        ("100.64.0.1", RangeKind.SHARED),
        ("0.0.0.0", RangeKind.UNSPECIFIED),
        ("::", RangeKind.UNSPECIFIED),
        ("224.0.0.1", RangeKind.MULTICAST),
        ("ff02::1", RangeKind.MULTICAST),
        ("255.255.255.255", RangeKind.RESERVED),
    ],
)
def test_what_is_inside_is_closed(text: str, kind: RangeKind) -> None:
    found = RANGES.find(ipaddress.ip_address(text))
    assert found is not None
    assert found[1] is kind


@pytest.mark.parametrize("text", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "168.63.129.17"])
def test_what_is_outside_is_not(text: str) -> None:
    assert RANGES.find(ipaddress.ip_address(text)) is None


@given(st.ip_addresses())
def test_nothing_that_python_knows_not_to_be_global_is_open(address: ipaddress.IPv4Address) -> None:
    if not address.is_global and faces(address) == (address,):
        assert RANGES.find(address) is not None


@pytest.mark.parametrize("text", ["1::1", "100:0:0:1::1", "::fffe:7f00:1", "64:ff9b::1:7f00:1", "4000::1", "9000::1"])
def test_ipv6_that_nobody_may_have_is_closed(text: str) -> None:
    (face,) = faces(ipaddress.ip_address(text))
    found = RANGES.find(face)
    assert found is not None
    assert found[1] is RangeKind.RESERVED


def test_a_setting_adds_ranges_and_the_narrowest_counts() -> None:
    ranges = ClosedRanges(parse_networks("203.0.113.0/28, 8.8.8.0/24"))
    found = ranges.find(ipaddress.ip_address("8.8.8.8"))
    assert found is not None
    assert found[1] is RangeKind.EXTRA
    assert [kind for text, kind in CLOSED if text == "169.254.169.254/32"] == [RangeKind.METADATA]
    with pytest.raises(ValueError, match="nowhere"):
        parse_networks("10.0.0.0/8,nowhere")
    mapped = ClosedRanges(parse_networks("::ffff:8.8.8.0/120"))
    for text in ("8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert [mapped.find(face) is not None for face in faces(ipaddress.ip_address(text))] == [True]


def test_a_mapped_network_is_the_one_that_it_carries() -> None:
    assert str(parse_network("::ffff:10.0.0.0/104")) == "10.0.0.0/8"
    assert str(parse_network("::/0")) == "::/0"
    assert str(dialled(ipaddress.ip_address("::ffff:10.0.0.1"))) == "10.0.0.1"
    assert str(dialled(ipaddress.ip_address("64:ff9b::a00:1"))) == "64:ff9b::a00:1"


@pytest.mark.parametrize("text", ["", "1", "127.1", "0177.0.0.1", "127.0.0.01", "fe80::1%eth0", "10.0.0.0/8", "::g"])
def test_what_is_no_strict_literal_is_none(text: str) -> None:
    assert parse_address(text) is None
