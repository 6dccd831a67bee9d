"""Services of clusters B and C, reached by their name from A: three real API servers, and what befalls them."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests.cluster.control_plane import REPOSITORY, ControlPlane, ProgramsMissing, running
from tests.cluster.plane import REMOTE_READER, Plane
from tests.cluster.stage import (
    SLICES,
    SYSTEM,
    Stage,
    crd,
    install,
    install_crd,
    own_address,
    route,
    service,
)
from tests.conftest import Backend, answer, eventually
from tests.ports import free_ports
from tests.processes import ServiceProcess

SHOP = "shop"
REMOVED_S = 3.0
PATIENCE_S = 40.0


class Clusters:
    """A with its processes, and B and C beside it."""

    def __init__(self, home: Path, a: ControlPlane, b: ControlPlane, c: ControlPlane) -> None:
        self.a = Stage(a, home / "a")
        self.b = Stage(b, home / "b")
        self.c = Stage(c, home / "c")
        (home / "a").mkdir(exist_ok=True)
        self._numbers = itertools.count(1)
        for stage in (self.a, self.b, self.c):
            install(stage.plane)
            for kind, plural in (("VPC", "vpcs"), ("VPCAttachment", "vpcattachments")):
                install_crd(stage.plane, crd("galactic.datumapis.com", kind, plural))
            reader = REPOSITORY / "manifests" / "examples" / "remote-reader-access.yaml"
            done = stage.plane.kubectl("apply", "-f", str(reader))
            assert done.returncode == 0, done.stderr
            stage.plane.make_namespace(SHOP)

    def join(self, name: str, text: str) -> dict[str, Any]:
        """Have A know a cluster by a kubeconfig."""
        return self.a.put(remote_secret(name, text))

    def leave(self, name: str) -> None:
        """Take a cluster's Secret away."""
        answer = self.a.plane.request("DELETE", f"/api/v1/namespaces/{SYSTEM}/secrets/{name}")
        assert answer.status in (200, 202), answer.body

    def slices(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """Return the slices of a service in A, by the cluster that they came from."""
        found: dict[str, list[dict[str, Any]]] = {}
        query = "labelSelector=endpointslice.kubernetes.io/managed-by=discovery.router.datum.net"
        items = self.a.plane.request("GET", f"{SLICES}/namespaces/{SHOP}/endpointslices?{query}").json()["items"]
        assert isinstance(items, list)
        for item in items:
            if item["metadata"]["annotations"]["router.datum.net/vpc-service"] == name:
                found.setdefault(item["metadata"]["labels"]["router.datum.net/source-cluster"], []).append(item)
        return found

    def ports(self, name: str) -> dict[str, set[int]]:
        """Return the ports of a service's endpoints in A, by cluster."""
        return {
            cluster: {port["port"] for item in items for port in item["ports"] or () if item["endpoints"]}
            for cluster, items in self.slices(name).items()
        }

    def stale(self, name: str, cluster: str) -> set[str]:
        """Return the stale marks of the slices of a service and a cluster."""
        items = self.slices(name).get(cluster, [])
        return {item["metadata"]["annotations"].get("router.datum.net/stale-since", "") for item in items}

    def lease(self, cluster: str) -> dict[str, Any]:
        """Return the Lease that says how a cluster stands."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/cluster-{cluster}"
        return self.a.plane.request("GET", path).json()

    def versions(self, name: str) -> dict[str, str]:
        """Return the versions of all slices of a service."""
        return {
            item["metadata"]["name"]: item["metadata"]["resourceVersion"]
            for items in self.slices(name).values()
            for item in items
        }


def remote_secret(name: str, text: str) -> dict[str, object]:
    """Return the Secret by which a cluster is joined."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": SYSTEM, "labels": {"router.datum.net/remote-cluster": "true"}},
        "data": {"kubeconfig": base64.b64encode(text.encode()).decode()},
    }


def kubeconfig(plane: Plane, *, server: str = "", authority: bytes = b"") -> str:
    """Return a kubeconfig for the account that others read a cluster with, all data inline."""
    raw = json.loads(plane.kubeconfig(REMOTE_READER).read_text())
    cluster = raw["clusters"][0]["cluster"]
    own = Path(cluster.pop("certificate-authority")).read_bytes()
    cluster["certificate-authority-data"] = base64.b64encode(authority or own).decode()
    cluster["server"] = server or cluster["server"]
    return yaml.safe_dump(raw)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    home = tmp_path_factory.mktemp("discovery")
    try:
        with running(home / "plane-a") as a, running(home / "plane-b") as b, running(home / "plane-c") as c:
            made = Clusters(home, a, b, c)
            yield made
            made.a.stop()
    except ProgramsMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def daemon(clusters: Clusters) -> ServiceProcess:
    clusters.join("b", kubeconfig(clusters.b.plane))
    clusters.join("c", kubeconfig(clusters.c.plane))
    return clusters.a.discovery("first", DISCOVERY_INTERVAL_SECS="2", DISCOVERY_REMOVED_SECS=str(REMOVED_S))


@pytest.fixture(scope="module")
def gateway(clusters: Clusters) -> ServiceProcess:
    return clusters.a.gateway("gateway")


def exported(name: str, port: int, **spec: Any) -> dict[str, Any]:
    return service(SHOP, name, port, address=own_address(), exportTo={"clusters": "All"}, **spec)


def importing(name: str) -> dict[str, Any]:
    return service(SHOP, name, discovery={"method": "endpointslice"})


def states(daemon: ServiceProcess) -> dict[str, Any]:
    page = daemon.page("/clusters")
    assert isinstance(page, list)
    return {one["name"]: one for one in page}


def condition(daemon: ServiceProcess, cluster: str, kind: str = "Ready") -> tuple[str, str]:
    found = states(daemon).get(cluster, {"conditions": []})["conditions"]
    return next(((one["status"], one["reason"]) for one in found if one["type"] == kind), ("", ""))


def until(condition: Any, what: str, daemon: ServiceProcess) -> None:
    try:
        eventually(condition, what, PATIENCE_S)
    except AssertionError as error:
        raise AssertionError(f"{error}; {states(daemon)}; {daemon.tail()}") from error


def test_a_service_of_two_clusters_is_reached_by_its_name(
    clusters: Clusters, daemon: ServiceProcess, gateway: ServiceProcess
) -> None:
    with contextlib.ExitStack() as stack:
        one, two = (Backend(answer(body), host=own_address()) for body in (b"from b", b"from c"))
        stack.callback(one.close)
        stack.callback(two.close)
        clusters.b.put(exported("api", one.port))
        clusters.c.put(exported("api", two.port))
        clusters.c.put(service(SHOP, "kept", two.port, address=own_address()))
        clusters.a.put(importing("api"))
        clusters.a.put(importing("kept"))
        clusters.a.put(route(SHOP, "api", "api", path="/api"))
        until(lambda: clusters.ports("api") == {"b": {one.port}, "c": {two.port}}, "both published", daemon)
        eventually(lambda: gateway.get("/api")[0] == 200, f"an answer: {gateway.tail()}", PATIENCE_S)
        eventually(
            lambda: {gateway.get("/api")[1] for _ in range(20)} == {"from b", "from c"}, "answers of both", PATIENCE_S
        )
        assert clusters.slices("kept") == {}, "what is not exported is not published"
        (item,) = clusters.slices("api")["b"]
        owner = item["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"]) == ("VPCService", "api")


def test_nothing_is_written_at_rest(clusters: Clusters, daemon: ServiceProcess) -> None:
    before = clusters.versions("api")
    assert before
    writes = daemon.page("/stats")["writes"]  # type: ignore[call-overload]
    time.sleep(2.5)  # a whole resync: whether anything is written is what is looked at
    assert clusters.versions("api") == before
    assert daemon.page("/stats")["writes"] == writes  # type: ignore[call-overload]


def test_an_export_of_another_protocol_is_a_conflict_in_a_slice(clusters: Clusters, daemon: ServiceProcess) -> None:
    clusters.b.put(exported("odd", 9001, protocol="GRPC"))
    clusters.c.put(exported("odd", 9002))
    clusters.a.put(importing("odd"))
    until(lambda: clusters.ports("odd") == {"b": set(), "c": {9002}}, "the one that fits", daemon)
    (notice,) = clusters.slices("odd")["b"]
    said = notice["metadata"]["annotations"]["router.datum.net/conflict"]
    assert said == "spec.protocol is GRPC there and HTTP here"
    clusters.a.controller("controller")

    def message() -> str:
        status = clusters.a.get(importing("odd")).get("status") or {}
        assert isinstance(status, dict)
        found = [one for one in status.get("conditions", ()) if one["type"] == "EndpointsReady"]
        return f"{found[0]['status']}: {found[0]['message']}" if found else ""

    expected = f"True: 1 endpoint; spec.discovery.method: cluster b: {said}"
    until(lambda: message() == expected, f"the condition, found {message()!r}", daemon)


def vpc(stage: Stage, name: str, identifier: str) -> None:
    """Make a VPC with the identifier that Galactic gave it."""
    raw = galactic("VPC", name, networks=["10.40.0.0/16"])
    stage.put(raw)
    stage.patch(raw, {"status": {"ready": True, "identifier": identifier}}, part="status")


def attached(stage: Stage, vpc_name: str, address: str) -> None:
    """Export a service of one pod in a VPC."""
    interface = {"name": "galactic0", "addresses": [f"{address}/24"]}
    raw = galactic("VPCAttachment", "net", vpc={"name": vpc_name, "namespace": SHOP}, interface=interface)
    stage.put(raw)
    stage.patch(raw, {"status": {"ready": True, "identifier": "002a"}}, part="status")
    exported_service = service(SHOP, "net", vpcAttachmentRef={"name": "net"}, exportTo={"clusters": "All"})
    del exported_service["spec"]["discovery"]  # type: ignore[attr-defined]  # it has endpoints of its own
    stage.put(exported_service)


def galactic(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "galactic.datumapis.com/v1alpha",
        "kind": kind,
        "metadata": {"name": name, "namespace": SHOP},
        "spec": spec,
    }


def test_vpcs_of_clusters_are_matched_by_identifier(clusters: Clusters, daemon: ServiceProcess) -> None:
    vpc(clusters.a, "mine", "0000000004d2")
    vpc(clusters.b, "theirs", "0000000004d2")
    vpc(clusters.c, "mine", "0000000004d3")
    attached(clusters.b, "theirs", "10.40.7.2")
    attached(clusters.c, "mine", "10.40.7.2")
    clusters.a.put(importing("net"))

    def found() -> dict[str, set[tuple[str, str]]]:
        return {
            cluster: {
                (notes.get("router.datum.net/vpc", ""), notes.get("router.datum.net/conflict", ""))
                for notes in (item["metadata"]["annotations"] for item in items)
            }
            for cluster, items in clusters.slices("net").items()
        }

    why = "10.40.7.2: vpc shop/mine has identifier jV there and jU here: another network of the same name"
    until(lambda: found() == {"b": {("shop/mine", "")}, "c": {("", why)}}, f"matched, found {found()}", daemon)
    vpc(clusters.c, "mine", "0000000004d2")
    shared = "10.40.7.2:8080@shop/mine: cluster b exports it, too"
    until(lambda: found() == {"b": {("shop/mine", "")}, "c": {("", shared)}}, f"one, found {found()}", daemon)
    for stage in (clusters.b, clusters.c):
        stage.delete(service(SHOP, "net"))
    until(lambda: clusters.slices("net") == {}, "not exported any more", daemon)


def test_garbage_and_a_dead_host_hurt_nothing_else(clusters: Clusters, daemon: ServiceProcess, tmp_path: Path) -> None:
    clusters.join("garbage", "{] no: yaml")
    (port,) = free_ports(1)
    clusters.join("dead", kubeconfig(clusters.b.plane, server=f"https://127.0.0.1:{port}"))
    good = kubeconfig(clusters.b.plane)
    clusters.join("nasty", good.replace("token:", "tokenFile:"))
    clusters.join("expired", good.replace(clusters.b.plane.token(REMOTE_READER), "not-any-more"))
    clusters.join("other-ca", kubeconfig(clusters.b.plane, authority=trustme.CA().cert_pem.bytes()))
    clusters.join("plain", good.replace("https://", "http://"))
    clusters.join("bomb", "a: &a [1]\nb: [*a, *a]\n" + good)
    trace = tmp_path / "ran"
    raw = yaml.safe_load(good)
    raw["users"][0]["user"] = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "touch", "args": [str(trace)]}
    }
    clusters.join("program", yaml.safe_dump(raw))
    raw = yaml.safe_load(good)
    raw["clusters"][0]["cluster"]["proxy-url"] = f"http://127.0.0.1:{port}"
    clusters.join("proxy", yaml.safe_dump(raw))
    refused = {"garbage", "nasty", "plain", "bomb", "program", "proxy"}
    away = {"dead", "expired", "other-ca"}
    for name in refused:
        until(lambda name=name: condition(daemon, name, "Accepted") == ("False", "InvalidKubeconfig"), name, daemon)
    clusters.b.put(exported("later", 9101))
    clusters.a.put(importing("later"))
    until(lambda: clusters.ports("later") == {"b": {9101}}, "a change of another cluster", daemon)
    for name in away:
        until(lambda name=name: condition(daemon, name) == ("False", "ClusterUnreachable"), name, daemon)
    said = {name: states(daemon)[name]["message"] for name in away}
    assert "the API answered 401" in said["expired"]
    assert "certificate" in said["other-ca"]
    assert not trace.exists(), "no program of a kubeconfig is run"
    assert condition(daemon, "b") == condition(daemon, "c") == ("True", "Ready")
    events = clusters.a.plane.request("GET", f"/apis/events.k8s.io/v1/namespaces/{SYSTEM}/events").json()["items"]
    assert isinstance(events, list)
    told = {(one["regarding"]["name"], one["reason"]) for one in events if one["regarding"]["kind"] == "Secret"}
    assert {("garbage", "InvalidKubeconfig"), ("dead", "ClusterUnreachable")} <= told
    secret = clusters.b.plane.token(REMOTE_READER)
    assert secret not in daemon.log.read_text()
    for name in refused | away:
        clusters.leave(name)
    until(lambda: not (refused | away) & states(daemon).keys(), "all forgotten", daemon)


def test_what_is_said_of_each_cluster_is_seen_with_kubectl_and_the_command(
    clusters: Clusters, daemon: ServiceProcess
) -> None:
    clusters.join("garbage", "{] no: yaml")
    clusters.join("self", kubeconfig(clusters.a.plane))
    clusters.join("twice", kubeconfig(clusters.c.plane))
    expected = {
        "b": ("True", "False", "ExportConflict"),
        "c": ("True", "False", "Ready"),
        "garbage": ("False", "False", "InvalidKubeconfig"),
        "self": ("False", "False", "OwnCluster"),
        "twice": ("False", "False", "DuplicateCluster"),
    }
    until(lambda: columns(clusters) == expected, f"all told, found {columns(clusters)}", daemon)
    assert clusters.ports("odd") == {"b": set(), "c": {9002}}, "no endpoint is there twice"
    assert clusters.a.plane.kubectl(
        "wait", "-n", SYSTEM, "--for=jsonpath={.metadata.labels.router\\.datum\\.net/ready}=True", "lease/cluster-c"
    ).returncode == 0  # fmt: skip
    lease = clusters.lease("b")
    assert [(one["kind"], one["name"]) for one in lease["metadata"]["ownerReferences"]] == [("Secret", "b")]
    table = command(clusters, "get", "clusters", "-n", SYSTEM)
    assert table[0].split() == ["NAME", "READY", "STALE", "SERVICES", "SLICES", "REASON", "MESSAGE"]
    rows = {line.split()[0]: line for line in table[1:]}
    assert rows.keys() == expected.keys()
    assert "ExportConflict" in rows["b"]
    assert "shop/odd: spec.protocol is GRPC there and HTTP here" in rows["b"]
    versions = {name: clusters.lease(name)["metadata"]["resourceVersion"] for name in expected}
    time.sleep(2.5)  # a whole resync: whether anything is written is what is looked at
    assert {name: clusters.lease(name)["metadata"]["resourceVersion"] for name in expected} == versions
    for name in ("garbage", "self", "twice"):
        clusters.leave(name)
    until(lambda: columns(clusters).keys() == {"b", "c"}, "all three forgotten", daemon)


def columns(clusters: Clusters) -> dict[str, tuple[str, ...]]:
    """Return what `kubectl get leases` shows of each cluster: ready, stale, reason."""
    labels = ",".join(f"router.datum.net/{name}" for name in ("ready", "stale", "reason"))
    done = clusters.a.plane.kubectl(
        "get", "leases", "-n", SYSTEM, "-l", "router.datum.net/component=remote-cluster", "-L", labels, "--no-headers"
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    return {row[0].removeprefix("cluster-"): tuple(row[-3:]) for row in rows}


def command(clusters: Clusters, *arguments: str) -> list[str]:
    """Run `datum-router` as an administrator of A and return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "datum_router_cli", *arguments],
        env={**os.environ, "KUBECONFIG": str(clusters.a.plane.kubeconfig()), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_kubeconfig_that_goes_bad_leaves_the_one_before_in_force(clusters: Clusters, daemon: ServiceProcess) -> None:
    clusters.join("b", "not any more")
    until(lambda: condition(daemon, "b", "Accepted") == ("False", "InvalidKubeconfig"), "the bad one told", daemon)
    clusters.b.put(exported("later", 9102))
    until(lambda: clusters.ports("later") == {"b": {9102}}, "a change by the kubeconfig before", daemon)
    clusters.join("b", kubeconfig(clusters.b.plane))
    until(lambda: condition(daemon, "b", "Accepted") == ("True", "Accepted"), "the good one taken", daemon)


def test_endpoints_stay_while_an_api_server_is_stopped_and_a_restarted_daemon_keeps_them(
    clusters: Clusters, daemon: ServiceProcess
) -> None:
    before = clusters.ports("later")
    plane = clusters.b.plane
    assert isinstance(plane, ControlPlane)
    plane.stop_api()
    try:
        until(lambda: "" not in clusters.stale("later", "b"), "the stale mark", daemon)
        assert clusters.ports("later") == before
        assert clusters.stale("odd", "c") == {""}
        (since,) = clusters.stale("later", "b")
        second = clusters.a.discovery("second", DISCOVERY_INTERVAL_SECS="2", DISCOVERY_REMOVED_SECS=str(REMOVED_S))
        assert daemon.stop() == 0
        until(lambda: second.page("/stats")["is_leading"] is True, "the second one leads", second)  # type: ignore[call-overload]
        until(lambda: condition(second, "b") == ("False", "ClusterUnreachable"), "it finds b gone", second)
        assert clusters.ports("later") == before
        assert clusters.stale("later", "b") == {since}, "staleness is counted from the first mark"
    finally:
        plane.start_api()
    until(lambda: clusters.stale("later", "b") == {""}, "the mark gone", second)
    assert clusters.ports("later") == before


def test_endpoints_of_a_removed_cluster_leave_after_their_time(clusters: Clusters) -> None:
    daemon = clusters.a.running[-1]
    removed_at = time.monotonic()
    clusters.leave("b")
    until(lambda: "" not in clusters.stale("later", "b"), "the stale mark", daemon)
    assert clusters.ports("later") == {"b": {9102}}
    until(lambda: clusters.slices("later") == {}, "the endpoints gone", daemon)
    assert time.monotonic() - removed_at >= REMOVED_S
    assert clusters.ports("odd") == {"c": {9002}}
    until(lambda: "b" not in states(daemon), "b forgotten", daemon)
