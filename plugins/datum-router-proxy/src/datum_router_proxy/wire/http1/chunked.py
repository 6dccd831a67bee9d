"""Take chunk framing off (RFC 9112 section 7.1): bytes in, payload out, nothing copied that need not be.

Large chunks pass through as slices of what was received (the whole piece itself if no framing stands in it). Small
chunks are joined into batches, so that a body of one-byte chunks costs a bounded amount per chunk (threat A12).
"""

from __future__ import annotations

import enum
from typing import Final

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire import grammar
from datum_router_proxy.wire.http1.limits import Http1Limits


class _Phase(enum.Enum):
    SIZE = "size"
    DATA = "data"
    DATA_END = "data_end"
    TRAILERS = "trailers"


_SIZE: Final = _Phase.SIZE
_DATA: Final = _Phase.DATA
_DATA_END: Final = _Phase.DATA_END
_TRAILERS: Final = _Phase.TRAILERS

_CR: Final = 13
_LF: Final = 10


def cut(buffer: bytes | bytearray, start: int, end: int) -> bytes:
    """Return `buffer[start:end]` as bytes with at most one copy, and none if it is the whole of a bytes object."""
    if isinstance(buffer, bytes):
        return buffer[start:end]
    with memoryview(buffer) as view:
        return bytes(view[start:end])


class ChunkedDecoder:
    """Decode one message body. Feed it a buffer and a position; it says how far it got."""

    __slots__ = ("_batch", "_extension_bytes", "_left", "_max_extensions", "_max_header", "_phase")

    def __init__(self, limits: Http1Limits) -> None:
        self._phase = _SIZE
        self._left = 0
        self._extension_bytes = 0
        self._max_header = limits.max_chunk_header_bytes
        self._max_extensions = limits.max_chunk_extension_bytes
        self._batch = limits.chunk_batch_bytes

    def decode(self, buffer: bytes | bytearray, position: int) -> tuple[bytes, int, bool]:
        """Return (payload, new position, whether the last chunk was read and the trailer section follows).

        No payload and no end means that more bytes are needed.

        Raises:
            RemoteProtocolError: 400, the chunk framing is broken (threats A9 to A11).
        """
        pieces: list[bytes] = []
        total = 0
        size = len(buffer)
        phase = self._phase
        left = self._left
        while True:
            if phase is _DATA:
                take = size - position
                if take <= 0:
                    break
                take = min(take, left)
                pieces.append(cut(buffer, position, position + take))
                position += take
                total += take
                left -= take
                if left:
                    break
                phase = _DATA_END
            if phase is _DATA_END:
                if size - position < 2:
                    if size > position and buffer[position] != _CR:
                        raise _bad("chunk data is not followed by CRLF")
                    break
                if buffer[position] != _CR or buffer[position + 1] != _LF:
                    raise _bad("chunk data is not followed by CRLF")
                position += 2
                phase = _SIZE
                if total >= self._batch:
                    break
            if phase is _TRAILERS:
                break
            match = grammar.CHUNK_HEADER.match(buffer, position)
            if match is None:
                self._require_promising(buffer, position)
                break
            digits, extensions = match.groups()
            length = match.end() - position
            if length > self._max_header:
                raise _bad(f"chunk header of {length} bytes, at most {self._max_header}")
            if extensions:
                self._extension_bytes += len(extensions)
                if self._extension_bytes > self._max_extensions:
                    raise _bad(f"more than {self._max_extensions} bytes of chunk extensions")
            position += length
            left = int(digits, 16)
            phase = _DATA if left else _TRAILERS
        self._phase = phase
        self._left = left
        ended = phase is _TRAILERS
        if len(pieces) == 1:
            return pieces[0], position, ended
        return b"".join(pieces), position, ended

    def _require_promising(self, buffer: bytes | bytearray, position: int) -> None:
        """Return if what stands at `position` can still become a chunk header, else raise."""
        rest = cut(buffer, position, position + self._max_header + 1)
        if rest and not grammar.CHUNK_HEADER_START.fullmatch(rest):
            raise _bad("chunk header is not 1 to 16 hexadecimal digits, optional extensions and CRLF")
        if len(rest) > self._max_header:
            raise _bad(f"chunk header longer than {self._max_header} bytes")


def _bad(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"http/1: {text}", reason=Reason.BAD_CHUNK, status_hint=400)
