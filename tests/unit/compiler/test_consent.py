"""References to other namespaces: who consents, how, and that consent which is withdrawn acts at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

OURS = "router.datum.net"
SPEC = {"destinations": [{"vpcServiceRef": {"name": "my-api", "namespace": "prod"}}]}


def grant(
    name: str = "consent",
    *,
    namespace: str = "prod",
    sources: tuple[tuple[str, str, str], ...] = ((OURS, "VPCRoute", "default"),),
    targets: tuple[Mapping[str, str], ...] = ({"group": OURS, "kind": "VPCService"},),
    version: str = "v1beta1",
) -> dict[str, Any]:
    """Return a ReferenceGrant; `sources` are (group, kind, namespace)."""
    return {
        "apiVersion": f"gateway.networking.k8s.io/{version}",
        "kind": "ReferenceGrant",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "from": [dict(zip(("group", "kind", "namespace"), source, strict=True)) for source in sources],
            "to": [dict(target) for target in targets],
        },
    }


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "namespace": "", "labels": labels}}


def problem_of(result: Any) -> str:
    """Return why the rule of the route or ingress that crosses namespaces is not served."""
    (rule,) = (rule for rule in result.data.rules if rule.destinations[0].service == "prod/my-api")
    return str(rule.destinations[0].problem)


def test_a_service_of_another_namespace_needs_its_consent_and_both_ways_are_named(bench: Any, kit: Any) -> None:
    result = bench().compile(kit.service(namespace="prod"), kit.obj("VPCRoute", "api", SPEC))
    (found,) = result.diagnostics
    assert found.reason == "RefNotPermitted"
    assert found.path == "spec.destinations[0].vpcServiceRef.name"
    assert found.message == "vpcservice prod/my-api does not consent to references from VPCRoutes of namespace default"
    assert found.hint == (
        "set spec.exportTo of the vpcservice, or add a ReferenceGrant to namespace prod, from VPCRoute "
        "(router.datum.net) of namespace default to VPCService (router.datum.net)"
    )
    assert problem_of(result) == "RefNotPermitted"


def test_a_namespace_needs_no_consent_of_its_own(bench: Any, kit: Any) -> None:
    route = kit.obj("VPCRoute", "api", SPEC, namespace="prod")
    assert not bench().compile(kit.service(namespace="prod", exportTo={"namespaces": "Same"}), route).diagnostics


@pytest.mark.parametrize(
    ("export", "labels", "is_permitted"),
    [
        ({"namespaces": "Same"}, {}, False),
        ({"namespaces": "All"}, {}, True),
        ({"namespaces": "Selector", "selector": {"matchLabels": {"team": "a"}}}, {"team": "a"}, True),
        ({"namespaces": "Selector", "selector": {"matchLabels": {"team": "a"}}}, {"team": "b"}, False),
        ({"namespaces": "Selector", "selector": {"matchLabels": {"team": "a"}}}, None, False),
        ({"namespaces": "Selector", "selector": {}}, None, True),
        (
            {"namespaces": "Selector", "selector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}},
            None,
            True,
        ),
        (
            {
                "namespaces": "Selector",
                "selector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]},
            },
            {"team": "b"},
            True,
        ),
        (
            {"namespaces": "Selector", "selector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}},
            {},
            False,
        ),
    ],
)
def test_export_says_whose_routes_may_use_a_service(
    bench: Any, kit: Any, export: Mapping[str, Any], labels: Mapping[str, str] | None, is_permitted: bool
) -> None:
    objects = [kit.service(namespace="prod", exportTo=export), kit.obj("VPCRoute", "api", SPEC)]
    if labels is not None:
        objects.append(namespace("default", **labels))
    assert problem_of(bench().compile(*objects)) == ("" if is_permitted else "RefNotPermitted")


@pytest.mark.parametrize(
    ("one", "is_permitted"),
    [
        (grant(), True),
        (grant(version="v1"), True),
        (grant(targets=({"group": OURS, "kind": "VPCService", "name": "my-api"},)), True),
        (grant(targets=({"group": OURS, "kind": "VPCService", "name": "other"},)), False),
        (grant(targets=({"group": "", "kind": "Service"},)), False),
        (grant(targets=({"group": "", "kind": "VPCService"},)), False),
        (grant(sources=((OURS, "VPCIngress", "default"),)), False),
        (grant(sources=((OURS, "VPCRoute", "other"),)), False),
        (grant(sources=(("gateway.networking.k8s.io", "VPCRoute", "default"),)), False),
        (grant(sources=((OURS, "VPCRoute", "other"), (OURS, "VPCRoute", "default"))), True),
        (grant(namespace="default"), False),
    ],
)
def test_a_grant_permits_what_it_names_and_nothing_else(
    bench: Any, kit: Any, one: Mapping[str, Any], is_permitted: bool
) -> None:
    result = bench().compile(kit.service(namespace="prod"), kit.obj("VPCRoute", "api", SPEC), one)
    assert problem_of(result) == ("" if is_permitted else "RefNotPermitted")


def test_a_grant_acts_when_it_comes_and_when_it_goes_and_touches_no_other_route(bench: Any, kit: Any) -> None:
    one = bench()
    route, own = kit.obj("VPCRoute", "api", SPEC), kit.route("own", "mine", hostnames=["own.test"])
    first = one.compile(kit.service(namespace="prod"), kit.service("mine"), route, own)
    assert problem_of(first) == "RefNotPermitted"
    second = one.compile(grant())
    assert problem_of(second) == ""
    assert not second.diagnostics
    one.delete(grant())
    third = one.compile()
    assert problem_of(third) == "RefNotPermitted"
    rules = [{rule.id: rule for rule in result.data.rules}["default/own#0"] for result in (first, second, third)]
    assert rules[0] is rules[1] is rules[2]


def test_a_namespace_that_loses_a_label_loses_the_consent(bench: Any, kit: Any) -> None:
    one = bench()
    export = {"namespaces": "Selector", "selector": {"matchLabels": {"team": "a"}}}
    service = kit.service(namespace="prod", exportTo=export)
    assert problem_of(one.compile(service, kit.obj("VPCRoute", "api", SPEC), namespace("default", team="a"))) == ""
    assert problem_of(one.compile(namespace("default", team="b"))) == "RefNotPermitted"
    assert problem_of(one.compile(namespace("default", team="a"))) == ""
    one.delete(namespace("default"))
    assert problem_of(one.compile()) == "RefNotPermitted"


def test_an_ingress_needs_consent_as_an_ingress(bench: Any, kit: Any) -> None:
    rules = [{"path": "/", "service": {"name": "my-api", "namespace": "prod"}}]
    ingress = kit.obj("VPCIngress", "edge", {"host": "a.test", "rules": rules})
    one = bench()
    assert problem_of(one.compile(kit.service(namespace="prod"), ingress, grant())) == "RefNotPermitted"
    permitted = one.compile(grant(sources=((OURS, "VPCIngress", "default"),)))
    assert problem_of(permitted) == ""
    one.delete(grant())
    assert problem_of(one.compile()) == "RefNotPermitted"


def test_a_binding_needs_a_grant_because_it_gets_the_services_traffic(bench: Any, kit: Any) -> None:
    spec = {"serviceRef": {"name": "api"}, "vpcServiceRef": {"name": "my-api", "namespace": "prod"}}
    binding = kit.obj("ServiceBinding", "bind", spec)
    one = bench()
    result = one.compile(kit.service(namespace="prod", exportTo={"namespaces": "All"}), binding)
    (found,) = result.diagnostics
    assert (found.object, found.reason) == ("servicebinding default/bind", "RefNotPermitted")
    assert found.hint == (
        "add a ReferenceGrant to namespace prod, from ServiceBinding (router.datum.net) of namespace default "
        "to VPCService (router.datum.net)"
    )
    assert not one.compile(grant(sources=((OURS, "ServiceBinding", "default"),))).diagnostics
    one.delete(grant())
    assert one.reasons(one.compile()) == ["RefNotPermitted"]


def test_a_grant_with_more_than_a_schema_allows_is_refused(bench: Any, kit: Any) -> None:
    many = tuple((OURS, "VPCRoute", f"n{number}") for number in range(17))
    result = bench().compile(grant(sources=many))
    (found,) = result.diagnostics
    assert found.object == "referencegrant prod/consent"
    assert found.path == "spec.from"
