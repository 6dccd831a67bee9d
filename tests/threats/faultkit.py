"""What tests of faults share: a gateway with short limits, backends that misbehave, and a bystander beside them.

`arena` starts a real gateway, keeps a bystander asking on a connection of its own, and at the end holds the ground
rules: the bystander had no error and was not kept waiting (G1), no worker died and nothing was logged as a traceback
(G2), and connections, tasks, requests and descriptors are back at what they were (G5).
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hpack

from datum_router.observe import names
from datum_router_proxy import testing as h2
from datum_router_proxy.wire.http2 import PREFACE
from tests.conftest import MOST_P99_S, Backend, Gateway, answer, eventually, manifest, p99_s

HOST = b"Host: a.test\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
CLOSING_GET = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
AT_REST_S = 5.0
"""How long a gateway may take to give everything back (G5)."""
PATIENCE_S = 15.0


def read_all(sock: socket.socket) -> bytes:
    """Read to the end, be it clean or a reset."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            data += chunk
    return data


def read_until(sock: socket.socket, ending: bytes) -> bytes:
    """Read up to `ending`; an earlier close is an error, and so is silence."""
    data = b""
    while not data.endswith(ending):
        try:
            chunk = sock.recv(65536)
        except TimeoutError:
            raise AssertionError(f"silence after {data!r}") from None
        assert chunk, f"closed after {data!r}"
        data += chunk
    return data


def statuses(data: bytes) -> list[int]:
    """Return the status of every response head in `data`."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used so far."""
    ticks = sum(int(item) for item in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


def open_fds(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


METRICS = {
    "rejected": names.REJECTED.name,
    "reason": names.REASONS.name,
    "requests": names.PROTOCOL_REQUESTS.name,
    "restarts": names.WORKER_RESTARTS.name,
    "plugin_failures": names.PLUGIN_FAILURES.name,
    "plugin_disabled": names.PLUGIN_DISABLED.name,
}


def counter(gateway: Gateway, text: str) -> int:
    """Return a counter over all workers: one of `METRICS` and values of labels, as `rejected|h1|flood`."""
    metric, *labels = text.split("|")
    total = 0
    for name, value in gateway.stats()["counters"].items():
        found, *has = name.split("|")
        if found == METRICS[metric] and set(labels) <= set(has):
            total += value
    return int(total)


class Client2:
    """An HTTP/2 client of raw frames."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.sendall(PREFACE + h2.settings())
        self.decoder = hpack.Decoder()
        self._buffer = b""

    def __enter__(self) -> Client2:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *parts: bytes) -> None:
        """Send frames; a peer that has closed meanwhile is found out by reading."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(b"".join(parts))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield type, flags, stream and payload to the end of the connection."""
        while True:
            while len(self._buffer) >= 9 and len(self._buffer) >= 9 + int.from_bytes(self._buffer[:3], "big"):
                size = 9 + int.from_bytes(self._buffer[:3], "big")
                one, self._buffer = self._buffer[:size], self._buffer[size:]
                yield h2.parse(one)[0]
            try:
                data = self.sock.recv(65536)
            except ConnectionError:
                return
            if not data:
                return
            self._buffer += data

    def verdict(self, stream_id: int = 1) -> str:
        """Return how a stream ends: `status 200`, `reset 1`, `goaway 11`, or `closed` with its connection."""
        status = ""
        for kind, flags, stream, payload in self.frames():
            if kind == GOAWAY and payload[4:8] != bytes(4):
                return f"goaway {int.from_bytes(payload[4:8], 'big')}"
            if kind == HEADERS:
                fields = dict(self.decoder.decode(payload, raw=True))
                if stream == stream_id and not status and b":status" in fields:
                    status = "status " + fields[b":status"].decode()
            if stream == stream_id and (flags & 1 or kind == RST_STREAM):
                return status if flags & 1 and kind != RST_STREAM else f"reset {int.from_bytes(payload, 'big')}"
        return "closed"


def head2(*extra: tuple[bytes, bytes], method: bytes = b"GET", path: bytes = b"/") -> list[tuple[bytes, bytes]]:
    """Return the fields of a request over HTTP/2."""
    return [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"a.test"), *extra]


class Firehose:
    """A backend of one thread that answers each request with a body as fast as it is taken, on any number of sockets.

    Attributes:
        sent: Body bytes that the kernel has taken.
        most_open: The most connections at once.
    """

    def __init__(self, size: int, *, send_buffer: int = 0) -> None:
        self._size = size
        self._selector = selectors.DefaultSelector()
        self._left: dict[socket.socket, int] = {}
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        if send_buffer:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # accepted ones inherit it
        self._sock.setblocking(False)
        self.host, self.port = self._sock.getsockname()[:2]
        self.sent = 0
        self.most_open = 0
        self._is_over = threading.Event()
        self._selector.register(self._sock, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._left)

    def _run(self) -> None:
        piece = bytes(65536)
        while not self._is_over.is_set():
            for key, events in self._selector.select(timeout=0.05):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._sock:
                    self._accept()
                    continue
                try:
                    if events & selectors.EVENT_READ:
                        data = sock.recv(65536)
                        if not data:
                            raise ConnectionError("closed")
                        if data.endswith(b"\r\n\r\n"):
                            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % self._size
                            sock.send(head)
                            self._left[sock] = self._size
                            self._selector.modify(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
                    elif self._left[sock]:
                        count = sock.send(piece[: self._left[sock]])
                        self._left[sock] -= count
                        self.sent += count
                    else:
                        self._selector.modify(sock, selectors.EVENT_READ)
                except BlockingIOError:
                    continue
                except OSError:
                    self._selector.unregister(sock)
                    del self._left[sock]
                    sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                sock, _ = self._sock.accept()
                sock.setblocking(False)
                self._left[sock] = 0
                self.most_open = max(self.most_open, len(self._left))
                self._selector.register(sock, selectors.EVENT_READ)

    def close(self) -> None:
        """End everything."""
        self._is_over.set()
        self._thread.join(timeout=5)
        for sock in (*self._left, self._sock):
            sock.close()
        self._selector.close()


class Bystander:
    """Asks for `/bystander` on one connection, again and again, and keeps what went wrong.

    Attributes:
        answered: How many answers came.
        errors: What went wrong; empty is what every row requires.
        waits_s: How long each answer took.
    """

    def __init__(self, connect: Callable[[], socket.socket], *, may_reconnect: bool = False) -> None:
        self._connect = connect
        self._may_reconnect = may_reconnect
        self.answered = 0
        self.errors: list[str] = []
        self.waits_s: list[float] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                with self._connect() as sock:
                    self._ask_on(sock)
        except (OSError, AssertionError) as error:
            self.errors.append(repr(error))

    def _ask_on(self, sock: socket.socket) -> None:
        while not self._is_over.wait(0.01):
            began = time.monotonic()
            sock.sendall(b"GET /bystander HTTP/1.1\r\n" + HOST + b"\r\n")
            data = read_until(sock, b"\r\n\r\nfine")
            self.waits_s.append(time.monotonic() - began)
            self.answered += 1
            if self._may_reconnect and b"\r\nconnection: close" in data.lower():
                return

    def is_answered(self, more: int = 3) -> None:
        """Wait until it has had some more answers: it is served now, whatever else is going on."""
        wanted = self.answered + more
        eventually(lambda: self.answered >= wanted or bool(self.errors), "the bystander is answered")
        assert not self.errors, self.errors

    def stop(self) -> None:
        """End it and require that nothing went wrong and nobody kept it waiting."""
        self._is_over.set()
        self._thread.join(timeout=20)
        assert not self.errors, self.errors
        assert p99_s(self.waits_s) < MOST_P99_S


class Arena:
    """A gateway under test and the bystander beside it."""

    def __init__(self, gateway: Gateway, *, may_reconnect: bool = False, port: int = 0) -> None:
        self.gateway = gateway
        self.port = port or gateway.port
        self.pids: list[int] = gateway.worker_pids()
        eventually(lambda: self.gauge("tasks") == self._listeners(), "every worker has every listener")
        self.fds = 0
        eventually(self._count, "nothing is opened or closed")
        self.bystander = Bystander(self.connect, may_reconnect=may_reconnect)

    def _listeners(self) -> int:
        return len(self.gateway.stats()["listeners"]) * len(self.pids)

    def open_fds(self) -> int:
        """Return the descriptors of all workers."""
        return sum(open_fds(pid) for pid in self.pids)

    def _count(self) -> bool:
        """Count what is open without kept upstream connections; True if nothing was opened or closed meanwhile."""
        before = self.open_fds()
        with urllib.request.urlopen(f"{self.gateway.admin}/metrics", timeout=PATIENCE_S):
            self.fds = before - self.gauge("upstream_connections")  # workers have told them for that page
        return self.open_fds() == before

    def connect(self, source: str = "127.0.0.1", *, port: int = 0, receive_buffer: int = 0) -> socket.socket:
        """Connect, from another loopback address if asked."""
        sock = socket.socket()
        try:
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.bind((source, 0))
            sock.connect(("127.0.0.1", port or self.port))  # blocking: one that is reset at once has been connected
            sock.settimeout(PATIENCE_S)
        except OSError:
            sock.close()
            raise
        return sock

    def client2(self) -> Client2:
        """Connect as an HTTP/2 client with prior knowledge."""
        return Client2(self.connect())

    def ask(self, message: bytes) -> bytes:
        """Send `message` and return everything up to the gateway's close."""
        with self.connect() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(message)
            return read_all(sock)

    def counter(self, name: str) -> int:
        """Return a counter; see `counter`."""
        return counter(self.gateway, name)

    def gauge(self, name: str) -> int:
        """Return a gauge over all workers."""
        return int(self.gateway.stats()["gauges"].get(name, 0))

    def counted(self, name: str, least: int = 1) -> None:
        """Wait until a counter has reached `least` (workers report four times a second)."""
        eventually(lambda: self.counter(name) >= least, f"{name} reaches {least}")

    def is_at_rest(self) -> bool:
        """Tell whether nothing of a client or a request is left."""
        gauges = self.gateway.stats()["gauges"]
        if (gauges["connections"], gauges["requests_in_flight"], gauges["tasks"]) != (0, 0, self._listeners()):
            return False
        return self.open_fds() <= self.fds + gauges["upstream_connections"]

    def end(self) -> None:
        """Hold the ground rules."""
        self.bystander.is_answered()
        self.bystander.stop()
        try:
            eventually(self.is_at_rest, "everything is given back", AT_REST_S)
        except AssertionError as error:
            links = [os.readlink(one) for pid in self.pids for one in Path(f"/proc/{pid}/fd").iterdir()]
            error.add_note(f"{self.gateway.stats()['gauges']}; {self.fds} descriptors at first, now {links}")
            raise
        assert self.gateway.worker_pids() == self.pids
        assert self.counter("restarts") == 0
        assert self.counter("reason|internal") == 0
        log = self.gateway.log.read_text()
        assert "Traceback" not in log, log[log.index("Traceback") :][:3000]


@contextlib.contextmanager
def added(arena: Arena, *manifests: str, file: str = "added.yaml") -> Iterator[Path]:
    """Serve `manifests`, too, for a while, from a file of their own; return when every worker has them in force."""
    gateway = arena.gateway
    path = gateway.directory / file

    def settle(change: Callable[[], object]) -> None:
        before = gateway.stats()["version"]
        change()
        eventually(
            lambda: gateway.stats()["version"] > before and not gateway.stats()["lagging_workers"], "it is in force"
        )

    settle(lambda: replace_file(path, "---".join(manifests)))
    try:
        yield path
    finally:
        settle(path.unlink)


def replace_file(path: Path, text: str) -> None:
    """Put a file in place at once, as editors and ConfigMaps do."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.rename(path)


def configure(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the environment that gives the data plane these settings."""
    return {"DATUM_ROUTER_DATA_PLANE_CONFIG": ",".join(f"{name}={value}" for name, value in settings.items())}


@contextlib.contextmanager
def gateway_for(
    tmp_path: Path,
    *manifests: str,
    arguments: tuple[str, ...] = ("--listen", "127.0.0.1:0"),
    env: Mapping[str, str] | None = None,
    wrapper: tuple[str, ...] = (),
    **settings: object,
) -> Iterator[Gateway]:
    """Run a gateway over `manifests` and a bystander's route, with data plane settings as keywords."""
    fine = Backend(answer(b"fine"))
    directory = tmp_path / "manifests"
    directory.mkdir(exist_ok=True)
    for index, text in enumerate((*manifests, manifest("bystander", fine, path="/bystander"))):
        (directory / f"{index}.yaml").write_text(text)
    environment = {**(configure(settings) if settings else {}), **(env or {})}
    gateway = Gateway(directory, *arguments, env=environment, wrapper=wrapper)
    try:
        yield gateway
    finally:
        gateway.stop()
        fine.close()


@contextlib.contextmanager
def arena(
    tmp_path: Path, *manifests: str, may_reconnect: bool = False, port: int = 0, **options: Any
) -> Iterator[Arena]:
    """Run `gateway_for` with a bystander, and hold the ground rules at the end; see the module."""
    with gateway_for(tmp_path, *manifests, **options) as gateway:
        built = Arena(gateway, may_reconnect=may_reconnect, port=port)
        yield built
        built.end()


def install_plugin(tmp_path: Path, source: str, name: str = "faulty") -> dict[str, str]:
    """Write an installed distribution with one plugin module; return the environment in which it is found."""
    site = tmp_path / "site"
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}_plugin.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[datum_router]\n{name} = {name}_plugin\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))}


BALANCER_PLUGIN = """
import os, sys, threading, time
from datum_router import hookimpl
from datum_router.plugins import BalancerSpec, PluginInfo


@hookimpl
def datum_router_plugin_info():
    return PluginInfo(name="faulty", version="1.0", api={api}, stability="alpha", posture="untrusted-downstream")


class Faulty:
    def pick(self, ctx, endpoints, health):
        {pick}


@hookimpl
def datum_router_balancers():
    return [BalancerSpec(name="faulty", config=None, create=lambda _policy: Faulty())]

{more}
"""


def balancer_plugin(pick: str, *, api: int = 1, more: str = "") -> str:
    """Return the source of a plugin whose balancer `faulty` runs the statements `pick` for each request."""
    return BALANCER_PLUGIN.format(pick=pick.replace("\n", "\n        "), api=api, more=more)
