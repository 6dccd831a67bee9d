"""Galactic's kinds and Locations in a real API server: absent, installed while a source runs, and as small as ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datum_router.model.endpoint import Endpoint
from datum_router.model.service import ServiceKey
from datum_router_kubernetes import follow
from tests.cluster.control_plane import ControlPlane, ProgramsMissing, running
from tests.cluster.foreign import GALACTIC, NETWORKING, own_crds
from tests.cluster.stage import Stage, crd, install, install_crd
from tests.cluster.test_binding import Gateway
from tests.conftest import eventually

FRA = {"topology.datum.net/city-code": "FRA", "topology.datum.net/region": "eu-central"}
COORDINATES = {"latitude": "50.0379", "longitude": "8.5622"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Give a cluster of its own that has none of these kinds yet."""
    try:
        with running(tmp_path_factory.mktemp("galactic")) as one:
            install(one)
            install_crd(one, crd("gateway.networking.k8s.io", "ReferenceGrant", "referencegrants", "v1beta1"))
            yield one
    except ProgramsMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def stage(bare: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    one = Stage(bare, tmp_path_factory.mktemp("stage"))
    yield one
    one.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have kinds that are not there looked for again soon, not after half a minute."""
    monkeypatch.setattr(follow, "ABSENT_RETRY_S", 0.3)


@pytest.fixture
def gateway(bare: ControlPlane, quick: None) -> Iterator[Gateway]:
    one = Gateway(bare)
    yield one
    one.stop()


def a_service(there: str, **spec: object) -> dict[str, Any]:
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCService",
        "metadata": {"name": "api", "namespace": there},
        "spec": {"port": 8080, **spec},
    }


def a_vpc(there: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{GALACTIC}/v1alpha",
        "kind": "VPC",
        "metadata": {"name": "shop", "namespace": there},
        "spec": {"networks": ["10.40.0.0/16"]},
    }


def an_attachment(there: str, name: str, address: str, **metadata: object) -> dict[str, Any]:
    return {
        "apiVersion": f"{GALACTIC}/v1alpha",
        "kind": "VPCAttachment",
        "metadata": {"name": name, "namespace": there, **metadata},
        "spec": {
            "vpc": {"name": "shop", "namespace": there},
            "interface": {"name": "galactic0", "addresses": [address]},
        },
    }


def a_location(name: str = "fra", **metadata: object) -> dict[str, Any]:
    return {
        "apiVersion": f"{NETWORKING}/v1alpha",
        "kind": "Location",
        "metadata": {"name": name, **metadata},
        "spec": {"locationClassName": "self-managed", "provider": {}, "topology": FRA, "coordinates": COORDINATES},
    }


def ready(stage: Stage, raw: dict[str, Any], identifier: str) -> None:
    """Do what Galactic's operator does."""
    stage.patch(raw, {"status": {"ready": True, "identifier": identifier}}, part="status")


def endpoints(gateway: Gateway, there: str) -> tuple[Endpoint, ...]:
    found = gateway.result().data.services.get(ServiceKey(f"{there}/api"))
    return () if found is None else found.endpoints


def namespaces(stage: Stage, *names: str) -> None:
    for name in names:
        stage.plane.make_namespace(name)


def test_kinds_that_are_installed_later_are_picked_up_and_may_go_again(stage: Stage, gateway: Gateway) -> None:
    """The one test that begins without the kinds, so it comes first; every later one has them."""
    there = "later"
    namespaces(stage, there)
    service = a_service(there, vpcAttachmentSelector={"matchLabels": {"app": "api"}}, locationRef={"name": "fra"})
    stage.put(service)
    eventually(lambda: gateway.reasons(there) == {"AttachmentNotFound", "LocationNotFound"}, "the service in force")
    for raw in own_crds():
        install_crd(stage.plane, raw)
    vpc, one = a_vpc(there), an_attachment(there, "a", "10.40.7.2/24", labels={"app": "api"})
    stage.put(vpc)
    stage.put(one)
    eventually(lambda: [item.is_serving for item in endpoints(gateway, there)] == [False], "an attachment not ready")
    ready(stage, vpc, "0000000004d2")
    ready(stage, one, "002a")
    eventually(lambda: gateway.serving(there) == [f"10.40.7.2:8080@{there}/shop"], "the attachment serving")
    location = a_location()
    stage.put(location)
    eventually(lambda: not gateway.reasons(there), "everything found")
    (endpoint,) = endpoints(gateway, there)
    assert dict(endpoint.locality.topology) == FRA
    assert (endpoint.locality.latitude, endpoint.locality.longitude) == (50.0379, 8.5622)
    second = an_attachment(there, "b", "10.40.7.3/24", labels={"app": "api"})
    stage.put(second)
    ready(stage, second, "002b")
    eventually(lambda: len(gateway.serving(there)) == 2, "the second attachment serving")
    stage.patch(second, {"metadata": {"labels": {"app": "web"}}})
    eventually(lambda: len(gateway.serving(there)) == 1, "the second attachment not selected any more")
    stage.delete(location)
    eventually(lambda: gateway.reasons(there) == {"LocationNotFound"}, "the location gone")
    assert gateway.serving(there) == [f"10.40.7.2:8080@{there}/shop"]
    stage.delete(service)


def test_a_pods_slice_of_the_second_generation(stage: Stage, gateway: Gateway) -> None:
    there = "second"
    namespaces(stage, there)
    stage.put(a_service(there, vpcAttachmentRef={"name": "4d2-2a"}))
    eventually(lambda: gateway.reasons(there) == {"AttachmentNotFound"}, "the service in force")
    item = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "backend", "namespace": there, "labels": {"galactic.datum.net/tenant-id": "jU-G"}},
        "addressType": "IPv6",
        "endpoints": [
            {
                "addresses": ["fd40:10:0:7::2"],
                "conditions": {"ready": True},
                "targetRef": {"kind": "Pod", "name": "backend", "namespace": there},
            }
        ],
    }
    stage.put(item)
    eventually(lambda: bool(gateway.serving(there)), "the pod's address")
    # The identifier is that of a VPC of the first test, if that one ran before.
    assert gateway.serving(there)[0] in ("[fd40:10:0:7::2]:8080@/jU", "[fd40:10:0:7::2]:8080@later/shop")
    stage.delete(item)
    eventually(lambda: not gateway.serving(there), "the pod gone")


def test_statuses_name_the_vpc_and_what_is_wrong_with_a_location(stage: Stage) -> None:
    there = "told"
    namespaces(stage, there)
    for raw in own_crds():
        install_crd(stage.plane, raw)
    vpc, one, location = a_vpc(there), an_attachment(there, "a", "10.40.7.2"), a_location("plain")
    del location["spec"]["coordinates"]
    for raw in (vpc, one, location):
        stage.put(raw)
    ready(stage, vpc, "0000000004d3")
    ready(stage, one, "002a")
    service = a_service(there, vpcAttachmentRef={"name": "a"}, locationRef={"name": "plain"})
    stage.put(service)
    controller = stage.controller()
    eventually(lambda: "ResolvedRefs" in stage.conditions(service), "the status written")
    found = stage.get(service)["status"]
    assert isinstance(found, dict)
    assert found["vpc"] == {"name": "shop", "namespace": there, "identifier": "0000000004d3"}
    assert found["attachmentIdentifier"] == "002a"
    assert found["endpoints"][0]["location"] == "plain"
    status, reason = stage.conditions(service)["ResolvedRefs"]
    assert (status, reason) in {("True", "NoPrefixLength"), ("True", "NoCoordinates")}
    (message,) = [one["message"] for one in found["conditions"] if one["type"] == "ResolvedRefs"]
    assert "has no coordinates" in message
    assert "without a prefix length" in message
    stage.patch(vpc, {"status": {"ready": False}}, part="status")
    eventually(lambda: stage.conditions(service)["ResolvedRefs"] == ("False", "VPCNotReady"), "the VPC's state told")
    assert controller.stop() == 0


def test_locations_of_namespaces_as_they_were_once(tmp_path_factory: pytest.TempPathFactory, quick: None) -> None:
    try:
        with running(tmp_path_factory.mktemp("old")) as plane:
            install(plane)
            for raw in own_crds(location_scope="Namespaced"):
                install_crd(plane, raw)
            stage = Stage(plane, tmp_path_factory.mktemp("stage"))
            namespaces(stage, "one", "two")
            two = a_location(namespace="two")
            two["spec"]["topology"] = {"topology.datum.net/city-code": "TWO"}
            one = a_location(namespace="one")
            for raw in (one, two):
                stage.put(raw)
            for there in ("one", "two"):
                stage.put(a_service(there, endpoints=[{"address": "10.0.0.1"}], locationRef={"name": "fra"}))
            gateway = Gateway(plane)
            try:
                city: Callable[[str], str] = lambda there: endpoints(gateway, there)[0].locality.value(  # noqa: E731
                    "topology.datum.net/city-code"
                )
                eventually(lambda: (city("one"), city("two")) == ("FRA", "TWO"), "each its own namespace's")
                stage.delete(one)
                eventually(lambda: (city("one"), city("two")) == ("", "TWO"), "the one that was deleted gone alone")
            finally:
                gateway.stop()
    except ProgramsMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
