"""No role may do more than it must (threats K13): no wildcards, no ways to more rights, Secrets by name only."""

from __future__ import annotations

import pytest

from datum_router.manifests.kinds import OWN_KINDS
from tests.manifests.documents import MANIFESTS, NAMESPACE, Document, name_of, of_kind

ROLES = [document for _, document in of_kind("Role", "ClusterRole")]
BINDINGS = [document for _, document in of_kind("RoleBinding", "ClusterRoleBinding")]
WAYS_TO_MORE = {"escalate", "bind", "impersonate", "approve", "sign", "use"}
WAYS_INTO_PODS = {"pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "pods/ephemeralcontainers", "pods/log"}
WAYS_TO_TOKENS = {"serviceaccounts/token", "tokenreviews", "certificatesigningrequests"}
DISCOVERY = "router-discovery"
PLURALS = {kind.plural for kind in OWN_KINDS}

each_role = pytest.mark.parametrize("role", ROLES, ids=name_of)


@each_role
def test_no_role_has_a_wildcard_or_a_way_to_more_rights(role: Document) -> None:
    assert role["rules"]
    assert "aggregationRule" not in role
    for rule in role["rules"]:
        assert set(rule) <= {"apiGroups", "resources", "resourceNames", "verbs"}, rule
        said = [word for words in rule.values() for word in words]
        assert not [word for word in said if "*" in word], rule
        assert not set(rule["verbs"]) & WAYS_TO_MORE, rule
        assert not set(rule["resources"]) & (WAYS_INTO_PODS | WAYS_TO_TOKENS), rule
        assert all(rule[part] for part in ("apiGroups", "resources", "verbs")), rule


@each_role
def test_secrets_are_readable_only_by_name_and_in_one_namespace(role: Document) -> None:
    for rule in role["rules"]:
        if {"secrets", "configmaps"} & set(rule["resources"]):
            assert role["kind"] == "Role", rule
            if role["metadata"]["name"] == DISCOVERY:  # by label, which RBAC does not know, where nothing else is kept
                assert (role["metadata"]["namespace"], rule["resources"]) == (NAMESPACE, ["secrets"])
            else:
                assert rule.get("resourceNames"), rule
            assert set(rule["verbs"]) <= {"get", "list", "watch"}, rule


@each_role
def test_what_is_written_is_status_events_and_leases_unless_people_do_it(role: Document) -> None:
    if role["metadata"]["name"] == "datum-router-edit":
        return
    more = {"endpointslices"} if role["metadata"]["name"] == "datum-router-discovery" else set()
    for rule in role["rules"]:
        if not set(rule["verbs"]) <= {"get", "list", "watch"}:
            for resource in rule["resources"]:
                assert resource.endswith("/status") or resource in {"events", "leases"} | more


def test_bindings_name_a_role_and_service_accounts_that_are_there() -> None:
    roles = {(role["kind"], role["metadata"].get("namespace"), role["metadata"]["name"]) for role in ROLES}
    accounts = {document["metadata"]["name"] for _, document in of_kind("ServiceAccount")}
    assert BINDINGS
    for binding in BINDINGS:
        ref = binding["roleRef"]
        namespace = binding["metadata"].get("namespace") if ref["kind"] == "Role" else None
        assert (ref["kind"], namespace, ref["name"]) in roles, name_of(binding)
        for subject in binding["subjects"]:
            assert subject["kind"] == "ServiceAccount"
            assert subject["namespace"] == NAMESPACE
            assert subject["name"] in accounts, name_of(binding)


def test_service_accounts_hand_out_no_token_unasked() -> None:
    accounts = [document for _, document in of_kind("ServiceAccount")]
    assert [account["metadata"]["name"] for account in accounts] == [
        "router-remote-reader",
        "router-controller",
        "router-gateway",
        "router-discovery",
    ]
    assert all(account["automountServiceAccountToken"] is False for account in accounts)


@pytest.mark.parametrize(("name", "suffix"), [("read", ""), ("view", ""), ("edit", ""), ("controller", "/status")])
def test_roles_cover_all_five_kinds(name: str, suffix: str) -> None:
    (role,) = [role for _, role in of_kind("ClusterRole") if role["metadata"]["name"] == f"datum-router-{name}"]
    named = {
        resource
        for rule in role["rules"]
        if rule["apiGroups"] == ["router.datum.net"]
        for resource in rule["resources"]
        if resource.endswith("/status") is bool(suffix)
    }
    assert named == {plural + suffix for plural in PLURALS}


def test_people_get_their_rights_by_aggregation() -> None:
    found = {}
    for _, role in of_kind("ClusterRole", within=MANIFESTS / "rbac"):
        labels = role["metadata"]["labels"]
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        found[role["metadata"]["name"]] = {key.removeprefix(prefix) for key in labels if key.startswith(prefix)}
    assert found == {
        "datum-router-read": set(),
        "datum-router-places": set(),
        "datum-router-controller": set(),
        "datum-router-discovery": set(),
        "datum-router-cluster-id": set(),
        "datum-router-view": {"view", "edit", "admin"},
        "datum-router-edit": {"edit", "admin"},
    }


def _without_cluster_scope(rule: dict[str, list[str]]) -> dict[str, list[str]]:
    return {**rule, "resources": [resource for resource in rule["resources"] if resource != "namespaces"]}


@pytest.mark.parametrize("name", ["datum-router-read", "datum-router-controller", "datum-router-discovery"])
def test_roles_for_one_namespace_are_those_for_all_but_for_what_is_in_none(name: str) -> None:
    (everywhere,) = [role for _, role in of_kind("ClusterRole") if role["metadata"]["name"] == name]
    (somewhere,) = [role for _, role in of_kind("Role") if role["metadata"]["name"] == name]
    assert somewhere["rules"] == [_without_cluster_scope(rule) for rule in everywhere["rules"]]
