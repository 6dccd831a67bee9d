"""From manifests to endpoints and conditions: what is wrong with one object is said, and costs no other anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from datum_router.compiler.compiler import Compiler, CompileResult
from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.vpcservice import VPCServiceStatus
from datum_router.model.endpoint import Endpoint
from datum_router.model.service import ServiceKey
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Delete, Upsert
from datum_router.reconcile.index import FactIndex
from datum_router.reconcile.reports import IN_FORCE
from datum_router.reconcile.status import desired_status
from datum_router.registry.store import Store
from datum_router_galactic import plugin

GALACTIC = "galactic.datumapis.com/v1alpha"
NETWORKING = "networking.datumapis.com/v1alpha"
VERSIONS = {"VPC": GALACTIC, "VPCAttachment": GALACTIC, "Location": NETWORKING, "ServingLocation": NETWORKING}
FRA = {"topology.datum.net/city-code": "FRA", "topology.datum.net/region": "eu-central"}
READY: dict[str, Any] = {"ready": True, "identifier": "002a"}
VPC_READY: dict[str, Any] = {"ready": True, "identifier": "0000000004d2"}


class World:
    """Manifests in force, what is compiled from them and what a controller would say."""

    def __init__(self) -> None:
        modules = {"builtin": builtin, "galactic": plugin}
        self.plugins = load_plugins(
            [
                Candidate(entry_point=name, distribution="datum-router", load=lambda module=module: module)  # type: ignore[misc]  # the loop's module
                for name, module in modules.items()
            ]
        )
        self._seen: set[ObjectKey] = set()
        self._store = Store(self.plugins.kinds, seen=self._seen)
        self._compiler, self._index = Compiler(self.plugins), FactIndex()
        self.result: CompileResult = self.compile()

    def put(self, kind: str, name: str, spec: Mapping[str, Any], *, status: Any = None, **metadata: Any) -> None:
        """Put an object; a namespace of None leaves it out."""
        meta = {
            key: value for key, value in {"namespace": "prod", **metadata, "name": name}.items() if value is not None
        }
        raw = {
            "apiVersion": VERSIONS.get(kind, "router.datum.net/v1alpha1"),
            "kind": kind,
            "metadata": meta,
            "spec": spec,
        }
        if status is not None:
            raw["status"] = status
        self._store.apply(Upsert(source="test", raw=raw, origin=Origin(source="test", file=f"{name}.yaml")))

    def delete(self, kind: str, name: str, namespace: str = "prod") -> None:
        key = ObjectKey(kind=kind, namespace=namespace, name=name)
        self._store.apply(Delete(source="test", key=key, file=f"{name}.yaml"))

    def attach(self, name: str, *addresses: Any, status: Any = READY, vpc: Any = None, **rest: Any) -> None:
        """Put an attachment to the VPC `prod/shop`."""
        routes = rest.pop("routes", ())
        spec = {
            "vpc": {"name": "shop", "namespace": "prod"} if vpc is None else vpc,
            "interface": {"name": "galactic0", "addresses": list(addresses)},
            "routes": list(routes),
        }
        self.put("VPCAttachment", name, spec, status=status, **rest)

    def compile(self) -> CompileResult:
        view = self._store.view()
        self.result = self._compiler.compile(view)
        self._index.update(self.result, view, set(self._seen))
        self._seen.clear()
        return self.result

    def endpoints(self, name: str = "api") -> list[Endpoint]:
        self.compile()
        return list(self.result.data.services[ServiceKey(f"prod/{name}")].endpoints)

    def serving(self, name: str = "api") -> list[str]:
        return [str(one.key) for one in self.endpoints(name) if one.is_serving]

    def status(self, name: str = "api") -> VPCServiceStatus:
        self.compile()
        key = ObjectKey(kind="VPCService", namespace="prod", name=name)
        subject = self._index.subject(key, status=None, verdict=IN_FORCE)
        assert subject is not None
        found = desired_status(subject, self._index.facts(key), now="2026-01-01T00:00:00Z")
        assert isinstance(found, VPCServiceStatus)
        return found

    def condition(self, kind: str, name: str = "api") -> tuple[str, str, str]:
        return next((one.status, one.reason, one.message) for one in self.status(name).conditions if one.type == kind)


@pytest.fixture
def world() -> World:
    one = World()
    one.put("VPC", "shop", {"networks": ["10.40.0.0/16", "fd40:10::/48"]}, status=VPC_READY)
    one.put("VPCService", "api", {"port": 8080, "vpcAttachmentRef": {"name": "a"}})
    one.put("VPCService", "other", {"port": 80, "endpoints": [{"address": "192.0.2.1"}]})
    return one


def unhurt(world: World) -> bool:
    return world.serving("other") == ["192.0.2.1:80"] and world.status("other").ready


# --- what is right ---------------------------------------------------------------------------------------------------


def test_both_families_are_endpoints_of_the_vpc_and_the_status_names_it(world: World) -> None:
    world.attach("a", "10.40.7.2/24", "fd40:10:0:7::2/64")
    assert world.serving() == ["10.40.7.2:8080@prod/shop", "[fd40:10:0:7::2]:8080@prod/shop"]
    status = world.status()
    assert status.ready
    assert status.vpc is not None
    assert (status.vpc.namespace, status.vpc.name, status.vpc.identifier) == ("prod", "shop", "0000000004d2")
    assert status.attachment_identifier == "002a"
    assert world.condition("ResolvedRefs")[:2] == ("True", "ResolvedRefs")


def test_equal_addresses_of_two_vpcs_are_two_endpoints(world: World) -> None:
    world.put("VPCService", "api", {"port": 80, "vpcAttachmentSelector": {"matchLabels": {"app": "api"}}})
    world.attach("a", "10.40.7.2/24", labels={"app": "api"})
    world.attach("b", "10.40.7.2/24", labels={"app": "api"}, vpc={"name": "second", "namespace": "prod"})
    assert world.serving() == ["10.40.7.2:80@prod/shop", "10.40.7.2:80@prod/second"]


def test_a_selector_follows_labels(world: World) -> None:
    selector = {"matchLabels": {"app": "api"}, "matchExpressions": [{"key": "old", "operator": "DoesNotExist"}]}
    world.put("VPCService", "api", {"port": 80, "vpcAttachmentSelector": selector})
    assert world.condition("ResolvedRefs")[:2] == ("False", "AttachmentNotFound")
    for number, labels in enumerate(({"app": "api"}, {"app": "api", "old": "yes"}, {"app": "web"}, {})):
        world.attach(f"a{number}", f"10.40.7.{number}/24", labels=labels)
    assert world.serving() == ["10.40.7.0:80@prod/shop"]
    world.attach("a2", "10.40.7.2/24", labels={"app": "api"})
    world.attach("foreign", "10.40.7.9/24", labels={"app": "api"}, namespace="dev")
    assert world.serving() == ["10.40.7.0:80@prod/shop", "10.40.7.2:80@prod/shop"]
    world.delete("VPCAttachment", "a0")
    assert world.serving() == ["10.40.7.2:80@prod/shop"]
    status = world.status()
    assert status.vpc is not None
    assert (status.vpc.name, status.attachment_identifier) == ("shop", "")


def test_reference_and_selector_add_up_and_an_attachment_counts_once(world: World) -> None:
    selector = {"matchExpressions": [{"key": "app", "operator": "In", "values": ["api"]}]}
    world.put("VPCService", "api", {"port": 80, "vpcAttachmentRef": {"name": "b"}, "vpcAttachmentSelector": selector})
    world.attach("a", "10.40.7.1/24", labels={"app": "api"})
    world.attach("b", "10.40.7.2/24", labels={"app": "api"})
    assert world.serving() == ["10.40.7.2:80@prod/shop", "10.40.7.1:80@prod/shop"]


def test_one_of_many_that_is_not_ready_is_remarked_and_the_service_stays_ready(world: World) -> None:
    world.put("VPCService", "api", {"port": 80, "vpcAttachmentSelector": {}})
    for number in range(6):
        world.attach(f"a{number}", f"10.40.7.{number}/24", status=READY if number == 0 else {"ready": False})
    assert world.serving() == ["10.40.7.0:80@prod/shop"]
    status, reason, message = world.condition("ResolvedRefs")
    assert (status, reason) == ("True", "AttachmentNotReady")
    assert "prod/a1" in message
    assert "and 2 more" in message
    assert world.status().ready
    world.attach("a0", "10.40.7.0/24", status={"ready": False})
    assert world.condition("ResolvedRefs")[:2] == ("False", "AttachmentNotReady")
    assert not world.status().ready


def test_addresses_that_are_written_down_belong_to_the_vpc_that_routes_to_them(world: World) -> None:
    written = [
        {"address": one} for one in ("192.168.50.7", "192.168.60.7", "10.40.9.9", "198.51.100.1", "192.168.70.7")
    ]
    world.put("VPCService", "api", {"port": 80, "vpcAttachmentRef": {"name": "a"}, "endpoints": written})
    routes = [
        {"destination": "192.168.50.0/24", "via": "10.40.7.2"},  # a subnet behind this attachment
        {"destination": "192.168.60.0/24", "via": "10.40.7.9"},  # behind another member
        {"destination": "192.168.70.0/24"},  # dropped by Galactic
    ]
    world.attach("a", "10.40.7.2/24", routes=routes)
    assert world.serving() == [
        "192.168.50.7:80@prod/shop",
        "192.168.60.7:80@prod/shop",
        "10.40.9.9:80@prod/shop",
        "198.51.100.1:80",
        "192.168.70.7:80",
        "10.40.7.2:80@prod/shop",
    ]
    status, reason, message = world.condition("ResolvedRefs")
    assert (status, reason) == ("True", "InvalidAttachmentRoute")
    assert "192.168.70.0/24 has no via" in message
    world.delete("VPCAttachment", "a")
    assert "192.168.50.7:80" in world.serving()


# --- bad input -------------------------------------------------------------------------------------------------------


def test_an_attachment_without_addresses(world: World) -> None:
    for interface in ({"name": "galactic0", "addresses": []}, {"name": "galactic0"}, None):
        spec = {"vpc": {"name": "shop", "namespace": "prod"}, "interface": interface}
        world.put("VPCAttachment", "a", spec, status=READY)
        assert world.serving() == []
        assert world.condition("EndpointsReady")[:2] == ("False", "NoVPCAddress")
        assert not world.status().ready
        assert unhurt(world)


def test_bare_addresses_are_used_and_remarked(world: World) -> None:
    world.attach("a", "10.40.7.2", "fd40:10:0:7::2/64")
    assert world.serving() == ["10.40.7.2:8080@prod/shop", "[fd40:10:0:7::2]:8080@prod/shop"]
    status, reason, message = world.condition("ResolvedRefs")
    assert (status, reason) == ("True", "NoPrefixLength")
    assert "10.40.7.2 without a prefix length" in message
    assert world.status().ready
    assert unhurt(world)


@pytest.mark.parametrize(
    "bad", ["nonsense", "10.40.7.2/33", "0.0.0.0/0", "224.0.0.1/4", "::ffff:10.0.0.1/128", "fe80::1%eth0/64"]
)
def test_what_is_no_address_is_left_out_and_reported(world: World, bad: str) -> None:
    world.attach("a", bad, "10.40.7.3/24")
    assert world.serving() == ["10.40.7.3:8080@prod/shop"]
    assert world.condition("ResolvedRefs")[:2] == ("False", "InvalidAddress")
    assert world.condition("EndpointsReady")[0] == "True"
    assert unhurt(world)


@pytest.mark.parametrize("status", [None, {}, {"ready": False}, {"ready": False, "identifier": "0000000004d2"}])
def test_a_vpc_that_is_not_ready(world: World, status: Any) -> None:
    world.attach("a", "10.40.7.2/24")
    world.put("VPC", "shop", {"networks": ["10.40.0.0/16"]}, status=status)
    assert [one.is_serving for one in world.endpoints()] == [False]
    assert world.condition("ResolvedRefs")[:2] == ("False", "VPCNotReady")
    assert unhurt(world)
    world.put("VPC", "shop", {"networks": ["10.40.0.0/16"]}, status=VPC_READY)
    assert world.serving() == ["10.40.7.2:8080@prod/shop"]
    assert world.status().ready


def test_a_vpc_that_is_not_known_is_no_obstacle(world: World) -> None:
    world.attach("a", "10.40.7.2/24")
    world.delete("VPC", "shop")
    assert world.serving() == ["10.40.7.2:8080@prod/shop"]


def test_an_attachment_that_names_no_vpc_does_not_serve(world: World) -> None:
    world.attach("a", "10.40.7.2/24", vpc={})
    assert world.serving() == []
    assert world.condition("ResolvedRefs")[:2] == ("False", "VPCNotFound")
    assert unhurt(world)


@pytest.mark.parametrize("identifier", [4, 42.0, 0, 668, 1e10, "2a", "002A", "0000", "ffff", "0x2a", "002a\n"])
def test_identifiers_that_yaml_reads_as_numbers_or_that_are_none(world: World, identifier: Any) -> None:
    world.attach("a", "10.40.7.2/24", status={"ready": True, "identifier": identifier})
    assert world.serving() == ["10.40.7.2:8080@prod/shop"]
    status, reason, message = world.condition("ResolvedRefs")
    assert (status, reason) == ("True", "InvalidIdentifier")
    assert "expected" in message
    assert unhurt(world)


def test_the_identifier_of_a_vpc_that_is_a_number(world: World) -> None:
    world.attach("a", "10.40.7.2/24")
    world.put("VPC", "shop", {"networks": ["10.40.0.0/16"]}, status={"ready": True, "identifier": 1234})
    assert world.serving() == ["10.40.7.2:8080@prod/shop"]
    status, reason, message = world.condition("ResolvedRefs")
    assert (status, reason) == ("True", "InvalidIdentifier")
    assert "found number 1234, expected 12 hex digits in quotes" in message
    found = world.status().vpc
    assert found is not None
    assert found.identifier == ""
    assert unhurt(world)


def test_an_identifier_that_comes_later_is_in_the_status_though_nothing_else_changes(world: World) -> None:
    world.attach("a", "10.40.7.2/24")
    world.put("VPC", "shop", {"networks": []}, status={"ready": True})
    assert world.status().vpc is not None
    world.put("VPC", "shop", {"networks": []}, status=VPC_READY)
    found = world.status().vpc
    assert found is not None
    assert found.identifier == "0000000004d2"


@pytest.mark.parametrize("networks", [[], ["nonsense"], ["10.0.0.0/33", "10.40.0.0/16"]])
def test_networks_that_are_none(world: World, networks: list[str]) -> None:
    world.attach("a", "10.40.7.2/24")
    world.put("VPC", "shop", {"networks": networks}, status=VPC_READY)
    world.put(
        "VPCService", "api", {"port": 80, "vpcAttachmentRef": {"name": "a"}, "endpoints": [{"address": "10.40.1.1"}]}
    )
    assert "10.40.7.2:80@prod/shop" in world.serving()
    assert unhurt(world)


# --- places ----------------------------------------------------------------------------------------------------------

COORDINATES = {"latitude": "50.0379", "longitude": "8.5622"}


def place(world: World, **found: Any) -> None:
    spec = {"locationClassName": "self-managed", "provider": {}, "topology": FRA, **found.pop("spec", {})}
    world.put("Location", found.pop("name", "fra"), spec, **{"namespace": None, **found})


@pytest.mark.parametrize("namespace", [None, "prod"], ids=["of the cluster", "of the namespace"])
def test_a_location_gives_topology_and_coordinates(world: World, namespace: str | None) -> None:
    place(world, namespace=namespace, spec={"coordinates": COORDINATES})
    world.put("VPCService", "api", {"port": 80, "endpoints": [{"address": "10.0.0.1"}], "locationRef": {"name": "fra"}})
    (found,) = world.endpoints()
    assert dict(found.locality.topology) == FRA
    assert (found.locality.location, found.locality.latitude, found.locality.longitude) == ("fra", 50.0379, 8.5622)
    assert world.result.data.services[ServiceKey("prod/api")].locality == found.locality
    assert world.status().endpoints[0].location == "fra"
    world.delete("Location", "fra", namespace or "default")  # a directory does not know which kinds have no namespace
    assert world.condition("ResolvedRefs")[:2] == ("False", "LocationNotFound")
    assert world.serving() == ["10.0.0.1:80"]


def test_a_location_of_the_namespace_goes_before_one_of_the_cluster(world: World) -> None:
    place(world, spec={"topology": {"zone": "cluster"}, "coordinates": COORDINATES})
    place(world, namespace="prod", spec={"topology": {"zone": "prod"}, "coordinates": COORDINATES})
    place(world, namespace="dev", spec={"topology": {"zone": "dev"}, "coordinates": COORDINATES})
    world.put("VPCService", "api", {"port": 80, "endpoints": [{"address": "10.0.0.1"}], "locationRef": {"name": "fra"}})
    assert world.endpoints()[0].locality.value("zone") == "prod"
    world.delete("Location", "fra", "prod")
    assert world.endpoints()[0].locality.value("zone") == "cluster"


def test_endpoints_and_attachments_may_be_elsewhere_than_their_service(world: World) -> None:
    place(world, spec={"coordinates": COORDINATES})
    place(world, name="iad", spec={"topology": {"topology.datum.net/city-code": "IAD"}, "coordinates": COORDINATES})
    spec = {
        "port": 80,
        "vpcAttachmentSelector": {},
        "endpoints": [{"address": "10.0.0.1", "locationRef": {"name": "iad"}}, {"address": "10.0.0.2"}],
        "locationRef": {"name": "fra"},
        "topology": {"rack": "7", "topology.datum.net/region": "mine"},
    }
    world.put("VPCService", "api", spec)
    world.attach("a", "10.40.7.1/24")
    world.attach("b", "10.40.7.2/24", annotations={"router.datum.net/location": "iad"})
    found = {one.address: one.locality for one in world.endpoints()}
    assert {address: one.location for address, one in found.items()} == {
        "10.0.0.1": "iad",
        "10.0.0.2": "fra",
        "10.40.7.1": "fra",
        "10.40.7.2": "iad",
    }
    assert (found["10.0.0.2"].value("rack"), found["10.0.0.2"].value("topology.datum.net/region")) == ("7", "mine")
    assert found["10.40.7.2"].value("rack") == ""
    world.attach("b", "10.40.7.2/24", annotations={"router.datum.net/location": "nowhere"})
    assert world.condition("ResolvedRefs")[:2] == ("False", "LocationNotFound")
    assert len(world.serving()) == 4


@pytest.mark.parametrize(
    ("coordinates", "reason"),
    [
        (None, "NoCoordinates"),
        ({"latitude": "91", "longitude": "0"}, "InvalidCoordinates"),
        ({"latitude": "0", "longitude": "181"}, "InvalidCoordinates"),
        ({"latitude": "north", "longitude": "0"}, "InvalidCoordinates"),
        ({"latitude": "nan", "longitude": "0"}, "InvalidCoordinates"),
        ({"latitude": "50.0379", "longitude": "8.5622"}, "ResolvedRefs"),
        ({"latitude": 50.0379, "longitude": 8}, "ResolvedRefs"),
    ],
)
def test_a_location_without_coordinates_still_has_its_city(world: World, coordinates: Any, reason: str) -> None:
    place(world, spec={"coordinates": coordinates})
    world.put("VPCService", "api", {"port": 80, "endpoints": [{"address": "10.0.0.1"}], "locationRef": {"name": "fra"}})
    (found,) = world.endpoints()
    assert dict(found.locality.topology) == FRA
    assert (found.locality.latitude is None) == (reason != "ResolvedRefs")
    assert world.condition("ResolvedRefs")[:2] == ("True", reason)
    assert world.status().ready
    assert unhurt(world)


def test_objects_that_other_tools_wrote_are_read_with_their_other_fields(world: World) -> None:
    spec = {"topology": FRA, "source": {"generation": 3, "publishedAt": "2026-01-01T00:00:00Z"}, "newer": {"a": 1}}
    world.put("ServingLocation", "fra", spec, namespace=None)
    world.attach("a", "10.40.7.2/24", status={**READY, "srv6Endpoint": "fc00::1"})
    assert world.serving() == ["10.40.7.2:8080@prod/shop"]
    assert not world.result.diagnostics


def test_kinds_are_optional_and_read_only() -> None:
    rows = {row.kind: row for row in plugin.datum_router_resource_kinds()}
    assert set(rows) == {"VPC", "VPCAttachment", "Location", "ServingLocation"}
    assert all(row.is_optional and not row.is_status_ours for row in rows.values())
    assert [name for name, row in rows.items() if row.namespaced] == ["VPC", "VPCAttachment"]
    assert msgspec.structs.fields(rows["Location"].struct)


def test_a_directory_that_deletes_a_location_without_namespace_means_that_one(world: World) -> None:
    place(world)
    place(world, namespace="prod")
    world.put("VPCService", "api", {"port": 80, "endpoints": [{"address": "10.0.0.1"}], "locationRef": {"name": "fra"}})
    world.delete("Location", "fra", "dev")
    world.delete("Location", "fra", "prod")
    assert dict(world.endpoints()[0].locality.topology) == FRA
    world.delete("Location", "fra", "default")
    assert dict(world.endpoints()[0].locality.topology) == {}
