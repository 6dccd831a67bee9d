"""The public corpus of HTTP/1.1 requests as raw bytes to a running gateway: its verdict, and what h11 sees upstream.

The engine's own verdicts on the same cases are in plugins/datum-router-proxy/tests/test_http1_corpus.py; here routing,
deadlines and forwarding take part. A case passes if the first answer is one that the corpus allows, or if the
connection ends without one where the corpus allows that; what was refused must not have reached the upstream whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datum_router.model.service import UpstreamProtocol

pytestmark = pytest.mark.e2e
REPOSITORY = Path(__file__).resolve().parents[2]
CORPUS = Path(os.environ.get("DATUM_ROUTER_SHARED", REPOSITORY.parent / "shared")) / "corpora" / "http1_public.json"
HOST = "router.example:8080"
# What a gateway accepts on purpose where the corpus wants a refusal.
ACCEPTED_ON_PURPOSE = {
    # RFC 9110 section 9.1: "an origin server that receives a request method that is unrecognized ... SHOULD respond
    # with the 501": the origin, so a gateway passes methods on.
    "COMP-UNKNOWN-METHOD", "llhttp-invalid-3", "llhttp-invalid-13",
    # RFC 9110 section 7.8: "A server MAY ignore a received Upgrade header field if it wishes to continue using the
    # current protocol on that connection."
    "llhttp-connection-9", "llhttp-connection-13", "llhttp-connection-14", "llhttp-connection-15",
    "llhttp-connection-16",
}  # fmt: skip
FORBIDDEN_UPSTREAM = {b"connection", b"keep-alive", b"upgrade", b"proxy-connection", b"te", b"http2-settings"}
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def cases() -> list[dict[str, Any]]:
    return json.loads(CORPUS.read_text()) if CORPUS.exists() else []


class Recorder:
    """An upstream of h11, which is strict by itself: keeps each request that was complete."""

    def __init__(self) -> None:
        self.requests: list[tuple[Any, bytes]] = []

    async def __call__(self, exchange: Any) -> None:
        body = await exchange.body()
        self.requests.append((exchange, body))
        await exchange.reply(200, b"" if exchange.method == "HEAD" else b"taken")


class Client:
    """One raw connection."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=15)
        self.buffer = b""
        self.is_closed = False

    def more(self) -> bool:
        try:
            data = self.sock.recv(65_536)
        except ConnectionError:
            data = b""
        self.buffer += data
        self.is_closed = not data
        return bool(data)

    def answer(self) -> int | None:
        """Return the status of the next whole answer, None if the connection ends before one."""
        while True:
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if end:
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
                size = int(length[1]) if length else 0
                if len(rest) >= size:
                    self.buffer = rest[size:]
                    return int(head.split()[1])
            if not self.more():
                assert not self.buffer, f"a cut answer: {self.buffer!r}"
                return None


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, kit: Any, peers: Any) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("corpus") / "manifests"
    directory.mkdir()
    recorder, beside = Recorder(), Recorder()
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(peers.serve(recorder, UpstreamProtocol.HTTP))
        bystander = stack.enter_context(peers.serve(beside, UpstreamProtocol.HTTP))
        peers.write_service(directory, "HTTP", upstream.port)
        peers.write_service(directory, "HTTP", bystander.port, name="bystander", path="/bystander")
        # What never ends is ended by the gateway: soon, so that the cases that wait do not make the test wait.
        limits = "head_timeout_s=1,body_idle_timeout_s=1"
        gateway = kit.Gateway(directory, "--listen", "127.0.0.1:0", env={"DATUM_ROUTER_DATA_PLANE_CONFIG": limits})
        stack.callback(gateway.stop)
        calm = Client(gateway.port)
        stack.callback(calm.sock.close)
        yield gateway, recorder, calm
        assert "Traceback" not in gateway.log.read_text()
        assert "worker_restarts" not in gateway.stats()["counters"]


@pytest.mark.skipif(not CORPUS.exists(), reason="public corpus http1_public.json is not here (DATUM_ROUTER_SHARED)")
def test_corpus_is_there() -> None:
    ids = {case["id"] for case in cases()}
    assert len(ids) >= 100
    assert ids >= ACCEPTED_ON_PURPOSE


@pytest.mark.parametrize("case", cases(), ids=lambda case: str(case["id"]))
def test_corpus_case(case: dict[str, Any], arena: Any, record_property: Any) -> None:
    gateway, recorder, calm = arena
    recorder.requests.clear()
    client = Client(gateway.port)
    with client.sock:
        with contextlib.suppress(ConnectionError):
            client.sock.sendall(str(case["raw"]).replace("@H@", HOST).encode("latin-1"))
        first = client.answer()
        # Whatever else it answers, up to its close; a connection that stays open is asked to close.
        statuses = [] if first is None else [first]
        with contextlib.suppress(ConnectionError):
            client.sock.sendall(b"GET /after HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        while (status := client.answer()) is not None:
            statuses.append(status)

    assert calm.is_closed is False
    calm.sock.sendall(b"GET /bystander HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert calm.answer() == 200

    if case["id"] in ACCEPTED_ON_PURPOSE:
        assert first == 200, "no longer accepted: remove it from ACCEPTED_ON_PURPOSE"
        verdict = "accepted on purpose"
    elif first is None:
        assert case["close"] or case["wait"], case["why"]
        verdict = "closed"
    else:
        in_time = first == 408 and (case["wait"] or case["close"])
        allowed = any(low <= first <= high for low, high in case["ok"])
        assert allowed or in_time, f"{statuses}: {case['why']}"
        verdict = "timed out" if first == 408 else "accepted" if first < 300 else "refused"
        # What follows a broken message is not looked at; a well-framed one that is not wanted leaves the connection be.
        assert verdict == "accepted" or statuses[1:] == ([200] if case["id"] == "COMP-METHOD-TRACE" else [])
    # What came through is whole, one for each answer of 200, and in canonical form.
    # RFC 9110 section 9.3.7: OPTIONS * "applies to the server in general rather than to a specific resource": ours.
    own = 1 if case["id"] == "COMP-OPTIONS-STAR" else 0
    assert len(recorder.requests) == statuses.count(200) - own
    for exchange, body in recorder.requests:
        names = [name for name, _ in exchange.headers]
        assert TOKEN.fullmatch(exchange.method)
        assert exchange.path.startswith("/")
        assert names.count(b"host") == 1
        assert not {b"content-length", b"transfer-encoding"} <= set(names)
        assert FORBIDDEN_UPSTREAM.isdisjoint(names)
        assert all(value == value.strip(b" \t") and not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value)
                   for _, value in exchange.headers)  # fmt: skip
        length = exchange.header(b"content-length")
        assert length is None or int(length) == len(body)
    record_property(f"HTTP/1 corpus against the gateway, {verdict}", case["id"])
