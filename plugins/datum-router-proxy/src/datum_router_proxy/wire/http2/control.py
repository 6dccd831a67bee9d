"""Frames that carry no message: PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE (RFC 9113 section 6).

One function per frame type, all alike: check length and stream, charge the flood guard, change the state, report.
They raise RemoteProtocolError for a fault of the connection; a fault of one stream is handled here. All have the same
six parameters, being entries of one table.
"""

from __future__ import annotations

from collections.abc import Callable

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason

from . import frames as f
from .events import Event, GoAwayReceived, PingAck, SettingsChanged, StreamReset, WindowOpened
from .frames import MAX_WINDOW, ErrorCode
from .guard import calm
from .state import ConnectionState
from .stream import DONE, ClosedBy

ControlHandler = Callable[[ConnectionState, bytes, int, int, float, list[Event]], None]


def fault(
    message: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR, reason: Reason = Reason.BAD_FRAME
) -> RemoteProtocolError:
    """Return the error for a frame that breaks the protocol."""
    return RemoteProtocolError(message, reason=reason, error_code=code)


def on_priority(
    state: ConnectionState, payload: bytes, _flags: int, stream_id: int, now: float, events: list[Event]
) -> None:
    """Check a PRIORITY frame (section 6.3) and otherwise ignore it."""
    if stream_id == 0:
        raise fault("PRIORITY on stream 0")
    state.guard.priority()
    if len(payload) != 5:
        error = fault(f"PRIORITY: {len(payload)} bytes, expected 5", ErrorCode.FRAME_SIZE_ERROR)
    elif int.from_bytes(payload[:4], "big") & 0x7FFFFFFF == stream_id:
        error = fault(f"PRIORITY: stream {stream_id} depends on itself")
    else:
        return
    stream = state.streams.get(stream_id)
    if stream is None:  # nothing to reset: RST_STREAM must not be sent on idle streams
        raise error
    state.fail_stream(stream, error, now, events)


def on_priority_update(
    state: ConnectionState, _payload: bytes, _flags: int, _stream_id: int, now: float, _events: list[Event]
) -> None:
    """Count a PRIORITY_UPDATE frame (RFC 9218), a hint that is not used."""
    state.guard.priority()


def on_rst_stream(
    state: ConnectionState, payload: bytes, _flags: int, stream_id: int, now: float, events: list[Event]
) -> None:
    """Apply RST_STREAM (section 6.4)."""
    if len(payload) != 4:
        raise fault(f"RST_STREAM: {len(payload)} bytes, expected 4", ErrorCode.FRAME_SIZE_ERROR)
    if stream_id == 0 or state.is_idle(stream_id):
        raise fault(f"RST_STREAM on stream {stream_id}, which was never opened", reason=Reason.STREAM_STATE)
    stream = state.streams.get(stream_id)
    if stream is None:
        return
    code = int.from_bytes(payload, "big")
    state.drop(stream, ClosedBy.PEER_RESET)
    unprocessed = code == ErrorCode.REFUSED_STREAM and not state.is_server
    reason = Reason.DOWNSTREAM_RESET if state.is_server else Reason.UPSTREAM_RESET
    if unprocessed:
        reason = Reason.UPSTREAM_REFUSED_STREAM
    events.append(StreamReset(stream_id, code, True, unprocessed, reason, f"stream: peer reset it with code {code}"))
    # A stream whose answer is complete cost nothing extra: gRPC clients end streaming calls in this way.
    if state.is_server and stream.outbound is not DONE:
        state.guard.reset(now)


def on_settings(
    state: ConnectionState, payload: bytes, flags: int, stream_id: int, now: float, events: list[Event]
) -> None:
    """Apply SETTINGS or its acknowledgement (section 6.5)."""
    if stream_id:
        raise fault(f"SETTINGS on stream {stream_id}")
    if flags & f.ACK:
        if payload:
            raise fault("SETTINGS: acknowledgement with payload", ErrorCode.FRAME_SIZE_ERROR)
        state.acknowledge_own_settings()
        return
    if len(payload) % 6:
        raise fault(f"SETTINGS: {len(payload)} bytes, expected a multiple of 6", ErrorCode.FRAME_SIZE_ERROR)
    if len(payload) > 6 * state.limits.settings_entries:
        raise calm(f"SETTINGS: more than {state.limits.settings_entries} entries")
    state.guard.ping(now)
    before = state.peer.initial_window
    state.peer.apply(payload, from_server=not state.is_server)
    delta = state.peer.initial_window - before
    if delta:
        for stream in state.streams.values():
            stream.send_window += delta
            if stream.send_window > MAX_WINDOW:
                raise fault(
                    "SETTINGS INITIAL_WINDOW_SIZE: makes a stream's window exceed 2^31-1",
                    ErrorCode.FLOW_CONTROL_ERROR,
                    Reason.FLOW_CONTROL,
                )
    state.codec.set_encoder_table_size(state.peer.header_table_bytes)
    state.has_table_update = True
    state.queue_control(f.frame(f.SETTINGS, f.ACK, 0))
    events.append(SettingsChanged())
    if delta > 0:
        events.append(WindowOpened(0))


def on_push_promise(
    state: ConnectionState, _payload: bytes, _flags: int, _stream_id: int, now: float, _events: list[Event]
) -> None:
    """Refuse PUSH_PROMISE (section 6.6): clients disable it, servers never receive it."""
    raise fault("PUSH_PROMISE: push is off, and never for clients to send")


def on_ping(
    state: ConnectionState, payload: bytes, flags: int, stream_id: int, now: float, events: list[Event]
) -> None:
    """Answer PING, or report the answer to ours (section 6.7)."""
    if stream_id:
        raise fault(f"PING on stream {stream_id}")
    if len(payload) != 8:
        raise fault(f"PING: {len(payload)} bytes, expected 8", ErrorCode.FRAME_SIZE_ERROR)
    if flags & f.ACK:
        if payload in state.pings:
            state.pings.remove(payload)
            events.append(PingAck(payload))
        return
    state.guard.ping(now)
    state.queue_control(f.frame(f.PING, f.ACK, 0, payload))


def on_goaway(
    state: ConnectionState, payload: bytes, _flags: int, stream_id: int, now: float, events: list[Event]
) -> None:
    """Apply GOAWAY (section 6.8)."""
    if stream_id:
        raise fault(f"GOAWAY on stream {stream_id}")
    if len(payload) < 8:
        raise fault(f"GOAWAY: {len(payload)} bytes, expected at least 8", ErrorCode.FRAME_SIZE_ERROR)
    last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
    code = int.from_bytes(payload[4:8], "big")
    if state.peer_goaway is not None:
        last = min(last, state.peer_goaway)
    state.peer_goaway = last
    events.append(GoAwayReceived(last, code))
    if state.is_server:
        return
    for stream in [s for s in state.streams.values() if s.stream_id > last]:
        state.drop(stream, ClosedBy.PEER_RESET)
        events.append(
            StreamReset(
                stream.stream_id,
                ErrorCode.REFUSED_STREAM,
                True,
                True,
                Reason.UPSTREAM_REFUSED_STREAM,
                f"stream: above the last id {last} of the peer's GOAWAY",
            )
        )


def on_window_update(
    state: ConnectionState, payload: bytes, _flags: int, stream_id: int, now: float, events: list[Event]
) -> None:
    """Apply WINDOW_UPDATE (section 6.9)."""
    if len(payload) != 4:
        raise fault(f"WINDOW_UPDATE: {len(payload)} bytes, expected 4", ErrorCode.FRAME_SIZE_ERROR)
    state.guard.window_update()
    increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
    if stream_id == 0:
        if increment == 0:
            raise fault("WINDOW_UPDATE: increment 0 on the connection", reason=Reason.FLOW_CONTROL)
        state.send_window += increment
        if state.send_window > MAX_WINDOW:
            raise fault(
                "WINDOW_UPDATE: connection window above 2^31-1", ErrorCode.FLOW_CONTROL_ERROR, Reason.FLOW_CONTROL
            )
        events.append(WindowOpened(0))
        return
    stream = state.streams.get(stream_id)
    if stream is None:
        if state.is_idle(stream_id):
            raise fault(f"WINDOW_UPDATE on stream {stream_id}, which was never opened", reason=Reason.STREAM_STATE)
        return  # RFC 9113 section 6.9: may arrive after the stream closed
    if increment == 0:
        state.fail_stream(stream, fault("WINDOW_UPDATE: increment 0", reason=Reason.FLOW_CONTROL), now, events)
        return
    if stream.send_window + increment > MAX_WINDOW:
        too_large = fault(
            "WINDOW_UPDATE: stream window above 2^31-1", ErrorCode.FLOW_CONTROL_ERROR, Reason.FLOW_CONTROL
        )
        state.fail_stream(stream, too_large, now, events)
        return
    stream.send_window += increment
    if stream.outbound is not DONE:
        events.append(WindowOpened(stream_id))


CONTROL_HANDLERS: dict[int, ControlHandler] = {
    f.PRIORITY: on_priority,
    f.RST_STREAM: on_rst_stream,
    f.SETTINGS: on_settings,
    f.PUSH_PROMISE: on_push_promise,
    f.PING: on_ping,
    f.GOAWAY: on_goaway,
    f.WINDOW_UPDATE: on_window_update,
    f.PRIORITY_UPDATE: on_priority_update,
}
