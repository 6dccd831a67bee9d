"""A gateway with the rights of its service account, from a real API server: each test shows an effect on traffic."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.cluster.plane import GATEWAY, Plane
from tests.cluster.stage import (
    Stage,
    binding,
    bodies,
    crd,
    ingress,
    install,
    install_crd,
    issued_secret,
    kube_service,
    one_endpoint,
    own_address,
    route,
    secret_access,
    service,
)
from tests.conftest import Backend, answer, eventually
from tests.ports import free_ports
from tests.processes import ServiceProcess


@pytest.fixture(scope="module")
def stage(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    install(plane)
    one = Stage(plane, tmp_path_factory.mktemp("gateway"))
    yield one
    one.stop()


@pytest.fixture(scope="module")
def gateway(stage: Stage) -> ServiceProcess:
    return stage.gateway()


@pytest.fixture
def backend() -> Iterator[Callable[..., Backend]]:
    running: list[Backend] = []

    def start(body: str, host: str = "127.0.0.1", port: int = 0) -> Backend:
        running.append(Backend(answer(body.encode()), host, port))
        return running[-1]

    yield start
    for one in running:
        one.close()


def test_it_follows_what_is_created_changed_and_deleted(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Callable[..., Backend]
) -> None:
    there = namespace()
    stage.put(service(there, "a", backend("one").port))
    here = stage.put(route(there, "a", "a", path=f"/{there}"))
    eventually(lambda: gateway.get(f"/{there}") == (200, "one"), "the new route")
    stage.put(route(there, "a", "a", path=f"/{there}/moved"))
    eventually(lambda: gateway.get(f"/{there}") != (200, "one"), "the old path gone")
    assert gateway.get(f"/{there}/moved") == (200, "one")
    stage.delete(here)
    eventually(lambda: gateway.get(f"/{there}/moved") != (200, "one"), "the route gone")


def bind(stage: Stage, there: str) -> None:
    """Put a route to a VPCService that a Service of the same name feeds."""
    stage.put(service(there, "api"))
    stage.put(route(there, "api", "api", path=f"/{there}"))
    stage.put(kube_service(there, "api"))
    stage.put(binding(there, "api", "api"))


def test_a_service_that_is_scaled(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Callable[..., Backend]
) -> None:
    there, here = namespace(), own_address()
    bind(stage, there)
    first = stage.put(one_endpoint(there, "api", "first", here, backend("first", here).port))
    eventually(lambda: bodies(gateway, f"/{there}", 1) == {"200 first"}, "the first endpoint")
    second = stage.put(one_endpoint(there, "api", "second", here, backend("second", here).port))
    eventually(lambda: bodies(gateway, f"/{there}") == {"200 first", "200 second"}, "both endpoints")
    stage.delete(first)
    eventually(lambda: bodies(gateway, f"/{there}") == {"200 second"}, "the first one gone")
    stage.delete(second)
    eventually(lambda: gateway.get(f"/{there}")[0] == 503, "no endpoint left")


def test_a_pod_that_terminates_gets_no_new_requests(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Callable[..., Backend]
) -> None:
    there, here = namespace(), own_address()
    bind(stage, there)
    stays, leaves = backend("stays", here), backend("leaves", here)
    stage.put(one_endpoint(there, "api", "stays", here, stays.port))
    stage.put(one_endpoint(there, "api", "leaves", here, leaves.port))
    eventually(lambda: bodies(gateway, f"/{there}") == {"200 stays", "200 leaves"}, "both endpoints")
    terminating = {"ready": False, "serving": True, "terminating": True}
    stage.put(one_endpoint(there, "api", "leaves", here, leaves.port, **terminating))
    eventually(lambda: bodies(gateway, f"/{there}") == {"200 stays"}, "the one that terminates left alone")


def pod(there: str, name: str, attachment: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": there,
            "annotations": {"k8s.v1alpha.galactic.datumapis.com/vpc-attachment": attachment},
        },
        "spec": {"containers": [{"name": "app", "image": "example.invalid/app"}]},
    }


def attachment(there: str, name: str, address: str) -> dict[str, object]:
    return {
        "apiVersion": "galactic.datumapis.com/v1alpha",
        "kind": "VPCAttachment",
        "metadata": {"name": name, "namespace": there},
        "spec": {
            "vpc": {"name": "shop", "namespace": there},
            "interface": {"name": "galactic0", "addresses": [f"{address}/24"]},
        },
    }


def test_an_attachment_that_appears_and_is_deleted(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Callable[..., Backend]
) -> None:
    """Its kinds are installed while the gateway runs, which picks them up."""
    for kind, plural in (("VPC", "vpcs"), ("VPCAttachment", "vpcattachments")):
        install_crd(stage.plane, crd("galactic.datumapis.com", kind, plural))
    there, here = namespace(), own_address()
    by_pod = backend("by the pod address", here)
    backend("through the vpc", "127.0.0.4", by_pod.port)
    bind(stage, there)
    stage.put(pod(there, "api-0", "att"))
    attached = stage.put(attachment(there, "att", "127.0.0.4"))
    stage.patch(attached, {"status": {"ready": True, "identifier": "002a"}}, part="status")
    stage.put(one_endpoint(there, "api", "one", here, by_pod.port, pod="api-0"))
    eventually(lambda: bodies(gateway, f"/{there}", 1) == {"200 through the vpc"}, "the VPC address", 45.0)
    stage.delete(attached)
    eventually(lambda: "200 through the vpc" not in bodies(gateway, f"/{there}"), "the VPC address gone")


def test_a_namespace_that_is_deleted_takes_only_its_own_routes(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Callable[..., Backend]
) -> None:
    gone, stays = namespace(), namespace()
    for there in (gone, stays):
        stage.put(service(there, "a", backend(there).port))
        stage.put(route(there, "a", "a", path=f"/{there}"))
        eventually(lambda there=there: gateway.get(f"/{there}") == (200, there), there)  # type: ignore[misc]
    group = "apis/router.datum.net/v1alpha1/*"
    stage.plane.delete_namespace(gone, [f"{group}/vpcroutes", f"{group}/vpcservices"])
    eventually(lambda: gateway.get(f"/{gone}") != (200, gone), "its route gone")
    assert gateway.get(f"/{stays}") == (200, stays)


def serial_of(port: int, host: str, trust: ssl.SSLContext) -> int:
    """Return the serial number of the certificate that a listener shows for a name."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        trust.wrap_socket(plain, server_hostname=host) as secured,
    ):
        shown = secured.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)


def test_a_secret_that_is_rotated(stage: Stage, namespace: Callable[[], str], backend: Callable[..., Backend]) -> None:
    """A gateway that may read this Secret by its name and no other."""
    there = namespace()
    (port,) = free_ports(1)
    authority = trustme.CA()
    trust = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())

    def put_certificate() -> None:
        stage.put(issued_secret(there, "site", authority, "shop.example.com"))

    for one in secret_access(there, "site"):
        stage.put(one)
    put_certificate()
    stage.put(service(there, "web", backend("secured").port))
    stage.put(ingress(there, "shop", port, "site"))
    stage.gateway(DATUM_ROUTER_NAMESPACES=there, DATUM_ROUTER_BIND="127.0.0.1")
    before = serial_of(port, "shop.example.com", trust)
    put_certificate()
    eventually(lambda: serial_of(port, "shop.example.com", trust) != before, "the new certificate")


def test_a_broken_object_is_refused_by_its_own_api_and_others_are_served(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Callable[..., Backend]
) -> None:
    there = namespace()
    stage.put(service(there, "a", backend("good").port))
    stage.put(route(there, "good", "a", path=f"/{there}"))
    stage.put(route(there, "lost", "nowhere", path=f"/{there}/lost"))
    eventually(lambda: gateway.get(f"/{there}") == (200, "good"), "the good route")
    eventually(lambda: gateway.get(f"/{there}/lost")[0] == 500, "the route to a service that is not there")
    refused = stage.plane.kubectl(
        "apply", "-f", "-", stdin=str(route(there, "bad", "a", path="no-slash")).replace("'", '"'), namespace=there
    )
    assert refused.returncode != 0
    assert "spec.match.pathPrefix" in refused.stderr


def test_it_ends_well_and_takes_its_report_with_it(stage: Stage) -> None:
    one = stage.gateway("gateway-leaves")
    path = "/apis/coordination.k8s.io/v1/namespaces/datum-router/leases/gateway-gateway-leaves"
    eventually(lambda: stage.plane.request("GET", path).status == 200, "its report")
    assert one.stop() == 0
    assert stage.plane.request("GET", path).status == 404


def test_without_a_right_it_says_which_and_is_not_ready(stage: Stage, tmp_path: Path) -> None:
    stage.plane.request("DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/datum-router-read")
    try:
        one = Stage(stage.plane, tmp_path)
        process = one.start("datum_router_gateway", GATEWAY, "denied", {})
        eventually(lambda: bool(process.lines("source is not synced")), "the missing right in the log")
        page = process.page("/readyz")
        assert isinstance(page, dict)
        assert page["ready"] is False
        told = " ".join(page["reasons"])
        assert "vpcroutes" in told
        assert "list" in told
        one.stop()
    finally:
        install(stage.plane)
