"""SETTINGS of both sides (RFC 9113 section 6.5): the peer's values with their legal ranges, and what we announce."""

from __future__ import annotations

import struct

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason

from .frames import DEFAULT_MAX_FRAME, DEFAULT_WINDOW, MAX_WINDOW, ErrorCode, SettingId
from .limits import Http2Limits

_ENTRY = struct.Struct(">HL")

# Until the peer says otherwise there is no limit; we hold ourselves to what RFC 9113 section 6.5.2 calls the
# smallest sensible one, so that a first burst is not refused.
_ASSUMED_CONCURRENT_STREAMS = 100


class PeerSettings:
    """Hold what the peer announced, beginning with the initial values of RFC 9113 section 6.5.2."""

    __slots__ = (
        "enable_connect_protocol",
        "header_table_bytes",
        "initial_window",
        "max_concurrent_streams",
        "max_frame_bytes",
        "max_header_list_bytes",
    )

    def __init__(self) -> None:
        self.header_table_bytes = 4_096
        self.max_concurrent_streams = _ASSUMED_CONCURRENT_STREAMS
        self.initial_window = DEFAULT_WINDOW
        self.max_frame_bytes = DEFAULT_MAX_FRAME
        self.max_header_list_bytes: int | None = None
        self.enable_connect_protocol = False

    def apply(self, payload: bytes, *, from_server: bool) -> None:
        """Apply the entries in order (RFC 9113 section 6.5.3); unknown identifiers are ignored.

        Raises:
            RemoteProtocolError: A value is out of range; `error_code` says how.
        """
        for key, value in _ENTRY.iter_unpack(payload):
            if key == SettingId.HEADER_TABLE_SIZE:
                self.header_table_bytes = value
            elif key == SettingId.ENABLE_PUSH:
                if value > 1 or (from_server and value == 1):
                    raise _bad("ENABLE_PUSH", value, "0" if from_server else "0 or 1")
            elif key == SettingId.MAX_CONCURRENT_STREAMS:
                self.max_concurrent_streams = value
            elif key == SettingId.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise _bad("INITIAL_WINDOW_SIZE", value, "at most 2^31-1", ErrorCode.FLOW_CONTROL_ERROR)
                self.initial_window = value
            elif key == SettingId.MAX_FRAME_SIZE:
                if not 16_384 <= value <= 2**24 - 1:
                    raise _bad("MAX_FRAME_SIZE", value, "16384 to 2^24-1")
                self.max_frame_bytes = value
            elif key == SettingId.MAX_HEADER_LIST_SIZE:
                self.max_header_list_bytes = value
            elif key == SettingId.ENABLE_CONNECT_PROTOCOL:
                # RFC 8441 section 3: 0 or 1, and never back from 1 to 0.
                if value > 1 or (value == 0 and self.enable_connect_protocol):
                    raise _bad("ENABLE_CONNECT_PROTOCOL", value, "0 or 1, never back to 0")
                self.enable_connect_protocol = value == 1


def announced(limits: Http2Limits, *, is_server: bool) -> list[tuple[int, int]]:
    """Return the entries of our own SETTINGS frame, in the order they are sent."""
    entries: list[tuple[int, int]] = []
    if limits.header_table_bytes != 4_096:
        entries.append((SettingId.HEADER_TABLE_SIZE, limits.header_table_bytes))
    if is_server:
        entries.append((SettingId.MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams))
    else:
        entries.append((SettingId.ENABLE_PUSH, 0))
    entries.append((SettingId.INITIAL_WINDOW_SIZE, limits.stream_window_bytes))
    if limits.max_frame_bytes != DEFAULT_MAX_FRAME:
        entries.append((SettingId.MAX_FRAME_SIZE, limits.max_frame_bytes))
    entries.append((SettingId.MAX_HEADER_LIST_SIZE, limits.header_list_bytes))
    if is_server and limits.enable_connect_protocol:
        entries.append((SettingId.ENABLE_CONNECT_PROTOCOL, 1))
    return entries


def _bad(name: str, value: int, expected: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"SETTINGS {name}: found {value}, expected {expected}", reason=Reason.BAD_FRAME, error_code=code
    )
