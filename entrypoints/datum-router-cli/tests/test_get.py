"""`datum-router get clusters`: what discovery says of joined clusters."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest
from click.testing import CliRunner, Result

from datum_router.discovery.report import CONDITIONS_ANNOTATION, Facts, record_of, report_of
from datum_router.discovery.standing import Phase
from datum_router.errors import ClusterForbidden
from datum_router.plugins.cluster import LeaseRecord
from datum_router.plugins.specs import ClusterSpec
from datum_router.reasons import Reason
from datum_router.testing.cluster import FakeCluster, run_now
from datum_router_cli import get as module
from datum_router_cli.commands import cli
from datum_router_cli.plugins import installed_plugins

Invoke = Callable[..., Result]
T0 = 1_700_000_000.0
WELL = Facts(name="well", phase=Phase.READY, reason=Reason.READY, exports=3, slices=2)
GONE = Facts(
    name="gone",
    phase=Phase.UNREACHABLE,
    reason=Reason.CLUSTER_UNREACHABLE,
    message="no \x1b[2J answer",
    since_at=T0,
    slices=1,
)


def lease(facts: Facts) -> LeaseRecord:
    return record_of(report_of(facts, None, now=T0), "datum-router", now=T0)


LEADER = LeaseRecord(namespace="datum-router", name="router-discovery", holder="me", renewed_at=T0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    monkeypatch.setattr(module.time, "time", lambda: T0 + 10)
    made = FakeCluster()
    run_now(made.write_lease(LEADER))
    return made


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster) -> Invoke:
    spec = ClusterSpec(name="kubernetes", create=lambda _settings: cluster)
    plugins = msgspec.structs.replace(installed_plugins(), clusters={"kubernetes": spec})
    monkeypatch.setattr(module, "installed_plugins", lambda: plugins)
    return lambda *arguments: CliRunner().invoke(cli, ["get", *arguments], prog_name="datum-router")


def test_all_clusters_are_a_table(invoke: Invoke, cluster: FakeCluster) -> None:
    for facts in (WELL, GONE):
        run_now(cluster.write_lease(lease(facts)))
    result = invoke("clusters")
    assert result.exit_code == 0
    heading, gone, well = result.stdout.splitlines()
    assert heading.split() == ["NAME", "READY", "STALE", "SERVICES", "SLICES", "REASON", "MESSAGE"]
    assert gone.split() == ["gone", "False", "True", "0", "1", "ClusterUnreachable", "no", "[2J", "answer"]
    assert well.split() == ["well", "True", "False", "3", "2", "Ready"]
    assert result.stderr == ""


def test_one_cluster_has_its_conditions(invoke: Invoke, cluster: FakeCluster) -> None:
    for facts in (WELL, GONE):
        run_now(cluster.write_lease(lease(facts)))
    lines = [line.split()[:4] for line in invoke("clusters", "gone").stdout.splitlines()]
    assert lines[1] == ["Accepted", "True", "Accepted", "2023-11-14T22:13:20Z"]
    assert [line[0] for line in lines[1:]] == ["Accepted", "Ready", "Synced", "Stale"]


def test_json_has_the_same(invoke: Invoke, cluster: FakeCluster) -> None:
    run_now(cluster.write_lease(lease(WELL)))
    (found,) = json.loads(invoke("clusters", "--output", "json").stdout)["clusters"]
    assert (found["name"], found["services"], found["slices"]) == ("well", 3, 2)
    assert [one["type"] for one in found["conditions"]] == ["Accepted", "Ready", "Synced", "Stale"]


def test_leases_of_others_and_garbage_are_passed_over(invoke: Invoke, cluster: FakeCluster) -> None:
    run_now(cluster.write_lease(LeaseRecord(namespace="datum-router", name="cluster-x", holder="somebody")))
    good = lease(WELL)
    broken = msgspec.structs.replace(good, annotations={**good.annotations, CONDITIONS_ANNOTATION: "\x1b{"})
    run_now(cluster.write_lease(broken))
    result = invoke("clusters")
    assert result.exit_code == 0
    assert result.stdout == "no cluster is joined in namespace datum-router\n"


def test_a_cluster_that_is_not_there_is_bad_input(invoke: Invoke) -> None:
    result = invoke("clusters", "b", "-n", "system")
    assert result.exit_code == 2
    assert "cluster b: discovery has told nothing of it in namespace system" in result.stderr


def test_a_right_that_is_missing_is_said(invoke: Invoke, cluster: FakeCluster) -> None:
    cluster.fail("list_leases", ClusterForbidden("list leases: the API answered 403", status=403))
    result = invoke("clusters")
    assert result.exit_code == 1
    assert "error: list leases: the API answered 403" in result.stderr


@pytest.mark.parametrize(
    ("leader", "expected"),
    [
        (None, "router-discovery has not run yet in namespace datum-router: it has no lease router-discovery"),
        ({"holder": ""}, "router-discovery does not run in namespace datum-router since 2023-11-14T22:13:20Z"),
        (
            {"renewed_at": T0 - 3600},
            "router-discovery does not run in namespace datum-router since 2023-11-14T21:13:20Z",
        ),
    ],
)
def test_reports_that_nobody_keeps_are_told_as_such(
    invoke: Invoke, cluster: FakeCluster, leader: dict[str, object] | None, expected: str
) -> None:
    there = cluster.leases["datum-router", "router-discovery"]
    run_now(cluster.delete_lease(there))
    if leader is not None:
        run_now(cluster.write_lease(msgspec.structs.replace(LEADER, **leader)))
    run_now(cluster.write_lease(lease(WELL)))
    result = invoke("clusters")
    assert result.exit_code == 0
    assert f"warning: {expected}" in " ".join(result.stderr.split())
    assert "what is shown is what it said last" in result.stderr
    assert "well" in result.stdout
    assert expected in json.loads(invoke("clusters", "--output", "json").stdout)["discovery"]
