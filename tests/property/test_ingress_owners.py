"""Whatever VPCIngresses ask for, and in whatever order they come: the oldest one has a port, and a host name of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.compiler import CompileOptions, Compiler, CompileResult
from datum_router.compiler.diagnostics import Origin
from datum_router.compiler.edge import wanted_listeners
from datum_router.manifests.vpcingress import VPCIngress
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import Upsert
from datum_router.reasons import Reason
from datum_router.registry.store import Store
from tests.property.edits import HOSTS, NAMES, NAMESPACES, all_plugins, few, ingresses, some

OPTIONS = CompileOptions(are_credentials_known=False)
CREATED = some("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "")
SPECS = st.tuples(ingresses(), few(st.sampled_from(HOSTS))).map(lambda drawn: {**drawn[0], "hosts": drawn[1]})
KEYS = st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(NAMES))


@pytest.fixture(scope="module")
def plugins() -> PluginSet:
    return all_plugins()


def event(key: tuple[str, str], created: str, spec: Mapping[str, Any]) -> Upsert:
    metadata = {"namespace": key[0], "name": key[1]} | ({"creationTimestamp": created} if created else {})
    raw = {"apiVersion": "router.datum.net/v1alpha1", "kind": "VPCIngress", "metadata": metadata, "spec": spec}
    return Upsert(source="test", raw=raw, origin=Origin(source="test"))


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[Upsert], list[Upsert]]:
    """Draw VPCIngresses in two orders."""
    objects = draw(st.dictionaries(KEYS, st.tuples(CREATED, SPECS), min_size=2, max_size=6))
    events = [event(key, *parts) for key, parts in objects.items()]
    return events, draw(st.permutations(events))


class Owners:
    """Who has what, found out one after the other, oldest first."""

    def __init__(self, found: Iterable[VPCIngress]) -> None:
        self.ports: dict[int, VPCIngress] = {}
        self.spoken: dict[int, str] = {}
        self.hosts: dict[tuple[int, str], VPCIngress] = {}
        self.losers: set[tuple[str, str]] = set()  # of a host name at least, to another namespace
        for one in sorted(found, key=lambda one: (one.metadata.creation_timestamp or "never", *name_of(one))):
            self.take(one)

    def take(self, one: VPCIngress) -> None:
        listeners = wanted_listeners(one)
        kept = [
            host for host in hosts_of(one) if not any(self.is_strangers(one, item.port, host) for item in listeners)
        ]
        if len(kept) < len(hosts_of(one)):
            self.losers.add(name_of(one))
        for item in listeners if kept else ():
            if item.protocol == "HTTPS" and one.spec.tls is None:
                continue
            if self.spoken.setdefault(item.port, item.protocol) == item.protocol:
                self.ports.setdefault(item.port, one)
                for host in kept:
                    self.hosts.setdefault((item.port, host), one)

    def is_strangers(self, one: VPCIngress, port: int, host: str) -> bool:
        owner = self.hosts.get((port, host))
        return owner is not None and owner.metadata.namespace != one.metadata.namespace


def name_of(one: VPCIngress) -> tuple[str, str]:
    return (one.metadata.namespace, one.metadata.name)


def hosts_of(one: VPCIngress) -> set[str]:
    return {one.spec.host, *one.spec.hosts}


def compiled(plugins: PluginSet, events: Sequence[Upsert], *, is_one_by_one: bool) -> tuple[CompileResult, Store]:
    store, compiler = Store(plugins.kinds), Compiler(plugins, OPTIONS)
    for one in events:
        store.apply(one)
        if is_one_by_one:
            compiler.compile(store.view())
    return compiler.compile(store.view()), store


@settings(max_examples=200, deadline=None)
@given(arrivals=arrivals())
def test_a_host_of_a_port_is_its_oldest_ingresses_whoever_came_first(
    plugins: PluginSet, arrivals: tuple[list[Upsert], list[Upsert]]
) -> None:
    result, store = compiled(plugins, arrivals[0], is_one_by_one=False)
    other, _ = compiled(plugins, arrivals[1], is_one_by_one=True)
    assert result.data.digest == other.data.digest
    assert result.data.listeners == other.data.listeners
    assert result.diagnostics == other.diagnostics

    found = [one for one in store.view().list("VPCIngress") if isinstance(one, VPCIngress)]
    expected = Owners(found)
    claims = [
        ((listener.port, host), policy.owner)
        for listener in result.data.listeners
        for policy in listener.policies
        for host in policy.hostnames
    ]
    assert len(dict(claims)) == len(claims), "a host of a port has one owner"
    assert dict(claims) == {place: "/".join(name_of(one)) for place, one in expected.hosts.items()}
    by_name = {listener.name: listener for listener in result.data.listeners}
    for listener in by_name.values():
        assert listener.name == f"{expected.spoken[listener.port].lower()}-{listener.port}"
        assert listener.max_request_body_bytes == (expected.ports[listener.port].spec.max_request_body_bytes or 0)

    for rule in result.data.rules:
        for name in rule.listeners:
            for host in rule.hostnames:
                owner = expected.hosts[by_name[name].port, host]
                assert rule.route.startswith(f"ingress:{owner.metadata.namespace}/"), "no stranger serves there"

    told = {item.object for item in result.diagnostics if item.reason is Reason.HOSTNAME_CONFLICT}
    assert told >= {f"vpcingress {'/'.join(name)}" for name in expected.losers}
