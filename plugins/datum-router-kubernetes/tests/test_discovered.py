"""Slices of discovery as gateways read them."""

from __future__ import annotations

import msgspec
import pytest

from datum_router.compiler.compiler import Compiler, CompileResult
from datum_router.compiler.diagnostics import Origin
from datum_router.discovery.slices import Group, Slice, raw_of
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Upsert
from datum_router.registry.store import Store
from datum_router_kubernetes import plugin

PLUGINS = load_plugins(
    [
        Candidate(entry_point="builtin", distribution="", load=lambda: builtin),
        Candidate(entry_point="kubernetes", distribution="", load=lambda: plugin),
    ]
)
GROUP = Group(
    port=8080,
    vpc="shop/main",
    topology=(("topology.datum.net/city-code", "DFW"),),
    location="dfw-1",
    coordinates="32.9,-97.0",
    weight=7,
    priority=1,
)


def slice_(**fields: object) -> Slice:
    made = Slice(
        namespace="shop",
        name="api-0",
        service="api",
        cluster="b",
        owner_uid="uid-1",
        group=GROUP,
        members=(("10.0.0.1", True), ("10.0.0.2", False)),
    )
    return msgspec.structs.replace(made, **fields)


def compiled(*slices: Slice, method: str = "endpointslice") -> CompileResult:
    store = Store(PLUGINS.kinds)
    service = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCService",
        "metadata": {"name": "api", "namespace": "shop", "uid": "uid-1"},
        "spec": {"port": 80, "discovery": {"method": method}},
    }
    for raw in (service, *(raw_of(one) for one in slices)):
        store.apply(Upsert(source="test", raw=raw, origin=Origin(source="test")))
    return Compiler(PLUGINS).compile(store.view())


def endpoints(result: CompileResult) -> dict[str, object]:
    (service,) = result.data.services.values()
    return {str(one.key): one for one in service.endpoints}


def test_endpoints_come_with_their_cluster_vpc_and_place() -> None:
    result = compiled(slice_())
    assert not result.findings
    found = endpoints(result)
    assert list(found) == ["10.0.0.1:8080@shop/main", "10.0.0.2:8080@shop/main"]
    one = found["10.0.0.1:8080@shop/main"]
    assert msgspec.to_builtins(one) == {
        "key": "10.0.0.1:8080@shop/main",
        "address": "10.0.0.1",
        "port": 8080,
        "weight": 7,
        "priority": 1,
        "locality": {
            "topology": (("topology.datum.net/city-code", "DFW"),),
            "location": "dfw-1",
            "latitude": 32.9,
            "longitude": -97.0,
        },
        "origin": "cluster:b",
        "is_serving": True,
        "vpc": "shop/main",
        "cluster": "b",
    }


@pytest.mark.parametrize("fields", [{"owner_uid": "uid-2"}, {"service": "other"}, {"namespace": "pay"}])
def test_slices_that_the_service_does_not_own_are_not_its_own(fields: dict[str, str]) -> None:
    assert endpoints(compiled(slice_(**fields))) == {}


def test_a_service_that_asks_for_none_gets_none() -> None:
    assert endpoints(compiled(slice_(), method="kubernetes")) == {}


def test_staleness_and_conflicts_are_told_and_cost_no_endpoint() -> None:
    conflict = slice_(name="api-1", group=Group(), members=(), conflict="spec.port is 1 there and 80 here", cluster="c")
    result = compiled(slice_(stale_since="2026-01-01T00:00:00Z"), conflict)
    assert len(endpoints(result)) == 2
    assert [(str(one.reason), one.message) for one in result.findings] == [
        ("ExportConflict", "cluster c: spec.port is 1 there and 80 here"),
        ("ClusterStale", "cluster b is not heard since 2026-01-01T00:00:00Z, its last endpoints are used"),
    ]
