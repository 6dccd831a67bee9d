import base64
from typing import Any

import pytest

from datum_router.compiler.ingress import intersect
from datum_router.reasons import Reason

CERT = "-----BEGIN CERTIFICATE-----\nQ0VSVA==\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nS0VZ\n-----END PRIVATE KEY-----\n"


def secret(name: str = "edge-tls", **data: str) -> dict[str, Any]:
    content = data or {"tls.crt": CERT, "tls.key": KEY}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in content.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}


def edge(kit: Any, name: str = "edge", host: str = "a.test", created: str = "", **spec: Any) -> dict[str, Any]:
    rules = [{"path": "/shop", "service": {"name": "my-api"}}]
    return kit.obj("VPCIngress", name, {"host": host, "rules": rules, **spec}, created=created)


def test_defaults_are_http_8080_and_https_8443_with_tls(bench: Any, kit: Any) -> None:
    plain = bench().compile(kit.service(), edge(kit)).data
    assert [(item.name, item.port) for item in plain.listeners] == [("http-8080", 8080)]
    both = bench().compile(kit.service(), secret(), edge(kit, tls={"secretName": "edge-tls"})).data
    assert [(item.name, bool(item.tls)) for item in both.listeners] == [("http-8080", False), ("https-8443", True)]
    assert both.listeners[1].tls[0].cert_pem == CERT
    assert "S0VZ" not in repr(both.listeners[1])


def test_its_rules_serve_its_hosts_on_its_listeners(bench: Any, kit: Any) -> None:
    data = bench().compile(kit.service(), edge(kit, hosts=["*.b.test"])).data
    (rule,) = data.rules
    assert rule.hostnames == ("a.test", "*.b.test")
    assert rule.listeners == ("http-8080",)
    assert rule.match.path.value == "/shop"


@pytest.mark.parametrize(
    ("items", "is_reference"), [([], True), ([secret(**{"tls.crt": CERT})], False)], ids=["missing", "half"]
)
def test_a_certificate_that_is_not_there_opens_no_https_listener(
    bench: Any, kit: Any, items: list[Any], is_reference: bool
) -> None:
    result = bench().compile(kit.service(), *items, edge(kit, tls={"secretName": "edge-tls"}))
    assert [item.name for item in result.data.listeners] == ["http-8080"]
    (found,) = result.diagnostics
    assert found.reason is Reason.INVALID_CERTIFICATE_REF
    assert found.is_reference is is_reference


def test_a_secret_that_served_stays_in_force_when_the_ingress_comes_to_name_an_unusable_one(
    bench: Any, kit: Any
) -> None:
    one, old = bench(), secret("old")
    one.compile(kit.service(), old, edge(kit, tls={"secretName": "old"}))
    result = one.compile(edge(kit, tls={"secretName": "new"}))
    https = next(item for item in result.data.listeners if item.tls)
    assert https.tls[0].cert_pem == CERT
    (found,) = result.diagnostics
    assert found.message == "no usable secret default/new is there; old, named before, stays in force"
    assert one.compile(secret("unrelated")).data is result.data
    # A source that reads what is named, and no more, takes the old one away then; nobody may have deleted it.
    one.delete(old | {"metadata": {"name": "old", "namespace": "default"}})
    assert one.compile().data is result.data
    assert any(item.tls for item in one.compile(secret("new")).data.listeners)
    one.delete(old | {"metadata": {"name": "new", "namespace": "default"}})  # taking it away is not a slip
    assert [item.name for item in one.compile().data.listeners] == ["http-8080"]


def test_ingresses_share_a_port_and_keep_their_certificates(bench: Any, kit: Any) -> None:
    one = edge(kit, "one", "a.test", tls={"secretName": "edge-tls"})
    two = edge(kit, "two", "b.test", tls={"secretName": "other"})
    data = bench().compile(kit.service(), secret(), secret("other"), one, two).data
    https = next(item for item in data.listeners if item.tls)
    assert [binding.hostnames for binding in https.tls] == [("a.test",), ("b.test",)]
    assert https.hostnames == ("a.test", "b.test")


def test_two_protocols_on_one_port_conflict_and_the_older_object_wins(bench: Any, kit: Any) -> None:
    plain = [{"name": "web", "port": 9000, "protocol": "HTTP"}]
    tls = [{"name": "web", "port": 9000, "protocol": "HTTPS"}]
    young = edge(kit, "a", listeners=plain, created="2026-05-01T00:00:00Z")
    old = edge(kit, "b", host="b.test", listeners=tls, tls={"secretName": "edge-tls"}, created="2026-01-01T00:00:00Z")
    result = bench().compile(kit.service(), secret(), young, old)
    assert [item.name for item in result.data.listeners] == ["https-9000"]
    assert [(item.object, item.reason) for item in result.diagnostics] == [
        ("vpcingress default/a", Reason.PROTOCOL_CONFLICT)
    ]


def test_a_route_with_parent_refs_serves_the_shared_hosts_only(bench: Any, kit: Any) -> None:
    parents = [{"name": "edge"}]
    ingress = edge(kit, host="*.a.test")
    one = kit.route("one", hostnames=["x.a.test", "other.test"], parentRefs=parents)
    two = kit.route("two", parentRefs=parents)
    data = bench().compile(kit.service(), ingress, one, two).data
    rules = {rule.route: rule for rule in data.rules}
    assert rules["default/one"].hostnames == ("x.a.test",)
    assert rules["default/two"].hostnames == ("*.a.test",)
    assert rules["default/one"].listeners == ("http-8080",)


@pytest.mark.parametrize(
    ("parent", "reason"),
    [
        ({"name": "edgy"}, Reason.VPC_INGRESS_NOT_FOUND),
        ({"name": "edge", "port": 1}, Reason.VPC_INGRESS_NOT_FOUND),
    ],
)
def test_a_parent_that_is_not_there_keeps_the_route_out_and_says_so(
    bench: Any, kit: Any, parent: dict[str, Any], reason: Reason
) -> None:
    result = bench().compile(kit.service(), edge(kit), kit.route(parentRefs=[parent]))
    assert [item.reason for item in result.diagnostics] == [reason]
    assert all(rule.route != "default/api" for rule in result.data.rules)


@pytest.mark.parametrize(
    ("route", "ingress", "shared"),
    [
        ([], ["a.test"], ("a.test",)),
        (["a.test"], [], ("a.test",)),
        (["a.test"], ["b.test"], ()),
        (["*.test"], ["a.test"], ("a.test",)),
        (["a.test"], ["*.test"], ("a.test",)),
        (["*.a.test"], ["*.test"], ("*.a.test",)),
        (["test"], ["*.test"], ()),
    ],
)
def test_host_names_intersect(route: list[str], ingress: list[str], shared: tuple[str, ...]) -> None:
    assert intersect(route, ingress) == shared


def test_without_rights_on_credentials_nothing_is_said_of_them_and_none_is_looked_at(kit: Any, bench: Any) -> None:
    one = bench(are_credentials_known=False)
    secure = {"tls": {"mode": "Simple", "caCertificateRefs": [{"name": "ca"}, {"kind": "ConfigMap", "name": "cm"}]}}
    route = kit.route(parentRefs=[{"name": "edge", "sectionName": "https"}])
    result = one.compile(kit.service(**secure), edge(kit, tls={"secretName": "edge-tls"}), route)
    assert result.diagnostics == ()
    (attached,) = result.ingresses
    assert [section for section, _, _ in attached.sections] == ["http", "https"], "certificates are taken to be there"
    (rule,) = (rule for rule in result.data.rules if rule.route == "default/api")
    assert rule.listeners == ("https-8443",)
    tls = result.data.services["default/my-api"].tls
    assert tls is not None
    assert tls.ca_pem, "not the system's CAs, should it ever be served"
    assert one.compile(secret(**{"tls.crt": CERT})).data is result.data, "a Secret that comes makes no difference"


def test_what_compiling_finds_is_told_apart_from_what_reading_did(kit: Any, bench: Any) -> None:
    bad = kit.obj("VPCService", "bad", {"port": 80, "endpoints": [{"address": "10.0.0.1"}], "nonsense": 1})
    result = bench().compile(kit.route("api", "gone"), bad)
    assert {item.object for item in result.findings} == {"vpcroute default/api"}
    assert {item.object for item in result.diagnostics} == {"vpcroute default/api", "vpcservice default/bad"}
