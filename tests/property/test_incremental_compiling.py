"""After any sequence of edits the compiler's result is what a compiler that begins with that view would find."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.compiler import CompileOptions, Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.compiler.diff import digest_of, part_digest
from datum_router.compiler.precedence import rule_rank, sort_key
from datum_router.compiler.table import RuleTable
from datum_router.manifests.decode import decode
from datum_router.manifests.meta import ObjectKey
from datum_router.model.listener import Listener
from datum_router.model.request import RequestHead
from datum_router.model.route import Match, Rule, RuleId
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import Delete, SourceEvent, Upsert
from datum_router.registry.store import Store
from datum_router.routing.matcher import Matcher
from datum_router.testing.strategies import rule_sets
from tests.property.edits import NAMES, all_plugins, edits

PLAIN = Listener(name="plain", port=8080)


@pytest.fixture(scope="module")
def plugins() -> PluginSet:
    return all_plugins()


class History:
    """What a process that has just begun would be told: of each object its text, and the last good one before it."""

    def __init__(self, plugins: PluginSet) -> None:
        self._kinds = plugins.kinds
        self._events: dict[ObjectKey, list[Upsert]] = {}

    def take(self, event: SourceEvent) -> None:
        if isinstance(event, Delete):
            self._events.pop(event.key, None)
            return
        assert isinstance(event, Upsert)
        decoded = decode(event.raw, event.origin, self._kinds)
        assert decoded.key is not None
        good = [one for one in self._events.get(decoded.key, []) if decode(one.raw, one.origin, self._kinds).manifest]
        self._events[decoded.key] = [event] if decoded.manifest is not None else [*good, event]

    def store(self) -> Store:
        store = Store(self._kinds)
        for events in self._events.values():
            for event in events:
                store.apply(event)
        return store


@settings(max_examples=200, deadline=None)
@given(
    batches=st.lists(st.lists(edits(files=("f.yaml", "g.yaml")), max_size=12), min_size=1, max_size=6),
    listen=st.sampled_from((None, PLAIN)),
    is_compiled=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_compiling_edit_by_edit_equals_compiling_from_nothing(
    plugins: PluginSet, batches: list[list[SourceEvent]], listen: Listener | None, is_compiled: list[bool]
) -> None:
    options = CompileOptions(listen=listen, fallback_listener=PLAIN)
    history = History(plugins)
    store, compiler = Store(plugins.kinds), Compiler(plugins, options)
    last = compiler.compile(store.view())
    for batch, is_seen in zip(batches, is_compiled, strict=False):
        for event in batch:
            store.apply(event)
            history.take(event)
        view = store.view()
        if not is_seen:
            steps = compiler.compile_in_steps(view)
            next(steps)
            steps.close()  # half-way
            continue
        result = compiler.compile(view)
        fresh = Compiler(plugins, options).compile(history.store().view())
        assert result.diagnostics == fresh.diagnostics
        assert result.data.rules == fresh.data.rules
        assert list(result.data.services.items()) == list(fresh.data.services.items())
        assert list(result.contributions.items()) == list(fresh.contributions.items())
        assert result.data.listeners == fresh.data.listeners
        assert result.data.digest == fresh.data.digest == digest_of(fresh.data)
        assert (result.data is last.data) == (result.data.digest == last.data.digest)
        assert result.data.version == last.data.version + (result.data is not last.data)
        before = {rule.id: rule for rule in last.data.rules}
        assert all(rule is before[rule.id] for rule in result.data.rules if before.get(rule.id) == rule)
        last = result


def test_a_compilation_that_broke_leaves_nothing_behind(plugins: PluginSet) -> None:
    store, compiler = Store(plugins.kinds), Compiler(plugins)
    spec = {"port": 80, "endpoints": [{"address": "10.0.0.1"}]}
    for name in NAMES:
        metadata = {"name": name}
        raw = {"apiVersion": "router.datum.net/v1alpha1", "kind": "VPCService", "metadata": metadata, "spec": spec}
        store.apply(Upsert(source="test", raw=raw, origin=Origin(source="test")))
    first = compiler.compile(store.view())
    store.apply(Delete(source="test", key=ObjectKey(kind="VPCService", namespace="default", name="a")))

    class Broken(RuleTable):
        def update_in_steps(self, removed: object, added: object) -> Generator[None, None, None]:
            raise RuntimeError("oops")

    compiler._table = Broken()
    with pytest.raises(RuntimeError, match="oops"):
        compiler.compile(store.view())
    second = compiler.compile(store.view())
    assert sorted(second.data.services) == ["default/b", "default/c"]
    assert second.data.digest == digest_of(second.data)
    assert second.data.version == first.data.version + 1
    assert second.data.services["default/b"] is first.data.services["default/b"]  # type: ignore[index]  # a ServiceKey


@settings(max_examples=200, deadline=None)
@given(st.lists(rule_sets(max_size=8), min_size=2, max_size=4))
def test_the_table_of_rules_is_in_order_and_knows_digests_and_conflicts(sets: list[list[Rule]]) -> None:
    table = RuleTable()
    before: list[Rule] = []
    for drawn in sets:
        table.update(before, ())
        table.update((), drawn)
        if len(drawn) > 1:
            table._move(drawn[:1], drawn[:1])
            table._conflicts.update(drawn[:1], drawn[:1])
        before = drawn
        assert table.rules == tuple(sorted(drawn, key=sort_key))
        assert bytes(table.digests) == b"".join(map(part_digest, table.rules))
        assert table.conflicts() == slow_conflicts(table.rules)


def slow_conflicts(rules: tuple[Rule, ...]) -> list[tuple[Rule, Rule]]:
    """Return (loser, winner) for every rule whose every host name and match belongs to another rule."""
    owners: dict[tuple[str, tuple[str, ...], Match], Rule] = {}
    for rule in sorted(rules, key=rule_rank):  # the order among rules of one host name
        for host in rule.hostnames or ("",):
            owners.setdefault((host, rule.listeners, rule.match), rule)
    taken = [(rule, [owners[host, rule.listeners, rule.match] for host in rule.hostnames or ("",)]) for rule in rules]
    return [(rule, found[-1]) for rule, found in taken if rule not in found]


def test_the_winner_is_the_rule_that_the_matcher_finds() -> None:
    """Under `*.x` the older rule wins, though the other one has a more specific host name as well."""
    old = Rule(id=RuleId("d/old#0"), route="d/old", hostnames=("*.x",), created_at=1.0)
    new = Rule(id=RuleId("d/new#0"), route="d/new", hostnames=("a.x", "*.x"), created_at=2.0)
    same = Rule(id=RuleId("d/same#0"), route="d/same", hostnames=("*.x",), created_at=3.0)
    table = RuleTable()
    table.update((), (old, new, same))
    assert table.conflicts() == [(same, old)]
    assert Matcher((old, new, same)).match(RequestHead(method="GET", authority="b.x", host="b.x", path="/")) is old
