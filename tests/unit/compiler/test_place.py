"""The gateway's place: found by plugins in manifests, carried by snapshots, in force at once for all balancers."""

from __future__ import annotations

import random
import types
from collections.abc import Sequence
from typing import Any

import msgspec

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import Snapshot
from datum_router.compiler.linker import Linker
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Locality, make_endpoint, make_locality
from datum_router.model.filters import Mirror
from datum_router.model.request import LocalReply, RequestHead
from datum_router.model.route import BackendRef, LocalityMode, LocalityPolicy, Rule, RuleId
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins import builtin
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import HealthChange, ManifestView, PlaceResult, ResolveProblem
from datum_router.plugins.specs import PlaceSpec, PluginInfo
from datum_router.reasons import Reason

CITY = "topology.datum.net/city-code"
HEAD = RequestHead(method="GET", authority="a.test", host="a.test", path="/", client_ip="192.0.2.1")
A = ServiceKey("default/a")
IAD, FRA = make_locality({CITY: "IAD"}), make_locality({CITY: "FRA"})


class TopologyOfCell:
    """Takes the topology of the one VPCService called `cell` for the place of the cluster."""

    def __init__(self) -> None:
        self.asked = 0

    def find(self, view: ManifestView) -> PlaceResult:
        self.asked += 1
        cell = view.get("VPCService", "default", "cell")
        if not isinstance(cell, VPCService):
            return PlaceResult()
        if cell.spec.topology:
            return PlaceResult(place=make_locality(cell.spec.topology))
        key = ObjectKey(kind="VPCService", namespace="default", name="cell")
        problem = ResolveProblem(
            object=key, path="spec.topology", reason=Reason.MISSING_FIELD, message="no topology", is_reference=False
        )
        return PlaceResult(problems=(problem,))


def plugins_with(finder: TopologyOfCell) -> PluginSet:
    module = types.ModuleType("cell")

    @hookimpl
    def datum_router_plugin_info() -> PluginInfo:
        return PluginInfo(name="cell", version="1", api=1, stability="alpha", posture="no-traffic")

    @hookimpl
    def datum_router_places() -> Sequence[PlaceSpec]:
        return [PlaceSpec(name="cell", create=lambda: finder)]

    vars(module).update(datum_router_plugin_info=datum_router_plugin_info, datum_router_places=datum_router_places)
    found = [("builtin", builtin), ("cell", module)]
    return load_plugins(
        [Candidate(entry_point=name, distribution=name, load=lambda plugin=plugin: plugin) for name, plugin in found]
    )


def test_the_place_that_a_plugin_finds_is_in_the_snapshot(bench: Any, kit: Any) -> None:
    finder = TopologyOfCell()
    one = type(bench())(plugins_with(finder))
    before = one.compile(kit.service("a"))
    assert before.data.place == UNKNOWN_LOCALITY
    after = one.compile(kit.service("cell", topology={CITY: "IAD"}))
    assert after.data.place == IAD
    assert after.data.digest != before.data.digest
    assert finder.asked == 2
    one.compile(kit.service("b"))
    assert finder.asked == 2  # nothing that it looked at has changed


def test_what_is_wrong_with_it_is_said_of_the_object(bench: Any, kit: Any) -> None:
    one = type(bench())(plugins_with(TopologyOfCell()))
    result = one.compile(kit.service("cell"))
    assert result.data.place == UNKNOWN_LOCALITY
    (found,) = result.findings
    assert (found.object, found.path, found.reason) == ("vpcservice default/cell", "spec.topology", "MissingField")


# --- linked ------------------------------------------------------------------------------------------------------


def snapshot_data(policy: LocalityPolicy, version: int = 1, place: Locality = UNKNOWN_LOCALITY) -> SnapshotData:
    endpoints = (make_endpoint("10.0.0.1", 80, locality=IAD), make_endpoint("10.0.0.2", 80, locality=FRA))
    rule = Rule(id=RuleId("d/r#0"), route="d/r", destinations=(BackendRef(service=A, port=8080),), locality=policy)
    services = {A: Service(key=A, endpoints=endpoints, panic_threshold_percent=0)}
    return SnapshotData(version=version, rules=(rule,), services=services, place=place)


def select(snapshot: Snapshot) -> Lease | LocalReply:
    linked = snapshot.match(HEAD)
    assert linked is not None
    return linked.select(HEAD, rng=random.Random(1), now=0.0)


def address(snapshot: Snapshot) -> str:
    found = select(snapshot)
    assert isinstance(found, Lease)
    return found.endpoint.address


NEAREST = LocalityPolicy(mode=LocalityMode.NEAREST)


def test_a_gateway_is_where_the_snapshot_says_and_moves_at_once(plugins: PluginSet) -> None:
    linker = Linker(plugins)
    first = linker.link(snapshot_data(NEAREST, place=IAD))
    assert {address(first) for _ in range(8)} == {"10.0.0.1"}
    linker.link(snapshot_data(NEAREST, 2, place=FRA))
    assert {address(first) for _ in range(8)} == {"10.0.0.2"}  # on snapshots of before, too


def test_settings_precede_the_snapshot(plugins: PluginSet) -> None:
    linked = Linker(plugins, gateway_locality=FRA).link(snapshot_data(NEAREST, place=IAD))
    assert {address(linked) for _ in range(8)} == {"10.0.0.2"}


def test_residency_is_kept_even_if_that_means_503_and_the_reason_says_so(plugins: PluginSet) -> None:
    linker = Linker(plugins, gateway_locality=FRA)
    snapshot = linker.link(snapshot_data(LocalityPolicy(mode=LocalityMode.NEAREST, allowed_locations=("IAD",))))
    assert address(snapshot) == "10.0.0.1"
    down = HealthChange(service=A, endpoint=make_endpoint("10.0.0.1", 80).key, is_usable=False, since=1.0)
    linker.apply_health([down])
    found = select(snapshot)
    assert isinstance(found, LocalReply)
    assert (found.status, found.reason) == (503, Reason.LOCALITY_REQUIRED)
    nowhere = linker.link(snapshot_data(LocalityPolicy(allowed_locations=("LHR",)), 2))
    reply = select(nowhere)
    assert isinstance(reply, LocalReply)
    assert reply.reason is Reason.LOCALITY_REQUIRED


def test_without_places_the_reason_stays_that_nobody_is_healthy(plugins: PluginSet) -> None:
    linker = Linker(plugins)
    snapshot = linker.link(snapshot_data(LocalityPolicy()))
    keys = [make_endpoint(f"10.0.0.{n}", 80).key for n in (1, 2)]
    linker.apply_health([HealthChange(service=A, endpoint=key, is_usable=False, since=1.0) for key in keys])
    found = select(snapshot)
    assert isinstance(found, LocalReply)
    assert found.reason is Reason.NO_HEALTHY_ENDPOINT


def test_another_port_keeps_the_vpc_and_the_cluster_of_an_endpoint(plugins: PluginSet) -> None:
    data = snapshot_data(LocalityPolicy())
    far = make_endpoint("10.0.0.1", 80, locality=IAD, vpc="production/shop", cluster="b")
    services = {A: msgspec.structs.replace(data.services[A], endpoints=(far,))}
    found = select(Linker(plugins).link(msgspec.structs.replace(data, services=services)))
    assert isinstance(found, Lease)
    assert (found.endpoint.port, found.endpoint.vpc, found.endpoint.cluster) == (8080, "production/shop", "b")


def test_who_may_not_be_used_is_nobody_to_retry_at(plugins: PluginSet) -> None:
    """What the last allowed endpoint answered is given on, rather than thrown away for a try that nobody may take."""
    linker = Linker(plugins)
    tried = frozenset((make_endpoint("10.0.0.1", 80).key,))
    for policy, expected in ((LocalityPolicy(allowed_locations=("IAD",)), False), (LocalityPolicy(), True)):
        linked = linker.link(snapshot_data(policy)).match(HEAD)
        assert linked is not None
        assert linked.has_other(tried) is expected
    down = HealthChange(service=A, endpoint=make_endpoint("10.0.0.2", 80).key, is_usable=False, since=1.0)
    linker.apply_health([down])
    assert linked.has_other(tried) is False


def test_services_that_filters_ask_say_nothing_about_the_destinations(plugins: PluginSet) -> None:
    side = ServiceKey("default/side")
    data = snapshot_data(LocalityPolicy(allowed_locations=("IAD",)))
    here = msgspec.structs.replace(data.services[A], endpoints=data.services[A].endpoints[:1])
    there = msgspec.structs.replace(data.services[A], key=side)
    rule = msgspec.structs.replace(data.rules[0], filters=(Mirror(service=side),))
    linker = Linker(plugins)
    snapshot = linker.link(msgspec.structs.replace(data, rules=(rule,), services={A: here, side: there}))
    linked = snapshot.match(HEAD)
    assert linked is not None
    assert linked.has_other(frozenset((here.endpoints[0].key,))) is False
    for _ in range(8):  # a copy stays where the route's requests have to
        lease = linked.select_side(side, HEAD, rng=random.Random(1), now=0.0)
        assert lease is not None
        assert lease.endpoint.address == "10.0.0.1"
        lease.release()
    down = HealthChange(service=A, endpoint=here.endpoints[0].key, is_usable=False, since=1.0)
    linker.apply_health([down])
    found = select(snapshot)
    assert isinstance(found, LocalReply)
    assert found.reason is Reason.NO_HEALTHY_ENDPOINT
