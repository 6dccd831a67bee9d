from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from datum_router.manifests.holding import recorded_endpoints
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import Condition, ObjectKey, StatusPart
from datum_router.manifests.servicebinding import ServiceBinding, ServiceBindingStatus
from datum_router.manifests.vpcegress import VPCEgressStatus
from datum_router.manifests.vpcingress import VPCIngressStatus
from datum_router.manifests.vpcroute import VPCRouteStatus
from datum_router.manifests.vpcservice import EndpointStatus, VPCServiceStatus
from datum_router.model.endpoint import make_endpoint
from datum_router.plugins.protocols import Contribution
from datum_router.reasons import Reason
from datum_router.reconcile.conditions import MAX_MESSAGE_CHARS, ConditionType
from datum_router.reconcile.reports import IN_FORCE, NO_GATEWAY, Refusal, Verdict
from datum_router.reconcile.status import (
    BOUND_ENDPOINTS,
    CONTROLLER_NAME,
    KINDS,
    LISTED_ENDPOINTS,
    desired_status,
    is_same_status,
    plain_status,
)
from datum_router.reconcile.subject import Facts

if TYPE_CHECKING:
    from tests.unit.reconcile.conftest import Desk

Of = Callable[[StatusPart, ConditionType], Condition]
C = ConditionType
LATER = "2026-02-02T00:00:00Z"
WAITING = Verdict(status="False", reason="Pending", message="not in force yet on gw-1")


def endpoints(*addresses: str) -> dict[str, Any]:
    return {"port": 80, "endpoints": [{"address": address} for address in addresses or ("10.0.0.1",)]}


def to(*services: str, **spec: Any) -> dict[str, Any]:
    return {"destinations": [{"vpcServiceRef": {"name": name}} for name in services], **spec}


def edge(host: str = "a.test", **spec: Any) -> dict[str, Any]:
    return {"host": host, "rules": [{"path": "/", "service": {"name": "api"}}], **spec}


def states(status: StatusPart) -> dict[str, str]:
    return {one.type: f"{one.status} {one.reason}" for one in status.conditions}  # type: ignore[attr-defined]


# --- good objects ----------------------------------------------------------------------------------------------------


def test_every_kind_of_ours_has_a_status() -> None:
    assert {kind.kind for kind in OWN_KINDS} == KINDS


def test_a_good_service(desk: Desk) -> None:
    key = desk.put("VPCService", "api", endpoints("10.0.0.1", "10.0.0.2"))
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCServiceStatus)
    assert states(status) == {
        "Accepted": "True Accepted",
        "ResolvedRefs": "True ResolvedRefs",
        "EndpointsReady": "True EndpointsReady",
        "Programmed": "True Programmed",
        "Ready": "True Ready",
    }
    assert (status.ready, status.endpoint_count, status.observed_generation) == (True, 2, 1)
    assert status.endpoints[0] == EndpointStatus(ip="10.0.0.1", port=80, ready=True, source="static")
    assert all(one.observed_generation == 1 for one in status.conditions)


def test_a_good_route(desk: Desk) -> None:
    desk.put("VPCService", "api", endpoints())
    spec = to("api")
    spec["destinations"].append({"vpcServiceRef": {"name": "api"}, "weight": 0})
    key = desk.put("VPCRoute", "r", spec)
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCRouteStatus)
    assert states(status) == {
        "Accepted": "True Accepted",
        "ResolvedRefs": "True ResolvedRefs",
        "Conflicted": "False NoConflicts",
        "Programmed": "True Programmed",
    }
    assert (status.ready, status.active_destinations, status.parents) == (True, 1, ())


def test_a_route_that_redirects_is_ready_without_a_destination(desk: Desk) -> None:
    redirect = {"type": "RequestRedirect", "requestRedirect": {"hostname": "b.test"}}
    key = desk.put("VPCRoute", "r", {"filters": [redirect]})
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCRouteStatus)
    assert (status.ready, status.active_destinations) == (True, 0)


def test_a_good_ingress(desk: Desk) -> None:
    desk.put("VPCService", "api", endpoints())
    key = desk.put("VPCIngress", "edge", edge(tls={"secretName": "cert"}))
    desk.put("VPCRoute", "named", to("api", parentRefs=[{"name": "edge", "sectionName": "https"}]))
    desk.put("VPCRoute", "elsewhere", to("api"))
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCIngressStatus)
    assert states(status)["Ready"] == "True Ready"
    assert (status.ready, status.active_backends) == (True, 1)
    assert [(one.name, one.attached_routes) for one in status.listeners] == [("http", 0), ("https", 1)]
    assert [one.type for one in status.listeners[0].conditions] == ["Accepted", "Programmed"]


def test_an_egress_is_active_once_it_is_in_force_everywhere(desk: Desk) -> None:
    key = desk.put("VPCEgress", "out", {"destinations": [{"endpoint": "example.test", "port": 443}]})
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCEgressStatus)
    assert states(status) == {
        "Accepted": "True Accepted",
        "ResolvedRefs": "True ResolvedRefs",
        "Programmed": "True Programmed",
    }
    assert status.active


def test_an_egress_whose_attachment_is_not_there_is_in_force_and_says_so(desk: Desk) -> None:
    key = desk.put("VPCEgress", "out", {"sourceVpcAttachment": "gone"})
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCEgressStatus)
    assert states(status)["ResolvedRefs"] == "False AttachmentNotFound"
    assert not status.active


# --- bad versions ----------------------------------------------------------------------------------------------------


def test_a_bad_version_is_named_by_its_generation_while_the_last_good_one_stays_in_force(
    desk: Desk, condition_of: Of
) -> None:
    key = desk.put("VPCService", "api", endpoints())
    desk.compile()
    desk.write(key)
    desk.put("VPCService", "api", {"port": 99999, "endpoints": [{"address": "10.0.0.1"}], "prot": 1})
    assert key in desk.compile()
    status = desk.desired(key, now=LATER)
    assert isinstance(status, VPCServiceStatus)
    accepted = condition_of(status, C.ACCEPTED)
    assert (accepted.status, accepted.observed_generation, accepted.last_transition_time) == ("False", 2, LATER)
    assert accepted.reason == "InvalidValue"
    assert "spec.port: " in accepted.message
    assert "spec.prot: unknown field" in accepted.message
    assert accepted.message.endswith("; the last good version, generation 1, stays in force")
    programmed = condition_of(status, C.PROGRAMMED)
    assert (programmed.status, programmed.observed_generation) == ("True", 1), "about the version in force"
    assert condition_of(status, C.ENDPOINTS_READY).status == "True"
    assert (status.observed_generation, status.ready, status.endpoint_count) == (2, False, 1)
    desk.put("VPCService", "api", endpoints())
    desk.compile()
    assert states(desk.desired(key))["Accepted"] == "True Accepted"


def test_the_status_of_a_bad_version_is_known_when_it_was_written(desk: Desk) -> None:
    key = desk.put("VPCService", "api", endpoints())
    desk.compile()
    desk.put("VPCService", "api", {"port": "x"})
    desk.compile()
    desk.write(key)
    assert is_same_status(desk.index.status(key), desk.desired(key, now=LATER))


def test_an_object_that_was_never_good_has_no_version_in_force(desk: Desk, condition_of: Of) -> None:
    key = desk.put("VPCRoute", "r", {"destinations": []})
    desk.compile()
    status = desk.desired(key)
    assert states(status) == {
        "Accepted": "False MissingField",
        "ResolvedRefs": "Unknown Pending",
        "Conflicted": "False NoConflicts",
        "Programmed": "False Invalid",
    }
    assert condition_of(status, C.ACCEPTED).message.endswith("; no version of it is in force")
    assert condition_of(status, C.PROGRAMMED).observed_generation == 1
    assert key in set(desk.index.objects())


def test_what_compiling_refuses_is_not_accepted_either(desk: Desk, condition_of: Of) -> None:
    desk.put("VPCService", "api", endpoints())
    key = desk.put("VPCRoute", "r", to("api", loadBalancing="by-the-moon"))
    desk.compile()
    accepted = condition_of(desk.desired(key), C.ACCEPTED)
    assert (accepted.status, accepted.reason) == ("False", "UnknownBalancer")
    assert accepted.message.startswith("spec.loadBalancing: found 'by-the-moon'")


def test_what_takes_preflights_is_no_destination_of_a_route(desk: Desk) -> None:
    desk.put("VPCService", "api", endpoints())
    cors = {"allowedOrigins": ["https://a.test"]}
    key = desk.put("VPCRoute", "r", to("api", match={"methods": ["GET", "PUT"]}, cors=cors))
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCRouteStatus)
    assert status.active_destinations == 1
    assert states(status)["Conflicted"] == "False NoConflicts"


def test_a_copy_without_a_service_is_a_reference_to_nowhere(desk: Desk, condition_of: Of) -> None:
    desk.put("VPCService", "api", endpoints())
    mirror = {"type": "RequestMirror", "requestMirror": {"vpcServiceRef": {"name": "gone"}}}
    key = desk.put("VPCRoute", "r", to("api", filters=[mirror]))
    desk.compile()
    resolved = condition_of(desk.desired(key), C.RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("False", "VPCServiceNotFound")
    assert "nothing is copied" in resolved.message


def test_warnings_are_told_without_refusing_anything(desk: Desk, condition_of: Of) -> None:
    tls = {"mode": "Simple", "insecureSkipVerify": True}
    key = desk.put("VPCService", "api", {**endpoints(), "protocol": "HTTPS", "tls": tls})
    desk.compile()
    accepted = condition_of(desk.desired(key), C.ACCEPTED)
    assert accepted.status == "True"
    assert "are not verified" in accepted.message


def test_a_generation_of_equal_content_is_observed(desk: Desk, condition_of: Of) -> None:
    key = desk.put("VPCRoute", "r", to("api", hostnames=["a.test"]))
    desk.put("VPCService", "api", endpoints())
    desk.compile()
    desk.write(key)
    desk.put("VPCRoute", "r", to("api", hostnames=["A.test"]))
    assert desk.echo() == {key}, "host names are compared in lower case: there is nothing to compile"
    status = desk.desired(key)
    assert isinstance(status, VPCRouteStatus)
    assert status.observed_generation == 2
    assert condition_of(status, C.PROGRAMMED).observed_generation == 2
    assert not is_same_status(desk.index.status(key), status)


# --- references, conflicts, shortages -----------------------------------------------------------------------------


def test_a_reference_to_nowhere(desk: Desk, condition_of: Of) -> None:
    desk.put("VPCService", "api", endpoints())
    key = desk.put("VPCRoute", "r", to("api", "apj"))
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCRouteStatus)
    resolved = condition_of(status, C.RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("False", "VPCServiceNotFound")
    assert resolved.message.startswith("spec.destinations[1].vpcServiceRef.name: vpcservice default/apj is not there")
    assert "did you mean api?" in resolved.message
    assert (status.ready, status.active_destinations) == (False, 1)
    assert states(status)["Accepted"] == "True Accepted"


def test_a_reference_without_consent(desk: Desk) -> None:
    desk.put("VPCService", "api", endpoints(), namespace="other")
    key = desk.put("VPCRoute", "r", {"destinations": [{"vpcServiceRef": {"name": "api", "namespace": "other"}}]})
    desk.compile()
    assert states(desk.desired(key))["ResolvedRefs"] == "False RefNotPermitted"


def test_what_only_gateways_may_read_is_said_by_them(desk: Desk, condition_of: Of) -> None:
    desk.put("VPCService", "api", endpoints())
    key = desk.put("VPCIngress", "edge", edge(tls={"secretName": "cert"}))
    desk.compile()
    refusal = Refusal(
        kind="VPCIngress", namespace="default", name="edge", reason="InvalidCertificateRef", message="no secret cert"
    )
    status = desk.desired(key, refusals=(("gw-1", refusal),))
    resolved = condition_of(status, C.RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("False", "InvalidCertificateRef")
    assert resolved.message == "gateway gw-1: no secret cert"
    assert condition_of(status, C.READY).reason == "InvalidCertificateRef"


def test_a_service_without_endpoints(desk: Desk, condition_of: Of) -> None:
    key = desk.put("VPCService", "api", {"port": 80, "vpcAttachmentRef": {"name": "gone"}})
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCServiceStatus)
    ready = condition_of(status, C.ENDPOINTS_READY)
    assert (ready.status, ready.reason) == ("False", "NoEndpoints")
    assert condition_of(status, C.READY).reason == "NoEndpoints"
    assert (status.ready, status.endpoint_count) == (False, 0)
    assert condition_of(status, C.ACCEPTED).status == "True"


def test_the_younger_of_two_equal_routes_is_told_so(desk: Desk, condition_of: Of) -> None:
    desk.put("VPCService", "api", endpoints())
    first = desk.put("VPCRoute", "a", to("api"))
    second = desk.put("VPCRoute", "b", to("api"))
    desk.compile()
    winner, loser = desk.desired(first), desk.desired(second)
    assert isinstance(winner, VPCRouteStatus)
    assert isinstance(loser, VPCRouteStatus)
    assert (winner.ready, loser.ready) == (True, False)
    conflicted = condition_of(loser, C.CONFLICTED)
    assert (conflicted.status, conflicted.reason) == ("True", "Conflicted")
    assert "default/a#0" in conflicted.message
    assert states(loser)["Accepted"] == "True Accepted"


def test_a_port_that_another_ingress_has_is_told_at_the_listener(desk: Desk, condition_of: Of) -> None:
    desk.put("VPCService", "api", endpoints())
    desk.put("VPCIngress", "a", edge())
    key = desk.put(
        "VPCIngress",
        "b",
        edge("b.test", tls={"secretName": "c"}, listeners=[{"name": "s", "port": 8080, "protocol": "HTTPS"}]),
    )
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCIngressStatus)
    assert condition_of(status, C.CONFLICTED).status == "True"
    (listener,) = status.listeners
    (accepted,) = listener.conditions
    assert (accepted.status, accepted.reason) == ("False", "ProtocolConflict")
    assert not status.ready


def test_a_route_is_told_of_each_parent(desk: Desk) -> None:
    desk.put("VPCService", "api", endpoints())
    desk.put("VPCIngress", "edge", edge("a.test"))
    desk.put("VPCIngress", "other", edge("b.test", listeners=[{"name": "l", "port": 8081}]))
    refs = [
        {"name": "edge"},
        {"name": "gone"},
        {"name": "edge", "sectionName": "none"},
        {"name": "other"},
    ]
    key = desk.put("VPCRoute", "r", to("api", hostnames=["a.test"], parentRefs=refs))
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCRouteStatus)
    assert [one.parent_ref.name for one in status.parents] == ["edge", "gone", "edge", "other"]
    assert all(one.controller_name == CONTROLLER_NAME for one in status.parents)
    found = [one.conditions[0] for one in status.parents]
    assert [f"{one.type} {one.status} {one.reason}" for one in found] == [
        "Accepted True Accepted",
        "Accepted False VPCIngressNotFound",
        "Accepted False VPCIngressNotFound",
        "Accepted False InvalidValue",
    ]
    assert [one.type for one in status.parents[0].conditions] == ["Accepted", "ResolvedRefs", "Programmed"]


# --- being in force ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [(WAITING, ("False", "Pending", WAITING.message)), (NO_GATEWAY, ("Unknown", "NoGateway", NO_GATEWAY.message))],
)
def test_a_route_is_ready_only_in_force_everywhere(
    desk: Desk, condition_of: Of, verdict: Verdict, expected: tuple[str, str, str]
) -> None:
    desk.put("VPCService", "api", endpoints())
    key = desk.put("VPCRoute", "r", to("api"))
    desk.compile()
    status = desk.desired(key, verdict=verdict)
    assert isinstance(status, VPCRouteStatus)
    programmed = condition_of(status, C.PROGRAMMED)
    assert (programmed.status, programmed.reason, programmed.message) == expected
    assert not status.ready


# --- bindings ---------------------------------------------------------------------------------------------------------


def test_a_binding_whose_vpcservice_is_not_there(desk: Desk) -> None:
    spec = {"serviceRef": {"name": "svc"}, "vpcServiceRef": {"name": "api"}, "autoSync": True}
    key = desk.put("ServiceBinding", "b", spec)
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, ServiceBindingStatus)
    assert states(status) == {
        "Accepted": "True Accepted",
        "ResolvedRefs": "False VPCServiceNotFound",
        "Synced": "False VPCServiceNotFound",
        "Programmed": "True Programmed",
    }
    assert (status.active, status.synced_endpoints) == (False, 0)


# --- comparing and writing ---------------------------------------------------------------------------------------


def everything(desk: Desk) -> list[ObjectKey]:
    keys = [
        desk.put("VPCService", "api", endpoints("10.0.0.1", "10.0.0.2")),
        desk.put("VPCService", "empty", {"port": 80, "vpcAttachmentRef": {"name": "gone"}}),
        desk.put("VPCIngress", "edge", edge(tls={"secretName": "cert"})),
        desk.put("VPCRoute", "r", to("api", "gone", parentRefs=[{"name": "edge"}, {"name": "no"}])),
        desk.put("VPCRoute", "bad", {"destinations": "x"}),
        desk.put("ServiceBinding", "b", {"serviceRef": {"name": "s"}, "vpcServiceRef": {"name": "api"}}),
        desk.put("VPCEgress", "out", {"destinations": [{"endpoint": "example.test", "port": 443}]}),
    ]
    desk.compile()
    return keys


def test_a_status_that_was_written_and_read_is_not_written_again(desk: Desk) -> None:
    for key in everything(desk):
        written = desk.write(key)
        again = desk.desired(key, now=LATER)
        assert is_same_status(desk.index.status(key), again), key
        assert again.conditions == written.conditions, "times stay"  # type: ignore[attr-defined]


def test_a_time_moves_only_with_what_it_is_about(desk: Desk, condition_of: Of) -> None:
    key = desk.put("VPCService", "api", endpoints())
    desk.compile()
    before = desk.write(key)
    desk.put("VPCService", "api", {**endpoints(), "connectTimeout": "3s"})
    desk.compile()
    same = desk.write(key, now=LATER, verdict=WAITING)
    assert isinstance(before, VPCServiceStatus)
    assert isinstance(same, VPCServiceStatus)
    assert same.last_update_time == before.last_update_time
    assert condition_of(same, C.ACCEPTED).last_transition_time == condition_of(before, C.ACCEPTED).last_transition_time
    assert condition_of(same, C.PROGRAMMED).last_transition_time == LATER
    desk.put("VPCService", "api", endpoints("10.0.0.9"))
    desk.compile()
    moved = desk.desired(key, now=LATER)
    assert isinstance(moved, VPCServiceStatus)
    assert moved.last_update_time == LATER


def test_what_others_write_is_neither_a_difference_nor_written_over(desk: Desk) -> None:
    key = everything(desk)[2]
    desk.write(key)
    theirs = {"type": "example.test/Theirs", "status": "True", "reason": "Why", "lastTransitionTime": LATER}
    status = desk.objects[key]["status"]
    status["conditions"] = [theirs, *status["conditions"]]
    status["loadBalancerIp"] = "192.0.2.1"
    desk._emit(key)
    desk.echo()
    again = desk.desired(key, now=LATER)
    assert is_same_status(desk.index.status(key), again)
    assert "loadBalancerIp" not in plain_status(again)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda status: status.update(ready=False),
        lambda status: status["conditions"].pop(),
        lambda status: status["conditions"][0].update(status="False"),
        lambda status: status["conditions"][0].update(message="nonsense"),
        lambda status: status["endpoints"].pop(),
        lambda status: status.update(endpointCount=7),
        lambda status: status.pop("observedGeneration"),
    ],
)
def test_what_was_spoilt_is_a_difference(desk: Desk, spoil: Callable[[Any], object]) -> None:
    key = everything(desk)[0]
    desk.write(key)
    spoil(desk.objects[key]["status"])
    desk._emit(key)
    desk.echo()
    assert not is_same_status(desk.index.status(key), desk.desired(key))


def test_scalars_are_written_even_if_they_say_no(desk: Desk) -> None:
    key = everything(desk)[1]
    plain = plain_status(desk.desired(key))
    assert (plain["ready"], plain["endpointCount"], plain["observedGeneration"]) == (False, 0, 1)
    assert "endpoints" not in plain
    conditions = plain["conditions"]
    assert isinstance(conditions, list)
    assert all({"type", "status", "reason", "message", "lastTransitionTime"} <= one.keys() for one in conditions)
    assert msgspec.json.decode(msgspec.json.encode(plain)) == plain


def test_a_status_lists_some_endpoints_and_counts_all(desk: Desk) -> None:
    many = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(LISTED_ENDPOINTS + 50)]
    key = desk.put("VPCService", "api", endpoints(*many))
    desk.compile()
    status = desk.desired(key)
    assert isinstance(status, VPCServiceStatus)
    assert (len(status.endpoints), status.endpoint_count) == (LISTED_ENDPOINTS, LISTED_ENDPOINTS + 50)


def test_messages_are_bounded(desk: Desk, condition_of: Of) -> None:
    desk.put("VPCIngress", "edge", edge())
    key = desk.put("VPCRoute", "r", to(*(f"{'x' * 240}{n}" for n in range(64))))
    desk.compile()
    message = condition_of(desk.desired(key), C.RESOLVED_REFS).message
    assert 1000 < len(message) <= MAX_MESSAGE_CHARS


def test_no_status_says_anything_of_another_kind_of_reason(desk: Desk) -> None:
    for key in everything(desk):
        status = desk.desired(key)
        for one in status.conditions:  # type: ignore[attr-defined]
            assert one.reason[0].isupper(), one
            assert one.reason in {str(reason) for reason in Reason}


# --- what a binding gives -----------------------------------------------------------------------------------------


def bound(desk: Desk, contribution: Contribution, *, auto_sync: bool) -> tuple[ServiceBindingStatus, ServiceBinding]:
    """Return the status that a binding gets, and the binding as it is read with it."""
    desk.put("VPCService", "api", {"port": 80, "discovery": {"method": "kubernetes"}})
    spec = {"serviceRef": {"name": "svc"}, "vpcServiceRef": {"name": "api"}, "autoSync": auto_sync}
    key = desk.put("ServiceBinding", "b", spec)
    desk.compile()
    subject = desk.index.subject(key, status=None, verdict=WAITING)
    assert subject is not None
    status = desired_status(subject, Facts(contribution=contribution), now=LATER)
    assert isinstance(status, ServiceBindingStatus)
    desk.objects[key]["status"] = plain_status(status)
    desk._emit(key)
    found = desk.store.view().get("ServiceBinding", "default", "b")
    assert isinstance(found, ServiceBinding)
    return status, found


BINDING = ObjectKey(kind="ServiceBinding", namespace="default", name="b")
TWO = (make_endpoint("10.0.0.1", 80), make_endpoint("fd00::1", 80, is_serving=False))


def test_a_binding_that_follows_its_service(desk: Desk, condition_of: Of) -> None:
    status, found = bound(desk, Contribution(object=BINDING, endpoints=TWO), auto_sync=True)
    synced = condition_of(status, C.SYNCED)
    assert (synced.status, synced.reason, synced.message) == ("True", "Synced", "1 endpoint of 2 may be used")
    assert (status.active, status.synced_endpoints) == (True, 2)
    assert status.endpoints == ("10.0.0.1:80", "[fd00::1]:80")
    assert recorded_endpoints(found) == ()


def test_what_a_binding_holds_is_written_so_that_every_process_can_read_it(desk: Desk, condition_of: Of) -> None:
    many = tuple(make_endpoint(f"10.1.{n // 250}.{n % 250 + 1}", 80) for n in range(BOUND_ENDPOINTS))
    status, found = bound(desk, Contribution(object=BINDING, endpoints=many, is_held=True), auto_sync=False)
    synced = condition_of(status, C.SYNCED)
    assert (synced.status, synced.reason) == ("True", "Paused")
    assert synced.message.startswith("1000 endpoints, taken once: autoSync is false")
    assert recorded_endpoints(found) == tuple((one.address, one.port, "") for one in many)


def test_a_binding_that_holds_nothing_yet_does_not_say_so(desk: Desk, condition_of: Of) -> None:
    status, found = bound(desk, Contribution(object=BINDING, endpoints=TWO), auto_sync=False)
    assert condition_of(status, C.SYNCED).reason == "Synced"
    assert recorded_endpoints(found) == ()


def test_a_binding_without_endpoints(desk: Desk, condition_of: Of) -> None:
    status, _ = bound(desk, Contribution(object=BINDING), auto_sync=True)
    synced = condition_of(status, C.SYNCED)
    assert (synced.status, synced.reason) == ("False", "NoEndpoints")
    assert not status.active


def test_what_gateways_say_of_a_certificate_is_a_condition_of_its_ingress(desk: Desk, condition_of: Of) -> None:
    key = desk.put("VPCIngress", "a", edge(tls={"secretName": "c"}))
    plain = desk.put("VPCIngress", "b", edge("b.test"))
    desk.compile()

    def seen(*reasons: Reason, verdict: Verdict = IN_FORCE) -> tuple[str, str, str]:
        notes = tuple(
            (
                f"gw-{at}",
                Refusal(kind="VPCIngress", namespace="default", name="a", reason=reason.value, message="at noon"),
            )
            for at, reason in enumerate(reasons)
        )
        subject = desk.index.subject(key, status=None, verdict=verdict, notes=notes)
        assert subject is not None
        status = desired_status(subject, desk.index.facts(key), now="2026-01-01T00:00:00Z")
        one = condition_of(status, C.CERTIFICATE_VALID)
        return one.status, one.reason, one.message

    assert seen() == ("True", "CertificateValid", "")
    assert seen(Reason.CERTIFICATE_EXPIRES_SOON) == ("True", "CertificateExpiresSoon", "gateway gw-0: at noon")
    assert seen(Reason.CERTIFICATE_EXPIRED)[:2] == ("False", "CertificateExpired")
    assert seen(verdict=NO_GATEWAY)[:2] == ("Unknown", "NoGateway")
    status = desk.desired(plain)
    assert isinstance(status, VPCIngressStatus)
    assert all(one.type != C.CERTIFICATE_VALID for one in status.conditions), "it has no certificate"


@pytest.mark.parametrize(
    ("tls", "is_told"),
    [
        ({"enabled": True, "clientCertificateSecretName": "c"}, True),
        ({"enabled": True, "caSecretName": "c"}, True),
        ({"enabled": True}, False),
        ({"enabled": False, "caSecretName": "c"}, False),
        (None, False),
    ],
)
def test_what_gateways_say_of_a_certificate_is_a_condition_of_its_egress(
    desk: Desk, condition_of: Of, tls: dict[str, object] | None, is_told: bool
) -> None:
    destinations = [
        {"endpoint": "a.test", "port": 80},
        {"endpoint": "b.test", "port": 80, **({"tls": tls} if tls else {})},
    ]
    key = desk.put("VPCEgress", "out", {"destinations": destinations})
    desk.compile()
    reason = Reason.CERTIFICATE_EXPIRED.value
    note = Refusal(kind="VPCEgress", namespace="default", name="out", reason=reason, message="our certificate is gone")
    for notes, expected in (
        ((), ("True", "CertificateValid", "")),
        ((("gw-0", note),), ("False", reason, "gateway gw-0: our certificate is gone")),
    ):
        subject = desk.index.subject(key, status=None, verdict=IN_FORCE, notes=notes)
        assert subject is not None
        status = desired_status(subject, desk.index.facts(key), now=LATER)
        assert isinstance(status, VPCEgressStatus)
        assert any(one.type == C.CERTIFICATE_VALID for one in status.conditions) is is_told
        if is_told:
            one = condition_of(status, C.CERTIFICATE_VALID)
            assert (one.status, one.reason, one.message) == expected


def test_an_egress_tells_its_open_connections_and_a_change_of_them_is_written(desk: Desk) -> None:
    key = desk.put("VPCEgress", "out", {"policy": "Deny"})
    desk.compile()
    desk.write(key)
    subject = desk.index.subject(key, status=desk.index.status(key), verdict=IN_FORCE, connections=4)
    assert subject is not None
    status = desired_status(subject, desk.index.facts(key), now=LATER)
    assert isinstance(status, VPCEgressStatus)
    assert status.connection_count == 4
    assert plain_status(status)["connectionCount"] == 4
    assert not is_same_status(desk.index.status(key), status)
