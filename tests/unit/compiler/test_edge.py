"""What VPCIngresses ask of listeners: whose hosts, whose routes, which gateways, what is said of conflicts."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from datum_router.model.listener import ListenerMode
from datum_router.reasons import Reason

CERT = b"-----BEGIN CERTIFICATE-----\nQ0VSVA==\n-----END CERTIFICATE-----\n"
KEY = b"-----BEGIN PRIVATE KEY-----\nS0VZ\n-----END PRIVATE KEY-----\n"
OLD, YOUNG = "2026-01-01T00:00:00Z", "2026-05-01T00:00:00Z"
RULES = [{"path": "/", "service": {"name": "my-api", "namespace": "default"}}]


def secret(name: str = "cert") -> dict[str, Any]:
    content = {"tls.crt": base64.b64encode(CERT).decode(), "tls.key": base64.b64encode(KEY).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": content}


def edge(kit: Any, name: str, host: str, created: str = "", namespace: str = "default", **spec: Any) -> dict[str, Any]:
    made = kit.obj("VPCIngress", name, {"host": host, "rules": RULES, **spec}, created=created)
    made["metadata"]["namespace"] = namespace
    return dict(made)


def listener(protocol: str, port: int = 9000, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "one", "port": port, "protocol": protocol, **more}]


def reasons(result: Any) -> list[tuple[str, str, Reason]]:
    return [(item.object, item.path, item.reason) for item in result.diagnostics]


EXPORTED = {"exportTo": {"namespaces": "All"}}


def test_a_host_of_a_port_is_its_oldest_ingresses_and_another_namespace_loses_it(bench: Any, kit: Any) -> None:
    old = edge(kit, "old", "a.test", OLD, "one")
    young = edge(kit, "young", "a.test", YOUNG, "two", hosts=["b.test"])
    result = bench().compile(kit.service(**EXPORTED), old, young)
    assert reasons(result) == [("vpcingress two/young", "spec.host", Reason.HOSTNAME_CONFLICT)]
    hosts = {rule.route: rule.hostnames for rule in result.data.rules}
    assert hosts == {"ingress:one/old": ("a.test",), "ingress:two/young": ("b.test",)}
    (http,) = result.data.listeners
    assert [(one.owner, one.hostnames) for one in http.policies] == [
        ("one/old", ("a.test",)),
        ("two/young", ("b.test",)),
    ]
    # On a port of its own it may have the name.
    apart = bench().compile(
        kit.service(**EXPORTED), old, edge(kit, "young", "a.test", YOUNG, "two", listeners=listener("HTTP"))
    )
    assert reasons(apart) == []


def test_within_a_namespace_paths_add_up_and_the_settings_of_the_older_one_hold(bench: Any, kit: Any) -> None:
    old = edge(kit, "old", "a.test", OLD, tls={"secretName": "cert"}, hsts={})
    young = edge(kit, "young", "a.test", YOUNG, tls={"secretName": "cert"})
    result = bench().compile(kit.service(), secret(), old, young)
    assert ("vpcingress default/young", "spec.host", Reason.HOSTNAME_CONFLICT) in reasons(result)
    https = next(item for item in result.data.listeners if item.tls)
    assert [(one.owner, one.hostnames) for one in https.tls] == [("default/old", ("a.test",))]
    assert [one.hsts for one in https.policies] == ["max-age=31536000"]
    same = bench().compile(
        kit.service(), secret(), old, edge(kit, "young", "a.test", YOUNG, tls={"secretName": "cert"}, hsts={})
    )
    assert all(reason is not Reason.HOSTNAME_CONFLICT for _, _, reason in reasons(same))


@pytest.mark.parametrize(
    ("old", "young"),
    [
        ("HTTP", "HTTPS"),
        ("HTTPS", "HTTP"),
        ("TLS", "HTTPS"),
        ("HTTP", "TLS"),
        ("TCP", "HTTP"),
        ("HTTP", "TCP"),
        ("TCP", "TCP"),
    ],
)
def test_a_port_speaks_what_its_oldest_ingress_says(bench: Any, kit: Any, old: str, young: str) -> None:
    def made(name: str, protocol: str, created: str) -> dict[str, Any]:
        tls = {"HTTPS": {"secretName": "cert"}, "TLS": {"mode": "passthrough"}}.get(protocol)
        return edge(kit, name, f"{name}.test", created, listeners=listener(protocol), **({"tls": tls} if tls else {}))

    result = bench().compile(kit.service(), secret(), made("old", old, OLD), made("young", young, YOUNG))
    assert reasons(result) == [("vpcingress default/young", "spec.listeners[0].port", Reason.PROTOCOL_CONFLICT)]
    assert [item.name for item in result.data.listeners] == [f"{old.lower()}-9000"]


def test_a_listener_may_have_an_address_which_all_that_share_its_port_must_name(bench: Any, kit: Any) -> None:
    one = edge(kit, "one", "a.test", OLD, listeners=listener("HTTP", address="192.0.2.1"))
    same = edge(kit, "same", "b.test", YOUNG, listeners=listener("HTTP", address="192.0.2.1"))
    other = edge(kit, "other", "c.test", YOUNG, listeners=listener("HTTP"))
    result = bench().compile(kit.service(), one, same, other)
    (opened,) = result.data.listeners
    assert (opened.name, opened.host, opened.hostnames) == ("http-9000-192.0.2.1", "192.0.2.1", ("a.test", "b.test"))
    assert reasons(result) == [("vpcingress default/other", "spec.listeners[0].port", Reason.PROTOCOL_CONFLICT)]


def test_settings_of_a_whole_port_are_the_oldest_ingresses(bench: Any, kit: Any) -> None:
    client = {"proxyProtocol": True, "trustedProxies": ["10.0.0.0/8"]}
    one = edge(kit, "one", "a.test", OLD, clientIP=client)
    two = edge(kit, "two", "b.test", YOUNG)
    result = bench().compile(kit.service(), one, two)
    (http,) = result.data.listeners
    assert (http.has_proxy_protocol, http.trusted_proxies, http.trusted_hops) == (True, ("10.0.0.0/8",), 0)
    assert reasons(result) == [("vpcingress default/two", "spec", Reason.CONFLICTED)]
    (alone,) = (
        bench().compile(kit.service(), edge(kit, "one", "a.test", clientIP={"trustedProxies": ["::1"]})).data.listeners
    )
    assert alone.trusted_hops == 1, "one hop, if nothing is said of how many"


# --- whose routes -------------------------------------------------------------------------------------------------


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def route_in(kit: Any, where: str, **spec: Any) -> dict[str, Any]:
    destinations = [{"vpcServiceRef": {"name": "my-api", "namespace": "default"}}]
    made = kit.route("api", destinations=destinations, **spec)
    made["metadata"]["namespace"] = where
    return dict(made)


PARENT = [{"name": "edge", "namespace": "default"}]


@pytest.mark.parametrize(
    ("allowed", "admitted"),
    [
        (None, {"default", "shop", "strange"}),
        ({"namespaces": "All"}, {"default", "shop", "strange"}),
        ({"namespaces": "Same"}, {"default"}),
        ({"namespaces": "Selector", "selector": {"matchLabels": {"team": "shop"}}}, {"shop"}),
        (
            {"namespaces": "Selector", "selector": {"matchLabels": {"kubernetes.io/metadata.name": "strange"}}},
            {"strange"},
        ),
    ],
)
@pytest.mark.parametrize("is_named", [True, False], ids=["parentRefs", "no parentRefs"])
def test_allowed_routes_keeps_others_out_whether_they_name_it_or_not(
    bench: Any, kit: Any, allowed: dict[str, Any] | None, admitted: set[str], is_named: bool
) -> None:
    one = bench()
    spaces = [namespace("default"), namespace("shop", team="shop")]
    ingress = edge(kit, "edge", "a.test", **({"allowedRoutes": allowed} if allowed else {}))
    for where in ("default", "shop", "strange"):
        route = route_in(kit, where, hostnames=["a.test"], **({"parentRefs": PARENT} if is_named else {}))
        result = one.compile(kit.service(**EXPORTED), *spaces, ingress, route)
        served = any(rule.route == f"{where}/api" for rule in result.data.rules)
        assert served == (where in admitted), where
        told = (f"vpcroute {where}/api", Reason.NOT_ALLOWED_BY_LISTENERS) in [
            (item.object, item.reason) for item in result.diagnostics
        ]
        assert told != served
        one.delete(route)


def test_routes_without_parents_are_looked_at_again_when_a_port_is_closed_to_them(bench: Any, kit: Any) -> None:
    one = bench()
    route = route_in(kit, "strange")
    one.compile(kit.service(**EXPORTED), edge(kit, "edge", "a.test"), route)
    closed = one.compile(edge(kit, "edge", "a.test", allowedRoutes={"namespaces": "Same"}))
    assert [rule.route for rule in closed.data.rules] == ["ingress:default/edge"]
    # Another port beside, open to all: there it is served.
    other = one.compile(edge(kit, "other", "b.test", listeners=listener("HTTP")))
    assert {rule.route: rule.listeners for rule in other.data.rules}["strange/api"] == ("http-9000",)
    opened = one.compile(edge(kit, "edge", "a.test"))
    assert {rule.route: rule.listeners for rule in opened.data.rules}["strange/api"] == ()


def test_a_rule_may_name_a_route_in_place_of_a_service(bench: Any, kit: Any) -> None:
    rules = [{"vpcRouteRef": {"name": "api"}}, {"vpcRouteRef": {"name": "none"}}]
    one = edge(kit, "one", "a.test")
    two = edge(kit, "two", "b.test", listeners=listener("HTTP"), rules=rules, allowedRoutes={"namespaces": "Same"})
    result = bench().compile(kit.service(), one, two, kit.route("api", parentRefs=[{"name": "one"}]))
    rule = next(rule for rule in result.data.rules if rule.route == "default/api")
    assert (set(rule.hostnames), set(rule.listeners)) == ({"a.test", "b.test"}, {"http-8080", "http-9000"})
    assert reasons(result) == [("vpcingress default/two", "spec.rules[1].vpcRouteRef.name", Reason.VPC_ROUTE_NOT_FOUND)]


def test_a_route_of_another_namespace_has_to_consent(bench: Any, kit: Any) -> None:
    rules = [{"vpcRouteRef": {"name": "api", "namespace": "shop"}}]
    one = bench()
    route = route_in(kit, "shop", parentRefs=[{"name": "none"}])
    ingress = edge(kit, "edge", "a.test", rules=rules)
    refused = one.compile(kit.service(**EXPORTED), ingress, route)
    assert ("vpcingress default/edge", "spec.rules[0].vpcRouteRef.name", Reason.REF_NOT_PERMITTED) in reasons(refused)
    assert refused.data.rules == ()
    source = {"group": "router.datum.net", "kind": "VPCIngress", "namespace": "default"}
    target = {"group": "router.datum.net", "kind": "VPCRoute"}
    grant = {
        "apiVersion": "gateway.networking.k8s.io/v1beta1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "g", "namespace": "shop"},
        "spec": {"from": [source], "to": [target]},
    }
    assert [rule.route for rule in one.compile(grant).data.rules] == ["shop/api"]


# --- which gateways -----------------------------------------------------------------------------------------------


def test_a_gateway_opens_what_selects_it_and_nothing_is_wrong_with_the_rest(bench: Any, kit: Any) -> None:
    here = edge(kit, "here", "a.test", gatewaySelector={"matchLabels": {"edge": "public"}})
    there = edge(
        kit, "there", "b.test", listeners=listener("HTTP"), gatewaySelector={"matchLabels": {"edge": "private"}}
    )
    routes = [kit.route(name, match={"pathPrefix": "/r"}, parentRefs=[{"name": name}]) for name in ("here", "there")]
    result = bench(gateway_labels={"edge": "public"}).compile(kit.service(), here, there, *routes)
    assert [item.name for item in result.data.listeners] == ["http-8080"]
    assert {rule.route for rule in result.data.rules} == {"ingress:default/here", "default/here"}
    assert result.diagnostics == ()
    unlabelled = bench(gateway_labels={}).compile(kit.service(), here, there)
    assert unlabelled.data.listeners == ()
    controller = bench().compile(kit.service(), here, there)
    assert len(controller.data.listeners) == 2, "who is no gateway compiles all"


# --- bytes that are carried on ------------------------------------------------------------------------------------


def test_streams_take_rules_for_everything_and_tcp_services_nothing_else(bench: Any, kit: Any) -> None:
    rules = [{"path": "/", "service": {"name": "tcp"}}, {"path": "/shop", "service": {"name": "my-api"}}]
    listeners = [{"name": "web", "port": 80, "protocol": "HTTP"}, {"name": "tls", "port": 443, "protocol": "TLS"}]
    ingress = edge(kit, "edge", "a.test", rules=rules, listeners=listeners, tls={"mode": "passthrough"})
    tcp = kit.service("tcp", protocol="TCP")
    result = bench().compile(kit.service(), tcp, ingress)
    assert {rule.destinations[0].service: rule.listeners for rule in result.data.rules} == {
        "default/tcp": ("tls-443",),
        "default/my-api": ("http-80",),
    }
    assert [(item.path, str(item.severity)) for item in result.diagnostics] == [("spec.rules[1].path", "warning")]
    assert [item.mode for item in result.data.listeners] == [ListenerMode.HTTP, ListenerMode.PASSTHROUGH]
    # Where nothing but HTTP is spoken a service of TCP is an error, for rules and for routes.
    plain = edge(kit, "edge", "a.test", rules=rules[:1])
    route = kit.route("api", destinations=[{"vpcServiceRef": {"name": "tcp"}}])
    wrong = bench().compile(kit.service(), tcp, plain, route)
    assert {(item.object, item.reason, str(item.severity)) for item in wrong.diagnostics} == {
        ("vpcingress default/edge", Reason.INVALID_VALUE, "error"),
        ("vpcroute default/api", Reason.INVALID_VALUE, "error"),
    }
    assert [rule.destinations[0].problem for rule in wrong.data.rules] == [Reason.INVALID_VALUE]


def test_a_path_on_a_port_where_nobody_sees_paths_is_an_error(bench: Any, kit: Any) -> None:
    rules = [{"path": "/shop", "service": {"name": "my-api"}}]
    result = bench().compile(kit.service(), edge(kit, "edge", "a.test", rules=rules, listeners=listener("TCP")))
    assert reasons(result) == [("vpcingress default/edge", "spec.rules[0].path", Reason.INVALID_VALUE)]
    assert result.data.rules == ()


HEADER_FILTER = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x"]}}


@pytest.mark.parametrize(
    ("spec", "path", "is_served"),
    [
        ({}, "", True),
        ({"match": {"pathPrefix": "/", "sourceCIDRs": ["10.0.0.0/8"]}}, "", True),
        ({"match": {"pathPrefix": "/shop"}}, "spec.match", False),
        ({"matches": [{}, {"methods": ["GET"]}]}, "spec.matches[1]", False),
        ({"filters": [HEADER_FILTER]}, "spec.filters", True),
        ({"timeouts": {"request": "1s"}}, "spec.timeouts", True),
    ],
)
def test_what_a_route_says_of_requests_is_told_where_nobody_reads_any(
    bench: Any, kit: Any, spec: dict[str, Any], path: str, is_served: bool
) -> None:
    tcp = kit.service("tcp", protocol="TCP")
    ingress = edge(kit, "edge", "a.test", rules=[], listeners=listener("TLS"), tls={"mode": "passthrough"})
    destinations = [{"vpcServiceRef": {"name": "tcp"}}]
    route = kit.route("api", destinations=destinations, parentRefs=[{"name": "edge"}], **spec)
    result = bench().compile(tcp, ingress, route)
    assert [item.path for item in result.diagnostics] == ([path] if path else [])
    assert bool(result.data.rules) is is_served


def test_the_access_log_of_bytes_is_the_ingresses_too(bench: Any, kit: Any, plugins: Any) -> None:
    from datum_router.compiler.linker import Linker
    from datum_router.compiler.streamlink import stream_head

    tcp = kit.service("tcp", protocol="TCP")
    quiet = {"accessLog": {"enabled": False}, "rules": [{"service": {"name": "tcp"}}]}
    one = edge(kit, "one", "a.test", listeners=listener("TCP"), **quiet)
    two = edge(kit, "two", "b.test", listeners=listener("TLS", 9001), tls={"mode": "passthrough"}, **quiet)
    loud = edge(
        kit, "loud", "c.test", listeners=listener("TLS", 9001), tls={"mode": "passthrough"}, rules=quiet["rules"]
    )
    snapshot = Linker(plugins).link(bench().compile(tcp, one, two, loud).data)
    by_name = {item.name: item for item in snapshot.data.listeners}

    def is_logged(name: str, host: str) -> bool | None:
        rule = snapshot.match_stream(stream_head(by_name[name], server_name=host, client_ip="10.0.0.1"))
        return None if rule is None else rule.is_logged

    assert [is_logged("tcp-9000", ""), is_logged("tls-9001", "b.test"), is_logged("tls-9001", "c.test")] == [
        False,
        False,
        True,
    ]
    assert is_logged("tls-9001", "unknown.test") is None


@pytest.mark.parametrize(
    ("reason", "young"),
    [
        (Reason.INVALID_CERTIFICATE_REF, {"tls": {"secretName": "none"}, "listeners": listener("HTTPS")}),
        (Reason.PROTOCOL_CONFLICT, {"tls": {"secretName": "cert"}, "listeners": listener("HTTPS", 8080)}),
        (Reason.HOSTNAME_CONFLICT, {"namespace": "two", "host": "a.test"}),
    ],
    ids=lambda value: str(value) if isinstance(value, Reason) else "",
)
def test_rules_of_an_ingress_without_any_listener_are_served_nowhere(
    bench: Any, kit: Any, reason: Reason, young: dict[str, Any]
) -> None:
    """A rule that names no listener is served on all of them: theirs must not come to that."""
    old = edge(kit, "old", "a.test", OLD)
    result = bench().compile(
        kit.service(**EXPORTED), secret(), old, edge(kit, "young", **{"host": "b.test", "created": YOUNG, **young})
    )
    assert reason in [item.reason for item in result.diagnostics]
    assert {rule.route for rule in result.data.rules} == {"ingress:default/old"}
    assert all(rule.listeners for rule in result.data.rules)
