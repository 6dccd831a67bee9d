"""From manifests to what clients meet: rate limits, circuit breakers and sessions, through the real gateway."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def test_rate_limits_hold_over_all_workers(directory: Path, start_gateway: Any, start_backend: Any, kit: Any) -> None:
    backend = start_backend(kit.answer(b"ok"))
    cases = {
        "route": "  rateLimit: {requests: 4, unit: Hour}",
        "source": "  rateLimit: {requests: 60, unit: Hour, burst: 3, keys: [SourceIP]}",
        "filter": "  filters: [{type: RateLimit, rateLimit: {requests: 2, unit: Hour}}]",
        "both": "  rateLimit: {requests: 9, unit: Hour}\n"
        "  filters: [{type: RateLimit, rateLimit: {requests: 1, unit: Hour}}]",
        "none": "",
    }
    for name, extra in cases.items():
        (directory / f"{name}.yaml").write_text(kit.manifest(name, backend, path=f"/{name}", extra=extra))
    gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "2")
    expected = {"route": 4, "source": 3, "filter": 2, "both": 1, "none": 12}
    for name, most in expected.items():
        statuses = [gateway.get(f"/{name}")[0] for _ in range(12)]  # each on a connection of its own: any worker
        assert statuses == [200] * most + [429] * (12 - most), name


def test_a_limit_that_is_edited_begins_anew_and_others_go_on(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "a.yaml").write_text(
        kit.manifest("a", backend, path="/a", extra="  rateLimit: {requests: 1, unit: Hour}")
    )
    (directory / "b.yaml").write_text(
        kit.manifest("b", backend, path="/b", extra="  rateLimit: {requests: 1, unit: Hour}")
    )
    gateway = start_gateway()
    assert [gateway.get(path)[0] for path in ("/a", "/b", "/a", "/b")] == [200, 200, 429, 429]
    (directory / "a.yaml").write_text(kit.manifest("a", backend, path="/a"))
    kit.eventually(lambda: gateway.get("/a")[0] == 200, "the limit to be gone")
    assert gateway.get("/b")[0] == 429


def test_circuit_breakers_open_and_close_again_and_metrics_say_so(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    is_broken = [True]

    def serve(sock: socket.socket, _rest: bytes) -> None:
        status = b"500 No" if is_broken[0] else b"200 OK"
        sock.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nok")

    backend = start_backend(serve)
    breaker = "  circuitBreaker: {failureThreshold: 3, successThreshold: 1, openDuration: 1s}"
    (directory / "a.yaml").write_text(kit.manifest("a", backend, path="/a", health=breaker))
    (directory / "b.yaml").write_text(kit.manifest("b", backend, path="/b", extra=breaker))
    gateway = start_gateway()
    for path in ("/a", "/b"):
        assert [gateway.get(path)[0] for _ in range(5)] == [500, 500, 500, 503, 503]

    def metrics() -> str:
        with urllib.request.urlopen(f"{gateway.admin}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    shown = metrics()
    assert 'datum_router_service_circuit{service="default/a",state="open"} 1' in shown
    assert 'datum_router_route_circuit{route="default/b",state="open"} 1' in shown
    assert 'datum_router_request_reasons_total{protocol="h1",reason="circuit_tripped"} 4' in shown
    is_broken[0] = False
    for path in ("/a", "/b"):
        kit.eventually(lambda path=path: gateway.get(path)[0] == 200, "the circuit to close")
        assert [gateway.get(path)[0] for _ in range(3)] == [200] * 3
    assert "_circuit{" not in metrics()


def test_a_session_is_known_to_another_gateway_with_the_same_key(
    directory: Path, tmp_path: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backends = [start_backend(kit.answer(name)) for name in (b"one", b"two", b"three")]
    (directory / "a.yaml").write_text(kit.manifest("a", *backends, extra="  sessionAffinity: {name: s}"))
    key = tmp_path / "session.key"
    key.write_text("a key that is long enough")
    env = {"DATUM_ROUTER_SESSION_KEY_FILE": str(key)}
    first, second = (start_gateway("--listen", "127.0.0.1:0", "--workers", "2", env=env) for _ in range(2))

    def ask(gateway: Any, cookie: str = "") -> tuple[str, bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{gateway.port}/", headers={"Cookie": cookie})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.headers.get("Set-Cookie", "").partition(";")[0], answer.read()

    cookie, body = ask(first)
    assert cookie.startswith("s=")
    assert [ask(gateway, cookie) for gateway in (first, second) * 4] == [("", body)] * 8
