"""`datum-router explain` at listeners of VPCIngresses: redirects, fields that they add, bytes carried on."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from datum_router.policy.shedding import TARGET_S, describe_shedding
from datum_router_cli import authority
from datum_router_cli.certs import secret_manifest
from datum_router_cli.commands import cli

MANIFESTS = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: web}
spec: {port: 8080, endpoints: [{address: 10.0.0.1}]}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: bytes}
spec: {port: 5432, protocol: TCP, endpoints: [{address: 10.0.0.2}]}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {name: shop}
spec:
  host: shop.test
  httpsRedirect: true
  hsts: {maxAgeSeconds: 600}
  tls: {secretName: shop}
  rules: [{service: {name: web}}]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {name: database}
spec:
  host: db.test
  tls: {mode: passthrough}
  gatewaySelector: {matchLabels: {edge: private}}
  listeners: [{name: tls, port: 5432, protocol: TLS}]
  rules: [{service: {name: bytes}}]
"""
SHOP_TLS = "  tls: {secretName: shop}\n"
AT_HTTPS = ("GET", "https://shop.test/", "--listener", "8443")
SHARED = "Conflicted vpcingress default/younger"
AT_HTTP = ("GET", "http://shop.test/", "--listener", "8080")


@pytest.fixture(scope="module")
def secret() -> str:
    """Return the certificate of the first VPCIngress as a manifest."""
    period = authority.period(datetime.datetime.now(datetime.UTC), 1)
    ca = authority.Authority(authority.make_authority("ca", valid=period))
    return secret_manifest("shop", "default", ca.issue("shop", valid=period, dns=("shop.test",)), ca.cert_pem)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str) -> Callable[..., Result]:
    monkeypatch.delenv("DATUM_ROUTER_LABELS", raising=False)

    def run(*arguments: str, shop: str = "", also: str = "") -> Result:
        """Ask, with some more fields of the first VPCIngress, and some more manifests."""
        changed = MANIFESTS.replace(SHOP_TLS, shop if "tls:" in shop else SHOP_TLS + shop)
        (tmp_path / "all.yaml").write_text(changed + also)
        (tmp_path / "secret.yaml").write_text(secret)
        return CliRunner().invoke(cli, ["explain", str(tmp_path), *arguments])

    return run


def test_a_redirect_to_https_takes_all_requests_to_its_hosts(ask: Callable[..., Result]) -> None:
    result = ask("GET", "http://shop.test/a", "--listener", "8080", "--output", "json")
    found = json.loads(result.output)
    assert (found["outcome"], found["status"], found["winner"]["rule"]) == (
        "redirected",
        308,
        "ingress:default/shop#https",
    )
    assert found["winner"]["file"].endswith("all.yaml")


def test_bytes_that_are_carried_on_are_explained_by_the_server_name_alone(ask: Callable[..., Result]) -> None:
    result = ask("GET", "https://db.test/", "--listener", "5432")
    assert result.exit_code == 0
    assert "winner: ingress:default/database#0" in result.output
    assert "10.0.0.2" in result.output
    lines = result.output.splitlines()
    assert "retries: up to 1 other if an endpoint cannot be reached" in lines
    assert "timeouts: silence as tcp_idle_timeout_s of the data plane says" in lines
    as_json = ask("GET", "https://db.test/", "--listener", "5432", "--output", "json")
    assert json.loads(as_json.output)["policy"] is None
    assert "no route: the connection is closed" in ask("GET", "https://x.test/", "--listener", "5432").output


def test_with_labels_only_what_selects_them_is_there(
    ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATUM_ROUTER_LABELS", "edge=public")
    result = ask("GET", "https://db.test/", "--listener", "5432")
    assert result.exit_code == 2
    assert "expected the name or port of a listener" in result.output


def test_a_field_that_the_ingress_adds_to_every_answer_over_tls_is_told(ask: Callable[..., Result]) -> None:
    told = "    response headers: set strict-transport-security: max-age=600"
    assert told in ask(*AT_HTTPS).output.splitlines()
    assert "strict-transport-security" not in ask(*AT_HTTP).output


@pytest.mark.parametrize(
    ("shop", "arguments", "said"),
    [
        ("", AT_HTTP, []),
        ("", AT_HTTPS, ["TLS: 1.2 or later, offers h2 http/1.1, certificate of VPCIngress default/shop"]),
        (
            "  tls: {secretName: shop, minVersion: '1.3', alpn: [http/1.1]}\n",
            AT_HTTPS,
            ["TLS: 1.3 or later, offers http/1.1, certificate of VPCIngress default/shop"],
        ),
        (
            "  tls: {secretName: shop, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256], requireSni: true}\n",
            AT_HTTPS,
            [
                "TLS: 1.2 or later, suites of 1.2 ECDHE-RSA-AES128-GCM-SHA256, offers h2 http/1.1, certificate of "
                "VPCIngress default/shop, no handshake without a server name that it has"
            ],
        ),
        (
            "  tls: {secretName: shop, requireSni: true}\n",
            ("GET", "https://other.test/", "--listener", "8443"),
            ["TLS: no handshake for other.test, no certificate is for it and requireSni is set"],
        ),
        (
            "",
            ("GET", "https://other.test/", "--listener", "8443"),
            ["TLS: 1.2 or later, offers h2 http/1.1, certificate of VPCIngress default/shop"],
        ),
        ("  clientIP: {trustedHops: 2}\n", AT_HTTP, ["trusted hops in X-Forwarded-For: 2"]),
        (
            "  clientIP: {proxyProtocol: true, trustedProxies: [10.0.0.0/8, 'fd00::/8']}\n",
            AT_HTTP,
            ["each connection begins with a PROXY header, if the peer is in 10.0.0.0/8 or fd00::/8, else it is closed"],
        ),
        (
            "  clientIP: {trustedProxies: [10.0.0.0/8]}\n",
            AT_HTTP,
            ["trusted hops in X-Forwarded-For: 1, if the peer is in 10.0.0.0/8"],
        ),
        (
            "  maxRequestBodyBytes: 5\n  localReplies: [{statuses: [404], body: no}]\n",
            AT_HTTP,
            ["request bodies of at most 5 bytes", "own answers: 404 as text/plain"],
        ),
    ],
)
def test_what_holds_at_a_listener_is_told(
    ask: Callable[..., Result], shop: str, arguments: tuple[str, ...], said: list[str]
) -> None:
    said = [*said, describe_shedding(TARGET_S)]
    lines = ask(*arguments, shop=shop).output.splitlines()
    assert [line.removeprefix("listener: ") for line in lines if line.startswith("listener: ")] == said
    assert json.loads(ask(*arguments, "--output", "json", shop=shop).output)["at_listener"] == said


@pytest.mark.parametrize(
    ("text", "said"),
    [("0", "load shedding: off"), ("0.4", "of a queue older than 0.4 s, 503 with Retry-After: 2 to who")],
)
def test_load_shedding_is_told_as_the_settings_of_the_data_plane_have_it(
    ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("DATUM_ROUTER_DATA_PLANE_CONFIG", f"pool_wait_s=1,shed_queue_age_s={text}")
    (line,) = [line for line in ask(*AT_HTTP).output.splitlines() if line.startswith("listener: load")]
    assert said in line
    assert "listener: load" not in ask("GET", "https://db.test/", "--listener", "5432").output, (
        "nobody reads requests there"
    )


@pytest.mark.parametrize("text", ["-1", "inf", "nan", "soon"])
def test_an_age_of_the_queue_that_is_none_is_refused(
    ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("DATUM_ROUTER_DATA_PLANE_CONFIG", f"shed_queue_age_s={text}")
    result = ask(*AT_HTTP)
    assert result.exit_code == 2
    assert f"shed_queue_age_s: found '{text}', expected a number above 0, or 0 (off)" in result.output


YOUNGER = """\
---
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {name: younger}
spec:
  host: HOST
  listeners: [{name: any, port: 8080, protocol: HTTP}]
  maxRequestBodyBytes: 5
  rules: [{path: /late, service: {name: web}}]
"""
AGAIN = """\
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: again}
spec:
  hostnames: [again.test]
  parentRefs: [{name: younger}]
  matches: [{pathPrefix: /a}, {pathPrefix: /b}, {pathPrefix: /a}]
  destinations: [{vpcServiceRef: {name: web}}]
"""


@pytest.mark.parametrize(
    ("host", "route", "url", "concerned"),
    [
        ("shop.test", "", "http://shop.test/late", ["HostnameConflict vpcingress default/younger", SHARED]),
        ("late.test", "", "http://late.test/late", [SHARED]),
        ("late.test", "", "http://late.test/nowhere", [SHARED]),
        ("late.test", "", "http://shop.test/", []),
        ("again.test", AGAIN, "http://again.test/a", [SHARED, "Conflicted vpcroute default/again"]),
        ("'*.test'", AGAIN, "http://again.test/b", [SHARED, "Conflicted vpcroute default/again"]),
        ("again.test", AGAIN, "http://again.test/late", [SHARED]),
    ],
)
def test_conflicts_are_told_of_those_that_the_request_has_to_do_with(
    ask: Callable[..., Result], host: str, route: str, url: str, concerned: list[str]
) -> None:
    arguments, also = ("GET", url, "--listener", "8080"), YOUNGER.replace("HOST", host) + route
    found = json.loads(ask(*arguments, "--output", "json", also=also).output)["diagnostics"]
    assert sorted(f"{one['reason']} {one['object']}" for one in found) == sorted(concerned)
    warned = [line for line in ask(*arguments, also=also).output.splitlines() if ": warning: " in line]
    assert len(warned) == len(concerned)


def test_a_conflict_at_another_port_is_none_of_the_request(ask: Callable[..., Result]) -> None:
    found = ask(*AT_HTTPS, "--output", "json", also=YOUNGER.replace("HOST", "shop.test"))
    assert json.loads(found.output)["diagnostics"] == []
