"""Frame the body of the message being written, and hold the writer to the length it stated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from datum_router.errors import LocalProtocolError
from datum_router_proxy.wire.http1 import writer
from datum_router_proxy.wire.http1.events import Field, Framing, FramingKind

_NO_BODY: Final = FramingKind.NONE
_LENGTH: Final = FramingKind.LENGTH
_CHUNKED: Final = FramingKind.CHUNKED


class BodySender:
    """Turn payload into wire bytes for one message at a time.

    With `bodyless` (an answer to HEAD, 204, 304) payload is accepted and nothing is sent: whoever produced the
    response need not know which request it answers.
    """

    __slots__ = ("_bodyless", "_kind", "_left")

    def __init__(self) -> None:
        self._kind = _NO_BODY
        self._left = 0
        self._bodyless = False

    def begin(self, framing: Framing, *, bodyless: bool) -> None:
        """Start a message."""
        self._kind = framing.kind
        self._left = framing.length
        self._bodyless = bodyless

    def encode(self, data: bytes) -> bytes:
        """Return the wire bytes of `data`: itself, one chunk, or nothing."""
        if not self._account(data):
            return b""
        return writer.encode_chunk(data) if self._kind is _CHUNKED else data

    def buffers(self, data: bytes) -> tuple[bytes, ...]:
        """Return the wire bytes of `data` in pieces, `data` itself uncopied among them."""
        if not self._account(data):
            return ()
        if self._kind is _CHUNKED:
            return (b"%x\r\n" % len(data), data, b"\r\n")
        return (data,)

    def end(self, trailers: Sequence[Field]) -> bytes:
        """Return what ends the message on the wire.

        Raises:
            LocalProtocolError: Bytes are missing from what Content-Length stated.
        """
        if self._bodyless:
            return b""
        if self._kind is _CHUNKED:
            return writer.encode_last_chunk(trailers)
        if self._kind is _LENGTH and self._left:
            raise LocalProtocolError(f"http/1: {self._left} bytes of the body are missing", status_hint=500)
        return b""

    def _account(self, data: bytes) -> bool:
        if not data or self._bodyless:
            return False
        kind = self._kind
        if kind is _LENGTH:
            left = self._left - len(data)
            if left < 0:
                raise LocalProtocolError(f"http/1: {-left} bytes more than content-length stated", status_hint=500)
            self._left = left
        elif kind is _NO_BODY:
            raise LocalProtocolError("http/1: body bytes in a message without body", status_hint=500)
        return True
