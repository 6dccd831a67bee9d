"""CORS: which origins may read answers, what preflights are told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.filters.cors import Cors, canonical_origin, origin_problem
from datum_router.model.filters import CorsPolicy
from datum_router.model.request import FieldList, LocalReply
from datum_router.testing.factories import make_head

SHOP = CorsPolicy(
    origins=("https://shop.example.com", "https://*.example.org", "http://*.dev.test:3000"),
    methods=("PUT",),
    headers=("x-token",),
    exposed=("x-total",),
    allows_credentials=True,
    max_age_s=600,
)


def stamped(policy: CorsPolicy, origin: str | None, fields: FieldList = ()) -> dict[bytes, bytes]:
    head = make_head(headers={} if origin is None else {"origin": origin})
    made = Cors(policy).stamp(head, fields)
    assert len(dict(made)) == len(made), "no field twice"
    return dict(made)


def asked(policy: CorsPolicy, origin: str, method: str = "PUT") -> LocalReply | None:
    fields = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": "x-token"}
    return Cors(policy).preflight(make_head(method="OPTIONS", headers=fields))


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("https://shop.example.com", True),
        ("http://shop.example.com", False),
        ("https://shop.example.com:8443", False),
        ("https://shop.example.com.evil.test", False),
        ("https://a.example.org", True),
        ("https://a.b.example.org", True),
        ("https://example.org", False),
        ("https://.example.org", False),
        ("https://evilexample.org", False),
        ("https://evil.test/.example.org", False),
        ("https://evil.test?.example.org", False),
        ("https://user@x.example.org", False),
        ("http://a.dev.test:3000", True),
        ("http://a.dev.test", False),
        ("null", False),
        ("", False),
        ("https://shop.example.com, https://a.example.org", False),
    ],
)
def test_an_origin_is_allowed_only_if_it_is_listed_or_lies_below_a_wildcard(origin: str, is_allowed: bool) -> None:
    assert Cors(SHOP).allows(origin.encode()) is is_allowed


def test_an_allowed_origin_gets_its_own_name_credentials_and_vary() -> None:
    assert stamped(SHOP, "https://a.example.org") == {
        b"access-control-allow-origin": b"https://a.example.org",
        b"access-control-allow-credentials": b"true",
        b"access-control-expose-headers": b"x-total",
        b"vary": b"Origin",
    }


@pytest.mark.parametrize("origin", ["https://evil.test", None])
def test_whoever_is_not_allowed_or_does_not_ask_gets_vary_alone(origin: str | None) -> None:
    assert stamped(SHOP, origin) == {b"vary": b"Origin"}


@pytest.mark.parametrize("origin", ["https://shop.example.com", "https://evil.test"])
def test_the_services_own_fields_never_pass(origin: str) -> None:
    own = ((b"access-control-allow-origin", b"*"), (b"access-control-allow-methods", b"DELETE"), (b"x-kept", b"1"))
    made = stamped(SHOP, origin, own)
    assert made.pop(b"x-kept") == b"1"
    assert b"access-control-allow-methods" not in made
    assert made.get(b"access-control-allow-origin") != b"*"


@pytest.mark.parametrize("vary", [b"Origin", b"accept, ORIGIN", b"*"])
def test_a_vary_that_says_it_already_stays(vary: bytes) -> None:
    assert stamped(SHOP, None, ((b"vary", vary),)) == {b"vary": vary}


def test_without_credentials_a_star_is_the_same_for_everybody() -> None:
    policy = CorsPolicy(origins=("*",))
    for origin in ("https://a.test", None):
        assert stamped(policy, origin) == {b"access-control-allow-origin": b"*"}


def test_a_preflight_is_told_everything_that_is_allowed() -> None:
    reply = asked(SHOP, "https://shop.example.com")
    assert reply is not None
    assert reply.status == 204
    assert dict(reply.headers) == {
        b"access-control-allow-origin": b"https://shop.example.com",
        b"access-control-allow-credentials": b"true",
        b"access-control-allow-methods": b"GET, HEAD, POST, PUT",
        b"access-control-allow-headers": b"x-token",
        b"access-control-max-age": b"600",
        b"vary": b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }


def test_the_preflight_of_a_stranger_is_told_nothing() -> None:
    reply = asked(SHOP, "https://evil.test")
    assert reply is not None
    assert (reply.status, [name for name, _ in reply.headers]) == (204, [b"vary"])


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("GET", {"origin": "https://shop.example.com", "access-control-request-method": "PUT"}),
        ("OPTIONS", {"origin": "https://shop.example.com"}),
        ("OPTIONS", {"access-control-request-method": "PUT"}),
    ],
)
def test_nothing_else_is_a_preflight(method: str, fields: dict[str, str]) -> None:
    assert Cors(SHOP).preflight(make_head(method=method, headers=fields)) is None


@pytest.mark.parametrize(
    "text", ["*", "https://a.test", "capacitor://localhost", "http://[::1]:80", "HTTPS://*.A.test"]
)
def test_origins_that_can_be_used(text: str) -> None:
    assert origin_problem(text) == ""


@pytest.mark.parametrize(
    "text",
    ["a.test", "null", "https://", "https://a.test/", "https://*", "https://a.*.test", "https://a.test:0", "é://a"],
)
def test_origins_that_cannot(text: str) -> None:
    assert origin_problem(text)


def test_origins_are_compared_as_browsers_write_them() -> None:
    assert canonical_origin("HTTPS://Shop.Example.com:443") == "https://shop.example.com"
    assert canonical_origin("http://a.test:443") == "http://a.test:443"


@given(st.text(alphabet="htps:/.exampl*org@?#-_ ,0", max_size=40))
def test_whatever_passes_a_wildcard_has_the_form_of_an_origin_of_that_domain(origin: str) -> None:
    if Cors(CorsPolicy(origins=("https://*.example.org",))).allows(origin.encode()):
        assert origin.startswith("https://")
        assert origin.endswith(".example.org")
        assert not set(origin.removeprefix("https://")) & set("/:@?#* ,")


ORIGINS = ("https://a.test", "http://a.test", "https://a.test:8443")
POLICIES = st.builds(
    CorsPolicy,
    origins=st.lists(st.sampled_from(ORIGINS), max_size=3).map(tuple),
    methods=st.lists(st.sampled_from(["PUT", "GET"]), max_size=2).map(tuple),
    headers=st.lists(st.just("x-token"), max_size=1).map(tuple),
    exposed=st.lists(st.just("x-total"), max_size=1).map(tuple),
    allows_credentials=st.booleans(),
    max_age_s=st.none() | st.integers(0, 600),
)


@settings(max_examples=200)
@given(policy=POLICIES, origin=st.sampled_from([*ORIGINS, "https://evil.test", "null", "HTTPS://A.TEST"]))
def test_of_a_list_of_origins_each_is_told_its_own_name_and_nobody_else_anything(
    policy: CorsPolicy, origin: str
) -> None:
    is_allowed = origin in policy.origins
    reply = asked(policy, origin)
    assert reply is not None
    for told in (dict(reply.headers), stamped(policy, origin)):
        assert told.get(b"access-control-allow-origin") == (origin.encode() if is_allowed else None)
        is_trusted = is_allowed and policy.allows_credentials
        assert told.get(b"access-control-allow-credentials") == (b"true" if is_trusted else None)
        assert b"Origin" in told[b"vary"]
        assert is_allowed or list(told) == [b"vary"]
