"""Outbound traffic through a real data plane: tunnels, requests, TLS, and how they end."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Sequence
from unittest import mock

import h2.events
import pytest
import trio
import trio.testing
import trustme

from datum_router.model.egress import (
    EgressMode,
    EgressProtocol,
    EgressRule,
    EgressTarget,
)
from datum_router.model.policy import RetryPolicy
from datum_router.model.service import UpstreamTls
from datum_router.model.snapshot import SnapshotData
from datum_router.policy.shedding import Shedder
from datum_router_proxy import admission
from datum_router_proxy.egress import connection
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_egress import (
    NAME,
    H2Client,
    Rig,
    allow,
    echo,
    everything,
    http,
    in_trio,
    reply,
    rig,
    until,
)


def rule_for_anything() -> EgressRule:
    return EgressRule(name="default/all", namespace="default", networks=("0.0.0.0/0", "::/0"), priority=2000)


# --- CONNECT ----------------------------------------------------------------------------------------------------------


@in_trio
async def test_a_tunnel_carries_bytes_both_ways_and_each_side_ends_by_itself() -> None:
    async with rig() as made:
        stream = await made.tunnel()
        big = bytes(range(256)) * 4096
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, big)
            received = b""
            while len(received) < len(big):
                received += await stream.receive_some(65_536)
        assert received == big
        assert made.gauge() == {"default/api": 1}
        await stream.send_eof()
        assert await everything(stream) == b""
        await made.recorder.until(lambda: bool(made.tunnels()))
        target, to = f"{NAME}:{made.upstream}", f"127.0.0.1:{made.upstream}"
        assert made.tunnels() == [("h1", target, "routed", "egress:default/api", to, len(big), len(big))]


@in_trio
async def test_bytes_behind_the_head_belong_to_the_tunnel() -> None:
    async with rig() as made, await made.connect() as stream:
        head = f"CONNECT {NAME}:{made.upstream} HTTP/1.0\r\n\r\n".encode()
        for at in range(0, len(head), 7):
            await stream.send_all(head[at : at + 7])
        await stream.send_all(b"first bytes")
        assert (await until(stream, b"first bytes")).endswith(b"\r\n\r\nfirst bytes")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"CONNECT api.example.test:443 HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"CONNECT api.example.test:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b"400"),
        (b"CONNECT api.example.test:443 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"CONNECT api.example.test:443 HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", b"400"),
        (b"CONNECT api.example.test:443 HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", b"400"),
        (b"CONNECT  api.example.test:443 HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"CONNECT api.example.test:443 HTTP/2.0\r\nHost: a\r\n\r\n", b"505"),
        (b"CONNECT " + b"a" * 9000 + b":443 HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
        (b"CONNECT api.example.test:443 HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
    ],
)
@in_trio
async def test_a_head_that_is_bad_is_refused_before_anybody_decides(head: bytes, status: bytes) -> None:
    async with rig() as made:
        async with await made.connect() as stream:
            await stream.send_all(head)
            assert (await until(stream, b"\n")).startswith(b"HTTP/1.1 " + status)
        assert made.decisions() == []


@in_trio
async def test_a_head_that_does_not_end_is_answered_with_408() -> None:
    async with rig(settings=ProxySettings(head_timeout_s=0.05)) as made, await made.connect() as stream:
        await stream.send_all(b"CONNECT api.example")
        assert (await everything(stream)).startswith(b"HTTP/1.1 408 ")


@in_trio
async def test_what_cannot_be_reached_is_502_and_other_addresses_are_tried() -> None:
    async with rig(addresses=("127.0.0.9", "127.0.0.1")) as made:
        stream = await made.tunnel()
        await stream.send_all(b"x")
        assert await stream.receive_some(1) == b"x"
        await stream.aclose()
    once = allow(retry=RetryPolicy(max_retries=0))
    async with rig(once, addresses=("127.0.0.9", "127.0.0.1")) as made, await made.connect() as stream:
        await stream.send_all(f"CONNECT {NAME}:{made.upstream} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (await everything(stream)).startswith(b"HTTP/1.1 502 ")


@in_trio
async def test_silence_ends_a_tunnel() -> None:
    async with rig(allow(idle_s=0.05)) as made:
        stream = await made.tunnel()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)
        assert made.gauge() == {"default/api": 0}
        assert [one[2] for one in made.tunnels()] == ["idle_timeout"]


@in_trio
async def test_a_cut_is_passed_on_as_a_cut() -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        stream.socket.close()

    async with rig(handler=reset) as made:
        stream = await made.tunnel()
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await everything(stream)


# --- TLS only ---------------------------------------------------------------------------------------------------------


def hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("first", "is_carried"),
    [
        (hello(NAME), True),
        (hello(NAME.upper()), True),
        (hello("other.example.test"), False),
        (hello(None), False),
        (b"GET / HTTP/1.1\r\n\r\n", False),
        (b"SSH-2.0-x\r\n", False),
    ],
)
@in_trio
async def test_what_is_allowed_as_tls_has_to_be_tls_for_that_name(first: bytes, is_carried: bool) -> None:
    async with rig(allow(protocols=(EgressProtocol.HTTPS,))) as made:
        stream = await made.tunnel()
        await stream.send_all(first[:4])
        await stream.send_all(first[4:])
        if is_carried:
            assert await until(stream, first) == first
        else:
            assert await everything(stream) == b"\x15\x03\x03\x00\x02\x02\x31"
            assert ("deny", "not_tls") in made.decisions()
        await stream.aclose()


@in_trio
async def test_a_redirected_handshake_goes_where_its_name_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    ca = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(NAME).configure_cert(server)

    async def answer(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, server, server_side=True)
        await stream.send_all(b"hello " + await stream.receive_some(100))
        await stream.aclose()

    client = ssl.create_default_context()
    ca.configure_trust(client)
    async with rig(handler=answer) as made:
        # The address that was meant is somebody else's: the name decides, and only the port is taken.
        monkeypatch.setattr(connection, "original_destination", lambda _channel: ("169.254.169.254", made.upstream))
        raw = await made.connect(EgressMode.TLS)
        stream = trio.SSLStream(raw, client, server_hostname=NAME)
        await stream.send_all(b"you")
        assert await stream.receive_some(100) == b"hello you"
        other = trio.SSLStream(await made.connect(EgressMode.TLS), client, server_hostname="other.example.test")
        with pytest.raises(trio.BrokenResourceError) as caught:
            await other.do_handshake()
        assert "ACCESS_DENIED" in str(caught.value.__cause__)
        await raw.aclose()


@in_trio
async def test_a_redirected_handshake_without_a_name_goes_by_the_address_that_was_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(allow(hostnames=())) as made:
        monkeypatch.setattr(connection, "original_destination", lambda _channel: ("127.0.0.1", made.upstream))
        async with await made.connect(EgressMode.TLS) as stream:
            await stream.send_all(hello(None))
            assert await until(stream, hello(None)[-1:])
        monkeypatch.setattr(connection, "original_destination", lambda _channel: None)
        async with await made.connect(EgressMode.TLS) as stream:
            await stream.send_all(hello(None))
            assert await everything(stream) == b"\x15\x03\x03\x00\x02\x02\x31"
        assert ("deny", "bad_destination") in made.decisions()


# --- requests ---------------------------------------------------------------------------------------------------------


@in_trio
async def test_one_connection_may_ask_for_several_destinations_and_each_is_decided() -> None:
    async with rig(handler=http) as made, await made.connect() as stream:
        for _ in range(3):
            await stream.send_all(
                f"GET http://{NAME}:{made.upstream}/a/../b?c HTTP/1.1\r\nHost: evil.example\r\n"
                "X-Forwarded-For: 10.0.0.7\r\nForwarded: for=10.0.0.7\r\nX-Real-IP: 10.0.0.7\r\n"
                "Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\n"
                "Connection: x-hop\r\nX-Hop: 1\r\n\r\n".encode()
            )
            head, body = await reply(stream)
            assert head.startswith(b"HTTP/1.1 200 ")
            assert body.startswith(b"GET /b?c HTTP/1.1\r\n")
            assert b"host: %b:%d\r\n" % (NAME.encode(), made.upstream) in body.lower()
            told = (b"proxy-", b"x-hop", b"evil", b"forwarded", b"127.0.0.1", b"x-real-ip")
            assert not any(name in body.lower() for name in told)
            await stream.send_all(b"GET http://gone.example.test/ HTTP/1.1\r\nHost: a\r\n\r\n")
            head, body = await reply(stream)
            assert head.startswith(b"HTTP/1.1 403 ")
            assert b"egress_denied: denied_by_default" in body


@pytest.mark.parametrize(
    "request_head",
    [
        "GET http://{to}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET http://{to}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
        "GET http://{to}/ HTTP/1.1\r\n\r\n",
        "GET http://{to}/%2e%2e/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ftp://{to}/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: {to}\r\n\r\n",
    ],
)
@in_trio
async def test_what_is_refused_of_any_client_is_refused_of_a_proxys_client(request_head: str) -> None:
    async with rig(handler=http) as made, await made.connect() as stream:
        await stream.send_all(request_head.format(to=f"{NAME}:{made.upstream}").encode())
        assert (await until(stream, b"\n")).startswith(b"HTTP/1.1 400 ")
        assert made.decisions() == []


@in_trio
async def test_a_redirect_is_the_clients_to_follow_and_is_decided_like_any_request() -> None:
    async def elsewhere(stream: trio.SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send_all(
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/\r\nContent-Length: 0\r\n\r\n"
        )

    async with rig(allow(), rule_for_anything(), handler=elsewhere) as made, await made.connect() as stream:
        await stream.send_all(f"GET http://{NAME}:{made.upstream}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head, _ = await reply(stream)
        assert head.startswith(b"HTTP/1.1 302 ")
        assert b"location: http://169.254.169.254/latest/\r\n" in head.lower()
        await stream.send_all(b"GET http://169.254.169.254/latest/ HTTP/1.1\r\nHost: a\r\n\r\n")
        head, body = await reply(stream)
        assert head.startswith(b"HTTP/1.1 403 ")
        assert b"closed_address" in body


GET = f"GET http://{NAME}:{{port}}/ HTTP/1.1\r\nHost: a\r\n\r\n"
CONNECT = f"CONNECT {NAME}:{{port}} HTTP/1.1\r\nHost: a\r\n\r\n"
POST = f"POST http://{NAME}:{{port}}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nCONNECT "


async def http_or_echo(stream: trio.SocketStream) -> None:
    """Answer a request with 204, and give back anything else."""
    while first := await stream.receive_some(65_536):
        if first.startswith((b"GET ", b"POST ")):
            while not first.endswith((b"\r\n\r\n", b"CONNECT ")):
                first += await stream.receive_some(65_536)
            await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            await stream.send_all(first)
            await echo(stream)
            return


@pytest.mark.parametrize(
    "pieces",
    [
        (GET, CONNECT),
        (GET, GET, CONNECT),
        (POST, CONNECT),
        (GET, f"\r\n{CONNECT}"),
        (GET, CONNECT[:4], CONNECT[4:12], CONNECT[12:]),
        (GET + CONNECT,),
        (POST + CONNECT,),
        (f"\r\n{CONNECT}",),
    ],
    ids=["request", "requests", "body", "empty-line", "in-pieces", "pipelined", "pipelined-body", "nothing-before"],
)
@in_trio
async def test_connect_is_served_behind_requests_as_on_a_fresh_connection(pieces: Sequence[str]) -> None:
    async with rig(handler=http_or_echo) as made, await made.connect() as stream:
        *before, last = [piece.format(port=made.upstream).encode() for piece in pieces]
        for piece in before:
            await stream.send_all(piece)
            if piece.startswith((b"GET", b"POST")):
                assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
            else:
                await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(last + b"first bytes")
        assert (await until(stream, b"first bytes")).endswith(b" 200 Connection Established\r\n\r\nfirst bytes")
        await stream.send_eof()
        assert await everything(stream) == b""
        await made.recorder.until(lambda: bool(made.tunnels()))
        assert made.tunnels()[0][5:] == (11, 11)


@in_trio
async def test_connect_behind_requests_is_decided_by_itself_and_its_head_has_its_time() -> None:
    settings = ProxySettings(head_timeout_s=0.05)
    for asked, status in (
        ("CONNECT other.example.test:443 HTTP/1.1\r\nHost: a\r\n\r\n", b"403"),
        (f"{CONNECT[:-4]}\r\nContent-Length: 1\r\n\r\nx", b"400"),
        (CONNECT[:-4], b"408"),
    ):
        async with rig(handler=http_or_echo, settings=settings) as made, await made.connect() as stream:
            await stream.send_all(GET.format(port=made.upstream).encode())
            await until(stream, b"\r\n\r\n")
            await stream.send_all(asked.format(port=made.upstream).encode())
            assert (await everything(stream)).startswith(b"HTTP/1.1 " + status)


@in_trio
async def test_a_request_leaves_by_tls_where_the_destination_says_so() -> None:
    ca = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("real.example.test").configure_cert(server)
    seen: list[str] = []
    server.sni_callback = lambda _object, name, _context: seen.append(name)

    async def secured(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, server, server_side=True, https_compatible=True)
        try:
            await until(stream, b"\r\n\r\n")
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        except trio.BrokenResourceError:
            return  # a client that does not trust us

    async with rig(allow(), handler=secured) as made:
        for tls, status in (
            (UpstreamTls(server_name="real.example.test", ca_pem=ca.cert_pem.bytes().decode()), b"200"),
            (UpstreamTls(server_name="other.example.test", ca_pem=ca.cert_pem.bytes().decode()), b"502"),
            (UpstreamTls(server_name="real.example.test"), b"502"),
        ):
            made.use(allow(hostnames=(), targets=(EgressTarget(host=NAME, port=made.upstream, tls=tls),)))
            async with await made.connect() as stream:
                await stream.send_all(f"GET http://{NAME}:{made.upstream}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                head, body = await reply(stream)
                assert head.startswith(b"HTTP/1.1 " + status), body
        assert seen[0] == "real.example.test"


# --- the decision in its place ----------------------------------------------------------------------------------


async def status_of(made: Rig, target: str = "") -> bytes:
    async with await made.connect() as stream:
        target = target or f"{NAME}:{made.upstream}"
        await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return (await stream.receive_some(65_536))[9:12]


@in_trio
async def test_a_rate_limit_lets_a_burst_through_and_no_more() -> None:
    async with rig(allow(rate=0.001, burst=2)) as made:
        assert [await status_of(made) for _ in range(3)] == [b"200", b"200", b"429"]
        assert ("deny", "rate_limited") in made.decisions()


@in_trio
async def test_our_own_listeners_are_no_destination() -> None:
    async with rig() as made:
        assert await status_of(made, f"{NAME}:{made.proxy}") == b"403"
        assert made.decisions() == [("deny", "own_listener")]


@in_trio
async def test_nothing_passes_without_a_policy_or_from_nobody() -> None:
    async with rig(source="other/") as made:
        assert await status_of(made) == b"403"
        assert made.decisions() == [("deny", "no_policy")]
    async with rig(source="") as made:
        assert await status_of(made) == b"403"
        assert made.decisions() == [("deny", "unknown_source")]
    async with rig() as made:
        made.holder.current.data = SnapshotData(version=2, digest="y")
        assert await status_of(made) == b"403"
        assert made.decisions() == [("deny", "no_policy")]


@in_trio
async def test_each_denial_is_a_line_in_the_log_and_what_is_allowed_where_it_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="datum_router_proxy.egress.desk")
    async with rig() as made:
        assert await status_of(made) == b"200"
        assert await status_of(made, "other.example.test:443") == b"403"
    (line,) = [one for one in caplog.records if one.message == "egress decision"]
    assert (line.verdict, line.reason, line.destination) == (  # type: ignore[attr-defined]  # extra fields
        "deny",
        "denied_by_default",
        "other.example.test:443",
    )
    caplog.clear()
    async with rig(allow(is_logged=True)) as made:
        assert await status_of(made) == b"200"
    (line,) = [one for one in caplog.records if one.message == "egress decision"]
    assert (line.verdict, line.egress, line.addresses, line.source) == (  # type: ignore[attr-defined]  # as above
        "allow",
        "default/api",
        "127.0.0.1",
        "default/",
    )


@in_trio
async def test_a_drain_waits_for_what_a_new_connection_asks() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "NEWCOMER_S", 60.0)
        async with rig() as made, await made.connect() as stream:
            while not made.plane.stats()["connections"]:
                await trio.testing.wait_all_tasks_blocked()
            made.plane.begin_drain(lameduck_s=0.0, grace_s=8.0)
            await stream.send_all(f"CONNECT {NAME}:{made.upstream} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await stream.send_all(b"ping")
            assert await until(stream, b"ping") == b"ping"


@in_trio
async def test_a_drain_lets_tunnels_go_on_until_the_grace_ends() -> None:
    async with rig() as made:
        stream = await made.tunnel()
        made.plane.begin_drain(lameduck_s=0.0, grace_s=0.6)
        await stream.send_all(b"still there")
        assert await until(stream, b"there") == b"still there"
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)


# --- HTTP/2 with prior knowledge --------------------------------------------------------------------------------


@in_trio
async def test_one_http2_connection_carries_tunnels_and_requests() -> None:
    async def both(stream: trio.SocketStream) -> None:
        first = await stream.receive_some(3)
        if first == b"GET":
            await until(stream, b"\r\n\r\n")
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        else:
            await stream.send_all(first)
            await echo(stream)

    async with rig(allow(), handler=both) as made:
        target = f"{NAME}:{made.upstream}"
        client = H2Client(await made.connect())
        one = await client.request((":method", "CONNECT"), (":authority", target.upper()))
        two = await client.request((":method", "CONNECT"), (":authority", target))
        assert [await client.status(one), await client.status(two)] == [b"200", b"200"]
        assert made.gauge() == {"default/api": 2}
        for number, text in ((one, b"first tunnel"), (two, b"second tunnel")):
            client.engine.send_data(number, text)
            await client.flush()
            assert await client.data(number, len(text)) == text
        for path in ("/a", "/b"):
            get = await client.request(
                (":method", "GET"), (":scheme", "http"), (":authority", target), (":path", path), end=True
            )
            assert await client.status(get) == b"200"
            assert await client.data(get, 2) == b"ok"
        client.engine.end_stream(one)
        await client.flush()
        await client.next(h2.events.StreamEnded, one)
        client.engine.reset_stream(two)
        await client.flush()
        await made.recorder.until(lambda: len(made.tunnels()) == 2)
        assert [(one[0], one[2], one[5], one[6]) for one in made.tunnels()] == [
            ("h2", "routed", 12, 12),
            ("h2", "downstream_reset", 13, 13),
        ]
        assert made.gauge() == {"default/api": 0}


def extended(protocol: str) -> tuple[tuple[str, str], ...]:
    """Return the head of an extended CONNECT (RFC 8441)."""
    pseudo = ((":protocol", protocol), (":scheme", "http"), (":authority", f"{NAME}:1"), (":path", "/"))
    return ((":method", "CONNECT"), *pseudo)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (((":method", "CONNECT"), (":authority", "other.example.test:443")), b"403"),
        (((":method", "CONNECT"), (":authority", NAME)), b"400"),
        (((":method", "CONNECT"), (":authority", "u@api.example.test:443")), b"400"),
        (((":method", "CONNECT"), (":authority", "0177.0.0.1:443")), b"400"),
        (((":method", "CONNECT"), (":authority", f"{NAME}:0443")), b"400"),
        (((":method", "CONNECT"), (":authority", f"{NAME}.:443")), b"502"),
        (((":method", "CONNECT"), (":authority", f"{NAME}:1")), b"502"),
        (((":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", "/")), b"400"),
        (extended("foo"), b"501"),
        (extended("connect-udp"), b"501"),
        (extended("websocket"), b"501"),  # of no version
        (((":method", "GET"), (":scheme", "http"), (":authority", "other.example.test"), (":path", "/")), b"403"),
    ],
)
@in_trio
async def test_what_is_refused_over_http2(fields: tuple[tuple[str, str], ...], status: bytes) -> None:
    async with rig() as made:
        client = H2Client(await made.connect())
        assert await client.status(await client.request(*fields, end=fields[0][1] == "GET")) == status


@pytest.mark.parametrize(
    "fields",
    [
        ((":method", "CONNECT"), (":authority", NAME), (":path", "/")),
        ((":method", "CONNECT"), (":authority", NAME), (":scheme", "http")),
        ((":method", "CONNECT"),),
        ((":method", "CONNECT"), (":authority", f"{NAME}:443"), ("content-length", "3")),
    ],
)
@in_trio
async def test_a_malformed_connect_is_a_stream_error(fields: tuple[tuple[str, str], ...]) -> None:
    async with rig() as made:
        client = H2Client(await made.connect())
        await client.next(h2.events.StreamReset, await client.request(*fields))
        assert made.decisions() == []


@pytest.mark.parametrize(("name", "is_carried"), [(NAME, True), ("other.example.test", False)])
@in_trio
async def test_what_is_allowed_as_tls_has_to_be_tls_over_http2_too(name: str, is_carried: bool) -> None:
    async with rig(allow(protocols=(EgressProtocol.TLS,))) as made:
        client = H2Client(await made.connect())
        number = await client.request((":method", "CONNECT"), (":authority", f"{NAME}:{made.upstream}"))
        assert await client.status(number) == b"200"
        first = hello(name)
        client.engine.send_data(number, first)
        await client.flush()
        if is_carried:
            assert await client.data(number, len(first)) == first
        else:
            await client.next(h2.events.StreamReset, number)
            assert ("deny", "not_tls") in made.decisions()


@in_trio
async def test_an_http2_tunnel_stops_reading_a_client_whose_upstream_takes_nothing() -> None:
    held = trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await held.wait()
        await echo(stream)

    async with rig(handler=slow) as made:
        client = H2Client(await made.connect())
        number = await client.request((":method", "CONNECT"), (":authority", f"{NAME}:{made.upstream}"))
        assert await client.status(number) == b"200"
        sent = 0
        with trio.move_on_after(0.5):
            while sent < 64 * 1024 * 1024:
                window = min(client.engine.local_flow_control_window(number), 16_384)
                if not window:
                    await client.next(h2.events.WindowUpdated, number)
                    continue
                client.engine.send_data(number, bytes(window))
                sent += window
                await client.flush()
        assert sent < 16 * 1024 * 1024, "the kernel's buffers and one window, and no more"
        held.set()


# --- what the pipeline does for requests --------------------------------------------------------------------------


@in_trio
async def test_a_request_is_tried_at_the_other_addresses_that_are_allowed() -> None:
    async with rig(handler=http, addresses=("127.0.0.9", "127.0.0.1")) as made, await made.connect() as stream:
        for _ in range(2):
            await stream.send_all(f"GET http://{NAME}:{made.upstream}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            head, _ = await reply(stream)
            assert head.startswith(b"HTTP/1.1 200 ")


@in_trio
async def test_a_body_goes_with_its_request_and_idle_connections_do_not_outlive_a_sweep() -> None:
    bodies: list[bytes] = []

    async def take(stream: trio.SocketStream) -> None:
        head = await until(stream, b"hello body")
        bodies.append(head.partition(b"\r\n\r\n")[2])
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        await everything(stream)

    async with rig(handler=take) as made:
        async with await made.connect() as stream:
            await stream.send_all(
                f"POST http://{NAME}:{made.upstream}/ HTTP/1.1\r\nHost: a\r\n".encode()
                + b"Content-Length: 10\r\n\r\nhello body"
            )
            assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
        assert bodies == [b"hello body"]
        assert made.plane.stats()["upstream_connections"] == 1
        made.plane._transport.sweep(made.holder.current)
        assert made.plane.stats()["upstream_connections"] == 0


@in_trio
async def test_a_websocket_passes_as_a_request() -> None:
    async def accept(stream: trio.SocketStream) -> None:
        head = await until(stream, b"\r\n\r\n")
        key = head.lower().partition(b"sec-websocket-key: ")[2].partition(b"\r\n")[0]
        assert key == b"dGhlIHNhbXBsZSBub25jZQ==".lower()
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        await stream.send_all(await stream.receive_some(100))
        await stream.aclose()

    async with rig(handler=accept) as made, await made.connect() as stream:
        await stream.send_all(
            f"GET http://{NAME}:{made.upstream}/chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        frame = b"\x81\x82\x00\x00\x00\x00hi"
        await stream.send_all(frame)
        assert await until(stream, frame) == frame


class Unmoved(Shedder):
    """A controller that keeps to what it was told."""

    __slots__ = ()

    def note(self, age_s: float, now: float) -> None:
        pass


@in_trio
async def test_what_is_not_let_in_is_not_looked_at_and_told_later() -> None:
    with mock.patch.object(admission, "Shedder", Unmoved), mock.patch.object(admission, "HOLD_S", 0.001):
        async with rig() as made:
            shedder = made.plane.admission.shedder
            shedder.share, shedder.is_shedding = 0.0, True
            target = f"{NAME}:{made.upstream}"
            tunnel = await made.connect()
            await tunnel.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            assert (await everything(tunnel)).startswith(b"HTTP/1.1 503 ")
            plain = await made.connect()
            await plain.send_all(
                f"GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n".encode()
            )
            assert b"overloaded: the router has more to do than it can" in await everything(plain)
            client = H2Client(await made.connect())
            head = ((":method", "CONNECT"), (":authority", target))
            assert await client.status(await client.request(*head)) == b"503"
            assert made.decisions() == []
            shedder.is_shedding = False
            assert await client.status(await client.request(*head)) == b"200"
