"""The HTTP/2 engine in both roles.

An input is one octet of choices and what the peer sends: either the very bytes, or records from which whole frames are
made (kind, flags, stream, length, payload), because a fuzzer that has to guess lengths rarely gets past the first
frame. Properties: `receive_data` never raises, and neither do the send methods of a driver that answers as a gateway
does; end of file gives exactly one ConnectionTerminated; the pieces change neither events nor output; limits hold; a
request or response that was accepted can be sent again, and is then read as the same message.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import msgspec

from datum_router_proxy import testing as t
from datum_router_proxy.wire.http2 import (
    PREFACE,
    ConnectionTerminated,
    DataReceived,
    Event,
    Http2Connection,
    Http2Limits,
    InformationalReceived,
    RequestReceived,
    RequestRejected,
    ResponseReceived,
    Role,
    StreamReset,
    TrailersReceived,
)
from datum_router_proxy.wire.http2 import frames as f

# Small, so that a few frames reach each of them.
LIMITS = Http2Limits(
    max_concurrent_streams=3,
    header_list_bytes=1_024,
    max_fields=8,
    path_bytes=64,
    continuation_frames=2,
    header_block_bytes=1_024,
    settings_entries=4,
    control_queue_frames=10,
    ping_burst=5,
    empty_frames=3,
    priority_frames_per_stream=2,
    window_update_base=5,
    window_updates_per_data=1,
    reset_burst=5,
    refused_streams=3,
    overhead_base_bytes=2_048,
    closed_streams_remembered=3,
    interim_responses=2,
    frames_per_round=5,
)
KINDS = (f.DATA, f.HEADERS, f.PRIORITY, f.RST_STREAM, f.SETTINGS, 5, f.PING, f.GOAWAY, f.WINDOW_UPDATE, 9, 0x10, 0xFF)
STREAMS = (0, 1, 2, 3, 5, 7, 9, 2**31 - 1)
OK = ((b":status", b"200"),)
BLOCKS = tuple(
    t.block(fields)
    for fields in (
        t.GET,
        t.POST,
        OK,
        (*t.POST, (b"content-length", b"5")),
        ((b":status", b"200"), (b"content-length", b"5")),
        ((b":status", b"103"),),
        ((b":status", b"204"),),
        ((b"x-trailer", b"1"),),
        ((b":method", b"CONNECT"), (b":protocol", b"websocket"), *t.GET[1:]),
        (*t.GET, (b"cookie", b"a=b"), (b"cookie", b"c=d"), (b"te", b"trailers")),
        ((b":method", b"HEAD"), *t.GET[1:]),
        (*t.GET[:3], (b"host", b"example.test")),
    )
)
GREETED, RECORDS = 1, 2
CANNED = 0x80
"""Set in a record's kind: the payload is a legal one of that kind, and the length octet says which; none follows."""
_HEADERS = 1
_SETTING_VALUES = (0, 1, 100, 16_384, 65_535, 2**31 - 1)

WORDS = (
    PREFACE,
    b"\x00\x00\x00\x04\x01\x00\x00\x00\x00", b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x81\x25\x01\x00", b"\x81\x24\x01\x01",
    b"\x81\x25\x01\x02", b"\x81\x04\x01\x05", b"\x00\x01\x01\x05hello", b"\x00\x00\x01\x05hello",
    b"\x03\x00\x01\x04\x00\x00\x00\x08",
    b"\x08\x00\x00\x04\x00\x00\x00\x01", b"\x08\x00\x01\x04\x7f\xff\xff\xff", b"\x06\x00\x00\x08abcdefgh",
    b"\x09\x04\x01\x00",
    b"\x04\x00\x00\x06\x00\x04\x00\x00\x00\x00", b"\x04\x00\x00\x06\x00\x01\x00\x00\x00\x00",
    b"\x04\x00\x00\x06\x00\x05\x00\x00\x40\x00",
    b"\x07\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00", b"\x02\x00\x01\x05\x00\x00\x00\x03\x10", b"content-length",
    b":path",
)  # fmt: skip


def check_server(data: bytes) -> None:
    """Check the engine that reads requests."""
    _check(Role.SERVER, data)


def check_client(data: bytes) -> None:
    """Check the engine that reads responses; it has three requests under way, one of them complete."""
    _check(Role.CLIENT, data)


def _check(role: Role, data: bytes) -> None:
    if not data:
        return
    choice = data[0]
    wire = _frames(data[1:]) if choice & RECORDS else data[1:]
    if choice & GREETED:
        wire = (PREFACE if role is Role.SERVER else b"") + t.settings() + wire
    if not wire:
        return
    whole_engine, cut_engine, octet_engine = engine(role), engine(role), engine(role)
    whole = drive(whole_engine, [wire, b""])
    step = 2 + (choice >> 2)
    assert drive(cut_engine, [*(wire[i : i + step] for i in range(0, len(wire), step)), b""]) == whole
    assert drive(octet_engine, [*(wire[i : i + 1] for i in range(len(wire))), b""]) == whole
    output = whole_engine.data_to_send()
    assert cut_engine.data_to_send() == octet_engine.data_to_send() == output
    assert sum(isinstance(event, ConnectionTerminated) for event in whole) == 1
    last = whole[-1]
    assert isinstance(last, ConnectionTerminated)
    assert whole_engine.is_terminated
    goaways = [kind for kind, *_ in t.parse(output) if kind == f.GOAWAY]
    assert len(goaways) == (1 if last.error_code else 0)
    for event in whole:
        _check_event(event)
    drive(engine(role), [wire, b""], is_answering=True)


def _frames(records: bytes) -> bytes:
    found = []
    position = 0
    while position + 4 <= len(records):
        kind, flags, stream, length = records[position : position + 4]
        position += 4
        if kind & CANNED:
            payload = _canned(KINDS[(kind & 0x7F) % len(KINDS)], length)
        else:
            payload = records[position : position + length]
            position += length
        found.append(t.frame(KINDS[(kind & 0x7F) % len(KINDS)], flags, STREAMS[stream % len(STREAMS)], payload))
    return b"".join(found)


def _canned(kind: int, which: int) -> bytes:
    if kind in (f.HEADERS, f.CONTINUATION):
        return BLOCKS[which % len(BLOCKS)]
    if kind == f.PRIORITY:
        return struct.pack(">LB", which % 8, 15)
    if kind == f.SETTINGS:
        value = _SETTING_VALUES[which // 8 % len(_SETTING_VALUES)]
        return struct.pack(">HL", 1 + which % 8, value) if which else b""
    if kind == f.PING:
        return bytes((which,)) * 8
    if kind == f.GOAWAY:
        return struct.pack(">LL", which % 8, which // 8)
    if kind in (f.RST_STREAM, f.WINDOW_UPDATE):
        return struct.pack(">L", 1 << which % 31)
    return bytes(which)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return other records: one more, one less, one twice, or one with another octet in its head."""
    if len(data) < 2 or not data[0] & RECORDS:
        data = bytes((GREETED | RECORDS, _HEADERS | CANNED, 5, 1, 0))
    records = []
    position = 1
    while position + 4 <= len(data):
        size = 4 + (0 if data[position] & CANNED else data[position + 3])
        records.append(data[position : position + size])
        position += size
    at = rng.randrange(len(records) + 1)
    what = rng.randrange(4)
    if what == 0 or not records:
        kind = _HEADERS if rng.random() < 0.4 else rng.randrange(len(KINDS))
        flags = rng.choice((0, 1, 4, 5, 8, 0x24, 0x25))
        records.insert(at, bytes((kind | CANNED, flags, rng.randrange(len(STREAMS)), rng.randrange(256))))
        return data[:1] + b"".join(records)
    at %= len(records)
    if what == 1:
        del records[at]
    elif what == 2:
        records.insert(rng.randrange(len(records) + 1), records[at])
    else:
        place = rng.randrange(4 if records[at][0] & CANNED else 3)
        value = rng.choice((0, 1, 4, 5, rng.randrange(256))) if place else rng.randrange(len(KINDS)) | CANNED
        head = bytearray(records[at][:4])
        head[place] = value
        records[at] = bytes(head) + (b"" if head[0] & CANNED else records[at][4:])
    return data[:1] + b"".join(records)


def engine(role: Role) -> Http2Connection:
    """Return an engine ready for its peer."""
    made = Http2Connection(role, LIMITS)
    if role is Role.CLIENT:
        made.initiate()
        for number in range(3):
            made.send_headers(made.open_stream(), t.GET, end_stream=number == 0)
    return made


def drive(subject: Http2Connection, pieces: Iterable[bytes], *, is_answering: bool = False) -> list[Event]:
    """Feed the pieces, each to its end."""
    events: list[Event] = []
    for piece in pieces:
        found = subject.receive_data(piece, 1.0)
        _check_held(subject)
        while subject.has_buffered:
            found += subject.receive_data_more(1.0)
            _check_held(subject)
        events += found
        if is_answering:
            for event in found:
                answer(subject, event)
            _check_held(subject)
    return events


def answer(subject: Http2Connection, event: Event) -> None:
    """Do what a gateway does; misuse of the engine would raise here."""
    if isinstance(event, RequestReceived | RequestRejected):
        if subject.is_open(event.stream_id):
            subject.send_headers(event.stream_id, OK, end_stream=event.stream_id % 4 == 1)
    elif isinstance(event, DataReceived):
        # An answer to HEAD has no body, and the engine holds its driver to that.
        if subject.is_open(event.stream_id) and not subject._state.streams[event.stream_id].is_head_request:
            subject.send_data(event.stream_id, bytes(min(5, subject.sendable(event.stream_id))))
        if event.stream_id % 3:
            subject.acknowledge(event.stream_id, len(event.data))
    elif isinstance(event, StreamReset):
        subject.release(event.stream_id)


def _check_held(subject: Http2Connection) -> None:
    state = subject._state
    if state.is_server:
        assert subject.open_streams <= LIMITS.max_concurrent_streams
    assert len(state.closed) <= LIMITS.closed_streams_remembered
    assert len(subject._receiver._block) <= LIMITS.header_block_bytes


def _check_event(event: Event) -> None:
    if not isinstance(event, RequestReceived | ResponseReceived | InformationalReceived | TrailersReceived):
        return
    assert len(event.fields) <= LIMITS.max_fields
    assert sum(len(name) + len(value) + 32 for name, value in event.fields) <= LIMITS.header_list_bytes
    for name, value in event.fields:
        assert name == name.lower()
        assert not set(b"\r\n\0") & set(name + value)
    if isinstance(event, RequestReceived):
        assert len(event.path) <= LIMITS.path_bytes
        assert event.authority
        if event.protocol is None:
            _request_again(event)
    elif isinstance(event, ResponseReceived):
        _response_again(event)


def _pair() -> tuple[Http2Connection, Http2Connection]:
    client, server = Http2Connection(Role.CLIENT), Http2Connection(Role.SERVER)
    client.initiate()
    server.initiate()
    drive(server, [client.data_to_send()])
    drive(client, [server.data_to_send()])
    drive(server, [client.data_to_send()])
    return client, server


def _request_again(event: RequestReceived) -> None:
    client, server = _pair()
    stream_id = client.open_stream()
    pseudo = [(b":method", event.method), (b":scheme", event.scheme), (b":path", event.path)]
    client.send_headers(stream_id, [*pseudo, (b":authority", event.authority), *event.fields], event.end_stream)
    (again,) = drive(server, [client.data_to_send()])
    assert isinstance(again, RequestReceived)
    fields = tuple(map(tuple, again.fields))  # ours leave marked as never indexed where the name says so
    assert msgspec.structs.replace(again, fields=fields) == RequestReceived(
        stream_id, event.method, event.scheme, event.authority, event.path, None, tuple(map(tuple, event.fields)),
        event.content_length, event.end_stream,
    )  # fmt: skip


def _response_again(event: ResponseReceived) -> None:
    client, server = _pair()
    stream_id = client.open_stream()
    # An answer to HEAD may state a length without a body, so HEAD is what was asked.
    client.send_headers(stream_id, [(b":method", b"HEAD"), *t.GET[1:]], end_stream=True)
    drive(server, [client.data_to_send()])
    server.send_headers(stream_id, [(b":status", b"%d" % event.status), *event.fields], event.end_stream)
    again, *_rest = drive(client, [server.data_to_send()])
    assert isinstance(again, ResponseReceived)
    assert (again.status, again.end_stream) == (event.status, event.end_stream)
    assert list(map(tuple, again.fields)) == list(map(tuple, event.fields))
