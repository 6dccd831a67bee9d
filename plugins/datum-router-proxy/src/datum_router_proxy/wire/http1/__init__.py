"""HTTP/1.1 without I/O: one engine for both roles (RFC 9110, RFC 9112)."""

from datum_router_proxy.wire.http1.cache import HeadCache
from datum_router_proxy.wire.http1.connection import Http1Connection
from datum_router_proxy.wire.http1.events import (
    FRAMING_CHUNKED,
    FRAMING_NONE,
    FRAMING_UNTIL_CLOSE,
    NEED_DATA,
    PAUSED,
    ConnectionClosed,
    DataReceived,
    Event,
    Field,
    FieldTuple,
    Framing,
    FramingKind,
    H1RequestHead,
    H1ResponseHead,
    InformationalReceived,
    MessageComplete,
    RequestReceived,
    ResponseReceived,
    Role,
    Signal,
    TargetForm,
)
from datum_router_proxy.wire.http1.limits import DEFAULT_LIMITS, Http1Limits
from datum_router_proxy.wire.http1.state import State, Trigger

__all__ = [
    "DEFAULT_LIMITS",
    "FRAMING_CHUNKED",
    "FRAMING_NONE",
    "FRAMING_UNTIL_CLOSE",
    "NEED_DATA",
    "PAUSED",
    "ConnectionClosed",
    "DataReceived",
    "Event",
    "Field",
    "FieldTuple",
    "Framing",
    "FramingKind",
    "H1RequestHead",
    "H1ResponseHead",
    "HeadCache",
    "Http1Connection",
    "Http1Limits",
    "InformationalReceived",
    "MessageComplete",
    "RequestReceived",
    "ResponseReceived",
    "Role",
    "Signal",
    "State",
    "TargetForm",
    "Trigger",
]
