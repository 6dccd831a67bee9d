"""Section D of the threat list: HTTP/2 clients that cost more than they may, or say what must not be said."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from datum_router_proxy import testing as h2
from tests.threats.kit import (
    CANARY,
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    HOST,
    INNER,
    OK,
    PREFACE,
    RST_STREAM,
    WINDOW_UPDATE,
    Arena,
    Client2,
    Received,
    eventually,
    get,
    head2,
    read_all,
    running,
    statuses,
)

pytestmark = pytest.mark.e2e

CALM, PROTOCOL, FLOW, CLOSED, FRAME_SIZE, REFUSED, COMPRESSION = 11, 1, 3, 5, 6, 7, 9
STALL_S = 1.5
MIB = 1 << 20


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """A gateway that waits for clients for seconds only."""
    env = {"DATUM_ROUTER_DATA_PLANE_CONFIG": f"write_timeout_s={STALL_S:g},preface_timeout_s=0.5,head_timeout_s=1"}
    with running(tmp_path_factory.mktemp("threats") / "manifests", env=env) as arena:
        yield arena


@dataclass(frozen=True)
class Bad:
    """Frames, the verdicts they may get, and the counted reason (empty: any)."""

    name: str
    verdicts: tuple[str, ...]
    frames: bytes
    reason: str = ""


def each(*cases: Bad) -> pytest.MarkDecorator:
    """Parametrise over `bad`."""
    return pytest.mark.parametrize("bad", cases, ids=lambda bad: bad.name.replace(" ", "-"))


def counted(arena: Arena, bad: Bad, least: int) -> None:
    """Require that refusals were counted, under the right reason if it is known."""
    counts = arena.rejected()
    assert sum(count for name, count in counts.items() if name.startswith("h2|")) >= least, counts
    if bad.reason:
        assert f"h2|{bad.reason}" in counts, counts


def ended(arena: Arena, bad: Bad, stream_id: int = 1, *, times: int = 1) -> None:
    """Require that the connection ends with the named GOAWAY, counted, and is closed."""
    for _ in range(times):
        with Client2(arena) as client:
            client.send(bad.frames)
            assert client.verdict(stream_id) in bad.verdicts
    counted(arena, bad, times)
    assert CANARY not in arena.upstream.raw


def stream_ended(arena: Arena, bad: Bad) -> None:
    """Require that the stream ends as named, counted, that nothing went up, and that the next stream is served."""
    with Client2(arena) as client:
        client.send(bad.frames)
        found = client.verdict()
        assert found in bad.verdicts
        if not found.startswith("goaway"):
            client.send(h2.headers(3, head2(path=b"/next")))
            assert client.verdict(3) == "status 200"
    counted(arena, bad, 1)
    assert set(arena.upstream.targets) <= {b"/next"}
    assert arena.upstream.raw.count(b" HTTP/1.1\r\n") == len(arena.upstream.targets)


def goaway(*codes: int) -> tuple[str, ...]:
    """Return verdicts of a connection that ends with one of these codes."""
    return tuple(f"goaway {code}" for code in codes)


def flood(stream_frames: Callable[[int], bytes], count: int, opening: bytes = b"") -> bytes:
    """Return frames for so many streams of a client."""
    return opening + b"".join(stream_frames(2 * index + 1) for index in range(count))


OPEN_POST = h2.headers(1, head2(method=b"POST"), end_stream=False)
HUNG = h2.headers(1, head2(), end_stream=False, end_headers=False)


def opened(stream_id: int) -> bytes:
    """Return the head of a POST whose body is still to come."""
    return h2.headers(stream_id, head2(method=b"POST"), end_stream=False)


# --- D1 to D3: resets and continuations ----------------------------------------------------------------------------


def test_d1_rapid_reset_ends_the_connection_and_upstream_work_stays_bounded(arena: Arena) -> None:
    arena.upstream.on_head = lambda received, _head, _rest: read_all(received.sock) and None
    message = flood(lambda i: h2.headers(i, head2()) + h2.rst_stream(i), 400)
    for _ in range(3):
        with Client2(arena) as client:
            client.send(message)
            assert client.verdict(-1) == f"goaway {CALM}"
    assert arena.rejected() == {"h2|flood": 3}
    assert arena.upstream.peak <= 100 + 1


def test_d1_some_resets_are_anybodys_right(arena: Arena) -> None:
    with Client2(arena) as client:
        client.send(flood(lambda i: h2.headers(i, head2()) + h2.rst_stream(i), 90))
        client.send(h2.headers(1001, head2(path=b"/next")))
        assert client.verdict(1001) == "status 200"
    assert arena.rejected() == {}


@each(
    Bad("zero grant", goaway(CALM), flood(lambda i: opened(i) + h2.frame(8, 0, i, bytes(4)), 400)),
    Bad("overflowing grant", goaway(CALM), flood(lambda i: opened(i) + h2.window_update(i, 2**31 - 1), 400)),
    Bad("priority of 3 bytes", goaway(CALM), flood(lambda i: opened(i) + h2.frame(2, 0, i, b"abc"), 400)),
    Bad("priority on itself", goaway(CALM), flood(lambda i: opened(i) + h2.priority(i, i), 400)),
    Bad("DATA after the end", goaway(CALM, CLOSED), flood(lambda i: h2.headers(i, head2()) + h2.data(i, b"x"), 400)),
    Bad("HEADERS after the end", goaway(CALM, CLOSED), flood(lambda i: h2.headers(i, head2()) * 2, 400)),
    Bad("bad heads", goaway(CALM), flood(lambda i: h2.headers(i, head2((b"X", b"y"))), 400)),
    Bad(
        "wrong lengths",
        goaway(CALM),
        flood(lambda i: h2.headers(i, head2((b"content-length", b"5")), end_stream=True), 400),
    ),
)
def test_d2_resets_that_the_client_makes_us_send_are_charged_to_it(arena: Arena, bad: Bad) -> None:
    ended(arena, bad, -1)


def continued(fields: list[tuple[bytes, bytes]], *, last: bool = False) -> bytes:
    """Return a CONTINUATION of stream 1."""
    return h2.frame(CONTINUATION, 4 if last else 0, 1, h2.block(fields))


@each(
    Bad("endless", goaway(CALM), HUNG + b"".join(continued([(b"x%d" % i, b"y")]) for i in range(2000)), "flood"),
    Bad(
        "with an end",
        goaway(CALM),
        HUNG + b"".join(continued([(b"x%d" % i, b"y")]) for i in range(9)) + continued([(b"z", b"y")], last=True),
        "flood",
    ),
    Bad("64 KiB", goaway(CALM), HUNG + continued([(b"x", b"y" * 16000)]) * 5),
    Bad("other frame between", goaway(PROTOCOL), HUNG + h2.ping()),
    Bad("other stream between", goaway(PROTOCOL), HUNG + h2.frame(CONTINUATION, 4, 3, b"")),
    Bad("out of nowhere", goaway(PROTOCOL), h2.frame(CONTINUATION, 4, 1, h2.block(head2()))),
)
def test_d3_a_flood_of_continuations_ends_the_connection(arena: Arena, bad: Bad) -> None:
    before = arena.gateway.rss_bytes()
    ended(arena, bad, times=3)
    assert arena.gateway.rss_bytes() - before < 4 * MIB
    assert arena.upstream.raw == b""


def test_d3_eight_continuations_are_a_head(arena: Arena) -> None:
    with Client2(arena) as client:
        block = h2.block(head2())
        client.send(h2.frame(HEADERS, 1, 1, block[:1]))
        client.send(
            *(
                h2.frame(CONTINUATION, 4 if at == 8 else 0, 1, block[at : at + 1 if at < 8 else None])
                for at in range(1, 9)
            )
        )
        assert client.verdict() == "status 200"


# --- D4, D5: HPACK -------------------------------------------------------------------------------------------------

# A field of 4,000 bytes put into the table once and referred to 12,000 times.
BOMB = b"\x40\x01a\x7f\x80\x1e" + b"b" * 3967 + b"\xbe" * 12000


@each(
    Bad("one large entry", (*goaway(COMPRESSION), "status 431"), h2.frame(HEADERS, 5, 1, h2.block(head2()) + BOMB)),
    Bad(
        "150 fields",
        ("status 431",),
        h2.headers(1, head2(*((b"x%d" % i, b"y") for i in range(150)))),
    ),
    Bad(
        "64 KiB list",
        ("status 431", *goaway(CALM, COMPRESSION)),
        h2.headers(1, head2(*((b"x%d" % i, b"y" * 4000) for i in range(4))), end_headers=False)
        + b"".join(
            h2.frame(CONTINUATION, 4 if n == 3 else 0, 1, h2.block([(b"z%d" % i, b"y" * 4000) for i in range(4)]))
            for n in range(4)
        ),
    ),
)
def test_d4_a_header_list_past_the_limit(arena: Arena, bad: Bad) -> None:
    before = arena.gateway.rss_bytes()
    for _ in range(3):
        stream_ended(arena, bad)
    assert arena.gateway.rss_bytes() - before < 4 * MIB


def test_d4_after_a_431_the_table_is_still_in_step(arena: Arena) -> None:
    many = h2.block([(b"x%d" % i, b"y") for i in range(150)])
    with Client2(arena) as client:
        client.send(h2.frame(HEADERS, 5, 1, h2.block(head2()) + b"\x40\x06x-mark\x05there" + many))
        assert client.verdict() == "status 431"
        client.send(h2.frame(HEADERS, 5, 3, h2.block(head2(path=b"/next")) + b"\xbe"))  # index 62: the newest entry
        assert client.verdict(3) == "status 200"
    ((head, _),) = arena.upstream.requests
    assert b"\r\nx-mark: there" in head


def hpack_frame(*parts: bytes) -> bytes:
    """Return a HEADERS frame with this block."""
    return h2.frame(HEADERS, 5, 1, b"".join(parts))


@each(
    Bad("index 0", goaway(COMPRESSION), hpack_frame(b"\x80")),
    Bad("index past the table", goaway(COMPRESSION), hpack_frame(h2.block(head2()), b"\xbe")),
    Bad("integer overrun", goaway(COMPRESSION), hpack_frame(b"\xff\xff\xff\xff\xff\xff\x7f")),
    Bad("endless integer", goaway(COMPRESSION), hpack_frame(b"\xff" + b"\x80" * 100 + b"\x01")),
    Bad("string past the block", goaway(COMPRESSION), hpack_frame(b"\x00\x7f\xff\x7fabc")),
    Bad("cut integer", goaway(COMPRESSION), hpack_frame(h2.block(head2()), b"\xff")),
    Bad("table size above the setting", goaway(COMPRESSION), hpack_frame(b"\x3f\xe2\x1f", h2.block(head2()))),
    Bad("huge table size", goaway(COMPRESSION), hpack_frame(b"\x3f\xe1\xff\x03", h2.block(head2()))),
    Bad("late table size", goaway(COMPRESSION), hpack_frame(h2.block(head2()), b"\x20")),
    Bad("Huffman padding", goaway(COMPRESSION), hpack_frame(b"\x00\x81\xff\x81\xff")),
    Bad("Huffman EOS", goaway(COMPRESSION), hpack_frame(b"\x00\x84\xff\xff\xff\xff\x01a")),
    Bad("Huffman padding of zeros", goaway(COMPRESSION), hpack_frame(b"\x00\x81\x18\x01a")),
)
def test_d5_a_header_block_that_cannot_be_decoded(arena: Arena, bad: Bad) -> None:
    ended(arena, bad)
    assert arena.upstream.raw == b""


# --- D6 to D9: frames that carry nothing ---------------------------------------------------------------------------


@each(
    Bad("PING", goaway(CALM), h2.ping() * 3000, "flood"),
    Bad("SETTINGS", goaway(CALM), h2.settings() * 3000, "flood"),
    Bad("SETTINGS with an entry", goaway(CALM), h2.settings((3, 100)) * 3000, "flood"),
    Bad("33 entries", goaway(CALM), h2.settings(*((0x99, i) for i in range(33))), "flood"),
)
def test_d6_control_frames_that_want_answers(arena: Arena, bad: Bad) -> None:
    before = arena.gateway.rss_bytes()
    ended(arena, bad, -1, times=3)
    assert arena.gateway.rss_bytes() - before < 4 * MIB


def test_d6_a_few_are_answered(arena: Arena) -> None:
    with Client2(arena) as client:
        client.send(h2.settings((0x99, 1)) * 20 + h2.ping(b"abcdefgh"))
        assert client.until(6) == (1, b"abcdefgh")
    assert arena.rejected() == {}


@each(
    Bad("DATA", goaway(CALM), OPEN_POST + h2.data(1) * 100, "flood"),
    Bad("padded DATA", goaway(CALM), OPEN_POST + h2.data(1, padding=10) * 100, "flood"),
    Bad("CONTINUATION", goaway(CALM), HUNG + h2.frame(CONTINUATION, 0, 1) * 100, "flood"),
    Bad("HEADERS", goaway(CALM, PROTOCOL), flood(lambda i: h2.frame(HEADERS, 4, i), 400)),
    Bad("names", goaway(CALM), flood(lambda i: h2.headers(i, head2((b"", b"z"))), 400), "flood"),
)
def test_d7_empty_frames_and_names(arena: Arena, bad: Bad) -> None:
    ended(arena, bad, -1)


PRIORITY_UPDATE = h2.frame(0x10, 0, 0, struct.pack(">L", 1) + b"u=1")


@each(
    Bad("PRIORITY", goaway(CALM), h2.priority(1) * 3000, "flood"),
    Bad("PRIORITY on other streams", goaway(CALM), flood(h2.priority, 3000), "flood"),
    Bad("PRIORITY_UPDATE", goaway(CALM), PRIORITY_UPDATE * 3000, "flood"),
)
def test_d8_priorities_are_bounded(arena: Arena, bad: Bad) -> None:
    ended(arena, bad, -1)


def test_d8_some_are_ignored(arena: Arena) -> None:
    with Client2(arena) as client:
        client.send(h2.priority(1) * 45 + PRIORITY_UPDATE * 45 + h2.headers(1, head2()))
        assert client.verdict() == "status 200"


@each(
    Bad("on a stream", goaway(CALM), OPEN_POST + h2.window_update(1, 1) * 3000, "flood"),
    Bad("on the connection", goaway(CALM), h2.window_update(0, 1) * 3000, "flood"),
)
def test_d9_grants_of_one_byte(arena: Arena, bad: Bad) -> None:
    ended(arena, bad, -1)


def test_d9_small_grants_for_what_was_sent_are_fine(arena: Arena) -> None:
    arena.upstream.reply = b"HTTP/1.1 200 OK\r\ncontent-length: 3000\r\n\r\n" + b"x" * 3000
    with Client2(arena, opening=PREFACE + h2.settings((4, 0))) as client:
        client.send(h2.headers(1, head2()))
        for _ in range(300):
            client.send(h2.window_update(1, 10))
            assert client.until(DATA, 1)[1] == b"x" * 10
    assert arena.rejected() == {}


# --- D10: readers that stop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0, 1], ids=["zero", "tiny"])
def test_d10_a_slow_reader_holds_a_bounded_amount_and_is_ended(arena: Arena, window: int) -> None:
    arena.upstream.reply = b"HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n" + b"x" * 4_000_000
    before = arena.gateway.rss_bytes()
    with Client2(arena, opening=PREFACE + h2.settings((4, window))) as client:
        client.send(flood(lambda i: h2.headers(i, head2()), 50))
        heads, resets, peak = set(), set(), 0
        for kind, _, stream, payload in client.frames():
            if kind == HEADERS:
                heads.add(stream)
            elif kind == DATA:
                assert len(payload) <= window
            elif kind == RST_STREAM:
                resets.add(stream)
            if len(heads) == 50 and not peak:
                peak = arena.gateway.rss_bytes() - before
            if len(resets) == 50:
                break
        assert len(heads) == len(resets) == 50
        assert peak < 50 * 2 * 64 * 1024 + 4 * MIB  # of 200 MB; both sides' connections and tasks included
    eventually(lambda: all(item.is_over for item in arena.upstream.connections[:-1]), "the upstreams are let go")


# --- D11, D12: streams ---------------------------------------------------------------------------------------------


@each(
    Bad("even", goaway(PROTOCOL), h2.headers(2, head2())),
    Bad("zero", goaway(PROTOCOL), h2.headers(0, head2())),
    Bad("lower", goaway(PROTOCOL, CLOSED), h2.headers(5, head2()) + h2.headers(3, head2(path=CANARY))),
    Bad("DATA on an idle stream", goaway(PROTOCOL), h2.data(7, b"x")),
    Bad("DATA on 0", goaway(PROTOCOL), h2.data(0, b"x")),
    Bad("RST_STREAM on an idle stream", goaway(PROTOCOL), h2.rst_stream(7)),
    Bad("RST_STREAM on 0", goaway(PROTOCOL), h2.rst_stream(0)),
    Bad("WINDOW_UPDATE on an idle stream", goaway(PROTOCOL), h2.window_update(7, 1)),
    Bad("SETTINGS on a stream", goaway(PROTOCOL), h2.frame(4, 0, 1)),
    Bad("PING on a stream", goaway(PROTOCOL), h2.frame(6, 0, 1, bytes(8))),
    Bad("GOAWAY on a stream", goaway(PROTOCOL), h2.frame(7, 0, 1, bytes(8))),
    Bad("PRIORITY on 0", goaway(PROTOCOL), h2.frame(2, 0, 0, bytes(5))),
)
def test_d11_stream_ids_that_may_not_be(arena: Arena, bad: Bad) -> None:
    ended(arena, bad, -1)


def test_d11_an_id_is_never_used_twice_and_the_last_one_is_usable(arena: Arena) -> None:
    with Client2(arena) as client:
        client.send(h2.headers(1, head2(path=b"/once")))
        assert client.verdict() == "status 200"
        client.send(h2.headers(1, head2(path=CANARY)))
        assert client.verdict(-1) in goaway(PROTOCOL, CLOSED)
    with Client2(arena) as client:
        client.send(h2.headers(2**31 - 1, head2(path=b"/last")))
        assert client.verdict(2**31 - 1) == "status 200"
        client.send(h2.headers(1, head2(path=CANARY)))
        assert client.verdict(-1) in goaway(PROTOCOL, CLOSED)
    assert arena.upstream.targets == [b"/once", b"/last"]


def test_d12_streams_above_the_limit_are_refused_then_the_connection_ends(arena: Arena) -> None:
    may_answer = threading.Event()

    def slowly(received: Received, _head: bytes, _rest: bytes) -> None:
        assert may_answer.wait(20)
        received.sock.sendall(OK)

    arena.upstream.on_head = slowly
    with Client2(arena) as client:
        client.send(flood(lambda i: h2.headers(i, head2()), 100))
        eventually(lambda: arena.upstream.raw.count(b"\r\n\r\n") == 100, "100 streams are served at once")
        client.send(*(h2.headers(201 + 2 * index, head2(path=CANARY)) for index in range(100)))
        refused = [client.until(RST_STREAM, 201 + 2 * index)[1] for index in range(100)]
        assert refused == [struct.pack(">L", REFUSED)] * 100
        assert arena.rejected() == {"h2|too_many_streams": 100}
        client.send(*(h2.headers(401 + 2 * index, head2(path=CANARY)) for index in range(10)))
        assert client.verdict(-1) == f"goaway {CALM}"
    may_answer.set()
    assert arena.rejected()["h2|flood"] == 1
    assert CANARY not in arena.upstream.raw
    assert arena.upstream.peak <= 100 + 1


def test_d12_a_slot_is_free_again_when_its_stream_has_ended(arena: Arena) -> None:
    with Client2(arena) as client:
        for first in range(1, 1200, 200):
            client.send(*(h2.headers(first + 2 * index, head2()) for index in range(100)))
            done = 0
            for kind, flags, _, _ in client.frames():
                assert kind != RST_STREAM
                done += kind == DATA and flags & 1
                if done == 100:
                    break
    assert arena.rejected() == {}


# --- D13 to D17: heads and bodies ----------------------------------------------------------------------------------

RESET = ("reset 1",)
EITHER = ("reset 1", "status 400")
POST = h2.headers(1, head2((b"content-length", b"5"), method=b"POST"), end_stream=False)


def request(*extra: tuple[bytes, bytes], path: bytes = b"/", **pseudo: bytes) -> bytes:
    """Return the HEADERS frame of a request without a body on stream 1."""
    return h2.headers(1, head2(*extra, path=path, **pseudo))


@each(
    Bad("no path", RESET, h2.headers(1, head2()[:2] + head2()[3:])),
    Bad("no method", RESET, h2.headers(1, head2()[1:])),
    Bad("no scheme", RESET, h2.headers(1, head2()[:1] + head2()[2:])),
    Bad("no authority and no host", EITHER, h2.headers(1, head2()[:3])),
    Bad("empty path", RESET, request(path=b"")),
    Bad("repeated", RESET, h2.headers(1, [(b":path", CANARY), *head2()])),
    Bad("repeated method", RESET, h2.headers(1, [(b":method", b"GET"), *head2()])),
    Bad("unknown", RESET, h2.headers(1, [(b":foo", b"x"), *head2()])),
    Bad("status", RESET, h2.headers(1, [(b":status", b"200"), *head2()])),
    Bad("after a field", RESET, request((b"x", b"y"), (b":path", CANARY))),
    Bad("request line in the method", EITHER, request(method=b"GET " + CANARY + b" HTTP/1.1\r\nX:")),
    Bad("empty method", EITHER, request(method=b"")),
    Bad("lower-case method", EITHER, request(method=b"get")),
    Bad("blank in the path", EITHER, request(path=b"/ HTTP/1.1\r\nHost: x\r\n\r\n")),
    Bad("LF in the path", EITHER, request(path=b"/a\nb")),
    Bad("relative path", EITHER, request(path=b"smuggled")),
    Bad("absolute path", EITHER, request(path=b"http://b.test/smuggled")),
    Bad("asterisk", EITHER, request(path=b"*")),
    Bad("scheme", EITHER, request(scheme=b"http://a.test/smuggled?")),
    Bad("CRLF in the authority", EITHER, request(authority=b"a.test\r\nX: y")),
    Bad("userinfo", EITHER, request(authority=b"u@a.test")),
    Bad("path in the authority", EITHER, request(authority=b"a.test/smuggled")),
    Bad("empty authority", EITHER, request(authority=b"")),
    Bad("TRACE", ("status 405",), request(method=b"TRACE")),
    Bad("long path", ("status 414",), request(path=b"/" + b"a" * 8192), "target_too_long"),
    Bad("expectation", ("status 417",), request((b"expect", b"x")), "bad_expect"),
)
def test_d13_pseudo_header_fields(arena: Arena, bad: Bad) -> None:
    stream_ended(arena, bad)


@each(
    Bad("upper case", RESET, request((b"X-Y", b"z"))),
    Bad("colon", RESET, request((b"x:y", b"z"))),
    Bad("blank in a name", RESET, request((b"x y", b"z"))),
    Bad("CRLF in a name", RESET, request((b"x\r\ny", b"z"))),
    Bad("non-ASCII name", RESET, request((b"x\xe9", b"z"))),
    Bad("empty name", RESET, request((b"", b"z"))),
    Bad("CR", RESET, request((b"x", b"a\rb"))),
    Bad("LF", RESET, request((b"x", b"a\nTransfer-Encoding: chunked"))),
    Bad("CRLF and a request", RESET, request((b"x", b"a\r\n\r\n" + INNER))),
    Bad("NUL", RESET, request((b"x", b"a\0"))),
    Bad("leading blank", RESET, request((b"x", b" a"))),
    Bad("trailing tab", RESET, request((b"x", b"a\t"))),
)
def test_d14_names_and_values_that_would_be_smuggled_down(arena: Arena, bad: Bad) -> None:
    stream_ended(arena, bad)


@each(
    Bad("transfer-encoding", RESET, request((b"transfer-encoding", b"chunked"))),
    Bad("connection", RESET, request((b"connection", b"close"))),
    Bad("keep-alive", RESET, request((b"keep-alive", b"5"))),
    Bad("proxy-connection", RESET, request((b"proxy-connection", b"x"))),
    Bad("upgrade", RESET, request((b"upgrade", b"websocket"))),
    Bad("te", RESET, request((b"te", b"gzip"))),
    Bad("te list", RESET, request((b"te", b"trailers, gzip"))),
)
def test_d15_fields_of_connections(arena: Arena, bad: Bad) -> None:
    stream_ended(arena, bad)


@each(
    Bad("repeated", RESET, request((b"content-length", b"0"), (b"content-length", b"0"))),
    Bad("sign", RESET, request((b"content-length", b"+0"))),
    Bad("list", RESET, request((b"content-length", b"0, 0"))),
    Bad("empty", RESET, request((b"content-length", b""))),
    Bad("end of stream", RESET, request((b"content-length", b"5"))),
    Bad("long", RESET, POST + h2.data(1, b"abcdef", end_stream=True)),
    Bad("short", RESET, POST + h2.data(1, b"abc", end_stream=True)),
    Bad("long in pieces", RESET, POST + h2.data(1, b"abcd") + h2.data(1, b"efgh", end_stream=True)),
    Bad("short with trailers", RESET, POST + h2.data(1, b"abc") + h2.headers(1, [(b"x", b"y")])),
    Bad("pseudo-header in trailers", RESET, POST + h2.data(1, b"abc") + h2.headers(1, [(b":path", CANARY)])),
    Bad("trailers without an end", RESET, POST + h2.data(1, b"abc") + h2.headers(1, [(b"x", b"y")], end_stream=False)),
)
def test_d16_content_length_against_data(arena: Arena, bad: Bad) -> None:
    with Client2(arena) as client:
        client.send(bad.frames)
        assert client.verdict() in bad.verdicts
        client.send(h2.headers(3, head2(path=b"/next")))
        assert client.verdict(3) == "status 200"
    counted(arena, bad, 1)
    assert arena.upstream.targets == [b"/next"]  # the other message was aborted, if it was begun at all
    assert CANARY not in arena.upstream.raw


def test_d16_a_body_of_the_right_length_is_forwarded(arena: Arena) -> None:
    with Client2(arena) as client:
        client.send(POST, h2.data(1, b"abc", padding=255), h2.data(1, b"de", end_stream=True))
        assert client.verdict() == "status 200"
    ((head, body),) = arena.upstream.requests
    assert b"\r\ncontent-length: 5" in head
    assert body == b"abcde"


@each(
    Bad("other host", EITHER, request((b"host", b"other.test"))),
    Bad("two hosts", EITHER, request((b"host", b"a.test"), (b"host", b"a.test"))),
    Bad("port", EITHER, request((b"host", b"a.test:81"))),
    Bad("host with userinfo", EITHER, request((b"host", b"u@a.test"))),
)
def test_d17_authority_and_host_must_agree(arena: Arena, bad: Bad) -> None:
    stream_ended(arena, bad)


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        (head2((b"host", b"a.test")), b"a.test"),
        (head2((b"host", b"A.Test")), b"a.test"),
        (head2(authority=b"A.test:81"), b"a.test:81"),
        ([*head2()[:3], (b"host", b"b.test")], b"b.test"),
    ],
    ids=["equal", "case", "port", "host-only"],
)
def test_d17_the_upstream_gets_the_authority_as_its_one_host(
    arena: Arena, fields: list[tuple[bytes, bytes]], host: bytes
) -> None:
    with Client2(arena) as client:
        client.send(h2.headers(1, fields))
        assert client.verdict() == "status 200"
    ((head, _),) = arena.upstream.requests
    assert head.lower().count(b"\r\nhost: ") == 1
    assert b"\r\nhost: " + host + b"\r\n" in head + b"\r\n"


# --- D18 to D21: framing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opening",
    [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + INNER,
        b"PRI * HTTP/2.0\r\n\r\n" + INNER,
        PREFACE[:-1] + b"X" + INNER,
        PREFACE + get(CANARY),
        PREFACE + h2.headers(1, head2(path=CANARY)),
        PREFACE + h2.ping() + h2.settings() + h2.headers(1, head2(path=CANARY)),
        PREFACE + h2.settings(ack=True) + h2.headers(1, head2(path=CANARY)),
    ],
    ids=["other-words", "cut", "last-byte", "HTTP-1", "no-SETTINGS", "PING-first", "ACK-first"],
)
def test_d18_what_is_no_preface_is_refused_within_a_second(arena: Arena, opening: bytes) -> None:
    began = threading.Event()
    timer = threading.Timer(1.0 + 2.0, began.set)  # a second, on a machine that others share
    timer.start()
    data = arena.ask(opening)
    timer.cancel()
    assert not began.is_set()
    assert set(statuses(data)) <= {400, 505}
    if not data.startswith(b"HTTP/1.1"):
        codes = [payload[7] for kind, _, _, payload in h2.parse(data) if kind == GOAWAY]
        assert codes in ([PROTOCOL], [FRAME_SIZE])  # the latter if the length of the first "frame" is looked at first
    assert arena.upstream.raw == b""
    assert sum(arena.rejected().values()) == 1


@pytest.mark.parametrize("part", [PREFACE[:4], PREFACE[:10], PREFACE[:-1]], ids=["4", "10", "23"])
def test_d18_half_a_preface_is_waited_for_a_while_only(arena: Arena, part: bytes) -> None:
    with arena.connect() as sock:
        sock.sendall(part)
        assert [(kind, payload[7]) for kind, _, _, payload in h2.parse(read_all(sock))] == [(GOAWAY, PROTOCOL)]
    assert arena.rejected() == {"h2|bad_preface": 1}


@pytest.mark.parametrize("part", [b"P", b"PR", b"PRI"])
def test_d18_what_may_still_be_http_1_is_a_slow_head(arena: Arena, part: bytes) -> None:
    with arena.connect() as sock:
        sock.sendall(part)
        assert statuses(read_all(sock)) == [408]
    assert arena.rejected() == {"h1|head_timeout": 1}


@each(Bad("push", goaway(PROTOCOL), h2.frame(5, 4, 1, bytes(4) + h2.block(head2()))))
def test_d18_a_client_pushes_nothing(arena: Arena, bad: Bad) -> None:
    ended(arena, bad)


@each(
    Bad("16385 bytes", goaway(FRAME_SIZE), OPEN_POST + h2.frame(DATA, 0, 1, bytes(16385))),
    Bad("announced 16 MiB", goaway(FRAME_SIZE), b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"),
    Bad("SETTINGS of 3 bytes", goaway(FRAME_SIZE), h2.frame(4, 0, 0, b"abc")),
    Bad("SETTINGS ACK with content", goaway(FRAME_SIZE), h2.frame(4, 1, 0, bytes(6))),
    Bad("PING of 3 bytes", goaway(FRAME_SIZE), h2.frame(6, 0, 0, b"abc")),
    Bad("GOAWAY of 3 bytes", goaway(FRAME_SIZE), h2.frame(7, 0, 0, b"abc")),
    Bad("WINDOW_UPDATE of 3 bytes", goaway(FRAME_SIZE), h2.frame(8, 0, 0, b"abc")),
    Bad("RST_STREAM of 3 bytes", goaway(FRAME_SIZE), OPEN_POST + h2.frame(3, 0, 1, b"abc")),
    Bad("DATA padding", goaway(PROTOCOL), OPEN_POST + h2.frame(DATA, 8, 1, b"\xffabc")),
    Bad("DATA padding of all", goaway(PROTOCOL), OPEN_POST + h2.frame(DATA, 8, 1, b"\x04abc")),
    Bad("HEADERS padding", goaway(PROTOCOL), h2.frame(HEADERS, 8 | 5, 1, b"\xff" + h2.block(head2()))),
    Bad("no room for a pad length", goaway(FRAME_SIZE, PROTOCOL), OPEN_POST + h2.frame(DATA, 8, 1)),
    Bad("no room for a priority", goaway(FRAME_SIZE, PROTOCOL), h2.frame(HEADERS, 0x20 | 5, 1, b"abc")),
    Bad("ENABLE_PUSH 2", goaway(PROTOCOL), h2.settings((2, 2))),
    Bad("MAX_FRAME_SIZE 1", goaway(PROTOCOL), h2.settings((5, 1))),
)
def test_d19_frames_of_the_wrong_size_or_shape(arena: Arena, bad: Bad) -> None:
    ended(arena, bad, -1)


@each(
    Bad("unknown type", ("status 200",), h2.frame(0x77, 0xFF, 1, b"abc") + request()),
    Bad("unknown flags", ("status 200",), h2.frame(HEADERS, 0xD2 | 5, 1, h2.block(head2()))),
    Bad("reserved bit", ("status 200",), h2.headers(1, head2()).replace(b"\0\0\0\x01", b"\x80\0\0\x01", 1)),
    Bad("padding of 255", ("status 200",), h2.frame(HEADERS, 8 | 5, 1, b"\xff" + h2.block(head2()) + bytes(255))),
    Bad("unknown setting", ("status 200",), h2.settings((0x99, 1)) + request()),
)
def test_d19_what_is_unknown_is_ignored(arena: Arena, bad: Bad) -> None:
    with Client2(arena) as client:
        client.send(bad.frames)
        assert client.verdict() in bad.verdicts
    assert arena.rejected() == {}


@each(
    Bad("connection window", goaway(FLOW), h2.window_update(0, 2**31 - 1), "flow_control"),
    Bad("zero grant on the connection", goaway(PROTOCOL), h2.window_update(0, 0)),
    Bad("INITIAL_WINDOW_SIZE", goaway(FLOW), h2.settings((4, 2**31))),
    Bad("open stream", goaway(FLOW), OPEN_POST + h2.window_update(1, 2**30) + h2.settings((4, 2**31 - 1))),
)
def test_d20_windows_that_overflow(arena: Arena, bad: Bad) -> None:
    ended(arena, bad, -1)


def test_d20_data_past_the_window_that_we_granted(arena: Arena) -> None:
    may_end = threading.Event()
    arena.upstream.on_head = lambda _received, _head, _rest: may_end.wait(20) and None
    with Client2(arena) as client:
        client.send(OPEN_POST, h2.data(1, bytes(16384)) * 80)
        assert client.verdict() in (f"reset {FLOW}", *goaway(FLOW))
    may_end.set()
    assert sum(count for name, count in arena.rejected().items() if name == "h2|flow_control") == 1


def test_d20_a_window_made_negative_by_settings_recovers(arena: Arena) -> None:
    body = bytes(range(256)) * 400
    arena.upstream.reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with Client2(arena, opening=PREFACE + h2.settings((4, 50_000))) as client:
        client.send(h2.headers(1, head2()))
        got = b""
        while len(got) < 50_000:
            got += client.until(DATA, 1)[1]
        client.send(h2.settings((4, 10)) + h2.window_update(1, 40_000) + h2.ping(b"in-order"))
        assert client.until(6) == (1, b"in-order")  # 10 - 50,000 + 40,000: still below zero
        client.send(h2.window_update(1, 60_000) + h2.window_update(0, 100_000))
        while len(got) < 60_000:
            got += client.until(DATA, 1)[1]
        client.send(h2.settings((4, 100_000)))
        while len(got) < len(body):
            got += client.until(DATA, 1)[1]
        assert got == body
    assert arena.rejected() == {}


def test_d20_the_connections_window_does_not_leak_with_reset_streams(arena: Arena) -> None:
    with Client2(arena) as client:
        window, stream_id = 65_535, -1
        sent = 0
        while sent < 3 * MIB:
            stream_id += 2
            client.send(opened(stream_id))
            for _ in range(3):
                while window < 16384:
                    window += int.from_bytes(client.until(WINDOW_UPDATE)[1], "big")
                client.send(h2.data(stream_id, bytes(16384)))
                window -= 16384
                sent += 16384
            client.send(h2.rst_stream(stream_id))
        assert stream_id < 200  # resets within what anybody may do
        client.send(h2.headers(1001, head2(path=b"/next")))
        assert client.verdict(1001) == "status 200"
    assert arena.rejected() == {}


@each(
    Bad("unknown frames", goaway(CALM), h2.frame(0x77, 0, 0, bytes(16000)) * 100, "flood"),
    Bad("padding", goaway(CALM), OPEN_POST + h2.data(1, b"x", padding=255) * 10_000, "flood"),
)
def test_d21_bytes_that_carry_nothing_run_out_of_budget(arena: Arena, bad: Bad) -> None:
    with Client2(arena) as client:
        sender = threading.Thread(target=client.send, args=(bad.frames,), daemon=True)
        sender.start()
        assert client.verdict(-1) in bad.verdicts
        sender.join(10)
    counted(arena, bad, 1)


def test_d21_payload_pays_for_small_frames(arena: Arena) -> None:
    with Client2(arena) as client:
        client.send(OPEN_POST)
        for _ in range(30):
            client.send(h2.data(1, b"xy") * 1000)
        client.send(h2.data(1, end_stream=True))
        assert client.verdict() == "status 200"
    assert len(arena.upstream.requests) == 1
    assert HOST.strip().lower() in arena.upstream.requests[0][0]
