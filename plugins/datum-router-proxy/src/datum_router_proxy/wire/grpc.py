"""What a gateway must know of gRPC over HTTP/2: deadlines, status mapping and replies of its own."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Sequence
from typing import Final

from datum_router_proxy.wire import grammar

Field = tuple[bytes, bytes]


class GrpcStatus(enum.IntEnum):
    """Status codes of gRPC (`google.rpc.Code`)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# gRPC, "HTTP to gRPC status code mapping": for responses that carry no grpc-status
_FROM_HTTP: Final[dict[int, GrpcStatus]] = {
    400: GrpcStatus.INTERNAL,
    401: GrpcStatus.UNAUTHENTICATED,
    403: GrpcStatus.PERMISSION_DENIED,
    404: GrpcStatus.UNIMPLEMENTED,
    429: GrpcStatus.UNAVAILABLE,
    502: GrpcStatus.UNAVAILABLE,
    503: GrpcStatus.UNAVAILABLE,
    504: GrpcStatus.UNAVAILABLE,
}

# What we say for our own refusals, where we know more than a status line tells (threat D23)
_FROM_LOCAL: Final[dict[int, GrpcStatus]] = {
    **_FROM_HTTP,
    408: GrpcStatus.DEADLINE_EXCEEDED,
    413: GrpcStatus.RESOURCE_EXHAUSTED,
    431: GrpcStatus.RESOURCE_EXHAUSTED,
    500: GrpcStatus.INTERNAL,
    501: GrpcStatus.UNIMPLEMENTED,
    504: GrpcStatus.DEADLINE_EXCEEDED,
    508: GrpcStatus.UNAVAILABLE,
}

_UNIT_SECONDS: Final[dict[bytes, float]] = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

MAX_MESSAGE_BYTES: Final = 1024
"""Longest grpc-message of ours, before percent-encoding; longer text is cut."""

_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {0x25}


def is_grpc(content_type: bytes | None) -> bool:
    """Return whether a Content-Type is gRPC's (`application/grpc`, `+proto`, `+json`, ...), not gRPC-Web's."""
    return content_type is not None and grammar.GRPC_CONTENT_TYPE.fullmatch(content_type) is not None


def speaks(fields: Sequence[Field]) -> bool:
    """Tell whether a response to a gRPC request is one: by its content type, or because it states a gRPC status."""
    return any(name == b"grpc-status" or (name == b"content-type" and is_grpc(value)) for name, value in fields)


def parse_timeout(value: bytes) -> float | None:
    """Return the seconds a `grpc-timeout` states, None if it is malformed: answer 400 or INTERNAL then (threat D23)."""
    match = grammar.GRPC_TIMEOUT.fullmatch(value)
    return None if match is None else int(match[1]) * _UNIT_SECONDS[match[2]]


@functools.lru_cache(maxsize=64)  # the same for all requests of a rule whose clients state none
def encode_timeout(seconds: float) -> bytes:
    """Return a `grpc-timeout` for the time left, never longer than `seconds`, in the finest unit that fits."""
    nanoseconds = max(0, int(seconds * 1e9))
    for unit, size in ((b"n", 1), (b"u", 10**3), (b"m", 10**6), (b"S", 10**9), (b"M", 60 * 10**9)):
        amount = nanoseconds // size
        if amount < 10**8:
            return b"%d%b" % (amount, unit)
    return b"%dH" % min(nanoseconds // (3600 * 10**9), 10**8 - 1)


def status_of(fields: Iterable[Field]) -> int:
    """Return the code in the first `grpc-status` of `fields`: UNKNOWN if it is no number, 0 if there is none."""
    for name, value in fields:
        if name == b"grpc-status":
            return int(value) if len(value) <= 3 and value.isdigit() else GrpcStatus.UNKNOWN
    return GrpcStatus.OK


def status_from_http(status: int) -> GrpcStatus:
    """Return what a gRPC client makes of an upstream's HTTP status without grpc-status (gRPC status mapping)."""
    return _FROM_HTTP.get(status, GrpcStatus.UNKNOWN)


def status_from_local_reply(status: int) -> GrpcStatus:
    """Return the code for a refusal of our own: our 504 is a deadline, our 500 is internal (threat D23)."""
    return _FROM_LOCAL.get(status, GrpcStatus.UNKNOWN)


def encode_message(message: str) -> bytes:
    """Return `grpc-message`: UTF-8, percent-encoded outside of space to `~` and for `%` itself (gRPC, Responses)."""
    raw = message.strip().encode("utf-8", "replace")
    if len(raw) > MAX_MESSAGE_BYTES:
        raw = raw[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore").encode()
    return b"".join(bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in raw)


def status_fields(status: GrpcStatus, message: str = "") -> list[Field]:
    """Return the trailers that end a gRPC response we had to cut short."""
    fields = [(b"grpc-status", b"%d" % status)]
    if message:
        fields.append((b"grpc-message", encode_message(message)))
    return fields


def local_reply_fields(status: GrpcStatus, message: str = "") -> list[Field]:
    """Return the fields of a Trailers-Only response: HTTP 200, no body, status in the head (gRPC, Responses)."""
    return [(b"content-type", b"application/grpc"), *status_fields(status, message)]
