# ruff: noqa: SIM117  # nested contexts stand in the order of the story
"""Who has connected just before the end, of the gateway or of its listener, has been told nothing, and is served."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl

import msgspec
import pytest
import trio
import trio.testing
import trustme

from datum_router.compiler.linker import Linker
from datum_router.model.listener import ClientAuth, Listener, TlsBinding
from datum_router.model.route import Rule
from datum_router.model.snapshot import SnapshotData
from datum_router.reasons import Reason
from datum_router.routing.regex import load_engine
from datum_router_proxy import testing as frames
from datum_router_proxy.channel import PlainChannel
from datum_router_proxy.egress import connection as egress_connection
from datum_router_proxy.server import connection, departed, h1, h2
from datum_router_proxy.server.connection import Unknown
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import H1Client, client, read_all
from datum_router_proxy.testing_manifests import load
from datum_router_proxy.testing_peers import (
    Exchange,
    Gateway,
    bounded,
    gateway,
    make_rule,
    make_service,
    make_snapshot,
    upstream,
)
from datum_router_proxy.wire.http2 import PREFACE

GET = b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n"
HEAD = ((b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"shop.example"))
CA = trustme.CA()
ISSUED = CA.issue_cert("shop.example")
BINDING = TlsBinding(
    hostnames=("shop.example",),
    cert_pem=b"".join(blob.bytes() for blob in ISSUED.cert_chain_pems).decode(),
    key_pem=ISSUED.private_key_pem.bytes().decode(),
)
PLAIN = Listener(name="test")
SECURE = Listener(name="test", tls=(BINDING,), hostnames=("shop.example",))
BOUND: Rule = msgspec.structs.replace(make_rule(), listeners=("test",))
GOAWAY = 7
ANNOUNCED = 2**31 - 1


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"hello")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let newcomers be waited for longer than any test takes, so that no test depends on how fast a machine is."""
    for module in (connection, h1, h2, egress_connection):
        monkeypatch.setattr(module, "NEWCOMER_S", 60.0)


async def connect(
    running: Gateway, listener: Listener, protocol: str = "http/1.1", *, is_known: bool = False
) -> trio.abc.Stream:
    """Connect, over TLS if the listener wants that, and wait until the gateway has taken the connection over."""
    before = len(running.plane._connections)
    raw = await trio.open_tcp_stream("127.0.0.1", running.port)
    stream: trio.abc.Stream = raw
    if listener.tls:
        stream = await shake_hands(raw, protocol, is_known=is_known)
    while len(running.plane._connections) == before:
        await trio.testing.wait_all_tasks_blocked()
    return stream


async def shake_hands(
    raw: trio.SocketStream, protocol: str, *, is_known: bool = False
) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    if is_known:
        CA.issue_cert("client.example").configure_cert(context)
    context.set_alpn_protocols([protocol])
    stream = trio.SSLStream(raw, context, server_hostname="shop.example", https_compatible=True)
    await stream.do_handshake()
    return stream


def assert_served_and_closed(answer: bytes) -> None:
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.endswith(b"hello")


def goaways(got: bytes) -> list[int]:
    return [
        int.from_bytes(payload[:4], "big") for kind, _flags, _stream, payload in frames.parse(got) if kind == GOAWAY
    ]


def take_away(running: Gateway) -> None:
    """Take the listener out of the configuration, with its routes, as a worker does."""
    running.plane.remove_listener("test")
    running.holder.swap(make_snapshot((), ()))


# --- the gateway ends ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("listener", [PLAIN, SECURE], ids=["plain", "tls"])
def test_a_drain_waits_for_a_first_request_and_closes_who_has_had_an_answer(listener: Listener) -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])], listener=listener) as running:
            late, idle = await connect(running, listener), await connect(running, listener)
            await idle.send_all(GET)
            got = b""
            while not got.endswith(b"hello"):
                got += await idle.receive_some(65536)
            running.plane.begin_drain(lameduck_s=0.0, grace_s=8.0)
            assert await read_all(idle) == b"", "it has had its answer, and is idle"
            await late.send_all(GET)
            assert_served_and_closed(await read_all(late))
            await running.drained()

    bounded(main)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_drain_waits_for_a_handshake_that_is_under_way(protocol: str) -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])], listener=SECURE) as running:
            raw = await trio.open_tcp_stream("127.0.0.1", running.port)
            while not running.plane._counts.handshakes:
                await trio.testing.wait_all_tasks_blocked()
            running.plane.begin_drain(lameduck_s=0.0, grace_s=8.0)
            while any(one.is_accepting for one in running.plane._listeners.values()):
                await trio.testing.wait_all_tasks_blocked()
            running.plane._advance()  # a tick, at the moment when there is neither a listener nor a connection
            stream = await shake_hands(raw, protocol)
            if protocol == "h2":
                await stream.send_all(PREFACE + frames.settings() + frames.headers(1, HEAD))
                got = await read_all(stream)
                assert (0, 1) in [(kind, stream_id) for kind, _flags, stream_id, _payload in frames.parse(got)]
                assert goaways(got) == [ANNOUNCED, 1]
            else:
                await stream.send_all(GET)
                assert_served_and_closed(await read_all(stream))
            await running.drained()

    bounded(main)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("listener", [PLAIN, SECURE], ids=["plain", "tls"])
def test_a_drain_announces_the_end_to_a_new_http2_connection_before_it_refuses_streams(listener: Listener) -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])], listener=listener) as running:
            stream = await connect(running, listener, "h2")
            await stream.send_all(PREFACE + frames.settings() + frames.ping())
            got = b""
            while b"12345678" not in got:
                got += await stream.receive_some(65536)
            running.plane.begin_drain(lameduck_s=0.0, grace_s=8.0)
            while goaways(got) != [ANNOUNCED]:
                got += await stream.receive_some(65536)
            await stream.send_all(frames.headers(1, HEAD))
            got += await read_all(stream)
            assert (0, 1) in [(kind, stream_id) for kind, _flags, stream_id, _payload in frames.parse(got)]
            assert goaways(got) == [ANNOUNCED, 1]
            await running.drained()

    bounded(main)


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_who_stays_silent_after_a_handshake_does_not_hold_up_a_drain(protocol: str) -> None:
    async def main() -> None:
        async with gateway(listener=SECURE) as running:
            stream = await connect(running, SECURE, protocol)
            running.plane.begin_drain(lameduck_s=0.0, grace_s=3600.0)
            await read_all(stream)
            await running.drained()

    bounded(main)


def test_who_sends_a_record_of_tls_byte_by_byte_does_not_hold_up_a_drain() -> None:
    async def main() -> None:
        async with gateway(listener=SECURE) as running, trio.open_nursery() as nursery:
            stream = await connect(running, SECURE)
            assert isinstance(stream, trio.SSLStream)
            raw = stream.transport_stream

            async def drip() -> None:
                await raw.send_all(b"\x17\x03\x03\x40\x00")  # the head of a record of 16 KiB
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while True:
                        await raw.send_all(b"x")
                        await trio.sleep(0.05)

            nursery.start_soon(drip)
            running.plane.begin_drain(lameduck_s=0.0, grace_s=3600.0)
            await running.drained()
            assert running.recorder.rejections == [], "no timeout of the first byte has ended it"
            await trio.aclose_forcefully(stream)

    bounded(main)


# --- a listener goes -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("listener", [PLAIN, SECURE], ids=["plain", "tls"])
def test_a_first_request_is_served_by_the_routes_that_its_listener_had(listener: Listener) -> None:
    async def main() -> None:
        async with upstream(hello) as server:
            async with gateway([make_service([server.port])], [BOUND], listener=listener) as running:
                late = await connect(running, listener)
                take_away(running)
                await late.send_all(GET)
                assert_served_and_closed(await read_all(late))

    bounded(main)


@pytest.mark.usefixtures("patience")
def test_a_handshake_that_was_under_way_ends_at_the_routes_that_its_listener_had() -> None:
    async def main() -> None:
        async with upstream(hello) as server:
            async with gateway([make_service([server.port])], [BOUND], listener=SECURE) as running:
                raw = await trio.open_tcp_stream("127.0.0.1", running.port)
                while not running.plane._counts.handshakes:
                    await trio.testing.wait_all_tasks_blocked()
                take_away(running)
                stream = await shake_hands(raw, "http/1.1")
                await stream.send_all(GET)
                assert_served_and_closed(await read_all(stream))

    bounded(main)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("listener", [PLAIN, SECURE], ids=["plain", "tls"])
def test_a_first_http2_request_is_served_by_the_routes_that_its_listener_had(listener: Listener) -> None:
    async def main() -> None:
        async with upstream(hello) as server:
            async with gateway([make_service([server.port])], [BOUND], listener=listener) as running:
                stream = await connect(running, listener, "h2")
                await stream.send_all(PREFACE + frames.settings() + frames.ping())
                got = b""
                while b"12345678" not in got:
                    got += await stream.receive_some(65536)
                take_away(running)
                await stream.send_all(frames.headers(1, HEAD))
                got += await read_all(stream)
                assert [payload for kind, _flags, _stream, payload in frames.parse(got) if kind == 0] == [b"hello"]
                assert goaways(got) == [ANNOUNCED, 1]

    bounded(main)


def test_a_request_that_has_come_on_an_old_connection_is_served_by_the_routes_that_its_listener_had() -> None:
    async def main() -> None:
        async with upstream(hello) as server:
            async with gateway([make_service([server.port])], [BOUND]) as running, client(running.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                assert (await peer.request("GET", "/")).status == 200
                await peer.send("GET", "/other")
                [one] = running.plane._connections
                assert isinstance(one, Unknown)
                assert isinstance(one.channel, PlainChannel)
                one.channel.handle(select.EPOLLIN)  # its task has not had its turn
                take_away(running)
                answer = await peer.receive()
                assert (answer.status, answer.header(b"connection")) == (200, b"close")

    bounded(main)


def test_an_answer_that_was_on_its_way_when_the_listener_went_arrives() -> None:
    second, release = trio.Event(), trio.Event()

    seen = []

    async def app(exchange: Exchange) -> None:
        seen.append(exchange)
        if len(seen) > 1:
            second.set()
            await release.wait()
        await exchange.reply(200, b"hello")

    async def main() -> None:
        async with upstream(app) as server:
            async with gateway([make_service([server.port])], [BOUND]) as running, client(running.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                assert (await peer.request("GET", "/")).status == 200
                await peer.send("GET", "/")  # the same bytes again: it goes upstream without its task
                await second.wait()
                take_away(running)
                release.set()
                answer = await peer.receive()
                assert (answer.status, answer.body) == (200, b"hello")
                assert await read_all(peer.stream) == b""

    bounded(main)


@pytest.mark.usefixtures("patience")
def test_a_service_that_went_with_the_listener_has_nobody_to_serve() -> None:
    linker = Linker(load(), regex=load_engine())

    async def main() -> None:
        async with upstream(hello) as server, gateway() as running:
            service = make_service([server.port])
            before = SnapshotData(version=1, services={service.key: service}, rules=(BOUND,), listeners=(PLAIN,))
            running.holder.swap(linker.link(before))
            late = await connect(running, PLAIN)
            after = linker.link(SnapshotData(version=2))
            running.plane.remove_listener("test")
            running.holder.swap(after)
            await late.send_all(GET)
            answer = await read_all(late)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nconnection: close\r\n" in answer
            assert b"no_healthy_endpoint" in answer
            assert not server.requests

    bounded(main)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("is_required", [True, False])
def test_who_was_asked_for_a_certificate_is_not_served_once_the_listener_has_gone(is_required: bool) -> None:
    ca = CA.cert_pem.bytes().decode()
    asking = msgspec.structs.replace(BINDING, client_auth=ClientAuth(is_required=is_required, ca_pem=ca))
    listener = msgspec.structs.replace(SECURE, tls=(asking,))

    async def main() -> None:
        async with upstream(hello) as server:
            async with gateway([make_service([server.port])], [BOUND], listener=listener) as running:
                late = await connect(running, listener, is_known=is_required)
                raw = await trio.open_tcp_stream("127.0.0.1", running.port)
                while not running.plane._counts.handshakes:
                    await trio.testing.wait_all_tasks_blocked()
                take_away(running)
                for stream in (late, await shake_hands(raw, "http/1.1", is_known=is_required)):
                    await stream.send_all(GET)
                    answer = await read_all(stream)
                    assert answer.startswith(b"HTTP/1.1 503 ")
                    assert b"\r\nconnection: close\r\n" in answer
                assert [event.reason for event in running.recorder.events] == [Reason.DRAINING] * 2
                assert not server.requests

    bounded(main)


@pytest.mark.usefixtures("patience")
def test_who_asks_after_the_routes_are_forgotten_is_told_to_come_back_and_never_404(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(departed, "NEWCOMER_S", 0.0)
    settings = ProxySettings(tls_handshake_timeout_s=0.01, head_timeout_s=0.01)

    async def main() -> None:
        async with upstream(hello) as server:
            async with gateway([make_service([server.port])], [BOUND], settings=settings) as running:
                late = await connect(running, PLAIN)
                take_away(running)
                while running.plane._departed:  # noqa: ASYNC110  # ticks have no event
                    await trio.sleep(0.01)
                await late.send_all(GET)
                answer = await read_all(late)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nretry-after: 1\r\n" in answer
                assert b"\r\nconnection: close\r\n" in answer
                assert [event.reason for event in running.recorder.events] == [Reason.DRAINING]

    bounded(main)


@pytest.mark.usefixtures("patience")
def test_a_listener_that_comes_back_serves_new_connections_by_what_is_in_force() -> None:
    async def other(exchange: Exchange) -> None:
        await exchange.reply(200, b"new")

    async def main() -> None:
        async with upstream(hello) as old, upstream(other) as new:
            async with gateway([make_service([old.port])], [BOUND]) as running:
                late = await connect(running, PLAIN)
                take_away(running)
                running.holder.swap(make_snapshot([make_service([new.port])], [BOUND], [PLAIN]))
                sock = socket.create_server(("127.0.0.1", 0))
                sock.setblocking(False)
                again = sock.getsockname()[1]
                running.plane.add_listener(PLAIN, sock)
                async with client(again, "h1") as peer:
                    answer = await peer.request("GET", "/")
                    assert (answer.body, answer.header(b"connection")) == (b"new", None)
                await late.send_all(GET)
                assert_served_and_closed(await read_all(late))

    bounded(main)
