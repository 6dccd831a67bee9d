from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import ObjectMeta, ObjectRef
from datum_router.manifests.servicebinding import (
    AddressFamily,
    AddressSource,
    PortMapping,
    ServiceBinding,
    ServiceBindingSpec,
)
from datum_router.manifests.vpcservice import VPCService, VPCServiceSpec
from datum_router.plugins.protocols import Resolution
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

KINDS = (*OWN_KINDS, *datum_router_resource_kinds())


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


def slice_of(*endpoints: SliceEndpoint, port: int = 9000, name: str = "http", kind: str = "IPv4") -> EndpointSlice:
    return EndpointSlice(
        api_version="discovery.k8s.io/v1",
        kind="EndpointSlice",
        metadata=ObjectMeta(name=f"api-{kind.lower()}", labels={SERVICE_NAME_LABEL: "api-service"}),
        address_type=kind,
        endpoints=endpoints,
        ports=(SlicePort(name=name, port=port, protocol="TCP"),),
    )


def endpoint(address: str, **fields: Any) -> SliceEndpoint:
    return msgspec.structs.replace(SliceEndpoint(addresses=(address,)), **fields)


def resolve(*items: Any, port: int = 8080) -> Resolution:
    target = VPCService(
        api_version="router.datum.net/v1alpha1",
        kind="VPCService",
        metadata=ObjectMeta(name="my-api"),
        spec=VPCServiceSpec(port=port),
    )
    found = BindingResolver().resolve(target, view_of(*items))
    assert found is not None
    return found


def test_endpoints_are_those_of_the_slices_at_the_slice_port() -> None:
    found = resolve(binding(), service(), slice_of(endpoint("10.0.0.1"), endpoint("10.0.0.2")))
    assert [item.key for item in found.endpoints] == ["10.0.0.1:9000", "10.0.0.2:9000"]
    assert not found.problems


def test_a_service_without_binding_is_none_of_its_business() -> None:
    target = VPCService(
        api_version="router.datum.net/v1alpha1",
        kind="VPCService",
        metadata=ObjectMeta(name="other"),
        spec=VPCServiceSpec(port=80),
    )
    assert BindingResolver().resolve(target, view_of(binding())) is None


def test_port_mappings_choose_the_service_port() -> None:
    ports = (ServicePort(name="http", port=80), ServicePort(name="admin", port=81))
    mapping = (PortMapping(service_port=81, vpc_port=8080),)
    found = resolve(binding(port_mappings=mapping), service(*ports), slice_of(endpoint("10.0.0.1"), name="admin"))
    assert [item.port for item in found.endpoints] == [9000]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (binding(port_mappings=(PortMapping(service_port=81),)), "no mapping has vpcPort 8080"),
        (binding(port_mappings=(PortMapping(service_port=7, vpc_port=8080),)), "has no TCP port 7 (found 8080)"),
    ],
)
def test_ports_that_lead_nowhere_are_reported_on_the_binding(one: ServiceBinding, message: str) -> None:
    found = resolve(one, service(), slice_of(endpoint("10.0.0.1")))
    assert not found.endpoints
    (problem,) = found.problems
    assert problem.reason is Reason.PORT_NOT_FOUND
    assert message in problem.message
    assert str(problem.object) == "servicebinding default/api-binding"


def test_a_missing_service_is_a_reference_problem_with_the_nearest_name() -> None:
    other = msgspec.structs.replace(service(), metadata=ObjectMeta(name="api-servise"))
    found = resolve(binding(), other)
    assert found.problems[0].reason is Reason.SERVICE_NOT_FOUND
    assert found.problems[0].hint == "did you mean api-servise?"


@pytest.mark.parametrize(
    ("conditions", "publish", "is_serving"),
    [
        (EndpointConditions(), False, True),
        (EndpointConditions(ready=True), False, True),
        (EndpointConditions(ready=False), False, False),
        (EndpointConditions(ready=True, terminating=True), False, False),
        (EndpointConditions(ready=False), True, True),
    ],
)
def test_readiness_and_termination_are_honoured(
    conditions: EndpointConditions, publish: bool, is_serving: bool
) -> None:
    one = binding(publish_not_ready_addresses=publish)
    found = resolve(one, service(), slice_of(endpoint("10.0.0.1", conditions=conditions)))
    assert [item.is_serving for item in found.endpoints] == [is_serving]


def attached(source: AddressSource, *addresses: str) -> list[str]:
    pod = Pod(
        api_version="v1",
        kind="Pod",
        metadata=ObjectMeta(name="api-0", annotations={ATTACHMENT_ANNOTATION: "region1"}),
    )
    interface = SimpleNamespace(addresses=addresses)
    attachment = SimpleNamespace(
        kind="VPCAttachment",
        metadata=ObjectMeta(name="region1"),
        spec=SimpleNamespace(interface=interface),
    )
    ref = ObjectReference(kind="Pod", name="api-0")
    items = [binding(address_source=source), service(), slice_of(endpoint("10.0.0.1", target_ref=ref)), pod]
    return [item.address for item in resolve(*items, *([attachment] if addresses else [])).endpoints]


def test_a_pods_attachment_address_takes_the_place_of_its_pod_address() -> None:
    assert attached(AddressSource.ATTACHMENT, "10.40.7.2/24") == ["10.40.7.2"]
    assert attached(AddressSource.POD_IP, "10.40.7.2/24") == ["10.0.0.1"]
    assert attached(AddressSource.ENDPOINT_SLICE, "10.40.7.2/24") == ["10.0.0.1"]


def test_a_pod_whose_attachment_is_missing_keeps_its_pod_address_and_says_so() -> None:
    assert attached(AddressSource.ATTACHMENT) == ["10.0.0.1"]


def test_address_families_are_chosen() -> None:
    both = (slice_of(endpoint("10.0.0.1")), slice_of(endpoint("fd00::1"), kind="IPv6"))
    for family, expected in (
        (AddressFamily.DUAL, ["10.0.0.1", "fd00::1"]),
        (AddressFamily.IPV4, ["10.0.0.1"]),
        (AddressFamily.IPV6, ["fd00::1"]),
    ):
        found = resolve(binding(address_family=family), service(), *both)
        assert [item.address for item in found.endpoints] == expected


def test_a_service_of_another_namespace_needs_consent() -> None:
    found = resolve(binding(service_ref=ObjectRef(name="api-service", namespace="other")), service())
    assert found.problems[0].reason is Reason.REF_NOT_PERMITTED
    assert not found.problems[0].is_reference


def test_the_zone_of_a_slice_endpoint_is_its_place() -> None:
    found = resolve(binding(), service(), slice_of(endpoint("10.0.0.1", zone="eu-1a"), endpoint("10.0.0.2")))
    assert [item.locality.value("topology.kubernetes.io/zone") for item in found.endpoints] == ["eu-1a", ""]
