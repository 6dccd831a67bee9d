from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.vpcservice import EndpointSpec, VPCService, VPCServiceSpec
from datum_router.model.endpoint import Endpoint, make_endpoint
from datum_router.plugins.protocols import ManifestView, Resolution
from datum_router.reasons import Reason
from datum_router.registry.endpoints import EndpointRegistry, StaticResolver
from datum_router.testing.view import FixedView


class Fixed:
    def __init__(self, *endpoints: Endpoint) -> None:
        self.endpoints = endpoints

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        return Resolution(endpoints=self.endpoints)


def service(*endpoints: EndpointSpec) -> VPCService:
    spec = VPCServiceSpec(port=80, target_port=8080, endpoints=endpoints, topology={"zone": "b"})
    return VPCService(
        api_version="router.datum.net/v1alpha1", kind="VPCService", metadata=ObjectMeta(name="a"), spec=spec
    )


def test_written_endpoints_take_the_target_port_and_the_topology() -> None:
    found = StaticResolver().resolve(service(EndpointSpec(address="10.0.0.1", weight=5, priority=1)), FixedView())
    assert found is not None
    (endpoint,) = found.endpoints
    assert (endpoint.key, endpoint.weight, endpoint.priority) == ("10.0.0.1:8080", 5, 1)
    assert endpoint.locality.value("zone") == "b"


def test_a_service_without_written_endpoints_is_left_to_others() -> None:
    assert StaticResolver().resolve(service(), FixedView()) is None


def test_answers_are_joined_and_the_first_resolver_decides() -> None:
    first = Fixed(make_endpoint("10.0.0.1", 80, weight=1, is_serving=False))
    second = Fixed(make_endpoint("10.0.0.1", 80, weight=9), make_endpoint("10.0.0.2", 80))
    found = EndpointRegistry([first, second]).resolve(service(), FixedView())
    assert [(item.key, item.weight, item.is_serving) for item in found.endpoints] == [
        ("10.0.0.1:80", 1, True),
        ("10.0.0.2:80", 100, True),
    ]


def test_a_pinned_service_keeps_its_first_endpoints_until_the_pin_changes() -> None:
    resolver = Fixed(make_endpoint("10.0.0.1", 80))
    registry = EndpointRegistry([resolver])
    assert len(registry.resolve(service(), FixedView(), pin="v1").endpoints) == 1
    resolver.endpoints = (make_endpoint("10.0.0.2", 80), make_endpoint("10.0.0.3", 80))
    assert [item.address for item in registry.resolve(service(), FixedView(), pin="v1").endpoints] == ["10.0.0.1"]
    assert [item.address for item in registry.resolve(service(), FixedView(), pin="v2").endpoints] == [
        "10.0.0.2",
        "10.0.0.3",
    ]
    assert len(registry.resolve(service(), FixedView()).endpoints) == 2


def test_a_resolver_that_raises_costs_only_its_own_endpoints_and_is_named() -> None:
    class Broken:
        def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
            raise KeyError("boom")

    found = EndpointRegistry([Broken(), Fixed(make_endpoint("10.0.0.1", 80))]).resolve(service(), FixedView())
    assert [item.address for item in found.endpoints] == ["10.0.0.1"]
    assert [(item.reason, item.message) for item in found.problems] == [
        (Reason.PLUGIN_FAILED, "resolver Broken raised KeyError: 'boom'")
    ]
