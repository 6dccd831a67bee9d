"""Helpers for tests of the HTTP/2 engine: frames made by hand, right or wrong, and a scripted peer.

Everything here builds bytes; nothing checks that they are legal, because most tests want them not to be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from datum_router_proxy.wire.hpack_codec import encode_line
from datum_router_proxy.wire.http2 import PREFACE, Event, Http2Connection, Http2Limits, Role
from datum_router_proxy.wire.http2 import frames as f

Field = tuple[bytes, bytes]

GET: tuple[Field, ...] = (
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":path", b"/"),
    (b":authority", b"example.test"),
)
POST: tuple[Field, ...] = ((b":method", b"POST"), *GET[1:])


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    """Build one frame of any type."""
    return f.frame(kind, flags, stream_id, payload)


def block(fields: Iterable[Field]) -> bytes:
    """Encode fields without any compression state."""
    return b"".join(encode_line(name, value, never_indexed=False) for name, value in fields)


def headers(
    stream_id: int, fields: Iterable[Field] = GET, *, end_stream: bool = True, end_headers: bool = True
) -> bytes:
    """Build a HEADERS frame."""
    flags = (f.END_STREAM if end_stream else 0) | (f.END_HEADERS if end_headers else 0)
    return frame(f.HEADERS, flags, stream_id, block(fields))


def data(stream_id: int, payload: bytes = b"", *, end_stream: bool = False, padding: int | None = None) -> bytes:
    """Build a DATA frame, padded if asked."""
    flags = f.END_STREAM if end_stream else 0
    if padding is not None:
        flags |= f.PADDED
        payload = bytes((padding,)) + payload + bytes(padding)
    return frame(f.DATA, flags, stream_id, payload)


def settings(*entries: tuple[int, int], ack: bool = False) -> bytes:
    """Build a SETTINGS frame."""
    return frame(f.SETTINGS, f.ACK if ack else 0, 0, b"".join(struct.pack(">HL", *entry) for entry in entries))


def rst_stream(stream_id: int, code: int = 8) -> bytes:
    """Build a RST_STREAM frame."""
    return f.rst_stream_frame(stream_id, code)


def window_update(stream_id: int, increment: int) -> bytes:
    """Build a WINDOW_UPDATE frame."""
    return f.window_update_frame(stream_id, increment)


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    """Build a PING frame."""
    return frame(f.PING, f.ACK if ack else 0, 0, payload)


def priority(stream_id: int, depends_on: int = 0) -> bytes:
    """Build a PRIORITY frame."""
    return frame(f.PRIORITY, 0, stream_id, struct.pack(">LB", depends_on, 15))


def goaway(last_stream_id: int, code: int = 0) -> bytes:
    """Build a GOAWAY frame."""
    return f.goaway_frame(last_stream_id, code)


def parse(output: bytes) -> list[tuple[int, int, int, bytes]]:
    """Split output into (type, flags, stream id, payload); the client preface is skipped."""
    if output.startswith(PREFACE):
        output = output[len(PREFACE) :]
    found = []
    while output:
        length = int.from_bytes(output[:3], "big")
        found.append((output[3], output[4], int.from_bytes(output[5:9], "big"), output[9 : 9 + length]))
        output = output[9 + length :]
    return found


class Peer:
    """Drive one engine with hand-made frames, at a clock that stands still unless told."""

    __slots__ = ("engine", "now")

    def __init__(self, role: Role = Role.SERVER, limits: Http2Limits | None = None, *, greet: bool = True) -> None:
        self.engine = Http2Connection(role, limits)
        self.now = 100.0
        if greet:
            self.engine.initiate()
            opening = (PREFACE if role is Role.SERVER else b"") + settings() + settings(ack=True)
            self.engine.receive_data(opening, self.now)
            self.engine.data_to_send()

    def send(self, *parts: bytes) -> list[Event]:
        """Feed the engine to the end, round by round, and return all events."""
        events = self.engine.receive_data(b"".join(parts), self.now)
        while self.engine.has_buffered:
            events += self.engine.receive_data_more(self.now)
        return events

    def output(self) -> list[tuple[int, int, int, bytes]]:
        """Take the engine's output, split into frames."""
        return parse(self.engine.data_to_send())

    def request(self, fields: Sequence[Field] = GET, *, end_stream: bool = True) -> int:
        """Open a stream (client role) and forget the output."""
        stream_id = self.engine.open_stream()
        self.engine.send_headers(stream_id, fields, end_stream)
        self.engine.data_to_send()
        return stream_id
