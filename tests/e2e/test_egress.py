"""Outbound traffic through real processes: a policy that comes, changes and goes, and counters over all workers."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

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
