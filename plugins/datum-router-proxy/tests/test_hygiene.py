"""Hop-by-hop rules and proxy fields: threat rows B1, B2, B5, B7, A13, U11."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router_proxy.wire import hygiene
from datum_router_proxy.wire.hygiene import (
    Hop,
    client_address,
    count_via_hops,
    request_fields_for_upstream,
    request_id_from_peer,
    response_fields_for_downstream,
    trailers_to_forward,
)

Field = tuple[bytes, bytes]
ADDED = {
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"forwarded",
    b"via",
    b"x-request-id",
    b"x-real-ip",
    b"te",
}


def upstream(
    *fields: Field,
    nominations: frozenset[bytes] = frozenset(),
    trusted_hops: int = 0,
    peer_ip: str = "10.0.0.1",
    host: bytes = b"a.example",
    te: bool = False,
) -> list[Field]:
    hop = Hop(peer_ip=peer_ip, scheme="https", trusted_hops=trusted_hops)
    return request_fields_for_upstream(
        fields, hop, host=host, request_id=b"id-1", nominations=nominations, keep_te_trailers=te
    )


def kept(fields: list[Field]) -> list[Field]:
    return [field for field in fields if field[0] not in ADDED]


def value(fields: list[Field], name: bytes) -> bytes | None:
    values = [field[1] for field in fields if field[0] == name]
    assert len(values) <= 1, name
    return values[0] if values else None


HOP_NAMES = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-anything",
    b"te",
    b"transfer-encoding",
    b"upgrade",
    b"http2-settings",
    b"x-datum-route",
    b"content-length",
]


@pytest.mark.parametrize("name", [*HOP_NAMES, b"host", b"expect"])
def test_b1_b2_b7_hop_by_hop_and_internal_fields_never_reach_an_upstream(name: bytes) -> None:
    assert kept(upstream((b"accept", b"*/*"), (name, b"x"), (b"x-a", b"1"))) == [(b"accept", b"*/*"), (b"x-a", b"1")]


@pytest.mark.parametrize("name", HOP_NAMES)
def test_b1_b7_hop_by_hop_and_internal_fields_never_reach_a_client(name: bytes) -> None:
    fields = ((b"server", b"x"), (name, b"x"), (b"x-a", b"1"))
    assert response_fields_for_downstream(fields) == [(b"server", b"x"), (b"x-a", b"1"), (b"via", b"1.1 datum-router")]


def test_b1_nominated_fields_are_removed_both_ways() -> None:
    fields = ((b"x-secret", b"1"), (b"accept", b"*/*"), (b"x-keep", b"2"))
    nominations = frozenset({b"x-secret", b"accept", b"absent"})
    assert kept(upstream(*fields, nominations=nominations)) == [(b"x-keep", b"2")]
    assert response_fields_for_downstream(fields, nominations=nominations)[0] == (b"x-keep", b"2")


@pytest.mark.parametrize("name", [b"authorization", b"cookie", b"cache-control", b"content-type"])
def test_b1_nominations_of_protected_fields_are_ignored(name: bytes) -> None:
    assert kept(upstream((name, b"x"), nominations=frozenset({name}))) == [(name, b"x")]


@pytest.mark.parametrize(
    "name", [b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"via", b"x-request-id"]
)
@pytest.mark.parametrize("trusted_hops", [0, 1])
def test_b1_our_own_fields_cannot_be_nominated_away(name: bytes, trusted_hops: int) -> None:
    assert value(upstream(nominations=frozenset({name}), trusted_hops=trusted_hops), name) is not None


def test_b1_te_trailers_is_stated_only_if_asked_for() -> None:
    assert value(upstream((b"te", b"trailers")), b"te") is None
    assert value(upstream((b"te", b"gzip"), te=True), b"te") == b"trailers"


SPOOFED: tuple[Field, ...] = (
    (b"x-forwarded-for", b"1.1.1.1"),
    (b"x-forwarded-proto", b"http"),
    (b"x-forwarded-host", b"evil.example"),
    (b"x-forwarded-user", b"admin"),
    (b"forwarded", b"for=1.1.1.1"),
    (b"x-real-ip", b"1.1.1.1"),
    (b"x-request-id", b"spoofed"),
)


def test_b5_an_untrusted_peer_cannot_say_who_it_is() -> None:
    out = upstream(*SPOOFED, (b"x-a", b"1"))
    assert kept(out) == [(b"x-a", b"1")]
    assert value(out, b"x-forwarded-for") == b"10.0.0.1"
    assert value(out, b"x-forwarded-proto") == b"https"
    assert value(out, b"x-forwarded-host") == b"a.example"
    assert value(out, b"forwarded") == b"for=10.0.0.1;host=a.example;proto=https"
    assert value(out, b"x-real-ip") == b"10.0.0.1"
    assert value(out, b"x-request-id") == b"id-1"
    assert value(out, b"x-forwarded-user") is None


def test_b5_a_trusted_peer_is_believed_and_its_chain_extended() -> None:
    out = upstream(*SPOOFED, (b"x-forwarded-for", b"2.2.2.2"), trusted_hops=1)
    assert value(out, b"x-forwarded-for") == b"1.1.1.1, 2.2.2.2, 10.0.0.1"
    assert value(out, b"x-forwarded-proto") == b"http"
    assert value(out, b"x-forwarded-host") == b"evil.example"
    assert value(out, b"forwarded") == b"for=1.1.1.1, for=10.0.0.1;host=a.example;proto=https"
    assert value(out, b"x-real-ip") == b"2.2.2.2"
    assert value(out, b"x-forwarded-user") == b"admin"


def test_b5_nonsense_from_a_trusted_peer_is_replaced() -> None:
    out = upstream((b"x-forwarded-proto", b"gopher"), (b"x-forwarded-host", b"a b"), trusted_hops=1)
    assert (value(out, b"x-forwarded-proto"), value(out, b"x-forwarded-host")) == (b"https", b"a.example")


def test_forwarded_quotes_ipv6_and_ports() -> None:
    out = upstream(peer_ip="2001:db8::1", host=b"a.example:8080")
    assert value(out, b"forwarded") == b'for="[2001:db8::1]";host="a.example:8080";proto=https'
    assert value(out, b"x-forwarded-for") == b"2001:db8::1"
    assert value(upstream(peer_ip=""), b"forwarded") == b"for=unknown;host=a.example;proto=https"


def test_host_fields_follow_the_host_of_each_request_on_a_connection() -> None:
    hop = Hop(peer_ip="10.0.0.1")
    for host in (b"a", b"b", b"a"):
        out = request_fields_for_upstream((), hop, host=host, request_id=b"x")
        assert value(out, b"x-forwarded-host") == host


@pytest.mark.parametrize(
    ("chain", "hops", "expected"),
    [
        ([], 0, "10.0.0.1"),
        ([b"1.1.1.1"], 0, "10.0.0.1"),
        ([], 1, "10.0.0.1"),
        ([b"1.1.1.1, 2.2.2.2"], 1, "2.2.2.2"),
        ([b"1.1.1.1", b"2.2.2.2"], 1, "2.2.2.2"),
        ([b"1.1.1.1, 2.2.2.2"], 2, "1.1.1.1"),
        ([b"1.1.1.1, 2.2.2.2"], 5, "1.1.1.1"),
        ([b"1.1.1.1, junk"], 1, "10.0.0.1"),
        ([b"junk, 2.2.2.2"], 2, "2.2.2.2"),
        ([b"1.1.1.1, "], 1, "10.0.0.1"),
        ([b"[2001:db8::1]:443"], 1, "2001:db8::1"),
        ([b"2001:db8::1"], 1, "2001:db8::1"),
        ([b" 1.2.3.4:5678\t"], 1, "1.2.3.4"),
        ([b"1.2.3.256"], 1, "10.0.0.1"),
        ([b"1.2.3.4\n"], 1, "10.0.0.1"),
    ],
)
def test_b5_client_is_the_rightmost_untrusted_address(chain: list[bytes], hops: int, expected: str) -> None:
    fields = [(b"x-forwarded-for", element) for element in chain]
    assert client_address(fields, peer_ip="10.0.0.1", trusted_hops=hops) == expected


@pytest.mark.parametrize(
    ("values", "hops", "expected"),
    [
        ([b"abc-1"], 0, None),
        ([b"abc-1"], 1, b"abc-1"),
        ([], 1, None),
        ([b"a", b"b"], 1, None),
        ([b"a b"], 1, None),
        ([b""], 1, None),
        ([b"a" * 128], 1, b"a" * 128),
        ([b"a" * 129], 1, None),
        ([b"a\n"], 1, None),
    ],
)
def test_request_id_is_kept_only_from_a_trusted_peer(values: list[bytes], hops: int, expected: bytes | None) -> None:
    fields = [(b"x-request-id", found) for found in values]
    assert request_id_from_peer(fields, trusted_hops=hops) == expected


def test_via_is_appended_with_the_protocol_of_the_peer() -> None:
    out = upstream((b"via", b"1.0 fred"), (b"via", b"2 bob"))
    assert value(out, b"via") == b"1.0 fred, 2 bob, 1.1 datum-router"
    response = response_fields_for_downstream(((b"via", b"1.0 fred"),), via_protocol=b"2")
    assert value(response, b"via") == b"1.0 fred, 2 datum-router"


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([], 0),
        ([b"1.1 other"], 0),
        ([b"1.1 datum-router"], 1),
        ([b"1.1 datum-router, HTTP/2 datum-router (note)"], 2),
        ([b"1.1 datum-router", b"1.1 x, 2 datum-router"], 2),
        ([b"1.1 datum-router-2, 1.1 my-datum-router"], 0),
    ],
)
def test_u11_hops_of_ours_are_counted_by_pseudonym(values: list[bytes], count: int) -> None:
    assert sum(map(count_via_hops, values)) == count


def test_u11_ten_hops_are_the_limit() -> None:
    fields: list[Field] = []
    for hops in range(hygiene.MAX_VIA_HOPS + 1):
        assert sum(count_via_hops(value) for name, value in fields if name == b"via") == hops
        fields = upstream(*fields)
    assert sum(count_via_hops(value) for name, value in fields if name == b"via") > hygiene.MAX_VIA_HOPS


def test_a13_trailers_go_on_only_where_they_are_wanted() -> None:
    trailers = ((b"grpc-status", b"0"), (b"x-meta", b"1"), (b"host", b"b"), (b"x-forwarded-for", b"1.1.1.1"))
    assert trailers_to_forward(trailers, te_trailers=True, is_grpc=True) == [(b"grpc-status", b"0"), (b"x-meta", b"1")]
    assert trailers_to_forward(trailers, te_trailers=True, is_grpc=False) == [(b"grpc-status", b"0")]
    assert trailers_to_forward(trailers, te_trailers=False, is_grpc=False) == []


names = st.sampled_from(
    sorted(
        hygiene.PLAIN_FIELDS
        | hygiene.HOP_BY_HOP
        | hygiene.PROTECTED_NOMINATIONS
        | {b"x-a", b"x-datum-x", b"proxy-x", b"x-b"}
    )
)


@settings(max_examples=200, deadline=None)
@given(
    fields=st.lists(st.tuples(names, st.sampled_from([b"1", b"2.2.2.2", b"https"])), max_size=20),
    nominations=st.frozensets(names, max_size=4),
    hops=st.integers(0, 2),
)
def test_order_of_end_to_end_fields_of_one_name_is_kept(
    fields: list[Field], nominations: frozenset[bytes], hops: int
) -> None:
    out = kept(upstream(*fields, nominations=nominations, trusted_hops=hops))
    gone = hygiene.HOP_BY_HOP | (nominations - hygiene.PROTECTED_NOMINATIONS) | {b"host", b"content-length", b"expect"}
    expected = [
        field
        for field in fields
        if field[0] not in gone | ADDED and not field[0].startswith((b"proxy-", b"x-datum-", b"x-forwarded-"))
    ]
    assert sorted(out) == sorted(expected)
    for name in {field[0] for field in expected}:
        assert [f for f in out if f[0] == name] == [f for f in expected if f[0] == name]


# --- X-Forwarded-Client-Cert ---------------------------------------------------------------------------------------

XFCC = b"x-forwarded-client-cert"


@pytest.mark.parametrize(
    ("trusted_hops", "ours", "theirs", "sent"),
    [
        (0, b"", (b"Hash=0",), None),
        (0, b"Hash=1", (), b"Hash=1"),
        (0, b"Hash=1", (b"Hash=0", b"Hash=2"), b"Hash=1"),
        (1, b"", (b"Hash=0",), b"Hash=0"),
        (1, b"Hash=1", (), b"Hash=1"),
        (1, b"Hash=1", (b"Hash=0", b"Hash=2"), b"Hash=0,Hash=2,Hash=1"),
    ],
)
def test_a_clients_certificate_is_told_by_us_and_by_proxies_that_are_trusted(
    trusted_hops: int, ours: bytes, theirs: tuple[bytes, ...], sent: bytes | None
) -> None:
    hop = Hop(peer_ip="10.0.0.1", scheme="https", trusted_hops=trusted_hops, client_cert=ours)
    for nominations in (frozenset[bytes](), frozenset({XFCC})):
        fields = request_fields_for_upstream(
            [(XFCC, one) for one in theirs], hop, host=b"a.example", request_id=b"id-1", nominations=nominations
        )
        assert value(fields, XFCC) == sent
