"""`spec.tls.clientAuth` of VPCIngresses: what is missing closes the door, and what two of them share is told."""

import base64
from typing import Any

import pytest

from datum_router.compiler.diagnostics import Severity
from datum_router.model.listener import ClientAuth
from datum_router.reasons import Reason

PEM = "-----BEGIN {0}-----\nQ0VSVA==\n-----END {0}-----\n"
PAIR = {"tls.crt": PEM.format("CERTIFICATE"), "tls.key": PEM.format("PRIVATE KEY")}
CAS = {"ca.crt": PEM.format("CERTIFICATE")}
REQUIRE = {"mode": "Require", "caSecretName": "cas"}


def secret(name: str, data: dict[str, str]) -> dict[str, Any]:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}


def edge(kit: Any, name: str, host: str, auth: dict[str, Any] | None, created: str = "", **spec: Any) -> dict[str, Any]:
    tls = {"secretName": "pair", **({"clientAuth": auth} if auth else {})}
    rules = [{"path": "/", "service": {"name": "my-api"}}]
    return kit.obj("VPCIngress", name, {"host": host, "rules": rules, "tls": tls, **spec}, created=created)


@pytest.fixture
def start(bench: Any, kit: Any) -> Any:
    def make(*objects: dict[str, Any], **options: Any) -> Any:
        return bench(**options).compile(kit.service(), secret("pair", PAIR), secret("cas", CAS), *objects)

    return make


def test_what_is_asked_reaches_the_binding(start: Any, kit: Any) -> None:
    auth = {**REQUIRE, "subjectAltNames": ["a.test"], "forwardClientCert": True, "crlSecretName": "crl"}
    crl = secret("crl", {"ca.crl": PEM.format("X509 CRL")})
    result = start(edge(kit, "one", "one.test", auth), crl)
    (listener,) = result.data.listeners  # none in the clear, where nobody shows a certificate
    assert listener.tls[0].client_auth == ClientAuth(
        is_required=True,
        ca_pem=CAS["ca.crt"],
        crl_pem=PEM.format("X509 CRL"),
        names=("a.test",),
        is_forwarded=True,
        details=("Subject", "URI", "DNS"),
    )
    assert "Q0VSVA" not in repr(listener)
    assert result.diagnostics == ()
    optional = start(edge(kit, "one", "one.test", {**REQUIRE, "mode": "Request"}))
    assert [item.name for item in optional.data.listeners] == ["http-8080", "https-8443"]
    assert start(edge(kit, "one", "one.test", {"mode": "None"})).data.listeners[1].tls[0].client_auth is None


@pytest.mark.parametrize(
    ("auth", "extra", "path", "is_reference"),
    [
        ({**REQUIRE, "caSecretName": "none"}, (), "caSecretName", True),
        ({**REQUIRE, "caSecretName": "pair"}, (), "caSecretName", False),
        ({**REQUIRE, "caSecretName": "empty"}, (secret("empty", {"ca.crt": " \n"}),), "caSecretName", False),
        ({**REQUIRE, "crlSecretName": "none"}, (), "crlSecretName", True),
    ],
    ids=["missing", "without", "empty", "no-list"],
)
def test_a_bundle_that_is_not_there_closes_the_host(
    start: Any, kit: Any, auth: dict[str, Any], extra: tuple[Any, ...], path: str, is_reference: bool
) -> None:
    result = start(edge(kit, "one", "one.test", auth), *extra)
    assert [item.name for item in result.data.listeners] == ["plain"]
    assert result.data.rules == ()  # rules without a listener would be served on all of them
    (found,) = result.diagnostics
    assert (found.path, found.reason) == (f"spec.tls.clientAuth.{path}", Reason.INVALID_CERTIFICATE_REF)
    assert found.is_reference is is_reference


def test_who_came_first_decides_and_nobody_gets_less_than_he_asked_for(start: Any, kit: Any) -> None:
    old = edge(kit, "old", "one.test", None, "2026-01-01T00:00:00Z")
    new = edge(kit, "new", "one.test", REQUIRE, "2026-01-02T00:00:00Z")
    result = start(old, new)
    (https,) = [item for item in result.data.listeners if item.tls]
    assert [binding.client_auth for binding in https.tls] == [None]
    assert {rule.route for rule in result.data.rules} == {"ingress:default/old"}
    (found,) = result.diagnostics
    assert (found.severity, found.reason, found.path) == (Severity.ERROR, Reason.CONFLICTED, "spec.tls.clientAuth")
    assert "vpcingress default/old came first" in found.message
    # The other way round the newer one is held to more than it asked for, and told so.
    old["spec"]["tls"]["clientAuth"], new["spec"]["tls"] = REQUIRE, {"secretName": "pair"}
    result = start(old, new)
    (found,) = [item for item in result.diagnostics if item.path == "spec.tls.clientAuth"]
    assert found.severity is Severity.WARNING
    assert "what that one asks applies" in found.message


def test_a_hole_in_a_wildcard_is_told(start: Any, kit: Any) -> None:
    for order in (("a", "b"), ("b", "a")):
        result = start(
            edge(kit, order[0], "*.one.test", REQUIRE),
            edge(kit, order[1], "open.one.test", None, listeners=[{"name": "s", "port": 8443, "protocol": "HTTPS"}]),
        )
        (found,) = result.diagnostics
        assert found.severity is Severity.WARNING
        assert found.message.startswith("open.one.test on port 8443 asks clients for no certificate, but *.one.test")


def test_hosts_in_the_clear_are_told(start: Any, kit: Any) -> None:
    listeners = [{"name": "s", "port": 8443, "protocol": "HTTPS"}, {"name": "p", "port": 8080, "protocol": "HTTP"}]
    result = start(edge(kit, "one", "one.test", REQUIRE, listeners=listeners))
    (found,) = result.diagnostics
    assert (found.path, found.severity) == ("spec.listeners[1].protocol", Severity.WARNING)
    assert "port 8080 serves the same hosts in the clear" in found.message


def test_who_may_read_no_secret_still_sees_who_is_in_the_way(start: Any, kit: Any) -> None:
    """A controller: what it compiles is not served, but it writes the conditions."""
    old = edge(kit, "old", "one.test", {**REQUIRE, "caSecretName": "unread"}, "2026-01-01T00:00:00Z")
    new = edge(kit, "new", "one.test", {**REQUIRE, "caSecretName": "another"}, "2026-01-02T00:00:00Z")
    result = start(old, new, are_credentials_known=False)
    (found,) = result.diagnostics
    assert (found.object, found.reason) == ("vpcingress default/new", Reason.CONFLICTED)
