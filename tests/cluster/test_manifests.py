"""kubectl installs the router as the README says, on a cluster that has nothing of it yet."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.control_plane import CONTROLLER, DISCOVERY, GATEWAY, ControlPlane, ProgramsMissing, running
from tests.cluster.foreign import foreign_crds
from tests.cluster.stage import crd, install_crd
from tests.manifests.documents import MANIFESTS, NAMESPACE, REPOSITORY, Document, files, of_kind
from tests.manifests.rights import read_grants

STEPS = ("crds/", "rbac/rbac.yaml", "deployments/router-controller.yaml", "examples/basic-example.yaml")
"""What the README applies, in this order."""
PATIENCE_S = 30.0
POD = f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All"
DEPLOYMENTS = [document for _, document in of_kind("Deployment")]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Give a cluster that has just been made, and then installed into by the steps of the README."""
    try:
        with running(tmp_path_factory.mktemp("fresh")) as one:
            for step in STEPS:
                applied = one.kubectl("apply", "-f", str(MANIFESTS / step))
                assert applied.returncode == 0, f"{step}: {applied.stderr}"
                # A pod that the namespace would not admit is but a warning on its Deployment.
                assert "Warning" not in applied.stderr, f"{step}: {applied.stderr}"
            yield one
    except ProgramsMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def test_the_steps_of_the_readme_are_those_that_are_tested() -> None:
    text = (REPOSITORY / "README.md").read_text()
    places = [text.find(f"kubectl apply -f manifests/{step}\n") for step in STEPS]
    assert -1 not in places
    assert places == sorted(places)


def test_what_the_steps_made_is_there(fresh: ControlPlane) -> None:
    for path in (
        f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/router-controller",
        f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/router-controller",
        f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies/router-controller",
        "/apis/router.datum.net/v1alpha1/namespaces/default/vpcroutes/api-routes",
        "/apis/router.datum.net/v1alpha1/namespaces/default/servicebindings/api-binding",
    ):
        assert fresh.request("GET", path).status == 200, path


def versions_of(plane: ControlPlane) -> str:
    found = plane.kubectl(
        *("get", "-f", str(MANIFESTS / "rbac/rbac.yaml"), "-f", str(MANIFESTS / "deployments/router-controller.yaml")),
        *("-o", "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.resourceVersion}{'\\n'}{end}"),
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_applying_again_changes_nothing(fresh: ControlPlane) -> None:
    before = versions_of(fresh)
    assert len(before.splitlines()) > 10
    for step in STEPS:
        again = fresh.kubectl("apply", "-f", str(MANIFESTS / step))
        assert again.returncode == 0, again.stderr
    assert versions_of(fresh) == before


def test_every_file_can_be_applied(fresh: ControlPlane) -> None:
    # Kinds that examples need and neither Kubernetes nor the router brings.
    install_crd(fresh, crd("gateway.networking.k8s.io", "ReferenceGrant", "referencegrants", "v1beta1"))
    for raw in foreign_crds():
        install_crd(fresh, raw)
    for path in files():
        applied = fresh.kubectl("apply", "-f", str(path))
        assert applied.returncode == 0, f"{path}: {applied.stderr}"
        assert "Warning" not in applied.stderr, f"{path}: {applied.stderr}"


def test_the_folder_of_examples_can_be_applied_in_one_go(fresh: ControlPlane) -> None:
    applied = fresh.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(MANIFESTS / "examples"))
    assert applied.returncode == 0, applied.stderr


def test_kustomize_builds_what_the_steps_apply_and_the_gateway(fresh: ControlPlane) -> None:
    applied = fresh.kubectl("apply", "-k", str(MANIFESTS))
    assert applied.returncode == 0, applied.stderr
    assert "deployment.apps/router-gateway" in applied.stdout
    built = fresh.kubectl("kustomize", str(MANIFESTS))
    assert built.returncode == 0, built.stderr
    made = sorted((item["kind"], item["metadata"]["name"]) for item in yaml.safe_load_all(built.stdout))
    plain = sorted(
        (item["kind"], item["metadata"]["name"])
        for path in files()
        if path.parent.name in ("crds", "rbac", "policies", "deployments")
        for item in yaml.safe_load_all(path.read_text())
    )
    assert made == plain


def test_the_overlay_for_some_namespaces_gives_no_right_elsewhere(fresh: ControlPlane) -> None:
    built = fresh.kubectl("kustomize", str(MANIFESTS / "overlays/namespaced"))
    assert built.returncode == 0, built.stderr
    fresh.make_namespace("production")
    applied = fresh.kubectl("apply", "--dry-run=server", "-f", "-", stdin=built.stdout)
    assert applied.returncode == 0, applied.stderr
    items = list(yaml.safe_load_all(built.stdout))
    grants = read_grants(items, (CONTROLLER, GATEWAY))
    everywhere = {grant.resource for grant in grants if not grant.namespace}
    assert everywhere == {"namespaces", "locations", "servinglocations"}
    assert {grant.namespace for grant in grants} == {"", "default", "production", NAMESPACE}
    for item in items:
        if item["kind"] == "Deployment":
            (container,) = item["spec"]["template"]["spec"]["containers"]
            assert {"name": "DATUM_ROUTER_NAMESPACES", "value": "default,production"} in container["env"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda item: str(item["metadata"]["name"]))
def test_the_pods_of_deployments_are_admitted_by_pod_security_restricted(
    fresh: ControlPlane, deployment: Document
) -> None:
    template = deployment["spec"]["template"]
    pod = {
        "metadata": {"name": "one", "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    }
    answer = fresh.request("POST", POD, pod)
    assert answer.status == 201, answer.body
    careless = {**pod, "spec": {**template["spec"], "securityContext": {}}}
    answer = fresh.request("POST", POD, careless)
    assert answer.status == 403
    assert b"violates PodSecurity" in answer.body


def can_i(plane: ControlPlane, user: str, verb: str, path: str, *, namespace: str = "") -> bool:
    """Ask the API server whether a user may do something: `group/resource[/subresource][:name]`."""
    group, _, rest = path.partition("/")
    resource, _, name = rest.partition(":")
    resource, _, subresource = resource.partition("/")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": resource,
        "subresource": subresource,
        "name": name,
        "namespace": namespace,
    }
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": ["system:serviceaccounts"], "resourceAttributes": attributes},
    }
    answer = plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
    assert answer.status == 201, answer.body
    status = answer.json()["status"]
    assert isinstance(status, dict)
    return bool(status["allowed"])


def test_the_accounts_may_do_their_work_and_no_more(fresh: ControlPlane) -> None:
    for user in (CONTROLLER, GATEWAY):
        assert can_i(fresh, user, "watch", "router.datum.net/vpcroutes")
        assert not can_i(fresh, user, "list", "/secrets")
        assert not can_i(fresh, user, "get", "/secrets:any", namespace="kube-system")
        assert not can_i(fresh, user, "create", "/pods", namespace=NAMESPACE)
        assert not can_i(fresh, user, "patch", "router.datum.net/vpcroutes", namespace="default")
    status = "router.datum.net/vpcroutes/status"
    assert can_i(fresh, CONTROLLER, "patch", status, namespace="default")
    assert not can_i(fresh, GATEWAY, "patch", status, namespace="default")
    leader = "coordination.k8s.io/leases:router-controller"
    assert can_i(fresh, CONTROLLER, "patch", leader, namespace=NAMESPACE)
    assert not can_i(fresh, CONTROLLER, "patch", "coordination.k8s.io/leases:another", namespace=NAMESPACE)
    assert not can_i(fresh, CONTROLLER, "patch", leader, namespace="kube-system")


def test_the_example_opens_one_secret_to_the_gateway_and_no_other(fresh: ControlPlane) -> None:
    applied = fresh.kubectl("apply", "-f", str(MANIFESTS / "examples/gateway-secret-access.yaml"))
    assert applied.returncode == 0, applied.stderr
    secrets = "/api/v1/namespaces/default/secrets"
    named = f"{secrets}?fieldSelector=metadata.name%3Dsecure-tls"
    assert fresh.request("GET", named, user=GATEWAY).status == 200
    assert fresh.request("GET", f"{named}&watch=true&timeoutSeconds=1", user=GATEWAY).status == 200
    assert fresh.request("GET", f"{secrets}?fieldSelector=metadata.name%3Danother", user=GATEWAY).status == 403
    assert fresh.request("GET", secrets, user=GATEWAY).status == 403
    assert fresh.request("GET", named, user=CONTROLLER).status == 403


LEASE = """
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {{name: {name}, namespace: datum-router}}
spec: {{holderIdentity: {holder}}}
"""


def lease(plane: ControlPlane, verb: str, name: str, *, holder: str = "x", pod: str = "", user: str = GATEWAY) -> str:
    """Write a Lease as a gateway, with the token of a pod if one is named; return what kubectl says against it."""
    account = ("--as", user, "--as-group", "system:serviceaccounts", "--as-group", "system:authenticated")
    extra = ("--as-user-extra", f"authentication.kubernetes.io/pod-name={pod}") if pod else ()
    # Server-side apply would take rights that a gateway does not have.
    done = plane.kubectl(verb, *account, *extra, "-f", "-", stdin=LEASE.format(name=name, holder=holder))
    return done.stderr if done.returncode else ""


def test_the_policy_ties_a_gateway_to_its_own_lease(fresh: ControlPlane) -> None:
    applied = fresh.kubectl("apply", "-f", str(MANIFESTS / "policies"))
    assert applied.returncode == 0, applied.stderr
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    deadline = time.monotonic() + PATIENCE_S
    while not (said := lease(fresh, "create", "router-controller")):  # until the server has taken up the policy
        assert time.monotonic() < deadline
        assert fresh.request("DELETE", f"{leases}/router-controller").status == 200
    assert "found lease router-controller, expected one whose name begins with gateway-" in said
    assert not lease(fresh, "create", "gateway-a", pod="a")
    assert "found lease gateway-b, expected gateway-a, its own" in lease(fresh, "create", "gateway-b", pod="a")
    assert not lease(fresh, "create", "gateway-b", pod="b")
    assert "expected gateway-a, its own" in lease(fresh, "delete", "gateway-b", pod="a")
    assert not lease(fresh, "delete", "gateway-b", pod="b")
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "router-controller"}}
    assert fresh.request("POST", leases, body, user=CONTROLLER).status == 201
    stolen = {"spec": {"holderIdentity": "x"}}
    theft = fresh.request(
        "PATCH",
        f"{leases}/router-controller",
        stolen,
        user=GATEWAY,
        content_type="application/merge-patch+json",
    )
    assert theft.status == 422, theft.body
    assert b"expected one whose name begins with gateway-" in theft.body


def test_the_policy_ties_discovery_to_its_own_leases(fresh: ControlPlane) -> None:
    applied = fresh.kubectl("apply", "-f", str(MANIFESTS / "policies"))
    assert applied.returncode == 0, applied.stderr
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    deadline = time.monotonic() + PATIENCE_S
    while not (said := lease(fresh, "create", "router-other", user=DISCOVERY)):  # until the policy is taken up
        assert time.monotonic() < deadline
        assert fresh.request("DELETE", f"{leases}/router-other").status == 200
    assert "found lease router-other, expected router-discovery, or one whose name begins with cluster" in said
    for name in ("router-discovery", "cluster-b", "cluster.long.0123456789abcdef"):
        assert not lease(fresh, "create", name, user=DISCOVERY)
        assert not lease(fresh, "delete", name, user=DISCOVERY)
    assert "found lease gateway-x" in lease(fresh, "create", "gateway-x", user=DISCOVERY)
