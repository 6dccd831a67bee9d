"""Byte streams on the loop: one socket each, registered once, edge-triggered, plain or TLS.

Theory of operation
===================
A channel joins three things: what the kernel last said (`readable`, `hangup`), what it did not take yet (`buffered`)
and whom to wake (`task`). Its owner waits first and receives then, sends at once and waits only if the kernel took
less.

Reading. An event sets `readable`; it stays set until a recv proves the socket empty: a short read or EAGAIN. With
edge-triggering that is the only correct moment to clear it. After RDHUP it is never cleared, so an end that arrived
together with data is found by the next recv.

Writing. `write` hands everything to the kernel in one call and keeps the rest as views on the caller's bytes, which
it does not copy; when the kernel has room again, `handle` sends on and wakes the owner once nothing is left. Nothing
here limits `buffered`: a producer must stop while it is above 0 (`drain`), so that it never exceeds what one `write`
was given.

Failure. A reset is remembered: all later reads and writes raise ChannelError, because the kernel reports it only
once and would call the next read a clean end. Data received before the reset is still delivered first. `write` also
raises it; a caller that expects an early answer of the peer may go on with `recv`.

TLS is layered on top: see `tls_channel`.

Not known here: HTTP, pools, time limits (owners set `Task.deadline`), trio.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from collections import deque
from collections.abc import Callable
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import Protocol

from datum_router.errors import DatumRouterError
from datum_router.reasons import Reason
from datum_router_proxy.client_identity import ClientSession
from datum_router_proxy.loop import Deferrable, Loop, Task, current_task, park

RECV_BYTES = 65_536
"""Most that one recv returns."""
BULK_BYTES = 262_144
"""Most that one recv returns of a long body: each piece costs about 40 us whatever its size."""
IOV_MAX = 1024
"""Buffers in one sendmsg (Linux UIO_MAXIOV)."""
CLOSE_FLUSH_S = 5.0
"""How long `close` may go on sending what is buffered."""
LINGER_S = 1.0
"""How long `linger` reads and discards before it closes, if nothing else is said (threats A18)."""
LINGER_BYTES = 65_536
"""How much `linger` discards, if nothing else is said."""

_IN = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR
_HANGUP = EPOLLRDHUP | EPOLLHUP | EPOLLERR
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ChannelError(DatumRouterError):
    """Report a stream that cannot go on: reset, broken TLS, truncated, or closed by ourselves.

    Args:
        is_truncated: The peer ended without a TLS close_notify: what was read may be incomplete.
    """

    __slots__ = ("is_truncated",)

    def __init__(self, message: str, *, reason: Reason, is_truncated: bool = False) -> None:
        super().__init__(message, reason=reason)
        self.is_truncated = is_truncated


class Channel(Protocol):
    """One byte stream. Owned by one task at a time; nothing here blocks or suspends.

    Attributes:
        task: Woken by every event; whoever takes over a channel sets it. None = nobody (idle in a pool).
        eager: Asked first when something has come, and all else of the same round is noted: True if `task` need not
            be woken. It may read and write, and is not to register descriptors (see `loop`).
        deferrable: Whose turn `eager` waits for if it begins something new: it comes after all that is under way, and
            may be put off (see `Loop.arrivals`). None: `eager` goes on with something.
        watcher: Cancelled, with `reset_reason`, when the peer hangs up: for a task that waits for something else.
        on_close: Called once when the descriptor is given back, with what held it; for counting.
        peer: Address without brackets or `::ffff:`, and port; ("", 0) if there is none.
        sni: Server name the client asked for, lower case; None without TLS or without a name.
        reset_reason: The reason a ChannelError of this channel carries.
        client: What a client was held to in the handshake, and who it is; None if it was asked for no certificate.
    """

    task: Task | None
    eager: Callable[[], bool] | None
    deferrable: Deferrable | None
    watcher: Task | None
    on_close: Callable[[PlainChannel], None] | None
    peer: tuple[str, int]
    reset_reason: Reason
    client: ClientSession | None

    @property
    def readable(self) -> bool:
        """True if a recv may return data or the end; it stays True after the end."""
        ...

    @property
    def hangup(self) -> bool:
        """True once the peer has closed its sending side or reset."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes that the kernel has not taken yet."""
        ...

    @property
    def last_progress(self) -> float:
        """When bytes last moved either way (the loop's clock)."""
        ...

    @property
    def is_closed(self) -> bool:
        """True once `close` or `abort` was called."""
        ...

    @property
    def is_tls(self) -> bool:
        """True if bytes are encrypted."""
        ...

    @property
    def alpn(self) -> str | None:
        """The negotiated protocol."""
        ...

    @property
    def sni(self) -> str | None:
        """The server name the client asked for."""
        ...

    def recv(self, size: int = RECV_BYTES) -> bytes | None:
        """Return what has arrived, b"" at the end, None if nothing can be had now (`readable` is False then).

        Raises:
            ChannelError: Reset, truncated or broken; every later call raises it again.
        """
        ...

    def write(self, *buffers: bytes | memoryview) -> None:
        """Send in order, keeping what the kernel does not take; buffers must not change afterwards.

        Raises:
            ChannelError: The stream is broken or closed; nothing of these buffers may count as sent.
        """
        ...

    def send(self, data: bytes) -> None:
        """Do what `write` does with one buffer that is not empty."""
        ...

    def check(self) -> None:
        """Raise ChannelError if the stream is broken or closed."""
        ...

    def finish_writes(self) -> None:
        """Half close once everything buffered has left; idempotent. Reading goes on."""
        ...

    def close(self) -> None:
        """Give the descriptor back; what is buffered is still sent, for at most `CLOSE_FLUSH_S`. Idempotent."""
        ...

    def linger(self, most_bytes: int = LINGER_BYTES, most_s: float = LINGER_S) -> None:
        """Half close, discard at most `most_bytes` for at most `most_s` seconds, then close: instead of `close` where
        the peer may still be sending, since closing a socket with unread data destroys an answer on its way.
        """
        ...

    def abort(self) -> None:
        """Reset the connection and drop what is buffered. Idempotent."""
        ...


async def wait_readable(channel: Channel) -> None:
    """Park until a recv makes sense; the calling task must be the channel's.

    Raises:
        ChannelError: The channel is closed.
        DeadlineExpired, TaskCancelled: As `park`.
    """
    while not channel.readable:
        if channel.is_closed:
            channel.check()
        await park()


async def drain(channel: Channel) -> None:
    """Park until the kernel has taken everything; the calling task must be the channel's.

    Raises:
        ChannelError: The stream broke or is closed.
        DeadlineExpired, TaskCancelled: As `park`.
    """
    while True:
        channel.check()
        if not channel.buffered:
            return
        await park()


class PlainChannel:
    """A TCP (or Unix) stream; see `Channel`. Takes over a non-blocking socket and registers it."""

    __slots__ = (
        "_buffers", "_failure", "_is_connecting", "_is_finished", "_is_finishing", "_loop", "_recv", "_send", "_sock",
        "buffered", "deferrable", "eager", "hangup", "is_closed", "is_noted", "last_progress", "noted_at", "on_close",
        "peer", "readable", "reset_reason", "task", "watcher",
    )  # fmt: skip

    is_tls = False
    alpn: str | None = None
    sni: str | None = None
    client: ClientSession | None = None

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        *,
        peer: tuple[str, int] = ("", 0),
        task: Task | None = None,
        reset_reason: Reason = Reason.DOWNSTREAM_RESET,
        is_connecting: bool = False,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._recv = sock.recv
        self._send = sock.send
        # Made when the kernel is full, dropped when all has left: an empty one would cost each connection 760 bytes.
        self._buffers: deque[memoryview] | None = None
        self._failure = ""
        self._is_connecting = is_connecting
        self._is_finishing = False
        self._is_finished = False
        self.is_noted = False  # it is among those of the loop who are to act
        self.task = task
        self.eager: Callable[[], bool] | None = None
        self.deferrable: Deferrable | None = None
        self.watcher: Task | None = None
        self.on_close: Callable[[PlainChannel], None] | None = None
        self.peer = peer
        self.reset_reason = reset_reason
        self.readable = False
        self.hangup = False
        self.buffered = 0
        self.is_closed = False
        self.last_progress = self.noted_at = loop.now
        loop.register(sock.fileno(), self)

    @property
    def sock(self) -> socket.socket:
        """The socket, to ask the kernel about it."""
        return self._sock

    # --- reading -----------------------------------------------------------------------------------------------

    def recv(self, size: int = RECV_BYTES) -> bytes | None:
        """Return what has arrived, b"" at the end, None if nothing can be had now; see `Channel.recv`."""
        try:
            data = self._recv(size)
        except BlockingIOError:
            self.readable = False
            if self._failure:
                self.check()
            return None
        except OSError as exc:
            self._fail(exc)
            raise self._error() from exc
        if data:
            if len(data) < size and not self.hangup:
                self.readable = False
            self.last_progress = self._loop.now
        elif self._failure:
            raise self._error()
        else:
            self.readable = self.hangup = True
        return data

    def peek(self, size: int) -> bytes | None:
        """Return what has arrived and leave it there; b"" at the end, None if there is nothing now.

        The same bytes come again with the next call: whoever needs more than there are says `expect_more` and parks.

        Raises:
            ChannelError: The stream is broken or closed.
        """
        if self.is_closed:
            raise self._error()
        try:
            data = self._recv(size, socket.MSG_PEEK)
        except BlockingIOError:
            self.readable = False
            if self._failure:
                raise self._error() from None
            return None
        except OSError as exc:
            self._fail(exc)
            raise self._error() from exc
        self.readable = True
        if not data:
            self.hangup = True
        return data

    def expect_more(self) -> None:
        """Say that what was peeked at is not enough, so that the next event alone makes the channel readable."""
        self.readable = self.hangup

    def skip(self, size: int) -> None:
        """Throw away bytes that `peek` has shown."""
        while size > 0:
            got = len(self._recv(size))
            if not got:
                raise AssertionError("skip: fewer bytes than were peeked at")
            size -= got

    # --- writing -----------------------------------------------------------------------------------------------

    def write(self, *buffers: bytes | memoryview) -> None:
        """Send in order, keep what the kernel does not take; see `Channel.write`."""
        if self._failure or self.is_closed:
            raise self._error()
        if self._is_finishing:
            raise AssertionError("write: called after finish_writes")
        if self.buffered or len(buffers) > IOV_MAX:
            was_empty = not self.buffered
            self._keep(buffers, 0)
            if was_empty:
                self._flush()
                self.check()
            return
        try:
            if len(buffers) == 1:
                size = len(buffers[0])
                sent = self._send(buffers[0]) if size else 0
            else:
                size = sum(map(len, buffers))
                sent = self._sock.sendmsg(buffers) if size else 0
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._fail(exc)
            raise self._error() from exc
        if sent:
            self.last_progress = self._loop.now
        if sent < size:
            self._keep(buffers, sent)

    def _keep(self, buffers: tuple[bytes | memoryview, ...], sent: int) -> None:
        kept = self._buffers
        if kept is None:
            kept = self._buffers = deque()
        for data in buffers:
            size = len(data)
            if sent >= size:
                sent -= size
                continue
            kept.append(memoryview(data)[sent:])
            self.buffered += size - sent
            sent = 0

    def _flush(self) -> None:
        buffers = self._buffers
        try:
            while buffers:
                batch = list(itertools.islice(buffers, IOV_MAX))
                size = sum(map(len, batch))
                sent = self._sock.sendmsg(batch)
                self.buffered -= sent
                self.last_progress = self._loop.now
                left = sent
                while left and left >= len(buffers[0]):
                    left -= len(buffers.popleft())
                if left:
                    buffers[0] = buffers[0][left:]
                if sent < size:
                    return
        except BlockingIOError:
            return
        except OSError as exc:
            self._fail(exc)
            return
        self._buffers = None
        if self._is_finishing:
            self._shutdown()

    def finish_writes(self) -> None:
        """Half close once everything buffered has left; see `Channel.finish_writes`."""
        if self._is_finishing or self.is_closed:
            return
        self._is_finishing = True
        if not self.buffered:
            self._shutdown()

    def _shutdown(self) -> None:
        if not self._is_finished:
            self._is_finished = True
            with contextlib.suppress(OSError):  # the peer may be gone already: recv will say so
                self._sock.shutdown(socket.SHUT_WR)

    def send(self, data: bytes) -> None:
        """Do what `write` does with one buffer that is not empty, in fewer steps."""
        if self.buffered or self._failure or self.is_closed or self._is_finishing:
            self.write(data)
            return
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._fail(exc)
            raise self._error() from exc
        self.last_progress = self._loop.now
        if sent < len(data):
            self._keep((data,), sent)

    # --- events and failure --------------------------------------------------------------------------------------

    def handle(self, events: int) -> None:
        """Note epoll events (called by the loop)."""
        task = self.task
        if events & _IN:
            self.readable = True
            if events & _HANGUP:
                self.hangup = True
                if self.watcher is not None:
                    self.watcher.cancel(self.reset_reason)
            if task is not None:
                loop = self._loop
                if self.eager is None:
                    task.wake()
                elif not self.is_noted:  # else it waits for its turn already, since what came first
                    self.is_noted = True
                    if self.deferrable is None:
                        loop.eager.append(self)
                    else:
                        self.noted_at = loop.now
                        loop.arrivals.append(self)
        if events & EPOLLOUT:
            if self.buffered:
                self._flush()
                if not self.buffered and task is not None:
                    task.wake()
            elif self._is_connecting:
                self._is_connecting = False
                if task is not None:
                    task.wake()

    def act(self) -> None:
        """Ask `eager` about what `handle` has noted (called by the loop)."""
        self.is_noted = False
        task = self.task
        if task is not None and (self.eager is None or not self.eager()):
            task.wake()

    @property
    def is_connecting(self) -> bool:
        """True from a pending connect until the kernel has decided."""
        return self._is_connecting and not self.hangup

    def connect_errno(self) -> int:
        """Return how a pending connect ended (SO_ERROR), 0 = connected. The kernel says it once."""
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code:
            self._is_connecting = False
            self.last_progress = self._loop.now
        return code

    def check(self) -> None:
        """Raise ChannelError if the stream is broken or closed."""
        if self._failure or self.is_closed:
            raise self._error()

    def _fail(self, exc: OSError) -> None:
        self._failure = self._failure or exc.strerror or str(exc) or type(exc).__name__
        self._buffers = None
        self.buffered = 0
        self.readable = True
        self.hangup = True

    def _error(self) -> ChannelError:
        host, port = self.peer
        said = self._failure or "closed by us"
        return ChannelError(f"connection with {host} port {port}: {said.lower()}", reason=self.reset_reason)

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the descriptor back, sending what is buffered first; see `Channel.close`."""
        if self.is_closed:
            return
        self.is_closed = True
        if self.buffered and not self._failure and not self._loop.is_closed:
            self._is_finishing = True
            self._loop.spawn(self._see_off(0, 0.0), name="close")
        else:
            self._release()

    def linger(self, most_bytes: int = LINGER_BYTES, most_s: float = LINGER_S) -> None:
        """Half close, discard what still comes, then close; see `Channel.linger`."""
        if self.is_closed:
            return
        if self._failure or self._loop.is_closed:
            self.close()
            return
        self.finish_writes()
        self.is_closed = True
        self._loop.spawn(self._see_off(most_bytes, most_s), name="linger")

    async def _see_off(self, discard_bytes: int, discard_s: float) -> None:
        """Send what is buffered, discard up to a bound, give the descriptor back whatever happens."""
        self.eager = self.deferrable = None
        task = self.task = current_task()
        task.deadline_reason = Reason.WRITE_TIMEOUT
        task.deadline = self._loop.now + CLOSE_FLUSH_S
        try:
            while self.buffered and not self._failure:
                await park()
            task.deadline = self._loop.now + discard_s
            while discard_bytes > 0 and not self._failure:
                if not self.readable:
                    await park()
                    continue
                data = self.recv()
                if data == b"":
                    return
                discard_bytes -= len(data or b"")
        except ChannelError:
            pass  # reset while we said goodbye: nothing is left to do but close
        finally:
            self._release()

    def abort(self) -> None:
        """Reset the connection; see `Channel.abort`."""
        if self._sock.fileno() < 0:
            return
        self.is_closed = True
        self._failure = self._failure or "aborted by us"
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._release()

    def _release(self) -> None:
        fd = self._sock.fileno()
        if fd < 0:
            return
        self._loop.forget(fd)
        self._buffers = None
        self.buffered = 0
        self.eager = self.deferrable = None
        task, self.task = self.task, None
        if task is not None:
            task.wake()  # it may be somebody else who closes: the owner finds out
        with contextlib.suppress(OSError):  # close reports a late reset; the descriptor is gone all the same
            self._sock.close()
        done, self.on_close = self.on_close, None
        if done is not None:
            done(self)
