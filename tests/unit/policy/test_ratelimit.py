"""Rate limits: whose bucket a request takes from, what is let through and what is said."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.model.limits import RateLimitPolicy, RateScope
from datum_router.model.request import Headers, RequestHead
from datum_router.policy.buckets import SECRET_BYTES, local_table
from datum_router.policy.ratelimit import RateLimiter, RateVerdict, describe_rate, key_of, source_network
from datum_router.reasons import Reason
from datum_router.testing.factories import make_head


def policy(**fields: object) -> RateLimitPolicy:
    values: dict[str, object] = {"scope": RateScope.ROUTE, "owner": "default/a", "requests": 2, "burst": 2, **fields}
    return RateLimitPolicy(**values)  # type: ignore[arg-type]


def limiter(*policies: RateLimitPolicy) -> RateLimiter:
    return RateLimiter(policies, local_table(bytes(SECRET_BYTES)))


def head(client_ip: str = "192.0.2.1", **headers: str) -> RequestHead:
    return make_head("/", headers=headers, client_ip=client_ip)


def said(verdict: RateVerdict) -> dict[str, str]:
    fields = verdict.reply.headers if verdict.reply is not None else verdict.fields
    return {name.decode(): value.decode() for name, value in fields}


def test_a_burst_goes_through_then_429_says_when_to_come_again() -> None:
    limits = limiter(policy(window_s=60))
    first, second, third = (limits.decide(head(), now=1000.0) for _ in range(3))
    assert said(first) == {"ratelimit-policy": '"route";q=2;w=60', "ratelimit": '"route";r=1;t=30'}
    assert said(second) == {"ratelimit-policy": '"route";q=2;w=60', "ratelimit": '"route";r=0;t=60'}
    assert third.reply is not None
    assert (third.reply.status, third.reply.reason) == (429, Reason.RATE_LIMITED)
    assert said(third) == {
        "ratelimit-policy": '"route";q=2;w=60',
        "ratelimit": '"route";r=0;t=30',
        "retry-after": "30",
    }
    assert limits.decide(head(), now=1029.9).reply is not None
    assert limits.decide(head(), now=1030.0).reply is None


def test_what_one_limit_refuses_is_put_back_into_the_buckets_of_the_others() -> None:
    limits = limiter(policy(requests=10, burst=10), policy(scope=RateScope.FILTER, index=3, requests=1, burst=1))
    assert said(limits.decide(head(), now=0.0))["ratelimit"] == '"route";r=9;t=1, "filter-3";r=0;t=1'
    refused = [limits.decide(head(), now=0.0) for _ in range(20)]
    assert {item.refused_by for item in refused} == {limits.policies[1]}
    assert said(limits.decide(head(), now=1.0))["ratelimit"].startswith('"route";r=9')


@pytest.mark.parametrize(
    ("fields", "one", "other", "is_same"),
    [
        ({}, head("192.0.2.1"), head("192.0.2.2"), True),
        ({"by_source": True}, head("192.0.2.1"), head("192.0.2.2"), False),
        ({"by_source": True}, head("192.0.2.1"), head("::ffff:192.0.2.1"), True),
        ({"by_source": True}, head("2001:db8:1:2::1"), head("2001:db8:1:2:ffff::9"), True),
        ({"by_source": True}, head("2001:db8:1:2::1"), head("2001:db8:1:3::1"), False),
        ({"by_source": True}, head(""), head(""), True),
        ({"by_headers": ("x-tenant",)}, head(**{"x-tenant": "a"}), head("192.0.2.9", **{"x-tenant": "a"}), True),
        ({"by_headers": ("x-tenant",)}, head(**{"x-tenant": "a"}), head(**{"x-tenant": "b"}), False),
        ({"by_headers": ("x-tenant",)}, head(), head("192.0.2.9"), True),
        ({"by_headers": ("x-tenant",)}, head(), head(**{"x-tenant": ""}), False),
        ({"by_headers": ("a", "b")}, head(a="1", b="23"), head(a="12", b="3"), False),
        ({"by_source": True, "by_headers": ("a",)}, head("192.0.2.1", a="1"), head("192.0.2.2", a="1"), False),
    ],
)
def test_who_shares_a_bucket(fields: dict[str, object], one: RequestHead, other: RequestHead, is_same: bool) -> None:
    limits = limiter(policy(requests=1, burst=1, **fields))
    assert limits.decide(one, now=0.0).reply is None
    assert (limits.decide(other, now=0.0).reply is not None) is is_same


@given(
    a=st.lists(st.binary(max_size=6), min_size=2, max_size=2), b=st.lists(st.binary(max_size=6), min_size=2, max_size=2)
)
def test_different_values_never_make_the_same_key(a: list[bytes], b: list[bytes]) -> None:
    names = ("x", "y")
    heads = [
        make_head("/", headers=[(name, value) for name, value in zip(names, values, strict=True)]) for values in (a, b)
    ]
    keys = [key_of(policy(by_headers=names), item) for item in heads]
    assert (keys[0] == keys[1]) is (a == b)


def test_a_header_that_comes_twice_is_no_way_round_its_limit() -> None:
    def fields(*pairs: tuple[bytes, bytes]) -> bytes:
        made = msgspec.structs.replace(head(), headers=Headers(pairs))
        return key_of(policy(by_headers=("x-api-key", "cookie")), made)

    one, real = (b"x-api-key", b"made-up-1"), (b"x-api-key", b"real")
    assert fields(one, real) == fields((b"x-api-key", b"made-up-2"), real) == fields(real, one)
    assert fields(real, one) != fields(real)
    assert fields(real, one) != fields((b"x-api-key", b"*"))
    assert fields((b"cookie", b"a=1"), (b"cookie", b"b=2")) == fields((b"cookie", b"a=1; b=2"))


def test_equal_addresses_that_came_in_by_two_attachments_are_two_clients() -> None:
    limits = limiter(policy(requests=1, burst=1, by_source=True))
    for attachment in ("", "blue/gateway", "green/gateway"):
        head = msgspec.structs.replace(make_head("/"), attachment=attachment)
        assert [limits.decide(head, now=0.0).reply is None for _ in range(2)] == [True, False]


def test_limits_of_two_objects_and_a_changed_limit_have_buckets_of_their_own() -> None:
    table = local_table(bytes(SECRET_BYTES))
    for limits in (
        RateLimiter([policy(requests=1, burst=1)], table),
        RateLimiter([policy(requests=1, burst=1, owner="default/b")], table),
        RateLimiter([policy(requests=3, burst=1)], table),
    ):
        assert limits.decide(head(), now=0.0).reply is None
    again = RateLimiter([policy(requests=1, burst=1)], table)
    assert again.decide(head(), now=0.0).reply is not None, "the same limit, linked anew, goes on"


@given(
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=60),
    requests=st.integers(1, 20),
    burst=st.integers(1, 20),
    window_s=st.sampled_from([1, 60]),
)
def test_never_more_than_the_burst_and_the_rate_go_through(
    gaps: list[float], requests: int, burst: int, window_s: int
) -> None:
    limits = limiter(policy(requests=requests, burst=burst, window_s=window_s))
    now, admitted = 0.0, 0
    for gap in gaps:
        now += gap
        verdict = limits.decide(head(), now=now)
        admitted += verdict.reply is None
        assert admitted <= burst + now * requests / window_s + 1e-6
        if verdict.reply is not None:
            now += int(said(verdict)["retry-after"])
            assert limits.decide(head(), now=now).reply is None, "who waits as long as is said is let through"
            admitted += 1


def test_keys_for_a_store_outside_hold_names_of_manifests_and_a_hash_only() -> None:
    limits = limiter(policy(by_source=True, by_headers=("authorization",)), policy(scope=RateScope.INGRESS))
    keys = limits.store_keys(head("192.0.2.77", authorization="secret"))
    assert [key.rpartition(":")[0] for key in keys] == ["route:default/a:0", "ingress:default/a:0"]
    assert not any("192.0.2.77" in key or "secret" in key for key in keys)
    assert keys != limits.store_keys(head("192.0.2.78", authorization="secret"))


def test_an_address_that_is_none_stands_for_itself() -> None:
    assert source_network("unix:") == b"unix:"


def test_a_limit_in_words() -> None:
    assert describe_rate(policy(requests=100, burst=20, window_s=60, by_source=True, by_headers=("x-tenant",))) == (
        "rate limit of the route: 100 a minute for each client address and value of x-tenant, 20 at once; else 429"
    )
    assert describe_rate(policy(scope=RateScope.INGRESS)) == (
        "rate limit of the ingress: 2 a second for all requests together, 2 at once; else 429"
    )
