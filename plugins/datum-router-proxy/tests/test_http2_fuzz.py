"""Whatever arrives, in whatever pieces: the engine never raises, stays bounded, and says the same."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from datum_router_proxy import testing as t
from datum_router_proxy.wire.http2 import (
    PREFACE,
    ConnectionTerminated,
    DataReceived,
    Http2Connection,
    Http2Limits,
    RequestReceived,
    RequestRejected,
    Role,
    StreamReset,
)
from datum_router_proxy.wire.http2 import frames as f

ROLES = st.sampled_from(list(Role))
STREAM_ID = st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1])
ANY_FRAME = st.builds(
    t.frame,
    st.sampled_from([*range(0xA), 0x10, 0xFF]),
    st.sampled_from([0, 1, 4, 5, 8, 0xC, 0xD, 0x20, 0x25, 0x2D]) | st.integers(0, 255),
    STREAM_ID,
    st.binary(max_size=40) | st.just(t.block(t.GET)) | st.just(t.block([(b":status", b"200")])),
)
GOOD_FRAME = st.one_of(
    st.builds(t.headers, st.sampled_from([1, 3, 5, 7, 9]), st.sampled_from([t.GET, t.POST]), end_stream=st.booleans()),
    st.builds(t.headers, st.sampled_from([1, 3, 5]), st.just([(b"a", b"b")])),
    st.builds(t.headers, st.sampled_from([1, 3, 5]), st.just([(b":status", b"200")]), end_stream=st.booleans()),
    st.builds(t.data, st.sampled_from([1, 3, 5]), st.binary(max_size=30), end_stream=st.booleans()),
    st.builds(t.settings, st.tuples(st.integers(0, 9), st.integers(0, 2**17))),
    st.builds(t.window_update, st.sampled_from([0, 1, 3]), st.integers(0, 2**31 - 1)),
    st.builds(t.rst_stream, st.sampled_from([1, 3, 5])),
    st.builds(t.priority, st.sampled_from([1, 3])),
    st.just(t.ping()),
    st.just(t.settings(ack=True)),
    st.builds(t.goaway, STREAM_ID),
)


def engine(role: Role) -> Http2Connection:
    made = Http2Connection(role, Http2Limits(frames_per_round=5))
    if role is Role.CLIENT:
        made.initiate()
        for _ in range(3):
            made.send_headers(made.open_stream(), t.GET, end_stream=False)
    return made


def drive(subject: Http2Connection, pieces: list[bytes], *, is_serving: bool = False) -> list:
    events = []
    for piece in pieces:
        found = subject.receive_data(piece, 1.0)
        while subject.has_buffered:
            found += subject.receive_data_more(1.0)
        events += found
        if is_serving:
            for event in found:
                serve(subject, event)
    return events


def serve(subject: Http2Connection, event: object) -> None:
    """Answer requests and take bodies, as a gateway would; misuse would raise here."""
    if isinstance(event, (RequestReceived, RequestRejected)) and subject.is_open(event.stream_id):
        subject.send_headers(event.stream_id, [(b":status", b"200")], end_stream=event.stream_id % 4 == 1)
    elif isinstance(event, DataReceived):
        if subject.is_open(event.stream_id):
            size = min(5, subject.sendable(event.stream_id))
            subject.send_data(event.stream_id, bytes(size))
        if not event.stream_id % 3:
            subject.acknowledge(event.stream_id, len(event.data))
    elif isinstance(event, StreamReset):
        subject.release(event.stream_id)


def opening(role: Role) -> bytes:
    return (PREFACE if role is Role.SERVER else b"") + t.settings()


@settings(max_examples=200, deadline=None)
@given(role=ROLES, junk=st.binary(max_size=300), greet=st.booleans())
@example(role=Role.SERVER, junk=b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", greet=False)
@example(role=Role.SERVER, junk=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", greet=False)
def test_any_bytes_never_raise(role: Role, junk: bytes, greet: bool) -> None:
    events = drive(engine(role), [opening(role) if greet else b"", junk, b""] if greet else [junk or b"x", b""])
    assert isinstance(events[-1], ConnectionTerminated)
    assert sum(isinstance(event, ConnectionTerminated) for event in events) == 1


@settings(max_examples=200, deadline=None)
@given(role=ROLES, sent=st.lists(ANY_FRAME | GOOD_FRAME, max_size=25))
def test_any_frames_never_raise_and_end_with_one_termination(role: Role, sent: list[bytes]) -> None:
    subject = engine(role)
    events = drive(subject, [opening(role), *sent, b""], is_serving=role is Role.SERVER)
    assert sum(isinstance(event, ConnectionTerminated) for event in events) == 1
    assert isinstance(events[-1], ConnectionTerminated)
    frames = t.parse(subject.data_to_send())
    assert sum(kind == f.GOAWAY for kind, *_ in frames) == (0 if events[-1].error_code == 0 else 1)


@settings(max_examples=200, deadline=None)
@given(
    role=ROLES,
    sent=st.lists(GOOD_FRAME, min_size=1, max_size=15),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_any_mutation_of_a_conversation_never_raises(role: Role, sent: list[bytes], flips: list) -> None:
    wire = bytearray(opening(role) + b"".join(sent))
    for where, value in flips:
        wire[where % len(wire)] = value
    events = drive(engine(role), [bytes(wire), b""], is_serving=role is Role.SERVER)
    assert isinstance(events[-1], ConnectionTerminated)


@settings(max_examples=200, deadline=None)
@given(
    role=ROLES,
    sent=st.lists(GOOD_FRAME | ANY_FRAME, max_size=15),
    cuts=st.lists(st.integers(1, 60), max_size=20),
)
def test_events_do_not_depend_on_how_the_bytes_were_cut(role: Role, sent: list[bytes], cuts: list[int]) -> None:
    wire = opening(role) + b"".join(sent)
    whole_engine, byte_engine, cut_engine = engine(role), engine(role), engine(role)
    whole = drive(whole_engine, [wire])
    assert drive(byte_engine, [wire[i : i + 1] for i in range(len(wire))]) == whole
    pieces, position = [], 0
    for size in cuts:
        pieces.append(wire[position : position + size])
        position += size
    pieces.append(wire[position:])
    assert drive(cut_engine, [piece for piece in pieces if piece]) == whole
    assert byte_engine.data_to_send() == cut_engine.data_to_send() == whole_engine.data_to_send()


@settings(max_examples=50, deadline=None)
@given(role=ROLES, size=st.integers(1, 16_384))
def test_a_frame_that_never_completes_keeps_no_more_than_itself(role: Role, size: int) -> None:
    subject = engine(role)
    wire = opening(role) + t.frame(f.DATA, 0, 1, bytes(size))[:-1]
    for start in range(0, len(wire), 4_096):
        assert drive(subject, [wire[start : start + 4_096]]) == drive(subject, []) or start == 0
    assert len(subject._receiver._pending) <= 9 + size


def test_feeding_byte_by_byte_is_linear_in_copies() -> None:
    """A23 for HTTP/2: bytes of an incomplete frame are appended, not parsed again."""
    subject = engine(Role.SERVER)
    drive(subject, [opening(Role.SERVER), t.headers(1, end_stream=False)])
    rounds = 0
    original = type(subject._receiver)._round

    class Counting(type(subject._receiver)):
        __slots__ = ()

        def _round(self, data: bytes) -> list:
            nonlocal rounds
            rounds += 1
            return original(self, data)

    subject._receiver.__class__ = Counting
    wire = t.data(1, bytes(16_384))
    events = drive(subject, [wire[i : i + 1] for i in range(len(wire))])
    assert events == [DataReceived(1, bytes(16_384), 16_384)]
    assert rounds <= 3
