"""Which names of a certificate a pin or an allow-list takes (threat F6)."""

from __future__ import annotations

import re

import pytest

from datum_router.policy.peer_names import (
    MAX_PEER_NAME_CHARS,
    PIN_PATTERN,
    NameList,
    PeerNames,
    is_pattern,
    names_of,
)

WEB = "spiffe://example.org/ns/shop/sa/web"


def uri(*texts: str) -> PeerNames:
    return PeerNames(uris=texts)


def dns(*texts: str) -> PeerNames:
    return PeerNames(dns=texts)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (WEB, uri(WEB)),
        ("spiffe://example.org/*", uri(WEB)),
        ("spiffe://example.org/ns/shop/*", uri(WEB)),
        ("shop.example", dns("other.example", "shop.example")),
        ("shop.example", dns("SHOP.example")),
        ("Shop.Example", dns("shop.example")),
        ("*.shop.example", dns("*.shop.example")),
        ("https://shop.example/me", uri("https://shop.example/me", "https://other.example/")),
    ],
)  # fmt: skip
def test_a_name_that_a_pattern_stands_for_is_found(pattern: str, names: PeerNames) -> None:
    assert NameList([pattern]).match(names)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (WEB, PeerNames()),
        (WEB, uri(WEB + "/")),
        (WEB, uri(WEB + ".")),
        (WEB, uri("spiffe://EXAMPLE.org/ns/shop/sa/web")),
        (WEB, uri("SPIFFE://example.org/ns/shop/sa/web")),
        (WEB, uri("spiffe://example.org/ns/shop/sa/WEB")),
        (WEB, uri("spiffe://example.org/ns/shop/sa/web?x")),
        (WEB, uri("spiffe://example.org./ns/shop/sa/web")),
        (WEB, uri(WEB, "spiffe://example.org/ns/shop/sa/db")),
        (WEB, uri(WEB, "https://shop.example/")),
        (WEB, uri(WEB, WEB)),
        (WEB, dns(WEB)),
        ("spiffe://example.org/*", uri("spiffe://example.org")),
        ("spiffe://example.org/*", uri("spiffe://example.org/")),
        ("spiffe://example.org/*", uri("spiffe://example.org.evil.test/a")),
        ("spiffe://example.org/ns/shop/*", uri("spiffe://example.org/ns/shopping/sa/web")),
        ("spiffe://example.org/ns/shop/*", uri("spiffe://example.org/ns/shop/../bank/sa/web")),
        ("spiffe://example.org/ns/shop/*", uri("spiffe://example.org/ns/shop/%2e%2e/bank")),
        ("shop.example", dns("shop.example.")),
        ("shop.example.", dns("shop.example")),
        ("a.shop.example", dns("*.shop.example")),
        ("*.shop.example", dns("a.shop.example")),
        ("shop.example", dns("shop.example\0.evil.test")),
        ("k.example", dns("\u212a.example")),
        ("https://shop.example/me", uri("https://Shop.example/me")),
        ("10.0.0.1", dns("10.0.0.1")),
        ("shop.example", uri("shop.example")),
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_not(pattern: str, names: PeerNames) -> None:
    assert not NameList([pattern]).match(names)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "shop.example.",
        "shop example",
        "me@shop.example",
        "10.0.0.1",
        "fd00::1",
        "urn:shop",
        "spiffe://",
        "spiffe:///a",
        "spiffe:/example.org/a",
        "Spiffe://example.org/a",
        "spiffe://Example.org/a",
        "spiffe://example.org:443/a",
        "spiffe://me@example.org/a",
        "spiffe://example.org/a/",
        "spiffe://example.org//a",
        "spiffe://example.org/a/../b",
        "spiffe://example.org/a%20b",
        "spiffe://example.org/a?b",
        "spiffe://*",
        "spiffe://*/a",
        "spiffe://example.org/a*",
        "spiffe://example.org/*/b",
        "spiffe://example.org/" + "a" * MAX_PEER_NAME_CHARS,
        "https://shop.example/ me",
        "caf\u00e9.example",
    ],
)
def test_a_pattern_that_could_match_nothing_is_refused(text: str) -> None:
    assert not is_pattern(text)
    assert not NameList([text]).match(PeerNames(dns=(text,), uris=(text,)))


def test_prefixes_are_for_allow_lists_only() -> None:
    assert is_pattern("spiffe://example.org/*")
    assert not re.search(PIN_PATTERN, "spiffe://example.org/*")
    assert re.search(PIN_PATTERN, WEB)


def test_names_are_taken_as_ssl_tells_them() -> None:
    told = (("DNS", "a.example"), ("URI", WEB), ("IP Address", "10.0.0.1"), ("email", "me@a.example"))
    assert names_of(told) == PeerNames(dns=("a.example",), uris=(WEB,))
    assert names_of(told).spiffe_id == WEB
    assert str(names_of(())) == "no name"
