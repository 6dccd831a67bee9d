"""What a real API server holds of Services, slices, pods and grants, as endpoints: source, store and compiler alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import trio

from datum_router.compiler.compiler import Compiler, CompileResult
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.referencegrant import GATEWAY_GROUP
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import SourceEvent, Synced
from datum_router.registry.store import Store
from datum_router_galactic import plugin as galactic
from datum_router_kubernetes import plugin as kubernetes
from datum_router_kubernetes.source import create_source
from tests.cluster.control_plane import ControlPlane
from tests.cluster.stage import Stage, binding, crd, endpoint_slice, install_crd, kube_service, route, service
from tests.conftest import eventually

ATTACHMENT = "k8s.v1alpha.galactic.datumapis.com/vpc-attachment"


class Gateway:
    """What a gateway has compiled, without the gateway: a source in a thread, a store, a compiler."""

    def __init__(self, plane: ControlPlane) -> None:
        modules = {"builtin": builtin, "galactic": galactic, "kubernetes": kubernetes}
        plugins: PluginSet = load_plugins(
            [
                Candidate(entry_point=name, distribution="datum-router", load=lambda module=module: module)  # type: ignore[misc]  # the loop's module
                for name, module in modules.items()
            ]
        )
        settings = {"kubeconfig": str(plane.kubeconfig()), "role": "gateway"}
        self._source = create_source(settings, plugins.kinds)
        self._store, self._compiler = Store(plugins.kinds), Compiler(plugins)
        self._lock = threading.Lock()
        self._is_stale = True
        self._result = CompileResult(data=self._compiler.compile(self._store.view()).data)
        self._synced = threading.Event()
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._run,), name="source")
        self._thread.start()
        assert self._synced.wait(60.0), "the source has not synced"

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            await self._source.run(self._take)

    def _take(self, events: Sequence[SourceEvent]) -> None:
        with self._lock:
            for event in events:
                self._store.apply(event)
            self._is_stale = True
        if any(isinstance(event, Synced) for event in events):
            self._synced.set()

    def result(self) -> CompileResult:
        """Return what is compiled from everything that has come by now."""
        with self._lock:
            if self._is_stale:
                self._result = self._compiler.compile(self._store.view())
                self._is_stale = False
            return self._result

    def serving(self, there: str, name: str = "api") -> list[str]:
        """Return the endpoints of a service that serve."""
        services = {str(key): item for key, item in self.result().data.services.items()}
        found = services.get(f"{there}/{name}")
        return [] if found is None else [str(item.key) for item in found.endpoints if item.is_serving]

    def reasons(self, there: str) -> set[str]:
        """Return the reasons of what is wrong in a namespace."""
        return {str(one.reason) for one in self.result().diagnostics if f" {there}/" in one.object}

    def stop(self) -> None:
        """End the source; no thread of it is left."""
        if self._token is not None:
            self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(30.0)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def stage(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    for kind, plural in (("VPC", "vpcs"), ("VPCAttachment", "vpcattachments")):
        install_crd(plane, crd("galactic.datumapis.com", kind, plural))
    install_crd(plane, crd(GATEWAY_GROUP, "ReferenceGrant", "referencegrants", "v1beta1"))
    return Stage(plane, tmp_path_factory.mktemp("binding"))


@pytest.fixture(scope="module")
def gateway(stage: Stage) -> Iterator[Gateway]:
    one = Gateway(stage.plane)
    yield one
    one.stop()


def pod(there: str, name: str, **metadata: object) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": there, **metadata},
        "spec": {"containers": [{"name": "app", "image": "example.invalid/app"}]},
    }


def bound(stage: Stage, there: str, **spec: object) -> None:
    """Put a VPCService, a Service and the binding between them."""
    stage.put(service(there, "api"))
    stage.put(kube_service(there, "api"))
    stage.put(binding(there, "api", "api", **spec))


def test_a_service_that_is_scaled(stage: Stage, gateway: Gateway, namespace: Callable[[], str]) -> None:
    there = namespace()
    bound(stage, there)
    eventually(lambda: gateway.reasons(there) == {"NoEndpoints"}, "a service without endpoints reported")
    stage.put(endpoint_slice(there, "api", 9000, "10.1.0.1"))
    eventually(lambda: gateway.serving(there) == ["10.1.0.1:9000"], "the first endpoint")
    assert not gateway.reasons(there)
    stage.put(endpoint_slice(there, "api", 9000, "10.1.0.1", "10.1.0.2"))
    eventually(lambda: gateway.serving(there) == ["10.1.0.1:9000", "10.1.0.2:9000"], "two endpoints")
    stage.put(endpoint_slice(there, "api", 9000, "10.1.0.2"))
    eventually(lambda: gateway.serving(there) == ["10.1.0.2:9000"], "one endpoint left")
    key = ObjectKey(kind="ServiceBinding", namespace=there, name="api")
    given = gateway.result().contributions[key]
    assert [item.key for item in given.endpoints] == ["10.1.0.2:9000"]


def test_a_pod_that_terminates(stage: Stage, gateway: Gateway, namespace: Callable[[], str]) -> None:
    there = namespace()
    bound(stage, there)
    both = ("10.1.0.1", "10.1.0.2")
    leaving = {"ready": False, "serving": True, "terminating": True}
    stage.put(endpoint_slice(there, "api", 9000, *both))
    eventually(lambda: len(gateway.serving(there)) == 2, "both endpoints")
    stage.put(endpoint_slice(there, "api", 9000, *both, conditions={"10.1.0.2": leaving}))
    eventually(lambda: gateway.serving(there) == ["10.1.0.1:9000"], "the one that terminates left alone")
    stage.put(endpoint_slice(there, "api", 9000, *both, conditions=dict.fromkeys(both, leaving)))
    eventually(lambda: len(gateway.serving(there)) == 2, "both used while nothing else is there")


def test_an_attachment_that_is_deleted(stage: Stage, gateway: Gateway, namespace: Callable[[], str]) -> None:
    there = namespace()
    bound(stage, there)
    stage.put(pod(there, "api-0", annotations={ATTACHMENT: "region1"}))
    stage.put(pod(there, "api-1"))
    pods = {"10.1.0.1": "api-0", "10.1.0.2": "api-1"}
    stage.put(endpoint_slice(there, "api", 9000, *pods, pods=pods))
    eventually(lambda: gateway.serving(there) == ["10.1.0.2:9000"], "the pod without attachment alone")
    assert gateway.reasons(there) == {"NoVPCAddress"}
    attachment = {
        "apiVersion": "galactic.datumapis.com/v1alpha",
        "kind": "VPCAttachment",
        "metadata": {"name": "region1", "namespace": there},
        "spec": {
            "vpc": {"name": "shop", "namespace": there},
            "interface": {"name": "galactic0", "addresses": ["10.40.7.2/24"]},
        },
    }
    here = stage.put(attachment)
    key = ObjectKey(kind="ServiceBinding", namespace=there, name="api")

    def given() -> list[tuple[str, bool]]:
        return [(str(item.key), item.is_serving) for item in gateway.result().contributions[key].endpoints]

    attached = f"10.40.7.2:9000@{there}/shop"
    eventually(lambda: given() == [("10.1.0.2:9000", True), (attached, False)], "an attachment not ready yet")
    stage.patch(here, {"status": {"ready": True, "identifier": "002a"}}, part="status")
    eventually(lambda: gateway.serving(there) == ["10.1.0.2:9000", attached], "the attachment's address")
    assert not gateway.reasons(there)
    stage.delete(here)
    eventually(lambda: gateway.serving(there) == ["10.1.0.2:9000"], "the attachment's address gone")
    assert gateway.reasons(there) == {"NoVPCAddress"}


def test_a_pod_that_is_labelled(stage: Stage, gateway: Gateway, namespace: Callable[[], str]) -> None:
    there = namespace()
    bound(stage, there, podSelector={"matchLabels": {"track": "stable"}}, addressSource="PodIP")
    stage.put(pod(there, "api-0", labels={"track": "stable"}))
    one = stage.put(pod(there, "api-1", labels={"track": "canary"}))
    pods = {"10.1.0.1": "api-0", "10.1.0.2": "api-1"}
    stage.put(endpoint_slice(there, "api", 9000, *pods, pods=pods))
    eventually(lambda: gateway.serving(there) == ["10.1.0.1:9000"], "the stable pod alone")
    stage.patch(one, {"metadata": {"labels": {"track": "stable"}}})
    eventually(lambda: len(gateway.serving(there)) == 2, "the pod that became stable")


@pytest.mark.parametrize("cluster_ip", [None, "None"], ids=["with an address", "headless"])
def test_a_service_without_selector(
    stage: Stage, gateway: Gateway, namespace: Callable[[], str], cluster_ip: str | None
) -> None:
    there = namespace()
    stage.put(service(there, "api"))
    spec: dict[str, object] = {"ports": [{"name": "http", "port": 8080}]}
    if cluster_ip is not None:
        spec["clusterIP"] = cluster_ip
    stage.put({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": there}, "spec": spec})
    stage.put(binding(there, "api", "api"))
    stage.put(endpoint_slice(there, "api", 9000, "192.0.2.7"))
    eventually(lambda: gateway.serving(there) == ["192.0.2.7:9000"], "the endpoint that was written by hand")


def test_an_external_name(stage: Stage, gateway: Gateway, namespace: Callable[[], str]) -> None:
    there = namespace()
    stage.put(service(there, "api"))
    spec = {"type": "ExternalName", "externalName": "api.example.com"}
    stage.put({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": there}, "spec": spec})
    stage.put(binding(there, "api", "api"))
    eventually(lambda: gateway.reasons(there) == {"NotServed"}, "an ExternalName refused")


def grant(there: str, source: str, kind: str, group: str, target: str) -> dict[str, object]:
    return {
        "apiVersion": f"{GATEWAY_GROUP}/v1beta1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "consent", "namespace": there},
        "spec": {
            "from": [{"group": "router.datum.net", "kind": kind, "namespace": source}],
            "to": [{"group": group, "kind": target}],
        },
    }


def test_consent_to_a_binding_that_is_withdrawn(stage: Stage, gateway: Gateway, namespace: Callable[[], str]) -> None:
    there, other = namespace(), namespace()
    stage.put(service(there, "api"))
    stage.put(kube_service(other, "api"))
    stage.put(endpoint_slice(other, "api", 9000, "10.1.0.1"))
    stage.put(binding(there, "api", "api", serviceRef={"name": "api", "namespace": other}))
    eventually(lambda: gateway.reasons(there) == {"RefNotPermitted"}, "a Service of another namespace refused")
    here = stage.put(grant(other, there, "ServiceBinding", "", "Service"))
    eventually(lambda: gateway.serving(there) == ["10.1.0.1:9000"], "the grant acts")
    stage.delete(here)
    eventually(lambda: gateway.serving(there) == [], "the grant is withdrawn")


def problem(result: CompileResult, there: str) -> str:
    rules: Mapping[str, Any] = {rule.route: rule for rule in result.data.rules}
    found = rules.get(f"{there}/api")
    return "no rule" if found is None else str(found.destinations[0].problem)


def test_consent_by_labels_of_a_namespace_that_change(
    stage: Stage, gateway: Gateway, namespace: Callable[[], str]
) -> None:
    there, other = namespace(), namespace()
    export = {"namespaces": "Selector", "selector": {"matchLabels": {"team": "a"}}}
    stage.put(service(other, "api", 9000, exportTo=export))
    target = [{"vpcServiceRef": {"name": "api", "namespace": other}}]
    stage.put(route(there, "api", "api", path=f"/{there}", destinations=target))
    eventually(lambda: problem(gateway.result(), there) == "RefNotPermitted", "no consent yet")

    def label(value: str | None) -> None:
        answer = stage.plane.request(
            "PATCH",
            f"/api/v1/namespaces/{there}",
            {"metadata": {"labels": {"team": value}}},
            content_type="application/merge-patch+json",
        )
        assert answer.status == 200, answer.body

    label("a")
    eventually(lambda: problem(gateway.result(), there) == "", "consent by the label")
    label(None)
    eventually(lambda: problem(gateway.result(), there) == "RefNotPermitted", "consent gone with the label")


def test_endpoints_without_auto_sync_are_those_that_the_status_records(
    stage: Stage, gateway: Gateway, namespace: Callable[[], str]
) -> None:
    there = namespace()
    bound(stage, there, autoSync=False)
    stage.put(endpoint_slice(there, "api", 9000, "10.1.0.1"))
    eventually(lambda: gateway.serving(there) == ["10.1.0.1:9000"], "the endpoints of the moment")
    stage.put(endpoint_slice(there, "api", 9000, "10.1.0.2"))
    here = stage.get(binding(there, "api", "api"))
    key = ObjectKey(kind="ServiceBinding", namespace=there, name="api")
    assert gateway.result().contributions[key].is_held
    meta = here["metadata"]
    assert isinstance(meta, Mapping)
    condition = {
        "type": "Synced",
        "status": "True",
        "reason": "Paused",
        "message": "",
        "observedGeneration": meta["generation"],
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {"endpoints": ["10.1.0.9:9000"], "syncedEndpoints": 1, "conditions": [condition]}
    stage.patch(here, {"status": status}, part="status")
    eventually(lambda: gateway.serving(there) == ["10.1.0.9:9000"], "what the status records")
    stage.put(binding(there, "api", "api", autoSync=True))
    eventually(lambda: gateway.serving(there) == ["10.1.0.2:9000"], "what is there now")
