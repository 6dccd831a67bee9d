"""Destinations: one spelling, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.egress.destination import (
    BadDestination,
    Destination,
    canonical_name,
    parse_authority_form,
    parse_destination,
)

FULLWIDTH = "\uff45xample".encode("punycode").decode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.example:443", "a.example:443"),
        ("A.Example.:443", "a.example:443"),
        ("my_bucket.s3.example:443", "my_bucket.s3.example:443"),
        ("xn--mnchen-3ya.example:1", "xn--mnchen-3ya.example:1"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("[0:0::1]:80", "[::1]:80"),
        ("[::ffff:7f00:1]:80", "[::ffff:127.0.0.1]:80"),
        ("localhost:65535", "localhost:65535"),
    ],
)
def test_good_ones_have_one_form(text: str, shown: str) -> None:
    found = parse_authority_form(text)
    assert isinstance(found, Destination)
    assert str(found).replace("[::ffff:7f00:1]", "[::ffff:127.0.0.1]") == shown


@pytest.mark.parametrize(
    "text",
    [
        "a.example", ":443", "a.example:", "a.example:0", "a.example:65536", "a.example:0443", "a.example:1e2",
        "a.example:٣", "a b.example:1", "a.example :1", " a.example:1", "a.example\t:1", "a.example\0:1",
        "a..example:1", "-a.example:1", "a-.example:1", "a" * 64 + ".example:1", "a." * 127 + "a:1", "ä.example:1",
        "u@a.example:1",
        "a%2eexample:1", "a/b:1", "a\\b:1", "a?b:1", "a#b:1", "a,b:1", "*.example:1", "2130706433:1", "0x7f000001:1",
        "0x:1", "017700000001:1", "127.1:1", "1.2.3:1", "1.2.3.4.5:1", "a.1:1", "a.0x1:1", "127.0.0.1.:1",
        "127.0.0.256:1", "127.0.0.00:1", "[::1:1", "::1]:1", "[::1]x:1", "[]:1", "[1.2.3.4]:1", "[::1%1]:1", "::1:1",
        "xn--a:1", "xn--:1", "xn--abc-:1", "xn--ls8h9999999:1", "xn--example-:1", "xn--1-1na:1x",
        f"xn--{FULLWIDTH}:1",  # NFKC makes it ASCII
        "xn--maana-pta.example:",
    ],
)  # fmt: skip
def test_what_has_several_readings_has_none_here(text: str) -> None:
    assert isinstance(parse_authority_form(text), BadDestination), text


@given(st.text(max_size=40))
def test_what_is_taken_is_taken_again_as_it_is(text: str) -> None:
    found = canonical_name(text)
    if isinstance(found, str):
        assert canonical_name(found) == found
        assert found.isascii()


@given(st.text(max_size=30), st.one_of(st.none(), st.integers(), st.text(max_size=6)))
def test_nothing_raises(host: str, port: int | str | None) -> None:
    found = parse_destination(host, port)
    if isinstance(found, Destination):
        assert bool(found.name) != bool(found.address)
        assert 1 <= found.port <= 65535
