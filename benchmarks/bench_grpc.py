"""CPU of one gRPC unary call without sockets: HTTP/2 on both sides, 8 connections of 32 streams, 1 KiB each way.

    python benchmarks/bench_grpc.py

Both peers are made of bytes: what they cost is not counted. Printed are the best of many short runs, for calls that
are all alike and for calls with a `traceparent` of their own, as traced clients send them.
"""

from __future__ import annotations

import gc
import random
import struct
import time
from collections.abc import Callable
from typing import cast
from unittest import mock

import hpack
from bench_lane import MemoryChannel, make_holder

from datum_router.model.listener import Listener
from datum_router.model.service import UpstreamProtocol
from datum_router_proxy.channel import Channel
from datum_router_proxy.loop import Loop
from datum_router_proxy.pipeline import Pipeline
from datum_router_proxy.server.h2 import H2Connection
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.upstream import transport
from datum_router_proxy.wire.http2 import PREFACE
from datum_router_runtime.reporter import Reporter
from datum_router_runtime.worker import YOUNG_OBJECTS

CLIENTS = 8
STREAMS = 32
MESSAGE = b"\0\0\0\x03\xfb" + b"x" * 1019
SETTINGS = struct.pack(">HBBBL", 0, 12, 4, 0, 0) + struct.pack(">HLHL", 3, 1000, 4, 65_535)
REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/svc500/bench.Echo/Unary"),
    (b":authority", b"127.0.0.1:8080"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    (b"user-agent", b"grpc-python/1.60"),
)
RESPONSE = (
    (b":status", b"200"),
    (b"server", b"upstream"),
    (b"date", b"Sat, 28 Nov 2026 15:29:44 GMT"),
    (b"content-type", b"application/grpc"),
)
TRAILERS = ((b"grpc-status", b"0"),)
WINDOW = 1_000_000


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Return a frame."""
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 255, kind, flags, stream_id) + payload


class Peer(MemoryChannel):
    """One side of an HTTP/2 connection; its turn comes in a later round than what it reads."""

    def __init__(self, first: bytes, later: list[MemoryChannel]) -> None:
        super().__init__(iter(()), later, whole=0)
        self._input = first
        self.readable = True
        self._unread = b""
        self._encoder = hpack.Encoder()
        self._taken = 0

    def write(self, *buffers: bytes | memoryview) -> None:
        """See `Channel.write`."""
        if not self._unread:
            self._later.append(self)
        self._unread += b"".join(buffers)

    def advance(self) -> None:
        """Read, and say what follows from that."""
        data, self._unread = self._unread, b""
        if data.startswith(PREFACE):
            data = data[len(PREFACE) :]
        out = []
        at = 0
        while at < len(data):
            high, low, kind, flags, stream_id = struct.unpack_from(">HBBBL", data, at)
            length = high << 8 | low
            at += 9 + length
            if kind == 0:
                self._taken += length
            if kind in (0, 1) and flags & 1:
                out.append(self.turn(stream_id))
        if self._taken >= WINDOW // 2:
            out.append(frame(8, 0, 0, struct.pack(">L", self._taken)))
            self._taken = 0
        if out:
            self._input += b"".join(out)
            self.readable = True
            if self.task is not None:
                self.task.wake()

    def recv(self, size: int = 65536) -> bytes | None:
        """See `Channel.recv`."""
        data = self._input[:size]
        self._input = self._input[size:]
        self.readable = bool(self._input)
        return data or None

    def turn(self, stream_id: int) -> bytes:
        """Return what follows a message that has ended."""
        raise NotImplementedError


class Server(Peer):
    """An upstream that answers each message."""

    def __init__(self, later: list[MemoryChannel]) -> None:
        super().__init__(SETTINGS + frame(8, 0, 0, struct.pack(">L", WINDOW)), later)

    def turn(self, stream_id: int) -> bytes:
        """Answer a request."""
        encode = self._encoder.encode
        return (
            frame(1, 4, stream_id, encode(RESPONSE))
            + frame(0, 0, stream_id, MESSAGE)
            + frame(1, 5, stream_id, encode(TRAILERS))
        )


class Client(Peer):
    """A client that makes another call for each that was answered."""

    def __init__(self, later: list[MemoryChannel], *, is_traced: bool) -> None:
        super().__init__(PREFACE + SETTINGS + frame(8, 0, 0, struct.pack(">L", WINDOW)), later)
        self._is_traced = is_traced
        self._next = 1
        self._rng = random.Random(1)
        self._input += b"".join(self.call() for _ in range(STREAMS))

    def turn(self, _stream_id: int) -> bytes:
        """Take an answer."""
        self.messages += 1
        return self.call()

    def call(self) -> bytes:
        """Make a call."""
        fields = list(REQUEST)
        if self._is_traced:
            fields.append((b"traceparent", b"00-%s-01" % self._rng.randbytes(24).hex().encode()))
        stream_id, self._next = self._next, self._next + 2
        return frame(1, 4, stream_id, self._encoder.encode(fields)) + frame(0, 1, stream_id, MESSAGE)


def measure(
    *, is_traced: bool, wrap: Callable[[Callable[[], bool]], Callable[[], bool]] = lambda drain: drain
) -> float:
    """Return the CPU microseconds of one call."""
    loop = Loop(rng=random.Random(1))
    listener = Listener(name="plain")
    holder = make_holder(listener, protocol=UpstreamProtocol.GRPC)
    later: list[MemoryChannel] = []

    async def dial(*_: object, **__: object) -> MemoryChannel:
        return Server(later)

    settings = ProxySettings()
    clients = []
    with mock.patch.object(transport, "dial", dial):
        pipeline = Pipeline(loop, holder, Reporter(has_access_log=False), settings, transport.Transport(loop, settings))
        for _ in range(CLIENTS):
            client = Client(later, is_traced=is_traced)
            client.task = loop.spawn(H2Connection(pipeline, cast(Channel, client), listener).run(b""), name="client")
            clients.append(client)
        drain = wrap(loop.drain)

        def serve(count: int) -> float:
            already = sum(client.messages for client in clients)
            spent = 0.0
            while (served := sum(client.messages for client in clients) - already) < count:
                began = time.process_time()
                drain()
                spent += time.process_time() - began
                now, later[:] = list(later), []
                for waiting in now:
                    waiting.advance()
            return spent / served

        serve(2000)
        gc.collect()
        gc.freeze()  # as a worker does
        gc.set_threshold(YOUNG_OBJECTS, 10, 10)
        best = min(serve(512) for _ in range(100))
        loop._close()
    return best * 1e6


def main() -> None:
    """Print a line for each kind of call."""
    for name, is_traced in (("all alike", False), ("traced", True)):
        print(f"gRPC unary, {name}: {measure(is_traced=is_traced):.1f} us")


if __name__ == "__main__":
    main()
