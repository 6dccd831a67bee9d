"""How one request ended: a closed set of causes, and the ledger that every request ends in exactly once."""

from __future__ import annotations

import collections
import enum
from collections.abc import Iterator

import msgspec

Address = tuple[str, int]
"""Local address of a client connection: how the soak knows which worker held it."""


class Kind(enum.StrEnum):
    """What was asked for."""

    H1_GET = "h1 get"
    H1_CHUNKED = "h1 chunked"
    H1_UPLOAD = "h1 upload"
    H1_SLOW = "h1 slow download"
    H1_NEW = "h1 new connection"
    H1_FLIP = "h1 edited route"
    H1_EXTRA = "h1 route that comes and goes"
    H1_CUT = "h1 cut by upstream"
    H1_IDLE = "h1 restarted upstream"
    H1_ESTABLISHED = "h1 established"
    H2_GET = "h2 get"
    H2_UPLOAD = "h2 upload"
    H2_FLIP = "h2 edited route"
    H2_CUT = "h2 cut by upstream"
    GRPC = "grpc unary"
    GRPC_STREAM = "grpc server stream"
    WEBSOCKET = "websocket echo"


CUT_KINDS = frozenset({Kind.H1_CUT, Kind.H2_CUT})
"""The upstream cuts exactly these: an answer in full would be wrong."""


class Cause(enum.StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    STATUS = "error status"
    REFUSED = "connect refused"
    CONNECT_RESET = "reset while connecting"
    CONNECT_TIMEOUT = "connect timeout"
    RESET = "reset"
    CLOSED = "closed before the answer"
    CUT_BODY = "cut body"
    STREAM_RESET = "h2 stream reset"
    GOING_AWAY = "websocket closed 1001"
    TIMEOUT = "timeout"
    CORRUPT = "wrong bytes"
    MIXED_UP = "another request's answer"
    STALE_CONFIG = "older configuration than in force"
    REMOVED_ENDPOINT = "served by a removed endpoint"
    PROTOCOL = "protocol error"
    CLIENT = "error of the load generator"


class Failure(Exception):
    """End of a request that was not answered as it should be."""

    def __init__(self, cause: Cause, detail: str = "", *, status: int = 0, reason: str = "") -> None:
        super().__init__(f"{cause}: {detail}" if detail else str(cause))
        self.cause = cause
        self.detail = detail
        self.status = status
        self.reason = reason


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, ended. Times are seconds since the soak began.

    Attributes:
        local: Client address of the connection; None if there never was one.
        is_reused: The connection had served before.
        answered_bytes: Whether any byte of an answer had come.
        resent: Times it was sent again because HTTP/2 said that it was not processed (RFC 9113 section 6.8, 8.7).
    """

    kind: Kind
    started_s: float
    ended_s: float
    cause: Cause
    detail: str = ""
    status: int = 0
    reason: str = ""
    local: Address | None = None
    is_reused: bool = False
    has_answer_begun: bool = False
    resent: int = 0

    @property
    def label(self) -> str:
        """Return the cause; for an error status with the status and the gateway's reason."""
        if self.cause is Cause.STATUS:
            return f"{self.status} {self.reason}".strip()
        return f"{self.cause} {self.reason}".strip() if self.cause is Cause.STREAM_RESET else str(self.cause)


class Second(msgspec.Struct, kw_only=True):
    """Counts of one second of the soak, by the second in which requests ended."""

    answered: int = 0
    failed: int = 0


class Ledger:
    """All requests: counts of the answered ones, the records of the others.

    Answered requests leave counts and a latency only, so that the soak's own memory stays small.
    """

    __slots__ = ("answered", "failures", "latencies_s", "resent", "seconds", "sent")

    def __init__(self) -> None:
        self.sent: collections.Counter[Kind] = collections.Counter()
        self.answered: collections.Counter[Kind] = collections.Counter()
        self.resent: collections.Counter[Kind] = collections.Counter()
        self.failures: list[Record] = []
        self.latencies_s: list[float] = []
        self.seconds: dict[int, Second] = {}

    def begin(self, kind: Kind) -> None:
        """Count a request as sent."""
        self.sent[kind] += 1

    def end(self, record: Record) -> None:
        """Take how a request ended; call it once for each `begin`."""
        second = self.seconds.setdefault(int(record.ended_s), Second())
        if record.resent:
            self.resent[record.kind] += record.resent
        if record.cause is Cause.ANSWERED:
            self.answered[record.kind] += 1
            self.latencies_s.append(record.ended_s - record.started_s)
            second.answered += 1
        else:
            self.failures.append(record)
            second.failed += record.kind not in CUT_KINDS

    @property
    def pending(self) -> int:
        """Return how many were sent and have not ended."""
        return sum(self.sent.values()) - sum(self.answered.values()) - len(self.failures)

    def failures_by_label(self) -> Iterator[tuple[Kind, str, int]]:
        """Yield kind, label and count of what failed, most frequent first."""
        counts = collections.Counter((record.kind, record.label) for record in self.failures)
        for (kind, label), count in counts.most_common():
            yield kind, label, count
