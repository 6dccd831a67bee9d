"""Our HTTP/1.1 engine and llhttp see the same messages, in both roles: on a corpus, on mutations, in any split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from fuzz_targets import llhttp, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router_proxy.wire.http1 import Role

CORPUS = {
    Role.SERVER: [seed[1:] for seed in seeds.http1_requests()],
    Role.CLIENT: [seed[2:] for seed in seeds.http1_responses()],
}
DEVIATING = {
    "later minor version": (Role.SERVER, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    "unknown method": (Role.SERVER, b"FOOBAR / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "framing field in a trailer section": (
        Role.SERVER,
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 4\r\n\r\n",
    ),
    "proxy-connection: close": (
        Role.SERVER,
        b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    "interim response that says close": (
        Role.CLIENT,
        b"HTTP/1.1 103 Hints\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    llhttp.BODY_WHERE_NONE_CAN_BE: (
        Role.CLIENT,
        b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    llhttp.UPGRADE_WITH_BODY: (
        Role.SERVER,
        b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 4\r\n\r\nabcd",
    ),
}


@pytest.mark.parametrize(
    ("role", "wire"),
    [pytest.param(role, wire, id=f"{role.value}-{n}") for role in Role for n, wire in enumerate(CORPUS[role])],
)
def test_corpus_case(role: Role, wire: bytes) -> None:
    llhttp.compare(role, wire)
    llhttp.compare(role, wire, [wire[i : i + 1] for i in range(len(wire))])


@pytest.mark.parametrize("name", [*llhttp.DEVIATIONS, llhttp.BODY_WHERE_NONE_CAN_BE, llhttp.UPGRADE_WITH_BODY])
def test_each_deviation_is_real(name: str) -> None:
    role, wire = DEVIATING[name]
    assert llhttp.compare(role, wire) == name


# --- messages made, and spoilt ---------------------------------------------------------------------------------

FIELDS = st.sampled_from(
    [
        b"A: b\r\n", b"A:\tb \r\n", b"Empty:\r\n", b"X: \xe9\r\n", b"Accept: */*\r\n", b"TE: trailers\r\n",
        b"X_Y: z\r\n",
        b"Expect: 100-continue\r\n", b"Connection: keep-alive\r\n", b"Connection: x, y\r\n", b"Content-Type: a/b\r\n",
        b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Trailer: x-t\r\n",
        b"!#$%&'*+-.^`|~: v\r\n",
        b"Date: Sat, 28 Nov 2026 15:00:00 GMT\r\n", b"Set-Cookie: a=b; c\r\n", b"X: \"a\\\"b\"\r\n",
        b"Keep-Alive: 5\r\n",
        b"Proxy-Connection: close\r\n", b"X: a  b\tc\r\n",
    ]
)  # fmt: skip
BODIES = st.sampled_from(
    [
        (b"", b""),
        (b"", b""),
        (b"Content-Length: 5\r\n", b"hello"),
        (b"Content-Length: 005\r\n", b"hello"),
        (b"Content-Length:0\r\n", b""),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n00\r\n\r\n"),
        (b"transfer-encoding:Chunked\r\n", b"0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"5;a=b;c\r\nhello\r\n1\r\n!\r\n0\r\nX-T: u\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b'5;a="b c"\r\nhello\r\n0;x\r\n\r\n'),
        (b"Transfer-Encoding: chunked\r\n", b"A\r\n0123456789\r\n0\r\nX-T: u\r\nContent-Length: 9\r\nY: \r\n\r\n"),
    ]
)
METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"])
TARGETS = st.sampled_from(
    [b"/", b"/a?b=c", b"http://h/x", b"/%2e%2e/", b"/a//b;c?d?e", b"/~!$&'()*+,=:@", b"https://h:8/?x"]
)
STATUSES = st.sampled_from(
    [
        b"200 OK",
        b"404 Not Found",
        b"299 ",
        b"500 Oh no",
        b"204 None",
        b"304 Same",
        b"100 Continue",
        b"103 Hints",
        b"200",
    ]
)
FRAGMENTS = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x00", b"\xff", b"0", b"5", b"a", b";", b",", b'"', b"GET ",
    b"HTTP/1.1", b"HTTP/1.0",
    b"Content-Length: 5\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Connection: close\r\n", b"Host: b\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"\r\n\r\n", b" folded\r\n",
    b"x: y\r\n", b"chunked", b"-1",
    b"HTTP/1.1 204 No\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
]  # fmt: skip


@st.composite
def pipelines(draw: st.DrawFn, role: Role) -> bytes:
    """One to three messages."""
    wire = b""
    for _ in range(draw(st.integers(1, 3))):
        line, body = draw(BODIES)
        lines = [line, *draw(st.lists(FIELDS, max_size=4))]
        if role is Role.SERVER:
            wire += draw(st.sampled_from([b"", b"", b"\r\n"])) + draw(METHODS) + b" " + draw(TARGETS)
            wire += draw(st.sampled_from([b" HTTP/1.1\r\n", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"]))
            lines.append(b"Host: h\r\n")
        else:
            wire += draw(st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.1 ", b"HTTP/1.0 "])) + draw(STATUSES) + b"\r\n"
        wire += b"".join(draw(st.permutations(lines))) + b"\r\n" + body
    return wire


@st.composite
def spoilt(draw: st.DrawFn, role: Role) -> bytes:
    """Messages of `pipelines` or of the corpus after up to three edits."""
    wire = draw(pipelines(role) | st.sampled_from(CORPUS[role]))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(wire)))
        match draw(st.integers(0, 3)):
            case 0:
                wire = wire[:at] + draw(st.sampled_from(FRAGMENTS)) + wire[at:]
            case 1:
                wire = wire[:at] + wire[at + draw(st.integers(1, 6)) :]
            case 2:
                wire = wire[:at] + bytes((draw(st.integers(0, 255)),)) + wire[at + 1 :]
            case _:
                end = at + draw(st.integers(1, 40))
                wire = wire[:end] + wire[at:end] + wire[end:]
    return wire


def pieces(wire: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    return [wire[start:end] for start, end in pairwise(bounds)]


CUTS = st.lists(st.integers(0, 1_000), max_size=8)


@settings(max_examples=400)
@given(wire=spoilt(Role.SERVER), cuts=CUTS)
def test_requests_are_seen_alike(wire: bytes, cuts: list[int]) -> None:
    llhttp.compare(Role.SERVER, wire, pieces(wire, cuts))


@settings(max_examples=400)
@given(wire=spoilt(Role.CLIENT), cuts=CUTS)
def test_responses_are_seen_alike(wire: bytes, cuts: list[int]) -> None:
    llhttp.compare(Role.CLIENT, wire, pieces(wire, cuts))


# --- the comparison itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_most_of_the_corpus_that_we_accept_is_seen_alike_without_a_deviation(role: Role) -> None:
    accepted = [wire for wire in CORPUS[role] if llhttp.ours(role, wire, [wire]).messages]
    assert len(accepted) >= 20
    alike = [wire for wire in accepted if llhttp.compare(role, wire) is None]
    assert len(alike) >= 0.8 * len(accepted)


def test_offsets_and_trailers_are_compared() -> None:
    first = b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-T: u\r\n\r\n"
    wire = first + b"GET /y HTTP/1.1\r\nHost: h\r\n\r\n"
    for sight in (llhttp.ours(Role.SERVER, wire, [wire]), llhttp.theirs(Role.SERVER, wire)):
        assert [message.end for message in sight.messages] == [len(first), len(wire)]
        assert sight.messages[0].trailers == ((b"x-t", b"u"),)
        assert (sight.messages[0].body, sight.refusal, sight.is_last) == (b"hello", "", False)


def test_a_boundary_seen_elsewhere_is_noticed() -> None:
    one = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    other = one.replace(b"hello", b"hell!")
    with pytest.raises(AssertionError):
        llhttp.compare(Role.SERVER, one, [other])
    with pytest.raises(AssertionError):
        llhttp.compare(Role.SERVER, b"GET / HTTP/1.1\r\nHost h\r\n\r\n", [one])
