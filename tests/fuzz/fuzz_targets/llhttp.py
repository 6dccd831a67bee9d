"""Our HTTP/1.1 engine against llhttp, the parser of Node.js, through `httptools`.

Wherever ours accepts, both must see the same messages: start line, field lines, body, trailers, and the offset at which
the next message begins. Ours may refuse more than llhttp, and stop earlier. Where llhttp refuses something that ours
accepts, `DEVIATIONS` names it with the sentence that allows it; anything else is a find.

llhttp is fed one octet at a time: that is how it tells where a message ends. It cannot be told that a response answers
HEAD, nor that the connection has closed, so that neither is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import httptools

from datum_router.errors import RemoteProtocolError
from datum_router_proxy.wire.http1 import (
    DataReceived,
    Http1Connection,
    InformationalReceived,
    MessageComplete,
    RequestReceived,
    ResponseReceived,
    Role,
    Signal,
)
from datum_router_proxy.wire.http1.events import CONSUMED_FIELDS
from datum_router_proxy.wire.hygiene import is_forbidden_trailer

from .http1 import pieces

Fields = tuple[tuple[bytes, bytes], ...]

_CONSUMED = {Role.SERVER: CONSUMED_FIELDS, Role.CLIENT: CONSUMED_FIELDS - {b"expect", b"host", b"te"}}


class Message(NamedTuple):
    """One message as either parser saw it.

    Attributes:
        start: Method and target, or the status.
        version: Minor version.
        fields: Lower-case names, without those the engine turns into attributes and those with an underscore.
        trailers: Without the names that must not stand there.
        end: Offset of the next message, None if this one is not complete.
    """

    start: tuple[bytes, bytes] | int
    version: int
    fields: Fields
    body: bytes
    trailers: Fields
    end: int | None


class Sight(NamedTuple):
    """What a parser made of some bytes.

    Attributes:
        messages: In order; only the last may be incomplete.
        refusal: Why it went no further, empty if it wants more.
        is_last: It would take nothing more on this connection (close, upgrade).
    """

    messages: list[Message]
    refusal: str
    is_last: bool


class Deviation(NamedTuple):
    """Something that ours accepts and llhttp refuses.

    Attributes:
        refusal: What llhttp says.
        applies: Whether it is of that kind: role, the message before, what llhttp refused and all that follows.
        because: The sentence that lets us.
    """

    refusal: re.Pattern[str]
    applies: Callable[[Role, bytes, bytes], bool]
    because: str


_COMMON_METHODS = frozenset(b"GET HEAD POST PUT DELETE OPTIONS PATCH TRACE".split())


def _start_line(wire: bytes) -> bytes:
    return wire.removeprefix(b"\r\n").split(b"\r\n", 1)[0]


def _has_later_minor(role: Role, _before: bytes, wire: bytes) -> bool:
    version = _start_line(wire).split(b" ")[0 if role is Role.CLIENT else -1]
    return re.fullmatch(rb"HTTP/1\.[2-9]", version) is not None


def _has_rare_method(role: Role, _before: bytes, wire: bytes) -> bool:
    return role is Role.SERVER and _start_line(wire).split(b" ")[0] not in _COMMON_METHODS


def _has_framing_trailer(_role: Role, _before: bytes, wire: bytes) -> bool:
    """The head states chunked and nothing else: what llhttp complains of comes later."""
    head, _, rest = wire.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    is_chunked = re.search(rb"(?i)\r\ntransfer-encoding:[ \t]*chunked[ \t]*(\r\n|$)", head) is not None
    is_single = len(re.findall(rb"(?i)\r\n(?:content-length|transfer-encoding):", head)) == 1
    return is_chunked and is_single and re.search(rb"(?i)\r\n(content-length|transfer-encoding):", rest) is not None


def _follows_proxy_connection(_role: Role, before: bytes, _wire: bytes) -> bool:
    return re.search(rb"(?i)\r\nproxy-connection:[^\r]*close", before) is not None


def _follows_interim(role: Role, before: bytes, _wire: bytes) -> bool:
    return role is Role.CLIENT and re.match(rb"HTTP/1\.[0-9] 1", before) is not None


DEVIATIONS: dict[str, Deviation] = {
    "later minor version": Deviation(
        re.compile("Invalid HTTP version"),
        _has_later_minor,
        "RFC 9110 section 2.5: a recipient that receives a message with a higher minor version SHOULD process the "
        "message as if it was in the highest minor version within that major version to which it is conformant",
    ),
    "unknown method": Deviation(
        re.compile("[Mm]ethod"),
        _has_rare_method,
        "RFC 9110 section 9.1: additional methods have been specified for use in HTTP; it is the origin server that "
        "answers 501 to a method that is unrecognized",
    ),
    "framing field in a trailer section": Deviation(
        re.compile("Content-Length|Transfer-Encoding"),
        _has_framing_trailer,
        "RFC 9112 section 7.1.2: a recipient that removes the chunked coding MAY selectively retain or discard the "
        "received trailer fields; ours discards these",
    ),
    "proxy-connection: close": Deviation(
        re.compile("Data after `Connection: close`"),
        _follows_proxy_connection,
        "RFC 9112 section 9.3: a recipient determines whether a connection is persistent or not based on the protocol "
        "version and Connection header field",
    ),
    "interim response that says close": Deviation(
        re.compile("Data after `Connection: close`"),
        _follows_interim,
        "RFC 9110 section 15.2: a 1xx response comes prior to completing the requested action and sending a final "
        "response, and a client MUST be able to parse one or more of them before it",
    ),
}
UPGRADE_WITH_BODY = "upgrade with a body"
"""httptools takes what follows the head of an upgrade request for the other protocol. RFC 9110 section 7.8: a client
cannot begin using an upgraded protocol on the connection until it has completely sent the request message."""
BODY_WHERE_NONE_CAN_BE = "framing fields where no body can be"
"""llhttp reads a body after 1xx, 204 and 304 if fields announce one. RFC 9112 section 6.3: a response with such a code
is always terminated by the first empty line after the header fields, regardless of the fields present."""


# --- ours -----------------------------------------------------------------------------------------------------------


def ours(role: Role, wire: bytes, parts: Iterable[bytes]) -> Sight:
    """Return what our engine sees; `parts` are the pieces of `wire` it is fed in."""
    engine = Http1Connection(role)
    messages: list[Message] = []
    fed = 0
    head: RequestReceived | ResponseReceived | InformationalReceived | None = None
    body = b""
    _ask(engine)
    for part in parts:
        engine.receive_data(part)
        fed += len(part)
        while True:
            try:
                event = engine.next_event()
            except RemoteProtocolError as error:
                return Sight(_with(messages, head, body), str(error), True)
            if isinstance(event, Signal):
                break
            if isinstance(event, RequestReceived | ResponseReceived):
                head, body = event, b""
                if isinstance(event, ResponseReceived) and event.head.status == 101:
                    return Sight(_with(messages, head, body, (), fed - engine.buffered_bytes), "", True)
            elif isinstance(event, InformationalReceived):
                messages = _with(messages, event, b"", (), fed - engine.buffered_bytes)
            elif isinstance(event, DataReceived):
                body += event.data
            elif isinstance(event, MessageComplete):
                assert head is not None
                messages = _with(messages, head, body, event.trailers, fed - engine.buffered_bytes)
                if not _is_persistent(head):
                    return Sight(messages, "", True)
                head = None
                rest = b""
                if role is Role.SERVER:
                    engine.send_response(204, ())
                    engine.send_end()
                else:
                    rest = engine.trailing_data()
                engine.start_next_cycle()
                _ask(engine)
                if rest:
                    engine.receive_data(rest)
    return Sight(_with(messages, head, body), "", False)


def _ask(engine: Http1Connection) -> None:
    if engine.role is Role.CLIENT:
        engine.send_request("GET", b"/", b"a", (), upgrade=b"websocket")
        engine.send_end()


def _is_persistent(event: RequestReceived | ResponseReceived | InformationalReceived) -> bool:
    return event.head.keep_alive and not event.head.upgrade


def _with(
    messages: list[Message],
    event: RequestReceived | ResponseReceived | InformationalReceived | None,
    body: bytes,
    trailers: Fields = (),
    end: int | None = None,
) -> list[Message]:
    if event is None:
        return messages
    head = event.head
    start = (head.method.encode(), head.target) if isinstance(event, RequestReceived) else head.status
    return [*messages, Message(start, head.minor_version, head.fields, body, trailers, end)]


# --- llhttp ---------------------------------------------------------------------------------------------------------


class _Listener:
    """Take httptools' calls; it gives trailers by the same call as fields."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser
        self.messages: list[Message] = []
        self.offset = 0
        self.is_last = False
        self.on_message_begin()

    def on_message_begin(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.start: tuple[bytes, bytes] | int | None = None
        self.version = 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        (self.fields if self.start is None else self.trailers).append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self.parser
        if isinstance(parser, httptools.HttpRequestParser):
            self.start = (parser.get_method(), self.url)
        else:
            self.start = parser.get_status_code()
        self.version = int(parser.get_http_version().partition(".")[2])
        self.is_last = not parser.should_keep_alive() or parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages.append(self.message(self.offset))
        self.start = None

    def message(self, end: int | None) -> Message:
        assert self.start is not None
        consumed = _CONSUMED[self.role]
        kept = tuple(field for field in self.fields if field[0] not in consumed and b"_" not in field[0])
        trailers = tuple(
            field for field in self.trailers if not is_forbidden_trailer(field[0]) and b"_" not in field[0]
        )
        return Message(self.start, self.version, kept, self.body, trailers, end)


def theirs(role: Role, wire: bytes) -> Sight:
    """Return what llhttp sees."""
    listener = _Listener(role)
    kind = httptools.HttpRequestParser if role is Role.SERVER else httptools.HttpResponseParser
    parser = listener.parser = kind(listener)
    refusal = ""
    for offset in range(len(wire)):
        listener.offset = offset + 1
        try:
            parser.feed_data(wire[offset : offset + 1])
        except httptools.HttpParserUpgrade:
            listener.is_last = True
            break
        except httptools.HttpParserError as error:
            refusal = f"{type(error).__name__}: {error}"
            break
    messages = listener.messages
    if listener.start is not None:
        messages = [*messages, listener.message(None)]
    return Sight(messages, refusal, listener.is_last)


# --- together ---------------------------------------------------------------------------------------------------------


def check_requests(data: bytes) -> None:
    """Compare on requests; the first octet chooses the pieces ours is fed in."""
    if data:
        compare(Role.SERVER, data[1:], pieces(data[1:], data[0]))


def check_responses(data: bytes) -> None:
    """Compare on responses; inputs are those of the `http1_client` target."""
    if len(data) >= 2:
        compare(Role.CLIENT, data[2:], pieces(data[2:], data[0]))


def compare(role: Role, wire: bytes, parts: Iterable[bytes] | None = None) -> str | None:
    """Return the name of the deviation met, None if there was none.

    Raises:
        AssertionError: The two saw something different where ours accepted.
    """
    mine = ours(role, wire, [wire] if parts is None else parts)
    other = theirs(role, wire)
    for number, message in enumerate(mine.messages):
        if _announces_impossible_body(role, wire[_begin(mine.messages, number) : message.end], message):
            return BODY_WHERE_NONE_CAN_BE
        if number < len(other.messages):
            seen = other.messages[number]
            if message.end is None:
                if _is_upgrade_with_body(role, wire, message, seen, other):
                    return UPGRADE_WITH_BODY
                # Not accepted as a whole: what was seen of the body may differ in length, not in content.
                assert (message.start, message.version, message.fields) == (seen.start, seen.version, seen.fields)
                assert message.body.startswith(seen.body) or seen.body.startswith(message.body)
                assert mine.refusal or other.refusal or seen.end is None, (message, seen)
                break
            if seen.end is not None or not other.refusal:
                if message != seen and _is_upgrade_with_body(role, wire, message, seen, other):
                    return UPGRADE_WITH_BODY
                assert message == seen
                continue
        begin = _begin(mine.messages, number)
        before = wire[_begin(mine.messages, number - 1) : begin] if number else b""
        return _deviation(role, before, wire[begin:], other.refusal)
    if not mine.is_last and not other.refusal:
        assert len(mine.messages) == len(other.messages), (mine, other)
    return None


def _announces_impossible_body(role: Role, wire: bytes, message: Message) -> bool:
    if role is not Role.CLIENT or not isinstance(message.start, int):
        return False
    is_bodyless = message.start < 200 or message.start in (204, 304)
    return is_bodyless and re.search(rb"(?i)\r\n(content-length|transfer-encoding):", wire) is not None


def _is_upgrade_with_body(role: Role, wire: bytes, message: Message, seen: Message, other: Sight) -> bool:
    if role is not Role.SERVER or seen.end is None or not other.is_last or other.refusal:
        return False
    same_head = (message.start, message.version, message.fields) == (seen.start, seen.version, seen.fields)
    ends_with_head = wire[: seen.end].endswith(b"\r\n\r\n") and not seen.body
    return same_head and ends_with_head and b"upgrade" in wire[: seen.end].lower()


def _begin(messages: list[Message], number: int) -> int:
    return messages[number - 1].end or 0 if number else 0


def _deviation(role: Role, before: bytes, wire: bytes, refusal: str) -> str:
    assert refusal, "llhttp saw fewer messages and refused none"
    for name, deviation in DEVIATIONS.items():
        if deviation.refusal.search(refusal) and deviation.applies(role, before, wire):
            return name
    raise AssertionError(f"llhttp refuses what ours accepts: {refusal}: {wire[:300]!r}")
