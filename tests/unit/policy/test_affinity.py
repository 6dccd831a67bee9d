"""Session affinity: tokens, and where they lead."""

from __future__ import annotations

import base64
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.compiler.link import Lease, Snapshot
from datum_router.compiler.linker import Linker
from datum_router.model.affinity import AffinityKind, AffinityPolicy, SetCookie
from datum_router.model.endpoint import EndpointKey, make_endpoint
from datum_router.model.request import RequestHead
from datum_router.model.route import BackendRef
from datum_router.model.service import ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import HealthChange
from datum_router.policy.affinity import (
    KEY_BYTES,
    REFRESH_SHARE,
    SKEW_S,
    Affinity,
    Session,
    describe_affinity,
    hash_cookie_field,
)
from datum_router.testing.factories import make_head, make_rule, make_service

KEY = bytes(range(KEY_BYTES))
COOKIE = AffinityPolicy(name="s")
HEADER = AffinityPolicy(kind=AffinityKind.HEADER, name="x-session")
A, B = ServiceKey("default/a"), ServiceKey("default/b")
ONE, TWO = (make_endpoint(f"10.0.0.{number}", 80).key for number in (1, 2))
NOW = 1_800_000_000.0


def affinity(policy: AffinityPolicy = COOKIE, *, key: bytes = KEY, route: str = "default/r") -> Affinity:
    return Affinity(policy, route=route, key=key)


def token(made: Affinity, *, at: float = NOW, endpoint: EndpointKey = ONE, session: Session | None = None) -> str:
    ((_, value),) = made.fields(session, A, endpoint, at=at, is_secure=False)
    return value.decode().split(";")[0].removeprefix("s=")


def asking(value: str, policy: AffinityPolicy = COOKIE) -> RequestHead:
    headers = {"cookie": f"other=1; s={value}"} if policy.kind is AffinityKind.COOKIE else {"x-session": value}
    return make_head(headers=headers)


@pytest.mark.parametrize("policy", [COOKIE, HEADER])
def test_what_was_given_is_understood_again_by_every_gateway_with_the_key(policy: AffinityPolicy) -> None:
    session = affinity(policy).read(asking(token(affinity(policy)), policy), at=NOW + 5)
    assert session == Session(affinity(policy).tag(A, ONE), int(NOW), int(NOW))


def test_a_token_tells_nothing_about_addresses() -> None:
    text = token(affinity())
    raw = base64.urlsafe_b64decode(text + "==")
    assert b"10.0.0.1" not in raw
    assert len(text) == 34
    assert affinity().tag(A, ONE) != affinity(key=KEY[::-1]).tag(A, ONE)
    assert affinity().tag(A, ONE) != affinity().tag(B, ONE)


@given(position=st.integers(0, 33), digit=st.sampled_from("ABCDwxyz0189-_"))
def test_a_token_that_was_changed_is_none(position: int, digit: str) -> None:
    text = token(affinity())
    changed = text[:position] + digit + text[position + 1 :]
    found = affinity().read(asking(changed), at=NOW)
    same = base64.urlsafe_b64decode(changed + "==") == base64.urlsafe_b64decode(text + "==")
    assert (found is not None) is same


@given(text=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=";"), max_size=80))
def test_whatever_clients_send_is_a_session_or_none(text: str) -> None:
    assert affinity().read(asking(text), at=NOW) is None


@pytest.mark.parametrize("other", [affinity(key=KEY[::-1]), affinity(route="default/other")])
def test_a_token_of_another_key_or_route_is_none(other: Affinity) -> None:
    assert affinity().read(asking(token(other)), at=NOW) is None


@pytest.mark.parametrize(
    ("fields", "after_s", "is_kept"),
    [
        ({}, 1e8, True),
        ({"absolute_s": 60.0}, 59, True),
        ({"absolute_s": 60.0}, 60, False),
        ({"idle_s": 30.0}, 29, True),
        ({"idle_s": 30.0}, 30, False),
        ({}, -SKEW_S, True),
        ({}, -SKEW_S - 1, False),
    ],
)
def test_a_session_ends_as_the_policy_says(fields: dict[str, float], after_s: float, is_kept: bool) -> None:
    made = affinity(msgspec.structs.replace(COOKIE, **fields))
    assert (made.read(asking(token(made)), at=NOW + after_s) is not None) is is_kept


def test_a_client_is_told_only_what_it_does_not_know() -> None:
    made = affinity(msgspec.structs.replace(COOKIE, idle_s=100.0, absolute_s=150.0))
    session = made.read(asking(token(made)), at=NOW)
    assert session is not None
    assert made.fields(session, A, ONE, at=NOW + 100 / REFRESH_SHARE - 1, is_secure=False) == ()
    assert made.fields(session, A, TWO, at=NOW + 1, is_secure=False) != (), "it has moved"
    renewed = made.read(asking(token(made, at=NOW + 50, session=session)), at=NOW + 140)
    assert renewed == Session(session.tag, session.began_at, session.seen_at + 50)
    assert made.read(asking(token(made, at=NOW + 50, session=session)), at=NOW + 150) is None, "it is 150 s old"


@pytest.mark.parametrize(
    ("policy", "is_secure", "attributes"),
    [
        (COOKIE, False, "Path=/; HttpOnly; SameSite=Lax"),
        (COOKIE, True, "Path=/; HttpOnly; SameSite=Lax; Secure"),
        (
            AffinityPolicy(name="s", absolute_s=3600.0, is_permanent=True),
            True,
            "Path=/; Max-Age=3600; HttpOnly; SameSite=Lax; Secure",
        ),
    ],
)
def test_the_attributes_of_the_cookie(policy: AffinityPolicy, is_secure: bool, attributes: str) -> None:
    ((name, value),) = affinity(policy).fields(None, A, ONE, at=NOW, is_secure=is_secure)
    assert name == b"set-cookie"
    assert value.decode().partition("; ")[2] == attributes


def test_a_header_has_no_attributes() -> None:
    ((name, value),) = affinity(HEADER).fields(None, A, ONE, at=NOW, is_secure=True)
    assert (name, len(value)) == (b"x-session", 34)


def test_the_cookie_of_a_consistent_hash() -> None:
    assert hash_cookie_field(SetCookie(ttl_s=60, path="/a"), "u", b"7", is_secure=True) == (
        b"set-cookie",
        b"u=7; Path=/a; Max-Age=60; HttpOnly; SameSite=Lax; Secure",
    )
    assert b"Max-Age" not in hash_cookie_field(SetCookie(), "u", b"7", is_secure=False)[1]


def test_in_words() -> None:
    assert describe_affinity(COOKIE) == "session affinity by cookie s; a session ends with the browser"
    permanent = AffinityPolicy(name="s", absolute_s=60.0, idle_s=5.0, is_permanent=True)
    assert describe_affinity(permanent) == (
        "session affinity by cookie s; a session ends 60 s after it began or after 5 s without a request"
    )
    assert describe_affinity(HEADER) == "session affinity by header x-session; a session ends when its endpoint does"


# --- where sessions lead --------------------------------------------------------------------------------------------


def linker() -> Linker:
    plugins = load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])
    return Linker(plugins, session_key=KEY)


def content(*refs: BackendRef, version: int = 1, endpoints: int = 4) -> SnapshotData:
    rule = msgspec.structs.replace(make_rule(), destinations=refs, affinity=COOKIE)
    services = {ref.service: make_service(ref.service, endpoints) for ref in refs}
    return SnapshotData(version=version, rules=(rule,), services=services)


def pick(snapshot: Snapshot, tag: bytes, seed: int = 1) -> tuple[str, EndpointKey]:
    rule = snapshot.match(make_head())
    assert rule is not None
    lease = rule.select(make_head(), rng=random.Random(seed), now=1.0, tag=tag)
    assert isinstance(lease, Lease)
    lease.release()
    return lease.state.service.key, lease.key


def tag_of(snapshot: Snapshot, service: ServiceKey, key: EndpointKey) -> bytes:
    rule = snapshot.match(make_head())
    assert rule is not None
    assert rule.affinity is not None
    return rule.affinity.tag(service, key)


def test_a_session_keeps_its_endpoint_and_its_service_whatever_the_weights_say() -> None:
    snapshot = linker().link(content(BackendRef(service=A, weight=99), BackendRef(service=B, weight=1)))
    for endpoint in snapshot.services[B].service.endpoints:
        tag = tag_of(snapshot, B, endpoint.key)
        assert {pick(snapshot, tag, seed) for seed in range(30)} == {(B, endpoint.key)}


def test_a_session_whose_endpoint_takes_nothing_goes_where_the_balancer_sends_it() -> None:
    served = linker()
    snapshot = served.link(content(BackendRef(service=A)))
    first = snapshot.services[A].service.endpoints[0]
    tag = tag_of(snapshot, A, first.key)
    served.apply_health([HealthChange(service=A, endpoint=first.key, is_usable=False, since=0.0)])
    assert first.key not in {pick(snapshot, tag, seed)[1] for seed in range(30)}
    served.apply_health([HealthChange(service=A, endpoint=first.key, is_usable=True, since=0.0)])
    assert pick(snapshot, tag)[1] == first.key
    rule = snapshot.match(make_head())
    assert rule is not None
    lease = rule.select(make_head(), rng=random.Random(1), now=1.0, tag=tag, excluded=frozenset({first.key}))
    assert isinstance(lease, Lease)
    assert lease.key != first.key, "it was tried in vain"


def test_a_session_of_an_endpoint_that_has_left_or_whose_share_is_0_ends() -> None:
    served = linker()
    snapshot = served.link(content(BackendRef(service=A)))
    last = snapshot.services[A].service.endpoints[-1]
    tag = tag_of(snapshot, A, last.key)
    smaller = served.link(content(BackendRef(service=A), version=2, endpoints=2))
    assert last.key not in {pick(smaller, tag, seed)[1] for seed in range(20)}
    none = served.link(content(BackendRef(service=A, weight=0), BackendRef(service=B), version=3))
    assert {pick(none, tag, seed)[0] for seed in range(20)} == {B}
