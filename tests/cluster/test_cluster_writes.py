"""Writing to a real API server: what every cluster must hold to, rights, a server that is away, one that hangs."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from datum_router.clock import ManualClock
from datum_router.errors import ClusterConflict, ClusterForbidden, ClusterRejected, ClusterUnavailable
from datum_router.manifests.meta import GroupVersionKind, ObjectKey
from datum_router.plugins.cluster import Cluster, LeaseRecord, ObjectEvent
from datum_router.testing.cluster import ClusterConformance, SeenEvent
from datum_router.testing.cluster.conformance import SERVICE, SERVICES, Body, condition, key, part, service, status
from datum_router_kubernetes.client import CONNECT_TIMEOUT_S, make_client
from datum_router_kubernetes.cluster import KubernetesCluster, make_cluster
from datum_router_kubernetes.events import UPDATE_S
from tests.cluster.control_plane import ControlPlane

DEADLINE_S = 60.0


class PlaneStage:
    """The world around a cluster under test: the control plane, as its administrator sees it."""

    def __init__(self, plane: ControlPlane, namespace: Callable[[], str]) -> None:
        self._plane = plane
        self._namespace = namespace

    def new_namespace(self) -> str:
        return self._namespace()

    def remove(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> None:
        path = f"/apis/{gvk.api_version}/namespaces/{key.namespace}/{plural}/{key.name}"
        answer = self._plane.request("DELETE", path)
        assert answer.status == 200, answer.body

    def events(self, namespace: str) -> Sequence[SeenEvent]:
        answer = self._plane.request("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
        items = answer.json()["items"]
        assert isinstance(items, list)
        return [
            SeenEvent(
                name=item["regarding"]["name"],
                type=item["type"],
                reason=item["reason"],
                note=item.get("note", ""),
                count=(item.get("series") or {"count": 1})["count"],
            )
            for item in items
        ]


class TestKubernetesCluster(ClusterConformance):
    @pytest.fixture(autouse=True)
    def _given(self, plane: ControlPlane, namespace: Callable[[], str]) -> None:
        self.plane = plane
        self.stage = PlaneStage(plane, namespace)

    def run(self, body: Body) -> None:
        cluster = make_cluster({"kubeconfig": str(self.plane.kubeconfig()), "role": "controller"})

        async def main() -> None:
            with trio.fail_after(60):
                await body(cluster, self.stage)

        trio.run(main)


def settings(plane: ControlPlane) -> dict[str, str]:
    return {"kubeconfig": str(plane.kubeconfig()), "role": "controller"}


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            await body()

    trio.run(main)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - threads of a pool have no event
        await trio.sleep(0.01)


def event_about(namespace: str, uid: str = "u", *, name: str = "shop", note: str = "fine") -> ObjectEvent:
    return ObjectEvent(
        gvk=SERVICE, key=key(namespace, name), uid=uid, type="Normal", reason="Accepted", action="Compile", note=note
    )


# --- what others see of it -----------------------------------------------------------------------------------------


def test_a_status_is_owned_by_the_controller_and_the_spec_by_who_applied_it(
    plane: ControlPlane, namespace: Callable[[], str]
) -> None:
    there = namespace()

    async def body() -> None:
        cluster = make_cluster(settings(plane))
        applied = await cluster.apply(service(there), plural=SERVICES, manager="datum-router", is_forced=False)
        await cluster.write_status(status(there, applied.uid, {"conditions": [condition("True")]}))
        raw = await cluster.get(SERVICE, SERVICES, key(there))
        assert raw is not None
        fields = part(raw, "metadata")["managedFields"]
        assert isinstance(fields, Sequence)
        owners = {(one["manager"], one["operation"], one.get("subresource", "")) for one in fields}
        assert owners == {("router-controller", "Apply", "status"), ("datum-router", "Apply", "")}

    run(body)


def test_a_status_beside_other_writers_is_written_in_the_end(plane: ControlPlane, namespace: Callable[[], str]) -> None:
    """Somebody labels the object all the time, so that every version that was seen is an old one."""
    there = namespace()
    path = f"/apis/router.datum.net/v1alpha1/namespaces/{there}/{SERVICES}/shop"

    async def body() -> None:
        cluster = make_cluster(settings(plane))
        applied = await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
        for n in range(5):
            label = {"metadata": {"labels": {"n": str(n)}}}
            plane.request("PATCH", path, label, content_type="application/merge-patch+json")
            write = status(there, applied.uid, {"endpointCount": n}, version=applied.version)
            await cluster.write_status(write)
        raw = await cluster.get(SERVICE, SERVICES, key(there))
        assert raw is not None
        assert part(raw, "status") == {"endpointCount": 4}
        assert part(raw, "metadata")["labels"] == {"n": "4"}

    run(body)


def test_an_event_is_shown_by_describe_and_its_count_grows(plane: ControlPlane, namespace: Callable[[], str]) -> None:
    there = namespace()
    clock = ManualClock()
    stage = PlaneStage(plane, namespace)
    events = f"/apis/events.k8s.io/v1/namespaces/{there}/events"

    async def body() -> None:
        cluster = KubernetesCluster(functools.partial(make_client, settings(plane)), instance="pod-1", clock=clock)
        applied = await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
        event = event_about(there, applied.uid, note="taken up by the router")
        await cluster.publish(event)
        await cluster.publish(event)
        assert [one.count for one in stage.events(there)] == [1]
        clock.advance(UPDATE_S)
        await cluster.publish(event)
        assert [one.count for one in stage.events(there)] == [3]
        described = plane.kubectl("describe", SERVICES, "shop", namespace=there)
        assert "taken up by the router" in described.stdout
        assert plane.request("DELETE", events).status == 200  # as the API does by itself, after an hour
        clock.advance(UPDATE_S)
        await cluster.publish(event)
        assert [one.count for one in stage.events(there)] == [1]

    run(body)


def test_the_longest_names_and_notes_make_an_event(plane: ControlPlane, namespace: Callable[[], str]) -> None:
    there = namespace()

    async def body() -> None:
        cluster = KubernetesCluster(functools.partial(make_client, settings(plane)), instance="p" * 300)
        for note in ("a" * 5000, "\u20ac" * 5000, "", "\x00\n\ud800"):
            await cluster.publish(event_about(there, name="a" * 253, note=note))
        cluster_wide = ObjectKey(kind="Namespace", namespace="", name=there)
        await cluster.publish(msgspec.structs.replace(event_about(there, note="cluster-wide"), key=cluster_wide))

    run(body)
    assert len(PlaneStage(plane, namespace).events(there)) == 4
    assert there in [one.name for one in PlaneStage(plane, namespace).events("default")]


def test_a_lease_keeps_what_others_put_there_when_it_is_renewed(
    plane: ControlPlane, namespace: Callable[[], str]
) -> None:
    there = namespace()
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{there}/leases"
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "gateway-1", "uid": "some-uid"}
    finalizers = ["example.org/other"]
    given = {"name": "gateway-1", "ownerReferences": [owner], "finalizers": finalizers}
    made = plane.request("POST", leases, {"metadata": given})
    assert made.status == 201, made.body

    async def body() -> None:
        cluster = make_cluster(settings(plane))
        read = await cluster.read_lease(there, "gateway-1")
        assert read is not None
        assert read.duration_s == 0
        await cluster.write_lease(msgspec.structs.replace(read, holder="gateway-1", duration_s=15))

    run(body)
    metadata = part(plane.request("GET", f"{leases}/gateway-1").json(), "metadata")
    assert metadata["ownerReferences"] == [owner]
    assert metadata["finalizers"] == finalizers


def test_two_who_want_a_lease_get_it_one_after_the_other(plane: ControlPlane, namespace: Callable[[], str]) -> None:
    """Eight write the same version at the same time: one wins."""
    there = namespace()
    won: list[str] = []

    async def body() -> None:
        clusters = [make_cluster(settings(plane)) for _ in range(4)]
        read = await clusters[0].write_lease(LeaseRecord(namespace=there, name="leader"))

        async def contend(cluster: Cluster, name: str) -> None:
            try:
                await cluster.write_lease(msgspec.structs.replace(read, holder=name))
            except ClusterConflict:
                return
            won.append(name)

        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(contend, clusters[n % 4], f"pod-{n}")
        now = await clusters[0].read_lease(there, "leader")
        assert now is not None
        assert [now.holder] == won

    run(body)


def test_every_mistake_of_a_type_is_named(plane: ControlPlane, namespace: Callable[[], str]) -> None:
    there = namespace()
    spec = part(service(there), "spec")

    async def body() -> None:
        cluster = make_cluster(settings(plane))
        raw = {**service(there), "spec": {**spec, "port": "many", "protocol": 7}}
        with pytest.raises(ClusterRejected) as caught:
            await cluster.apply(raw, plural=SERVICES, manager="user", is_forced=False)
        assert sorted(field for field, _ in caught.value.causes) == ["spec.port", "spec.protocol"]

    run(body)


# --- rights --------------------------------------------------------------------------------------------------------


def grant(plane: ControlPlane, namespace: str, account: str, rules: list[dict[str, list[str]]]) -> None:
    """Give a service account rights in a namespace."""
    base = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    assert plane.request("POST", f"{base}/roles", {"metadata": {"name": account}, "rules": rules}).status == 201
    binding = {
        "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
    assert plane.request("POST", f"{base}/rolebindings", binding).status == 201


def account_settings(plane: ControlPlane, directory: Path, namespace: str, account: str) -> dict[str, str]:
    """Make a service account without rights, and the settings for it."""
    base = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    assert plane.request("POST", base, {"metadata": {"name": account}}).status == 201
    made = plane.request("POST", f"{base}/{account}/token", {"spec": {}})
    assert made.status == 201, made.body
    config = json.loads(plane.kubeconfig(namespace=namespace).read_text())
    config["users"][0]["user"] = {"token": part(made.json(), "status")["token"]}
    path = directory / "kubeconfig"
    path.write_text(json.dumps(config))
    return {"kubeconfig": str(path), "role": "controller"}


RULES: list[dict[str, list[str]]] = [
    {"apiGroups": ["router.datum.net"], "resources": ["vpcservices"], "verbs": ["get", "create", "patch"]},
    {"apiGroups": ["router.datum.net"], "resources": ["vpcservices/status"], "verbs": ["patch"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["get", "list", "create", "patch", "delete"],
    },
]
"""All that is needed for all that a cluster can do."""

CALLS: Mapping[str, Callable[[Cluster, str, str], Awaitable[object]]] = {
    "patch vpcservices.router.datum.net/status shop": lambda one, there, uid: one.write_status(
        status(there, uid, {"ready": True}, version="1")
    ),
    "create events.events.k8s.io": lambda one, there, uid: one.publish(event_about(there, uid)),
    "get leases.coordination.k8s.io leader": lambda one, there, _uid: one.read_lease(there, "leader"),
    "list leases.coordination.k8s.io": lambda one, there, _uid: one.list_leases(there, labels={}),
    "create leases.coordination.k8s.io": lambda one, there, _uid: one.write_lease(
        LeaseRecord(namespace=there, name="new")
    ),
    "patch leases.coordination.k8s.io leader": lambda one, there, _uid: one.write_lease(
        LeaseRecord(namespace=there, name="leader", version="1")
    ),
    "delete leases.coordination.k8s.io leader": lambda one, there, _uid: one.delete_lease(
        LeaseRecord(namespace=there, name="leader", version="1")
    ),
    "get vpcservices.router.datum.net shop": lambda one, there, _uid: one.get(SERVICE, SERVICES, key(there)),
}


def test_a_right_that_is_missing_is_named(plane: ControlPlane, namespace: Callable[[], str], tmp_path: Path) -> None:
    there = namespace()
    nobody = account_settings(plane, tmp_path, there, "nobody")

    async def body() -> None:
        cluster = make_cluster(nobody)
        for named, call in CALLS.items():
            with pytest.raises(ClusterForbidden) as caught:
                await call(cluster, there, "u")
            assert str(caught.value).startswith(f"{named} in namespace {there}: the API answered 403"), caught.value
            assert f"system:serviceaccount:{there}:nobody" in str(caught.value)

    run(body)


def test_these_rights_are_enough(plane: ControlPlane, namespace: Callable[[], str], tmp_path: Path) -> None:
    there = namespace()
    writer = account_settings(plane, tmp_path, there, "writer")
    grant(plane, there, "writer", RULES)

    async def body() -> None:
        clock = ManualClock()
        cluster = KubernetesCluster(functools.partial(make_client, writer), clock=clock)
        assert cluster.namespace == there
        applied = await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
        for n in range(2):
            await cluster.write_status(status(there, applied.uid, {"endpointCount": n}, version=applied.version))
            await cluster.publish(event_about(there, applied.uid))
            clock.advance(UPDATE_S)
        lease = await cluster.write_lease(LeaseRecord(namespace=there, name="leader"))
        lease = await cluster.write_lease(msgspec.structs.replace(lease, holder="one"))
        assert await cluster.read_lease(there, "leader") == lease
        assert list(await cluster.list_leases(there, labels={})) == [lease]
        await cluster.delete_lease(lease)

    run(body)
    assert [one.count for one in PlaneStage(plane, namespace).events(there)] == [2]


def test_a_token_that_nobody_knows_is_refused_and_not_told(plane: ControlPlane, tmp_path: Path) -> None:
    config = json.loads(plane.kubeconfig().read_text())
    config["users"][0]["user"] = {"token": "marker-of-a-secret"}
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))

    async def body() -> None:
        with pytest.raises(ClusterForbidden, match="401") as caught:
            await make_cluster({"kubeconfig": str(path)}).read_lease("default", "leader")
        assert "marker-of-a-secret" not in str(caught.value)

    run(body)


# --- a server that is away -----------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_said_so_at_once_and_found_again(
    plane: ControlPlane, namespace: Callable[[], str]
) -> None:
    there = namespace()

    async def body() -> None:
        cluster = make_cluster(settings(plane))
        lease = await cluster.write_lease(LeaseRecord(namespace=there, name="leader"))
        plane.stop_api()
        try:
            for _ in range(3):
                started = time.monotonic()
                with pytest.raises(ClusterUnavailable):
                    await cluster.write_lease(lease)
                with pytest.raises(ClusterUnavailable, match="connection refused"):
                    await cluster.get(SERVICE, SERVICES, key(there))
                assert time.monotonic() - started < 2
        finally:
            plane.start_api()
        assert await cluster.read_lease(there, "leader") == lease

    run(body)


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_call_that_hangs_is_cancelled_at_once_and_leaves_no_thread(
    plane: ControlPlane, namespace: Callable[[], str], is_connected: bool
) -> None:
    """The server is stopped as it is, before or after there is a connection to it."""
    there = namespace()

    async def body() -> None:
        cluster = make_cluster(settings(plane))
        uid = (await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)).uid
        if not is_connected:
            cluster = make_cluster(settings(plane))
        plane.pause_api()
        try:
            started = time.monotonic()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cluster.write_status, status(there, uid, {"ready": True}))
                    await until(lambda: cluster.busy_threads == 1)
                    scope.cancel()
            assert time.monotonic() - started < 2
            with trio.fail_after(2 if is_connected else CONNECT_TIMEOUT_S + 2):
                await until(lambda: cluster.busy_threads == 0)
        finally:
            plane.resume_api()
        assert await cluster.get(SERVICE, SERVICES, key(there)) is not None

    run(body)
