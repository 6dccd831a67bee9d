"""The client of the handshake measures, against servers with session tickets and without."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gatebench" / "handshakes.py"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


@contextlib.contextmanager
def server(*, tickets: int) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("bench.example").configure_cert(context)
    context.num_tickets = tickets
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listening.accept()
                with contextlib.suppress(OSError), sock, context.wrap_socket(sock, server_side=True) as secured:
                    secured.recv(65_536)
                    secured.sendall(ANSWER)
                    secured.unwrap()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


@pytest.mark.parametrize(
    ("kind", "tickets", "is_right"), [("full", 2, True), ("resumed", 2, True), ("resumed", 0, False)]
)
def test_connections_are_counted_and_what_was_not_resumed_is_an_error(kind: str, tickets: int, is_right: bool) -> None:
    with server(tickets=tickets) as port:
        command = [sys.executable, str(SCRIPT), str(port), "bench.example", kind, "0.2"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    report = json.loads(ran.stdout)
    assert report["requests"] > 0, ran.stderr
    assert (report["errors"] == 0) is is_right
