"""What a gateway shows to others: a status, and numbers; nothing else of what it knows."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.processes import ServiceProcess

pytestmark = pytest.mark.e2e

PAGES = ("/healthz", "/readyz", "/snapshot", "/diagnostics", "/plugins", "/health", "/stats", "/metrics", "/")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[ServiceProcess]:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    env = {
        "DATUM_ROUTER_DIR": str(manifests),
        "DATUM_ROUTER_LISTEN": "127.0.0.1:0",
        "DATUM_ROUTER_PROBES": "0.0.0.0:0",
        "DATUM_ROUTER_METRICS": "[::1]:0",
    }
    process = ServiceProcess("datum_router_gateway", tmp_path / "gateway.log", env)
    yield process
    process.stop()


def get(address: str, path: str) -> tuple[int, str]:
    url = f"http://{address.replace('0.0.0.0', '127.0.0.1')}{path}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_probes_and_metrics_have_listeners_of_their_own(gateway: ServiceProcess) -> None:
    eventually(lambda: bool(gateway.lines("metrics listening")), "the listeners")
    (probes,) = [str(line["address"]) for line in gateway.lines("probes listening")]
    (metrics,) = [str(line["address"]) for line in gateway.lines("metrics listening")]
    gateway.wait_ready()
    for path in PAGES:
        status, body = get(probes, path)
        assert status == (200 if path in ("/healthz", "/readyz") else 404), path
        assert status == 404 or body == '{\n  "ok": true\n}\n'
        assert get(metrics, path)[0] == (200 if path == "/metrics" else 404), path
    assert "datum_router_uptime_seconds" in get(metrics, "/metrics")[1]


def test_the_admin_listener_is_out_of_reach_of_those_who_write_manifests(
    gateway: ServiceProcess, tmp_path: Path
) -> None:
    gateway.wait_ready()
    port = gateway.admin.rpartition(":")[2]
    (tmp_path / "manifests" / "all.yaml").write_text(
        f"""\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {{name: admin}}
spec:
  port: 80
  endpoints: [{{address: 127.0.0.1, port: {port}}}]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {{name: admin}}
spec:
  match: {{pathPrefix: /}}
  destinations: [{{vpcServiceRef: {{name: admin}}}}]
  filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {{remove: [via, forwarded, x-forwarded-for]}}
"""
    )
    eventually(lambda: gateway.get("/snapshot")[0] != 404, "the route")
    status, body = gateway.get("/snapshot")
    assert status == 403
    assert "digest" not in str(body)
