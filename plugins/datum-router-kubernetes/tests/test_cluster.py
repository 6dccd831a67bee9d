"""The cluster's requests: in which order, how many at a time, and what comes of failures and of cancelling."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from datum_router.errors import (
    ClusterConflict,
    ClusterNotFound,
    ClusterRejected,
    ClusterUnavailable,
    ConfigError,
)
from datum_router.manifests.meta import GroupVersionKind, ObjectKey
from datum_router.plugins.cluster import LeaseRecord, ObjectEvent, StatusWrite
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router_kubernetes import plugin
from datum_router_kubernetes.client import Hold
from datum_router_kubernetes.cluster import (
    LEASE_TIMEOUT_S,
    MAX_STATUS_TRIES,
    MAX_WRITE_THREADS,
    KubernetesCluster,
    make_cluster,
)
from datum_router_kubernetes.events import OBJECT_BURST, UPDATE_S
from datum_router_kubernetes.ratelimit import WriteLimits
from datum_router_kubernetes.testing import write_kubeconfig

ROUTE = GroupVersionKind(group="router.datum.net", version="v1alpha1", kind="VPCRoute")
DEADLINE_S = 20.0
PATH = "/apis/router.datum.net/v1alpha1/namespaces/shop/vpcroutes"


def key(name: str = "api") -> ObjectKey:
    return ObjectKey(kind="VPCRoute", namespace="shop", name=name)


def write(name: str = "api", *, version: str = "7") -> StatusWrite:
    return StatusWrite(
        gvk=ROUTE, plural="vpcroutes", key=key(name), uid="u", status={"conditions": []}, version=version
    )


EVENT = ObjectEvent(gvk=ROUTE, key=key(), uid="u", type="Normal", reason="Accepted", action="Compile", note="fine")
LEASE = LeaseRecord(namespace="shop", name="leader", holder="one")


class Sent(msgspec.Struct):
    """A request that came to the API."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    content_type: str
    timeout_s: float


class Api:
    """An API that answers what a function says; called in worker threads."""

    namespace = "shop"

    def __init__(self, answer: Callable[[Sent], object]) -> None:
        self.sent: list[Sent] = []
        self._answer = answer
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        body: bytes | None,
        content_type: str,
        timeout_s: float,
        hold: Hold | None,
    ) -> bytes:
        one = Sent(method, path, query, body or b"", content_type, timeout_s)
        with self._lock:
            self.sent.append(one)
        return json.dumps(self._answer(one)).encode()

    def calls(self) -> list[str]:
        return [f"{one.method} {one.path.removeprefix(PATH)}" for one in self.sent]


def obj(version: str = "7", uid: str = "u") -> dict[str, object]:
    return {"metadata": {"name": "api", "namespace": "shop", "uid": uid, "generation": 1, "resourceVersion": version}}


async def until(condition: Callable[[], object]) -> None:
    """Wait in real time, whatever the event loop's clock shows."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        await trio.lowlevel.checkpoint()


# --- the rate limit ------------------------------------------------------------------------------------------------


def test_writes_keep_to_the_rate_in_the_order_in_which_they_came() -> None:
    api = Api(lambda _sent: obj())
    cluster = KubernetesCluster(lambda: api, limits=WriteLimits(qps=2, burst=2), threads=1)
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(cluster.write_status, write(f"r{n}"))
                await trio.testing.wait_all_tasks_blocked()
            for sent in (2, 3, 4, 5):
                await until(lambda sent=sent: len(api.sent) == sent)  # type: ignore[misc]  # mypy infers no default
                await trio.testing.wait_all_tasks_blocked()
                assert len(api.sent) == sent
                clock.jump(0.5)

    trio.run(main, clock=clock)
    assert api.calls() == [f"PATCH /r{n}/status" for n in range(5)]
    assert cluster.counts().writes == 5
    assert cluster.counts().writes_delayed == 3


def test_leases_do_not_wait_for_the_rate_limit() -> None:
    body = {"metadata": {"name": "leader", "namespace": "shop", "resourceVersion": "1"}}
    api = Api(lambda sent: body if "leases" in sent.path else obj())
    cluster = KubernetesCluster(lambda: api, limits=WriteLimits(qps=0.01, burst=1))

    async def main() -> None:
        await cluster.write_status(write())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.write_status, write())  # waits for 100 s
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(20):
                assert (await cluster.write_lease(LEASE)).version == "1"
                await cluster.delete_lease(LEASE)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock())
    assert api.calls().count("PATCH /api/status") == 1
    assert cluster.counts().writes == 41
    assert all(one.timeout_s == LEASE_TIMEOUT_S for one in api.sent if "leases" in one.path)


def test_leases_do_not_wait_behind_requests_that_hang() -> None:
    release = threading.Event()
    body = {"metadata": {"name": "leader", "namespace": "shop", "resourceVersion": "1"}}

    def answer(sent: Sent) -> object:
        if "leases" in sent.path:
            return body
        release.wait(DEADLINE_S)
        return obj()

    api = Api(answer)
    cluster = KubernetesCluster(lambda: api)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for n in range(MAX_WRITE_THREADS + 2):
                nursery.start_soon(cluster.write_status, write(f"r{n}"))
            await until(lambda: len(api.sent) == MAX_WRITE_THREADS)
            assert (await cluster.write_lease(LEASE)).version == "1"
            assert len(api.sent) == MAX_WRITE_THREADS + 1  # no more than these at a time
            release.set()

    trio.run(main)
    assert len(api.sent) == MAX_WRITE_THREADS + 3


# --- statuses ------------------------------------------------------------------------------------------------------


def test_a_status_of_the_version_that_was_seen_is_one_request() -> None:
    api = Api(lambda _sent: obj())
    cluster = KubernetesCluster(lambda: api, role="controller")
    trio.run(cluster.write_status, write())
    assert api.calls() == ["PATCH /api/status"]
    sent = api.sent[0]
    assert sent.query == {"fieldManager": "router-controller", "force": "true"}
    assert sent.content_type == "application/apply-patch+yaml"
    assert json.loads(sent.body)["metadata"] == {"name": "api", "namespace": "shop", "resourceVersion": "7"}


def test_a_status_of_an_older_version_looks_again() -> None:
    def answer(sent: Sent) -> object:
        if sent.method == "GET":
            return obj("9")
        if json.loads(sent.body)["metadata"]["resourceVersion"] != "9":
            raise ClusterConflict("modified", status=409)
        return obj("10")

    api = Api(answer)
    trio.run(KubernetesCluster(lambda: api).write_status, write())
    assert api.calls() == ["PATCH /api/status", "GET /api", "PATCH /api/status"]


def test_a_status_of_an_object_that_was_made_anew_is_not_written() -> None:
    api = Api(lambda _sent: obj("9", uid="another"))
    with pytest.raises(ClusterConflict, match=r"^vpcroute shop/api: found uid another, expected u: .* made anew$"):
        trio.run(KubernetesCluster(lambda: api).write_status, write(version=""))
    assert api.calls() == ["GET /api"]


def test_a_status_that_always_comes_too_late_is_a_conflict_in_the_end() -> None:
    def answer(sent: Sent) -> object:
        if sent.method == "GET":
            return obj("9")
        raise ClusterConflict("modified", status=409)

    api = Api(answer)
    with pytest.raises(ClusterConflict, match="modified"):
        trio.run(KubernetesCluster(lambda: api).write_status, write())
    assert api.calls().count("PATCH /api/status") == MAX_STATUS_TRIES


def test_a_status_that_the_schema_does_not_have_is_rejected_with_its_field() -> None:
    def answer(_sent: Sent) -> object:
        raise ClusterUnavailable(
            "patch: the API answered 500: failed to create typed patch object (x): .status.a: field not declared",
            status=500,
        )

    api = Api(answer)
    with pytest.raises(ClusterRejected) as caught:
        trio.run(KubernetesCluster(lambda: api).write_status, write())
    assert caught.value.causes == (("status.a", "field not declared"),)


# --- events --------------------------------------------------------------------------------------------------------


def test_repeats_of_an_event_are_counted_in_one() -> None:
    api = Api(lambda _sent: {})
    cluster = KubernetesCluster(lambda: api, instance="pod-1")
    clock = trio.testing.MockClock()

    async def main() -> None:
        for _ in range(3):
            await cluster.publish(EVENT)
        assert len(api.sent) == 1
        clock.jump(UPDATE_S)
        await cluster.publish(EVENT)

    trio.run(main, clock=clock)
    created, counted = api.sent
    assert (created.method, created.path) == ("POST", "/apis/events.k8s.io/v1/namespaces/shop/events")
    body = json.loads(created.body)
    assert body["reportingController"] == "router.datum.net/router-controller"
    assert body["reportingInstance"] == "pod-1"
    assert (counted.method, counted.path) == ("PATCH", created.path + "/" + body["metadata"]["name"])
    assert counted.content_type == "application/merge-patch+json"
    assert json.loads(counted.body)["series"]["count"] == 4
    assert cluster.counts().events_folded == 2
    assert cluster.counts().writes == 2


def test_an_event_that_the_api_no_longer_has_is_created_again() -> None:
    def answer(sent: Sent) -> object:
        if sent.method == "PATCH":
            raise ClusterNotFound("events.events.k8s.io not found", status=404)
        return {}

    api = Api(answer)
    cluster = KubernetesCluster(lambda: api)
    clock = trio.testing.MockClock()

    async def main() -> None:
        await cluster.publish(EVENT)
        clock.jump(UPDATE_S)
        await cluster.publish(EVENT)
        await cluster.publish(EVENT)

    trio.run(main, clock=clock)
    assert [one.method for one in api.sent] == ["POST", "PATCH", "POST"]


def test_an_event_that_could_not_be_written_is_written_the_next_time() -> None:
    failures = [ClusterUnavailable("no answer")]

    def answer(_sent: Sent) -> object:
        if failures:
            raise failures.pop()
        return {}

    api = Api(answer)
    cluster = KubernetesCluster(lambda: api)

    async def main() -> None:
        with pytest.raises(ClusterUnavailable):
            await cluster.publish(EVENT)
        await cluster.publish(EVENT)

    trio.run(main)
    assert [one.method for one in api.sent] == ["POST", "POST"]


def test_an_event_that_was_cancelled_while_it_waited_is_written_the_next_time() -> None:
    api = Api(lambda _sent: {})
    cluster = KubernetesCluster(lambda: api, limits=WriteLimits(qps=0.01, burst=1))
    clock = trio.testing.MockClock()

    async def main() -> None:
        await cluster.write_status(write())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.publish, EVENT)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        clock.jump(100)
        await cluster.publish(EVENT)

    trio.run(main, clock=clock)
    assert [one.method for one in api.sent] == ["PATCH", "POST"]


def test_events_beyond_what_an_object_may_have_are_dropped_and_counted() -> None:
    api = Api(lambda _sent: {})
    cluster = KubernetesCluster(lambda: api)

    async def main() -> None:
        for n in range(OBJECT_BURST + 3):
            await cluster.publish(msgspec.structs.replace(EVENT, note=str(n)))

    trio.run(main, clock=trio.testing.MockClock())
    assert len(api.sent) == OBJECT_BURST
    assert cluster.counts().events_dropped == 3


# --- leases and objects --------------------------------------------------------------------------------------------


def test_leases_are_listed_page_by_page() -> None:
    def answer(sent: Sent) -> object:
        name, more = ("b", "next") if "continue" not in sent.query else ("a", "")
        return {"metadata": {"continue": more}, "items": [{"metadata": {"name": name, "namespace": "shop"}}]}

    api = Api(answer)
    found = trio.run(lambda: KubernetesCluster(lambda: api).list_leases("shop", labels={"x": "y"}))
    assert [lease.name for lease in found] == ["a", "b"]
    assert [one.query.get("continue") for one in api.sent] == [None, "next"]
    assert all(one.query["labelSelector"] == "x=y" for one in api.sent)


def test_an_answer_that_is_no_lease_is_an_error_of_the_cluster() -> None:
    api = Api(lambda _sent: {"metadata": "a proxy's page"})
    with pytest.raises(ClusterUnavailable, match=r"^lease shop/leader: the answer is not what the API gives"):
        trio.run(KubernetesCluster(lambda: api).read_lease, "shop", "leader")


def test_an_object_is_applied_strictly_by_the_manager_that_was_named() -> None:
    api = Api(lambda sent: obj("7" if sent.method == "GET" else "8"))
    cluster = KubernetesCluster(lambda: api)
    raw = {"apiVersion": ROUTE.api_version, "kind": "VPCRoute", "metadata": {"name": "api", "namespace": "shop"}}

    async def main() -> None:
        for is_forced, is_dry_run in ((False, False), (True, True)):
            await cluster.apply(
                raw, plural="vpcroutes", manager="datum-router", is_forced=is_forced, is_dry_run=is_dry_run
            )

    trio.run(main)
    assert api.calls() == ["GET /api", "PATCH /api"] * 2
    base = {"fieldManager": "datum-router", "fieldValidation": "Strict"}
    assert api.sent[1].query == {**base, "force": "false"}
    assert api.sent[3].query == {**base, "force": "true", "dryRun": "All"}
    assert cluster.counts().writes == 1  # a dry run is none


@pytest.mark.parametrize("is_same", [True, False])
def test_a_conflict_about_what_is_as_it_should_be_is_none(is_same: bool) -> None:
    def answer(sent: Sent) -> dict[str, object]:
        found = obj("7")
        if sent.method == "GET":
            return found
        if sent.query["force"] == "false":
            raise ClusterConflict("conflict with kubectl-client-side-apply", status=409)
        metadata = found["metadata"]
        assert isinstance(metadata, dict)
        metadata["managedFields"] = [{"manager": "datum-router"}]
        return found if is_same else {**found, "spec": {"another": 1}}

    api = Api(answer)
    cluster = KubernetesCluster(lambda: api)
    raw = {"apiVersion": ROUTE.api_version, "kind": "VPCRoute", "metadata": {"name": "api", "namespace": "shop"}}

    async def main() -> None:
        if is_same:
            assert not (await cluster.apply(raw, plural="vpcroutes", manager="m", is_forced=False)).is_changed
        else:
            with pytest.raises(ClusterConflict, match="kubectl-client-side-apply"):
                await cluster.apply(raw, plural="vpcroutes", manager="m", is_forced=False)

    trio.run(main)
    assert api.sent[-1].query["dryRun"] == "All"
    assert api.sent[-1].query["force"] == "true"


def test_a_kind_that_the_cluster_lacks_is_told_with_what_installs_it() -> None:
    def answer(sent: Sent) -> dict[str, object]:
        raise ClusterNotFound("get vpcroutes: the API answered 404", status=404)

    cluster = KubernetesCluster(lambda: Api(answer))
    raw = {"apiVersion": ROUTE.api_version, "kind": "VPCRoute", "metadata": {"name": "api", "namespace": "shop"}}
    found = r"does not know vpcroutes of router.datum.net/v1alpha1 \(kubectl apply -f manifests/crds/\)$"

    async def main() -> None:
        with pytest.raises(ClusterNotFound, match=found):
            await cluster.apply(raw, plural="vpcroutes", manager="m", is_forced=False)

    trio.run(main)


# --- a server that does not answer, or not as one would like ----------------------------------------------------------


class Scripted(socketserver.BaseRequestHandler):
    """Answer each request with the server's answer, or never."""

    def handle(self) -> None:
        server = self.server
        assert isinstance(server, ScriptedServer)
        head = b""
        while b"\r\n\r\n" not in head:
            part = self.request.recv(65536)
            if not part:
                return
            head += part
        server.asked.set()
        if server.answer is None:
            server.gone.wait(DEADLINE_S)
        else:
            self.request.sendall(server.answer)


class ScriptedServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, answer: bytes | None) -> None:
        super().__init__(("127.0.0.1", 0), Scripted)
        self.answer = answer
        self.asked, self.gone = threading.Event(), threading.Event()


def kubeconfig(directory: Path, port: int) -> dict[str, str]:
    return {"kubeconfig": str(write_kubeconfig(directory, f"http://127.0.0.1:{port}", namespace="shop"))}


@contextlib.contextmanager
def scripted(answer: bytes | None) -> Iterator[ScriptedServer]:
    with ScriptedServer(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.gone.set()
            server.shutdown()
            thread.join()


def answer_of(status: str, *, fields: str = "", body: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status}\r\n{fields}content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (answer_of("429 Too Many Requests", fields="retry-after: 7\r\n"), 7.0),
        (
            answer_of(
                "503 Service Unavailable",
                body=b'{"kind":"Status","code":503,"details":{"retryAfterSeconds":3}}',
            ),
            3.0,
        ),
        (answer_of("500 Internal Server Error"), 0.0),
    ],
)
def test_a_server_that_is_busy_says_when_to_come_again(tmp_path: Path, answer: bytes, wait_s: float) -> None:
    with scripted(answer) as server:
        cluster = make_cluster(kubeconfig(tmp_path, server.server_address[1]))
        with pytest.raises(ClusterUnavailable, match=r"^patch vpcroutes\.router\.datum\.net/status api in") as caught:
            trio.run(cluster.write_status, write())
    assert caught.value.retry_after_s == wait_s


def test_a_server_that_is_not_there_is_said_so_at_once(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # nobody listens here
        cluster = make_cluster(kubeconfig(tmp_path, reserved.getsockname()[1]))
        started = time.monotonic()
        with pytest.raises(ClusterUnavailable, match="connection refused"):
            trio.run(cluster.read_lease, "shop", "leader")
        assert time.monotonic() - started < LEASE_TIMEOUT_S


def test_a_cancelled_call_returns_at_once_and_leaves_no_thread(tmp_path: Path) -> None:
    with scripted(None) as server:
        cluster = make_cluster(kubeconfig(tmp_path, server.server_address[1]))

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cluster.write_status, write())
                await until(server.asked.is_set)
                assert cluster.busy_threads == 1
                started = time.monotonic()
                nursery.cancel_scope.cancel()
            assert time.monotonic() - started < 5
            await until(lambda: cluster.busy_threads == 0)

        trio.run(main)


# --- how it is made ------------------------------------------------------------------------------------------------


def test_the_plugin_offers_it_by_name(tmp_path: Path) -> None:
    found = load_plugins([Candidate(entry_point="kubernetes", distribution="", load=lambda: plugin)])
    cluster = found.clusters["kubernetes"].create(kubeconfig(tmp_path, 1))
    assert cluster.namespace == "shop"
    with pytest.raises(ConfigError, match="writeQps"):
        found.clusters["kubernetes"].create({"writeQps": "much"})


def test_making_one_reads_nothing_and_loads_no_client() -> None:
    code = (
        "import sys; from datum_router_kubernetes import plugin\n"
        "before = {'trio', 'urllib3', 'kubernetes'} & set(sys.modules)\n"
        "plugin.datum_router_clusters()[0].create({'kubeconfig': '/nowhere'})\n"
        "print(sorted(before), 'kubernetes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[] False"


def test_a_kubeconfig_that_is_not_there_is_said_at_first_use() -> None:
    cluster = make_cluster({"kubeconfig": "/nowhere/config"})
    with pytest.raises(ConfigError, match="/nowhere/config"):
        trio.run(cluster.read_lease, "shop", "leader")
