"""Whatever is changed and in which order: what is made out of the last snapshot equals what is made from nothing."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.diff import apply_delta, digest_of, make_delta
from datum_router.compiler.linker import Linker
from datum_router.compiler.precedence import sort_key
from datum_router.compiler.splice import differences, splice
from datum_router.errors import ConfigError
from datum_router.model.endpoint import make_endpoint
from datum_router.model.listener import Listener
from datum_router.model.request import LocalReply, RequestHead
from datum_router.model.route import BackendRef, BalancingPolicy, Rule, RuleId
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData, SnapshotDelta
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.routing.matcher import Matcher
from datum_router.testing.oracle import oracle_match
from datum_router.testing.strategies import heads, rule_sets

SERVICES = ("default/a", "default/b")
LISTENERS = (Listener(name="plain"), Listener(name="tls", port=8443))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 9), unique=True), st.lists(st.integers(0, 9), unique=True))
def test_splice_undoes_differences(first: list[int], second: list[int]) -> None:
    pool = [object() for _ in range(10)]
    old, new = [pool[item] for item in first], [pool[item] for item in second]
    gone, added = differences(old, new)
    assert splice(old, gone, added, [new[position] for position in added]) == tuple(new)
    if not set(first) & set(second):
        assert (gone, added) == (list(range(len(old))), list(range(len(new))))
    if first == second:
        assert (gone, added) == ([], [])


def test_one_change_among_many_is_found_alone() -> None:
    old = [object() for _ in range(50)]
    new = [*old[:7], object(), *old[8:30], *old[31:], object()]
    assert differences(old, new) == ([7, 30], [7, 49])


@pytest.mark.parametrize(
    ("gone", "added"), [((3,), ()), ((1, 0), ()), ((0, 0), ()), ((-1,), ()), ((), (4,)), ((), (2, 1)), ((), (-1,))]
)
def test_splice_refuses_places_that_are_not_there(gone: tuple[int, ...], added: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="position"):
        splice([1, 2, 3], gone, added, ["x"] * len(added))


def test_a_delta_with_places_that_are_not_there_asks_for_a_full_snapshot() -> None:
    with pytest.raises(ConfigError, match="a full snapshot is needed"):
        apply_delta(SnapshotData(version=1), SnapshotDelta(base=1, version=2, digest="", removed_rules=(5,)))


@settings(max_examples=200, deadline=None)
@given(st.lists(rule_sets(max_size=8), min_size=2, max_size=5), st.lists(heads(), min_size=1, max_size=6))
def test_an_updated_matcher_matches_as_a_new_one(sets: list[list[Rule]], requests: list[RequestHead]) -> None:
    matcher = Matcher(sets[0])
    for before, after in itertools.pairwise(sets):
        seen = [matcher.match(head) for head in requests]
        new = matcher.updated(
            [rule for rule in before if rule not in after], [rule for rule in after if rule not in before]
        )
        assert [matcher.match(head) for head in requests] == seen, "the old matcher has changed"
        assert [new.match(head) for head in requests] == [oracle_match(after, head) for head in requests]
        matcher = new
    assert shape(matcher.updated(sets[-1], ())) == shape(Matcher()), "something is left behind"


def shape(matcher: Matcher) -> tuple[object, ...]:
    return (matcher._exact, matcher._wildcards, matcher._any, matcher._longest_wildcard, matcher.problems)


@settings(max_examples=100, deadline=None)
@given(rule_sets(max_size=6, with_patterns=True), rule_sets(max_size=6, with_patterns=True))
def test_an_updated_matcher_lists_the_same_problems(first: list[Rule], second: list[Rule]) -> None:
    updated = Matcher(first).updated(first, second)
    assert sorted(updated.problems, key=str) == sorted(Matcher(second).problems, key=str)


@st.composite
def snapshots(draw: st.DrawFn) -> SnapshotData:
    """Draw snapshots whose rules lead to services that are there, or not."""
    references = st.builds(
        BackendRef, service=st.sampled_from([ServiceKey(name) for name in (*SERVICES, "default/none")])
    )
    rules = [
        msgspec.structs.replace(rule, destinations=tuple(draw(st.lists(references, min_size=1, max_size=2))))
        for rule in draw(rule_sets(max_size=6))
    ]
    services = [
        Service(
            key=ServiceKey(name), endpoints=tuple(make_endpoint(f"10.0.0.{draw(st.integers(1, 2))}", 80) for _ in "x")
        )
        for name in draw(st.lists(st.sampled_from(SERVICES), unique=True))
    ]
    return SnapshotData(
        services={service.key: service for service in services},
        rules=tuple(sorted(rules, key=sort_key)),
        listeners=draw(st.sampled_from(((), LISTENERS[:1], LISTENERS))),
    )


@pytest.fixture(scope="module")
def plugins() -> PluginSet:
    return load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])


@settings(max_examples=100, deadline=None)
@given(
    versions=st.lists(snapshots(), min_size=2, max_size=5),
    requests=st.lists(heads(), min_size=1, max_size=6),
    broken=st.lists(snapshots(), min_size=5, max_size=5),
    breaks=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_a_snapshot_out_of_deltas_serves_as_one_from_nothing(
    plugins: PluginSet,
    versions: list[SnapshotData],
    requests: list[RequestHead],
    broken: list[SnapshotData],
    breaks: list[bool],
) -> None:
    """Also if others, which a plugin's fault kept from being linked, came in between."""
    supervisor = there = SnapshotData()
    linker = Linker(plugins)
    for number, drawn in enumerate(versions, 1):
        drawn = msgspec.structs.replace(drawn, version=number, digest=digest_of(drawn))
        delta = msgspec.msgpack.decode(msgspec.msgpack.encode(make_delta(supervisor, drawn)), type=SnapshotDelta)
        there = apply_delta(there, delta)
        assert there == drawn
        assert digest_of(there) == drawn.digest
        supervisor = drawn
        if breaks[number - 1]:
            with pytest.raises(KeyError):
                linker.link(unlinkable(broken[number - 1]))
        snapshot, fresh = linker.link(there), Linker(plugins).link(drawn)
        assert snapshot.rules.keys() == fresh.rules.keys()
        assert snapshot.matches_request_id == fresh.matches_request_id
        for head in requests:
            found, expected = snapshot.match(head), fresh.match(head)
            assert (found and found.rule) == (expected and expected.rule)
            if found is not None and expected is not None:
                assert chosen(found.select(head, rng=random.Random(1), now=1.0)) == chosen(
                    expected.select(head, rng=random.Random(1), now=1.0)
                )
        for key, state in snapshot.services.items():
            serving = {
                balancer for linked in snapshot.rules.values() for one, balancer in linked.balancers() if one is state
            }
            assert set(state.balancers) == serving, f"balancers of {key} are not those of its rules"


def unlinkable(data: SnapshotData) -> SnapshotData:
    """Return `data` with a last rule whose balancer cannot be made."""
    service = next(iter(data.services), ServiceKey("default/a"))
    rule = Rule(
        id=RuleId("z#0"),
        route="z",
        destinations=(BackendRef(service=service),),
        balancing=BalancingPolicy(algorithm="none such"),
    )
    return msgspec.structs.replace(
        data, rules=(*data.rules, rule), services=data.services or {service: Service(key=service)}
    )


def chosen(answer: object) -> object:
    if isinstance(answer, LocalReply):
        return answer
    endpoint = answer.endpoint.key  # type: ignore[attr-defined]  # a lease
    answer.release()  # type: ignore[attr-defined]
    return endpoint
