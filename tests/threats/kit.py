"""Kit for the threat list: one gateway process, an upstream that keeps every byte, a bystander, and raw clients.

Each test of a row runs inside an `Arena`, beside a bystander with a connection of its own whose requests must all be
answered. Afterwards nothing may be left of it: no traceback, no other worker, no connection, task, descriptor or
request still held (ground rules G1, G2 and G5). What was refused is compared with the gateway's own counters (G4).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hpack

from datum_router.observe import names
from datum_router.reasons import Reason
from datum_router_proxy import testing as h2
from datum_router_proxy.wire.http2 import PREFACE
from tests.conftest import MOST_P99_S, Backend, Gateway, answer, eventually, manifest, p99_s
from tests.ports import free_port

HOST = b"Host: a.test\r\n"
CLOSE = b"Connection: close\r\n"
TE = b"Transfer-Encoding: chunked\r\n"
CANARY = b"/smuggled"
INNER = b"GET " + CANARY + b" HTTP/1.1\r\n" + HOST + b"\r\n"
"""A request that hides in another one's bytes: an upstream that sees it has been smuggled to."""
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ON_A_TEST = "  hostnames: [a.test]"
LOOP = b"Via: " + b", ".join([b"1.1 datum-router"] * 11) + b"\r\n"
"""Makes a request that has passed here too often: it is counted, needs no route, and no row of ours sends it."""
MARKED = f"{names.REASONS.name}|h1|{Reason.LOOP_DETECTED}"
SILENCE_S = 8.0
"""How long a socket of ours waits for the gateway before the test fails."""

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: chunked(?:\r\n|$)")


def get(path: bytes = b"/", *fields: bytes, host: bytes = HOST, version: bytes = b"1.1") -> bytes:
    """Build a GET; each of `fields` is a line with its CRLF."""
    return b"GET " + path + b" HTTP/" + version + b"\r\n" + host + b"".join(fields) + b"\r\n"


def post(*fields: bytes, body: bytes = b"", version: bytes = b"1.1", path: bytes = b"/") -> bytes:
    """Build a POST with `body` behind its head, framed only by what `fields` say."""
    return b"POST " + path + b" HTTP/" + version + b"\r\n" + HOST + b"".join(fields) + b"\r\n" + body


def statuses(data: bytes) -> list[int]:
    """Return the status codes of the responses in `data`."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


def read_all(sock: socket.socket) -> bytes:
    """Read to the end, be it clean or a reset."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            data += chunk
    return bytes(data)


def read_until(sock: socket.socket, ending: bytes) -> bytes:
    """Read until the input ends with `ending`."""
    data = b""
    while not data.endswith(ending):
        chunk = sock.recv(65536)
        assert chunk, f"closed after {data[:2000]!r}"
        data += chunk
    return data


def dechunked(body: bytes) -> bytes:
    """Take the chunk framing off, strictly."""
    data = bytearray()
    while True:
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            return bytes(data)
        data += body[:size]
        assert body[size : size + 2] == b"\r\n"
        body = body[size + 2 :]


def cpu_s(pids: list[int]) -> float:
    """Return the processor time in seconds that the processes have used so far (proc(5), fields utime and stime)."""
    ticks = 0
    for pid in pids:
        ticks += sum(int(item) for item in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


class Received:
    """One connection at the upstream: every byte that came, and how far it was understood."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.raw = bytearray()
        self.is_over = False


Script = Callable[[Received, bytes, bytes], None]


class Upstream:
    """An upstream that keeps what it receives, reads it strictly, and says what it is told to.

    Attributes:
        connections: All connections since `forget`, with their bytes.
        requests: Head and decoded-by-nobody body of each request that was complete.
        reply: What is sent for a complete request.
        peak: Most connections that were open at once since `forget`.
        on_head: If set, called with the connection, the head and what followed it, instead of reading a body.
    """

    def __init__(self) -> None:
        self.connections: list[Received] = []
        self.requests: list[tuple[bytes, bytes]] = []
        self.reply = OK
        self.on_head: Script | None = None
        self.accepted = 0
        self.peak = 0
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.host, self.port = self._socket.getsockname()[:2]
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        """Forget what was recorded; the connections stay open."""
        self.connections = [item for item in self.connections if not item.is_over]
        for item in self.connections:
            item.raw.clear()
        self.requests.clear()
        self.peak = 0
        self.reply = OK
        self.on_head = None

    @property
    def raw(self) -> bytes:
        """Everything that was received."""
        return b"".join(bytes(item.raw) for item in self.connections)

    @property
    def targets(self) -> list[bytes]:
        """The request targets of complete requests, in order."""
        return [head.split(b" ")[1] for head, _ in self.requests]

    def close(self) -> None:
        """Close the listener and all connections."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for item in self.connections:
            with contextlib.suppress(OSError):
                item.sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            item = Received(sock)
            self.connections.append(item)
            self.peak = max(self.peak, sum(not one.is_over for one in self.connections))
            threading.Thread(target=self._serve, args=(item,), daemon=True).start()

    def _serve(self, item: Received) -> None:
        try:
            with item.sock:
                rest = b""
                while True:
                    rest = self._one(item, rest)
        except (ConnectionError, OSError):
            pass
        finally:
            item.is_over = True

    def _more(self, item: Received) -> bytes:
        data = item.sock.recv(65536)
        if not data:
            raise ConnectionError("the gateway gave up")
        item.raw += data
        return data

    def _one(self, item: Received, rest: bytes) -> bytes:
        """Read one request by a strict reading of its head and answer it; return what came after it."""
        while b"\r\n\r\n" not in rest:
            rest += self._more(item)
        head, _, rest = rest.partition(b"\r\n\r\n")
        if self.on_head is not None:
            self.on_head(item, head, rest)
            return b""
        body = bytearray(rest)
        length = _LENGTH.search(head)
        end = 0
        if length is not None:
            end = int(length[1])
            while len(body) < end:
                body += self._more(item)
        elif _CHUNKED.search(head):
            at = 0
            while True:
                while (line := body.find(b"\r\n", at)) < 0:
                    body += self._more(item)
                size = int(bytes(body[at:line]), 16)
                at = line + 2
                if not size:
                    break
                at += size + 2
                while len(body) < at:
                    body += self._more(item)
            while (end := body.find(b"\r\n\r\n", line) + 4) < 4:
                body += self._more(item)
        self.requests.append((head, bytes(body[:end])))
        item.sock.sendall(self.reply)
        return bytes(body[end:])


def assert_canonical(head: bytes) -> None:
    """G6: one Host, one length at most, CRLF only, no fold, names of token characters, no control bytes."""
    line, *fields = head.split(b"\r\n")
    assert re.fullmatch(rb"[A-Z!#$%&'*+.^_`|~0-9-]+ [!-~]+ HTTP/1\.1", line), line
    for field in fields:
        assert re.fullmatch(rb"[a-z0-9!#$%&'*+.^`|~-]+: [^\x00-\x08\x0a-\x1f\x7f]*", field), field
    names = [field.partition(b":")[0] for field in fields]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1


class Arena:
    """A gateway, a recorder under `/`, a bystander under `/bystander`, and what the gateway held at rest."""

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.pids = gateway.worker_pids()
        # Ready means that a worker serves; until it has its listener it has a descriptor less than at rest.
        eventually(lambda: gateway.stats()["gauges"].get("tasks") == 1, "the worker has its listener")
        self.fds = self._open_fds()
        self.answered = 0
        self._waits_s: list[float] = []
        self._errors: list[str] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread()
        self._marks = 0
        self._before: Counter[str] = Counter()

    def _open_fds(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)

    def connect(self) -> socket.socket:
        """Open a connection to the gateway."""
        sock = socket.create_connection(("127.0.0.1", self.gateway.port), timeout=SILENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def ask(self, message: bytes, *, pieces: int = 1) -> bytes:
        """Send `message` in so many pieces and return everything up to the gateway's close."""
        with self.connect() as sock:
            step = -(-len(message) // pieces)
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(message), step):
                    sock.sendall(message[start : start + step])
            return read_all(sock)

    def sees_whole(self, message: bytes) -> bytes:
        """Send a legal request on a new connection and return its one response's head and body."""
        data = self.ask(message.replace(b"\r\n\r\n", b"\r\n" + CLOSE + b"\r\n", 1))
        assert len(statuses(data)) == 1, data[:2000]
        return data

    # --- the gateway's own figures ---------------------------------------------------------------------------------

    def counters(self) -> Counter[str]:
        """Return the gateway's counters, in which everything that has happened so far is contained."""
        self.mark()
        return Counter(self.gateway.stats()["counters"])

    def mark(self) -> None:
        """Do something countable and wait until it is counted: reports come in order, so all before it is too."""
        assert statuses(self.ask(get(b"/", LOOP, CLOSE))) == [508]
        self._marks += 1
        eventually(
            lambda: self.gateway.stats()["counters"].get(MARKED) == self._marks,
            "the workers' figures are reported",
        )

    def rejected(self) -> dict[str, int]:
        """Return what was refused since the test began, as `h1|bad_length`: count (G4)."""
        change = self.counters() - self._before
        del change[f"{names.REJECTED.name}|h1|{Reason.LOOP_DETECTED}"]
        return {name.partition("|")[2]: count for name, count in change.items() if name.startswith(names.REJECTED.name)}

    # --- the ground rules ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Forget what was recorded, and start the bystander."""
        self.upstream.forget()
        self._before = self.counters()
        self.answered = 0
        self._waits_s.clear()
        self._errors.clear()
        self._is_over.clear()
        self._thread = threading.Thread(target=self._stand_by, daemon=True)
        self._thread.start()

    def _stand_by(self) -> None:
        try:
            with self.connect() as sock:
                while not self._is_over.wait(0.01):
                    began = time.monotonic()
                    sock.sendall(get(b"/bystander"))
                    read_until(sock, b"\r\n\r\nfine")
                    self._waits_s.append(time.monotonic() - began)
                    self.answered += 1
        except (OSError, AssertionError) as error:
            self._errors.append(repr(error))

    def end(self) -> None:
        """G1, G5 and G6: the bystander never noticed, everything is as it was, and what went up was canonical."""
        for head, _ in self.upstream.requests:
            assert_canonical(head)
        before = self.answered
        eventually(lambda: self.answered > before + 1 or bool(self._errors), "the bystander is answered")
        self._is_over.set()
        self._thread.join(timeout=10)
        assert not self._errors, self._errors
        assert p99_s(self._waits_s) < MOST_P99_S
        self.mark()
        eventually(self._is_at_rest, f"all given back (held: {self.gateway.stats()['gauges']})", 8.0)
        assert self.gateway.worker_pids() == self.pids
        counters = self.gateway.stats()["counters"]
        assert "datum_router_worker_restarts_total" not in counters
        assert [name for name in counters if name.endswith(f"|{Reason.INTERNAL}")] == []
        log = self.gateway.log.read_text()
        assert "Traceback" not in log, log[log.index("Traceback") :][:3000]

    def _is_at_rest(self) -> bool:
        gauges = self.gateway.stats()["gauges"]
        pooled = gauges.get("upstream_connections", 0)
        if (gauges["connections"], gauges["requests_in_flight"], gauges["tasks"]) != (0, 0, 1):
            return False
        return self._open_fds() <= self.fds + pooled


INGRESS = """
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {{name: edge}}
spec:
  host: a.test
  listeners: [{{name: http, port: {port}, protocol: HTTP}}]
  rules: [{{path: /, service: {{name: a}}}}]
  {spec}
"""


class Client2:
    """A client of HTTP/2 that sends any frames and reads them back one by one."""

    def __init__(self, arena: Arena, *, opening: bytes = PREFACE + h2.settings()) -> None:
        self.sock = arena.connect()
        self.sock.sendall(opening)
        self.decoder = hpack.Decoder()
        self._buffer = b""

    def __enter__(self) -> Client2:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *parts: bytes) -> None:
        """Send frames; a gateway that has hung up already is found out by reading."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(b"".join(parts))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield (type, flags, stream, payload) to the end of the connection."""
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

    def until(self, kind: int, stream_id: int = 0) -> tuple[int, bytes]:
        """Return flags and payload of the next such frame."""
        for found, flags, stream, payload in self.frames():
            if found == HEADERS:
                fields = self.decoder.decode(payload, raw=True)
                if kind == HEADERS and stream == stream_id:
                    return flags, repr(dict(fields)).encode()
            elif (found, stream) == (kind, stream_id):
                return flags, payload
        raise AssertionError(f"no frame of type {kind} came")

    def verdict(self, stream_id: int = 1) -> str:
        """Return how the stream (-1: the connection) ends: `status 200`, `reset 1`, `goaway 11` or `closed`.

        After a GOAWAY with an error the connection has to be closed, too.
        """
        status = ""
        for kind, flags, stream, payload in self.frames():
            if kind == GOAWAY and payload[4:8] != bytes(4):
                for _ in self.frames():
                    pass
                return f"goaway {int.from_bytes(payload[4:8], 'big')}"
            if kind == HEADERS:
                fields = self.decoder.decode(payload, raw=True)
                if stream == stream_id and not status:
                    status = "status " + dict(fields)[b":status"].decode()
            if stream == stream_id:
                if kind == RST_STREAM and not status:
                    return f"reset {int.from_bytes(payload, 'big')}"
                if flags & 1 or kind == RST_STREAM:
                    return status
        return "closed"


def head2(*extra: tuple[bytes, bytes], path: bytes = b"/", **pseudo: bytes) -> list[tuple[bytes, bytes]]:
    """Return the fields of a request over HTTP/2; keywords replace or add pseudo-header fields."""
    fields = {b":method": b"GET", b":scheme": b"http", b":path": path, b":authority": b"a.test"}
    fields |= {b":" + name.encode(): value for name, value in pseudo.items()}
    return [*fields.items(), *extra]


@contextlib.contextmanager
def running(
    directory: Path,
    *,
    routes: str | None = None,
    extra: str = "",
    edge: str = "",
    env: dict[str, str] | None = None,
) -> Iterator[Arena]:
    """Run a gateway over `extra` manifests and, unless `routes` replaces it, a route from `/` to the recorder.

    With `edge`, more of the spec of a VPCIngress, all comes in by a listener of that.
    """
    directory.mkdir(exist_ok=True)
    upstream = Upstream()
    bystander = Backend(answer(b"fine"))
    try:
        service = manifest("a", upstream) if routes is None else routes.format(port=upstream.port)
        manifests = {
            "a.yaml": service + extra,
            "b.yaml": manifest("b", bystander, path="/bystander", extra=ON_A_TEST),
        }
        for name, text in manifests.items():
            bound = text.replace("\n  match:", "\n  parentRefs: [{name: edge}]\n  match:") if edge else text
            (directory / name).write_text(bound)
        if edge:
            (directory / "c.yaml").write_text(INGRESS.format(port=free_port(), spec=edge))
        gateway = Gateway(
            directory,
            *(() if edge else ("--listen", "127.0.0.1:0")),
            env={"DATUM_ROUTER_REPORT_INTERVAL_SECS": "0.02", **(env or {})},
        )
        try:
            yield Arena(gateway, upstream)
            upstream.close()
            bystander.close()
            eventually(
                lambda: gateway.stats()["gauges"]["upstream_connections"] == 0, "the pools let go of what is dead"
            )
        finally:
            gateway.stop()
    finally:
        upstream.close()
        bystander.close()
