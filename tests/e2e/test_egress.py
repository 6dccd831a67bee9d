"""Outbound traffic through real processes: a policy that comes, changes and goes, and counters over all workers."""

from __future__ import annotations

import datetime
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trustme

pytestmark = pytest.mark.e2e

POLICY = """
apiVersion: router.datum.net/v1alpha1
kind: VPCEgress
metadata: {{name: out}}
spec:
  sourceVpcAttachment: prod-vpc
  match:
    destinationCidrs: ["{cidr}"]
  policy: Allow
  log: true
"""
DAYS = (("soon", 3), ("late", 300))
LISTEN = ("--listen", "127.0.0.1:0", "--egress", "127.0.0.1:0", "--egress-source", "default/prod-vpc")


def fetch(port: int, url: str) -> tuple[int, bytes]:
    """Ask a proxy for a URL."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while more := sock.recv(65_536):
            data += more
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def tunnel(port: int, target: str) -> socket.socket:
    """Open a tunnel; one worker may know of a policy before the other."""
    until = time.monotonic() + 5.0
    while True:
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = sock.recv(65_536)
        if head == b"HTTP/1.1 200 Connection Established\r\n\r\n":
            return sock
        sock.close()
        assert time.monotonic() < until, head


def test_a_policy_comes_changes_and_goes_and_tunnels_with_it(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backend = start_backend(kit.answer(b"reached"))
    url, target = f"http://127.0.0.1:{backend.port}/x", f"127.0.0.1:{backend.port}"
    gateway = start_gateway(*LISTEN, "--workers", "2")
    ports = dict(zip(("plain", "egress"), (port for _, port in gateway.addresses), strict=True))
    proxy = ports["egress"]
    assert fetch(proxy, url)[0] == 403, "nothing passes without a policy"

    file = directory / "egress.yaml"
    file.write_text(POLICY.format(cidr="127.0.0.1/32"))
    kit.eventually(lambda: fetch(proxy, url) == (200, b"reached"), "the policy", 5.0)
    with tunnel(proxy, target) as one, tunnel(proxy, target) as other:
        file.write_text(POLICY.format(cidr="127.0.0.0/8"))
        kit.eventually(lambda: fetch(proxy, url.replace("0.0.1", "0.0.2"))[0] != 403, "a wider policy", 5.0)
        for sock in (one, other):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(65_536).endswith(b"reached"), "what is still allowed goes on"
        kit.eventually(
            lambda: _value(_page(gateway), "datum_gateway_egress_connections", egress="default/out") == 2, "both"
        )
        file.write_text(POLICY.format(cidr="10.0.0.0/8"))
        for sock in (one, other):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        kit.eventually(lambda: fetch(proxy, url)[0] == 403, "the changed policy", 5.0)
        file.write_text(POLICY.format(cidr="127.0.0.1/32"))
        kit.eventually(lambda: fetch(proxy, url) == (200, b"reached"), "the policy is back", 5.0)
    with tunnel(proxy, target) as last:
        file.unlink()
        with pytest.raises(ConnectionResetError):
            last.recv(1)
    kit.eventually(lambda: "no_policy" in fetch(proxy, url)[1].decode(), "no policy", 5.0)
    # An ordinary listener knows nothing of all this.
    assert fetch(ports["plain"], url)[0] == 404
    kit.eventually(
        lambda: (
            _value(_page(gateway), "datum_gateway_egress_decisions_total", verdict="deny", reason="policy_changed") == 3
        ),
        "tunnels that were ended are counted",
    )
    page = _page(gateway)
    assert _value(page, "datum_gateway_egress_connections", egress="default/out") == 0
    assert _value(page, "datum_gateway_egress_decisions_total", verdict="allow", reason="allowed_by_rule") >= 2
    assert _value(page, "datum_gateway_egress_decisions_total", verdict="deny", reason="denied_by_default") >= 1
    assert _value(page, "datum_gateway_egress_policy_decisions_total", egress="default/out", verdict="allow") >= 2
    log = gateway.log.read_text()
    assert "egress decision" in log
    assert log.count("policy_changed") >= 3
    assert f"destination={target}" in log or target in log


def test_a_gateway_without_an_egress_listener_says_that_policies_have_no_effect(
    directory: Path, start_gateway: Any
) -> None:
    (directory / "egress.yaml").write_text(POLICY.format(cidr="127.0.0.1/32"))
    gateway = start_gateway()
    found = {one["reason"]: one["severity"] for one in gateway.page("/diagnostics")}
    assert found["NoEgressListener"] == "warning"
    snapshot = gateway.page("/snapshot")
    assert snapshot["egress"]["rules"][0]["name"] == "default/out", json.dumps(snapshot)[:500]


def test_f5_certificates_of_destinations_that_run_out_are_told_on_pages_by_a_metric_and_by_check(
    directory: Path, start_gateway: Any
) -> None:
    ca, now = trustme.CA(), datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    own = {name: ca.issue_cert(f"{name}.test", not_after=now + datetime.timedelta(days=days)) for name, days in DAYS}
    documents = []
    for name, pair in own.items():
        data = {"tls.crt": pair.cert_chain_pems[0].bytes().decode(), "tls.key": pair.private_key_pem.bytes().decode()}
        # Any certificate will do as a CA that runs out.
        documents.append(_document("v1", "Secret", name, {"stringData": {**data, "ca.crt": data["tls.crt"]}}))
    shown = {"enabled": True, "clientCertificateSecretName": "soon", "caSecretName": "late"}
    trusted = {"enabled": True, "clientCertificateSecretName": "late", "caSecretName": "soon"}
    destinations = [{"endpoint": f"{at}.test", "port": 80, "tls": tls} for at, tls in enumerate((shown, trusted))]
    spec = {"spec": {"destinations": destinations}}
    documents.append(_document("router.datum.net/v1alpha1", "VPCEgress", "out", spec))
    (directory / "egress.yaml").write_text("\n---\n".join(documents))
    gateway = start_gateway(*LISTEN)
    found = [one for one in gateway.page("/diagnostics") if one["reason"].startswith("Certificate")]
    whats = ((0, "clientCertificateSecretName", "our certificate"), (1, "caSecretName", "the last CA"))
    until = (now + datetime.timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert [(one["object"], one["path"], one["reason"], one["severity"], one["message"]) for one in found] == [
        (
            "vpcegress default/out", f"spec.destinations[{at}].tls.{name}", "CertificateExpiresSoon", "warning",
            f"{what} for {at}.test expires at {until}",
        )
        for at, name, what in whats
    ]  # fmt: skip
    ends = _value(_page(gateway), "datum_router_identity_expiry_timestamp_seconds", kind="VPCEgress")
    assert ends == (now + datetime.timedelta(days=3)).timestamp()
    checked = subprocess.run(
        [sys.executable, "-m", "datum_router_cli", "check", str(directory)], capture_output=True, text=True, check=False
    )
    said = checked.stdout + checked.stderr
    assert checked.returncode == 0, said
    assert f"our certificate for 0.test expires at {until}" in said
    assert "egress.yaml:" in next(line for line in said.splitlines() if "our certificate for 0.test" in line)


def _document(version: str, kind: str, name: str, rest: dict[str, object]) -> str:
    return json.dumps({"apiVersion": version, "kind": kind, "metadata": {"name": name}, **rest})


def _page(gateway: Any) -> str:
    with urllib.request.urlopen(f"{gateway.admin}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def _value(page: str, name: str, **labels: str) -> float:
    for line in page.splitlines():
        found = re.match(rf"{name}\{{(.*)\}} (\S+)", line)
        if found and all(f'{key}="{value}"' in found[1] for key, value in labels.items()):
            return float(found[2])
    return 0.0
