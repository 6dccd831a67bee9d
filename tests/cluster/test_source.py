"""The kubernetes source against a real API server: what it reads, and what it does when the server is not there."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
import trustme

from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.secret import ConfigMap, Secret
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.plugins import builtin
from datum_router.plugins.protocols import Upsert
from datum_router.reasons import Reason
from datum_router_kubernetes import client, follow
from datum_router_kubernetes.kinds import Pod
from datum_router_kubernetes.source import KubernetesSource
from datum_router_kubernetes.testing import RunningSource, eventually
from tests.cluster.control_plane import GATEWAY, REPOSITORY, ControlPlane, ProgramsMissing
from tests.cluster.stage import GROUP, issued_secret
from tests.cluster.tcp_proxy import TcpProxy

KINDS = tuple(builtin.datum_router_resource_kinds())
BY_NAME = {kind.kind: kind for kind in KINDS}
SERVICES = BY_NAME["VPCService"]
INGRESSES = BY_NAME["VPCIngress"]
PODS = ResourceKind(group="", version="v1", kind="Pod", plural="pods", struct=Pod, is_metadata_only=True)


class Widget(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    metadata: ObjectMeta


WIDGETS = ResourceKind(
    group="x.example", version="v1", kind="Widget", plural="widgets", struct=Widget, is_optional=True
)
WIDGET_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.x.example"},
    "spec": {
        "group": "x.example",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        ],
    },
}


@pytest.fixture(scope="module")
def own_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Give a control plane of our own, which tests stop, pause and compact, and that writes down what it is asked."""
    one = ControlPlane(tmp_path_factory.mktemp("own"), audit=True)
    try:
        one.start()
        applied = one.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "manifests/crds"))
        assert applied.returncode == 0, applied.stderr
        ready = one.kubectl(
            "wait", "--for=condition=Established", "--timeout=30s", "-f", str(REPOSITORY / "manifests/crds")
        )
        assert ready.returncode == 0, ready.stderr
        yield one
    except ProgramsMissing as error:
        pytest.skip(str(error))
    finally:
        one.stop()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "ABSENT_RETRY_S", 0.3)
    monkeypatch.setattr(follow, "RELIST_SPREAD_S", 0.2)
    monkeypatch.setattr(follow, "MAX_BACKOFF_S", 2.0)


_names = iter(range(1, 1000))


class Place:
    """A namespace of one test, and sources that read it."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.namespace = f"source-{next(_names)}"
        plane.make_namespace(self.namespace)

    def source(
        self, *kinds: ResourceKind, server: str | None = None, user: str = "admin", **settings: str
    ) -> KubernetesSource:
        kubeconfig = self.plane.kubeconfig(user, server=server)
        return KubernetesSource(
            {"kubeconfig": str(kubeconfig), "namespaces": self.namespace, **settings}, KindTable(kinds), seed=1
        )

    def run(self, *kinds: ResourceKind, **arguments: str) -> RunningSource:
        return RunningSource(self.source(*kinds, **arguments), KindTable(kinds))

    def path(self, plural: str, name: str = "", *, group: str = GROUP) -> str:
        return f"{group}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def create(self, plural: str, raw: Mapping[str, object], *, group: str = GROUP) -> None:
        answer = self.plane.request("POST", self.path(plural, group=group), raw)
        assert answer.status == 201, answer.body

    def delete(self, plural: str, name: str, *, group: str = GROUP) -> None:
        assert self.plane.request("DELETE", self.path(plural, name, group=group)).status == 200

    def service(self, name: str, **labels: str) -> None:
        self.create(
            "vpcservices",
            {
                "apiVersion": "router.datum.net/v1alpha1",
                "kind": "VPCService",
                "metadata": {"name": name, "labels": labels},
                "spec": {"port": 80, "endpoints": [{"address": "10.0.0.1"}]},
            },
        )

    def asked(self, verb: str, resource: str) -> int:
        """Return how often the API server was asked for something of this namespace."""
        assert self.plane.audit_log is not None
        count = 0
        for line in self.plane.audit_log.read_text().splitlines():
            told = json.loads(line)
            ref = told.get("objectRef", {})
            if told["stage"] == "RequestReceived" and told["verb"] == verb and ref.get("resource") == resource:
                count += ref.get("namespace") == self.namespace
        return count


@pytest.fixture
def place(own_plane: ControlPlane) -> Place:
    return Place(own_plane)


@pytest.fixture
def proxy(own_plane: ControlPlane) -> Iterator[TcpProxy]:
    with TcpProxy(own_plane.port) as one:
        yield one


def watching(place: Place, source: RunningSource, resource: str = "vpcservices") -> Callable[[], bool]:
    def is_watching() -> bool:
        return place.asked("watch", resource) > 0

    return is_watching


# --- reading -------------------------------------------------------------------------------------------------------


def test_a_list_in_pages_is_complete_and_changes_follow(place: Place) -> None:
    for number in range(7):
        place.service(f"s{number}")
    with place.run(SERVICES, pageSize="2") as running:
        running.wait_synced()
        assert running.names("VPCService") == [f"s{number}" for number in range(7)]
        assert place.asked("list", "vpcservices") == 4
        place.service("late")
        running.wait(lambda: "late" in running.names("VPCService"), "a new object")
        place.delete("vpcservices", "s3")
        running.wait(lambda: "s3" not in running.names("VPCService"), "a deleted one")
        assert place.asked("list", "vpcservices") == 4
        assert running.diagnostics() == ()


def test_marks_reach_the_version_of_what_was_written(place: Place) -> None:
    with place.run(SERVICES) as running:
        running.wait_synced()
        place.service("a")
        written = place.plane.request("GET", place.path("vpcservices", "a")).json()["metadata"]
        assert isinstance(written, dict)
        wanted = f"VPCService/{place.namespace}@{written['resourceVersion']}"
        running.wait(lambda: wanted in running.told(), "the mark")


def test_a_status_that_is_written_is_no_change_but_is_seen(place: Place) -> None:
    place.service("a")
    with place.run(SERVICES) as running:
        running.wait_synced()
        before = running.view
        answer = place.plane.request(
            "PATCH",
            place.path("vpcservices", "a") + "/status",
            {"status": {"ready": True}},
            content_type="application/merge-patch+json",
        )
        assert answer.status == 200, answer.body

        def status() -> object:
            return getattr(running.view.get("VPCService", place.namespace, "a"), "status", None)

        running.wait(lambda: getattr(status(), "ready", False), "the status")
        assert running.view.changes(before) == {}


def test_namespaces_and_labels_select(place: Place, own_plane: ControlPlane) -> None:
    other = Place(own_plane)
    other.service("elsewhere", team="a")
    place.service("mine", team="a")
    place.service("theirs", team="b")
    with place.run(SERVICES, labelSelector="team=a") as running:
        running.wait_synced()
        assert running.names("VPCService") == ["mine"]
        place.service("more", team="a")
        place.service("less", team="b")
        running.wait(lambda: running.names("VPCService") == ["mine", "more"], "one more")
    with place.run(SERVICES, labelSelector="team=a", namespaces="") as running:
        running.wait_synced()
        assert {"elsewhere", "mine"} <= set(running.names("VPCService"))
        assert "theirs" not in running.names("VPCService")
    with place.run(SERVICES, labelSelector="in in in") as running:
        running.wait(running.diagnostics, "a diagnostic")
        assert "labelSelector" in running.diagnostics()[0].hint


def test_of_pods_only_metadata_is_read(place: Place) -> None:
    spec = {"containers": [{"name": "app", "image": "example.invalid/app"}]}
    place.create("pods", {"metadata": {"name": "p", "annotations": {"a": "b"}}, "spec": spec}, group="/api/v1")
    with place.run(PODS) as running:
        running.wait_synced()
        place.create("pods", {"metadata": {"name": "q", "annotations": {"c": "d"}}, "spec": spec}, group="/api/v1")
        running.wait(lambda: running.names("Pod") == ["p", "q"], "both pods")
        for name, annotations in (("p", {"a": "b"}), ("q", {"c": "d"})):
            found = running.view.get("Pod", place.namespace, name)
            assert isinstance(found, Pod)
            assert (found.api_version, found.kind, found.metadata.annotations) == ("v1", "Pod", annotations)
        for event in running.events:
            if isinstance(event, Upsert):
                assert isinstance(event.raw, msgspec.Raw)
                assert b"example.invalid" not in bytes(event.raw)


def test_an_optional_kind_that_is_installed_later_is_found(place: Place) -> None:
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    with place.run(SERVICES, WIDGETS) as running:
        running.wait_synced()
        assert running.diagnostics() == ()
        assert place.plane.request("POST", crds, WIDGET_CRD).status == 201
        widget = {"apiVersion": "x.example/v1", "kind": "Widget", "metadata": {"name": "w"}}
        path = place.path("widgets", group="/apis/x.example/v1")
        eventually(lambda: place.plane.request("POST", path, widget).status == 201, "a widget can be created")
        running.wait(lambda: running.names("Widget") == ["w"], "the widget")
        assert place.plane.request("DELETE", f"{crds}/widgets.x.example").status == 200
        running.wait(lambda: running.names("Widget") == [], "no widget without its kind")


def test_a_kind_of_ours_that_is_not_installed_is_told(place: Place) -> None:
    missing = msgspec.structs.replace(SERVICES, kind="VPCThing", plural="vpcthings")
    with place.run(missing) as running:
        running.wait(running.diagnostics, "a diagnostic")
        (found,) = running.diagnostics()
        assert found.reason is Reason.UNKNOWN_KIND
        assert "CRD not installed" in found.message
        assert not running.is_synced


# --- Secrets and ConfigMaps ------------------------------------------------------------------------------------------


def bind(place: Place, name: str, rules: list[Mapping[str, object]]) -> None:
    """Give the gateway's account rights in a namespace."""
    place.create("roles", {"metadata": {"name": name}, "rules": rules}, group="/apis/rbac.authorization.k8s.io/v1")
    place.create(
        "rolebindings",
        {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "User", "name": GATEWAY, "apiGroup": "rbac.authorization.k8s.io"}],
        },
        group="/apis/rbac.authorization.k8s.io/v1",
    )


def test_a_right_on_one_secret_by_its_name_is_enough_to_follow_it(place: Place) -> None:
    verbs = ["get", "list", "watch"]
    bind(
        place,
        "reader",
        [
            {"apiGroups": ["router.datum.net"], "resources": ["vpcingresses"], "verbs": verbs},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["tls"], "verbs": verbs},
        ],
    )
    everything = place.path("secrets", group="/api/v1")
    assert place.plane.request("GET", everything, user=GATEWAY).status == 403

    def ingress(name: str, secret: str) -> Mapping[str, object]:
        return {
            "apiVersion": "router.datum.net/v1alpha1",
            "kind": "VPCIngress",
            "metadata": {"name": name},
            "spec": {"host": f"{name}.example", "tls": {"secretName": secret}},
        }

    authority = trustme.CA()

    def secret(host: str) -> Mapping[str, object]:
        return issued_secret(place.namespace, "tls", authority, host)

    first, second = secret("first.example"), secret("second.example")
    place.create("secrets", first, group="/api/v1")
    place.create("vpcingresses", ingress("a", "tls"))
    with place.run(INGRESSES, BY_NAME["Secret"], user=GATEWAY) as running:
        running.wait_synced()
        assert running.diagnostics() == ()

        def certificate() -> str | None:
            found = running.view.get("Secret", place.namespace, "tls")
            return found.text("tls.crt") if isinstance(found, Secret) else None

        before = certificate()
        assert before is not None
        assert place.plane.request("PUT", place.path("secrets", "tls", group="/api/v1"), second).status == 200
        running.wait(lambda: certificate() not in (None, before), "the new certificate")
        place.delete("secrets", "tls", group="/api/v1")
        running.wait(lambda: certificate() is None, "no certificate")
        place.create("secrets", first, group="/api/v1")
        running.wait(lambda: certificate() == before, "the certificate is back")
        place.create("vpcingresses", ingress("b", "other"))
        running.wait(running.diagnostics, "a secret without a right")
        (found,) = running.diagnostics()
        assert f"the right to list secrets other in namespace {place.namespace} is missing" in found.message
        running.wait(lambda: sorted(running.names("VPCIngress")) == ["a", "b"], "the one that was held back for it")
        place.delete("vpcingresses", "b")
        running.wait(lambda: not running.diagnostics(), "nothing is wrong without it")


def test_a_giant_object_is_read(place: Place) -> None:
    text = base64.b64encode(bytes(range(256)) * 3000).decode()
    place.create("configmaps", {"metadata": {"name": "bundle"}, "data": {"ca.crt": text}}, group="/api/v1")
    tls = {"caCertificateRefs": [{"name": "bundle"}]}
    place.create(
        "vpcservices",
        {
            "apiVersion": "router.datum.net/v1alpha1",
            "kind": "VPCService",
            "metadata": {"name": "s"},
            "spec": {"port": 443, "protocol": "HTTPS", "endpoints": [{"address": "10.0.0.1"}], "tls": tls},
        },
    )
    with place.run(SERVICES, BY_NAME["ConfigMap"]) as running:
        running.wait_synced()

        def size() -> int:
            found = running.view.get("ConfigMap", place.namespace, "bundle")
            return len((found.data or {}).get("ca.crt", "")) if isinstance(found, ConfigMap) else 0

        assert size() == len(text) > 1_000_000
        patch = {"data": {"ca.crt": text[:-4]}}  # by the watch, too
        answer = place.plane.request(
            "PATCH",
            place.path("configmaps", "bundle", group="/api/v1"),
            patch,
            content_type="application/merge-patch+json",
        )
        assert answer.status == 200
        running.wait(lambda: size() == len(text) - 4, "the change")


# --- trouble -------------------------------------------------------------------------------------------------------


def test_connections_that_break_are_gone_on_from_without_a_list(place: Place, proxy: TcpProxy) -> None:
    place.service("a")
    with place.run(SERVICES, server=proxy.url) as running:
        running.wait_synced()
        for number in range(3):
            proxy.refuse()
            place.service(f"b{number}")
            if number:
                place.delete("vpcservices", f"b{number - 1}")
            proxy.allow()
            running.wait(lambda number=number: f"b{number}" in running.names("VPCService"), "what came meanwhile")
        running.wait(lambda: running.names("VPCService") == ["a", "b2"], "what went meanwhile")
        assert place.asked("list", "vpcservices") == 1
        assert running.told().count("+a") == 1


def test_a_connection_that_carries_nothing_any_more_is_replaced(place: Place, proxy: TcpProxy) -> None:
    with place.run(SERVICES, server=proxy.url, watchIdleSeconds="1") as running:
        running.wait_synced()
        proxy.swallow()
        place.service("a")
        accepted = proxy.accepted
        running.wait(lambda: proxy.accepted > accepted, "another connection")
        proxy.flow()
        running.wait(lambda: running.names("VPCService") == ["a"], "what came meanwhile")
        assert place.asked("list", "vpcservices") == 1


def test_an_api_server_that_is_paused_is_noticed_and_gone_on_with(place: Place) -> None:
    source = place.source(SERVICES, watchIdleSeconds="1")
    with RunningSource(source, KindTable([SERVICES])) as running:
        running.wait_synced()
        running.wait(lambda: source.stats().get("watches/VPCService"), "a watch")
        place.plane.pause_api()
        try:
            errors = source.stats().get("errors/VPCService", 0)
            running.wait(lambda: source.stats().get("errors/VPCService", 0) > errors + 1, "silence is noticed")
            assert source.stats()["stale_seconds"] >= 1
        finally:
            place.plane.resume_api()
        place.service("a")
        running.wait(lambda: running.names("VPCService") == ["a"], "what came after")
        assert source.stats()["lists/VPCService"] == 1


def test_what_was_deleted_while_the_history_was_lost_is_found(place: Place, proxy: TcpProxy) -> None:
    for name in ("a", "b", "c"):
        place.service(name)
    source = place.source(SERVICES, server=proxy.url)
    with RunningSource(source, KindTable([SERVICES])) as running:
        running.wait_synced()
        proxy.refuse()
        place.delete("vpcservices", "b")
        place.service("d")
        place.plane.compact()
        place.plane.stop_api(number=9)
        place.plane.start_api()
        place.service("e")
        proxy.allow()
        running.wait(lambda: running.names("VPCService") == ["a", "c", "d", "e"], "all that happened meanwhile")
        assert source.stats()["relists/VPCService"] == 1
        told = running.told()
        assert told.count("-b") == 1
        assert "-a" not in told  # what is still there was never taken away
        assert told.count("+a") == 1  # and was not told twice


def test_an_api_server_that_is_started_anew_is_gone_on_with(place: Place) -> None:
    place.service("a")
    source = place.source(SERVICES, INGRESSES)
    with RunningSource(source, KindTable([SERVICES, INGRESSES])) as running:
        running.wait_synced()
        place.plane.stop_api(number=9)
        running.wait(lambda: source.stats().get("errors/VPCService"), "it is gone")
        assert running.names("VPCService") == ["a"]
        place.plane.start_api()
        returned = time.monotonic()
        place.service("b")
        running.wait(lambda: running.names("VPCService") == ["a", "b"], "what came after")
        assert time.monotonic() - returned < 10
        assert "-a" not in running.told()
        # It remembers nothing from before its start: if anything was written since the last word, it says 410.
        assert source.stats().get("relists/VPCService", 0) <= 1
        assert running.told().count("+a") == 1


def test_data_that_was_restored_from_a_copy_is_read_anew(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SILENT_S", 2.0)
    place.service("kept")
    with place.run(SERVICES, watchIdleSeconds="1") as running:
        running.wait(lambda: running.names("VPCService") == ["kept"], "the first")
        place.plane.save(tmp_path / "copy")
        for number in range(20):
            place.service(f"lost-{number}")
        running.wait(lambda: len(running.names("VPCService")) == 21, "what the copy does not have")
        place.plane.restore(tmp_path / "copy")
        place.service("new")  # at a version that was somebody else's before
        running.wait(lambda: running.names("VPCService") == ["kept", "new"], "what there is now")


def test_a_token_that_is_refused_is_told_and_another_one_is_used(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MIN_RENEWAL_S", 0.3)
    good = json.loads(place.plane.kubeconfig().read_text())
    bad = json.loads(place.plane.kubeconfig().read_text())
    bad["users"][0]["user"] = {"token": "not-a-token"}
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(bad))
    kinds = KindTable([SERVICES])
    source = KubernetesSource({"kubeconfig": str(path), "namespaces": place.namespace}, kinds)
    with RunningSource(source, kinds) as running:
        running.wait(running.diagnostics, "a diagnostic")
        (found,) = running.diagnostics()
        assert "401" in found.message
        assert "not-a-token" not in found.message
        path.write_text(json.dumps(good))
        running.wait(lambda: running.is_synced, "synced", patience_s=30)
        running.wait(lambda: not running.diagnostics(), "the diagnostic is gone")


def test_a_right_that_is_missing_is_told_by_name_until_it_is_given(place: Place) -> None:
    with place.run(SERVICES, user=GATEWAY) as running:
        running.wait(running.diagnostics, "a diagnostic")
        (found,) = running.diagnostics()
        assert "the right to list vpcservices.router.datum.net" in found.message
        assert f'User "{GATEWAY}" cannot list resource "vpcservices"' in found.message
        assert not running.is_synced
        verbs = ["get", "list", "watch"]
        bind(place, "late", [{"apiGroups": ["router.datum.net"], "resources": ["vpcservices"], "verbs": verbs}])
        running.wait_synced()
        running.wait(lambda: not running.diagnostics(), "the diagnostic is gone")


def test_the_end_leaves_no_thread_and_no_connection(place: Place, proxy: TcpProxy) -> None:
    with place.run(SERVICES, INGRESSES, PODS, server=proxy.url) as running:
        running.wait_synced()
        running.wait(lambda: place.asked("watch", "pods") > 0, "watched")
        proxy.swallow()
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    assert not [one for one in threading.enumerate() if one.name.startswith("kubernetes-")]
    proxy.flow()
    eventually(lambda: not proxy._open, "all connections are closed")
