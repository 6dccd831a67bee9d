"""Inputs to start from: the public corpora where they are at hand, this repository's examples, and a few by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from datum_router.manifests.kinds import OWN_KINDS
from datum_router_files.yamlscan import read_documents
from datum_router_proxy import testing as t

from . import http2
from .manifest import EXAMPLES

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("DATUM_ROUTER_SHARED", REPOSITORY.parent / "shared")) / "corpora"

_REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b?c=d HTTP/1.1\r\nHost: a:80\r\nX: y\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloHEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-T: u\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te, close\r\n\r\n",
    b"GET http://h/p HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: [::1]\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
)
_RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 103 Hints\r\nA: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nuntil the end",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: x\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nframes",
    b"HTTP/1.1 299 \r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n1\r\nz\r\n0\r\nx: y\r\n\r\n",
)
# Records as `http2._frames` reads them; the flags of HEADERS are END_HEADERS (4) and END_STREAM (1).
_CONVERSATIONS = (
    b"\x81\x05\x01\x00",
    b"\x81\x04\x01\x01\x00\x01\x01\x05hello",
    b"\x81\x04\x01\x03\x00\x00\x01\x05hello\x81\x05\x01\x07",
    b"\x81\x05\x01\x00\x81\x05\x03\x09\x03\x00\x01\x04\x00\x00\x00\x08\x06\x00\x00\x08abcdefgh",
    b"\x01\x01\x01\x02\x82\x86\x09\x04\x01\x04\x84\x41\x01a",
    b"\x81\x04\x01\x02\x00\x01\x01\x03abc\x81\x04\x03\x05\x81\x05\x03\x06",
    b"\x81\x04\x01\x04\x00\x00\x01\x05hello\x81\x05\x01\x07\x07\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00",
    b"\x04\x00\x00\x06\x00\x04\x00\x00\x00\x10\x08\x00\x00\x04\x00\x00\x00\x01\x04\x01\x00\x00",
    b"\x81\x04\x01\x08\x00\x00\x01\x05hello\x00\x01\x01\x00",
)


def http1_requests() -> Iterator[bytes]:
    """Give requests, in one piece and in several."""
    for wire in _REQUESTS:
        yield b"\x00" + wire
        yield b"\x20" + wire
    path = SHARED / "http1_public.json"
    if path.exists():
        for case in json.loads(path.read_text()):
            yield b"\x10" + case["raw"].replace("@H@", "a").encode("latin-1")


def http1_responses() -> Iterator[bytes]:
    """Give responses to each of the requests that the target knows."""
    for wire in _RESPONSES:
        for request in range(4):
            yield bytes((0x10, request)) + wire


def http2_server() -> Iterator[bytes]:
    """Give conversations of a client."""
    yield (
        b"\x00" + http2.PREFACE + t.settings() + t.headers(1) + t.headers(3, t.POST, end_stream=False) + t.data(3, b"x")
    )
    for records in _CONVERSATIONS:
        yield bytes((http2.GREETED | http2.RECORDS,)) + records


def http2_client() -> Iterator[bytes]:
    """Give conversations of a server."""
    yield b"\x00" + t.settings() + t.headers(1, http2.OK) + t.headers(3, http2.OK, end_stream=False) + t.data(3, b"x")
    for records in _CONVERSATIONS:
        yield bytes((http2.GREETED | http2.RECORDS,)) + records


def hpack_blocks() -> Iterator[bytes]:
    """Give connections of a few blocks: appendix C.6 of RFC 7541, and the beginnings of the public stories."""
    for blocks in (
        ["828684410f7777772e6578616d706c652e636f6d", "828684be58086e6f2d6361636865"],
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
        ["2082", "3fe11f400161016282", "be"],
        ["100870617373776f726406736563726574"],
    ):
        yield b"".join(bytes((len(block) // 2,)) + bytes.fromhex(block) for block in blocks) + b"\xfb"
    for story in sorted((SHARED / "hpack").glob("*/story_0[03].json")):
        cases = json.loads(story.read_text())["cases"][:4]
        wires = [bytes.fromhex(case["wire"]) for case in cases]
        yield b"".join(bytes((len(wire),)) + wire for wire in wires if len(wire) <= 250)


def manifests_yaml() -> Iterator[bytes]:
    """Give the example manifests, and the constructs of YAML that need care."""
    for path in EXAMPLES:
        yield path.read_bytes()
    yield b"a: &x [1, 2]\nb: *x\nc: {<<: {d: e}, f: g}\n---\nkind: List\nitems:\n- {kind: A}\n"
    yield b"a: !!str 1\nb: |\n  text\nc: >-\n  more\nd: 'it''s'\ne: \"\\ud83d\\ude00\"\n...\n"


def manifests_json() -> Iterator[bytes]:
    """Give the example manifests as JSON, and an empty one of each kind."""
    for path in EXAMPLES:
        for document in read_documents(path.read_bytes(), file=path.name).documents:
            yield msgspec.json.encode(document.raw)
    for number in range(len(EXAMPLES)):
        yield bytes((number,)) + bytes(range(0, 60, 3))
    for kind in OWN_KINDS:
        yield b'{"apiVersion":"router.datum.net/v1alpha1","kind":"%s","metadata":{"name":"x"},"spec":{}}' % (
            kind.kind.encode()
        )


def egress() -> Iterator[bytes]:
    """Yield heads of CONNECT, and destinations by themselves."""
    hosts = ("api.example.test", "API.Example.test.", "[::1]", "[::ffff:10.0.0.1]", "127.0.0.1", "xn--mnchen-3ya.test")
    for host in hosts:
        yield f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        yield f"{host}:443".encode()
    for text in ("0177.0.0.1:80", "2130706433:80", "127.1:80", "u@a.test:80", "a.test:0", "[fe80::1%25eth0]:80"):
        yield text.encode()
    yield b"CONNECT a.test:443 HTTP/1.0\r\nContent-Length: 1\r\n\r\nx"
