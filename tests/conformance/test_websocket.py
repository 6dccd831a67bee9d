"""WebSocket through the gateway: frames pass untouched in every pairing, and `websockets` peers get along.

The tunnel reads no frames, so it must carry broken ones as they are: endpoints judge them (RFC 6455 section 7.1.7).
The cases follow the sections of Autobahn's suite; the suite itself runs in test_autobahn.py where Python 2.7 is found.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import websockets.exceptions
import websockets.sync.client
import websockets.sync.server

from datum_router.model.service import UpstreamProtocol

pytestmark = pytest.mark.e2e
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KOSME = "κόσμε".encode()


def frame(
    kind: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"\x0a\xf5\x5a\xa5"
) -> bytes:
    """Return one frame, valid or not (RFC 6455 section 5.2)."""
    size = len(payload)
    head = bytes((fin << 7 | rsv << 4 | kind,))
    flag = 0x80 if mask else 0
    if size < 126:
        head += bytes((flag | size,))
    elif size < 65_536:
        head += bytes((flag | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((flag | 127,)) + size.to_bytes(8, "big")
    if mask is None:
        return head + payload
    stream = mask * (size // 4 + 1)
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(stream[:size], "big")).to_bytes(size, "big")
    return head + mask + masked


def fragments(kind: int, *parts: bytes, between: bytes = b"") -> bytes:
    last = len(parts) - 1
    frames = [frame(0 if at else kind, part, fin=at == last) for at, part in enumerate(parts)]
    return between.join(frames)


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)] or [b""]


NOISE = random.Random(6455).randbytes(1 << 20)
SIZES = (0, 125, 126, 127, 128, 65_535, 65_536)
INVALID_UTF8 = (
    "cebae1bdb9cf83cebcceb5eda080656469746564",
    "fe",
    "ff",
    "c0af",
    "eda080",
    "f4908080",
    "f8888080",
    "80",
    "ce",
)
CASES: dict[str, dict[str, bytes]] = {
    "1 framing": {
        **{f"text of {size}": frame(TEXT, b"*" * size) for size in SIZES},
        **{f"binary of {size}": frame(BINARY, NOISE[:size]) for size in SIZES},
        "unmasked": frame(TEXT, b"no mask", mask=None),
    },
    "2 pings and pongs": {
        "empty ping": frame(PING),
        "ping of 125": frame(PING, NOISE[:125]),
        "ping of 126, too long": frame(PING, NOISE[:126]),
        "unsolicited pong": frame(PONG, b"unasked"),
        "ten pings": b"".join(frame(PING, b"%d" % at) for at in range(10)),
    },
    "3 reserved bits": {
        f"{rsv} on {kind}": frame(TEXT, b"first") + frame(kind, b"x" * 8, rsv=rsv)
        for rsv in range(1, 8)
        for kind in (TEXT, PING, CLOSE)
    },
    "4 opcodes": {f"opcode {kind}": frame(kind, b"reserved") + frame(PING) for kind in (*range(3, 8), *range(11, 16))},
    "5 fragmentation": {
        "ping in two": fragments(PING, b"a", b"b"),
        "pong in two": fragments(PONG, b"a", b"b"),
        "text in two": fragments(TEXT, b"fragment1", b"fragment2"),
        "ping between": fragments(TEXT, b"fragment1", b"fragment2", between=frame(PING, b"between")),
        "three with pings": fragments(BINARY, b"1", b"2", b"3", between=frame(PING)),
        "continuation of nothing": frame(0, b"lost") + frame(TEXT, b"after"),
        "unfinished continuation of nothing": frame(0, b"lost", fin=False) + frame(TEXT, b"after"),
        "new message within one": frame(TEXT, b"open", fin=False) + frame(TEXT, b"another"),
        "empty fragments": fragments(TEXT, b"", b"", b""),
    },
    "6 UTF-8": {
        "valid": frame(TEXT, KOSME),
        "in fragments of a byte": fragments(TEXT, *cut(KOSME, 1)),
        "cut in a code point": fragments(TEXT, KOSME[:1], KOSME[1:]),
        **{f"invalid {text}": frame(TEXT, bytes.fromhex(text)) for text in INVALID_UTF8},
        **{f"invalid {text} in bytes": fragments(TEXT, *cut(bytes.fromhex(text), 1)) for text in INVALID_UTF8},
    },
    "7 closing": {
        "empty close": frame(CLOSE),
        "close of one byte": frame(CLOSE, b"\x03"),
        "reason of 123": close(1000, b"*" * 123),
        "reason of 124, too long": close(1000, b"*" * 124),
        "reason not UTF-8": close(1000, b"\xce\xba\xe1\xff"),
        "two closes": close(1000) + close(1001),
        "text after close": close(1000) + frame(TEXT, b"late"),
        "close within a message": frame(TEXT, b"open", fin=False) + close(1000),
        **{f"code {code}": close(code) for code in (*range(1000, 1015), 3000, 3999, 4000, 4999)},
        **{f"invalid code {code}": close(code) for code in (0, 999, 1016, 1100, 2000, 2999, 5000, 65_535)},
    },
    "9 sizes": {
        "a message of 1 MiB": frame(BINARY, NOISE),
        "1 MiB in frames of 4 KiB": fragments(BINARY, *cut(NOISE, 4_096)),
        "64 KiB in frames of 64": fragments(BINARY, *cut(NOISE[:65_536], 64)),
        "1,000 messages of 16": b"".join(frame(BINARY, item) for item in cut(NOISE[:16_000], 16)),
    },
    "10 automatic fragmentation": {"64 KiB in frames of 1,300": fragments(TEXT, *cut(b"*" * 65_536, 1_300))},
}  # fmt: skip


class H1Tunnel:
    """The client's end of a tunnel over HTTP/1.1."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        key = base64.b64encode(os.urandom(16))
        self.sock.sendall(
            b"GET /echo HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = self.sock.recv(65_536)
            assert chunk, head
            head += chunk
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert base64.b64encode(hashlib.sha1(key + GUID).digest()) in head
        assert head.endswith(b"\r\n\r\n")

    def exchange(self, pieces: list[bytes]) -> bytes:
        """Send the pieces, one write each, and return as many bytes as were sent."""
        sender = threading.Thread(target=lambda: [self.sock.sendall(piece) for piece in pieces], daemon=True)
        sender.start()
        wanted, data = sum(map(len, pieces)), bytearray()
        while len(data) < wanted:
            chunk = self.sock.recv(65_536)
            if not chunk:
                break
            data += chunk
        sender.join(20)
        return bytes(data)

    def finish(self) -> bytes:
        """End our direction and return what comes until the other one ends."""
        self.sock.shutdown(socket.SHUT_WR)
        data = b""
        while chunk := self.sock.recv(65_536):
            data += chunk
        self.sock.close()
        return data


class H2Tunnel:
    """The client's end of a tunnel on an HTTP/2 stream (RFC 8441)."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.connection.initiate_connection()
        self.data, self.status, self.is_over = bytearray(), b"", False
        while not self.connection.remote_settings.enable_connect_protocol:
            self._turn()
        self.connection.send_headers(
            1,
            [
                (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"),
                (b":authority", b"a.test"), (b":path", b"/echo"), (b"sec-websocket-version", b"13"),
            ],
        )  # fmt: skip
        while not self.status:
            self._turn()
        assert self.status == b"200"

    def _turn(self) -> None:
        self.sock.sendall(self.connection.data_to_send())
        raw = self.sock.recv(65_536)
        assert raw, "the gateway closed the connection"
        for event in self.connection.receive_data(raw):
            if isinstance(event, h2.events.ResponseReceived):
                self.status = dict(event.headers)[b":status"]
            elif isinstance(event, h2.events.DataReceived):
                self.data += event.data
                self.connection.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self.is_over = True
        self.sock.sendall(self.connection.data_to_send())

    def exchange(self, pieces: list[bytes]) -> bytes:
        """Send the pieces, one DATA frame each where the window allows, and return as many bytes as were sent."""
        wanted = sum(map(len, pieces))
        for piece in pieces:
            at = 0
            while at < len(piece) and not self.is_over:
                room = min(self.connection.local_flow_control_window(1), self.connection.max_outbound_frame_size)
                if room <= 0:
                    self._turn()
                    continue
                self.connection.send_data(1, piece[at : at + room])
                self.sock.sendall(self.connection.data_to_send())
                at += room
        while len(self.data) < wanted and not self.is_over:
            self._turn()
        data = bytes(self.data)
        self.data.clear()
        return data

    def finish(self) -> bytes:
        """End our direction and return what comes until the other one ends."""
        self.connection.end_stream(1)
        while not self.is_over:
            self._turn()
        self.sock.close()
        return bytes(self.data)


def echo_h1(sock: socket.socket, rest: bytes, head: bytes) -> None:
    """Answer a handshake, then return each byte until the client has no more."""
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")).split(b": ")[1]
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: "
        + accept
        + b"\r\n\r\n"
        + rest
    )
    while data := sock.recv(65_536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_RDWR)


async def echo_h2(exchange: Any) -> None:
    await exchange.head(200)
    while (data := await exchange.read()) is not None:
        await exchange.data(data)
    await exchange.end()


@pytest.fixture(scope="module", params=["h1", "h2"])
def echo(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kit: Any, peers: Any
) -> Iterator[Any]:
    """A gateway before an upstream that returns each byte, over HTTP/1.1 or HTTP/2."""
    directory = tmp_path_factory.mktemp("websocket") / "manifests"
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        if request.param == "h1":
            backend = kit.Backend(lambda sock, rest: echo_h1(sock, rest, backend.heads[-1]))
            stack.callback(backend.close)
            peers.write_service(directory, "HTTP", backend.port)
        else:
            upstream = stack.enter_context(peers.serve(echo_h2, UpstreamProtocol.H2C))
            peers.write_service(directory, "H2C", upstream.port)
        gateway = kit.Gateway(directory, "--listen", "127.0.0.1:0")
        stack.callback(gateway.stop)
        yield request.param, gateway
        kit.eventually(lambda: gateway.stats()["gauges"].get("requests_in_flight", 0) == 0, "no tunnel is held")
        assert "Traceback" not in gateway.log.read_text()


TUNNELS = {"h1": H1Tunnel, "h2": H2Tunnel}


@pytest.mark.parametrize("section", CASES)
@pytest.mark.parametrize("client", TUNNELS)
def test_frames_pass_untouched(client: str, section: str, echo: Any, record_property: Any) -> None:
    upstream, gateway = echo
    wrong = {}
    for name, data in CASES[section].items():
        tunnel = TUNNELS[client](gateway.port)
        # In one write, and where it is short also byte by byte: frames and writes have nothing to do with each other.
        again = cut(data, 1) if len(data) < 300 else cut(data, 997) if len(data) < 100_000 else []
        returned = tunnel.exchange([data]), tunnel.exchange(again), tunnel.finish()
        if returned != (data, b"".join(again), b""):
            wrong[name] = [len(item) for item in returned]
    assert wrong == {}
    for name in CASES[section]:
        record_property(f"WebSocket frames, {client} to {upstream}, section {section}", name)


# --- the `websockets` package at both ends


def converse(server: websockets.sync.server.ServerConnection) -> None:
    """Echo messages in the pieces they came in; close as told."""
    with contextlib.suppress(websockets.exceptions.ConnectionClosed):
        while True:
            pieces = list(server.recv_streaming())
            if pieces and isinstance(pieces[0], str) and pieces[0].startswith("close "):
                server.close(int(pieces[0].split()[1]), "as told")
            elif len(pieces) == 1:
                server.send(pieces[0])
            else:
                server.send(iter(pieces))


@pytest.fixture
def endpoint(start_gateway: Callable[..., Any], directory: Path, peers: Any) -> Iterator[str]:
    """The URI of a gateway before a `websockets` server."""
    with websockets.sync.server.serve(
        converse,
        "127.0.0.1",
        0,
        select_subprotocol=lambda _server, offered: next((item for item in offered if item == "chat.v2"), None),
        max_size=None,
        process_request=lambda server, request: server.respond(403, "no") if request.path == "/refused" else None,
    ) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        peers.write_service(directory, "HTTP", server.socket.getsockname()[1])
        gateway = start_gateway()
        yield f"ws://127.0.0.1:{gateway.port}/"
        assert "Traceback" not in gateway.log.read_text()
        server.shutdown()
    thread.join(10)


def test_websockets_peers(endpoint: str, record_property: Any) -> None:
    def connect(**options: Any) -> websockets.sync.client.ClientConnection:
        return websockets.sync.client.connect(options.pop("uri", endpoint), max_size=None, proxy=None, **options)

    for compression in (None, "deflate"):
        with connect(compression=compression) as client:
            assert bool(client.protocol.extensions) is (compression is not None)
            for message in ("", "text κόσμε", b"", b"\x00\xff", "x" * 5_000_000, NOISE):
                client.send(message)
                assert client.recv(timeout=20) == message
                record_property(f"WebSocket messages of websockets, compression {compression}", repr(message[:9]))
            client.send(iter(["in ", "three ", "parts"]))
            assert "".join(client.recv_streaming()) == "in three parts"
            latency = client.ping()
            assert latency.wait(20)
            record_property(f"WebSocket messages of websockets, compression {compression}", "fragments, ping")
    with connect(subprotocols=[websockets.Subprotocol("chat.v1"), websockets.Subprotocol("chat.v2")]) as client:
        assert client.subprotocol == "chat.v2"
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect(uri=endpoint + "refused")
    assert refused.value.response.status_code == 403


def test_close_codes_of_either_end_arrive(endpoint: str, record_property: Any) -> None:
    for code in (1000, 1001, 1003, 1007, 1008, 1011, 3000, 4999):
        with websockets.sync.client.connect(endpoint, proxy=None) as client:
            client.send(f"close {code}")
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                client.recv(timeout=20)
            assert (client.close_code, client.close_reason) == (code, "as told")
        with websockets.sync.client.connect(endpoint, proxy=None) as client:
            client.close(code, "bye")
            assert client.close_code == code  # the server's echo of it (RFC 6455 section 5.5.1)
        record_property("WebSocket close codes of websockets", code)
