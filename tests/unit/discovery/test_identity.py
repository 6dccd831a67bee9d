"""Secrets that lead to the own cluster, or several to one."""

from __future__ import annotations

from datum_router.discovery.identity import Joined, is_uid, refusals
from datum_router.reasons import Reason


def test_the_own_cluster_is_refused() -> None:
    found = refusals("me", [Joined(name="b", id="me"), Joined(name="c", id="you")])
    assert {name: one.reason for name, one in found.items()} == {"b": Reason.OWN_CLUSTER}
    assert "leads to the cluster that this daemon publishes in" in found["b"].message


def test_of_two_secrets_for_one_cluster_the_older_counts() -> None:
    old = Joined(name="z", since="2026-01-01T00:00:00Z", id="x")
    new = Joined(name="a", since="2026-01-02T00:00:00Z", id="x")
    found = refusals("me", [new, old])
    assert {name: one.reason for name, one in found.items()} == {"a": Reason.DUPLICATE_CLUSTER}
    assert "the older Secret z" in found["a"].message


def test_of_equally_old_ones_the_first_by_name_counts() -> None:
    assert set(refusals("", [Joined(name=name, id="x") for name in "cab"])) == {"b", "c"}


def test_nothing_follows_from_what_is_not_known() -> None:
    assert refusals("", [Joined(name="b"), Joined(name="c")]) == {}
    assert refusals("me", [Joined(name="b"), Joined(name="c", id="x")]) == {}


def test_what_is_no_uid_is_none() -> None:
    assert is_uid("0f2d8a3e-6d0c-4a55-9d6b-1f3c2b1a0e9d")
    assert not any(map(is_uid, ["", "x" * 65, "a b", "a\n", "\x1b[2J", "é"]))
