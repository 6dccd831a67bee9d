"""After any sequence of edits the compiler's result is what a compiler that begins with that view would find."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.compiler import CompileOptions, Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.compiler.diff import digest_of, part_digest
from datum_router.compiler.precedence import sort_key
from datum_router.compiler.table import RuleTable
from datum_router.manifests.meta import ObjectKey
from datum_router.model.listener import Listener
from datum_router.model.route import Match, Rule
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import Delete, SourceEvent, Upsert
from datum_router.registry.store import Store
from datum_router.testing.strategies import rule_sets

NAMES = ("a", "b", "c")
NAMESPACES = ("default", "prod")
PLAIN = Listener(name="plain", port=8080)
few_names = st.lists(st.sampled_from(NAMES), max_size=2, unique=True)


@pytest.fixture(scope="module")
def plugins() -> PluginSet:
    return load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])


@st.composite
def specs(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Draw specs that refer to each other, conflict with each other, and are sometimes bad."""
    name, namespace = st.sampled_from(NAMES), st.sampled_from((None, *NAMESPACES))
    reference = st.fixed_dictionaries({"name": name}, optional={"namespace": st.sampled_from(NAMESPACES)})
    hosts = st.lists(st.sampled_from(("a.test", "b.test", "*.test")), max_size=2, unique=True)
    if kind == "VPCService":
        spec: dict[str, Any] = {"port": draw(st.sampled_from((80, 81, 70_000)))}
        if draw(st.booleans()):
            spec["endpoints"] = [{"address": draw(st.sampled_from(("10.0.0.1", "10.0.0.2")))}]
        if draw(st.booleans()):
            spec["exportTo"] = {"namespaces": "All"}
        if draw(st.booleans()):
            spec |= {"protocol": "HTTPS", "tls": {"caCertificateRefs": [{"name": draw(name), "kind": "ConfigMap"}]}}
        return spec
    if kind == "VPCRoute":
        match = st.fixed_dictionaries({"pathPrefix": st.sampled_from(("/", "/a", "/a/b", "bad"))})
        spec = {
            "hostnames": draw(hosts),
            "matches": draw(st.lists(match, min_size=1, max_size=2)),
            "destinations": [{"vpcServiceRef": item} for item in draw(st.lists(reference, min_size=1, max_size=2))],
        }
        if draw(st.booleans()):
            spec["parentRefs"] = [{"name": item} for item in draw(few_names)]
        if draw(st.integers(0, 9)) == 0:
            spec["loadBalancing"] = "no-such-balancer"
        return spec
    if kind == "VPCIngress":
        port = draw(st.sampled_from((8080, 8081)))
        return {
            "host": draw(st.sampled_from(("a.test", "*.test"))),
            "listeners": [{"name": "x", "port": port, "protocol": "HTTP"}],
            "rules": [{"path": "/a", "service": {"name": draw(name)}}] if draw(st.booleans()) else [],
        }
    assert kind == "ServiceBinding"
    return {"serviceRef": {"name": draw(name)}, "vpcServiceRef": {"name": draw(name)}} | (
        {} if draw(namespace) is None else {"syncIntervalSeconds": 5}
    )


KINDS = ("VPCService", "VPCService", "VPCRoute", "VPCRoute", "VPCRoute", "VPCIngress", "ServiceBinding", "ConfigMap")


@st.composite
def edits(draw: st.DrawFn) -> SourceEvent:
    kind, name, namespace = (
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(NAMES)),
        draw(st.sampled_from(NAMESPACES)),
    )
    if draw(st.integers(0, 4)) == 0:
        return Delete(source="test", key=ObjectKey(kind=kind, namespace=namespace, name=name))
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    created = draw(st.sampled_from(("", "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z")))
    if created:
        metadata["creationTimestamp"] = created
    raw: dict[str, Any] = {"apiVersion": "router.datum.net/v1alpha1", "kind": kind, "metadata": metadata}
    if kind == "ConfigMap":
        raw |= {"apiVersion": "v1", "data": {"ca.crt": draw(st.sampled_from(("one", "two")))}}
    else:
        raw["spec"] = draw(specs(kind))
    return Upsert(source="test", raw=raw, origin=Origin(source="test", file="f.yaml", line=draw(st.integers(1, 3))))


@settings(max_examples=200, deadline=None)
@given(
    batches=st.lists(st.lists(edits(), max_size=12), min_size=1, max_size=6),
    listen=st.sampled_from((None, PLAIN)),
)
def test_compiling_edit_by_edit_equals_compiling_from_nothing(
    plugins: PluginSet, batches: list[list[SourceEvent]], listen: Listener | None
) -> None:
    options = CompileOptions(listen=listen, fallback_listener=PLAIN)
    store, compiler = Store(plugins.kinds), Compiler(plugins, options)
    last = compiler.compile(store.view())
    for batch in batches:
        for event in batch:
            store.apply(event)
        view = store.view()
        result, fresh = compiler.compile(view), Compiler(plugins, options).compile(view)
        assert result.diagnostics == fresh.diagnostics
        assert result.data.rules == fresh.data.rules
        assert list(result.data.services.items()) == list(fresh.data.services.items())
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
        def update(self, removed: object, added: object) -> None:
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
    """Return (loser, winner) for every rule whose every host name and match an earlier rule has already taken."""
    owners: dict[tuple[str, tuple[str, ...], Match], Rule] = {}
    conflicts: list[tuple[Rule, Rule]] = []
    for rule in rules:
        taken = [owners.setdefault((host, rule.listeners, rule.match), rule) for host in rule.hostnames or ("",)]
        if rule not in taken:
            conflicts.append((rule, taken[-1]))
    return conflicts
