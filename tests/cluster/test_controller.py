"""Controllers with the rights of their service account, against a real API server: what is written, when, by whom."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.cluster.control_plane import ControlPlane
from tests.cluster.stage import (
    SYSTEM,
    Stage,
    binding,
    ingress,
    install,
    issued_secret,
    kube_service,
    one_endpoint,
    own_address,
    route,
    secret_access,
    service,
)
from tests.conftest import eventually
from tests.ports import free_ports
from tests.processes import ServiceProcess

LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/router-controller"


@pytest.fixture(scope="module")
def stage(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    install(plane)
    one = Stage(plane, tmp_path_factory.mktemp("controller"))
    yield one
    one.stop()


@pytest.fixture(scope="module")
def controller(stage: Stage) -> ServiceProcess:
    return stage.controller("first")


def stats(process: ServiceProcess) -> dict[str, Any]:
    page = process.page("/stats")
    assert isinstance(page, dict)
    return page


def told(stage: Stage, namespace: str) -> list[tuple[str, str, str]]:
    """Return type, reason and object of the events of a namespace, oldest first."""
    found = stage.plane.request("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events").json()["items"]
    assert isinstance(found, list)
    found.sort(key=lambda one: one["eventTime"] or "")
    return [(one["type"], one["reason"], one["regarding"]["name"]) for one in found]


def status_of(stage: Stage, raw: Mapping[str, object]) -> dict[str, Any]:
    status = stage.get(raw).get("status") or {}
    assert isinstance(status, dict)
    return status


def test_good_and_bad_objects_are_told_what_became_of_them(
    stage: Stage, controller: ServiceProcess, namespace: Callable[[], str]
) -> None:
    there = namespace()
    api = stage.put(service(there, "api", 8080, 8081))
    good = stage.put(route(there, "good", "api", path="/good"))
    lost = stage.put(route(there, "lost", "apj", path="/lost"))
    eventually(lambda: stage.conditions(lost).get("ResolvedRefs") == ("False", "VPCServiceNotFound"), "the lost one")
    eventually(lambda: stage.conditions(api).get("Ready") == ("True", "Ready"), "the service")
    eventually(lambda: stage.conditions(good).get("Accepted") == ("True", "Accepted"), "the good one")
    found = status_of(stage, api)
    assert (found["ready"], found["endpointCount"], found["observedGeneration"]) == (True, 2, 1)
    assert [one["port"] for one in found["endpoints"]] == [8080, 8081]
    assert status_of(stage, good)["activeDestinations"] == 1
    message = next(one["message"] for one in status_of(stage, lost)["conditions"] if one["type"] == "ResolvedRefs")
    assert "did you mean api?" in message
    eventually(lambda: told(stage, there) == [("Warning", "VPCServiceNotFound", "lost")], "the event")
    shown = stage.plane.kubectl("get", "vpcservices,vpcroutes", "-n", there)
    assert "true" in shown.stdout, shown.stdout + shown.stderr


def test_the_last_good_version_stays_in_force_and_the_bad_one_is_named(
    stage: Stage, controller: ServiceProcess, namespace: Callable[[], str]
) -> None:
    there = namespace()
    one = stage.put(service(there, "api", 8080))
    eventually(lambda: stage.conditions(one).get("Ready") == ("True", "Ready"), "the first version")
    # What the schema lets pass and the router refuses.
    twice = [{"address": "127.0.0.1", "port": 8080}, {"address": "127.0.0.1"}]
    stage.patch(one, {"spec": {"endpoints": twice}})
    eventually(lambda: stage.conditions(one).get("Accepted", ("", ""))[0] == "False", "the second version refused")
    found = status_of(stage, one)
    conditions = {item["type"]: item for item in found["conditions"]}
    assert conditions["Accepted"]["message"].startswith("spec.endpoints[1]: ")
    assert conditions["Accepted"]["message"].endswith("; the last good version, generation 1, stays in force")
    assert conditions["EndpointsReady"]["observedGeneration"] == 1
    assert (found["observedGeneration"], found["ready"], found["endpointCount"]) == (2, False, 1)
    written = stats(controller)["writes"]["VPCService"]
    stage.patch(one, {"metadata": {"labels": {"touched": "yes"}}})
    time.sleep(1.5)  # whether anything is written is what is looked at
    assert stats(controller)["writes"]["VPCService"] == written
    stage.patch(one, {"spec": {"endpoints": [{"address": "127.0.0.1", "port": 8081}]}})
    eventually(lambda: stage.conditions(one).get("Ready") == ("True", "Ready"), "the third version")
    # Events are written after the status that they tell of.
    eventually(lambda: len(told(stage, there)) == 2, "both events")
    reasons = [(kind, reason) for kind, reason, _ in told(stage, there)]
    assert reasons == [("Warning", conditions["Accepted"]["reason"]), ("Normal", "Accepted")]


def test_a_binding_says_what_it_gives_and_one_without_auto_sync_holds_it(
    stage: Stage, controller: ServiceProcess, namespace: Callable[[], str]
) -> None:
    there, here = namespace(), own_address()
    api, held_api = stage.put(service(there, "api")), stage.put(service(there, "held"))
    stage.put(kube_service(there, "svc"))
    first = stage.put(one_endpoint(there, "svc", "first", here, 9001))
    follows = stage.put(binding(there, "svc", "api"))
    holds = binding(there, "svc", "held")
    holds["metadata"] = {"name": "holds", "namespace": there}
    spec = holds["spec"]
    assert isinstance(spec, dict)
    holds = stage.put({**holds, "spec": {**spec, "autoSync": False}})
    eventually(lambda: stage.conditions(follows).get("Synced") == ("True", "Synced"), "the one that follows")
    eventually(lambda: stage.conditions(holds).get("Synced") == ("True", "Paused"), "the one that holds")
    assert status_of(stage, holds)["endpoints"] == [f"{here}:9001"]
    stage.put(one_endpoint(there, "svc", "second", here, 9002))
    eventually(lambda: status_of(stage, follows)["syncedEndpoints"] == 2, "the second endpoint")
    eventually(lambda: status_of(stage, api).get("endpointCount") == 2, "the second endpoint of the service")
    stage.delete(first)
    eventually(lambda: status_of(stage, follows)["endpoints"] == [f"{here}:9002"], "the first endpoint gone")
    assert status_of(stage, holds)["endpoints"] == [f"{here}:9001"]
    assert status_of(stage, held_api)["endpointCount"] == 1


def test_programmed_is_what_the_gateways_say(
    stage: Stage, controller: ServiceProcess, namespace: Callable[[], str]
) -> None:
    there = namespace()
    stage.put(service(there, "api", 8080))
    one = stage.put(route(there, "r", "api", path=f"/{there}"))
    eventually(lambda: stage.conditions(one).get("Programmed") == ("Unknown", "NoGateway"), "no gateway")
    gateway = stage.gateway()
    try:
        eventually(lambda: stage.conditions(one).get("Programmed") == ("True", "Programmed"), "in force")
        assert status_of(stage, one)["ready"] is True
        eventually(lambda: stats(controller)["queue"] == 0, "all others in force, too")
        before = stats(controller)["writes"]["VPCRoute"]
        stage.patch(one, {"spec": {"timeoutSeconds": 7}})
        eventually(lambda: stage.conditions(one).get("Programmed") == ("True", "Programmed"), "the edit in force")
        time.sleep(1.0)  # whether anything else is written is what is looked at
        assert stats(controller)["writes"]["VPCRoute"] - before <= 2
    finally:
        gateway.stop()
    eventually(lambda: stats(controller)["gateways"] == [], "the report gone")
    assert stage.conditions(one)["Programmed"] == ("True", "Programmed"), "no reason to write"


def test_certificate_valid_is_what_the_gateways_say_who_alone_read_the_secret(
    stage: Stage, controller: ServiceProcess, namespace: Callable[[], str]
) -> None:
    there = namespace()
    (port,) = free_ports(1)
    authority = trustme.CA()
    now = datetime.datetime.now(datetime.UTC)

    def put_certificate(days: int) -> None:
        until = now + datetime.timedelta(days=days)
        stage.put(issued_secret(there, "site", authority, "shop.example.com", not_after=until))

    for one in secret_access(there, "site"):
        stage.put(one)
    put_certificate(365)
    stage.put(service(there, "web", 8080))
    edge = stage.put(ingress(there, "shop", port, "site"))

    def is_told(status: str, reason: str) -> None:
        eventually(lambda: stage.conditions(edge).get("CertificateValid") == (status, reason), reason)

    is_told("Unknown", "NoGateway")
    gateway = stage.gateway(DATUM_ROUTER_NAMESPACES=there, DATUM_ROUTER_BIND="127.0.0.1")
    try:
        is_told("True", "CertificateValid")
        put_certificate(3)
        is_told("True", "CertificateExpiresSoon")
        put_certificate(-1)
        is_told("False", "CertificateExpired")
        assert stage.conditions(edge)["Programmed"][0] == "True", "it is served all the same"
        (message,) = [
            one["message"] for one in status_of(stage, edge)["conditions"] if one["type"] == "CertificateValid"
        ]
        assert "gateway gateway-" in message
        assert (now - datetime.timedelta(days=1)).strftime("%Y-%m-%d") in message
        put_certificate(365)
        is_told("True", "CertificateValid")
    finally:
        gateway.stop()
    eventually(lambda: stats(controller)["gateways"] == [], "the report gone")


def test_nothing_is_written_at_rest_but_the_lease(stage: Stage, controller: ServiceProcess) -> None:
    eventually(lambda: stats(controller)["queue"] == 0, "an empty queue")
    before, began = stats(controller), time.monotonic()
    time.sleep(10.0)  # being at rest is what is looked at
    after, took_s = stats(controller), time.monotonic() - began
    assert after["writes"] == before["writes"]
    assert after["cluster"]["writes"] - before["cluster"]["writes"] <= took_s / 2 + 2


def test_what_others_say_in_a_status_is_left_alone(
    stage: Stage, controller: ServiceProcess, namespace: Callable[[], str]
) -> None:
    there = namespace()
    one = stage.put(service(there, "api", 8080))
    eventually(lambda: stage.conditions(one).get("Ready") == ("True", "Ready"), "the service")
    theirs = {
        "apiVersion": one["apiVersion"],
        "kind": one["kind"],
        "metadata": {"name": "api", "namespace": there},
        "status": {
            "conditions": [
                {
                    "type": "example.test/Theirs",
                    "status": "True",
                    "reason": "Why",
                    "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
            ]
        },
    }
    path = f"/apis/router.datum.net/v1alpha1/namespaces/{there}/vpcservices/api/status?fieldManager=other"
    answer = stage.plane.request("PATCH", path, theirs, content_type="application/apply-patch+yaml")
    assert answer.status == 200, answer.body
    stage.patch(one, {"spec": {"endpoints": [{"address": "127.0.0.1", "port": 9}]}})
    eventually(lambda: status_of(stage, one).get("observedGeneration") == 2, "the edit")
    types = [item["type"] for item in status_of(stage, one)["conditions"]]
    assert "example.test/Theirs" in types
    assert "Ready" in types


def test_k9_a_leader_that_is_stopped_for_long_writes_nothing_when_it_wakes_up(
    stage: Stage, controller: ServiceProcess, namespace: Callable[[], str]
) -> None:
    there = namespace()
    other = stage.controller("other")
    eventually(lambda: stats(other)["holder"] == stats(controller)["identity"], "the holder known")
    before = stats(controller)["writes"]
    controller.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: stats(other)["is_leading"], "the other leading", 25.0)
        one = stage.put(service(there, "api", 8080))
        eventually(lambda: stage.conditions(one).get("Ready") == ("True", "Ready"), "the service")
    finally:
        controller.process.send_signal(signal.SIGCONT)
    eventually(lambda: stats(controller)["holder"] == stats(other)["identity"], "the new holder known to the old one")
    assert stats(controller)["is_leading"] is False
    assert stats(controller)["writes"] == before
    assert other.stop() == 0
    eventually(lambda: stats(controller)["is_leading"], "the first one leading again", 10.0)


def test_k9_of_two_one_writes_and_when_it_is_killed_the_other_does(
    stage: Stage, controller: ServiceProcess, namespace: Callable[[], str], tmp_path: Path
) -> None:
    there = namespace()
    second = stage.controller("second")
    eventually(lambda: stats(second)["holder"] == stats(controller)["identity"], "the holder known")
    one = stage.put(service(there, "api", 8080))
    eventually(lambda: stage.conditions(one).get("Ready") == ("True", "Ready"), "the service")
    assert stats(second)["is_leading"] is False
    assert stats(second)["writes"] == {}
    text = second.text("/metrics")
    assert "datum_router_controller_leading 0" in text
    controller.process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: stats(second)["is_leading"], "the other leading", 25.0)
    assert time.monotonic() - killed < 20.0
    stage.patch(one, {"spec": {"endpoints": [{"address": "127.0.0.1", "port": 9}]}})
    eventually(lambda: status_of(stage, one).get("observedGeneration") == 2, "the edit")
    third = stage.controller("third")
    second.process.send_signal(signal.SIGTERM)
    ended = time.monotonic()
    eventually(lambda: stats(third)["is_leading"], "the third leading", 10.0)
    assert time.monotonic() - ended < 5.0, "the lease was let go of"
    assert second.process.wait(10.0) == 0
    lease = stage.plane.request("GET", LEASE).json()
    spec = lease["spec"]
    assert isinstance(spec, dict)
    assert str(spec["holderIdentity"]).startswith("third_")
    assert spec["leaseTransitions"] >= 2
