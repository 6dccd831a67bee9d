"""The sans-I/O HTTP/2 engine (RFC 9113, RFC 8441): `Http2Connection`, its events and its limits."""

from .connection import Http2Connection, check_outgoing, codec_within
from .events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    Fields,
    GoAwayReceived,
    InformationalReceived,
    PingAck,
    RequestReceived,
    RequestRejected,
    ResponseReceived,
    SettingsChanged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowOpened,
)
from .frames import PREFACE, ErrorCode, SettingId
from .limits import Http2Limits
from .state import Role
from .stream import StreamState

__all__ = [
    "PREFACE",
    "ConnectionTerminated",
    "DataReceived",
    "ErrorCode",
    "Event",
    "Fields",
    "GoAwayReceived",
    "Http2Connection",
    "Http2Limits",
    "InformationalReceived",
    "PingAck",
    "RequestReceived",
    "RequestRejected",
    "ResponseReceived",
    "Role",
    "SettingId",
    "SettingsChanged",
    "StreamEnded",
    "StreamReset",
    "StreamState",
    "TrailersReceived",
    "WindowOpened",
    "check_outgoing",
    "codec_within",
]
