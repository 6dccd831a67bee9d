"""The gateway's report: written when something has come into force, and hardly ever otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.compiler.ingress import Attached
from datum_router.errors import ClusterConflict, ClusterForbidden, ClusterUnavailable
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import ObjectKey, OwnerReference
from datum_router.manifests.table import KindTable
from datum_router.model.egress import EgressListener, EgressMode, EgressPolicy
from datum_router.model.listener import Listener
from datum_router.model.snapshot import SnapshotData
from datum_router.observe import names
from datum_router.plugins.cluster import LeaseRecord
from datum_router.plugins.protocols import Upsert
from datum_router.reasons import Reason
from datum_router.reconcile.reports import GATEWAY_LABELS, REPORT_ANNOTATION, GatewayReport, decode_report
from datum_router.registry.store import Store, StoreView
from datum_router.testing.cluster import FakeCluster
from datum_router_runtime import gatewayreport
from datum_router_runtime.gatewayreport import (
    GatewayReporter,
    credential_refusals,
    lease_name,
    owners_from,
    refusals_from,
)
from datum_router_runtime.turns import Signal

KINDS = KindTable(OWN_KINDS)


class Stage:
    """What a reporter looks at, in the hands of the test."""

    def __init__(self) -> None:
        self.data: SnapshotData | None = None
        self.diagnostics: tuple[Diagnostic, ...] = ()
        self.listener_problems: dict[str, Diagnostic] = {}
        self.link_problem: Diagnostic | None = None
        self.ingresses: tuple[Attached, ...] = ()
        self.force_changed = Signal()
        self.news = Signal()
        self.synced = True
        self.lagging = 0
        self.marks: dict[str, str] = {}
        self.published_view: StoreView | None = None
        self.links: dict[int, Link] = {}

    def lagging_workers(self) -> int:
        return self.lagging

    def published_marks(self) -> dict[str, str]:
        return dict(self.marks)

    def edit(self, digest: str, version: str) -> None:
        """Bring an edit of a route into force."""
        self.data = SnapshotData(version=1, digest=digest)
        self.marks["VPCRoute"] = version
        self.force_changed.notify()

    def touch(self, version: str) -> None:
        """Move the version on without any effect, as a written status does."""
        self.marks["VPCRoute"] = version
        self.news.notify()


def reports(cluster: FakeCluster) -> list[GatewayReport]:
    found = []
    for write in cluster.writes:
        if write.method == "write_lease":
            assert isinstance(write.value, LeaseRecord)
            report = decode_report(write.value.annotations[REPORT_ANNOTATION])
            assert report is not None
            found.append(report)
    return found


def play(script: Callable[[Stage, FakeCluster], object], cluster: FakeCluster | None = None) -> FakeCluster:
    """Run a reporter beside a script, on a clock that jumps."""
    cluster = cluster or FakeCluster(namespace="datum-router")
    stage = Stage()

    async def main() -> None:
        reporter = GatewayReporter(
            cluster,
            identity="gw-1",
            supervisor=stage,  # type: ignore[arg-type]
            feed=stage,  # type: ignore[arg-type]
            kinds=KINDS,
            owners=(OwnerReference(api_version="v1", kind="Pod", name="gw-1", uid="u"),),
            wall_clock=lambda: 5000.0 + trio.current_time(),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reporter.run)
            await wait_all_tasks_blocked()
            await script(stage, cluster)  # type: ignore[misc]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return cluster


def test_nothing_is_reported_before_anything_is_in_force() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.lagging = 1
        stage.edit("d1", "5")
        await trio.sleep(600)
        assert reports(cluster) == []
        stage.lagging = 0
        stage.force_changed.notify()
        await wait_all_tasks_blocked()
        assert reports(cluster) == [GatewayReport(digest="d1", versions={"VPCRoute": "5"})]

    play(script)


def test_the_record_says_whose_it_is_and_goes_with_it() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.edit("d1", "5")
        await wait_all_tasks_blocked()
        record = await cluster.read_lease("datum-router", "gateway-gw-1")
        assert record is not None
        assert (record.holder, record.duration_s, dict(record.labels)) == ("gw-1", 300, GATEWAY_LABELS)
        assert record.owners[0].name == "gw-1"

    cluster = play(script)
    assert trio.run(cluster.read_lease, "datum-router", "gateway-gw-1") is None


def test_a_storm_of_edits_is_one_report_a_second() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        for number in range(1, 101):
            stage.edit(f"d{number}", str(number))
            await trio.sleep(0.1)
        await trio.sleep(2)
        found = reports(cluster)
        assert found[-1] == GatewayReport(digest="d100", versions={"VPCRoute": "100"})
        assert 10 <= len(found) <= 12

    play(script)


def test_at_rest_it_is_renewed_and_nothing_else() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.edit("d1", "5")
        await trio.sleep(gatewayreport.RENEW_S - 1)
        assert len(reports(cluster)) == 1
        await trio.sleep(3602 - gatewayreport.RENEW_S)
        assert len(reports(cluster)) == 31

    play(script)


def test_versions_that_move_on_by_themselves_are_reported_once_it_is_quiet() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.edit("d1", "5")
        await trio.sleep(10)
        for number in range(6, 30):
            stage.touch(str(number))
            await trio.sleep(1)
        assert len(reports(cluster)) == 1
        await trio.sleep(gatewayreport.QUIET_S)
        assert reports(cluster)[1:] == [GatewayReport(digest="d1", versions={"VPCRoute": "29"})]

    play(script)


def test_an_edit_does_not_wait_for_quiet() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.edit("d1", "5")
        await trio.sleep(10)
        stage.touch("6")
        await trio.sleep(1)
        stage.edit("d2", "7")
        await wait_all_tasks_blocked()
        assert reports(cluster)[-1] == GatewayReport(digest="d2", versions={"VPCRoute": "7"})

    play(script)


def test_failures_are_retried_and_the_newest_report_is_written() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        cluster.fail("write_lease", ClusterUnavailable("no answer"), times=3)
        stage.edit("d1", "5")
        await wait_all_tasks_blocked()
        stage.edit("d2", "6")
        await trio.sleep(200)
        assert reports(cluster)[0].digest == "d2"

    play(script)


def test_a_record_of_its_last_life_is_taken_over() -> None:
    cluster = FakeCluster(namespace="datum-router")
    old = LeaseRecord(namespace="datum-router", name="gateway-gw-1", holder="gw-1", duration_s=300)
    trio.run(cluster.write_lease, old)

    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.edit("d1", "5")
        await wait_all_tasks_blocked()
        assert reports_after(cluster, 1) == ["d1"]

    play(script, cluster)


def reports_after(cluster: FakeCluster, count: int) -> list[str]:
    written = [write.value for write in cluster.writes if write.method == "write_lease"][count:]
    return [
        report.digest
        for one in written
        if isinstance(one, LeaseRecord) and (report := decode_report(one.annotations[REPORT_ANNOTATION])) is not None
    ]


def test_a_conflict_is_read_again_and_told(caplog: pytest.LogCaptureFixture) -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.edit("d1", "5")
        await trio.sleep(10)
        cluster.fail("write_lease", ClusterConflict("somebody else wrote", status=409))
        stage.edit("d2", "6")
        await wait_all_tasks_blocked()
        assert reports(cluster)[-1].digest == "d2"

    play(script)
    assert "another gateway of the same name?" in caplog.text


def test_without_the_right_to_write_it_goes_on_trying_slowly() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        cluster.fail("write_lease", ClusterForbidden("may not create leases", status=403), times=None)
        stage.edit("d1", "5")
        await trio.sleep(600)
        cluster.heal()
        await trio.sleep(gatewayreport.MAX_RETRY_S)
        assert reports(cluster)[-1].digest == "d1"

    play(script)


def test_a_snapshot_that_cannot_be_put_in_force_is_told_with_what_serves_on() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.edit("d1", "5")
        await trio.sleep(10)
        stage.lagging = 1
        stage.link_problem = Diagnostic(
            severity=Severity.ERROR, object="snapshot 2", reason=Reason.PLUGIN_FAILED, message="cannot be put in force"
        )
        stage.edit("d2", "6")
        await wait_all_tasks_blocked()
        told = reports(cluster)[-1]
        assert (told.digest, told.versions, told.problem) == ("d1", {"VPCRoute": "5"}, "cannot be put in force")

    play(script)


def diagnostic(name: str, severity: Severity, reason: Reason, path: str = "spec") -> Diagnostic:
    return Diagnostic(severity=severity, object=name, reason=reason, message="why", path=path)


def test_errors_are_refusals_and_so_is_what_only_gateways_see() -> None:
    found = list(
        refusals_from(
            [
                diagnostic("vpcroute shop/api", Severity.ERROR, Reason.INVALID_VALUE, "spec.match"),
                diagnostic("vpcroute shop/other", Severity.WARNING, Reason.CONFLICTED),
                diagnostic("vpcingress shop/web", Severity.WARNING, Reason.INVALID_CERTIFICATE_REF, ""),
                diagnostic("listener web", Severity.ERROR, Reason.INVALID_VALUE),
                diagnostic("somefile.yaml", Severity.ERROR, Reason.INVALID_SYNTAX),
            ],
            KINDS,
        )
    )
    assert [(one.kind, one.namespace, one.name, one.message) for one in found] == [
        ("VPCRoute", "shop", "api", "spec.match: why"),
        ("VPCIngress", "shop", "web", "why"),
    ]


def ingress(name: str, port: int, secret: str = "") -> Upsert:
    raw = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCIngress",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "host": f"{name}.test",
            "listeners": [{"name": "web", "port": port, "protocol": "HTTPS" if secret else "HTTP"}],
            "rules": [{"path": "/", "service": {"name": "a"}}],
            **({"tls": {"secretName": secret}} if secret else {}),
        },
    }
    return Upsert(source="test", raw=raw, origin=Origin(source="test"))


def view_of(*events: Upsert) -> StoreView:
    store = Store(KINDS)
    for event in events:
        store.apply(event)
    return store.view()


def test_a_bad_secret_is_told_at_each_object_that_names_it() -> None:
    view = view_of(ingress("one", 443, "site"), ingress("two", 443, "site"), ingress("other", 443, "good"))
    bad = diagnostic("secret shop/site", Severity.ERROR, Reason.INVALID_VALUE, "data['tls.key']")
    same_name = diagnostic("secret elsewhere/good", Severity.ERROR, Reason.INVALID_VALUE)
    remark = diagnostic("secret shop/good", Severity.WARNING, Reason.INVALID_VALUE)
    found = list(credential_refusals([bad, same_name, remark], view))
    message = "secret shop/site: data['tls.key']: why; the last good version stays in force, if there was one"
    assert [(one.key.name, one.reason, one.message) for one in found] == [
        (name, "InvalidCertificateRef", message) for name in ("one", "two")
    ]


def test_a_port_that_cannot_be_had_is_told_at_each_ingress_that_wants_it() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        ports = {"one": 8080, "two": 8080, "other": 9090}
        stage.ingresses = tuple(
            Attached(
                key=ObjectKey(kind="VPCIngress", namespace="shop", name=name),
                hostnames=(),
                sections=(("http", port, f"http-{port}"),),
            )
            for name, port in ports.items()
        )
        listeners = tuple(Listener(name=f"http-{port}", port=port) for port in (8080, 9090))
        stage.data = SnapshotData(version=1, digest="d1", listeners=listeners)
        stage.listener_problems = {"http-8080": diagnostic("listener", Severity.ERROR, Reason.PORT_UNAVAILABLE)}
        stage.force_changed.notify()
        await wait_all_tasks_blocked()
        told = reports(cluster)[-1]
        assert told.digest == "d1"
        assert [(str(one.key), one.reason) for one in told.refused] == [
            ("vpcingress shop/one", "PortUnavailable"),
            ("vpcingress shop/two", "PortUnavailable"),
        ]
        await trio.sleep(10)
        stage.listener_problems = {}
        stage.force_changed.notify()
        await wait_all_tasks_blocked()
        assert reports(cluster)[-1].refused == ()

    play(script)


@pytest.mark.parametrize(
    ("identity", "name"),
    [("gw-7f9", "gateway-gw-7f9"), ("Host_1.local", "gateway-host-1.local"), ("...", "gateway-unnamed")],
)
def test_any_identity_gives_a_name_that_objects_may_have(identity: str, name: str) -> None:
    assert lease_name(identity) == name


def test_a_long_identity_is_cut() -> None:
    assert len(lease_name("x" * 400)) == 253


def test_it_belongs_to_its_pod_only_if_it_knows_it() -> None:
    assert owners_from({"POD_NAME": "gw"}) == ()
    (owner,) = owners_from({"POD_NAME": "gw", "POD_UID": "u"})
    assert (owner.kind, owner.name, owner.uid) == ("Pod", "gw", "u")


def closed(name: str, reason: Reason = Reason.PORT_UNAVAILABLE) -> dict[str, Diagnostic]:
    message = f"listener {name}: in use"
    return {name: Diagnostic(severity=Severity.ERROR, object=f"listener {name}", reason=reason, message=message)}


def test_an_ingress_whose_port_cannot_be_opened_is_refused_and_the_others_are_in_force() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        key = ObjectKey(kind="VPCIngress", namespace="shop", name="front")
        stage.ingresses = (Attached(key=key, hostnames=(), sections=(("http", 81, "http-81"),)),)
        stage.listener_problems = closed("http-81")
        listeners = (Listener(name="http-80"), Listener(name="http-81"))
        stage.data = SnapshotData(version=1, digest="d1", listeners=listeners)
        stage.touch("5")
        await wait_all_tasks_blocked()
        (report,) = reports(cluster)
        assert report.versions == {"VPCRoute": "5"}
        assert [(one.key, one.reason, one.message) for one in report.refused] == [
            (key, "PortUnavailable", "listener http-81: in use")
        ]

    play(script)


def test_nothing_is_in_force_where_no_port_is_open() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.listener_problems = closed("http-80")
        stage.data = SnapshotData(version=1, digest="d1", listeners=(Listener(name="http-80"),))
        stage.touch("5")
        await wait_all_tasks_blocked()
        (report,) = reports(cluster)
        assert (report.versions, report.problem) == ({}, "listener http-80: in use")
        stage.listener_problems = {}
        stage.force_changed.notify()
        await trio.sleep(gatewayreport.MIN_INTERVAL_S)
        await wait_all_tasks_blocked()
        assert reports(cluster)[-1] == GatewayReport(digest="d1", versions={"VPCRoute": "5"})

    play(script)


def test_a_port_that_changes_hands_is_waited_for() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.listener_problems = closed("http-80", Reason.PENDING)
        stage.data = SnapshotData(version=1, digest="d1", listeners=(Listener(name="http-80"),))
        stage.touch("5")
        await wait_all_tasks_blocked()
        assert reports(cluster) == []

    play(script)


# --- open outbound connections ------------------------------------------------------------------------------------


class Link:
    """A worker's side, as far as connections are counted of it."""

    def __init__(self, *counts: tuple[str, float]) -> None:
        self.cells = {(names.EGRESS_CONNECTIONS.name, (egress,)): count for egress, count in counts}


def test_open_connections_are_reported_every_half_minute_and_only_if_they_changed() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        listener = Listener(name="egress", egress=EgressListener(mode=EgressMode.PROXY))
        stage.links = {0: Link(("default/out", 2.0), ("default/quiet", 0.0)), 1: Link(("default/out", 1.0))}
        stage.data = SnapshotData(version=1, digest="d1", egress=EgressPolicy(), listeners=(listener,))
        stage.force_changed.notify()
        await trio.sleep(31.0)
        assert reports(cluster)[-1].connections == {"default/out": 3}
        count = len(reports(cluster))
        for _ in range(10):
            stage.links = {0: Link(("default/out", 7.0))}
            await trio.sleep(1.0)
            stage.links = {0: Link(("default/out", 3.0))}
        await trio.sleep(60.0)
        assert len(reports(cluster)) == count, "as many as before whenever they were counted"
        stage.links = {}
        await trio.sleep(31.0)
        assert reports(cluster)[-1].connections == {}

    play(script)


def test_a_gateway_without_an_egress_listener_counts_nothing() -> None:
    async def script(stage: Stage, cluster: FakeCluster) -> None:
        stage.links = {0: Link(("default/out", 2.0))}
        stage.edit("d1", "5")
        await trio.sleep(100.0)
        assert [one.connections for one in reports(cluster)] == [{}]

    play(script)
