"""The comparison of what was done with what may be done, on a few lines that a real API server wrote."""

from __future__ import annotations

import json
from pathlib import Path

from tests.manifests.documents import MANIFESTS, Document, documents
from tests.manifests.rights import Grant, Use, read_audit, read_grants, ungranted, unused

CONTROLLER = "system:serviceaccount:datum-router:router-controller"
GATEWAY = "system:serviceaccount:datum-router:router-gateway"
DISCOVERY = "system:serviceaccount:datum-router:router-discovery"
REMOTE_READER = "system:serviceaccount:datum-router:router-remote-reader"
SAMPLE = Path(__file__).with_name("audit-sample.jsonl").read_text().splitlines()
RECORD = read_audit(SAMPLE, (CONTROLLER, GATEWAY))
ROLES = documents(MANIFESTS / "rbac" / "rbac.yaml")
SECRETS = documents(MANIFESTS / "examples" / "gateway-secret-access.yaml")
COORDINATION = "coordination.k8s.io"


def grants(*parts: list[Document]) -> frozenset[Grant]:
    return read_grants((item for part in parts for item in part), (CONTROLLER, GATEWAY))


def test_every_request_for_a_resource_is_found_once() -> None:
    assert sorted(str(use) for use in RECORD.uses) == [
        "router-controller create events.events.k8s.io in default",
        "router-controller create leases.coordination.k8s.io in datum-router",
        "router-controller get leases.coordination.k8s.io router-controller in datum-router",
        "router-controller list leases.coordination.k8s.io in datum-router",
        "router-controller list vpcroutes.router.datum.net in all namespaces",
        "router-controller patch leases.coordination.k8s.io router-controller in datum-router",
        "router-controller patch vpcroutes/status.router.datum.net api-routes in default",
        "router-controller watch vpcroutes.router.datum.net in all namespaces",
        "router-gateway list secrets in default",
        "router-gateway list secrets secure-tls in default",
        "router-gateway list vpcroutes.router.datum.net in all namespaces",
        "router-gateway watch vpcroutes.router.datum.net in all namespaces",
    ]


def test_what_was_refused_is_told_apart_from_what_admission_refuses() -> None:
    assert RECORD.refused == {Use(GATEWAY, "list", "", "secrets", "default", "")}
    refused_by_admission = {
        "stage": "ResponseComplete",
        "verb": "create",
        "user": {"username": GATEWAY},
        "objectRef": {"resource": "leases", "namespace": "datum-router", "apiGroup": COORDINATION},
        "responseStatus": {"code": 403},
        "annotations": {"authorization.k8s.io/decision": "allow"},
    }
    record = read_audit([json.dumps(refused_by_admission)], (GATEWAY,))
    assert record.uses == {Use(GATEWAY, "create", COORDINATION, "leases", "datum-router", "")}
    assert record.refused == frozenset()


def test_other_users_are_left_out() -> None:
    assert {use.user for use in read_audit(SAMPLE, (GATEWAY,)).uses} == {GATEWAY}


def test_what_no_role_gives_is_named() -> None:
    everything = Use(GATEWAY, "list", "", "secrets", "default", "")
    by_name = Use(GATEWAY, "list", "", "secrets", "default", "secure-tls")
    assert ungranted(RECORD.uses, grants(ROLES)) == [everything, by_name]
    assert ungranted(RECORD.uses, grants(ROLES, SECRETS)) == [everything]


def test_a_right_in_one_namespace_or_to_one_name_covers_no_other() -> None:
    known = grants(ROLES, SECRETS)
    for use in (
        Use(CONTROLLER, "patch", COORDINATION, "leases", "kube-system", "router-controller"),
        Use(CONTROLLER, "patch", COORDINATION, "leases", "datum-router", "another"),
        Use(GATEWAY, "list", "", "secrets", "default", "another"),
        Use(GATEWAY, "list", "", "secrets", "production", "secure-tls"),
        Use(GATEWAY, "patch", "router.datum.net", "vpcroutes/status", "default", "api-routes"),
        Use(CONTROLLER, "patch", "router.datum.net", "vpcroutes", "default", "api-routes"),
    ):
        assert ungranted([use], known) == [use]


def test_names_never_let_a_creation_through() -> None:
    named = Grant(CONTROLLER, "create", COORDINATION, "leases", "datum-router", "router-controller", "Role x")
    (creation,) = [use for use in RECORD.uses if use.verb == "create" and use.resource == "leases"]
    assert ungranted([creation], [named]) == [creation]


def test_what_nobody_asked_for_is_named() -> None:
    left = {str(grant) for grant in unused(grants(ROLES, SECRETS), RECORD.uses)}
    assert "router-gateway watch secrets secure-tls in default by Role router-gateway-secrets" in left
    assert "router-controller list pods in all namespaces by ClusterRole datum-router-read" in left
    assert not [text for text in left if "vpcroutes" in text and " get " not in text]


def test_a_role_that_is_bound_in_a_namespace_is_a_right_in_that_namespace() -> None:
    role = {
        "kind": "ClusterRole",
        "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}],
    }
    binding = {
        "kind": "RoleBinding",
        "metadata": {"name": "reader", "namespace": "production"},
        "roleRef": {"kind": "ClusterRole", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "router-gateway", "namespace": "datum-router"}],
    }
    assert grants([role, binding]) == {Grant(GATEWAY, "list", "", "pods", "production", "", "ClusterRole reader")}


def test_what_discovery_did_here_and_in_another_cluster_is_covered_by_its_roles() -> None:
    here, there = (read_audit(SAMPLE, (user,)) for user in (DISCOVERY, REMOTE_READER))
    assert sorted(str(use) for use in here.uses) == [
        "router-discovery create leases.coordination.k8s.io in datum-router",
        "router-discovery delete endpointslices.discovery.k8s.io api-8520fa2396-0 in shop",
        "router-discovery delete leases.coordination.k8s.io cluster-b in datum-router",
        "router-discovery get leases.coordination.k8s.io router-discovery in datum-router",
        "router-discovery list leases.coordination.k8s.io in datum-router",
        "router-discovery list namespaces kube-system in all namespaces",
        "router-discovery list secrets in datum-router",
        "router-discovery patch endpointslices.discovery.k8s.io api-8520fa2396-0 in shop",
        "router-discovery patch leases.coordination.k8s.io cluster-b in datum-router",
        "router-discovery patch leases.coordination.k8s.io router-discovery in datum-router",
        "router-discovery watch secrets in datum-router",
    ]
    assert ungranted(here.uses, read_grants(ROLES, (DISCOVERY,))) == []
    known = read_grants(documents(MANIFESTS / "examples" / "remote-reader-access.yaml"), (REMOTE_READER,))
    assert ungranted(there.uses, known) == []
    for use in (
        Use(DISCOVERY, "list", "", "secrets", "shop", ""),
        Use(DISCOVERY, "list", "", "namespaces", "", ""),
        Use(DISCOVERY, "patch", "", "secrets", "datum-router", "b"),
        Use(REMOTE_READER, "list", "", "namespaces", "", "default"),
        Use(REMOTE_READER, "list", "", "secrets", "datum-router", ""),
        Use(REMOTE_READER, "list", "router.datum.net", "vpcroutes", "", ""),
    ):
        assert ungranted([use], [*known, *read_grants(ROLES, (DISCOVERY,))]) == [use]
