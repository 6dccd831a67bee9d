"""Section B of the threat list: fields for one hop only, upgrades, addresses that clients make up."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator

import pytest

from datum_router_proxy import testing as h2
from tests.threats.kit import (
    CANARY,
    DATA,
    HEADERS,
    INNER,
    OK,
    PREFACE,
    SETTINGS,
    Arena,
    Client2,
    Received,
    eventually,
    get,
    head2,
    post,
    read_all,
    read_until,
    running,
    statuses,
)

pytestmark = pytest.mark.e2e

Fields = list[tuple[bytes, bytes]]
TUNNEL_IDLE_S = 1.0


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """A gateway whose tunnels may be silent for a second only."""
    env = {"DATUM_ROUTER_DATA_PLANE_CONFIG": f"tunnel_idle_timeout_s={TUNNEL_IDLE_S:g}"}
    with running(tmp_path_factory.mktemp("threats") / "manifests", env=env) as arena:
        yield arena


def fields_of(head: bytes) -> Fields:
    """Return the field lines of a head, names in lower case."""
    pairs = (line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return [(name.lower(), value) for name, value in pairs]


def sent_up(arena: Arena) -> Fields:
    """Return the fields of the one request that the upstream got."""
    ((head, _),) = arena.upstream.requests
    return fields_of(head)


# --- B1, B2: hop by hop --------------------------------------------------------------------------------------------

HOP_BY_HOP = (
    b"Keep-Alive: 5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\nProxy-Authenticate: x\r\nUpgrade: foo\r\n"
    b"X-Gone: 1\r\nX-Also-Gone: 1\r\n"
)


def test_b1_fields_for_one_hop_do_not_go_up(arena: Arena) -> None:
    message = get(
        b"/", b"Connection: X-Gone, close\r\nConnection: x-also-gone\r\n", HOP_BY_HOP, b"TE: gzip\r\n", b"X: y\r\n"
    )
    assert statuses(arena.ask(message)) == [200]
    names = [name for name, _ in sent_up(arena)]
    assert b"x" in names
    gone = {b"keep-alive", b"upgrade", b"x-gone", b"x-also-gone", b"te", b"connection"}
    assert gone.isdisjoint(names)
    assert not [name for name in names if name.startswith(b"proxy-")]


def test_b1_fields_for_one_hop_do_not_go_down(arena: Arena) -> None:
    arena.upstream.reply = OK.replace(
        b"\r\n\r\n", b"\r\nconnection: x-gone, X-Also-Gone\r\nTE: trailers\r\n" + HOP_BY_HOP + b"x: y\r\n\r\n", 1
    )
    head = arena.sees_whole(get()).partition(b"\r\n\r\n")[0]
    names = [name for name, _ in fields_of(head)]
    assert b"x" in names
    assert {b"keep-alive", b"upgrade", b"x-gone", b"x-also-gone", b"te"}.isdisjoint(names)
    assert not [name for name in names if name.startswith(b"proxy-")]
    assert dict(fields_of(head))[b"connection"] == b"close"


@pytest.mark.parametrize(
    ("te", "content_type", "kept"),
    [
        (b"trailers", b"application/grpc", True),
        (b"gzip, trailers;q=0.5, deflate", b"application/grpc", True),
        (b"trailers", b"text/plain", True),
        (b"gzip", b"text/plain", False),
    ],
)
def test_b1_of_te_only_trailers_is_kept(arena: Arena, te: bytes, content_type: bytes, kept: bool) -> None:
    arena.ask(get(b"/", b"Connection: TE, close\r\nTE: " + te + b"\r\nContent-Type: " + content_type + b"\r\n"))
    found = dict(sent_up(arena))
    assert found.get(b"te") == (b"trailers" if kept else None)
    assert found.get(b"connection", b"").lower() == (b"te" if kept else b"")


@pytest.mark.parametrize(
    "name",
    [
        b"Host", b"Content-Length", b"Authorization", b"Cookie", b"X-Forwarded-For", b"X-Forwarded-Proto",
        b"X-Forwarded-Host", b"Forwarded", b"Via", b"X-Request-Id", b"X-Real-IP",
    ],
)  # fmt: skip
def test_b1_what_upstreams_must_see_cannot_be_nominated_away(arena: Arena, name: bytes) -> None:
    message = post(
        b"Connection: close, " + name + b"\r\n", b"Content-Length: 2\r\nAuthorization: a\r\nCookie: b=c\r\n",
        b"X-Real-IP: 6.6.6.6\r\n", body=b"hi",
    )  # fmt: skip
    assert statuses(arena.ask(message)) == [200]
    found = dict(sent_up(arena))
    assert name.lower() in found
    assert (found[b"host"], found[b"content-length"]) == (b"a.test", b"2")
    assert (found[b"authorization"], found[b"cookie"]) == (b"a", b"b=c")


@pytest.mark.parametrize(
    "upgrade",
    [b"h2c", b"foo, h2c", b"h2c, websocket", b"H2C", b"HTTP/2.0"],
)
def test_b2_an_upgrade_to_h2c_is_stripped_and_the_request_served(arena: Arena, upgrade: bytes) -> None:
    message = get(
        b"/", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + upgrade + b"\r\n",
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    )  # fmt: skip
    # What follows is HTTP/1 again: the preface and frames of a client that expects h2c are no requests.
    data = arena.ask(message + PREFACE + h2.settings() + h2.headers(1, head2(path=CANARY)))
    assert statuses(data)[0] == 200
    assert b"101" not in data
    assert arena.upstream.targets == [b"/"]
    names = [name for name, _ in sent_up(arena)]
    assert {b"upgrade", b"http2-settings", b"connection"}.isdisjoint(names)


# --- B3, B4: WebSocket ---------------------------------------------------------------------------------------------

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: "


def shake(*, method: bytes = b"GET", version: bytes = b"13", key: bytes = KEY, http: bytes = b"1.1") -> bytes:
    """Build an opening handshake (RFC 6455 section 4.1)."""
    message = get(
        b"/", b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: " + version + b"\r\n",
        b"Sec-WebSocket-Key: " + key + b"\r\n", version=http,
    )  # fmt: skip
    return method + message[3:]


def accept(head: bytes) -> bytes:
    """Return the right answer to a handshake (RFC 6455 section 4.2.2)."""
    key = dict(fields_of(head))[b"sec-websocket-key"]
    return SWITCH + base64.b64encode(hashlib.sha1(key + GUID).digest()) + b"\r\n\r\n"


def echo(received: Received, head: bytes, rest: bytes) -> None:
    """Accept the handshake and send everything back."""
    received.sock.sendall(accept(head))
    while data := rest or received.sock.recv(65536):
        rest = b""
        received.sock.sendall(data)
    raise ConnectionError


@pytest.mark.parametrize(
    "message",
    [
        shake(version=b"8"),
        shake(key=b"short"),
        shake(key=b""),
        shake(key=b"!" * 24),
        shake(method=b"POST"),
        shake(http=b"1.0"),
        shake().replace(b"Sec-WebSocket-Key", b"X-Key"),
        shake().replace(b"Connection: Upgrade", b"Connection: keep-alive"),
        shake().replace(b"Upgrade: websocket", b"Upgrade: foo"),
    ],
    ids=["version", "short-key", "no-key", "bad-key", "POST", "1.0", "keyless", "not-nominated", "other-protocol"],
)
def test_b3_what_is_no_handshake_is_plain_http(arena: Arena, message: bytes) -> None:
    arena.upstream.on_head = lambda received, _head, _rest: received.sock.sendall(OK)
    with arena.connect() as sock:
        sock.sendall(message)
        assert statuses(read_until(sock, b"ok")) == [200]
    names = [name for name, _ in fields_of(arena.upstream.raw.partition(b"\r\n\r\n")[0])]
    assert b"upgrade" not in names


@pytest.mark.parametrize(
    "reply",
    [SWITCH + b"AAAA\r\n\r\n", SWITCH[: SWITCH.index(b"sec-")] + b"\r\n", SWITCH.replace(b"websocket\r", b"foo\r")],
    ids=["wrong-accept", "no-accept", "other-protocol"],
)
def test_b3_no_tunnel_without_the_right_answer(arena: Arena, reply: bytes) -> None:
    arena.upstream.reply = reply if reply.endswith(b"\r\n\r\n") else reply + b"AAAA\r\n\r\n"
    data = arena.ask(shake() + INNER)
    assert statuses(data)[0] == 502
    assert b"101" not in data.split(b"\r\n")[0]
    assert CANARY not in arena.upstream.targets


def test_b3_a_refused_handshake_is_an_answer_and_http_goes_on(arena: Arena) -> None:
    arena.upstream.reply = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno"
    with arena.connect() as sock:
        sock.sendall(shake())
        assert statuses(read_until(sock, b"no")) == [403]


def test_b3_after_the_right_answer_bytes_pass_both_ways(arena: Arena) -> None:
    arena.upstream.on_head = echo
    with arena.connect() as sock:
        sock.sendall(shake() + b"early")
        head, _, data = read_until(sock, b"early").partition(b"\r\n\r\n")
        assert statuses(head + b" ") == [101]
        assert dict(fields_of(head))[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert data == b"early"
        sock.sendall(INNER)
        assert read_until(sock, INNER) == INNER


def test_b3_a_silent_tunnel_is_ended(arena: Arena) -> None:
    arena.upstream.on_head = echo
    with arena.connect() as sock:
        sock.sendall(shake())
        read_until(sock, b"\r\n\r\n")
        read_all(sock)  # ends, and within our patience
    eventually(lambda: all(item.is_over for item in arena.upstream.connections), "the upstream's side is closed")


def test_b3_a_tunnel_whose_one_side_does_not_read_holds_little(arena: Arena) -> None:
    def pour(received: Received, head: bytes, _rest: bytes) -> None:
        received.sock.sendall(accept(head))
        while True:
            received.sock.sendall(b"x" * 65536)

    arena.upstream.on_head = pour
    before = arena.gateway.rss_bytes()
    with arena.connect() as sock:
        sock.sendall(shake())
        sock.recv(100)
        # The gateway ends the tunnel, since nothing moves: until then it has taken what both kernels' buffers hold.
        eventually(lambda: all(item.is_over for item in arena.upstream.connections), "the tunnel is ended")
        assert arena.gateway.rss_bytes() - before < 2 << 20


def test_b4_websocket_over_http2_if_it_is_advertised(arena: Arena) -> None:
    """Every listener advertises it: no kind has a field by which one could not."""
    arena.upstream.on_head = echo
    with Client2(arena) as peer:
        _, settings = peer.until(SETTINGS)
        assert (8).to_bytes(2, "big") + (1).to_bytes(4, "big") in settings  # RFC 8441 section 3
        fields = head2((b"sec-websocket-version", b"13"), method=b"CONNECT", protocol=b"websocket")
        peer.send(h2.headers(1, fields, end_stream=False))
        flags, head = peer.until(HEADERS, 1)
        assert b"':status': b'200'" in head
        assert not flags & 1
        peer.send(h2.data(1, b"hello"))
        assert peer.until(DATA, 1)[1] == b"hello"
        peer.send(h2.rst_stream(1))
    up = fields_of(arena.upstream.raw.partition(b"\r\n\r\n")[0])
    assert dict(up)[b"upgrade"] == b"websocket"


@pytest.mark.parametrize(
    ("fields", "verdicts"),
    [
        ([(b":method", b"CONNECT"), (b":authority", b"a.test:1")], ("status 405",)),
        (head2(method=b"CONNECT"), ("reset 1",)),
        (head2(method=b"CONNECT", protocol=b"foo"), ("status 501",)),
        (head2(method=b"CONNECT", protocol=b""), ("status 501", "reset 1")),
        (head2(protocol=b"websocket"), ("reset 1",)),
    ],
    ids=["plain", "plain-with-path", "other-protocol", "no-protocol", "GET"],
)
def test_b4_any_other_connect_is_refused(arena: Arena, fields: Fields, verdicts: tuple[str, ...]) -> None:
    with Client2(arena) as peer:
        peer.send(h2.headers(1, fields, end_stream=False))
        assert peer.verdict() in verdicts
        peer.send(h2.headers(3, head2(path=b"/next")))
        assert peer.verdict(3) == "status 200"
    assert sum(arena.rejected().values()) == 1
    assert arena.upstream.targets == [b"/next"]


# --- B5 to B8 ------------------------------------------------------------------------------------------------------

CLAIMS = (
    b"X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\n"
    b"X-Forwarded-Port: 666\r\nX-Forwarded-User: root\r\nForwarded: for=6.6.6.6;host=evil.test\r\n"
    b"X-Real-IP: 6.6.6.6\r\n"
)


def test_b5_what_a_client_says_about_its_address_is_overwritten(arena: Arena) -> None:
    assert statuses(arena.sees_whole(get(b"/", CLAIMS))) == [200]
    found = sent_up(arena)
    for trace in (b"6.6.6.6", b"evil", b"666", b"root", b"https"):
        assert not [pair for pair in found if trace in pair[1]]
    assert [value for name, value in found if name == b"x-forwarded-for"] == [b"127.0.0.1"]
    assert [value for name, value in found if name == b"x-forwarded-proto"] == [b"http"]
    assert [value for name, value in found if name == b"x-forwarded-host"] == [b"a.test"]
    assert [value for name, value in found if name == b"x-real-ip"] == [b"127.0.0.1"]
    assert [value for name, value in found if name == b"forwarded"] == [b"for=127.0.0.1;host=a.test;proto=http"]


@pytest.fixture(scope="module")
def trusting_ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    directory = tmp_path_factory.mktemp("trusting") / "manifests"
    with running(directory, edge="clientIP: {trustedHops: 1}") as arena:
        yield arena


@pytest.fixture
def trusting(trusting_ground: Arena) -> Iterator[Arena]:
    """A gateway behind one proxy that is trusted."""
    trusting_ground.begin()
    yield trusting_ground
    trusting_ground.end()


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        (b"6.6.6.6, 192.0.2.7", b"192.0.2.7"),
        (b"192.0.2.7", b"192.0.2.7"),
        (b"6.6.6.6, [2001:db8::7]:80", b"2001:db8::7"),
        (b"6.6.6.6, unknown", b"127.0.0.1"),
        (b"6.6.6.6, 192.0.2.7\r\nX-Forwarded-For: 192.0.2.8", b"192.0.2.8"),
    ],
)
def test_b5_behind_one_trusted_hop_the_rightmost_address_is_the_client(
    trusting: Arena, chain: bytes, client: bytes
) -> None:
    assert statuses(trusting.sees_whole(get(b"/", b"X-Forwarded-For: " + chain + b"\r\nX-Real-IP: 6.6.6.6\r\n"))) == [
        200
    ]
    found = dict(sent_up(trusting))
    assert found[b"x-real-ip"] == client
    assert found[b"x-forwarded-for"].endswith(b", 127.0.0.1")


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02",
    ],
    ids=["v1", "v1-unknown", "v2"],
)
def test_b6_the_proxy_protocol_is_bad_http(arena: Arena, line: bytes) -> None:
    assert statuses(arena.ask(line + get(CANARY))) == [400]
    assert sum(arena.rejected().values()) == 1
    assert arena.upstream.raw == b""


def test_b7_our_internal_fields_come_from_nobody_else(arena: Arena) -> None:
    arena.upstream.reply = OK.replace(b"\r\n\r\n", b"\r\nX-Datum-Route: x\r\nx-datum-: y\r\n\r\n", 1)
    data = arena.sees_whole(get(b"/", b"X-Datum-Internal: 1\r\nx-dAtum-client: 2\r\nX-Datu: 3\r\n"))
    assert statuses(data) == [200]
    assert b"x-datum-" not in data.lower()
    names = [name for name, _ in sent_up(arena)]
    assert b"x-datu" in names
    assert not [name for name in names if name.startswith(b"x-datum-")]


def test_b8_nothing_is_inflated_on_the_way(arena: Arena) -> None:
    bomb = gzip.compress(bytes(64 << 20), compresslevel=9)
    assert len(bomb) < 1 << 17
    encoding = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(bomb)
    before = arena.gateway.rss_bytes()
    arena.upstream.reply = b"HTTP/1.1 200 OK\r\n" + encoding + b"\r\n" + bomb
    for _ in range(3):
        data = arena.sees_whole(post(encoding, b"Accept-Encoding: gzip\r\n", body=bomb))
        assert data.partition(b"\r\n\r\n")[2] == bomb
        assert re.search(rb"(?i)\r\ncontent-encoding: gzip\r\n", data)
    assert [body for _, body in arena.upstream.requests] == [bomb] * 3
    assert dict(fields_of(arena.upstream.requests[0][0]))[b"content-encoding"] == b"gzip"
    assert arena.gateway.rss_bytes() - before < 4 << 20
