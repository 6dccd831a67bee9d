from __future__ import annotations

import os
import subprocess
import sys

import pytest

from datum_router.balancing.hashing import hash64, rendezvous
from datum_router.balancing.hashkey import hash_key, is_sticky, uses_hash
from datum_router.model.endpoint import make_endpoint
from datum_router.model.route import BalancingPolicy, HashOn
from datum_router.testing.factories import make_head


def policy(on: HashOn, name: str = "", algorithm: str = "consistent-hash") -> BalancingPolicy:
    return BalancingPolicy(algorithm=algorithm, hash_on=on, hash_name=name)


@pytest.mark.parametrize(
    ("on", "name", "read"),
    [
        (HashOn.SOURCE_IP, "", b"2001:db8::7"),
        (HashOn.HEADER, "x-user", b"ann"),
        (HashOn.HEADER, "X-User", b"ann"),
        (HashOn.COOKIE, "session", b"s=1"),
        (HashOn.QUERY, "id", b"a b"),
        (HashOn.PATH, "", b"/items/7"),
    ],
)
def test_each_place_gives_the_hash_of_its_bytes(on: HashOn, name: str, read: bytes) -> None:
    head = make_head(
        "/items/7?x=1&id=a%20b&id=second",
        headers={"x-user": "ann", "cookie": "other=2; session=s=1; session=later"},
        client_ip="2001:db8::7",
    )
    assert hash_key(policy(on, name), head) == hash64(read)


@pytest.mark.parametrize(
    ("on", "name"),
    [
        (HashOn.SOURCE_IP, ""),
        (HashOn.HEADER, "x-user"),
        (HashOn.COOKIE, "session"),
        (HashOn.QUERY, "id"),
    ],
)
def test_a_request_without_the_value_or_with_an_empty_one_has_no_key(on: HashOn, name: str) -> None:
    assert hash_key(policy(on, name), make_head("/", client_ip="")) is None
    empty = make_head("/?id=", headers={"x-user": "", "cookie": "session="}, client_ip="")
    assert hash_key(policy(on, name), empty) is None


def test_cookie_is_found_in_split_fields() -> None:
    head = make_head("/", headers=[("cookie", "a=1"), ("cookie", "session=9")])
    assert hash_key(policy(HashOn.COOKIE, "session"), head) == hash64(b"9")


def test_a_cookie_without_a_value_does_not_hide_the_one_with_a_value() -> None:
    head = make_head("/", headers={"cookie": "session; session=9"})
    assert hash_key(policy(HashOn.COOKIE, "session"), head) == hash64(b"9")


def test_cookie_names_are_compared_whole() -> None:
    head = make_head("/", headers={"cookie": "xsession=1; session2=2; session"})
    assert hash_key(policy(HashOn.COOKIE, "session"), head) is None


def test_source_ip_reads_the_address_whatever_hash_on_says() -> None:
    head = make_head("/", client_ip="192.0.2.9", headers={"x-user": "ann"})
    assert hash_key(policy(HashOn.HEADER, "x-user", "source-ip"), head) == hash64(b"192.0.2.9")


def test_a_query_with_too_many_parameters_has_no_key() -> None:
    assert hash_key(policy(HashOn.QUERY, "id"), make_head("/?id=1" + "&x=1" * 200)) is None


def test_keys_are_computed_for_hash_balancers_and_for_plugins_only() -> None:
    by_name = {
        name: (uses_hash(BalancingPolicy(algorithm=name)), is_sticky(BalancingPolicy(algorithm=name)))
        for name in ("round-robin", "least-connections", "random", "source-ip", "consistent-hash", "from-a-plugin")
    }
    assert by_name == {
        "round-robin": (False, False),
        "least-connections": (False, False),
        "random": (False, False),
        "source-ip": (True, True),
        "consistent-hash": (True, True),
        "from-a-plugin": (True, False),
    }


def test_hash_is_equal_in_a_process_with_another_hash_seed() -> None:
    code = "from datum_router.balancing.hashing import hash64; print(hash64(b'192.0.2.1'))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {str(hash64(b"192.0.2.1"))}


def test_rendezvous_moves_only_keys_of_the_removed_endpoint() -> None:
    candidates = [make_endpoint(f"10.0.0.{n}", 80) for n in range(8)]
    for key in range(200):
        before = rendezvous(key, candidates)
        after = rendezvous(key, candidates[1:])
        assert after is before or before is candidates[0]
