"""Discovery at work under its service accounts, here and in the cluster that it reads: every right that it needs is
given, and every right that is given is needed. What it did is read from the audit logs of two API servers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.cluster.control_plane import DISCOVERY, REMOTE_READER, ControlPlane, ProgramsMissing, running
from tests.cluster.stage import SLICES, SYSTEM, Stage, crd, install, install_crd, service
from tests.cluster.test_discovery import PATIENCE_S, kubeconfig, remote_secret
from tests.cluster.test_rbac import FOREIGN_KINDS, brief
from tests.conftest import eventually
from tests.manifests.documents import MANIFESTS, documents
from tests.manifests.rights import Record, read_audit, read_grants, ungranted, unused
from tests.processes import ServiceProcess

SHOP = "shop"
READER_ACCESS = MANIFESTS / "examples" / "remote-reader-access.yaml"
NOT_USED = {
    (
        "router-discovery",
        "create",
        "endpointslices",
    ): "asked beside `patch` for an object that is not there yet, of which the audit log names `patch` alone",
    ("router-discovery", "patch", "events"): "the count of an event that is repeated a minute later",
}
"""Rights that a short run does not show, by account, verb and resource: when they are used."""


class Recorded(NamedTuple):
    here: Record
    there: Record


def lease_of(plane: ControlPlane, cluster: str) -> dict[str, str]:
    """Return the labels of the Lease of a cluster; empty if it is not there."""
    answer = plane.request("GET", f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/cluster-{cluster}")
    if answer.status == 404:
        return {}
    metadata = answer.json()["metadata"]
    assert isinstance(metadata, dict)
    labels: dict[str, str] = metadata["labels"]
    return labels


def slices(plane: ControlPlane) -> list[object]:
    items = plane.request("GET", f"{SLICES}/namespaces/{SHOP}/endpointslices").json()["items"]
    assert isinstance(items, list)
    return items


def act(here: Stage, there: Stage, **env: str) -> None:
    """Have a daemon join a cluster, publish of it, complain of it, and let go of it."""
    export = service(SHOP, "api", 9001, address="192.0.2.7", exportTo={"clusters": "All"})
    daemon = here.discovery(DISCOVERY_INTERVAL_SECS="1", DISCOVERY_REMOVED_SECS="0", **env)
    there.put(export)
    here.put(service(SHOP, "api", discovery={"method": "endpointslice"}))
    here.put(remote_secret("b", kubeconfig(there.plane)))
    here.put(remote_secret("bad", "{]"))
    expect(lambda: bool(slices(here.plane)), "a slice", daemon)
    expect(lambda: lease_of(here.plane, "b").get("router.datum.net/ready") == "True", "b ready", daemon)
    expect(lambda: lease_of(here.plane, "bad").get("router.datum.net/ready") == "False", "bad told", daemon)
    for name in ("b", "bad"):
        here.delete(remote_secret(name, ""))
    expect(lambda: not slices(here.plane), "no slice", daemon)
    expect(lambda: not any(lease_of(here.plane, name) for name in ("b", "bad")), "no lease", daemon)
    assert daemon.stop() == 0


def expect(condition: object, what: str, daemon: ServiceProcess) -> None:
    try:
        eventually(condition, what, PATIENCE_S)  # type: ignore[arg-type]
    except AssertionError as error:
        raise AssertionError(f"{error}: {daemon.tail()}") from error


def prepare(plane: ControlPlane) -> None:
    install(plane)
    for foreign in FOREIGN_KINDS:
        install_crd(plane, crd(*foreign))
    done = plane.kubectl("apply", "-f", str(READER_ACCESS))
    assert done.returncode == 0, done.stderr
    plane.make_namespace(SHOP)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    home = tmp_path_factory.mktemp("discovery-rights")
    try:
        with running(home / "a", audit=True) as a, running(home / "b", audit=True) as b:
            for plane in (a, b):
                prepare(plane)
            here, there = Stage(a, home), Stage(b, home)
            try:
                act(here, there)
            finally:
                here.stop()
            assert a.audit_log is not None
            assert b.audit_log is not None
            yield Recorded(
                here=read_audit(a.audit_log.read_text().splitlines(), (DISCOVERY,)),
                there=read_audit(b.audit_log.read_text().splitlines(), (REMOTE_READER,)),
            )
    except ProgramsMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


GRANTS = read_grants(documents(MANIFESTS / "rbac" / "rbac.yaml"), (DISCOVERY,))
GRANTS_THERE = read_grants(documents(READER_ACCESS), (REMOTE_READER,))


def test_nothing_that_it_asks_for_is_refused(record: Recorded) -> None:
    assert record.here.uses
    assert record.there.uses
    assert sorted(map(str, record.here.refused | record.there.refused)) == []


def test_every_right_that_it_needs_is_in_the_roles(record: Recorded) -> None:
    assert [str(use) for use in ungranted(record.here.uses, GRANTS)] == []
    assert [str(use) for use in ungranted(record.there.uses, GRANTS_THERE)] == []


def test_every_right_in_the_roles_is_needed(record: Recorded) -> None:
    left = [grant for grant in unused(GRANTS, record.here.uses) if brief(grant) not in NOT_USED]
    assert [str(grant) for grant in left] == []
    assert [str(grant) for grant in unused(GRANTS_THERE, record.there.uses)] == []


def test_every_excuse_is_for_a_right_that_is_given() -> None:
    assert set(NOT_USED) <= set(map(brief, GRANTS))


def test_it_reads_no_secrets_there_and_here_those_of_its_namespace(record: Recorded) -> None:
    assert {use.namespace for use in record.here.uses if use.resource == "secrets"} == {SYSTEM}
    assert {use.verb for use in record.there.uses} == {"list", "watch"}
    assert not {use for use in record.there.uses if use.resource in ("secrets", "configmaps")}


def test_leases_that_it_writes_are_its_own(record: Recorded) -> None:
    written = {use.name for use in record.here.uses if use.resource == "leases" and use.verb in ("patch", "delete")}
    assert written == {"router-discovery", "cluster-b", "cluster-bad"}
    assert {use.namespace for use in record.here.uses if use.resource == "leases"} == {SYSTEM}


def test_roles_of_some_namespaces_are_enough_for_these(tmp_path: Path) -> None:
    try:
        with running(tmp_path / "a", audit=True) as a, running(tmp_path / "b") as b:
            for foreign in FOREIGN_KINDS:
                install_crd(a, crd(*foreign))
            for name in (SHOP, "production"):
                a.make_namespace(name)
            output = a.kubectl("kustomize", str(MANIFESTS / "overlays" / "namespaced")).stdout
            built = list(yaml.safe_load_all(output.replace("namespace: default", f"namespace: {SHOP}")))
            applied = a.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(built))
            assert applied.returncode == 0, applied.stderr
            waited = a.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
            assert waited.returncode == 0, waited.stderr
            prepare(b)
            here = Stage(a, tmp_path)
            try:
                act(here, Stage(b, tmp_path), DATUM_ROUTER_NAMESPACES=f"{SHOP},production")
            finally:
                here.stop()
            assert a.audit_log is not None
            found = read_audit(a.audit_log.read_text().splitlines(), (DISCOVERY,))
    except ProgramsMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    assert sorted(map(str, found.refused)) == []
    assert [str(use) for use in ungranted(found.uses, read_grants(built, (DISCOVERY,)))] == []
    assert {(use.resource, use.name) for use in found.uses if not use.namespace} == {("namespaces", "kube-system")}
