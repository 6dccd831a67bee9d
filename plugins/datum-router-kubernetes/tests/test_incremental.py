"""An edit costs what it is about: only the services that a binding, slice or pod stands behind are resolved again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from datum_router.compiler.compiler import Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.vpcservice import VPCService
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Contribution, Delete, ManifestView, Resolution, Upsert
from datum_router.registry.store import Store, StoreView
from datum_router_kubernetes import plugin
from datum_router_kubernetes.kinds import SERVICE_NAME_LABEL
from datum_router_kubernetes.resolver import BindingResolver

OURS = "router.datum.net/v1alpha1"
SERVICES = 20


def vpc_service(name: str, **spec: Any) -> dict[str, Any]:
    spec = {"port": 80, "endpoints": [{"address": "192.0.2.1"}], **spec}
    return {"apiVersion": OURS, "kind": "VPCService", "metadata": {"name": name}, "spec": spec}


def binding(name: str, **spec: Any) -> dict[str, Any]:
    spec = {"serviceRef": {"name": name}, "vpcServiceRef": {"name": name}, "autoSync": True, **spec}
    return {"apiVersion": OURS, "kind": "ServiceBinding", "metadata": {"name": name}, "spec": spec}


def service(name: str, port: int = 80) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": port}]}}


def endpoint_slice(name: str, address: str, *, of: str = "") -> dict[str, Any]:
    endpoint = {"addresses": [address], "targetRef": {"kind": "Pod", "name": f"{name}-0"}}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-x", "labels": {SERVICE_NAME_LABEL: of or name}},
        "addressType": "IPv4",
        "endpoints": [endpoint],
        "ports": [{"port": 8080}],
    }


def pod(name: str, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{name}-0", **metadata}}


class Cluster:
    """Services, each with its binding, slice and pod, and who was resolved at the last compilation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        modules: Mapping[str, Any] = {"builtin": builtin, "kubernetes": plugin}
        plugins = load_plugins(
            [
                Candidate(entry_point=name, distribution="datum-router", load=lambda module=module: module)  # type: ignore[misc]  # the loop's module
                for name, module in modules.items()
            ]
        )
        self.store, self.compiler = Store(plugins.kinds), Compiler(plugins)
        self.resolved: list[str] = []
        resolve = BindingResolver.resolve

        def counting(self_: BindingResolver, service: VPCService, view: ManifestView) -> Resolution | None:
            self.resolved.append(service.metadata.name)
            return resolve(self_, service, view)

        monkeypatch.setattr(BindingResolver, "resolve", counting)
        for number in range(SERVICES):
            name = f"s{number}"
            self.apply(
                vpc_service(name), binding(name), service(name), endpoint_slice(name, f"10.0.0.{number}"), pod(name)
            )
        self.compile()

    def apply(self, *objects: Mapping[str, Any]) -> None:
        for raw in objects:
            self.store.apply(Upsert(source="test", raw=raw, origin=Origin(source="test")))

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        key = ObjectKey(kind=kind, namespace=namespace, name=name)
        self.store.apply(Delete(source="test", key=key))

    def compile(self, *objects: Mapping[str, Any]) -> list[str]:
        """Return the services that were resolved, in order."""
        self.apply(*objects)
        self.resolved.clear()
        self.result = self.compiler.compile(self.store.view())
        return list(self.resolved)

    def addresses(self, name: str) -> list[str]:
        services = {str(key): item for key, item in self.result.data.services.items()}
        return [item.address for item in services[f"default/{name}"].endpoints if item.origin != "static"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_everything_is_resolved_once_at_first(cluster: Cluster) -> None:
    assert cluster.compile() == []
    assert cluster.addresses("s3") == ["10.0.0.3"]


def test_an_edit_of_a_slice_resolves_its_service_alone(cluster: Cluster) -> None:
    assert cluster.compile(endpoint_slice("s3", "10.0.1.3")) == ["s3"]
    assert cluster.addresses("s3") == ["10.0.1.3"]


def test_a_slice_that_comes_or_goes_resolves_its_service_alone(cluster: Cluster) -> None:
    assert cluster.compile(endpoint_slice("more", "10.0.1.9", of="s4"), pod("more")) == ["s4"]
    assert cluster.addresses("s4") == ["10.0.0.4", "10.0.1.9"]
    cluster.delete("EndpointSlice", "more-x")
    assert cluster.compile() == ["s4"]
    assert cluster.addresses("s4") == ["10.0.0.4"]


def test_a_slice_that_moves_to_another_service_resolves_both(cluster: Cluster) -> None:
    assert cluster.compile(endpoint_slice("s3", "10.0.0.3", of="s4")) == ["s3", "s4"]
    assert (cluster.addresses("s3"), cluster.addresses("s4")) == ([], ["10.0.0.3", "10.0.0.4"])


def test_an_edit_of_a_binding_resolves_the_service_that_it_fed_and_the_one_that_it_feeds(cluster: Cluster) -> None:
    assert cluster.compile(binding("s3", addressSource="PodIP")) == ["s3"]
    assert cluster.compile(binding("s3", vpcServiceRef={"name": "s7"})) == ["s3", "s7"]
    assert cluster.addresses("s7") == ["10.0.0.3", "10.0.0.7"]
    cluster.delete("ServiceBinding", "s3")
    assert cluster.compile() == ["s7"]


def test_an_edit_of_a_service_resolves_the_vpcservice_bound_to_it_alone(cluster: Cluster) -> None:
    assert cluster.compile(service("s5", 81)) == ["s5"]


def test_an_edit_of_a_pod_resolves_the_services_that_it_stands_behind_alone(cluster: Cluster) -> None:
    annotation = {"k8s.v1alpha.galactic.datumapis.com/vpc-attachment": "gone"}
    assert cluster.compile(pod("s3", annotations=annotation)) == ["s3"]
    assert cluster.addresses("s3") == []


def test_what_a_pod_does_otherwise_resolves_nothing(cluster: Cluster) -> None:
    churn = {"status": {"phase": "Running", "podIP": "10.0.9.9"}}
    assert cluster.compile(pod("s3", annotations={"a": "b"}, resourceVersion="7") | churn) == []
    slice_ = endpoint_slice("s3", "10.0.0.3")
    slice_["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"}
    assert cluster.compile(slice_) == []
    assert cluster.compile(service("s3") | {"status": {"loadBalancer": {}}}) == []


def test_a_grant_resolves_the_services_whose_bindings_need_it(cluster: Cluster) -> None:
    there = {"serviceRef": {"name": "s3", "namespace": "other"}}
    assert cluster.compile(binding("s3", **there)) == ["s3"]
    grant = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "consent", "namespace": "other"},
        "spec": {
            "from": [{"group": "router.datum.net", "kind": "ServiceBinding", "namespace": "default"}],
            "to": [{"group": "", "kind": "Service"}],
        },
    }
    moved = [service("s3"), endpoint_slice("s3", "10.0.7.7"), pod("s3")]
    for item in moved:
        item["metadata"]["namespace"] = "other"
    cluster.compile(*moved)
    assert cluster.addresses("s3") == []
    assert cluster.compile(grant) == ["s3"]
    assert cluster.addresses("s3") == ["10.0.7.7"]
    cluster.delete("ReferenceGrant", "consent", "other")
    assert cluster.compile() == ["s3"]
    assert cluster.addresses("s3") == []


def test_an_object_that_nothing_looks_at_resolves_nothing(cluster: Cluster) -> None:
    assert cluster.compile(pod("other"), service("other"), endpoint_slice("other", "10.0.1.1")) == []


def test_no_service_looks_at_all_objects_of_a_kind(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """That would have n services look at n bindings and slices each, and be compiled anew at every change of any."""
    listed: set[str] = set()
    everything = StoreView.list

    def noting(self: StoreView, kind: str) -> Any:
        if kind != "VPCEgress":  # looked for once a compilation, whatever changed
            listed.add(kind)
        return everything(self, kind)

    monkeypatch.setattr(StoreView, "list", noting)
    cluster.delete("Service", "s4")
    missing = binding("s3", serviceRef={"name": "nowhere"})
    assert cluster.compile(missing, binding("s5", autoSync=False)) == ["s3", "s4", "s5"]
    assert listed == {"Service"}  # once for all of them, to find the name that was meant
    cluster.compile(vpc_service("s6", exportTo={"namespaces": "Same"}))
    assert listed == {"Service"}


# --- what a controller makes statuses from ---------------------------------------------------------------------------


def given(cluster: Cluster, name: str) -> Contribution:
    return cluster.result.contributions[ObjectKey(kind="ServiceBinding", namespace="default", name=name)]


def test_the_result_says_what_each_binding_gives(cluster: Cluster) -> None:
    assert len(cluster.result.contributions) == SERVICES
    assert [item.key for item in given(cluster, "s3").endpoints] == ["10.0.0.3:8080"]
    first = cluster.result.contributions
    cluster.compile(service("other"))
    assert cluster.result.contributions is first
    cluster.compile(endpoint_slice("s3", "10.0.1.3"))
    assert [item.key for item in given(cluster, "s3").endpoints] == ["10.0.1.3:8080"]
    assert given(cluster, "s4") is first[ObjectKey(kind="ServiceBinding", namespace="default", name="s4")]
    cluster.delete("ServiceBinding", "s3")
    cluster.compile()
    assert len(cluster.result.contributions) == SERVICES - 1


def test_a_binding_that_is_not_permitted_gives_nothing(cluster: Cluster) -> None:
    foreign = binding("s3")
    foreign["metadata"] = {"name": "thief", "namespace": "evil"}
    foreign["spec"]["vpcServiceRef"] = {"name": "s3", "namespace": "default"}
    stolen = [service("s3"), endpoint_slice("s3", "10.6.6.6"), pod("s3")]
    for item in stolen:
        item["metadata"]["namespace"] = "evil"
    cluster.compile(foreign, *stolen, vpc_service("s3", exportTo={"namespaces": "All"}))
    assert cluster.addresses("s3") == ["10.0.0.3"]
    assert [str(item.reason) for item in cluster.result.diagnostics] == ["RefNotPermitted"]
    assert len(cluster.result.contributions) == SERVICES


def test_endpoints_without_auto_sync_are_taken_once_a_spec(cluster: Cluster) -> None:
    once = {"autoSync": False}
    cluster.compile(binding("s3", **once))
    assert given(cluster, "s3").is_held
    cluster.compile(endpoint_slice("s3", "10.0.1.3"))
    assert cluster.addresses("s3") == ["10.0.0.3"]
    cluster.delete("EndpointSlice", "s3-x")
    cluster.compile()
    assert cluster.addresses("s3") == ["10.0.0.3"]
    assert not cluster.result.diagnostics
    cluster.compile(endpoint_slice("s3", "10.0.1.3"), binding("s3", publishNotReadyAddresses=True, **once))
    assert cluster.addresses("s3") == ["10.0.1.3"]
    cluster.compile(binding("s3"), endpoint_slice("s3", "10.0.1.4"))
    assert cluster.addresses("s3") == ["10.0.1.4"]
    assert not given(cluster, "s3").is_held


def test_a_binding_without_auto_sync_does_not_hold_what_another_gives_or_the_service_itself(cluster: Cluster) -> None:
    other = binding("s4", vpcServiceRef={"name": "s3"})
    cluster.compile(binding("s3", autoSync=False), other)
    cluster.compile(endpoint_slice("s3", "10.0.1.3"), endpoint_slice("s4", "10.0.1.4"))
    assert cluster.addresses("s3") == ["10.0.0.3", "10.0.1.4"]


def test_held_endpoints_go_with_their_binding_and_do_not_come_back(cluster: Cluster) -> None:
    once = binding("s3", autoSync=False)
    cluster.compile(once)
    cluster.delete("ServiceBinding", "s3")
    cluster.compile()
    assert cluster.addresses("s3") == []
    cluster.compile(once, endpoint_slice("s3", "10.0.1.3"))
    assert cluster.addresses("s3") == ["10.0.1.3"]


def test_held_endpoints_go_with_their_service_and_do_not_come_back(cluster: Cluster) -> None:
    cluster.compile(binding("s3", autoSync=False))
    cluster.delete("VPCService", "s3")
    cluster.compile()
    cluster.compile(vpc_service("s3"), endpoint_slice("s3", "10.0.1.3"))
    assert cluster.addresses("s3") == ["10.0.1.3"]


def test_held_endpoints_are_what_the_status_records_in_every_process(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = binding("s3", autoSync=False)
    once["metadata"]["generation"] = 2
    cluster.compile(once)
    condition = {"type": "Synced", "status": "True", "reason": "Paused", "observedGeneration": 2}
    status = {"syncedEndpoints": 1, "endpoints": ["10.0.5.5:8080"], "conditions": [condition]}
    assert cluster.compile(once | {"status": status}) == ["s3"]
    assert cluster.addresses("s3") == ["10.0.5.5"]
    assert cluster.compile(once | {"status": {**status, "lastSyncTime": "2026-01-01T00:00:00Z"}}) == []
    restarted = Cluster(monkeypatch)
    restarted.compile(once | {"status": status})
    assert restarted.addresses("s3") == ["10.0.5.5"]
    assert given(restarted, "s3").is_held
    once["metadata"]["generation"] = 3
    once["spec"]["publishNotReadyAddresses"] = True
    restarted.compile(once | {"status": status})
    assert restarted.addresses("s3") == ["10.0.0.3"]


def test_an_edit_of_the_service_itself_does_not_take_endpoints_anew(cluster: Cluster) -> None:
    cluster.compile(binding("s3", autoSync=False))
    cluster.compile(endpoint_slice("s3", "10.0.1.3"), vpc_service("s3", healthCheck={"intervalSeconds": 3}))
    assert cluster.addresses("s3") == ["10.0.0.3"]
