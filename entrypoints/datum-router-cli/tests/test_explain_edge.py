"""`datum-router explain` at listeners of VPCIngresses: redirects, fields that they add, bytes carried on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

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
apiVersion: v1
kind: Secret
metadata: {name: shop}
stringData: {tls.crt: CERT, tls.key: KEY}
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


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.delenv("DATUM_ROUTER_LABELS", raising=False)
    cert = "-----BEGIN CERTIFICATE-----\\nQ0VSVA==\\n-----END CERTIFICATE-----\\n"
    key = "-----BEGIN PRIVATE KEY-----\\nS0VZ\\n-----END PRIVATE KEY-----\\n"
    text = MANIFESTS.replace("CERT", f'"{cert}"').replace("tls.key: KEY", f'tls.key: "{key}"')
    (tmp_path / "all.yaml").write_text(text)
    return lambda *arguments: CliRunner().invoke(cli, ["explain", str(tmp_path), *arguments])


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
    assert "no route: the connection is closed" in ask("GET", "https://x.test/", "--listener", "5432").output


def test_with_labels_only_what_selects_them_is_there(
    ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATUM_ROUTER_LABELS", "edge=public")
    result = ask("GET", "https://db.test/", "--listener", "5432")
    assert result.exit_code == 2
    assert "expected the name or port of a listener" in result.output
