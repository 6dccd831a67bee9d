"""One stream: two messages, one table (RFC 9113 section 5.1 and 8.1).

A stream carries one message each way. Both obey the same table, whichever role we play: `inbound` is what the peer
sends, `outbound` what we send. The states of RFC 9113 follow from the two phases: open while neither is DONE,
half-closed when one is, closed when both are. A reset takes the stream out of the connection's table; what is
remembered of it is only how it closed (`ClosedBy`).
"""

from __future__ import annotations

import enum

from .flow import ReceiveWindow


class Phase(enum.IntEnum):
    """Name how far one message has come."""

    HEAD = 0
    BODY = 1
    DONE = 2


class Step(enum.IntEnum):
    """Name what may come next in a message."""

    INTERIM = 0
    HEAD = 1
    HEAD_END = 2
    DATA = 3
    DATA_END = 4
    TRAILERS = 5


# A member of an enum is found in 110 ns, a name of a module in 20, and a request asks for thirty of them.
HEAD, BODY, DONE = Phase

# NEXT[phase][step]: the phase that follows, or None where the step is illegal.
NEXT: tuple[tuple[Phase | None, ...], ...] = (
    (HEAD, BODY, DONE, None, None, None),
    (None, None, None, BODY, DONE, DONE),
    (None, None, None, None, None, None),
)


class StreamState(enum.Enum):
    """Name the states of RFC 9113 section 5.1 that a stream in the table can have."""

    OPEN = "open"
    HALF_CLOSED_LOCAL = "half-closed (local)"
    HALF_CLOSED_REMOTE = "half-closed (remote)"
    CLOSED = "closed"


class ClosedBy(enum.Enum):
    """Say how a stream closed, which decides what a late frame on it means (RFC 9113 section 5.1, "closed")."""

    BOTH_ENDED = "both ended"
    PEER_RESET = "peer reset"
    OWN_RESET = "own reset"


class Stream:
    """Hold one stream's phases, windows and body lengths. Lengths are in bytes; -1 means not stated."""

    __slots__ = (
        "expected",
        "inbound",
        "interim",
        "is_discarding",
        "is_head_request",
        "is_tunnel",
        "no_inbound_body",
        "outbound",
        "received",
        "recv",
        "send_expected",
        "send_window",
        "sent",
        "stream_id",
        "unconsumed",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.stream_id = stream_id
        self.inbound = HEAD
        self.outbound = HEAD
        self.send_window = send_window
        self.recv = ReceiveWindow(receive_window)
        self.unconsumed = 0  # delivered to the application, not yet acknowledged
        self.expected = -1
        self.received = 0
        self.send_expected = -1
        self.sent = 0
        self.interim = 0
        self.is_head_request = False
        self.is_tunnel = False
        self.is_discarding = False
        self.no_inbound_body = False

    @property
    def state(self) -> StreamState:
        """Return the state in the words of RFC 9113 section 5.1."""
        if self.inbound is DONE:
            return StreamState.CLOSED if self.outbound is DONE else StreamState.HALF_CLOSED_REMOTE
        return StreamState.HALF_CLOSED_LOCAL if self.outbound is DONE else StreamState.OPEN
