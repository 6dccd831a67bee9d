"""Watch a block (head or trailer section) that is still coming, so that it is refused as early as can be.

Each byte is looked at once, however small the pieces (threat A23): `scanned` is the offset up to which line ends have
been checked, and the search for the block's end starts there too.
"""

from __future__ import annotations

from typing import Final

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire import grammar
from datum_router_proxy.wire.http1 import reader
from datum_router_proxy.wire.http1.chunked import cut
from datum_router_proxy.wire.http1.limits import Http1Limits

_CR: Final = 13
_LONGEST_VERSION: Final = len(b"  HTTP/1.1\r\n")


class LineScan:
    """Remember how far an incomplete block has been checked; all offsets are into the connection's buffer."""

    __slots__ = ("line_start", "lines", "scanned")

    def __init__(self) -> None:
        self.scanned = 0
        self.line_start = 0
        self.lines = 0

    def restart(self, position: int) -> None:
        """Begin a new block at `position`."""
        self.scanned = self.line_start = position
        self.lines = 0

    def shift(self, by: int) -> None:
        """Follow the buffer when `by` bytes were cut off its front."""
        self.scanned = max(0, self.scanned - by)
        self.line_start = max(0, self.line_start - by)

    def check_request_head(self, buffer: bytes | bytearray, position: int, limits: Http1Limits) -> None:
        """Raise as soon as the incomplete request head at `position` cannot become valid any more."""
        is_first = self.lines == 0
        self.check_lines(buffer, limits.max_fields + 1, limits.max_field_bytes)
        if is_first and self.lines:
            if not grammar.REQUEST_LINE.match(buffer, position):
                raise reader.request_line_error(cut(buffer, position, len(buffer)))
        elif is_first:
            if not grammar.TOKEN.match(buffer, position):
                raise refused(Reason.BAD_REQUEST_LINE, "does not begin with a method", 400)
            if len(buffer) - position > limits.max_target_bytes + grammar.MAX_METHOD_BYTES + _LONGEST_VERSION:
                raise reader.target_too_long(limits.max_target_bytes + 1, limits)
        check_head_size(len(buffer) - position, limits)

    def check_response_head(self, buffer: bytes | bytearray, position: int, limits: Http1Limits) -> None:
        """Raise as soon as the incomplete response head at `position` cannot become valid any more."""
        is_first = self.lines == 0
        self.check_lines(buffer, limits.max_fields + 1, limits.max_field_bytes)
        if is_first and self.lines:
            if not grammar.STATUS_LINE.match(buffer, position):
                raise reader.status_line_error(cut(buffer, position, len(buffer)))
        elif is_first and not b"HTTP/1.".startswith(buffer[position : position + 7]):
            raise refused(Reason.BAD_STATUS_LINE, "does not begin with HTTP/1", 502)
        check_head_size(len(buffer) - position, limits)

    def check_lines(self, buffer: bytes | bytearray, max_lines: int, max_line_bytes: int) -> None:
        """Check what came since the last call: every line end is CRLF, lines and their number keep the limits.

        The first line of a head is not held to `max_line_bytes`; start lines have their own limits.
        """
        size = len(buffer)
        end = size - 1 if buffer[size - 1] == _CR else size  # a final CR may still get its LF
        start = self.scanned
        if end > start:
            feeds = buffer.count(b"\n", start, end)
            pairs = buffer.count(b"\r\n", start, end)
            if feeds != pairs or buffer.count(b"\r", start, end) != pairs:
                raise refused(Reason.BAD_LINE_END, "bare CR or LF", 400)
            if feeds:
                self.lines += feeds
                self.line_start = buffer.rfind(b"\n", start, end) + 1
            self.scanned = end
        if self.lines > max_lines:
            raise refused(Reason.TOO_MANY_FIELDS, f"more than {max_lines} lines", 431)
        if self.lines and size - self.line_start > max_line_bytes:
            raise refused(Reason.HEAD_TOO_LARGE, f"field line over {max_line_bytes} bytes", 431)


def check_head_size(size: int, limits: Http1Limits) -> None:
    """Raise 431 if a head takes more than `max_head_bytes`."""
    if size > limits.max_head_bytes:
        raise refused(Reason.HEAD_TOO_LARGE, f"head of {size} bytes, at most {limits.max_head_bytes}", 431)


def refused(reason: Reason, text: str, status_hint: int) -> RemoteProtocolError:
    """Return the error for a peer that broke the protocol."""
    return RemoteProtocolError(f"http/1: {text}", reason=reason, status_hint=status_hint)
