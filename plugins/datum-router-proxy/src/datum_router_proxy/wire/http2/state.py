"""What both halves of the engine share: streams, windows, settings, output. One object per connection.

Invariant of the connection window: every byte received in DATA is, until it is given back, counted in exactly one
place: a stream's `unconsumed`, or the connection window's `pending`. Closing a stream moves its `unconsumed` to
`pending`, so nothing leaks after resets (D20), and `acknowledge` on a closed stream does nothing.
"""

from __future__ import annotations

import enum

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason

from ..hpack_codec import HeaderCodec
from .events import Event, StreamReset
from .flow import ReceiveWindow
from .frames import (
    DEFAULT_MAX_FRAME,
    DEFAULT_WINDOW,
    PREFACE,
    ErrorCode,
    goaway_frame,
    rst_stream_frame,
    settings_frame,
    window_update_frame,
)
from .guard import FloodGuard
from .limits import Http2Limits
from .settings import PeerSettings, announced
from .stream import DONE, ClosedBy, Stream

_BOTH_ENDED = ClosedBy.BOTH_ENDED


class Role(enum.Enum):
    """Say which side of the connection we are."""

    CLIENT = "client"
    SERVER = "server"


class ConnectionState:
    """Hold one connection's state; only `receive` and `connection` change it."""

    __slots__ = (
        "closed",
        "codec",
        "control_queued",
        "goaway_sent",
        "guard",
        "has_table_update",
        "held",
        "is_server",
        "limits",
        "next_own_id",
        "out",
        "out_bytes",
        "own_last_id",
        "peer",
        "peer_goaway",
        "peer_last_id",
        "ping_count",
        "pings",
        "receive_window",
        "recv",
        "reserved",
        "send_window",
        "settings_unacked",
        "started",
        "streams",
        "terminated",
    )

    def __init__(self, role: Role, limits: Http2Limits, codec: HeaderCodec) -> None:
        self.is_server = role is Role.SERVER
        self.limits = limits
        self.codec = codec
        self.has_table_update = False  # a block that the codec has not made may have to begin with one
        self.guard = FloodGuard(limits)
        self.peer = PeerSettings()
        self.streams: dict[int, Stream] = {}
        self.closed: dict[int, ClosedBy] = {}  # insertion order is closing order
        self.held: set[int] = set()  # reset, but not yet released by the application (D1)
        self.recv = ReceiveWindow(DEFAULT_WINDOW)
        self.send_window = DEFAULT_WINDOW
        self.receive_window = DEFAULT_WINDOW  # of new streams, until the peer acknowledged our SETTINGS
        self.settings_unacked = 0
        self.next_own_id = 1
        self.own_last_id = 0  # highest stream we opened with HEADERS
        self.reserved: set[int] = set()  # ids handed out, HEADERS not yet sent
        self.peer_last_id = 0  # highest stream the peer opened
        self.peer_goaway: int | None = None
        self.goaway_sent: int | None = None
        self.pings: list[bytes] = []  # sent, not yet answered
        self.ping_count = 0
        self.out: list[bytes] = []
        self.out_bytes = 0
        self.control_queued = 0
        self.started = False
        self.terminated = False

    def start(self) -> None:
        """Queue preface (client), SETTINGS, and the connection window's first credit; once."""
        if self.started:
            return
        self.started = True
        if not self.is_server:
            self.queue(PREFACE)
        self.queue(settings_frame(announced(self.limits, is_server=self.is_server)))
        self.settings_unacked += 1
        more = self.limits.connection_window_bytes - DEFAULT_WINDOW
        if more:
            self.recv.resize(self.limits.connection_window_bytes)
            self.queue(window_update_frame(0, more))

    # --- output -------------------------------------------------------------------------------------

    def queue(self, data: bytes) -> None:
        """Queue bytes that the application asked for."""
        self.out.append(data)
        self.out_bytes += len(data)

    def queue_control(self, data: bytes) -> None:
        """Queue a frame that the peer made necessary; the receiver ends the connection at too many (D6)."""
        self.out.append(data)
        self.out_bytes += len(data)
        self.control_queued += 1

    def check_control_queue(self) -> None:
        """Raise if the peer made us queue more replies than it reads (D6)."""
        if self.control_queued > self.limits.control_queue_frames:
            raise RemoteProtocolError(
                f"control frames: more than {self.limits.control_queue_frames} replies are unread",
                reason=Reason.FLOOD,
                error_code=ErrorCode.ENHANCE_YOUR_CALM,
            )

    def queue_goaway(self, last_stream_id: int, error_code: int, debug: bytes = b"") -> None:
        """Queue GOAWAY; the last id never grows again (RFC 9113 section 6.8)."""
        if self.goaway_sent is not None:
            last_stream_id = min(last_stream_id, self.goaway_sent)
        self.goaway_sent = last_stream_id
        self.queue(goaway_frame(last_stream_id, error_code, debug))

    def table_update(self) -> bytes:
        """Return what a block that the codec has not made has to begin with: mostly nothing."""
        if not self.has_table_update:
            return b""
        self.has_table_update = False
        return self.codec.encode(())

    # --- windows ------------------------------------------------------------------------------------

    def credit(self, amount: int) -> None:
        """Give consumed bytes back to the connection window."""
        increment = self.recv.consume(amount)
        if increment:
            self.queue_control(window_update_frame(0, increment))

    def credit_stream(self, stream: Stream, amount: int) -> None:
        """Give consumed bytes back to the connection and, while more may come, to the stream."""
        self.credit(amount)
        if stream.inbound is not DONE:
            increment = stream.recv.consume(amount)
            if increment:
                self.queue_control(window_update_frame(stream.stream_id, increment))

    def acknowledge_own_settings(self) -> None:
        """Apply our announced stream window and table size: the peer uses them from now on."""
        if not self.settings_unacked:
            return
        self.settings_unacked -= 1
        self.codec.set_decoder_table_limit(self.limits.header_table_bytes)
        self.receive_window = self.limits.stream_window_bytes
        for stream in self.streams.values():
            stream.recv.resize(self.receive_window)
            # Credit that was too little of the old window may be more than all of a smaller one: without this, a
            # peer whose window just turned negative would wait for ever.
            self.credit_stream(stream, 0)

    # --- streams ------------------------------------------------------------------------------------

    def is_own(self, stream_id: int) -> bool:
        """Say whether we are the side that opens streams of this parity."""
        return (stream_id & 1 == 0) == self.is_server

    def is_idle(self, stream_id: int) -> bool:
        """Say whether the stream was never opened (RFC 9113 section 5.1, "idle")."""
        if self.is_own(stream_id):
            return stream_id > self.own_last_id
        return stream_id > self.peer_last_id

    def open(self, stream_id: int) -> Stream:
        """Add a stream to the table."""
        stream = Stream(stream_id, self.peer.initial_window, self.receive_window)
        self.streams[stream_id] = stream
        self.guard.streams_opened += 1
        return stream

    def remember(self, stream_id: int, how: ClosedBy) -> None:
        """Remember how a stream closed; the oldest memory goes (D11)."""
        self.closed[stream_id] = how
        if len(self.closed) > self.limits.closed_streams_remembered:
            del self.closed[next(iter(self.closed))]

    def finish_if_done(self, stream: Stream) -> None:
        """Take a stream out of the table once both messages are complete."""
        if stream.inbound is DONE and stream.outbound is DONE:
            self._remove(stream, _BOTH_ENDED)
            if self.guard.refused:
                self.guard.completed()

    def drop(self, stream: Stream, how: ClosedBy) -> None:
        """Take a reset stream out of the table; a server's slot stays taken until it is released (D1).

        A stream whose answer was complete has no upstream work left, so nothing is held.
        """
        self._remove(stream, how)
        if self.is_server and not stream.is_discarding and stream.outbound is not DONE:
            self.held.add(stream.stream_id)

    def _remove(self, stream: Stream, how: ClosedBy) -> None:
        stream_id = stream.stream_id
        del self.streams[stream_id]
        self.remember(stream_id, how)
        if stream.unconsumed:
            self.credit(stream.unconsumed)
            stream.unconsumed = 0

    def fail_stream(self, stream: Stream, error: RemoteProtocolError, now: float, events: list[Event]) -> None:
        """Reset a stream for what the peer did on it, and charge the peer (D2)."""
        self.queue_control(rst_stream_frame(stream.stream_id, error.error_code))
        self.drop(stream, ClosedBy.OWN_RESET)
        self._report(stream.stream_id, error, now, events)

    def refuse_stream(self, stream_id: int, error: RemoteProtocolError, now: float, events: list[Event]) -> None:
        """Reset a stream that never entered the table, and charge the peer (D2)."""
        self.queue_control(rst_stream_frame(stream_id, error.error_code))
        self.remember(stream_id, ClosedBy.OWN_RESET)
        self._report(stream_id, error, now, events)

    def _report(self, stream_id: int, error: RemoteProtocolError, now: float, events: list[Event]) -> None:
        events.append(StreamReset(stream_id, error.error_code, False, False, error.reason, str(error)))
        # A client's streams are bounded by its own requests: nothing to charge, and a penalty would hurt neighbours.
        if self.is_server and error.error_code != ErrorCode.REFUSED_STREAM:
            self.guard.reset(now)

    def max_frame_accepted(self) -> int:
        """Return the largest payload the peer may send; a raised limit holds from the start, being ours."""
        return max(DEFAULT_MAX_FRAME, self.limits.max_frame_bytes)
