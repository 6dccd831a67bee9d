"""A client's HTTP/1.1 connection: one coroutine reads a head, serves it, and does so again."""

from __future__ import annotations

import contextlib
import math
from typing import Final

from datum_router.errors import LocalProtocolError, RemoteProtocolError
from datum_router.model.listener import Listener
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, ChannelError
from datum_router_proxy.exchange import ClientGone
from datum_router_proxy.express import Begun
from datum_router_proxy.loop import DeadlineExpired, Task, TaskCancelled, current_task, park
from datum_router_proxy.request import Template, from_h1
from datum_router_proxy.server.base import Server, client_hop, refusal
from datum_router_proxy.server.drain import NEWCOMER_S
from datum_router_proxy.server.h1_exchange import H1Exchange
from datum_router_proxy.wire import hygiene
from datum_router_proxy.wire.http1 import (
    NEED_DATA,
    Event,
    H1RequestHead,
    RequestReceived,
    Signal,
    State,
    TargetForm,
)

_VIA: Final = {0: b"1.0", 1: b"1.1"}


class H1Connection(H1Exchange):
    """One connection, which is its own `exchange.Downstream`: one request at a time (threat A19)."""

    __slots__ = (
        "_begun", "_came_at", "_flying", "_given", "_has_asked", "_hop", "_is_idle", "_is_late", "_last_with_body",
        "_listener", "_may_fly", "is_deferred", "unserved",
    )  # fmt: skip

    def __init__(self, plane: Server, channel: Channel, listener: Listener) -> None:
        super().__init__(plane, channel)
        self._listener = listener
        self._hop: hygiene.Hop | None = None  # made for the version of HTTP that the last head had
        self._last_with_body: tuple[H1RequestHead, Template] | None = None
        self._may_fly = False  # the task sleeps between two requests, and the engine has read nothing of the next one
        self._given: bytes | None = None  # what was read for the task, which is to look at it
        self._flying: Template | None = None  # what was begun without the task, and how it stands
        self._begun: Begun | None = None
        self._is_idle = True
        self._came_at = plane.loop.now
        self._has_asked = False  # its first request has come, which is always read by the task
        self.is_deferred = False  # see `loop.Deferrable`
        self._is_late = False  # it was put off for so long that its request is turned away
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
        try:
            while True:
                template = await self._next_request()
                if template is None:
                    break
                self._has_asked = True
                channel.deferrable = None  # what more comes of it is part of what is under way
                begun, self._begun = self._begun, None
                if self._is_late:
                    self._is_late = False
                    await plane.turn_away(self, template)
                else:
                    await self._plane.serve(self, template, begun)  # not `plane`: see `depart`
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

    async def _next_request(self) -> Template | None:
        """Wait for a request; None if the connection is to be closed."""
        engine, channel = self._engine, self._channel
        plane, task = self._plane, self._task
        settings = plane.settings
        assert task is not None
        loop = plane.loop
        self._is_idle = True
        wait_s = settings.keep_alive_timeout_s if self._has_asked else settings.first_byte_timeout_s
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
        """Close now if nothing is under way, else after that; its answer says so if it has not begun.

        Who has just connected is waited for: to be called until the connection has ended.
        """
        self._is_ending = True
        if not self._is_idle or self._given is not None or self._channel.readable:
            return
        if self._has_asked or self._plane.loop.now - self._came_at >= NEWCOMER_S:
            self.cut()

    def depart(self, server: Server) -> None:
        """Have what is asked from now on served by `server`."""
        self._plane = server

    def cut(self) -> None:
        """End everything."""
        if self._task is not None:
            self._may_fly = False  # what comes before its step is not to be sent any more
            self._task.cancel(Reason.DRAINING)
