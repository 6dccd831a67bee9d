"""A request's body on its way upstream: kept for another attempt as long as it is small, counted, held to limits."""

from __future__ import annotations

from typing import Protocol

from datum_router.errors import DatumRouterError
from datum_router.reasons import Reason
from datum_router_proxy.exchange import Downstream, Upstream
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.wire import hygiene


class BodyTooLarge(DatumRouterError):
    """Report a body above the limit of its listener or route."""


class Copier(Protocol):
    """Who keeps a copy of a body as it passes."""

    def take(self, piece: bytes) -> None:
        """Take a piece; an empty one is the end."""
        ...

    def close(self) -> None:
        """Take note that no more will come."""
        ...


class RequestBody:
    """Move body bytes from a client to whichever attempt is under way.

    Attributes:
        is_done: Everything, the end included, was handed to the present attempt.
        is_replayable: Another attempt can have it from its first byte.
        bytes_in: Body bytes read from the client.
        waited_s: How long in all it was the client's turn, up to `waiting_since`.
        copy: Takes each piece once, and an empty one at the end.
        waiting_since: When we began to wait for the client; None while it is not its turn.
    """

    __slots__ = (
        "_cursor",
        "_downstream",
        "_has_body",
        "_is_grpc",
        "_kept",
        "_kept_bytes",
        "_most",
        "_settings",
        "bytes_in",
        "copy",
        "is_done",
        "is_replayable",
        "waited_s",
        "waiting_since",
    )

    def __init__(
        self, downstream: Downstream, settings: ProxySettings, *, has_body: bool, is_grpc: bool, most_bytes: int
    ) -> None:
        self._downstream = downstream
        self._settings = settings
        self._has_body = has_body
        self._is_grpc = is_grpc
        self._most = most_bytes
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._cursor = 0
        self.waited_s = 0.0
        self.waiting_since: float | None = None
        self.bytes_in = 0
        self.copy: Copier | None = None
        self.is_done = not has_body
        self.is_replayable = True

    @property
    def is_awaited(self) -> bool:
        """True while it is the client's turn to send more."""
        return self.waiting_since is not None and not self.is_done

    def limit(self, most_bytes: int) -> None:
        """Hold the body to a limit beside the one it has."""
        self._most = min(self._most or most_bytes, most_bytes)

    def close(self) -> None:
        """Take note that the request is over."""
        if self.copy is not None:
            self.copy.close()

    def note_sent(self) -> None:
        """Note that the present attempt has been given the whole body, which is here and short, by the express lane."""
        while not self.is_done:
            piece = self._downstream.read_body()
            if not piece:
                self.is_done = True
                return
            self.bytes_in += len(piece)
            self._keep(piece)

    def rewind(self) -> None:
        """Begin anew for another attempt; `is_replayable` must be True."""
        self._cursor = 0
        self.is_done = not self._has_body

    def move(self, upstream: Upstream, now: float) -> bool:
        """Hand over what is there and what the upstream takes; True if anything moved.

        Raises:
            BodyTooLarge: The body is longer than the listener allows.
            RemoteProtocolError, ClientGone: See `exchange.Body`.
        """
        moved = False
        while not self.is_done and upstream.is_writable:
            if self._cursor < len(self._kept):
                piece = self._kept[self._cursor]
                self._cursor += 1
            else:
                read = self._downstream.read_body()
                if read is None:
                    if self.waiting_since is None:
                        self.waiting_since = now
                    return moved
                self._got(len(read), now)
                if not read:
                    self.is_done = True
                    if self.copy is not None:
                        self.copy.take(b"")
                    trailers = self._downstream.trailers
                    upstream.send_end(
                        hygiene.trailers_to_forward(trailers, te_trailers=True, is_grpc=self._is_grpc)
                        if trailers
                        else ()
                    )
                    return True
                piece = read
                if self.copy is not None:
                    self.copy.take(piece)
                self._keep(piece)
            upstream.send_data(piece)
            moved = True
        return moved

    def _got(self, size: int, now: float) -> None:
        if self.waiting_since is not None:
            self.waited_s += now - self.waiting_since
            self.waiting_since = None
        self.bytes_in += size
        if self._most and self.bytes_in > self._most:
            raise BodyTooLarge(f"request body of more than {self._most} bytes", reason=Reason.BODY_TOO_LARGE)

    def _keep(self, piece: bytes) -> None:
        if not self.is_replayable:
            return
        self._kept_bytes += len(piece)
        if self._kept_bytes > self._settings.retry_body_bytes:
            self.is_replayable = False
            self._kept.clear()
            self._cursor = 0
        else:
            self._kept.append(piece)
            self._cursor += 1

    def release(self) -> None:
        """Keep nothing any longer: the response has begun, there will be no other attempt."""
        if not self.is_done and self._cursor < len(self._kept):
            return  # still being replayed
        self.is_replayable = False
        self._kept.clear()
        self._cursor = 0

    def limit_at(self) -> float | None:
        """Return when waiting for the client becomes too long (threat E3); None while it is not its turn.

        Silence is limited, and so is slowness: of the time spent waiting, `body_idle_timeout_s` are free, the rest has
        to be paid for at `body_min_rate` bytes a second.
        """
        since = self.waiting_since
        if since is None or self._is_grpc:  # gRPC clients may stay silent in a stream: the deadline bounds them
            return None
        idle_s = self._settings.body_idle_timeout_s
        paid_s = self.bytes_in / self._settings.body_min_rate
        return min(since + idle_s, since + max(0.0, idle_s + paid_s - self.waited_s))
