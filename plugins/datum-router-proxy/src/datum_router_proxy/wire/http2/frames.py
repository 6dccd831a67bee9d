"""Frame layout (RFC 9113 section 4.1 and 6): constants and builders. Reading is done in place by `receive`."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
MAX_STREAM_ID = 2**31 - 1
MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
DEFAULT_MAX_FRAME = 16_384

# Frame types. Plain integers: they are compared once per frame.
DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9
PRIORITY_UPDATE = 0x10

# Flags.
ACK = 0x1
END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

# length (16 + 8 bits), type, flags, stream identifier with its reserved bit.
HEADER = struct.Struct(">HBBBL")
_U32 = struct.Struct(">L")
_GOAWAY = struct.Struct(">LL")
_SETTING = struct.Struct(">HL")


class ErrorCode(enum.IntEnum):
    """Name the error codes of RFC 9113 section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class SettingId(enum.IntEnum):
    """Name the settings of RFC 9113 section 6.5.2 and RFC 8441 section 3."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    ENABLE_CONNECT_PROTOCOL = 0x8


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Build one frame. The caller keeps the payload under the peer's frame size."""
    length = len(payload)
    return HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Build the nine bytes before a payload that is written separately, so that it is not copied."""
    return HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def settings_frame(entries: Iterable[tuple[int, int]]) -> bytes:
    """Build a SETTINGS frame (RFC 9113 section 6.5)."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in entries))


def rst_stream_frame(stream_id: int, error_code: int) -> bytes:
    """Build a RST_STREAM frame (RFC 9113 section 6.4)."""
    return frame(RST_STREAM, 0, stream_id, _U32.pack(error_code))


def window_update_frame(stream_id: int, increment: int) -> bytes:
    """Build a WINDOW_UPDATE frame (RFC 9113 section 6.9)."""
    return frame(WINDOW_UPDATE, 0, stream_id, _U32.pack(increment))


def goaway_frame(last_stream_id: int, error_code: int, debug: bytes = b"") -> bytes:
    """Build a GOAWAY frame (RFC 9113 section 6.8)."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last_stream_id, error_code) + debug)


def header_frames(stream_id: int, block: bytes, end_stream: bool, max_frame: int) -> bytes:
    """Build a HEADERS frame and as many CONTINUATION frames as the block needs (RFC 9113 section 6.2, 6.10)."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [frame(HEADERS, flags, stream_id, block[:max_frame])]
    for start in range(max_frame, len(block), max_frame):
        last = start + max_frame >= len(block)
        parts.append(frame(CONTINUATION, END_HEADERS if last else 0, stream_id, block[start : start + max_frame]))
    return b"".join(parts)
