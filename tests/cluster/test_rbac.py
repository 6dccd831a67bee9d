"""Controller and gateway at work under their service accounts: every right that they need is given, and every right
that is given is needed. What they did is read from the audit log of an API server of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import trustme
import yaml

from datum_router.manifests.kinds import OWN_KINDS
from tests.cluster.control_plane import CONTROLLER, GATEWAY, ControlPlane, ProgramsMissing, running
from tests.cluster.stage import Stage, binding, crd, install, install_crd, route, service, tls_secret
from tests.conftest import eventually
from tests.manifests.documents import MANIFESTS, Document, documents
from tests.manifests.rights import Grant, Record, read_audit, read_grants, ungranted, unused

USERS = (CONTROLLER, GATEWAY)
HERE = "default"
HOST = "secure.example.com"
SECRET = "secure-tls"
SECRET_ACCESS = MANIFESTS / "examples" / "gateway-secret-access.yaml"
ROLES = documents(MANIFESTS / "rbac" / "rbac.yaml") + documents(SECRET_ACCESS)
FOREIGN_KINDS = (
    ("galactic.datumapis.com", "VPC", "vpcs", "v1alpha"),
    ("galactic.datumapis.com", "VPCAttachment", "vpcattachments", "v1alpha"),
    ("gateway.networking.k8s.io", "ReferenceGrant", "referencegrants", "v1beta1"),
    ("networking.datumapis.com", "Location", "locations", "v1alpha", "Cluster"),
    ("networking.datumapis.com", "ServingLocation", "servinglocations", "v1alpha", "Cluster"),
)
NOT_USED = {
    **{
        ("router-controller", "get", kind.plural): "only if an object changed while its status was being written"
        for kind in OWN_KINDS
    },
    (
        "router-controller",
        "patch",
        "vpcegresses/status",
    ): "the short run has no VPCEgress",
    ("router-controller", "patch", "events"): "the count of an event that is repeated a minute later",
}
"""Rights that a short run does not use, by account, verb and resource: when they are used."""


def ingress() -> dict[str, object]:
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCIngress",
        "metadata": {"name": "secure", "namespace": HERE},
        "spec": {
            "host": HOST,
            "tls": {"secretName": SECRET},
            "rules": [{"path": "/", "service": {"name": "api"}}],
        },
    }


def certificate() -> dict[str, object]:
    issued = trustme.CA().issue_cert(HOST)
    return tls_secret(HERE, SECRET, issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes())


def report_version(plane: ControlPlane) -> str:
    """Return which version of the gateway's report is there; empty if none is."""
    answer = plane.request("GET", "/apis/coordination.k8s.io/v1/namespaces/datum-router/leases/gateway-gw-0")
    if answer.status == 404:
        return ""
    metadata = answer.json()["metadata"]
    assert isinstance(metadata, dict)
    return str(metadata["resourceVersion"])


def run(stage: Stage, **env: str) -> None:
    """Have both processes meet every kind that can be there, what is good and what is not, and end them."""
    plane = stage.plane
    gateway = stage.gateway("gw-0", **env)
    controller = stage.controller("controller-0", **env)
    objects = [
        service(HERE, "api", 80, address="10.0.0.1"),
        route(HERE, "api", "api", path="/api"),
        binding(HERE, "absent", "api"),
        ingress(),
    ]
    for raw in objects:
        stage.put(raw)
    for raw in objects:
        eventually(lambda raw=raw: stage.conditions(raw), f"a status of {raw['kind']}: {controller.tail()}")
    broken = stage.put(route(HERE, "broken", "absent", path="/broken"))
    eventually(lambda: said(stage, broken, "ResolvedRefs") == "False", "the missing service in the status")
    eventually(lambda: events_of(plane, "broken"), "an event about the missing service")
    eventually(lambda: report_version(plane), "the gateway's report")
    first = report_version(plane)
    stage.put(certificate())
    stage.put(route(HERE, "api", "api", path="/api/v2"))
    eventually(lambda: report_version(plane) not in ("", first), "a newer report")
    eventually(lambda: said(stage, objects[1], "Programmed") == "True", "the route in force")
    assert gateway.stop() == 0
    eventually(lambda: not report_version(plane), "the report withdrawn")
    assert controller.stop() == 0


def said(stage: Stage, raw: Mapping[str, object], condition: str) -> str:
    return stage.conditions(raw).get(condition, ("", ""))[0]


def events_of(plane: ControlPlane, name: str) -> list[object]:
    answer = plane.request("GET", f"/apis/events.k8s.io/v1/namespaces/{HERE}/events")
    items = answer.json()["items"]
    assert isinstance(items, list)
    return [item for item in items if item["regarding"].get("name") == name]


def recorded(home: Path, prepare: Callable[[ControlPlane], None], **env: str) -> Record:
    """Return what both did in a run on a cluster that keeps an audit log."""
    with running(home / "plane", audit=True) as plane:
        for foreign in FOREIGN_KINDS:
            install_crd(plane, crd(*foreign))
        prepare(plane)
        applied = plane.kubectl("apply", "-f", str(SECRET_ACCESS))
        assert applied.returncode == 0, applied.stderr
        stage = Stage(plane, home)
        stage.put(certificate())
        try:
            run(stage, **env)
        finally:
            stage.stop()
        assert plane.audit_log is not None
        return read_audit(plane.audit_log.read_text().splitlines(), USERS)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Give what both did with the rights of rbac.yaml."""
    try:
        return recorded(tmp_path_factory.mktemp("rbac"), install)
    except ProgramsMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def brief(grant: Grant) -> tuple[str, str, str]:
    return grant.user.rpartition(":")[2], grant.verb, grant.resource


def test_nothing_that_they_ask_for_is_refused(record: Record) -> None:
    assert record.uses
    assert sorted(map(str, record.refused)) == []


def test_every_right_that_they_need_is_in_the_roles(record: Record) -> None:
    assert [str(use) for use in ungranted(record.uses, read_grants(ROLES, USERS))] == []


def test_every_right_in_the_roles_is_needed(record: Record) -> None:
    left = unused(read_grants(ROLES, USERS), record.uses)
    assert [str(grant) for grant in left if brief(grant) not in NOT_USED] == []


def test_every_excuse_is_for_a_right_that_is_given() -> None:
    assert set(NOT_USED) <= set(map(brief, read_grants(ROLES, USERS)))


def test_the_controller_never_asks_for_secrets_and_the_gateway_only_by_name(record: Record) -> None:
    asked = {(use.user, use.namespace, use.name) for use in record.uses if use.resource == "secrets"}
    assert asked == {(GATEWAY, HERE, SECRET)}


def test_only_the_controller_writes_statuses(record: Record) -> None:
    written = {use.user for use in record.uses if use.resource.endswith("/status")}
    assert written == {CONTROLLER}


def test_roles_of_some_namespaces_are_enough_for_these(tmp_path: Path) -> None:
    overlay = MANIFESTS / "overlays" / "namespaced"
    built: list[Document] = []

    def install_overlay(plane: ControlPlane) -> None:
        plane.make_namespace("production")
        output = plane.kubectl("kustomize", str(overlay))
        assert output.returncode == 0, output.stderr
        built.extend(yaml.safe_load_all(output.stdout))
        applied = plane.kubectl("apply", "--server-side", "-f", "-", stdin=output.stdout)
        assert applied.returncode == 0, applied.stderr
        waited = plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        assert waited.returncode == 0, waited.stderr

    try:
        record = recorded(tmp_path, install_overlay, DATUM_ROUTER_NAMESPACES="default,production")
    except ProgramsMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    grants = read_grants([*built, *documents(SECRET_ACCESS)], USERS)
    assert sorted(map(str, record.refused)) == []
    assert [str(use) for use in ungranted(record.uses, grants)] == []
    # Nothing is asked for that concerns the whole cluster but places, and the namespaces served, each by its name.
    everywhere = {(use.resource, use.name) for use in record.uses if not use.namespace}
    places = {("locations", ""), ("servinglocations", "")}
    assert everywhere == {("namespaces", "default"), ("namespaces", "production")} | places
    left = [
        grant
        for grant in unused(grants, record.uses)
        if grant.namespace != "production" and brief(grant) not in NOT_USED
    ]
    assert [str(grant) for grant in left] == []
