"""What the pipeline sees of both sides: one downstream exchange, one upstream exchange, whatever protocol carries them.

Theory of operation. The pipeline is one task per request. It polls both sides, moves what can be moved, and parks
when neither has anything; events of either side wake it. So nothing here suspends:

- `read_body` and `poll` answer None for "nothing now". They take bytes from the peer only when asked, so a side that
  is not polled stops its peer: that is the whole of back-pressure.
- `send_*` only queue; `flush` hands everything to the transport in as few writes as possible. A producer asks
  `is_writable` first, and stops while it is False: at most one piece is ever held.
- Either side can break at any time. Downstream it shows as `is_gone`, upstream as UpstreamError from `poll`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from datum_router.reasons import Reason
from datum_router_proxy.answers import Answer, DateField
from datum_router_proxy.task import Task

Field = tuple[bytes, bytes]
FieldTuple = tuple[Field, ...]


class UpstreamHead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A final response head of an upstream.

    Attributes:
        content_length: As stated, also where no body follows; None if it is not known.
        is_bodyless: Neither body bytes nor trailers follow.
        via: Version the upstream spoke.
        is_switch: The stream is a tunnel from here on (101, or 2xx to extended CONNECT).
    """

    status: int
    fields: FieldTuple
    content_length: int | None = None
    is_bodyless: bool = False
    via: bytes = b"1.1"
    nominations: frozenset[bytes] = frozenset()
    is_switch: bool = False


class Interim(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A 1xx response of an upstream, not 101."""

    status: int
    fields: FieldTuple


class End(msgspec.Struct, frozen=True, gc=False):
    """The upstream's message is complete."""

    trailers: FieldTuple = ()


END = End()

UpstreamEvent = UpstreamHead | Interim | End | bytes


class Body(Protocol):
    """Where request bytes come from."""

    @property
    def body_ended(self) -> bool:
        """True once every byte of the request has been read."""
        ...

    def read_body(self) -> bytes | None:
        """Return the next piece, b"" at the end (again on later calls), None if nothing is there now.

        Raises:
            RemoteProtocolError: The client broke the framing of its body.
            ClientGone: It left in the middle.
        """
        ...


class Watched(Protocol):
    """Somebody who may leave while a task waits for something else."""

    def watch(self) -> None:
        """From now on cancel the calling task, with `downstream_reset`, as soon as they have left.

        For waits that look at neither side: a dial, a place in a queue, a pause before another attempt.
        """
        ...

    def unwatch(self) -> None:
        """Leave it to whoever looks again. Idempotent."""
        ...


class Nobody:
    """Stands for a client where there is none who could leave, or where another task looks after it."""

    __slots__ = ()

    def watch(self) -> None:
        """Do nothing."""

    def unwatch(self) -> None:
        """Do nothing."""


NOBODY = Nobody()


class Downstream(Body, Watched, Protocol):
    """One request and its response, seen from the client's connection.

    Attributes:
        protocol: `h1` or `h2`, for events.
        has_started: A final response head was queued: nothing can be taken back.
        last_progress: When the client last took or gave something (the loop's clock).
    """

    protocol: str
    has_started: bool

    @property
    def trailers(self) -> FieldTuple:
        """The request's trailers, once the body has ended."""
        ...

    @property
    def is_gone(self) -> bool:
        """True once nobody is there to take the response."""
        ...

    @property
    def is_writable(self) -> bool:
        """True if another piece may be queued."""
        ...

    @property
    def is_flushed(self) -> bool:
        """True once the transport has taken everything that was sent."""
        ...

    @property
    def last_progress(self) -> float:
        """When bytes last moved either way."""
        ...

    def settle(self) -> None:
        """Prepare for everything below: the express lane did not serve the request, or not to its end."""
        ...

    @property
    def has_unread(self) -> bool:
        """True if the request body may be whole in the next round of the loop."""
        ...

    def whole_body(self) -> bytes | None:
        """Return the whole request body, for the express lane, if it is here, short and without trailers.

        It stays to be read by `read_body` all the same.
        """
        ...

    def send_answer(self, answer: Answer, date: DateField, body: bytes, trailers: bytes = b"") -> bool:
        """Send a whole response at once, for the express lane; False if that cannot be done now: nothing was sent.

        Args:
            trailers: A header block without dynamic table.

        Raises:
            ClientGone: The client has left.
        """
        ...

    def send_informational(self, status: int, fields: Sequence[Field]) -> None:
        """Queue a 1xx response other than 101."""
        ...

    def send_head(
        self,
        status: int,
        fields: Sequence[Field],
        *,
        content_length: int | None,
        is_bodyless: bool,
        close: bool = False,
    ) -> None:
        """Queue a final response head.

        Args:
            content_length: Stated even if nothing follows (HEAD, 304); None = not known.
            is_bodyless: No body bytes and no trailers follow; `send_end` is still called.
            close: Do not keep the connection for another request (HTTP/1).

        Raises:
            LocalProtocolError: A field must not be sent; nothing was queued.
        """
        ...

    def accept_tunnel(self, fields: Sequence[Field]) -> None:
        """Queue the answer that opens a WebSocket tunnel; body methods carry its bytes from then on."""
        ...

    def send_data(self, data: bytes) -> None:
        """Queue body bytes; never empty."""
        ...

    def send_end(self, trailers: Sequence[Field] = ()) -> None:
        """Queue the end of the message, or half close the tunnel."""
        ...

    def flush(self) -> None:
        """Hand what is queued to the transport; a lost client shows in `is_gone`, not here."""
        ...

    def abort(self, reason: Reason) -> None:
        """End the response so that the client cannot take it for complete."""
        ...


class Upstream(Protocol):
    """One attempt at an endpoint: request out, response in.

    Attributes:
        is_reused: The connection has carried a request before: it may be stale (threat U4).
        is_sent: A byte of the request may have reached the upstream.
        has_received: A byte of a response has come.
    """

    is_reused: bool

    @property
    def is_sent(self) -> bool:
        """True if a byte of the request may have left."""
        ...

    @property
    def has_received(self) -> bool:
        """True once anything of a response has come."""
        ...

    @property
    def is_writable(self) -> bool:
        """True if another piece of the request body may be queued."""
        ...

    def rebind(self, task: Task) -> None:
        """Wake `task` from now on instead of the one that it was begun for."""
        ...

    def note_stall(self, seconds: float) -> None:
        """Take note that for so long the client took nothing: what is read for a slow one is kept (threat E5)."""
        ...

    def send_head(self, request: UpstreamRequest) -> None:
        """Queue the request head.

        Raises:
            LocalProtocolError: A field must not be sent; nothing was queued.
            UpstreamError: The upstream cannot take it (extended CONNECT not offered, connection lost).
        """
        ...

    def send_data(self, data: bytes) -> None:
        """Queue body bytes; never empty."""
        ...

    def send_end(self, trailers: Sequence[Field] = ()) -> None:
        """Queue the end of the request, or half close the tunnel."""
        ...

    def flush(self) -> None:
        """Hand what is queued to the transport; a broken one shows in `poll`."""
        ...

    def poll(self) -> UpstreamEvent | None:
        """Return what comes next of the response, None if nothing is there now.

        Raises:
            UpstreamError: The attempt is over: reset, closed or broken response.
        """
        ...

    def finish(self) -> None:
        """Give the connection back after the response's end, or close it if it cannot be used again. Idempotent."""
        ...

    def cancel(self) -> None:
        """Stop at once: reset the stream or the connection. Does nothing after `finish`."""
        ...


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is sent upstream; everything is canonical.

    Attributes:
        content_length: None with `has_body`: of unknown length.
        websocket_key: Set for a WebSocket handshake: what HTTP/1 states as Sec-WebSocket-Key.
    """

    method: str
    target: bytes
    authority: bytes
    fields: FieldTuple
    has_body: bool = False
    content_length: int | None = None
    websocket_key: bytes | None = None


class ClientGone(Exception):
    """The client has left; whatever is done for it can stop."""
