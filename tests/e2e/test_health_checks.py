"""What a VPCService says of its health checks: how endpoints are asked by real probes, and what their answers mean."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from tests.conftest import PATIENCE_S, Backend, Gateway, eventually
from tests.ports import free_port

pytestmark = pytest.mark.e2e
OK, BAD, NO_CONTENT, FOUND, UNAUTHORIZED = b"200 OK", b"500 No", b"204 No Content", b"302 Found", b"401 Unauthorized"
SILENCE = b""


class Case(NamedTuple):
    """A check of one endpoint.

    Attributes:
        check: `spec.healthCheck`, with `{probed}` for the port where `answer` is given.
        answer: Status that probes are answered with; none: not at all.
        asked: Lines of the probe's head; none: it must not say a word.
        found: Whether the endpoint is usable, and what the page has to say of it.
    """

    check: dict[str, Any]
    answer: bytes
    asked: tuple[bytes, ...]
    found: tuple[bool, str]
    service: dict[str, Any] = {}


GET = b"get /healthz http/1.1"
WELL = (True, "status 200")
CASES = {
    "nothing": Case({}, OK, (GET, b"host: 127.0.0.1:{probed}", b"user-agent: datum-router-probe"), WELL),
    "type HTTP, though it is TCP": Case({"type": "HTTP"}, OK, (GET,), WELL, {"protocol": "TCP"}),
    "httpPath": Case({"httpPath": "/ready?deep=1"}, OK, (b"get /ready?deep=1 http/1.1",), WELL),
    "method": Case({"method": "HEAD"}, OK, (b"head /healthz http/1.1",), WELL),
    "host": Case({"host": "shop.test"}, OK, (GET, b"host: shop.test"), WELL),
    "headers": Case(
        {"headers": [{"name": "X-Probe", "value": "yes"}, {"name": "X-More", "value": "a, b"}]},
        OK,
        (b"x-probe: yes", b"x-more: a, b"),
        WELL,
    ),
    "expectedStatuses": Case({"expectedStatuses": ["200-299", "401"]}, UNAUTHORIZED, (GET,), (True, "status 401")),
    "expectedStatuses, not 200": Case({"expectedStatuses": ["204"]}, OK, (GET,), (False, "status 200")),
    "an unexpected status": Case({}, FOUND, (GET,), (False, "status 302")),
    "timeoutSeconds": Case({"timeoutSeconds": 1}, SILENCE, (GET,), (False, "no answer within 1 s")),
    "port": Case({"port": "{probed}"}, NO_CONTENT, (GET,), (True, "status 204"), {"endpoints": "dead"}),
    "type TCP": Case({"type": "TCP"}, SILENCE, (), (True, "connected")),
    "protocol TCP": Case({}, SILENCE, (), (True, "connected"), {"protocol": "TCP"}),
    "a dead port": Case({"type": "TCP"}, SILENCE, (), (False, "connection refused"), {"endpoints": "dead"}),
}


def answering(status: bytes) -> Backend:
    message = b"HTTP/1.1 %s\r\ncontent-length: 0\r\n\r\n" % status if status else b""
    return Backend(lambda sock, _rest: sock.sendall(message))


def service(name: str, check: dict[str, Any], port: int, **more: Any) -> str:
    """Write a VPCService; JSON is YAML, too."""
    spec = {"port": 80, "healthCheck": check, "endpoints": [{"address": "127.0.0.1", "port": port}], **more}
    made = {"apiVersion": "router.datum.net/v1alpha1", "kind": "VPCService", "metadata": {"name": name}, "spec": spec}
    return json.dumps(made) + "\n---\n"


def health(gateway: Gateway, name: str) -> dict[str, Any]:
    """Return what the gateway knows of the one endpoint of a service."""
    endpoints = gateway.page("/health")["endpoints"]  # type: ignore[index]
    (found,) = [item for item in endpoints if item["service"] == f"default/{name}"]
    return dict(found)


def named(case: str) -> str:
    return "case-" + "".join(char if char.isalnum() else "-" for char in case.lower())


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, dict[str, Backend]]]:
    """A gateway with a service for each case, and its backend."""
    directory = tmp_path_factory.mktemp("checks") / "manifests"
    directory.mkdir()
    backends: dict[str, Backend] = {}
    for name, case in CASES.items():
        backends[name] = answering(case.answer)
        probed = backends[name].port
        check = {key: probed if value == "{probed}" else value for key, value in case.check.items()}
        more = dict(case.service)
        port = free_port() if more.pop("endpoints", "") else probed
        (directory / f"{named(name)}.yaml").write_text(service(named(name), check, port, **more))
    gateway = Gateway(directory, "--listen", "127.0.0.1:0", "--workers", "1")
    try:
        yield gateway, backends
    finally:
        gateway.stop()
        for backend in backends.values():
            backend.close()
    assert "Traceback" not in gateway.log.read_text()


@pytest.mark.parametrize("name", CASES)
def test_an_endpoint_is_asked_and_judged_as_the_service_says(
    ground: tuple[Gateway, dict[str, Backend]], name: str
) -> None:
    gateway, backends = ground
    case, backend = CASES[name], backends[name]
    eventually(lambda: health(gateway, named(name))["state"] != "unknown", "the first probe, which decides")
    found = health(gateway, named(name))
    assert (found["is_usable"], found["detail"]) == case.found
    if not case.asked:
        assert backend.heads == []
        return
    lines = backend.heads[0].lower().split(b"\r\n")
    for line in case.asked:
        assert line.replace(b"{probed}", b"%d" % backend.port) in lines


class GrpcHealth(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """`grpc.health.v1.Health/Check`, in bytes: the server as a whole is well, its service `shop` is not."""

    ANSWERS = {b"": b"\x08\x01", b"\x0a\x04shop": b"\x08\x02"}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: self.ANSWERS[request])


def test_grpc_is_asked_for_the_server_or_for_a_service_of_it(
    directory: Path, start_gateway: Callable[..., Gateway]
) -> None:
    cases: dict[str, tuple[dict[str, Any], str, tuple[bool, str]]] = {
        "by-protocol": ({}, "GRPC", (True, "serving")),
        "by-type": ({"type": "GRPC"}, "H2C", (True, "serving")),
        "one-service": ({"type": "GRPC", "grpcService": "shop"}, "GRPC", (False, "not serving")),
    }
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(GrpcHealth(),))
    port = server.add_insecure_port("127.0.0.1:0")
    for name, (check, protocol, _) in cases.items():
        (directory / f"{name}.yaml").write_text(service(name, check, port, protocol=protocol))
    server.start()
    try:
        gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "1")
        for name, (_, _, found) in cases.items():
            eventually(lambda name=name: health(gateway, name)["state"] != "unknown", "the first probe")
            known = health(gateway, name)
            assert (known["is_usable"], known["detail"]) == found
    finally:
        server.stop(None).wait(5)


class Held:
    """A backend whose probes wait until they are told how to end."""

    def __init__(self) -> None:
        self._asked = threading.Semaphore(0)
        self._verdicts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.backend = Backend(self._handle)

    def _handle(self, sock: socket.socket, _rest: bytes) -> None:
        self._asked.release()
        sock.sendall(b"HTTP/1.1 %s\r\ncontent-length: 0\r\n\r\n" % self._verdicts.get())

    def is_asked(self) -> bool:
        """Wait for the next probe, which begins only when what the last one found is known."""
        return self._asked.acquire(timeout=PATIENCE_S)

    def tell(self, status: bytes) -> None:
        self._verdicts.put(status)


@pytest.mark.slow
def test_so_many_results_in_a_row_as_the_service_says_take_an_endpoint_out_and_in(
    directory: Path, start_gateway: Callable[..., Gateway]
) -> None:
    # Results of probes, the first of which decides, and how long each way takes with 2 and 3, and with 3 and 2.
    results = [OK, BAD, OK, BAD, BAD, BAD, OK, OK, OK]
    usable = {
        (2, 3): [True, True, True, True, False, False, False, False, True],
        (3, 2): [True, True, True, True, True, False, False, True, True],
    }
    held = {f"after-{down}-and-{up}": Held() for down, up in usable}
    try:
        for (name, one), (down, up) in zip(held.items(), usable, strict=True):
            check = {"intervalSeconds": 1, "timeoutSeconds": 60, "unhealthyThreshold": down, "healthyThreshold": up}
            (directory / f"{name}.yaml").write_text(service(name, check, one.backend.port))
        gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "1")
        assert all(one.is_asked() for one in held.values())
        found: dict[str, list[bool]] = {name: [] for name in held}
        for result in results:
            for one in held.values():
                one.tell(result)
            for name, one in held.items():
                assert one.is_asked()
                found[name].append(health(gateway, name)["is_usable"])
        assert list(found.values()) == list(usable.values())
    finally:
        for one in held.values():
            one.tell(OK)
            one.backend.close()
