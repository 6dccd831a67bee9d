"""VPCIngresses that want one port or one host in different ways: the oldest has it, and once it is gone the next."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

pytestmark = pytest.mark.e2e

OLD, YOUNG = "2026-01-01T00:00:00Z", "2026-05-01T00:00:00Z"
CONFLICTED, HOSTNAME, PROTOCOL = "Conflicted", "HostnameConflict", "ProtocolConflict"
PASSTHROUGH = {"protocol": "TLS", "tls": {"mode": "passthrough"}}


def document(kind: str, name: str, spec: dict[str, Any], **metadata: str) -> str:
    made = {"apiVersion": "router.datum.net/v1alpha1", "kind": kind, "metadata": {"name": name, **metadata}}
    return "---\n" + json.dumps({**made, "spec": spec}) + "\n"


def ask(port: int, host: str) -> str:
    """Send ten bytes to a host of a port; return who has answered, or the status of an error, or `closed`."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        link.request("POST", "/", b"ten bytes.", {"Host": host})
        answer = link.getresponse()
        return answer.read().decode() if answer.status == 200 else str(answer.status)
    except ConnectionError:
        return "closed"
    finally:
        link.close()


@pytest.mark.parametrize(
    ("old", "young", "host", "reason", "found", "found_once_it_is_gone"),
    [
        pytest.param({}, {"protocol": "TCP"}, "senior.test", PROTOCOL, "senior", "junior", id="HTTP, then TCP"),
        pytest.param({"protocol": "TCP"}, {}, "none.test", PROTOCOL, "senior", "404", id="TCP, then HTTP"),
        pytest.param({}, PASSTHROUGH, "senior.test", PROTOCOL, "senior", "closed", id="HTTP, then TLS"),
        pytest.param(PASSTHROUGH, {}, "junior.test", PROTOCOL, "closed", "junior", id="TLS, then HTTP"),
        pytest.param(
            {"host": "a.test"},
            {"host": "a.test"},
            "a.test",
            HOSTNAME,
            "senior",
            "junior",
            id="a host in two namespaces",
        ),
        pytest.param(
            {},
            {"clientIP": {"proxyProtocol": True, "trustedProxies": ["127.0.0.0/8"]}},
            "junior.test",
            CONFLICTED,
            "junior",
            "closed",
            id="clientIP",
        ),
        pytest.param(
            {},
            {"maxRequestBodyBytes": 9},
            "junior.test",
            CONFLICTED,
            "junior",
            "413",
            id="maxRequestBodyBytes of the younger one",
        ),
        pytest.param(
            {"maxRequestBodyBytes": 9},
            {},
            "junior.test",
            CONFLICTED,
            "413",
            "junior",
            id="maxRequestBodyBytes of the older one",
        ),
    ],
)
def test_the_oldest_ingress_has_the_port_and_once_it_is_gone_the_next(
    directory: Path,
    start_gateway: Any,
    start_backend: Any,
    kit: Any,
    old: dict[str, Any],
    young: dict[str, Any],
    host: str,
    reason: str,
    found: str,
    found_once_it_is_gone: str,
) -> None:
    port = free_port()

    def put(file: str, name: str, created: str, spec: dict[str, Any]) -> Path:
        """Write a VPCIngress and its service, in a namespace of their own."""
        backend = start_backend(kit.answer(name.encode()))
        protocol = spec.pop("protocol", "HTTP")
        listener = {"name": "one", "port": port, "protocol": protocol, "address": "127.0.0.1"}
        rules = [{"path": "/", "service": {"name": "a"}}]
        wanted = {"host": f"{name}.test", "rules": rules, "listeners": [listener], **spec}
        endpoints = [{"address": backend.host, "port": backend.port}]
        served = {"protocol": "HTTP" if protocol == "HTTP" else "TCP", "port": 80, "endpoints": endpoints}
        path = directory / file
        path.write_text(
            document("VPCService", "a", served, namespace=name)
            + document("VPCIngress", "one", wanted, namespace=name, creationTimestamp=created)
        )
        return path

    # The younger one is read first, and its namespace comes first: age alone decides.
    put("1.yaml", "junior", YOUNG, dict(young))
    file = put("2.yaml", "senior", OLD, dict(old))
    gateway = start_gateway("--workers", "1")

    def reasons() -> set[tuple[str, str]]:
        return {(item["object"], item["reason"]) for item in gateway.page("/diagnostics")}

    assert reasons() == {("vpcingress junior/one", reason)}
    assert ask(port, host) == found
    file.unlink()
    kit.eventually(lambda: not reasons(), "nothing is in its way")
    kit.eventually(lambda: ask(port, host) == found_once_it_is_gone, "what the younger one wants")
