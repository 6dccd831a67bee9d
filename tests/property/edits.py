"""Edits of manifests of every kind that plays a part: they refer to each other, conflict, and are sometimes bad."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.meta import ObjectKey
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import Delete, SourceEvent, Upsert

# The core alone has no plugins; the full run has both.
galactic = pytest.importorskip("datum_router_galactic.plugin")
kubernetes = pytest.importorskip("datum_router_kubernetes.plugin")

NAMES = ("a", "b", "c")
NAMESPACES = ("default", "prod")
HOSTS = ("a.test", "b.test", "*.test")
OURS = "router.datum.net/v1alpha1"
GALACTIC = "galactic.datumapis.com/v1alpha"
VERSIONS = {
    "VPCService": OURS,
    "VPCRoute": OURS,
    "VPCIngress": OURS,
    "ServiceBinding": OURS,
    "VPCEgress": OURS,
    "VPC": GALACTIC,
    "VPCAttachment": GALACTIC,
    "Location": "networking.datumapis.com/v1alpha",
    "ServingLocation": "networking.datumapis.com/v1alpha",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Service": "v1",
    "Pod": "v1",
    "Secret": "v1",
    "ConfigMap": "v1",
    "Namespace": "v1",
    "ReferenceGrant": "gateway.networking.k8s.io/v1",
}
# What most of the interesting edits are about comes up more often.
KINDS = (
    *VERSIONS,
    *("VPCService", "VPCService", "VPCRoute", "VPCRoute", "VPCRoute", "VPCIngress"),
    *("ServiceBinding", "ServiceBinding", "Service", "EndpointSlice", "Pod", "ReferenceGrant"),
    *("VPC", "VPCAttachment", "VPCAttachment", "EndpointSlice"),
)

names = st.sampled_from(NAMES)
references = st.fixed_dictionaries({"name": names}, optional={"namespace": st.sampled_from(NAMESPACES)})
addresses = st.sampled_from(("10.0.0.1", "10.0.0.2", "fd00::1"))


SELECTORS = ({"matchLabels": {"team": "a"}}, {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]})


def all_plugins() -> PluginSet:
    """Return the built-in plugins and those whose resolvers find endpoints."""
    modules = {
        "builtin": builtin,
        "galactic": galactic,
        "kubernetes": kubernetes,
    }
    return load_plugins(
        [
            Candidate(entry_point=name, distribution="datum-router", load=lambda module=module: module)  # type: ignore[misc]  # the loop's module
            for name, module in modules.items()
        ]
    )


def some(*values: object) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def few(items: st.SearchStrategy[Any], *, least: int = 0, most: int = 2) -> st.SearchStrategy[list[Any]]:
    return st.lists(items, min_size=least, max_size=most)


def services() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"port": some(80, 80, 81, 70_000)},
        optional={
            "endpoints": few(
                st.fixed_dictionaries(
                    {"address": addresses},
                    optional={"priority": some(0, 1), "locationRef": st.fixed_dictionaries({"name": names})},
                )
            ),
            "vpcAttachmentRef": references | some({"name": "4d2-2a"}),
            "vpcAttachmentSelector": some(*SELECTORS, {}),
            "locationRef": st.fixed_dictionaries({"name": names}),
            "exportTo": some(
                {"namespaces": "All"}, {"namespaces": "Selector", "selector": {"matchLabels": {"team": "a"}}}
            ),
            "protocol": some("HTTP", "HTTPS"),
            "tls": st.fixed_dictionaries(
                {"mode": st.just("Simple")},
                optional={
                    "caCertificateRefs": few(st.fixed_dictionaries({"name": names, "kind": st.just("ConfigMap")}))
                },
            ),
            "healthCheck": st.just({"passive": {}}),
            "topology": some({"zone": "one"}, {"zone": "two"}),
        },
    )


def routes() -> st.SearchStrategy[dict[str, Any]]:
    match = st.fixed_dictionaries(
        {"pathPrefix": some("/", "/", "/a", "/a/b", "bad")},
        optional={"methods": st.just(["GET"]), "headers": some({"x-request-id": "1"}, {"x": "y"})},
    )
    parent = st.fixed_dictionaries(
        {"name": names},
        optional={"namespace": st.sampled_from(NAMESPACES), "sectionName": some("x", "y"), "port": some(8080, 8081)},
    )
    destination = st.fixed_dictionaries(
        {"vpcServiceRef": references}, optional={"weight": some(0, 1, 3), "port": some(80, 99), "priority": some(0, 1)}
    )
    balancing = some(
        {},
        {},
        {"loadBalancing": "no-such-balancer"},
        {"loadBalancing": "consistent-hash", "loadBalancingConfig": {"hashOn": "Header", "headerName": "x"}},
        {"loadBalancing": "source-ip-hash"},
        {"locality": {"mode": "PreferLocal", "topologyKey": "zone"}},
    )
    return st.tuples(
        st.fixed_dictionaries(
            {"matches": few(match, least=1), "destinations": few(destination, least=1)},
            optional={
                "hostnames": st.lists(st.sampled_from(HOSTS), max_size=2, unique=True),
                "parentRefs": few(parent),
            },
        ),
        balancing,
    ).map(lambda parts: parts[0] | parts[1])


def ingresses() -> st.SearchStrategy[dict[str, Any]]:
    listener = st.fixed_dictionaries(
        {"name": some("x", "y"), "port": some(8080, 8081), "protocol": some("HTTP", "HTTP", "HTTPS")}
    )
    rule = st.fixed_dictionaries({"path": some("/a", "/"), "service": references})
    return st.fixed_dictionaries(
        {"host": st.sampled_from(HOSTS), "listeners": few(listener), "rules": few(rule)},
        optional={
            "tls": st.fixed_dictionaries({"secretName": names}),
            "maxRequestBodyBytes": some(1, 2),
        },
    )


def bindings() -> st.SearchStrategy[dict[str, Any]]:
    # Without autoSync endpoints are those of the first resolution, which a new process cannot know.
    return st.fixed_dictionaries(
        {"serviceRef": references, "vpcServiceRef": references, "autoSync": st.just(True)},
        optional={
            "addressSource": some("PodIP", "Attachment"),
            "podSelector": some(*SELECTORS),
            "addressFamily": some("IPv4", "IPv6"),
            "publishNotReadyAddresses": st.just(True),
            "portMappings": some([{"servicePort": 81, "vpcPort": 80}], [{"servicePort": 80}, {"servicePort": 81}]),
        },
    )


def held_bindings() -> st.SearchStrategy[dict[str, Any]]:
    """Draw bindings without autoSync whose status records their endpoints, so that every process knows them."""
    condition = {"type": "Synced", "status": "True", "reason": "Paused", "observedGeneration": 1}
    spec = st.fixed_dictionaries({"serviceRef": references, "vpcServiceRef": references, "autoSync": st.just(False)})
    listed = some(["10.9.0.1:80"], ["10.9.0.2:80", "[fd00::9]:81"])
    return st.tuples(spec, listed).map(
        lambda parts: {
            "spec": parts[0],
            "status": {"endpoints": parts[1], "syncedEndpoints": len(parts[1]), "conditions": [condition]},
        }
    )


def grants() -> st.SearchStrategy[dict[str, Any]]:
    source = st.fixed_dictionaries(
        {
            "group": st.just("router.datum.net"),
            "kind": some("VPCRoute", "VPCIngress", "ServiceBinding", "VPCService"),
            "namespace": st.sampled_from(NAMESPACES),
        }
    )
    target = st.tuples(
        some(("router.datum.net", "VPCService"), ("", "Service"), ("galactic.datumapis.com", "VPCAttachment")),
        st.none() | names,
    ).map(lambda parts: {"group": parts[0][0], "kind": parts[0][1]} | ({"name": parts[1]} if parts[1] else {}))
    return st.fixed_dictionaries({"from": few(source, least=1, most=3), "to": few(target, least=1, most=3)})


def bodies(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Draw everything of an object but what identifies it."""
    specs = {
        "VPCService": services,
        "VPCRoute": routes,
        "VPCIngress": ingresses,
        "ServiceBinding": bindings,
        "ReferenceGrant": grants,
        "VPCEgress": lambda: some({"sourceVpcAttachment": "a"}, {}),
        "VPC": lambda: some({"networks": ["10.0.0.0/31"]}, {"networks": ["fd00::/8", "bad"]}, {}),
        "Location": lambda: some(
            {"topology": {"zone": "one"}},
            {"topology": {"zone": "two"}, "coordinates": {"latitude": "50.1", "longitude": "8"}},
            {"topology": {"zone": "two"}, "coordinates": {"latitude": "north", "longitude": 8}},
        ),
        "ServingLocation": lambda: some({"topology": {"zone": "one"}}, {"topology": {"zone": "two"}}),
        "Service": lambda: st.fixed_dictionaries({"ports": few(st.fixed_dictionaries({"port": some(80, 81)}))}),
        "VPCAttachment": lambda: st.fixed_dictionaries(
            {
                "vpc": st.fixed_dictionaries({}, optional={"name": names, "namespace": st.sampled_from(NAMESPACES)}),
                "interface": st.fixed_dictionaries({"addresses": few(some("10.1.0.1/24", "10.1.0.2", "bad"))}),
            },
            optional={
                "routes": some([{"destination": "10.0.0.2/31", "via": "10.1.0.1"}], [{"destination": "10.0.0.2/31"}])
            },
        ),
    }
    if kind == "ServiceBinding":
        return st.fixed_dictionaries({"spec": bindings()}) | held_bindings()
    if kind in specs:
        spec = st.fixed_dictionaries({"spec": specs[kind]()})
        if kind in ("VPC", "VPCAttachment"):
            status = st.fixed_dictionaries(
                {"ready": st.booleans()}, optional={"identifier": some("0000000004d2", "002a", 1234)}
            )
            return st.tuples(spec, status).map(lambda parts: parts[0] | {"status": parts[1]})
        return spec
    if kind == "EndpointSlice":
        endpoint = st.fixed_dictionaries(
            {"addresses": st.lists(addresses, min_size=1, max_size=1)},
            optional={
                "conditions": some(
                    {"ready": True}, {"ready": False}, {"ready": False, "serving": True, "terminating": True}
                ),
                "targetRef": st.fixed_dictionaries({"kind": st.just("Pod"), "name": names}),
                "zone": some("one", "two"),
            },
        )
        return st.fixed_dictionaries({"endpoints": few(endpoint), "ports": some([{"port": 8000}], [{"port": 8001}])})
    if kind == "Secret":
        return some({"stringData": {"tls.crt": "crt", "tls.key": "key"}}, {"stringData": {"tls.crt": "new"}}, {})
    return (
        st.fixed_dictionaries({"data": some({"ca.crt": "one"}, {"ca.crt": "two"}, {})})
        if kind == "ConfigMap"
        else (st.just({}))
    )


@st.composite
def edits(draw: st.DrawFn, files: tuple[str, ...] = ("f.yaml",)) -> SourceEvent:
    """Draw an event: most objects come or change, some go."""
    kind, name, namespace = draw(st.sampled_from(KINDS)), draw(names), draw(st.sampled_from(NAMESPACES))
    if draw(st.integers(0, 4)) == 0:
        if kind == "Namespace":
            name, namespace = namespace, ""
        if kind == "ServingLocation":
            namespace = ""
        if kind == "Location":
            namespace = draw(some("", "prod"))
        return Delete(source="test", key=ObjectKey(kind=kind, namespace=namespace, name=name))
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    created = draw(some("", "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "no time"))
    if created:
        metadata["creationTimestamp"] = created
    if kind == "ServiceBinding":
        metadata["generation"] = 1
    if kind == "EndpointSlice":
        label = draw(some("kubernetes.io/service-name", "kubernetes.io/service-name", "galactic.datum.net/tenant-id"))
        metadata["labels"] = {label: draw(names if label.startswith("kube") else some("jU-G", "jU-H", "a-b", "a"))}
    if kind == "Location":
        metadata["namespace"] = draw(some("", "prod"))
    if kind == "VPCAttachment" and draw(st.booleans()):
        metadata["annotations"] = {"router.datum.net/location": draw(names)}
    if kind in ("Namespace", "Pod", "VPCAttachment"):
        metadata["labels"] = draw(some({}, {"team": "a"}, {"team": "b"}))
    if kind == "Namespace":
        metadata["name"], metadata["namespace"] = namespace, ""
    if kind == "Pod" and draw(st.booleans()):
        metadata["annotations"] = {"k8s.v1alpha.galactic.datumapis.com/vpc-attachment": draw(names)}
    raw = {"apiVersion": VERSIONS[kind], "kind": kind, "metadata": metadata} | draw(bodies(kind))
    line = draw(st.integers(1, 3))
    return Upsert(source="test", raw=raw, origin=Origin(source="test", file=draw(st.sampled_from(files)), line=line))
