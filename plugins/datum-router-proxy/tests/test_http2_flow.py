"""Flow control (D10, D20): the receive side against a model, the send side against the peer's grants."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router_proxy import testing as t
from datum_router_proxy.wire.http2 import (
    ConnectionTerminated,
    DataReceived,
    ErrorCode,
    Http2Limits,
    Role,
    SettingId,
    StreamReset,
    WindowOpened,
)
from datum_router_proxy.wire.http2 import frames as f

OK = [(b":status", b"200")]


def grants(peer: t.Peer) -> dict[int, int]:
    found: dict[int, int] = {}
    for kind, _flags, stream_id, payload in peer.output():
        if kind == f.WINDOW_UPDATE:
            found[stream_id] = found.get(stream_id, 0) + int.from_bytes(payload, "big")
    return found


def test_stream_window_overrun_resets_the_stream_and_gives_the_connection_its_bytes_back() -> None:
    limits = Http2Limits(stream_window_bytes=100, connection_window_bytes=65_535)
    peer = t.Peer(limits=limits)
    peer.send(t.headers(1, end_stream=False))
    events = peer.send(t.data(1, bytes(100)), t.data(1, b"x"))
    assert isinstance(events[-1], StreamReset)
    assert events[-1].error_code == ErrorCode.FLOW_CONTROL_ERROR
    # 101 bytes must be back: the rest of the connection window is full again for the next stream.
    total = 101
    for stream_id in range(3, 3 + 2 * 400, 2):
        peer.engine.release(stream_id - 2)
        assert not isinstance(peer.send(t.headers(stream_id, end_stream=False))[-1], ConnectionTerminated)
        peer.send(t.data(stream_id, bytes(100)))
        total += 100
        peer.engine.reset_stream(stream_id)
        total -= grants(peer).get(0, 0)
    assert 0 <= total < 65_535 // 2 + 101, "only what waits for the next coalesced update is outstanding"


def test_connection_window_overrun_ends_the_connection() -> None:
    limits = Http2Limits(stream_window_bytes=100_000, connection_window_bytes=65_535)
    peer = t.Peer(limits=limits)
    events = peer.send(t.headers(1, end_stream=False), *[t.data(1, bytes(16_384))] * 4)
    assert isinstance(events[-1], ConnectionTerminated)
    assert events[-1].error_code == ErrorCode.FLOW_CONTROL_ERROR


def test_window_before_the_acknowledgement_is_the_protocols_own() -> None:
    peer = t.Peer(limits=Http2Limits(stream_window_bytes=10), greet=False)
    peer.engine.initiate()
    events = peer.send(f.PREFACE, t.settings(), t.headers(1, end_stream=False), t.data(1, bytes(1_000)))
    assert isinstance(events[-1], DataReceived)
    events = peer.send(t.settings(ack=True), t.data(1, b"x"))
    assert isinstance(events[-1], StreamReset), "the smaller window holds once it was acknowledged"


def test_credit_held_back_is_given_when_the_window_shrinks_under_it() -> None:
    peer = t.Peer(limits=Http2Limits(stream_window_bytes=20_000), greet=False)
    peer.engine.initiate()
    peer.send(
        f.PREFACE, t.settings(), t.headers(1, end_stream=False), t.data(1, bytes(16_000)), t.data(1, bytes(16_000))
    )
    peer.engine.acknowledge(1, 32_000)
    peer.engine.data_to_send()
    peer.send(t.settings(ack=True))
    assert grants(peer) == {1: 32_000}, "the peer's window is 20000 - 32000: it could never send again"


def test_updates_are_coalesced_to_half_a_window() -> None:
    peer = t.Peer()
    peer.send(t.headers(1, end_stream=False), *[t.data(1, bytes(16_384))] * 4)
    for _ in range(32_767):
        peer.engine.acknowledge(1, 1)
    assert peer.output() == []
    peer.engine.acknowledge(1, 1)
    assert grants(peer) == {1: 32_768}


def test_padding_is_given_back_without_the_application() -> None:
    peer = t.Peer(limits=Http2Limits(stream_window_bytes=400))
    peer.send(t.headers(1, end_stream=False))
    assert peer.send(t.data(1, b"x", padding=255)) == [DataReceived(1, b"x", 257)]
    assert grants(peer) == {1: 256}


def test_no_update_for_a_stream_whose_message_is_complete() -> None:
    peer = t.Peer(limits=Http2Limits(stream_window_bytes=400))
    peer.send(t.headers(1, end_stream=False), t.data(1, bytes(400), end_stream=True))
    peer.engine.acknowledge(1, 400)
    assert 1 not in grants(peer)


def test_settings_can_make_a_send_window_negative_and_it_recovers() -> None:
    peer = t.Peer()
    peer.send(t.headers(1))
    peer.engine.send_headers(1, OK)
    peer.engine.send_data(1, bytes(60_000))
    peer.send(t.settings((SettingId.INITIAL_WINDOW_SIZE, 10)))
    assert peer.engine.sendable(1) == 0
    assert peer.send(t.window_update(1, 59_990)) == [WindowOpened(1)]
    assert peer.engine.sendable(1) == 0
    peer.send(t.window_update(1, 5))
    assert peer.engine.sendable(1) == 5


def test_larger_initial_window_opens_all_streams() -> None:
    peer = t.Peer()
    peer.send(t.settings((SettingId.INITIAL_WINDOW_SIZE, 0)), t.headers(1))
    peer.engine.send_headers(1, OK)
    assert peer.engine.sendable(1) == 0
    assert WindowOpened(0) in peer.send(t.settings((SettingId.INITIAL_WINDOW_SIZE, 7)))
    assert peer.engine.sendable(1) == 7


def test_largest_windows_are_legal() -> None:
    peer = t.Peer()
    peer.send(t.headers(1))
    events = peer.send(t.window_update(0, 2**31 - 1 - 65_535), t.window_update(1, 2**31 - 1 - 65_535))
    assert events == [WindowOpened(0), WindowOpened(1)]


class Model:
    """The obvious model of the receive side: what the peer may send is what it was granted minus what it sent."""

    def __init__(self, stream_window: int, connection_window: int) -> None:
        self.initial = stream_window
        self.connection = connection_window
        self.streams: dict[int, int] = {}
        self.held: dict[int, int] = {}

    def apply(self, found: dict[int, int]) -> None:
        for stream_id, amount in found.items():
            if stream_id == 0:
                self.connection += amount
            elif stream_id in self.streams:
                self.streams[stream_id] += amount


STEP = st.one_of(
    st.tuples(st.just("open")),
    st.tuples(st.just("data"), st.integers(0, 4), st.integers(1, 3_000), st.none() | st.integers(0, 255)),
    st.tuples(st.just("ack"), st.integers(0, 4), st.integers(1, 4_000)),
    st.tuples(st.just("reset"), st.integers(0, 4)),
    st.tuples(st.just("peer reset"), st.integers(0, 4)),
    st.tuples(st.just("end"), st.integers(0, 4)),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_d20_receive_windows_follow_the_model_and_never_leak(steps: list) -> None:
    window, total = 4_000, 65_535
    limits = Http2Limits(stream_window_bytes=window, connection_window_bytes=total, reset_burst=1_000)
    peer = t.Peer(limits=limits)
    model = Model(window, total)
    next_id = 1
    for step in steps:
        alive = list(model.streams)
        if step[0] == "open":
            peer.send(t.headers(next_id, t.POST, end_stream=False))
            model.streams[next_id] = window
            model.held[next_id] = 0
            next_id += 2
            continue
        if not alive:
            continue
        stream_id = alive[step[1] % len(alive)]
        if step[0] == "data":
            _, _, size, padding = step
            frame = t.data(stream_id, bytes(size), padding=padding)
            length = len(frame) - 9
            fits = length <= model.streams[stream_id]
            assert length <= model.connection, "half of the window is always there"
            events = peer.send(frame)
            model.connection -= length
            if fits:
                assert events == [DataReceived(stream_id, bytes(size), length)]
                model.streams[stream_id] -= length
                model.held[stream_id] += size
            else:
                assert [e.error_code for e in events] == [ErrorCode.FLOW_CONTROL_ERROR]
                del model.streams[stream_id], model.held[stream_id]
        elif step[0] == "ack":
            amount = min(step[2], model.held[stream_id])
            peer.engine.acknowledge(stream_id, amount)
            model.held[stream_id] -= amount
        elif step[0] == "reset":
            peer.engine.reset_stream(stream_id)
            del model.streams[stream_id], model.held[stream_id]
        elif step[0] == "peer reset":
            peer.send(t.rst_stream(stream_id))
            del model.streams[stream_id], model.held[stream_id]
        elif step[0] == "end":
            peer.send(t.data(stream_id, end_stream=True))
            peer.engine.send_headers(stream_id, OK, end_stream=True)
            del model.streams[stream_id], model.held[stream_id]
        for gone in range(1, next_id, 2):
            if gone not in model.streams:
                peer.engine.release(gone)
        model.apply(grants(peer))
        assert all(0 <= left <= window for left in model.streams.values())
        # Nothing leaks: what is missing is held by the application, or waits for the next coalesced update.
        missing = total - model.connection - sum(model.held.values())
        assert 0 <= missing < total / 2 + 1
        for sid, left in model.streams.items():
            assert 0 <= window - left - model.held[sid] < window / 2 + 1
    assert peer.engine.open_streams == len(model.streams)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("grant"), st.integers(1, 50_000)),
            st.tuples(st.just("stream grant"), st.integers(1, 50_000)),
            st.tuples(st.just("initial"), st.integers(0, 200_000)),
            st.tuples(st.just("send"), st.floats(0, 1)),
        ),
        max_size=40,
    )
)
def test_d20_send_window_follows_the_model(steps: list) -> None:
    peer = t.Peer(Role.CLIENT, Http2Limits(window_update_base=1_000))
    stream_id = peer.request(t.POST, end_stream=False)
    connection = initial = stream = 65_535
    for kind, value in steps:
        if kind == "grant":
            peer.send(t.window_update(0, value))
            connection += value
        elif kind == "stream grant":
            peer.send(t.window_update(stream_id, value))
            stream += value
        elif kind == "initial":
            peer.send(t.settings((SettingId.INITIAL_WINDOW_SIZE, value)))
            stream += value - initial
            initial = value
        else:
            amount = int(peer.engine.sendable(stream_id) * value)
            peer.engine.send_data(stream_id, bytes(amount))
            sent = sum(len(payload) for k, _, _, payload in peer.output() if k == f.DATA)
            assert sent == amount
            connection -= amount
            stream -= amount
        assert peer.engine.sendable(stream_id) == max(0, min(connection, stream))
