"""Our CRDs as users meet them: applied, explained, listed, and with a status that only its own road writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from datum_router.manifests import schema
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import GROUP
from datum_router.manifests.table import ResourceKind
from tests.cluster.control_plane import REPOSITORY, ControlPlane

CRDS = REPOSITORY / "manifests" / "crds"
OURS = f"apiVersion: {GROUP}/"
EXAMPLES = [path for path in sorted((REPOSITORY / "manifests" / "examples").glob("*.yaml")) if OURS in path.read_text()]
KINDS = pytest.mark.parametrize("kind", OWN_KINDS, ids=lambda kind: kind.kind)
GOOD = REPOSITORY / "tests" / "conformance" / "manifests" / "good"

NOW = "2026-01-01T00:00:00Z"


def condition(name: str, status: str = "True") -> dict[str, object]:
    return {
        "type": name,
        "status": status,
        "reason": "Because",
        "message": "for people",
        "lastTransitionTime": NOW,
        "observedGeneration": 1,
    }


CONDITIONS = [condition("Accepted"), condition("Programmed", "False")]
STATUSES: dict[str, dict[str, object]] = {
    "VPCService": {
        "observedGeneration": 1,
        "ready": True,
        "endpointCount": 2,
        "lastUpdateTime": NOW,
        "endpoints": [
            {
                "ip": "fd00::1",
                "port": 8080,
                "ready": True,
                "healthy": False,
                "reason": "Ejected",
                "location": "DFW",
                "source": "attachment",
                "lastHeartbeat": NOW,
            }
        ],
        "vpc": {"name": "prod", "namespace": "network", "identifier": "0000000004d2"},
        "attachmentIdentifier": "002a",
        "conditions": CONDITIONS,
    },
    "VPCRoute": {
        "observedGeneration": 1,
        "ready": True,
        "activeDestinations": 1,
        "conditions": CONDITIONS,
        "parents": [
            {
                "parentRef": {"kind": "VPCIngress", "name": "shop", "sectionName": "https"},
                "controllerName": "router.datum.net/router-controller",
                "conditions": CONDITIONS,
            }
        ],
    },
    "ServiceBinding": {
        "observedGeneration": 1,
        "active": True,
        "syncedEndpoints": 1,
        "lastSyncTime": NOW,
        "endpoints": ["[fd00::1]:8080"],
        "conditions": CONDITIONS,
    },
    "VPCIngress": {
        "observedGeneration": 1,
        "ready": True,
        "loadBalancerIp": "192.0.2.1",
        "activeBackends": 1,
        "ingressAddresses": [{"ip": "192.0.2.1", "hostname": "edge.example.com"}],
        "listeners": [{"name": "https", "attachedRoutes": 1, "conditions": CONDITIONS}],
        "conditions": CONDITIONS,
    },
}
"""A status with every field, of each kind that can be created."""


def test_kubectl_applies_all_crds_as_users_do(plane: ControlPlane) -> None:
    done = plane.kubectl("apply", "-f", str(CRDS))
    assert done.returncode == 0, done.stderr
    for kind in OWN_KINDS:
        assert f"{kind.plural}.{GROUP}" in done.stdout


def test_the_server_has_nothing_against_the_schemas(plane: ControlPlane) -> None:
    for kind in OWN_KINDS:
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.plural}.{GROUP}"
        found = plane.request("GET", path).json()["status"]["conditions"]  # type: ignore[index]
        states = {item["type"]: (item["status"], item["message"]) for item in found}
        assert states["Established"][0] == "True"
        assert states.get("NonStructuralSchema", ("False", ""))[0] == "False", states


def test_the_rules_would_not_be_too_expensive_if_everything_were_served(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below what is not served no rules are run; serving it must not need other limits."""
    monkeypatch.setattr(schema, "NOT_SERVED", {})
    crds = {"apiVersion": "v1", "kind": "List", "items": [schema.crd(kind) for kind in OWN_KINDS]}
    assert "not served yet" not in json.dumps(crds["items"]).replace("only VPCIngress is served yet", "")
    done = plane.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=json.dumps(crds))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_kubectl_applies_each_example(plane: ControlPlane, path: Path) -> None:
    documents = [item for item in yaml.safe_load_all(path.read_text()) if item]
    ours = [item for item in documents if item["apiVersion"].startswith(f"{GROUP}/")]
    for item in ours:
        plane.make_namespace(item["metadata"].get("namespace", "default"))
    text = "---\n".join(json.dumps(item) + "\n" for item in ours)
    done = plane.kubectl("apply", "--validate=strict", "--dry-run=server", "-f", "-", stdin=text)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(ours)


def test_kubectl_explains_fields(plane: ControlPlane) -> None:
    match = plane.kubectl("explain", "vpcroute.spec.match").stdout
    assert "FIELD: match" in match
    assert "Conditions; every request if neither this nor `matches` is given." in match
    assert "pathPrefix" in match
    assert "Path prefix by whole segments: `/api` matches `/api` and `/api/x`" in " ".join(match.split())
    weight = " ".join(plane.kubectl("explain", "vpcrt.spec.destinations.weight").stdout.split())
    assert "From 0 to 1000000. Default: 100." in weight
    tunnel = " ".join(plane.kubectl("explain", "vpcservice.spec.tunnel").stdout.split())
    assert "Not served yet:" in tunnel
    protocol = plane.kubectl("explain", "vpcsvc.spec.protocol").stdout.split()
    assert protocol[protocol.index("ENUM:") :][:5] == ["ENUM:", "HTTP", "HTTPS", "H2C", "GRPC"]
    endpoints = plane.kubectl("explain", "vpcservice.status.endpoints").stdout
    assert "Whether where it comes from says that it takes traffic." in endpoints


@KINDS
def test_kubectl_explains_every_field(plane: ControlPlane, kind: ResourceKind) -> None:
    for part in ("spec", "status"):
        done = plane.kubectl("explain", f"{kind.short_names[0]}.{part}", "--recursive")
        assert done.returncode == 0, done.stderr
        assert "<no description>" not in plane.kubectl("explain", f"{kind.plural}.{part}").stdout


def create(plane: ControlPlane, kind: ResourceKind, namespace: str) -> str:
    """Create the smallest good object of a kind and return its path."""
    (path,) = GOOD.glob(f"*{kind.kind.removeprefix('VPC').removeprefix('Service').lower() or 'service'}-smallest.yaml")
    raw = yaml.safe_load(path.read_text())
    assert raw["kind"] == kind.kind
    collection = f"/apis/{GROUP}/v1alpha1/namespaces/{namespace}/{kind.plural}"
    answer = plane.request("POST", collection, raw)
    assert answer.status == 201, answer.body
    return f"{collection}/{raw['metadata']['name']}"


def apply_status(plane: ControlPlane, kind: ResourceKind, path: str, status: object, *, manager: str = "test") -> int:
    name = path.rpartition("/")[2]
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name}, "status": status}
    query = f"fieldManager={manager}&fieldValidation=Strict"
    answer = plane.request("PATCH", f"{path}/status?{query}", body, content_type="application/apply-patch+yaml")
    return answer.status


@pytest.mark.parametrize("kind", [kind for kind in OWN_KINDS if kind.kind in STATUSES], ids=lambda kind: kind.kind)
def test_a_whole_status_is_kept_and_shown_in_columns(
    plane: ControlPlane, namespace: Callable[[], str], kind: ResourceKind
) -> None:
    there = namespace()
    path = create(plane, kind, there)
    assert apply_status(plane, kind, path, STATUSES[kind.kind]) == 200
    found = plane.request("GET", path).json()
    assert found["status"] == STATUSES[kind.kind]
    assert found["metadata"]["generation"] == 1  # type: ignore[index]

    table = plane.kubectl("get", kind.plural, namespace=there).stdout.splitlines()
    narrow = [column.name.upper() for column in kind.columns if not column.is_wide]
    assert table[0].split() == ["NAME", *narrow]
    wide = plane.kubectl("get", kind.plural, "-o", "wide", namespace=there).stdout.splitlines()
    assert sorted(wide[0].split()) == sorted(["NAME", *(column.name.upper() for column in kind.columns)])
    start = wide[0].index("PROGRAMMED")
    assert wide[1][start:].split()[0] == "False"
    start = wide[0].index("ACCEPTED")
    assert wide[1][start:].split()[0] == "True"


def test_a_status_is_written_by_its_own_road_only(plane: ControlPlane, namespace: Callable[[], str]) -> None:
    kind = next(kind for kind in OWN_KINDS if kind.kind == "VPCService")
    path = create(plane, kind, namespace())
    found = plane.request("GET", path).json()
    found["status"] = {"ready": True}
    assert plane.request("PUT", path, found).status == 200
    assert "status" not in plane.request("GET", path).json()


def test_conditions_of_several_writers_stand_side_by_side(plane: ControlPlane, namespace: Callable[[], str]) -> None:
    kind = next(kind for kind in OWN_KINDS if kind.kind == "VPCRoute")
    path = create(plane, kind, namespace())
    assert apply_status(plane, kind, path, {"conditions": [condition("Accepted")]}, manager="one") == 200
    assert apply_status(plane, kind, path, {"conditions": [condition("Programmed")]}, manager="two") == 200
    status = plane.request("GET", path).json()["status"]
    assert [item["type"] for item in status["conditions"]] == ["Accepted", "Programmed"]  # type: ignore[index]


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [condition("Accepted", "Maybe")]},
        {"conditions": [condition("Accepted") | {"reason": "because of this"}]},
        {"conditions": [condition("Accepted") | {"lastTransitionTime": "yesterday"}]},
        {"endpointCount": -1},
        {"endpoints": [{"ip": "10.0.0.1"}] * 1001},
        {"conditionz": []},
    ],
    ids=["status", "reason", "time", "count", "many", "unknown"],
)
def test_a_status_that_is_none_is_refused(
    plane: ControlPlane, namespace: Callable[[], str], status: dict[str, object]
) -> None:
    kind = next(kind for kind in OWN_KINDS if kind.kind == "VPCService")
    path = create(plane, kind, namespace())
    # Of an unknown field server-side apply says 500, as of all that has no place in the schema.
    assert apply_status(plane, kind, path, status) == (500 if "conditionz" in status else 422)
    assert "status" not in plane.request("GET", path).json()
