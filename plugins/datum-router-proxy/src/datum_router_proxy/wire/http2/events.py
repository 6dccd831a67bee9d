"""What the engine reports. Events are immutable; names and values are bytes, names are lower case.

They are created on the hot path, so they are positional Structs without garbage-collector tracking: no cycle can
arise from bytes and integers.
"""

from __future__ import annotations

import msgspec

from datum_router.reasons import Reason

Fields = tuple[tuple[bytes, bytes], ...]


class RequestReceived(msgspec.Struct, frozen=True, gc=False):
    """Report a valid request head (server role).

    `authority` is never empty: it is `:authority`, or Host if that is absent; Host itself is taken out of `fields`
    once both agree. `path` begins with `/`, or is `*` for OPTIONS. `protocol` is set for extended CONNECT only; of
    plain CONNECT, if it is served, `scheme` and `path` are empty.
    Cookie crumbs are joined into one field, placed where the first stood. `content_length` is None if not stated.
    With `end_stream` no StreamEnded follows.
    """

    stream_id: int
    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    protocol: bytes | None
    fields: Fields
    content_length: int | None
    end_stream: bool

    def on(self, stream_id: int) -> RequestReceived:
        """Return the same head on another stream."""
        return RequestReceived(
            stream_id,
            self.method,
            self.scheme,
            self.authority,
            self.path,
            self.protocol,
            self.fields,
            self.content_length,
            self.end_stream,
        )


class RequestRejected(msgspec.Struct, frozen=True, gc=False):
    """Report a request that is to be answered with `status` and must not go anywhere (server role).

    The stream is open for the answer; its body, if any, is discarded by the engine and never reported. Once the
    answer has ended, the engine stops a body that is still coming with RST_STREAM(NO_ERROR).
    """

    stream_id: int
    status: int
    reason: Reason
    message: str
    is_head: bool


class ResponseReceived(msgspec.Struct, frozen=True, gc=False):
    """Report a valid final response head (client role). With `end_stream` no StreamEnded follows."""

    stream_id: int
    status: int
    fields: Fields
    content_length: int | None
    end_stream: bool


class InformationalReceived(msgspec.Struct, frozen=True, gc=False):
    """Report a 1xx response other than 101 (client role)."""

    stream_id: int
    status: int
    fields: Fields


class DataReceived(msgspec.Struct, frozen=True, gc=False):
    """Report body bytes; never empty.

    Call `acknowledge(stream_id, len(data))` once they are consumed. `flow_controlled_length` counts padding
    too, which the engine gives back by itself. With `end_stream` no StreamEnded follows.
    """

    stream_id: int
    data: bytes
    flow_controlled_length: int
    end_stream: bool = False


class TrailersReceived(msgspec.Struct, frozen=True, gc=False):
    """Report trailers, which end the message: no StreamEnded follows."""

    stream_id: int
    fields: Fields


class StreamEnded(msgspec.Struct, frozen=True, gc=False):
    """Report that the peer's message is complete, where no other event says so."""

    stream_id: int


class StreamReset(msgspec.Struct, frozen=True, gc=False):
    """Report a stream that is over before its time.

    Attributes:
        remote: True if the peer reset it; False if the engine did, because of what the peer sent.
        unprocessed: True if the peer provably did nothing with the request, so that it may be sent elsewhere
            (REFUSED_STREAM, or above the last id of a GOAWAY; RFC 9113 section 8.7).
    """

    stream_id: int
    error_code: int
    remote: bool
    unprocessed: bool
    reason: Reason
    message: str


class WindowOpened(msgspec.Struct, frozen=True, gc=False):
    """Report more room to send: on one stream, or on any of them (`stream_id` 0)."""

    stream_id: int


class SettingsChanged(msgspec.Struct, frozen=True, gc=False):
    """Report that the peer's SETTINGS were applied and acknowledged."""


class GoAwayReceived(msgspec.Struct, frozen=True, gc=False):
    """Report the peer's GOAWAY; a StreamReset with `unprocessed` follows for every stream above `last_stream_id`."""

    last_stream_id: int
    error_code: int


class PingAck(msgspec.Struct, frozen=True, gc=False):
    """Report the answer to the `ping()` that returned `payload`."""

    payload: bytes


class ConnectionTerminated(msgspec.Struct, frozen=True, gc=False):
    """Report that nothing more will be parsed: write `data_to_send()`, then close.

    All streams still open are over without events of their own. `error_code` is what our GOAWAY says;
    NO_ERROR with reason `peer_closed` means that the peer closed its side.
    """

    error_code: int
    reason: Reason
    message: str


Event = (
    RequestReceived
    | RequestRejected
    | ResponseReceived
    | InformationalReceived
    | DataReceived
    | TrailersReceived
    | StreamEnded
    | StreamReset
    | WindowOpened
    | SettingsChanged
    | GoAwayReceived
    | PingAck
    | ConnectionTerminated
)
