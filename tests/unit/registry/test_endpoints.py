import msgspec
import pytest

from datum_router.manifests.meta import ObjectKey, ObjectMeta
from datum_router.manifests.vpcservice import EndpointSpec, VPCService, VPCServiceSpec
from datum_router.model.endpoint import Endpoint, make_endpoint
from datum_router.plugins.protocols import Contribution, Hold, ManifestView, Resolution, ResolveProblem, VpcNetwork
from datum_router.reasons import Reason
from datum_router.registry import endpoints
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


BINDING = ObjectKey(kind="ServiceBinding", namespace="default", name="b")


class Giving:
    """A resolver with one contribution, which the test changes."""

    def __init__(self, *addresses: str, **fields: object) -> None:
        self.given = Contribution(
            object=BINDING, endpoints=tuple(make_endpoint(address, 80) for address in addresses), **fields
        )

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        return Resolution(contributions=(self.given,))


def addresses(registry: EndpointRegistry) -> list[str]:
    return [item.address for item in registry.resolve(service(), FixedView()).endpoints]


def hold(token: str, *, is_settled: bool = True, recorded: tuple[str, ...] = ()) -> Hold:
    return Hold(token=token, is_settled=is_settled, recorded=tuple(make_endpoint(address, 80) for address in recorded))


def test_contributions_come_after_the_services_own_endpoints_and_are_told_apart() -> None:
    found = EndpointRegistry([Giving("10.0.0.2", "10.0.0.1"), Fixed(make_endpoint("10.0.0.1", 80, weight=7))]).resolve(
        service(), FixedView()
    )
    assert [(item.address, item.weight) for item in found.endpoints] == [("10.0.0.2", 100), ("10.0.0.1", 100)]
    assert [item.address for item in found.contributions[0].endpoints] == ["10.0.0.2", "10.0.0.1"]
    assert not found.contributions[0].is_held


def test_endpoints_are_followed_until_they_have_settled_and_then_held() -> None:
    resolver = Giving("10.0.0.1", hold=hold("v1", is_settled=False))
    registry = EndpointRegistry([resolver])
    assert addresses(registry) == ["10.0.0.1"]
    resolver.given = Giving("10.0.0.2", hold=hold("v1")).given
    assert addresses(registry) == ["10.0.0.2"]
    resolver.given = Giving("10.0.0.3", hold=hold("v1")).given
    assert addresses(registry) == ["10.0.0.2"]
    resolver.given = Giving(hold=hold("v1", is_settled=False)).given
    assert addresses(registry) == ["10.0.0.2"]
    resolver.given = Giving("10.0.0.4", hold=hold("v2", is_settled=False)).given
    assert addresses(registry) == ["10.0.0.4"]


def test_only_endpoints_that_serve_are_held() -> None:
    resolver = Giving("10.0.0.1", hold=hold("v1"))
    leaving = make_endpoint("10.0.0.2", 80, is_serving=False)
    resolver.given = msgspec.structs.replace(resolver.given, endpoints=(*resolver.given.endpoints, leaving))
    assert addresses(EndpointRegistry([resolver])) == ["10.0.0.1"]


def test_recorded_endpoints_win_over_those_that_this_process_took() -> None:
    resolver = Giving("10.0.0.1", hold=hold("v1"))
    registry = EndpointRegistry([resolver])
    assert addresses(registry) == ["10.0.0.1"]
    resolver.given = Giving("10.0.0.1", hold=hold("v1", recorded=("10.0.0.9",))).given
    assert addresses(registry) == ["10.0.0.9"]
    resolver.given = Giving("10.0.0.1", hold=hold("v1")).given
    assert addresses(registry) == ["10.0.0.9"]


@pytest.mark.parametrize("way", ["followed again", "service gone", "service not among those that are left"])
def test_what_is_held_is_forgotten_with_its_object_and_with_its_service(way: str) -> None:
    resolver = Giving("10.0.0.1", hold=hold("v1"))
    registry = EndpointRegistry([resolver])
    assert addresses(registry) == ["10.0.0.1"]
    if way == "followed again":
        resolver.given = Giving("10.0.0.1").given
        addresses(registry)
    elif way == "service gone":
        registry.forget(("default", "a"))
    else:
        registry.retain({("default", "b")})
    resolver.given = Giving("10.0.0.2", hold=hold("v1")).given
    assert addresses(registry) == ["10.0.0.2"]


def test_shortfalls_are_told_unless_endpoints_are_held() -> None:
    shortfall = ResolveProblem(path="spec", reason=Reason.NO_ENDPOINTS, message="none")
    resolver = Giving(hold=hold("v1", is_settled=False), shortfalls=(shortfall,))
    registry = EndpointRegistry([resolver])
    assert registry.resolve(service(), FixedView()).problems == (shortfall,)
    resolver.given = Giving(hold=hold("v1", recorded=("10.0.0.9",)), shortfalls=(shortfall,)).given
    found = registry.resolve(service(), FixedView())
    assert (found.problems, found.contributions[0].shortfalls, found.contributions[0].is_held) == ((), (), True)


def test_more_endpoints_than_the_limit_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "MAX_ENDPOINTS_PER_SERVICE", 2)
    many = [make_endpoint(f"10.0.0.{number}", 80) for number in range(4)]
    found = EndpointRegistry([Fixed(*many), Giving("10.0.0.0", "10.0.0.9")]).resolve(service(), FixedView())
    assert [item.address for item in found.endpoints] == ["10.0.0.0", "10.0.0.1"]
    assert [item.message for item in found.problems] == ["found 5 endpoints, expected at most 2; the rest is left out"]


def test_a_resolver_that_raises_costs_only_its_own_endpoints_and_is_named() -> None:
    class Broken:
        def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
            raise KeyError("boom")

    found = EndpointRegistry([Broken(), Fixed(make_endpoint("10.0.0.1", 80))]).resolve(service(), FixedView())
    assert [item.address for item in found.endpoints] == ["10.0.0.1"]
    assert [(item.reason, item.message) for item in found.problems] == [
        (Reason.PLUGIN_FAILED, "resolver Broken raised KeyError: 'boom'")
    ]


class Networks:
    """Says which networks are reached through which VPC, and names one endpoint itself."""

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        return Resolution(
            endpoints=(make_endpoint("10.1.0.9", 80, origin="attachment"),),
            networks=(VpcNetwork(network="10.0.0.0/8", vpc="prod/b"), VpcNetwork(network="10.1.0.0/16", vpc="prod/a")),
        )


def test_addresses_that_are_written_down_belong_to_the_vpc_of_the_narrowest_network_that_holds_them() -> None:
    written = [EndpointSpec(address=one, port=80) for one in ("10.1.2.3", "10.2.2.3", "192.0.2.1", "fd00::1")]
    found = EndpointRegistry([StaticResolver(), Networks()]).resolve(service(*written), FixedView())
    assert [str(one.key) for one in found.endpoints] == [
        "10.1.2.3:80@prod/a",
        "10.2.2.3:80@prod/b",
        "192.0.2.1:80",
        "[fd00::1]:80",
        "10.1.0.9:80",  # what others name is theirs to place
    ]
    assert [one.vpc for one in found.endpoints] == ["prod/a", "prod/b", "", "", ""]


def test_an_address_in_equal_networks_of_two_vpcs_is_left_out_and_told() -> None:
    class Overlapping:
        def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
            equal = ("10.1.0.0/16", "prod/b"), ("10.1.0.0/16", "prod/a"), ("10.1.9.0/24", "prod/a")
            return Resolution(networks=tuple(VpcNetwork(network=network, vpc=vpc) for network, vpc in equal))

    written = [EndpointSpec(address=one, port=80) for one in ("10.1.2.3", "10.1.9.3", "10.3.0.1")]
    found = EndpointRegistry([StaticResolver(), Overlapping()]).resolve(service(*written), FixedView())
    assert [str(one.key) for one in found.endpoints] == ["10.1.9.3:80@prod/a", "10.3.0.1:80"]
    assert [(one.reason, one.message) for one in found.problems] == [
        (
            Reason.INVALID_ADDRESS,
            "found 10.1.2.3, which is in networks of the VPCs prod/a and prod/b, expected an address of one of them: "
            "the endpoint is left out",
        )
    ]
