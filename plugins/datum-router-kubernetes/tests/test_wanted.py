"""What is read by name follows what is named, up to a limit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.manifests.meta import ObjectKey
from datum_router_kubernetes.wanted import Change, Wanted


def secret(name: str) -> ObjectKey:
    return ObjectKey(kind="Secret", namespace="shop", name=name)


def ingress(name: str) -> ObjectKey:
    return ObjectKey(kind="VPCIngress", namespace="shop", name=name)


def test_what_is_named_is_watched_until_nobody_names_it() -> None:
    wanted = Wanted()
    assert wanted.put(ingress("a"), [secret("x"), secret("x")]) == Change(added=(secret("x"),))
    assert wanted.put(ingress("b"), [secret("x"), secret("y")]) == Change(added=(secret("y"),))
    assert wanted.put(ingress("a"), []) == Change()
    assert wanted.put(ingress("b"), [secret("y")]) == Change(removed=(secret("x"),))
    assert wanted.put(ingress("b"), [secret("y")]) == Change()
    assert wanted.put(ingress("gone"), []) == Change()
    assert wanted.watched() == {secret("y")}
    assert wanted.named_by(ingress("b")) == {secret("y")}


def test_what_is_beyond_the_limit_is_told_and_moves_up_when_there_is_room() -> None:
    wanted = Wanted(limit=2)
    wanted.put(ingress("a"), [secret("x"), secret("y")])
    assert wanted.left_out() == ""
    assert wanted.put(ingress("b"), [secret("z")]) == Change()
    assert "3 secrets" in wanted.left_out()
    assert "secret shop/z" in wanted.left_out()
    assert wanted.put(ingress("a"), [secret("y")]) == Change(added=(secret("z"),), removed=(secret("x"),))
    assert wanted.left_out() == ""


def test_a_namespace_that_names_hundreds_leaves_others_their_share() -> None:
    wanted = Wanted(limit=4)
    greedy = [ObjectKey(kind="Secret", namespace="a-greedy", name=f"s{number}") for number in range(1000)]
    wanted.put(ObjectKey(kind="VPCService", namespace="a-greedy", name="many"), greedy)
    assert wanted.watched() == set(greedy[:4])
    assert wanted.put(ingress("a"), [secret("x")]) == Change(added=(secret("x"),), removed=(greedy[3],))
    assert wanted.put(ingress("b"), [secret("y")]) == Change(added=(secret("y"),), removed=(greedy[2],))
    assert wanted.put(ingress("c"), [secret("z")]) == Change()  # both have as many
    assert "1003 secrets" in wanted.left_out()
    assert wanted.put(ingress("a"), []) == Change(added=(secret("z"),), removed=(secret("x"),))
    assert wanted.put(ingress("b"), []) == Change(added=(greedy[4],), removed=(secret("y"),))


puts = st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from("uvwxyz"), max_size=4)), max_size=20)


@settings(max_examples=300, deadline=None)
@given(puts, st.integers(1, 6))
def test_changes_add_up_to_what_is_watched(history: list[tuple[str, list[str]]], limit: int) -> None:
    wanted = Wanted(limit)
    watched: set[ObjectKey] = set()
    named: dict[str, set[ObjectKey]] = {}
    for referrer, names in history:
        change = wanted.put(ingress(referrer), [secret(name) for name in names])
        named[referrer] = {secret(name) for name in names}
        assert watched.isdisjoint(change.added)
        assert watched.issuperset(change.removed)
        watched = (watched | set(change.added)) - set(change.removed)
        everything = set().union(*named.values())
        assert wanted.watched() == watched
        assert watched <= everything
        assert len(watched) == min(limit, len(everything))
        assert bool(wanted.left_out()) == (len(everything) > limit)
