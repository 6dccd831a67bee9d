from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from datum_router.manifests.location import Coordinates, Location, LocationSpec
from datum_router.manifests.meta import Condition, ObjectMeta, ObjectRef
from datum_router.manifests.parts import LabelSelector, LabelSelectorRequirement, SelectorOperator
from datum_router.manifests.referencegrant import GrantFrom, GrantTo, ReferenceGrant, ReferenceGrantSpec
from datum_router.manifests.servicebinding import (
    AddressFamily,
    AddressSource,
    PortMapping,
    ServiceBinding,
    ServiceBindingSpec,
    ServiceBindingStatus,
)
from datum_router.manifests.vpcservice import ExportNamespaces, ExportTo, VPCService, VPCServiceSpec
from datum_router.plugins.builtin import datum_router_resource_kinds as builtin_kinds
from datum_router.plugins.protocols import Contribution, Hold, Resolution
from datum_router.reasons import Reason
from datum_router.testing.view import FixedView
from datum_router_kubernetes.kinds import (
    ATTACHMENT_ANNOTATION,
    SERVICE_NAME_LABEL,
    EndpointConditions,
    EndpointSlice,
    ObjectReference,
    Pod,
    Service,
    ServicePort,
    ServiceSpec,
    SliceEndpoint,
    SlicePort,
)
from datum_router_kubernetes.plugin import datum_router_resource_kinds
from datum_router_kubernetes.resolver import BindingResolver

KINDS = (*builtin_kinds(), *datum_router_resource_kinds())


def view_of(*items: Any) -> FixedView:
    return FixedView(*items, kinds=KINDS)


def binding(**fields: Any) -> ServiceBinding:
    spec = ServiceBindingSpec(
        service_ref=ObjectRef(name="api-service"), vpc_service_ref=ObjectRef(name="my-api"), auto_sync=True
    )
    return ServiceBinding(
        api_version="router.datum.net/v1alpha1",
        kind="ServiceBinding",
        metadata=ObjectMeta(name="api-binding"),
        spec=msgspec.structs.replace(spec, **fields),
    )


def service(*ports: ServicePort) -> Service:
    ports = ports or (ServicePort(name="http", port=8080),)
    return Service(
        api_version="v1", kind="Service", metadata=ObjectMeta(name="api-service"), spec=ServiceSpec(ports=ports)
    )


def slice_of(
    *endpoints: SliceEndpoint, port: int | None = 9000, name: str = "http", kind: str = "IPv4", suffix: str = ""
) -> EndpointSlice:
    return EndpointSlice(
        api_version="discovery.k8s.io/v1",
        kind="EndpointSlice",
        metadata=ObjectMeta(name=f"api-{kind.lower()}{suffix}", labels={SERVICE_NAME_LABEL: "api-service"}),
        address_type=kind,
        endpoints=endpoints,
        ports=(SlicePort(name=name, port=port, protocol="TCP"),),
    )


def endpoint(address: str, **fields: Any) -> SliceEndpoint:
    return msgspec.structs.replace(SliceEndpoint(addresses=(address,)), **fields)


def resolve(*items: Any, port: int = 8080, target_port: int | None = None, namespace: str = "default") -> Resolution:
    target = VPCService(
        api_version="router.datum.net/v1alpha1",
        kind="VPCService",
        metadata=ObjectMeta(name="my-api", namespace=namespace),
        spec=VPCServiceSpec(port=port, target_port=target_port, topology={"city": "fra"}),
    )
    found = BindingResolver().resolve(target, view_of(*items))
    assert found is not None
    return found


def given(*items: Any, **options: Any) -> Contribution:
    """Return what the only binding gives."""
    (found,) = resolve(*items, **options).contributions
    return found


def keys(*items: Any, **options: Any) -> list[str]:
    return [item.key for item in given(*items, **options).endpoints]


def complaints(*items: Any, **options: Any) -> list[tuple[Reason, str]]:
    """Return what is wrong with what is referred to, and then with endpoints."""
    found = resolve(*items, **options)
    problems = (*found.problems, *(one for part in found.contributions for one in part.shortfalls))
    assert all(str(one.object) == "servicebinding default/api-binding" for one in problems)
    return [(one.reason, one.message) for one in problems]


# --- which bindings ------------------------------------------------------------------------------------------------


def test_endpoints_are_those_of_the_slices_at_the_slice_port_and_say_who_gave_them() -> None:
    items = (binding(), service(), slice_of(endpoint("10.0.0.1"), endpoint("10.0.0.2")))
    assert keys(*items) == ["10.0.0.1:9000", "10.0.0.2:9000"]
    assert {item.origin for item in given(*items).endpoints} == {"servicebinding:default/api-binding"}
    assert not complaints(*items)


def test_a_service_without_binding_is_none_of_its_business() -> None:
    target = VPCService(
        api_version="router.datum.net/v1alpha1",
        kind="VPCService",
        metadata=ObjectMeta(name="other"),
        spec=VPCServiceSpec(port=80),
    )
    assert BindingResolver().resolve(target, view_of(binding())) is None


def test_each_binding_of_a_service_gives_its_own() -> None:
    more = msgspec.structs.replace(
        binding(service_ref=ObjectRef(name="more")), metadata=ObjectMeta(name="more-binding")
    )
    other = msgspec.structs.replace(
        slice_of(endpoint("10.0.1.1")), metadata=ObjectMeta(name="more-x", labels={SERVICE_NAME_LABEL: "more"})
    )
    named = msgspec.structs.replace(service(), metadata=ObjectMeta(name="more"))
    found = resolve(binding(), service(), slice_of(endpoint("10.0.0.1")), more, named, other)
    assert [(str(part.object), [item.key for item in part.endpoints]) for part in found.contributions] == [
        ("servicebinding default/api-binding", ["10.0.0.1:9000"]),
        ("servicebinding default/more-binding", ["10.0.1.1:9000"]),
    ]


# --- which port ----------------------------------------------------------------------------------------------------


def test_port_mappings_choose_the_service_port() -> None:
    ports = (ServicePort(name="http", port=80), ServicePort(name="admin", port=81, target_port="adm"))
    one = binding(port_mappings=(PortMapping(service_port=80), PortMapping(service_port=81, vpc_port=8080)))
    assert keys(one, service(*ports), slice_of(endpoint("10.0.0.1"), name="admin")) == ["10.0.0.1:9000"]
    assert keys(one, service(*ports), slice_of(endpoint("10.0.0.1"), name="http")) == []


def test_a_named_target_port_may_have_another_number_in_each_slice() -> None:
    named = service(ServicePort(name="http", port=8080, target_port="web"))
    old, new = slice_of(endpoint("10.0.0.1"), port=9000), slice_of(endpoint("10.0.0.2"), port=9001, suffix="-new")
    assert keys(binding(), named, old, new) == ["10.0.0.1:9000", "10.0.0.2:9001"]


@pytest.mark.parametrize(("target_port", "expected"), [(None, 8080), (9090, 9090), ("web", 8080)])
def test_a_slice_port_without_a_number_is_every_port(target_port: int | str | None, expected: int) -> None:
    ports = service(ServicePort(name="http", port=8080, target_port=target_port))
    assert keys(binding(), ports, slice_of(endpoint("10.0.0.1"), port=None)) == [f"10.0.0.1:{expected}"]


def test_a_port_of_another_protocol_is_not_the_one() -> None:
    both = (ServicePort(name="dns", port=8080, protocol="UDP"), ServicePort(name="http", port=8080))
    assert keys(binding(), service(*both), slice_of(endpoint("10.0.0.1"))) == ["10.0.0.1:9000"]
    assert complaints(binding(), service(both[0]), slice_of(endpoint("10.0.0.1"), name="dns")) == [
        (Reason.PORT_NOT_FOUND, "service default/api-service has no TCP port 8080 (found 8080 UDP)")
    ]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (binding(port_mappings=(PortMapping(service_port=81),)), "no mapping has vpcPort 8080"),
        (binding(port_mappings=(PortMapping(service_port=7, vpc_port=8080),)), "has no TCP port 7 (found 8080 TCP)"),
    ],
)
def test_ports_that_lead_nowhere_are_reported_on_the_binding(one: ServiceBinding, message: str) -> None:
    found = resolve(one, service(), slice_of(endpoint("10.0.0.1")))
    assert not given(one, service(), slice_of(endpoint("10.0.0.1"))).endpoints
    (problem,) = found.problems
    assert problem.reason is Reason.PORT_NOT_FOUND
    assert not problem.is_reference
    assert message in problem.message


def test_the_only_port_of_a_service_is_hinted_at() -> None:
    found = resolve(binding(), service(), port=80)
    assert found.problems[0].hint == "write portMappings: [{servicePort: 8080, vpcPort: 80}]"


def headless(*ports: ServicePort) -> Service:
    return msgspec.structs.replace(service(), spec=ServiceSpec(ports=ports, cluster_ip="None"))


def test_a_headless_service_with_ports_is_like_any_other() -> None:
    one = headless(ServicePort(name="http", port=8080))
    assert keys(binding(), one, slice_of(endpoint("10.0.0.1"))) == ["10.0.0.1:9000"]


def test_a_headless_service_without_ports_is_reached_at_the_target_port() -> None:
    bare = msgspec.structs.replace(slice_of(endpoint("10.0.0.1")), ports=None)
    assert keys(binding(), headless(), bare) == ["10.0.0.1:8080"]
    assert keys(binding(), headless(), bare, target_port=9999) == ["10.0.0.1:9999"]
    mapped = binding(port_mappings=(PortMapping(service_port=7000, vpc_port=8080),))
    assert keys(mapped, headless(), bare) == ["10.0.0.1:7000"]


# --- which service -------------------------------------------------------------------------------------------------


def test_a_missing_service_is_a_reference_problem_that_says_what_is_missing() -> None:
    found = resolve(binding())
    assert found.problems[0].reason is Reason.SERVICE_NOT_FOUND
    assert found.problems[0].is_reference
    assert str(found.problems[0].missing) == "service default/api-service"


def test_an_external_name_has_no_endpoints() -> None:
    external = msgspec.structs.replace(service(), spec=ServiceSpec(type="ExternalName", external_name="a.test"))
    assert complaints(binding(), external, slice_of(endpoint("10.0.0.1"))) == [
        (
            Reason.NOT_SERVED,
            "service default/api-service is an ExternalName for a.test, which has no endpoints",
        )
    ]
    assert keys(binding(), external, slice_of(endpoint("10.0.0.1"))) == []


def test_a_service_without_selector_has_the_endpoints_that_are_written_by_hand() -> None:
    by_hand = msgspec.structs.replace(
        slice_of(endpoint("192.0.2.7")),
        metadata=ObjectMeta(name="by-hand", labels={SERVICE_NAME_LABEL: "api-service"}),
    )
    assert keys(binding(), service(), by_hand) == ["192.0.2.7:9000"]


def test_a_service_without_endpoints_is_reported() -> None:
    assert complaints(binding(), service()) == [
        (Reason.NO_ENDPOINTS, "service default/api-service has no endpoints at this port")
    ]
    assert complaints(binding(address_family=AddressFamily.IPV6), service(), slice_of(endpoint("10.0.0.1"))) == [
        (Reason.NO_ENDPOINTS, "service default/api-service has no IPv6 endpoints at this port")
    ]


def grant(kind: str, group: str, *, namespace: str, source: str = "default") -> ReferenceGrant:
    return ReferenceGrant(
        api_version="gateway.networking.k8s.io/v1",
        kind="ReferenceGrant",
        metadata=ObjectMeta(name="consent", namespace=namespace),
        spec=ReferenceGrantSpec(
            froms=(GrantFrom(group="router.datum.net", kind="ServiceBinding", namespace=source),),
            to=(GrantTo(group=group, kind=kind),),
        ),
    )


def in_namespace(item: Any, namespace: str) -> Any:
    return msgspec.structs.replace(item, metadata=msgspec.structs.replace(item.metadata, namespace=namespace))


def test_a_service_of_another_namespace_needs_its_consent() -> None:
    one = binding(service_ref=ObjectRef(name="api-service", namespace="other"))
    there = [in_namespace(item, "other") for item in (service(), slice_of(endpoint("10.0.0.1")))]
    refused = resolve(one, *there, grant("Service", "", namespace="default"))
    assert [(item.reason, item.is_reference) for item in refused.problems] == [(Reason.REF_NOT_PERMITTED, False)]
    assert "add a ReferenceGrant to namespace other" in refused.problems[0].hint
    assert not refused.contributions[0].endpoints
    assert keys(one, *there, grant("Service", "", namespace="other")) == ["10.0.0.1:9000"]


def test_a_binding_of_another_namespace_gives_nothing_without_consent() -> None:
    one = binding(vpc_service_ref=ObjectRef(name="my-api", namespace="prod"))
    items = (one, service(), slice_of(endpoint("10.0.0.1")))
    target = VPCService(
        api_version="router.datum.net/v1alpha1",
        kind="VPCService",
        metadata=ObjectMeta(name="my-api", namespace="prod"),
        spec=VPCServiceSpec(port=8080, export_to=ExportTo(namespaces=ExportNamespaces.ALL)),
    )
    assert BindingResolver().resolve(target, view_of(*items)) is None
    consent = grant("VPCService", "router.datum.net", namespace="prod")
    assert keys(*items, consent, namespace="prod") == ["10.0.0.1:9000"]


# --- which endpoints serve -----------------------------------------------------------------------------------------


READY = EndpointConditions(ready=True)
UNREADY = EndpointConditions(ready=False, serving=False)
LEAVING = EndpointConditions(ready=False, serving=True, terminating=True)
GONE = EndpointConditions(ready=False, serving=False, terminating=True)


@pytest.mark.parametrize(
    ("conditions", "publish", "is_serving"),
    [
        ((EndpointConditions(),), False, (True,)),
        ((READY,), False, (True,)),
        ((UNREADY,), False, (False,)),
        ((READY, UNREADY), False, (True, False)),
        # A terminating endpoint serves only if none is ready.
        ((READY, LEAVING), False, (True, False)),
        ((UNREADY, LEAVING), False, (False, True)),
        ((LEAVING, LEAVING), False, (True, True)),
        ((LEAVING, GONE), False, (True, False)),
        ((GONE,), False, (False,)),
        ((EndpointConditions(terminating=True),), False, (True,)),
        ((READY, EndpointConditions(terminating=True)), False, (True, False)),
        # The API says ready of a terminating endpoint only if the Service publishes addresses that are not ready.
        ((EndpointConditions(ready=True, terminating=True), READY), False, (True, True)),
        ((UNREADY,), True, (True,)),
        ((UNREADY, LEAVING), True, (True, False)),
        ((GONE,), True, (True,)),
    ],
)
def test_readiness_and_termination_are_honoured(
    conditions: tuple[EndpointConditions, ...], publish: bool, is_serving: tuple[bool, ...]
) -> None:
    one = binding(publish_not_ready_addresses=publish)
    members = [endpoint(f"10.0.0.{number}", conditions=item) for number, item in enumerate(conditions)]
    found = given(one, service(), slice_of(*members))
    assert tuple(item.is_serving for item in found.endpoints) == is_serving


def test_an_endpoint_that_two_slices_list_is_one_in_the_better_state() -> None:
    old = slice_of(endpoint("10.0.0.1", conditions=UNREADY), endpoint("10.0.0.2"))
    new = slice_of(endpoint("10.0.0.1", conditions=READY), suffix="-new")
    found = given(binding(), service(), old, new)
    assert [(item.key, item.is_serving) for item in found.endpoints] == [
        ("10.0.0.1:9000", True),
        ("10.0.0.2:9000", True),
    ]


def test_the_order_within_slices_changes_nothing() -> None:
    one, other = endpoint("10.0.0.1"), endpoint("10.0.0.2")
    assert given(binding(), service(), slice_of(one, other)) == given(binding(), service(), slice_of(other, one))


def test_address_families_are_chosen() -> None:
    both = (slice_of(endpoint("10.0.0.1")), slice_of(endpoint("fd00::1"), kind="IPv6"))
    for family, expected in (
        (AddressFamily.DUAL, ["10.0.0.1", "fd00::1"]),
        (AddressFamily.IPV4, ["10.0.0.1"]),
        (AddressFamily.IPV6, ["fd00::1"]),
    ):
        found = given(binding(address_family=family), service(), *both)
        assert [item.address for item in found.endpoints] == expected


def test_slices_of_names_are_left_out_and_reported() -> None:
    items = (binding(), service(), slice_of(endpoint("a.test"), kind="FQDN"))
    assert keys(*items) == []
    ((reason, message),) = complaints(*items)
    assert reason is Reason.NOT_SERVED
    assert "endpointslice default/api-fqdn has addressType FQDN" in message


@pytest.mark.parametrize("text", ["nonsense", "0.0.0.0", "224.0.0.1", "fe80::1%eth0"])
def test_what_is_no_address_of_a_host_is_left_out_and_reported(text: str) -> None:
    items = (binding(), service(), slice_of(endpoint(text), endpoint("10.0.0.1")))
    assert keys(*items) == ["10.0.0.1:9000"]
    ((reason, message),) = complaints(*items)
    assert reason is Reason.INVALID_VALUE
    assert message.startswith("endpointslice default/api-ipv4: ")


def test_addresses_are_canonical() -> None:
    assert keys(binding(), service(), slice_of(endpoint("FD00:0::1"), kind="IPv6")) == ["[fd00::1]:9000"]


def test_the_zone_of_a_slice_endpoint_refines_the_place_of_the_service() -> None:
    found = given(binding(), service(), slice_of(endpoint("10.0.0.1", zone="eu-1a"), endpoint("10.0.0.2")))
    assert [item.locality.value("topology.kubernetes.io/zone") for item in found.endpoints] == ["eu-1a", ""]
    assert [item.locality.value("city") for item in found.endpoints] == ["fra", "fra"]


# --- addresses of pods ---------------------------------------------------------------------------------------------


def pod(name: str = "api-0", *, attachment: str = "", **labels: str) -> Pod:
    annotations = {ATTACHMENT_ANNOTATION: attachment} if attachment else None
    return Pod(api_version="v1", kind="Pod", metadata=ObjectMeta(name=name, labels=labels, annotations=annotations))


def of_pod(address: str = "10.0.0.1", name: str = "api-0", **fields: Any) -> SliceEndpoint:
    return endpoint(address, target_ref=ObjectReference(kind="Pod", name=name, namespace="default"), **fields)


class Attachment(SimpleNamespace):
    """A VPCAttachment as the galactic plugin has it, which is not installed here."""


def attachment(*addresses: str, name: str = "region1", ready: bool = True) -> Any:
    return Attachment(
        kind="VPCAttachment",
        metadata=ObjectMeta(name=name),
        spec=SimpleNamespace(interface=SimpleNamespace(addresses=addresses), vpc=SimpleNamespace(name="shop")),
        status=SimpleNamespace(ready=ready),
    )


def tenant_slice(address: str, pod_name: str = "api-0", **metadata: Any) -> EndpointSlice:
    """Return the slice that Galactic's second generation writes for one pod."""
    return EndpointSlice(
        api_version="discovery.k8s.io/v1",
        kind="EndpointSlice",
        metadata=ObjectMeta(**{"name": pod_name, "labels": {"galactic.datum.net/tenant-id": "jU-G"}, **metadata}),
        address_type="IPv6",
        endpoints=(of_pod(address, pod_name),),
    )


SLICE = slice_of(of_pod())


@pytest.mark.parametrize("source", [AddressSource.POD_IP, AddressSource.ENDPOINT_SLICE])
def test_a_pods_attachment_address_takes_the_place_of_its_pod_address(source: AddressSource) -> None:
    items = (service(), SLICE, pod(attachment="region1"), attachment("10.40.7.2/24"))
    assert keys(binding(), *items) == ["10.40.7.2:9000@default/shop"]
    assert keys(binding(address_source=source), *items) == ["10.0.0.1:9000"]


def test_a_pod_without_attachment_keeps_its_pod_address() -> None:
    assert keys(binding(), service(), SLICE, pod()) == ["10.0.0.1:9000"]


def test_a_pod_whose_attachment_is_gone_is_left_out_and_reported() -> None:
    items = (service(), slice_of(of_pod(), of_pod("10.0.0.2", "api-1")), pod(attachment="region1"), pod("api-1"))
    assert keys(binding(), *items) == ["10.0.0.2:9000"]
    assert complaints(binding(), *items) == [
        (Reason.NO_VPC_ADDRESS, "pod default/api-0 names vpcattachment region1, which is not there")
    ]


def test_an_attachment_that_is_not_ready_gives_addresses_that_do_not_serve() -> None:
    items = (service(), SLICE, pod(attachment="region1"), attachment("10.40.7.2/24", ready=False))
    assert [(item.key, item.is_serving) for item in given(binding(), *items).endpoints] == [
        ("10.40.7.2:9000@default/shop", False)
    ]
    ((reason, message),) = complaints(binding(), *items)
    assert reason is Reason.NO_VPC_ADDRESS
    assert "vpcattachment default/region1 of pod api-0 is not ready" in message
    assert not given(binding(publish_not_ready_addresses=True), *items).endpoints[0].is_serving


def test_a_pod_that_no_source_tells_of_is_left_out_and_reported_unless_it_is_leaving() -> None:
    assert keys(binding(), service(), SLICE) == []
    ((reason, message),) = complaints(binding(), service(), SLICE)
    assert reason is Reason.NO_VPC_ADDRESS
    assert message == "pod default/api-0 is not there, so its attachment and labels are not known"
    leaving = slice_of(of_pod(conditions=LEAVING), endpoint("10.0.0.9"))
    assert keys(binding(), service(), leaving) == ["10.0.0.9:9000"]
    assert not complaints(binding(), service(), leaving)
    assert keys(binding(address_source=AddressSource.POD_IP), service(), SLICE) == ["10.0.0.1:9000"]


def test_many_pods_without_address_make_one_message_of_bounded_length() -> None:
    members = [of_pod(f"10.0.0.{number}", f"api-{number}") for number in range(20)]
    ((_, message),) = complaints(binding(), service(), slice_of(*members))
    assert message.endswith("; and 17 more")
    assert message.count("is not there") == 3


def test_the_family_is_that_of_the_attachment_whatever_slices_list() -> None:
    items = (service(), SLICE, pod(attachment="region1"), attachment("10.40.7.2/24", "fd40::2/64"))
    for family, expected in (
        (AddressFamily.DUAL, ["10.40.7.2:9000@default/shop", "[fd40::2]:9000@default/shop"]),
        (AddressFamily.IPV4, ["10.40.7.2:9000@default/shop"]),
        (AddressFamily.IPV6, ["[fd40::2]:9000@default/shop"]),
    ):
        assert keys(binding(address_family=family), *items) == expected


def test_a_pod_in_slices_of_both_families_has_its_attachment_once() -> None:
    both = (SLICE, slice_of(of_pod("fd00::1"), kind="IPv6"))
    items = (service(), *both, pod(attachment="region1"), attachment("10.40.7.2/24"))
    assert keys(binding(), *items) == ["10.40.7.2:9000@default/shop"]


def test_the_slice_of_a_tenants_pod_gives_its_vpc_address() -> None:
    own = tenant_slice("fd40::9")
    assert keys(binding(), service(), SLICE, pod(), own) == ["[fd40::9]:9000@/jU"]
    assert keys(binding(), service(), SLICE, pod(attachment="region1"), own) == ["[fd40::9]:9000@/jU"]
    first = (pod(attachment="region1"), attachment("10.40.7.2/24"))
    assert keys(binding(), service(), SLICE, *first, own) == ["10.40.7.2:9000@default/shop"]
    assert keys(binding(address_source=AddressSource.POD_IP), service(), SLICE, pod(), own) == ["10.0.0.1:9000"]


def test_an_endpoint_of_an_attachment_is_in_its_vpc_and_at_its_location() -> None:
    there = attachment("10.40.7.2/24")
    there.metadata = ObjectMeta(name="region1", annotations={"router.datum.net/location": "fra"})
    place = Location(
        api_version="networking.datumapis.com/v1alpha",
        kind="Location",
        metadata=ObjectMeta(name="fra", namespace=""),
        spec=LocationSpec(topology={"city": "FRA"}, coordinates=Coordinates(latitude="50.1", longitude="8.5")),
    )
    (found,) = given(binding(), service(), SLICE, pod(attachment="region1"), there, place).endpoints
    assert (found.vpc, found.address, found.port) == ("default/shop", "10.40.7.2", 9000)
    assert (found.locality.location, found.locality.latitude, found.locality.value("city")) == ("fra", 50.1, "FRA")


@pytest.mark.parametrize("ready", [True, False])
def test_a_vpc_that_is_not_ready_keeps_its_endpoints_from_serving(ready: bool) -> None:
    vpc = Attachment(
        kind="VPC", metadata=ObjectMeta(name="shop"), spec=SimpleNamespace(), status=SimpleNamespace(ready=ready)
    )
    items = (service(), SLICE, pod(attachment="region1"), attachment("10.40.7.2/24"), vpc)
    found = given(binding(), *items)
    assert [item.is_serving for item in found.endpoints] == [ready]
    assert [item.reason for item in found.shortfalls] == ([] if ready else [Reason.NO_VPC_ADDRESS])


@pytest.mark.parametrize("tenant", ["jU", "-G", "j U-G"])
def test_a_tenant_id_that_is_none_keeps_its_endpoints_from_serving(tenant: str) -> None:
    own = tenant_slice("fd40::9", labels={"galactic.datum.net/tenant-id": tenant})
    found = given(binding(), service(), SLICE, pod(), own)
    assert [item.is_serving for item in found.endpoints] == [False]
    assert [item.reason for item in found.shortfalls] == [Reason.NO_VPC_ADDRESS]


def test_a_slice_of_a_pods_name_that_is_not_its_tenants_gives_nothing() -> None:
    for other in (tenant_slice("fd40::9", labels={}), tenant_slice("fd40::9", "api-1", name="api-0")):
        assert "[fd40::9]:9000@/jU" not in keys(binding(), service(), SLICE, pod(), other)


def test_a_pod_of_another_namespace_is_not_believed() -> None:
    foreign = endpoint("10.0.0.1", target_ref=ObjectReference(kind="Pod", name="api-0", namespace="other"))
    there = in_namespace(pod(attachment="region1"), "other")
    theirs = attachment("10.40.7.2/24")
    theirs.metadata = ObjectMeta(name="region1", namespace="other")
    assert keys(binding(), service(), slice_of(foreign), there, theirs) == ["10.0.0.1:9000"]


@pytest.mark.parametrize("source", list(AddressSource))
def test_a_pod_selector_takes_pods_by_label_and_nothing_else(source: AddressSource) -> None:
    selector = LabelSelector(
        match_labels={"tier": "web"},
        match_expressions=(
            LabelSelectorRequirement(key="track", operator=SelectorOperator.NOT_IN, values=("canary",)),
        ),
    )
    members = slice_of(
        of_pod("10.0.0.1", "api-1"), of_pod("10.0.0.2", "api-2"), of_pod("10.0.0.3", "api-3"), endpoint("10.0.0.4")
    )
    pods = (pod("api-1", tier="web"), pod("api-2", tier="web", track="canary"), pod("api-3", tier="db"))
    one = binding(pod_selector=selector, address_source=source)
    assert keys(one, service(), members, *pods) == ["10.0.0.1:9000"]
    assert complaints(one, service(), members, *pods[1:2], pod("api-1"), pods[2]) == [
        (Reason.NO_ENDPOINTS, "service default/api-service has no endpoints that spec.podSelector selects at this port")
    ]


# --- endpoints that are taken once ---------------------------------------------------------------------------------


def hold_of(*items: Any) -> Hold:
    hold = given(*items).hold
    assert hold is not None
    return hold


ONCE = binding(auto_sync=False)


@pytest.mark.parametrize(
    ("conditions", "is_settled"),
    [((), False), ((READY,), True), ((READY, UNREADY), False), ((READY, LEAVING), True), ((LEAVING,), False)],
)
def test_endpoints_are_taken_once_all_of_them_are_ready(
    conditions: tuple[EndpointConditions, ...], is_settled: bool
) -> None:
    members = [endpoint(f"10.0.0.{number}", conditions=item) for number, item in enumerate(conditions)]
    assert hold_of(ONCE, service(), slice_of(*members)).is_settled is is_settled


def test_endpoints_are_not_taken_while_a_pod_has_no_vpc_address() -> None:
    items = (slice_of(of_pod(), endpoint("10.0.0.9")), pod(attachment="region1"))
    assert not hold_of(ONCE, service(), *items).is_settled
    assert hold_of(ONCE, service(), *items, attachment("10.40.7.2/24")).is_settled


def test_only_what_the_endpoints_are_about_has_them_taken_anew() -> None:
    token = hold_of(ONCE, service(), slice_of(endpoint("10.0.0.1"))).token
    assert hold_of(ONCE, service(), slice_of(endpoint("10.0.0.2"))).token == token
    assert hold_of(ONCE, service()).token == token
    changed = binding(auto_sync=False, publish_not_ready_addresses=True)
    assert hold_of(changed, service()).token != token
    again = msgspec.structs.replace(ONCE, metadata=ObjectMeta(name="api-binding", uid="2"))
    assert hold_of(again, service()).token != token
    assert given(binding(), service()).hold is None


def test_nothing_is_held_for_a_service_that_does_not_consent_any_more() -> None:
    once = binding(auto_sync=False, service_ref=ObjectRef(name="api-service", namespace="other"))
    consent = grant("Service", "", namespace="other")
    there = in_namespace(service(), "other")
    assert hold_of(once, there, consent) == hold_of(once, consent)  # a Service that is gone leaves what is held
    assert given(once, there).hold is None
    assert given(once).hold is None


def recorded(*endpoints: str, generation: int = 3, reason: str = "Paused", count: int | None = None) -> ServiceBinding:
    condition = Condition(type="Synced", status="True", reason=reason, observed_generation=3)
    status = ServiceBindingStatus(
        endpoints=endpoints, synced_endpoints=len(endpoints) if count is None else count, conditions=(condition,)
    )
    return msgspec.structs.replace(ONCE, metadata=ObjectMeta(name="api-binding", generation=generation), status=status)


def test_endpoints_that_the_status_records_are_taken_from_there() -> None:
    items = (service(), slice_of(endpoint("10.0.0.1", zone="eu-1a", conditions=UNREADY)))
    hold = hold_of(recorded("10.0.0.1:9000", "[fd00::2]:9001"), *items)
    assert [(item.key, item.is_serving) for item in hold.recorded] == [
        ("10.0.0.1:9000", True),
        ("[fd00::2]:9001", True),
    ]
    assert hold.recorded[0].locality.value("topology.kubernetes.io/zone") == "eu-1a"


@pytest.mark.parametrize(
    "one",
    [
        recorded("10.0.0.1:9000", generation=4),
        recorded("10.0.0.1:9000", reason="Synced"),
        recorded("10.0.0.1:9000", count=200),
        recorded("10.0.0.1:9000", "nonsense"),
    ],
    ids=["of another spec", "not held", "not all of them", "not to be read"],
)
def test_a_status_that_is_about_something_else_records_nothing(one: ServiceBinding) -> None:
    assert hold_of(one, service()).recorded == ()
