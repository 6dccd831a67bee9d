"""Every limit of the HTTP/2 engine has a test that reaches it; one below is accepted, one above is not."""

from __future__ import annotations

import pytest

from datum_router.reasons import Reason
from datum_router_proxy import testing as t
from datum_router_proxy.wire.http2 import (
    ConnectionTerminated,
    ErrorCode,
    Http2Limits,
    PingAck,
    RequestReceived,
    RequestRejected,
    SettingId,
    SettingsChanged,
    StreamReset,
)
from datum_router_proxy.wire.http2 import frames as f


def is_calm(events: list) -> bool:
    return bool(events) and (
        isinstance(events[-1], ConnectionTerminated)
        and events[-1].error_code == ErrorCode.ENHANCE_YOUR_CALM
        and events[-1].reason is Reason.FLOOD
    )


def count_until_calm(peer: t.Peer, make, at_most: int) -> int:
    """Return how many frames were accepted before the connection ended."""
    for index in range(at_most):
        if is_calm(peer.send(make(index))):
            return index
        peer.engine.data_to_send()
    raise AssertionError(f"still alive after {at_most}")


def test_d1_rapid_reset_ends_at_the_burst() -> None:
    peer = t.Peer()

    def one(index: int) -> bytes:
        peer.engine.release(2 * index - 1)
        return t.headers(2 * index + 1) + t.rst_stream(2 * index + 1)

    assert count_until_calm(peer, one, 1_000) == 200


def test_d1_slow_resets_are_refilled() -> None:
    peer = t.Peer()
    for index in range(1_000):
        peer.now += 0.051
        stream_id = 2 * index + 1
        events = peer.send(t.headers(stream_id), t.rst_stream(stream_id))
        assert [type(e) for e in events] == [RequestReceived, StreamReset]
        peer.engine.release(stream_id)
        peer.engine.data_to_send()


def test_d1_reset_stream_keeps_its_slot_until_released() -> None:
    peer = t.Peer(limits=Http2Limits(max_concurrent_streams=2))
    peer.send(t.headers(1), t.rst_stream(1), t.headers(3), t.rst_stream(3))
    assert peer.engine.open_streams == 2
    (refused,) = peer.send(t.headers(5))
    assert isinstance(refused, StreamReset)
    assert refused.error_code == ErrorCode.REFUSED_STREAM
    peer.engine.release(1)
    (event,) = peer.send(t.headers(7))
    assert isinstance(event, RequestReceived)


def test_d1_a_clock_that_steps_back_refills_nothing() -> None:
    peer = t.Peer(limits=Http2Limits(reset_burst=2))
    peer.send(t.headers(1), t.rst_stream(1))
    peer.now -= 50
    assert not is_calm(peer.send(t.headers(3), t.rst_stream(3)))
    assert is_calm(peer.send(t.headers(5), t.rst_stream(5)))


def test_d1_resets_after_a_complete_answer_cost_nothing() -> None:
    peer = t.Peer(limits=Http2Limits(reset_burst=2))
    for index in range(20):
        stream_id = 2 * index + 1
        peer.send(t.headers(stream_id, end_stream=False))
        peer.engine.send_headers(stream_id, [(b":status", b"200")], end_stream=True)
        assert not is_calm(peer.send(t.rst_stream(stream_id)))
        peer.engine.data_to_send()
    assert peer.engine.open_streams == 0


MADE_RESETS = {
    "increment 0": lambda sid: t.headers(sid) + t.window_update(sid, 0),
    "window overflow": lambda sid: t.headers(sid) + t.window_update(sid, 2**31 - 1),
    "DATA after END_STREAM": lambda sid: t.headers(sid) + t.data(sid, b"x"),
    "HEADERS after END_STREAM": lambda sid: t.headers(sid) + t.headers(sid),
    "PRIORITY of 4": lambda sid: t.headers(sid) + t.frame(f.PRIORITY, 0, sid, bytes(4)),
    "PRIORITY on itself": lambda sid: t.headers(sid) + t.priority(sid, sid),
    "malformed head": lambda sid: t.headers(sid, [(b":method", b"GET")]),
    "malformed trailers": lambda sid: t.headers(sid, end_stream=False) + t.headers(sid, [(b"A", b"")]),
    "late frames": lambda sid: t.headers(sid, end_stream=False) + t.rst_stream(sid) + t.data(sid, b"x"),
}


@pytest.mark.parametrize("case", MADE_RESETS)
def test_d2_resets_that_the_peer_makes_us_send_share_the_budget(case: str) -> None:
    peer = t.Peer(limits=Http2Limits(reset_burst=20))

    def one(index: int) -> bytes:
        peer.engine.release(2 * index - 1)
        return MADE_RESETS[case](2 * index + 1)

    assert count_until_calm(peer, one, 100) == (10 if case == "late frames" else 20)


@pytest.mark.parametrize("payload", [b"", b"\x82"], ids=["empty", "one byte"])
def test_d3_continuation_frames_are_counted(payload: bytes) -> None:
    peer = t.Peer()
    peer.send(t.headers(1, end_headers=False))
    for _ in range(8):
        assert peer.send(t.frame(f.CONTINUATION, 0, 1, payload)) == []
    assert is_calm(peer.send(t.frame(f.CONTINUATION, f.END_HEADERS, 1, payload)))


def test_d3_nothing_is_decoded_past_the_compressed_limit() -> None:
    peer = t.Peer()
    peer.send(t.frame(f.HEADERS, 0, 1, b"\x80" * 16_384))  # index 0 would be a compression error
    for _ in range(3):
        assert peer.send(t.frame(f.CONTINUATION, 0, 1, b"\x80" * 16_384)) == []
    assert is_calm(peer.send(t.frame(f.CONTINUATION, f.END_HEADERS, 1, b"\x80")))


def test_d3_limit_holds_for_one_large_frame_too() -> None:
    peer = t.Peer(limits=Http2Limits(max_frame_bytes=100_000))
    assert is_calm(peer.send(t.frame(f.HEADERS, 5, 1, b"\x80" * 65_537)))


def test_d4_list_over_the_limit_is_answered_431_and_the_table_stays_in_step() -> None:
    peer = t.Peer()
    entry = b"\x40\x01a" + b"\x7f\xa1\x1e" + b"v" * 4_000  # 127 + 33 + 30 * 128 = 4000
    many = t.frame(f.HEADERS, 4, 1, t.block(t.GET) + entry[:3] + b"\x7f\xa1\x1e" + b"v" * 4_000 + b"\xbe" * 20)
    (event,) = peer.send(many + t.data(1, b"", end_stream=True))
    assert isinstance(event, RequestRejected)
    assert (event.status, event.reason) == (431, Reason.HEAD_TOO_LARGE)
    (later,) = peer.send(t.frame(f.HEADERS, 5, 3, t.block(t.GET) + b"\xbe"))
    assert later.fields == ((b"a", b"v" * 4_000),)


def test_d4_list_far_past_the_limit_is_a_compression_error() -> None:
    peer = t.Peer()
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4_000
    events = peer.send(t.frame(f.HEADERS, 5, 1, t.block(t.GET) + entry + b"\xbe" * 90))
    assert events[-1].error_code == ErrorCode.COMPRESSION_ERROR


def test_d4_too_many_fields_far_past_the_limit_is_a_compression_error() -> None:
    peer = t.Peer()
    events = peer.send(t.frame(f.HEADERS, 5, 1, t.block(t.GET) + b"\x90" * 401))
    assert events[-1].error_code == ErrorCode.COMPRESSION_ERROR


def test_d4_trailers_over_the_limit_reset_the_stream() -> None:
    peer = t.Peer()
    events = peer.send(t.headers(1, end_stream=False), t.headers(1, [(b"a", b"b")] * 101))
    assert (events[-1].error_code, events[-1].reason) == (ErrorCode.ENHANCE_YOUR_CALM, Reason.HEAD_TOO_LARGE)
    assert isinstance(events[-1], StreamReset)


def test_d6_ping_flood_ends_at_the_burst_and_slow_pings_do_not() -> None:
    assert count_until_calm(t.Peer(), lambda _: t.ping(), 200) == 99  # the first SETTINGS took one
    slow = t.Peer()
    for _ in range(300):
        slow.now += 0.051
        assert slow.send(t.ping()) == []
        assert [k for k, *_ in slow.output()] == [f.PING]


def test_d6_pings_of_a_bandwidth_estimator_are_paid_for_by_our_frames() -> None:
    peer = t.Peer()
    peer.send(t.headers(1), t.window_update(0, 2**30), t.window_update(1, 2**30))
    peer.engine.send_headers(1, [(b":status", b"200")])
    for _ in range(1_000):
        peer.engine.send_data(1, b"x")
        assert peer.send(t.ping()) == []
        peer.engine.data_to_send()


def test_d6_settings_flood_shares_the_ping_budget() -> None:
    assert count_until_calm(t.Peer(), lambda _: t.settings(), 200) == 99


def test_d6_settings_entries_are_bounded() -> None:
    entries = [(0x7777, 1)] * 32
    assert [type(e) for e in t.Peer().send(t.settings(*entries))] == [SettingsChanged]
    assert is_calm(t.Peer().send(t.settings(*entries, (0x7777, 1))))


def test_d6_unread_replies_end_the_connection() -> None:
    peer = t.Peer(limits=Http2Limits(ping_burst=5_000))
    assert peer.send(t.ping() * 1_000) == []
    assert is_calm(peer.send(t.ping()))


@pytest.mark.parametrize(
    "empty",
    [t.data(1), t.data(1, padding=4), t.headers(1, [], end_stream=False, end_headers=False)],
    ids=["DATA", "padded DATA", "HEADERS"],
)
def test_d7_empty_frames_in_a_row_are_bounded(empty: bytes) -> None:
    peer = t.Peer()
    assert [type(e) for e in peer.send(t.headers(1, end_stream=False))] == [RequestReceived]
    if empty[3] == f.HEADERS:
        assert peer.send(empty) == []
        rest = [peer.send(t.frame(f.CONTINUATION, 0, 1)) for _ in range(8)]
        assert rest == [[]] * 8, "the CONTINUATION limit comes first here; see D3"
        return
    for _ in range(10):
        assert peer.send(empty) == []
    assert is_calm(peer.send(empty))


def test_d7_payload_between_empty_frames_resets_the_count() -> None:
    peer = t.Peer()
    peer.send(t.headers(1, end_stream=False))
    for _ in range(5):
        assert not is_calm(peer.send(t.data(1) * 10, t.data(1, b"x")))


def test_d8_priority_frames_are_bounded_per_opened_stream() -> None:
    assert count_until_calm(t.Peer(), lambda _: t.priority(1), 300) == 100
    update = t.frame(f.PRIORITY_UPDATE, 0, 0, b"\0\0\0\1u=1")
    assert count_until_calm(t.Peer(), lambda _: update, 300) == 100
    busy = t.Peer()
    busy.send(t.headers(1), t.headers(3))
    assert count_until_calm(busy, lambda _: t.priority(1), 500) == 300


def test_d9_window_updates_are_bounded_by_what_we_send() -> None:
    assert count_until_calm(t.Peer(), lambda _: t.window_update(0, 1), 300) == 100
    busy = t.Peer()
    busy.send(t.headers(1))
    busy.engine.send_headers(1, [(b":status", b"200")])
    for _ in range(5):
        busy.engine.send_data(1, b"x")
    assert count_until_calm(busy, lambda _: t.window_update(1, 1), 300) == 152


def test_d12_refused_streams_end_the_connection() -> None:
    peer = t.Peer(limits=Http2Limits(max_concurrent_streams=1))
    peer.send(t.headers(1))
    assert count_until_calm(peer, lambda index: t.headers(2 * index + 3), 300) == 100


def test_d12_refusals_are_forgiven_by_completed_streams() -> None:
    peer = t.Peer(limits=Http2Limits(max_concurrent_streams=1, refused_streams=2))
    for stream_id in range(1, 81, 4):
        events = peer.send(t.headers(stream_id), t.headers(stream_id + 2))
        assert [type(e) for e in events] == [RequestReceived, StreamReset]
        peer.engine.send_headers(stream_id, [(b":status", b"204")], end_stream=True)
        peer.engine.data_to_send()


def test_d21_overhead_without_payload_ends_the_connection() -> None:
    peer = t.Peer()
    unknown = t.frame(0x77, 0, 0, bytes(16_375)) * 8  # 128 KiB a go
    assert count_until_calm(peer, lambda _: unknown, 20) == 7


def test_d21_payload_pays_for_overhead() -> None:
    peer = t.Peer(limits=Http2Limits(overhead_base_bytes=2_000))
    peer.send(t.headers(1, end_stream=False))
    for _ in range(2_000):
        assert not is_calm(peer.send(t.data(1, b"xy")))  # nine bytes of frame header for two of payload
        peer.engine.acknowledge(1, 2)
        peer.engine.data_to_send()


def test_d21_one_byte_frames_run_out_of_budget() -> None:
    peer = t.Peer(limits=Http2Limits(overhead_base_bytes=2_000))
    peer.send(t.headers(1, end_stream=False))

    def one(_index: int) -> bytes:
        return t.data(1, b"x") * 10

    assert 190 < count_until_calm(peer, one, 400) < 400


def test_round_is_bounded_and_the_rest_waits() -> None:
    peer = t.Peer()
    events = peer.engine.receive_data(b"".join(t.headers(2 * i + 1) for i in range(100)), peer.now)
    assert (len(events), peer.engine.has_buffered) == (64, True)
    events = peer.engine.receive_data_more(peer.now)
    assert (len(events), peer.engine.has_buffered) == (36, False)
    assert peer.engine.receive_data_more(peer.now) == []


def test_end_of_input_waits_for_buffered_rounds() -> None:
    peer = t.Peer()
    peer.engine.receive_data(b"".join(t.headers(2 * i + 1) for i in range(70)), peer.now)
    events = peer.engine.receive_data(b"", peer.now)
    assert [type(e) for e in events] == [RequestReceived] * 6 + [ConnectionTerminated]


def test_our_pings_are_bounded_and_only_their_answers_reported() -> None:
    peer = t.Peer()
    payload = peer.engine.ping()
    assert peer.send(t.ping(b"stranger", ack=True)) == []
    assert peer.send(t.ping(payload, ack=True)) == [PingAck(payload)]
    assert peer.send(t.ping(payload, ack=True)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"max_concurrent_streams": 0},
        {"stream_window_bytes": 2**31},
        {"connection_window_bytes": 65_534},
        {"max_frame_bytes": 16_383},
        {"max_frame_bytes": 2**24},
        {"frames_per_round": 0},
    ],
)
def test_limits_out_of_range_are_refused_by_name(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Http2Limits(**change)


def test_header_table_limit_is_announced_and_enforced_after_the_acknowledgement() -> None:
    peer = t.Peer(limits=Http2Limits(header_table_bytes=0), greet=False)
    peer.engine.initiate()
    entries = t.parse(peer.engine.data_to_send())[0][3]
    assert entries[:6] == b"\0\1\0\0\0\0"
    peer.send(f.PREFACE, t.settings())
    indexed = t.block(t.GET) + b"\x40\x01a\x01b"
    assert [type(e) for e in peer.send(t.frame(f.HEADERS, 5, 1, indexed))] == [RequestReceived]
    events = peer.send(t.settings(ack=True), t.headers(3))
    assert events[-1].error_code == ErrorCode.COMPRESSION_ERROR, "the encoder did not shrink its table"
    assert SettingId.HEADER_TABLE_SIZE == 1
