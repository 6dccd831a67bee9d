"""Response heads of HTTP/1 upstreams, parsed and rendered once for both downstream protocols.

Upstreams repeat themselves even more than clients do: the same head comes again until its Date changes. An `Answer`
is what becomes of one head in the pipeline, as bytes ready for the wire; `AnswerBook` finds it by the exact bytes of
the head and by what the rule's filters do to it. A head that is not simple (interim, chunked, closing, switching) is
remembered as such, and the general road deals with it.
"""

from __future__ import annotations

import time
from typing import Final

from datum_router.compiler.link import LinkedRule
from datum_router.errors import LocalProtocolError, RemoteProtocolError
from datum_router.filters.base import Filter, apply_response
from datum_router.model.request import Headers, ResponseHead
from datum_router_proxy.wire import chain, grpc, hygiene
from datum_router_proxy.wire.hpack_codec import encode_line, encode_lines
from datum_router_proxy.wire.http1 import FRAMING_NONE, Framing, FramingKind, H1ResponseHead, Http1Limits, writer
from datum_router_proxy.wire.http1.cache import BlockCache
from datum_router_proxy.wire.http1.reader import parse_response_head
from datum_router_proxy.wire.http2 import check_outgoing

Field = tuple[bytes, bytes]
FieldTuple = tuple[Field, ...]

MAX_KEPT_BYTES: Final = 1024
"""Fields of more bytes than this in all are rendered each time."""

_BODYLESS: Final = frozenset((204, 304))
_DATE_TO_COME: Final = (b"date", b"")
_Filters = tuple[Filter, ...]


class Answer:
    """A response head as it goes to clients.

    Attributes:
        length: Body bytes that follow; -1: the head is not simple, nothing else here is set.
        h1: Status line and fields for HTTP/1, without Date if `has_date` is False, without the final empty line.
        h2: Header block for HTTP/2 that uses no dynamic table, likewise without Date.
        speaks_grpc, has_grpc_status: Of an HTTP/2 upstream: it answers gRPC, and the head is all there is.
    """

    __slots__ = ("h1", "h2", "has_date", "has_grpc_status", "length", "speaks_grpc", "status")

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.length = -1
        self.h1 = b""
        self.h2 = b""
        self.has_date = True
        self.speaks_grpc = False
        self.has_grpc_status = False


NOT_SIMPLE: Final = Answer()


class AnswerBook:
    """Find the answer for a head. Share it among upstreams with the same limits."""

    __slots__ = ("_cache", "_limits")

    def __init__(self, limits: Http1Limits) -> None:
        self._limits = limits
        self._cache: BlockCache[Answer] = BlockCache()

    def find(self, block: bytes, rule: LinkedRule) -> Answer:
        """Return the answer for a complete head after the filters of `rule`; `NOT_SIMPLE` also if it is none."""
        # An empty line ends a head and occurs nowhere else in it: what has a key behind it cannot be another head.
        key = block + rule.response_key
        answer = self._cache.get(key)
        if answer is None:
            answer = self._make(block, rule.filters)
            self._cache.put(key, answer)
        return answer

    def clear(self) -> None:
        """Forget everything (memory pressure)."""
        self._cache.clear()

    def _make(self, block: bytes, filters: _Filters) -> Answer:
        if len(block) > self._limits.max_head_bytes:
            return NOT_SIMPLE
        try:
            head = parse_response_head(block, self._limits)
            return make_answer(head, filters)
        except (RemoteProtocolError, LocalProtocolError):
            return NOT_SIMPLE  # the engine will say what is wrong with it


def make_answer(head: H1ResponseHead, filters: _Filters) -> Answer:
    """Render a head of an HTTP/1 upstream, after a rule's filters, for clients of both protocols.

    Raises:
        LocalProtocolError: It must not be sent.
    """
    status = head.status
    framing = head.framing
    if status < 200 or not head.keep_alive or head.minor_version == 0 or head.upgrade:
        return NOT_SIMPLE
    if status not in _BODYLESS and framing.kind is not FramingKind.LENGTH:
        return NOT_SIMPLE
    if chain.is_settled(head.fields):
        return NOT_SIMPLE  # the pipeline knows who is to be told
    fields = hygiene.response_fields_for_downstream(head.fields, via_protocol=b"1.1", nominations=head.nominations)
    answer = _render(status, fields, head.content_length, filters)
    if answer is not NOT_SIMPLE:
        answer.length = framing.length
    return answer


def make_shared_answer(status: int, fields: FieldTuple, content_length: int | None, filters: _Filters) -> Answer:
    """Render a head of an HTTP/2 upstream, after a rule's filters; `length` is -1 if it states none.

    Raises:
        LocalProtocolError: It must not be sent.
    """
    if chain.is_settled(fields):
        return NOT_SIMPLE  # as above
    kept = hygiene.response_fields_for_downstream(fields, via_protocol=b"2")
    answer = _render(status, kept, content_length, filters)
    if answer is NOT_SIMPLE:
        return answer
    answer.length = -1 if content_length is None else content_length
    for name, value in fields:
        if name == b"grpc-status":
            answer.has_grpc_status = answer.speaks_grpc = True
        elif name == b"content-type" and grpc.is_grpc(value):
            answer.speaks_grpc = True
    return answer


def _render(status: int, fields: list[Field], length: int | None, filters: _Filters) -> Answer:
    answer = Answer(status)
    answer.has_date = any(name == b"date" for name, _ in fields)
    if filters:
        # Filters see the Date that we add, and may take it away or set another.
        seen = fields if answer.has_date else [*fields, _DATE_TO_COME]
        head = apply_response(filters, ResponseHead(status=status, headers=Headers(seen)))
        fields = [field for field in head.headers if field is not _DATE_TO_COME]
        answer.has_date = len(fields) == len(head.headers)
        if not answer.has_date and any(name == b"date" for name, _ in fields):
            return NOT_SIMPLE  # two of them, whose order the pipeline knows
    is_bodyless = status in _BODYLESS or not length
    framing = FRAMING_NONE if is_bodyless or length is None else Framing(FramingKind.LENGTH, length)
    extra = writer.response_framing_lines(status, framing, length if is_bodyless else None, is_head=False)
    answer.h1 = writer.encode_response_head(status, None, fields, extra)[:-2]
    lines = [(b":status", b"%d" % status), *fields]
    if length is not None and status != 204:
        lines.append((b"content-length", b"%d" % length))
    answer.h2 = encode_lines(lines)
    return answer


class SharedAnswerBook:
    """Find answers for heads of HTTP/2 upstreams, and blocks for their trailers, by their fields.

    Args:
        entries: Heads and trailers kept (count of each); when full, all are dropped.
    """

    __slots__ = ("_answers", "_entries", "_last", "_last_fields", "_last_key", "_trailers")

    def __init__(self, *, entries: int = 1024) -> None:
        self._entries = entries
        self._answers: dict[tuple[int, FieldTuple, bytes], Answer] = {}
        self._last_fields: FieldTuple | None = None
        self._last_key = b""
        self._last = NOT_SIMPLE
        self._trailers: dict[tuple[FieldTuple, bool], tuple[bytes, bool]] = {}

    def find(self, status: int, fields: FieldTuple, content_length: int | None, rule: LinkedRule) -> Answer:
        """Return the answer for a head after the filters of `rule`; `NOT_SIMPLE` if the pipeline is to make it."""
        filters_key = rule.response_key
        if fields is self._last_fields and filters_key == self._last_key and self._last.status == status:
            return self._last  # the engine returns the same tuple for the same block; hashing one takes 0.5 us
        key = (status, fields, filters_key)
        answer = self._answers.get(key)
        if answer is None:
            try:
                answer = make_shared_answer(status, fields, content_length, rule.filters)
            except LocalProtocolError:
                answer = NOT_SIMPLE
            if len(self._answers) >= self._entries:
                self._answers.clear()
            if _size(fields) <= MAX_KEPT_BYTES:
                self._answers[key] = answer
        self._last_fields, self._last_key, self._last = fields, filters_key, answer
        return answer

    def trailers(self, fields: FieldTuple, *, te_trailers: bool, is_grpc: bool) -> tuple[bytes, bool]:
        """Return the block of what is forwarded of trailers, and whether it states a gRPC status."""
        if not fields or not (te_trailers or is_grpc):
            return b"", False
        key = (fields, is_grpc)
        made = self._trailers.get(key)
        if made is None:
            kept = hygiene.trailers_to_forward(fields, te_trailers=te_trailers, is_grpc=is_grpc)
            check_outgoing(kept, 0, "trailers")
            made = encode_lines(kept), any(name == b"grpc-status" for name, _ in kept)
            if len(self._trailers) >= self._entries:
                self._trailers.clear()
            if _size(fields) <= MAX_KEPT_BYTES:
                self._trailers[key] = made
        return made

    def clear(self) -> None:
        """Forget everything (memory pressure)."""
        self._answers.clear()
        self._trailers.clear()


def _size(fields: FieldTuple) -> int:
    return sum(len(name) + len(value) for name, value in fields)


_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(seconds: float) -> bytes:
    """Return seconds since 1970 as IMF-fixdate (RFC 9110 section 5.6.7), whatever the locale.

    `email.utils` would do it as well, and would cost every worker 0.6 MB with all that it imports.
    """
    now = time.gmtime(seconds)
    return (
        f"{_DAYS[now.tm_wday]}, {now.tm_mday:02} {_MONTHS[now.tm_mon - 1]} {now.tm_year:04} "
        f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT"
    ).encode("ascii")


class DateField:
    """The Date field of answers that come without one, made anew each second (RFC 9110 section 6.6.1).

    Attributes:
        field, h1, h2: As a field, as a line of HTTP/1, and as a line of a header block.
    """

    __slots__ = ("_made_at", "field", "h1", "h2")

    def __init__(self) -> None:
        self._made_at = -1.0
        self.field: Field = (b"date", b"")
        self.h1 = b""
        self.h2 = b""

    def refresh(self, now: float) -> DateField:
        """Bring it up to date and return it; `now` is the loop's clock in seconds."""
        if now - self._made_at >= 1.0 or self._made_at < 0:
            self._made_at = now
            value = http_date(time.time())
            self.field = (b"date", value)
            self.h1 = b"date: " + value + b"\r\n"
            self.h2 = encode_line(b"date", value, never_indexed=False)
        return self
