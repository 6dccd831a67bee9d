"""A client's HTTP/1.1 connection: one coroutine reads a head, serves it, and does so again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Final

from datum_router.errors import LocalProtocolError, RemoteProtocolError
from datum_router.model.listener import Listener
from datum_router.reasons import Reason
from datum_router_proxy.answers import Answer, DateField
from datum_router_proxy.channel import Channel, ChannelError
from datum_router_proxy.exchange import ClientGone, Field, FieldTuple
from datum_router_proxy.express import Begun
from datum_router_proxy.loop import DeadlineExpired, Task, TaskCancelled, current_task, park
from datum_router_proxy.request import Template, from_h1
from datum_router_proxy.server.base import Server, client_hop, refusal, tunnel_data
from datum_router_proxy.server.known_head import KnownHead
from datum_router_proxy.wire import hygiene, websocket
from datum_router_proxy.wire.http1 import (
    FRAMING_CHUNKED,
    FRAMING_NONE,
    NEED_DATA,
    DataReceived,
    Event,
    Framing,
    FramingKind,
    H1RequestHead,
    Http1Connection,
    MessageComplete,
    RequestReceived,
    Role,
    Signal,
    State,
    TargetForm,
)

_LENGTH: Final = FramingKind.LENGTH
_VIA: Final = {0: b"1.0", 1: b"1.1"}


class H1Connection:
    """One connection, which is its own `exchange.Downstream`: one request at a time (threat A19)."""

    __slots__ = (
        "_begun", "_body_ended", "_channel", "_engine", "_expects_continue", "_flying", "_given", "_hop", "_is_closing",
        "_is_ending", "_is_idle", "_is_late", "_is_tunnel", "_known", "_last_with_body", "_listener", "_may_fly",
        "_out", "_out_bytes", "_plane", "_task", "_trailers", "_unread", "_whole_body", "has_started", "is_deferred",
        "protocol", "request_websocket_key", "unserved",
    )  # fmt: skip

    def __init__(self, plane: Server, channel: Channel, listener: Listener) -> None:
        self._plane = plane
        self._channel = channel
        self._listener = listener
        self._engine = Http1Connection(Role.SERVER, plane.h1_limits, plane.h1_cache)
        self._hop: hygiene.Hop | None = None  # made for the version of HTTP that the last head had
        self._known = KnownHead(plane.h1_limits)
        self._last_with_body: tuple[H1RequestHead, Template] | None = None
        self._whole_body = b""  # read by the express lane, and to be read again
        self._unread = b""  # a head that was recognised by its bytes: the engine has not seen it
        self._may_fly = False  # the task sleeps between two requests, and the engine has read nothing of the next one
        self._given: bytes | None = None  # what was read for the task, which is to look at it
        self._flying: Template | None = None  # what was begun without the task, and how it stands
        self._begun: Begun | None = None
        self._task: Task | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._trailers: FieldTuple = ()
        self._body_ended = self._expects_continue = self._is_tunnel = False
        self._is_closing = self._is_ending = False
        self._is_idle = True
        self.is_deferred = False  # see `loop.Deferrable`
        self._is_late = False  # it was put off for so long that its request is turned away
        self.protocol = "h1"
        self.has_started = False
        self.request_websocket_key: bytes | None = None
        self.unserved = b""  # begins with a CONNECT: whoever takes it has the channel, which is left open

    # --- the connection's life --------------------------------------------------------------------------------

    async def run(self, first: bytes) -> None:
        """Serve requests until either side has had enough, then close; `first` is what was read already."""
        channel = self._channel
        channel.task = self._task = current_task()
        channel.eager = self._on_input
        channel.deferrable = self
        plane, engine = self._plane, self._engine
        if first:
            engine.receive_data(first)
            first = b""
        is_first = True
        try:
            while True:
                template = await self._next_request(is_first=is_first)
                if template is None:
                    break
                is_first = False
                channel.deferrable = None  # what more comes of it is part of what is under way
                begun, self._begun = self._begun, None
                if self._is_late:
                    self._is_late = False
                    await plane.turn_away(self, template)
                else:
                    await plane.serve(self, template, begun)
                template = begun = None  # an idle connection is to hold nothing but what `rest` can forget
                self._task.deadline = math.inf
                channel.deferrable = self
                if self._is_closing or self._is_ending or channel.is_closed:
                    break
                if self._unread:
                    self._unread = b""  # the express lane has served it past the engine
                elif engine.can_reuse:
                    engine.start_next_cycle()
                else:
                    break
                if engine.buffered_bytes or channel.readable:
                    # Pipelined requests: others get the loop between two of them, whoever answered.
                    self._task.wake()
                    await park()
        except (ChannelError, ClientGone, TaskCancelled):
            pass  # the client has left, or we are idle and draining, or cut off: nothing is to be said to anybody
        finally:
            self._close()

    def _close(self) -> None:
        """Close; while the client may still be sending, read a little more, so that our answer survives (A18)."""
        if self._begun is not None:
            self._plane.flights.crash(self._begun)
            self._begun = None
        channel = self._channel
        channel.eager = channel.deferrable = None
        self.is_deferred = False
        if self.unserved:
            return
        if channel.hangup or (self._engine.reading is State.DONE and not channel.readable):
            self._channel.close()
        else:
            self._channel.linger(self._plane.settings.linger_bytes, self._plane.settings.linger_s)

    async def _next_request(self, *, is_first: bool) -> Template | None:
        """Wait for a request; None if the connection is to be closed."""
        engine, channel = self._engine, self._channel
        plane, task = self._plane, self._task
        settings = plane.settings
        assert task is not None
        loop = plane.loop
        self._is_idle = True
        wait_s = settings.first_byte_timeout_s if is_first else settings.keep_alive_timeout_s
        task.deadline, task.deadline_reason = loop.now + wait_s, Reason.IDLE_TIMEOUT
        block = b""
        try:
            # Nearly always nothing is left over from before: then the engine need not be asked.
            event: Event | Signal = NEED_DATA
            if engine.buffered_bytes or not engine.is_fresh:
                event = engine.next_event()
            # The engine forgives one empty line before a request, and must be the one that reads what follows it.
            is_at_start = engine.is_fresh
            if engine.has_partial_head:
                self._start_head_clock(task)
            while event is NEED_DATA:
                data, self._given = self._given, None
                # What comes behind a request in the air is not read before that is answered, whoever has woken us.
                if data is None and (self._flying is not None or self.is_deferred or not channel.readable):
                    self._may_fly = is_at_start and not self.is_deferred and (self._is_idle or self._flying is not None)
                    try:
                        await park()
                    except (DeadlineExpired, TaskCancelled) as error:
                        if self._begun is not None:
                            self._land(error)
                        elif self._is_idle and channel.readable and isinstance(error, DeadlineExpired):
                            self._start_head_clock(task)  # it has come in time: it is we who are late
                        else:
                            raise
                    self._may_fly = False
                    flown = self._take_flown()
                    if flown is not None or channel.is_closed:
                        return flown
                    continue
                if data is None:
                    data = channel.recv()
                if data is None:
                    if self._is_late:  # what was put off is no request yet: half a record of TLS
                        self._is_late = False
                        task.deadline = loop.now + wait_s
                    continue
                if self._is_idle and data:
                    block = data
                    template = self._known.recognise(data) if is_at_start else None
                    if template is not None:
                        self._unread = data
                        self._is_idle = False
                        return template
                    self._start_head_clock(task)
                else:
                    block = b""
                engine.receive_data(data)
                event = engine.next_event()
        except DeadlineExpired as error:
            if engine.has_partial_head:
                self._refuse(408, error.reason)
            else:
                plane.rejected("h1", error.reason)  # silent for too long: nothing is said, but it is counted
            return None
        except RemoteProtocolError as error:
            if error.reason is not Reason.TRUNCATED:
                self._refuse(error.status_hint, error.reason, str(error))
            return None
        if not isinstance(event, RequestReceived):
            self.unserved = engine.trailing_data() if event is Signal.CONNECT else b""
            return None  # else closed between messages
        task.deadline = math.inf
        self._is_idle = False
        head = event.head
        known = self._last_with_body
        if known is not None and known[0] is head:  # the engine returns the same object for the same bytes
            self._reset(known[1])
            return known[1]
        template = self._begin(head)
        # An empty line may stand before the request line; what follows *that* line is no end of a head.
        is_whole = block[:1] not in (b"", b"\r") and not engine.buffered_bytes
        if template.has_body:
            if template.is_plain:
                self._last_with_body = (head, template)
        elif is_whole and template.is_plain and head.form is TargetForm.ORIGIN:
            self._known.remember(block, template)
        return template

    # --- past the task --------------------------------------------------------------------------------------------

    def _on_input(self) -> bool:
        """Send a request upstream whose head is known; False: the task is to look. See `Channel.eager`."""
        channel = self._channel
        if not self._may_fly:
            if not self.is_deferred:
                return False
            if channel.hangup and self._task is not None:
                self.is_deferred = False
                self._task.cancel(Reason.DOWNSTREAM_RESET)
            return True
        if self._flying is not None:
            return not channel.hangup  # what comes after a request waits until that is answered
        try:
            data = channel.recv()
        except ChannelError:
            return False  # the task is told the same again
        if data is None:
            return not channel.readable
        task = self._task
        assert task is not None
        task.deadline = math.inf  # it has come in time, whenever the task's turn is
        template = self._known.recognise(data) if data else None
        if template is None:
            self._given = data
            self._may_fly = False  # what comes next is not to overtake it
            return False
        self._unread = data
        self._is_idle = False
        self._flying = template
        begun = self._begun = self._plane.flights.fly(template, task, self._on_answer)
        return begun is not None and begun.is_flying and not channel.hangup

    def defer(self) -> bool:
        """Leave a request unread that nothing has been done for; see `loop.Deferrable`."""
        task = self._task
        channel = self._channel
        if not self._may_fly or self._flying is not None or channel.hangup or not channel.readable or task is None:
            return False  # it is under way, leaves, or has been read already
        self._may_fly = False
        self.is_deferred = True
        task.deadline = math.inf  # it has come in time, and is answered by whoever has put it off
        return True

    def release(self) -> None:
        """Read it, and turn it away."""
        self.is_deferred = False
        self._is_late = True
        if self._task is not None:
            self._task.wake()

    def _on_answer(self) -> bool:
        """Answer by what has come of the upstream; False: the task is to look. See `Channel.eager`."""
        begun, template, task = self._begun, self._flying, self._task
        assert begun is not None
        assert template is not None
        assert task is not None
        plane = self._plane
        is_over = plane.flights.arrive(self, template, begun)
        if is_over is None:
            return True
        if not is_over:
            return False
        channel = self._channel
        if channel.buffered or channel.is_closed:
            return False  # a client that does not read is waited for, but not for ever
        self._begun = self._flying = None
        self._unread = b""
        self._is_idle = True
        task.deadline, task.deadline_reason = plane.loop.now + plane.settings.keep_alive_timeout_s, Reason.IDLE_TIMEOUT
        return not channel.readable

    def _take_flown(self) -> Template | None:
        """Return the request that was begun without the task if the task is to go on with it."""
        template, begun = self._flying, self._begun
        if begun is not None and begun.is_flying:
            if not self.is_gone:
                return None
            self._land(ClientGone())
        self._flying = None
        return template

    def _land(self, error: Exception) -> None:
        begun, template = self._begun, self._flying
        assert begun is not None
        assert template is not None
        if begun.is_flying:
            self._plane.flights.land(template, begun, error)
        else:
            begun.raised = begun.raised or error

    def _start_head_clock(self, task: Task) -> None:
        self._is_idle = False
        task.deadline = self._plane.loop.now + self._plane.settings.head_timeout_s
        task.deadline_reason = Reason.HEAD_TIMEOUT

    def _refuse(self, status: int, reason: Reason, detail: str = "") -> None:
        """Answer what is not a request, and count it (G3)."""
        self._plane.rejected("h1", reason)
        with contextlib.suppress(LocalProtocolError, ChannelError):  # perhaps no answer is possible any more
            self._channel.write(*refusal(self._engine, status, reason, detail))

    def _begin(self, head: H1RequestHead) -> Template:
        """Make a template of a head that the engine has read, and be ready for its exchange."""
        hop = self._hop
        via = _VIA[head.minor_version]
        if hop is None or hop.via_protocol is not via:
            hop = self._hop = client_hop(self._channel, self._listener, via)
        template = from_h1(head, hop, self._listener.name)
        if head.dropped_fields:
            self._plane.rejected("h1", Reason.UNDERSCORE_FIELD)
            template.is_plain = template.is_simple = False  # to be counted each time
        self._reset(template)
        return template

    def _reset(self, template: Template) -> None:
        self._trailers = ()
        self._body_ended = False
        self._whole_body = b""
        self._expects_continue = template.expects_continue
        self._is_tunnel = self.has_started = False
        self.protocol = "h1"
        self.request_websocket_key = template.websocket_key
        if not template.has_body:
            self._engine.next_event()  # the end of the message: nothing is on the wire for it
            self._body_ended = True

    @property
    def is_idle(self) -> bool:
        """True between requests."""
        return self._is_idle

    def rest(self) -> None:
        """Forget the last head while nothing is under way: two of three KB that an idle connection would hold."""
        if self._is_idle:
            self._known.forget()
            self._last_with_body = None
            self._hop = None

    def begin_drain(self) -> None:
        """Do nothing: while the gateway ends, each answer says that it is the last one."""

    def finish_drain(self) -> None:
        """Close now if nothing is under way, else after that; its answer says so if it has not begun."""
        self._is_ending = True
        if self._is_idle and self._given is None and not self._channel.readable:
            self.cut()

    def cut(self) -> None:
        """End everything."""
        if self._task is not None:
            self._may_fly = False  # what comes before its step is not to be sent any more
            self._task.cancel(Reason.DRAINING)

    # --- Downstream: the request --------------------------------------------------------------------------------

    @property
    def body_ended(self) -> bool:
        """True once the request has been read to its end."""
        return self._body_ended

    @property
    def trailers(self) -> FieldTuple:
        """The request's trailers."""
        return self._trailers

    @property
    def is_gone(self) -> bool:
        """True once the client has closed or reset; a half close counts too: nearly always it has left."""
        return self._channel.is_closed or (self._channel.hangup and self._body_ended and not self._is_tunnel)

    def watch(self) -> None:
        """Let a client that hangs up, or has done so, cancel the task; see `exchange.Downstream`."""
        self._channel.watcher = self._task
        if self._channel.hangup and self._task is not None:
            self._task.cancel(Reason.DOWNSTREAM_RESET)

    def unwatch(self) -> None:
        """Let it only show in `is_gone`."""
        self._channel.watcher = None

    @property
    def last_progress(self) -> float:
        """When bytes last moved."""
        return self._channel.last_progress

    def settle(self) -> None:
        """Let the engine read a head that was recognised by its bytes."""
        data = self._unread
        if data:
            self._unread = b""
            self._engine.receive_data(data)
            self._engine.next_event()
            assert self._known.template is not None
            self._reset(self._known.template)

    def read_body(self) -> bytes | None:
        """Return the next piece of the body; see `exchange.Body`."""
        if self._is_tunnel:
            return self._read_tunnel()
        if self._body_ended:
            whole, self._whole_body = self._whole_body, b""
            return whole
        engine = self._engine
        channel = self._channel
        if self._expects_continue:
            self._expects_continue = False
            if not engine.buffered_bytes and not channel.readable:
                # We answer it ourselves, once an upstream is there to take the body (threat A15).
                self._queue(engine.send_informational(100))
                self.flush()
        try:
            event = engine.next_event()
            while event is NEED_DATA:
                if not channel.readable:
                    return None
                data = channel.recv()
                if data is None:
                    return None
                engine.receive_data(data)
                event = engine.next_event()
        except ChannelError as error:
            raise ClientGone from error
        except RemoteProtocolError as error:
            if error.reason is Reason.TRUNCATED:
                raise ClientGone from error
            raise
        if isinstance(event, DataReceived):
            return event.data
        if isinstance(event, MessageComplete):
            self._trailers = event.trailers
        self._body_ended = True
        return b""

    def _read_tunnel(self) -> bytes | None:
        if self._body_ended:
            return b""
        data = tunnel_data(self._engine, self._channel)
        self._body_ended = data == b""
        return data

    # --- Downstream: the response -------------------------------------------------------------------------------

    @property
    def is_writable(self) -> bool:
        """True if another piece may be queued."""
        return self._out_bytes < self._plane.settings.buffer_bytes and not self._channel.buffered

    @property
    def is_flushed(self) -> bool:
        """True once the kernel has taken everything."""
        return not self._out and not self._channel.buffered

    @property
    def has_unread(self) -> bool:
        """Return False: what has come can be read at once."""
        return False

    def whole_body(self) -> bytes | None:
        """Return the whole body if it has come and its length was stated; see `exchange.Downstream`."""
        engine = self._engine
        body = engine.whole_body()
        if body is None and self._channel.readable:  # many clients send head and body by two calls
            try:
                data = self._channel.recv()
            except ChannelError as error:
                raise ClientGone from error
            if data is not None:
                engine.receive_data(data)
                body = engine.whole_body()
        if body is not None:
            self._whole_body = body
            self._body_ended = True
        return body

    def send_answer(self, answer: Answer, date: DateField, body: bytes, trailers: bytes = b"") -> bool:
        """Send a whole response past the engine; see `exchange.Downstream`."""
        if answer.length != len(body) or trailers:
            return False
        if self._plane.is_draining or self._is_ending or not (self._unread or self._engine.skip_response()):
            return False
        head = answer.h1 if answer.has_date else answer.h1 + date.refresh(self._plane.loop.now).h1
        try:
            self._channel.send(b"%b\r\n%b" % (head, body))
        except ChannelError as error:
            raise ClientGone from error
        self._whole_body = b""
        return True

    def send_informational(self, status: int, fields: Sequence[Field]) -> None:
        """Queue a 1xx response."""
        self._queue(self._engine.send_informational(status, fields))

    def send_head(
        self,
        status: int,
        fields: Sequence[Field],
        *,
        content_length: int | None,
        is_bodyless: bool,
        close: bool = False,
    ) -> None:
        """Queue a final head; see `exchange.Downstream`."""
        engine = self._engine
        if is_bodyless:
            framing = FRAMING_NONE
        elif content_length is not None:
            framing = Framing(_LENGTH, content_length)
        else:
            framing = FRAMING_CHUNKED
        close = close or self._plane.is_draining or self._is_ending or not self._body_ended
        data = engine.send_response(
            status, fields, framing=framing, content_length=content_length if is_bodyless else None, close=close
        )
        self.has_started = True
        self._queue(data)

    def accept_tunnel(self, fields: Sequence[Field]) -> None:
        """Queue 101; the connection carries the tunnel's bytes from then on."""
        key = self.request_websocket_key
        assert key is not None
        data = self._engine.send_switch(websocket.WEBSOCKET, websocket.switch_fields(fields, key=key))
        self.has_started = True
        self.protocol = "ws"
        self._is_tunnel = True
        self._is_closing = True
        self._body_ended = False
        self._queue(data)

    def send_data(self, data: bytes) -> None:
        """Queue body bytes."""
        if self._is_tunnel:
            self._queue(data)
            return
        for piece in self._engine.data_buffers(data):
            self._queue(piece)

    def send_end(self, trailers: Sequence[Field] = ()) -> None:
        """Queue the end of the response; half close a tunnel."""
        if self._is_tunnel:
            self.flush()
            self._channel.finish_writes()
            return
        data = self._engine.send_end(trailers)
        if data:
            self._queue(data)

    def _queue(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def flush(self) -> None:
        """Write what is queued in one call."""
        out = self._out
        if not out:
            return
        try:
            self._channel.write(*out)
        except ChannelError:
            self._channel.close()
        out.clear()
        self._out_bytes = 0

    def abort(self, reason: Reason) -> None:
        """Cut the connection: without a last chunk or the stated length the answer cannot be taken for complete."""
        self._out.clear()
        self._out_bytes = 0
        self._is_closing = True
        self._channel.abort()
