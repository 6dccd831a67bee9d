"""`datum-router apply`: what is applied, what is refused where, and waiting until it is in force everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result

from datum_router.errors import ClusterConflict, ClusterForbidden, ClusterRejected, ClusterUnavailable
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import ObjectKey
from datum_router.plugins.cluster import LeaseRecord, StatusWrite
from datum_router.plugins.specs import ClusterSpec
from datum_router.reconcile.reports import GATEWAY_LABELS, REPORT_ANNOTATION, GatewayReport, encode_report
from datum_router.testing.cluster import FakeCluster, run_now
from datum_router_cli import load
from datum_router_cli.commands import cli
from datum_router_cli.plugins import installed_plugins
from datum_router_cli.rollout import State, Target, judge

Invoke = Callable[..., Result]
KINDS = {kind.kind: kind for kind in OWN_KINDS}

MANIFESTS = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: api, namespace: shop}
spec:
  match: {pathPrefix: /api}
  destinations: [{vpcServiceRef: {name: backend}}]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: backend, namespace: shop}
spec:
  port: 8080
  endpoints: [{address: 10.0.0.1}]
"""


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(namespace="shop")


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster) -> Invoke:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATUM_ROUTER_LOG", raising=False)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "all.yaml").write_text(MANIFESTS)
    spec = ClusterSpec(name="kubernetes", create=lambda _settings: cluster)
    plugins = msgspec.structs.replace(installed_plugins(), clusters={"kubernetes": spec})
    monkeypatch.setattr(load, "installed_plugins", lambda: plugins)
    return lambda *arguments: CliRunner().invoke(cli, ["apply", *arguments], prog_name="datum-router")


def conditions(generation: int, **statuses: tuple[str, str, str]) -> Mapping[str, object]:
    return {
        "conditions": [
            {"type": name, "status": status, "reason": reason, "message": message, "observedGeneration": generation}
            for name, (status, reason, message) in statuses.items()
        ]
    }


def controller(cluster: FakeCluster, **statuses: tuple[str, str, str]) -> None:
    """Have each object that changes get these conditions at once."""

    def look(raw: Mapping[str, object], is_gone: bool) -> None:
        meta = raw["metadata"]
        assert isinstance(meta, Mapping)
        kind = KINDS[str(raw["kind"])]
        wanted = conditions(int(meta["generation"]), **statuses)
        if is_gone or raw.get("status") == wanted:
            return
        key = ObjectKey(kind=kind.kind, namespace=str(meta["namespace"]), name=str(meta["name"]))
        write = StatusWrite(gvk=kind.gvk, plural=kind.plural, key=key, uid=str(meta["uid"]), status=wanted)
        run_now(cluster.write_status(write))

    cluster.watchers.append(look)


def report(cluster: FakeCluster, gateway: str, found: GatewayReport) -> None:
    record = LeaseRecord(
        namespace="datum-router",
        name=f"gateway-{gateway}",
        holder=gateway,
        labels=GATEWAY_LABELS,
        annotations={REPORT_ANNOTATION: encode_report(found)},
    )
    trio.run(cluster.write_lease, record)


def test_services_are_applied_before_the_routes_that_name_them(invoke: Invoke, cluster: FakeCluster) -> None:
    result = invoke("-f", "conf")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "vpcservice shop/backend: applied",
        "vpcroute shop/api: applied",
        "good: 2 objects applied",
    ]
    again = invoke("-f", "conf")
    assert "vpcroute shop/api: unchanged" in again.output


def test_a_namespace_is_applied_before_what_is_in_it(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "conf" / "z.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
    (tmp_path / "conf" / "a.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ca, namespace: shop}\ndata: {x: y}\n"
    )
    done = invoke("-f", "conf")
    assert done.exit_code == 0, done.output
    assert done.output.index("namespace shop") < done.output.index("configmap shop/ca")


def test_objects_without_a_namespace_go_where_the_context_or_the_option_says(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "conf" / "all.yaml").write_text(MANIFESTS.replace(", namespace: shop", ""))
    assert "vpcroute shop/api: applied" in invoke("-f", "conf").output
    assert "vpcroute other/api: applied" in invoke("-f", "conf", "-n", "other").output


def test_nothing_is_applied_of_a_directory_with_errors(invoke: Invoke, tmp_path: Path, cluster: FakeCluster) -> None:
    (tmp_path / "conf" / "bad.yaml").write_text(MANIFESTS.replace("pathPrefix", "pathPrefx").replace(": api", ": b"))
    result = invoke("-f", "conf")
    assert result.exit_code == 2
    assert "bad.yaml:5: error: vpcroute shop/b: spec.match.pathPrefx: unknown field" in result.output
    assert "nothing was applied: 2 errors" in result.output  # its copy of the service is the other one
    assert cluster.writes == []


def test_a_dry_run_changes_nothing(invoke: Invoke, cluster: FakeCluster) -> None:
    result = invoke("-f", "conf", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "vpcroute shop/api: applied (dry run)" in result.output
    assert cluster.objects("vpcroutes") == []
    assert "beside --dry-run" in invoke("-f", "conf", "--dry-run", "--wait").output


def test_kinds_that_the_router_does_not_know_are_left_to_kubectl(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "conf" / "app.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: app}\n")
    result = invoke("-f", "conf")
    assert result.exit_code == 0, result.output
    assert "deployment app: left to kubectl" in result.output


def test_what_the_api_refuses_is_shown_at_its_line_and_the_rest_is_applied(
    invoke: Invoke, cluster: FakeCluster
) -> None:
    cluster.fail("apply", ClusterRejected("invalid", status=422, causes=(("spec.port", "must be even"),)))
    result = invoke("-f", "conf")
    assert result.exit_code == 2
    assert "all.yaml:12: error: vpcservice shop/backend: spec.port: must be even" in result.output
    assert "vpcroute shop/api: applied" in result.output
    assert result.output.splitlines()[-1] == "bad: 1 error"


def test_a_conflict_says_what_takes_the_fields_over(invoke: Invoke, cluster: FakeCluster) -> None:
    cluster.fail("apply", ClusterConflict("spec.port is owned by helm", status=409))
    result = invoke("-f", "conf")
    assert result.exit_code == 2
    assert "--force-conflicts" in result.output


def test_a_missing_right_is_told_and_others_are_applied(invoke: Invoke, cluster: FakeCluster) -> None:
    cluster.fail("apply", ClusterForbidden("may not patch vpcservices", status=403))
    result = invoke("-f", "conf")
    assert result.exit_code == 1
    assert "error: vpcservice shop/backend: may not patch vpcservices" in result.output
    assert "vpcroute shop/api: applied" in result.output


def test_without_an_answer_it_stops_at_once(invoke: Invoke, cluster: FakeCluster) -> None:
    cluster.fail("apply", ClusterUnavailable("connection refused"), times=None)
    result = invoke("-f", "conf")
    assert result.exit_code == 1
    assert result.output.count("connection refused") == 1
    assert result.output.splitlines()[-1] == "bad: 1 error"


def test_it_waits_until_every_object_is_in_force(invoke: Invoke, cluster: FakeCluster) -> None:
    controller(cluster, Accepted=("True", "Accepted", ""), Programmed=("True", "Programmed", ""))
    result = invoke("-f", "conf", "--wait")
    assert result.exit_code == 0, result.output
    assert "vpcroute shop/api: in force" in result.output
    assert result.output.splitlines()[-1] == "good: 2 objects applied and in force everywhere"


@pytest.mark.parametrize(
    "conditions",
    [
        {"ResolvedRefs": ("False", "VPCServiceNotFound", "vpcservice shop/apo is not there")},
        {"Conflicted": ("True", "VPCServiceNotFound", "vpcservice shop/apo is not there")},
        {"EndpointsReady": ("False", "VPCServiceNotFound", "vpcservice shop/apo is not there")},
    ],
)
def test_what_is_in_force_and_cannot_work_is_told(
    invoke: Invoke, cluster: FakeCluster, conditions: dict[str, tuple[str, str, str]]
) -> None:
    controller(
        cluster, Accepted=("True", "Accepted", ""), Programmed=("True", "Programmed", "everywhere"), **conditions
    )
    result = invoke("-f", "conf", "--wait")
    assert result.exit_code == 0, result.output
    assert "vpcroute shop/api: in force, but VPCServiceNotFound: vpcservice shop/apo is not there" in result.output
    found = json.loads(invoke("-f", "conf", "--wait", "--output", "json").output)
    assert {"object": "vpcroute shop/api", "why": "VPCServiceNotFound: vpcservice shop/apo is not there"} in found[
        "incomplete"
    ]


def test_it_says_where_not(invoke: Invoke, cluster: FakeCluster) -> None:
    controller(cluster, Accepted=("True", "Accepted", ""), Programmed=("False", "Pending", "not in force yet on gw-b"))
    report(cluster, "gw-a", GatewayReport(digest="d1", versions={"VPCRoute": "100", "VPCService": "100"}))
    report(cluster, "gw-b", GatewayReport(digest="d0", versions={"VPCService": "100"}, problem="port 80 is taken"))
    result = invoke("-f", "conf", "--wait", "--timeout", "300ms")
    assert result.exit_code == 1, result.output
    assert "not in force everywhere after 300ms:" in result.output
    assert ["vpcroute", "shop/api", "Pending:", "not", "in"] in [
        line.split()[:5] for line in result.output.splitlines()
    ]
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.startswith("gw-")}
    assert "none" in lines["gw-a"]
    assert "vpcroute shop/api" in lines["gw-b"]
    assert "port 80 is taken" in lines["gw-b"]
    assert "vpcservice" not in lines["gw-b"]


def test_what_the_controller_refuses_is_not_waited_for(invoke: Invoke, cluster: FakeCluster) -> None:
    controller(cluster, Accepted=("False", "InvalidValue", "no such thing"))
    result = invoke("-f", "conf", "--wait", "--timeout", "1h")
    assert result.exit_code == 2
    assert "vpcroute shop/api: refused: InvalidValue: no such thing" in result.output


def test_a_right_to_look_that_is_missing_is_told_beside_what_was_applied(
    invoke: Invoke, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get(*_arguments: object) -> None:
        raise ClusterForbidden("get vpcroutes: the API answered 401: expired", status=401)

    monkeypatch.setattr(cluster, "get", get)
    done = invoke("-f", "conf", "--wait", "--timeout", "100ms")
    assert done.exit_code == 1
    assert "vpcroute shop/api: applied" in done.output
    assert "expired" in done.output


def test_without_a_controller_it_says_so(invoke: Invoke) -> None:
    result = invoke("-f", "conf", "--wait", "--timeout", "300ms", "--output", "json")
    assert result.exit_code == 1
    document = json.loads(result.output)
    assert document["ok"] is False
    assert "is router-controller running?" in document["notInForce"][0]["why"]
    assert document["gateways"] == []


@pytest.mark.parametrize("text", ["1", "soon", "-3s"])
def test_a_timeout_that_is_none_is_refused(invoke: Invoke, text: str) -> None:
    result = invoke("-f", "conf", "--wait", f"--timeout={text}")
    assert result.exit_code == 2
    assert f"--timeout: found {text!r}, expected a duration such as 10s" in result.output


TARGET = Target(
    kind=KINDS["VPCRoute"],
    key=ObjectKey(kind="VPCRoute", namespace="shop", name="api"),
    generation=3,
    version="9",
)


def test_conditions_of_an_older_generation_say_nothing() -> None:
    old = {"status": conditions(2, Accepted=("True", "Accepted", ""), Programmed=("True", "Programmed", ""))}
    assert judge(TARGET, old).state is State.WAITING
    assert judge(TARGET, None).state is State.GONE
    assert judge(TARGET, {"status": {"conditions": "x"}}).state is State.WAITING
    accepted = {"status": conditions(3, Accepted=("True", "Accepted", ""))}
    assert judge(TARGET, accepted).state is State.WAITING
