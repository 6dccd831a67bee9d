"""What both ends of HTTP/2 share: the task that reads and writes one connection, and the sending half of a stream.

Theory of operation. Streams are handled by other tasks. They call the engine, which queues output, and wake the
connection's task; that one runs in a later round of the loop, when all streams that had something to say have said
it, and writes everything in one call. Input goes the other way: the connection's task reads, the engine makes events,
`handle` notes them in stream objects and wakes their tasks.

While the transport has not taken the last write nothing more is handed to it, and while much is queued nothing is
read: replies to a peer that does not read them would pile up (threat D6). Streams see the same as `is_congested`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, ChannelError
from datum_router_proxy.loop import DeadlineExpired, Loop, Task, TaskCancelled, current_task, park
from datum_router_proxy.wire.http2 import Event, Http2Connection

Field = tuple[bytes, bytes]


class Outbound:
    """Send one message on a stream within its window; holds at most one piece that the window does not allow yet."""

    __slots__ = ("_engine", "_is_ending", "_is_stuck", "_pending", "_stream_id", "_trailers", "is_done")

    def __init__(self, engine: Http2Connection, stream_id: int) -> None:
        self._engine = engine
        self._stream_id = stream_id
        self._pending = b""
        self._trailers: Sequence[Field] = ()
        self._is_ending = False
        self._is_stuck = False
        self.is_done = False

    @property
    def is_stuck(self) -> bool:
        """True while the window keeps something back, or would: another piece behind that one only costs memory."""
        pending = self._pending
        return self._is_stuck or (bool(pending) and self._engine.sendable(self._stream_id) < len(pending))

    @property
    def is_idle(self) -> bool:
        """True if nothing waits to be sent."""
        return self.is_done or not (self._pending or self._is_ending)

    def data(self, data: bytes) -> None:
        """Queue one piece; the one before it goes first, as far as it can."""
        if self._pending:
            self.push()
        self._pending = self._pending + data if self._pending else data

    def end(self, trailers: Sequence[Field]) -> None:
        """Queue the end."""
        self._is_ending = True
        self._trailers = trailers

    def push(self) -> int:
        """Hand over what the window allows; return how many bytes of it. Does nothing on a stream that is gone."""
        if self.is_done:
            return 0
        engine = self._engine
        stream_id = self._stream_id
        if not engine.is_open(stream_id):
            self.is_done = True
            self._pending = b""
            return 0
        data = self._pending
        if data:
            room = engine.sendable(stream_id)
            if room < len(data):
                self._is_stuck = True
                if room:
                    self._pending = data[room:]
                    engine.send_data(stream_id, data[:room])
                return room
            self._pending = b""
            self._is_stuck = False
            if self._is_ending and not self._trailers:
                self.is_done = True
                engine.send_data(stream_id, data, True)
                return len(data)
            engine.send_data(stream_id, data)
        if self._is_ending:
            self.is_done = True
            if self._trailers:
                engine.send_trailers(stream_id, self._trailers)
            else:
                engine.send_data(stream_id, b"", True)
        return len(data)


class H2Link:
    """Drive one HTTP/2 connection; subclasses say what events mean.

    Attributes:
        is_over: Nothing more is read or sent; the task is ending.
    """

    __slots__ = ("_channel", "_is_dirty", "_loop", "_most_output", "_was_congested", "engine", "is_over", "task")

    def __init__(self, loop: Loop, channel: Channel, engine: Http2Connection, *, most_output: int) -> None:
        self._loop = loop
        self._channel = channel
        self._most_output = most_output
        self._was_congested = False
        self._is_dirty = False
        self.engine = engine
        self.task: Task | None = None
        self.is_over = False
        engine.initiate()  # now, since a stream may be opened before the task has begun

    @property
    def is_congested(self) -> bool:
        """True while streams must not queue more."""
        if self.engine.output_bytes + self._channel.buffered < self._most_output:
            return False
        self._was_congested = True
        return True

    @property
    def has_unread(self) -> bool:
        """True if input is there that no event has been made of yet: the next round may complete a message."""
        return self.engine.has_buffered or self._channel.readable

    @property
    def last_progress(self) -> float:
        """When bytes last moved on the connection."""
        return self._channel.last_progress

    def wake(self) -> None:
        """Let the connection's task write what is queued."""
        if self.task is not None:
            self.task.wake()

    async def drive(self, first: bytes = b"") -> None:
        """Read and write until the connection is over, then close it; `first` is what was read already."""
        self.task = task = current_task()
        channel = self._channel
        channel.task = task
        engine = self.engine
        reason = Reason.PEER_CLOSED
        try:
            if first:
                self._handle_all(engine.receive_data(first, self._loop.now))
            while True:
                has_more = self._read()
                self._write()
                if self.is_over or (not channel.buffered and self.is_finished()):
                    break
                if has_more:
                    task.wake()
                task.deadline, task.deadline_reason = self._deadline()
                await park()
        except ChannelError as error:
            reason = error.reason
        except (DeadlineExpired, TaskCancelled) as error:
            reason = error.reason
            self._say_goodbye(reason)
        finally:
            self.is_over = True
            self.task = None
            self.lost(reason)
            if (engine.is_terminated or engine.is_drained) and not channel.hangup:
                self.linger()  # the peer may still be sending: it should see our last frames, not a reset
            else:
                channel.close()

    def linger(self) -> None:
        """Close, but read a little longer."""
        self._channel.linger()

    def _deadline(self) -> tuple[float, Reason]:
        return math.inf, Reason.IDLE_TIMEOUT

    def _read(self) -> bool:
        """Take one piece of input; True if there may be more."""
        engine = self.engine
        channel = self._channel
        if engine.has_buffered:
            self._handle_all(engine.receive_data_more(self._loop.now))
        elif channel.readable and not engine.is_terminated and not self.is_congested:
            data = channel.recv()
            if data is None:
                return False
            self._handle_all(engine.receive_data(data, self._loop.now))
        else:
            return False
        return engine.has_buffered or channel.readable

    def _handle_all(self, events: list[Event]) -> None:
        handle = self.handle
        for event in events:
            handle(event)
        if self.engine.is_terminated:
            self.is_over = True
        self.handled()

    def _write(self) -> None:
        channel = self._channel
        if channel.buffered:
            channel.check()
            return
        data = self.engine.data_to_send()
        if data:
            channel.write(data)
        if self._was_congested and not channel.buffered:
            self._was_congested = False
            self.room_again()

    def _say_goodbye(self, reason: Reason) -> None:
        """Write a last GOAWAY if the peer still listens."""
        if not self._channel.buffered and not self._channel.hangup:
            self.engine.goaway()
            try:
                self._channel.write(self.engine.data_to_send())
            except ChannelError:
                return

    # --- for subclasses -----------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Act on one event of the engine."""
        raise NotImplementedError

    def handled(self) -> None:
        """Act on what the events of one round mean together."""

    def room_again(self) -> None:
        """Wake every stream that may have been waiting for `is_congested`."""
        raise NotImplementedError

    def is_finished(self) -> bool:
        """Tell whether the connection has nothing left to do and can be closed."""
        raise NotImplementedError

    def lost(self, reason: Reason) -> None:
        """Tell every stream that its connection is gone."""
        raise NotImplementedError
