# ruff: noqa: SIM117  # nested contexts stand in the order of the story
"""The data plane as a whole: time limits, drain, TLS, memory, what remains afterwards."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import ssl

import pytest
import trio
import trio.testing
import trustme

from datum_router.errors import ConfigError
from datum_router.model.listener import Listener, TlsBinding
from datum_router.model.service import UpstreamProtocol
from datum_router.reasons import Reason
from datum_router_proxy import testing as frames
from datum_router_proxy.channel import PlainChannel
from datum_router_proxy.plugin import datum_router_data_planes, datum_router_health_checks, datum_router_plugin_info
from datum_router_proxy.server.connection import Unknown
from datum_router_proxy.server.drain import DrainPlan, Phase
from datum_router_proxy.settings import ProxySettings, from_text
from datum_router_proxy.testing_clients import H1Client, H2Client, client, read_all
from datum_router_proxy.testing_peers import (
    Exchange,
    bounded,
    gateway,
    make_service,
    upstream,
)
from datum_router_proxy.wire.http2 import PREFACE


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"hello")


def issue(name: str) -> tuple[trustme.CA, TlsBinding]:
    ca = trustme.CA()
    issued = ca.issue_cert(name)
    return ca, TlsBinding(
        hostnames=(name,),
        cert_pem=b"".join(blob.bytes() for blob in issued.cert_chain_pems).decode(),
        key_pem=issued.private_key_pem.bytes().decode(),
    )


# --- time limits ---------------------------------------------------------------------------------------------------


def test_silent_connection_is_closed_without_a_word() -> None:
    async def main() -> None:
        async with gateway(settings=ProxySettings(first_byte_timeout_s=0.1)) as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            assert await read_all(stream) == b""

    bounded(main)


def test_slow_head_is_408_however_steadily_it_drips() -> None:
    async def main() -> None:
        async with gateway(settings=ProxySettings(head_timeout_s=0.3)) as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            started = trio.current_time()
            with contextlib.suppress(trio.BrokenResourceError):
                for byte in b"GET / HTTP/1.1\r\nhost: " + b"a" * 1000:
                    await stream.send_all(bytes((byte,)))
                    await trio.sleep(0.02)
            await trio.aclose_forcefully(stream)
            assert trio.current_time() - started < 3
            assert ("h1", Reason.HEAD_TIMEOUT) in running.recorder.rejections

    bounded(main)


def test_idle_keep_alive_connection_is_closed() -> None:
    async def main() -> None:
        settings = ProxySettings(keep_alive_timeout_s=0.5)
        async with upstream(hello) as server, gateway([make_service([server.port])], settings=settings) as running:
            async with client(running.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                assert (await peer.request("GET", "/")).status == 200
                assert await read_all(peer.stream) == b""
            async with client(running.port, "h2") as peer:
                assert isinstance(peer, H2Client)
                assert (await peer.request("GET", "/")).status == 200
                await peer.closed.wait()
                assert peer.goaway

    bounded(main)


@pytest.mark.parametrize("down", ["h1", "h2"])
def test_silent_body_is_408_and_the_upstream_is_aborted(down: str) -> None:
    async def main() -> None:
        settings = ProxySettings(body_idle_timeout_s=0.2)
        async with upstream(hello) as server, gateway([make_service([server.port])], settings=settings) as running:
            async with client(running.port, down) as peer:
                length = [(b"content-length", b"1000")]
                if isinstance(peer, H1Client):
                    await peer.send("POST", "/", length, b"x", end=False)
                    answer = await peer.receive()
                else:
                    stream_id = await peer.open("POST", "/", length, end=False)
                    await peer.send(stream_id, b"x")
                    answer = await peer.receive(stream_id)
                assert answer.status == 408
                assert b"body_timeout" in answer.body

    bounded(main)


def test_client_that_takes_nothing_is_cut_after_its_limit() -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.head(200)
        while True:
            await exchange.data(bytes(65536))

    async def main() -> None:
        settings = ProxySettings(write_timeout_s=0.3)
        async with upstream(endless) as server, gateway([make_service([server.port])], settings=settings) as running:
            async with client(running.port, "h1") as peer:
                await peer.send("GET", "/")  # type: ignore[union-attr]
                await running.recorder.until(lambda: bool(running.recorder.events))
                assert running.recorder.events[0].reason is Reason.WRITE_TIMEOUT
            async with client(running.port, "h2") as peer:
                assert isinstance(peer, H2Client)
                peer.auto_acknowledge = False
                stream_id = await peer.open("GET", "/", end=True)
                await peer.until(lambda: stream_id in peer.resets)

    bounded(main)


# --- protocols -----------------------------------------------------------------------------------------------------


def test_garbage_is_400_counted_and_closed() -> None:
    async def main() -> None:
        async with gateway() as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            await stream.send_all(b"PRI \x00\r\n\r\n")
            answer = await read_all(stream)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert running.recorder.rejections == [("h1", Reason.BAD_REQUEST_LINE)]

    bounded(main)


def test_http2_preface_on_a_listener_without_it_is_refused() -> None:
    async def main() -> None:
        async with gateway(listener=Listener(name="test", alpn=("http/1.1",))) as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert (await read_all(stream))[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 505 ")

    bounded(main)


def test_http2_preface_in_pieces_is_recognised() -> None:
    async def main() -> None:
        async with gateway(rules=[]) as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            for part in (b"PRI * HT", b"TP/2.0\r\n\r\n", b"SM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"):
                await stream.send_all(part)
            assert (await stream.receive_some(9))[3] == 4  # SETTINGS
            await stream.aclose()

    bounded(main)


async def shake_hands(raw: trio.SocketStream, ca: trustme.CA, protocol: str) -> trio.SSLStream[trio.SocketStream]:
    """Make a connection one of TLS with shop.example that has agreed on a protocol."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    context.set_alpn_protocols([protocol])
    stream = trio.SSLStream(raw, context, server_hostname="shop.example")
    await stream.do_handshake()
    assert stream.selected_alpn_protocol() == protocol
    return stream


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_alpn_decides_under_tls_and_foreign_hosts_are_421(protocol: str) -> None:
    ca, binding = issue("shop.example")
    listener = Listener(name="test", tls=(binding,), hostnames=("shop.example",))

    async def main() -> None:
        async with upstream(hello) as server:
            async with gateway([make_service([server.port])], listener=listener) as running:
                raw = await trio.open_tcp_stream("127.0.0.1", running.port)
                stream = await shake_hands(raw, ca, protocol)
                if protocol == "h2":
                    peer = H2Client(stream)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(peer.pump)
                        await peer.settings.wait()
                        assert (await peer.request("GET", "/")).body == b"hello"
                        nursery.cancel_scope.cancel()
                else:
                    await stream.send_all(b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n")
                    got = b""
                    while not got.endswith(b"hello"):
                        got += await stream.receive_some(10_000)
                    assert got.startswith(b"HTTP/1.1 200 ")
                    await stream.send_all(b"GET / HTTP/1.1\r\nhost: other.example\r\n\r\n")
                    assert (await stream.receive_some(10_000)).startswith(b"HTTP/1.1 421 ")
                    assert server.requests[0].header(b"x-forwarded-proto") == b"https"
                await trio.aclose_forcefully(raw)

    bounded(main)


# --- drain ---------------------------------------------------------------------------------------------------------


def test_drain_phases_follow_the_timetable() -> None:
    plan = DrainPlan(began_at=100.0, lameduck_s=5.0, grace_s=30.0)
    assert [plan.phase(now) for now in (100.0, 104.9, 105.0, 134.9, 135.0)] == [
        Phase.LAMEDUCK, Phase.LAMEDUCK, Phase.FINISHING, Phase.FINISHING, Phase.CUTTING,
    ]  # fmt: skip


def test_lameduck_serves_on_and_says_goodbye() -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, "h1") as old, client(running.port, "h2") as old2:
                assert (await old.request("GET", "/")).header(b"connection") is None
                running.plane.begin_drain(lameduck_s=0.6, grace_s=5.0)
                assert isinstance(old2, H2Client)
                await old2.until(lambda: old2.goaway == [2**31 - 1])
                answer = await old.request("GET", "/")
                assert (answer.status, answer.header(b"connection")) == (200, b"close")
                async with client(running.port, "h1") as new:
                    answer = await new.request("GET", "/")
                    assert (answer.status, answer.header(b"connection")) == (200, b"close")
                await old2.closed.wait()
                assert old2.goaway[-1] < 2**31 - 1
                await running.drained()
                with pytest.raises(OSError, match="all attempts"):
                    await trio.open_tcp_stream("127.0.0.1", running.port)

    bounded(main)


def test_who_was_accepted_in_the_last_moment_is_served() -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, "h1") as late, client(running.port, "h1") as silent:
                while len(running.plane._connections) < 2:
                    await trio.testing.wait_all_tasks_blocked()
                running.plane.begin_drain(lameduck_s=0.0, grace_s=5.0)
                answer = await late.request("GET", "/")
                assert (answer.status, answer.header(b"connection")) == (200, b"close")
                assert isinstance(silent, H1Client)
                assert await read_all(silent.stream) == b"", "it has had its time"
                await running.drained()

    bounded(main)


@pytest.mark.parametrize("down", ["h1"])
def test_drain_finishes_what_is_under_way(down: str) -> None:
    arrived = trio.Event()
    release = trio.Event()

    async def app(exchange: Exchange) -> None:
        arrived.set()
        await release.wait()
        await exchange.reply(200, b"late")

    async def main() -> None:
        async with upstream(app) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, down) as peer, client(running.port, "h1") as idle:
                answers = []

                async def ask() -> None:
                    answers.append(await peer.request("GET", "/"))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    await arrived.wait()
                    running.plane.begin_drain(lameduck_s=0.0, grace_s=5.0)
                    assert isinstance(idle, H1Client)
                    assert await read_all(idle.stream) == b"", "idle connections are closed"
                    assert not running.is_done.is_set()
                    release.set()
                assert (answers[0].status, answers[0].body) == (200, b"late")
                await running.drained()

    bounded(main)


def test_a_listener_that_goes_ends_its_connections_once_nothing_is_under_way() -> None:
    arrived, release = trio.Event(), trio.Event()

    async def app(exchange: Exchange) -> None:
        if exchange.header(b"x-slow"):
            arrived.set()
            await release.wait()
        await exchange.reply(200, b"ok")

    async def main() -> None:
        async with upstream(app) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, "h1") as busy, client(running.port, "h1") as idle:
                assert isinstance(busy, H1Client)
                assert isinstance(idle, H1Client)
                for peer in (busy, idle):
                    assert (await peer.request("GET", "/")).header(b"connection") is None
                await busy.send("GET", "/", [(b"x-slow", b"1")])
                await arrived.wait()
                running.plane.remove_listener("test")
                assert await read_all(idle.stream) == b"", "it was served by routes that are bound to no listener"
                release.set()
                answer = await busy.receive()
                assert (answer.status, answer.body, answer.header(b"connection")) == (200, b"ok", b"close")
                assert await read_all(busy.stream) == b""

    bounded(main)


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_who_was_on_its_way_in_when_its_listener_went_does_not_stay(protocol: str) -> None:
    ca, binding = issue("shop.example")
    listener = Listener(name="test", tls=(binding,), hostnames=("shop.example",))

    async def main() -> None:
        async with upstream(hello) as server:
            async with gateway([make_service([server.port])], listener=listener) as running:
                raw = await trio.open_tcp_stream("127.0.0.1", running.port)
                running.plane.remove_listener("test")  # before its handshake, perhaps before it is accepted
                stream = await shake_hands(raw, ca, protocol)
                await read_all(stream)  # it says nothing: it is idle, and ends
                assert not running.recorder.rejections

    bounded(main)


def test_a_drain_does_not_lose_a_first_request_that_has_come() -> None:
    async def main() -> None:
        async with upstream(hello) as server:
            async with gateway([make_service([server.port])]) as running:
                stream = await trio.open_tcp_stream("127.0.0.1", running.port)
                while not running.plane.stats()["connections"]:  # noqa: ASYNC110  # accepting has no event
                    await trio.sleep(0.001)
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n")
                [connection] = running.plane._connections
                assert isinstance(connection, Unknown)
                assert isinstance(connection.channel, PlainChannel)
                connection.channel.handle(select.EPOLLIN)  # its task has not had its turn
                running.plane.begin_drain(lameduck_s=0.0, grace_s=5.0)
                answer = await read_all(stream)
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert b"\r\nconnection: close\r\n" in answer
                await running.drained()

    bounded(main)


def test_drain_lets_open_streams_finish_after_the_last_goaway() -> None:
    """The `h2` library ends a connection at GOAWAY, so this client is made of bare frames."""
    arrived = trio.Event()
    release = trio.Event()

    async def app(exchange: Exchange) -> None:
        arrived.set()
        await release.wait()
        await exchange.reply(200, b"late")

    async def main() -> None:
        async with upstream(app) as server, gateway([make_service([server.port])]) as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            await stream.send_all(PREFACE + frames.settings() + frames.headers(1))
            await arrived.wait()
            running.plane.begin_drain(lameduck_s=0.0, grace_s=5.0)
            await stream.send_all(frames.ping())
            got = b""
            while b"12345678" not in got:
                got += await stream.receive_some(65536)
            await stream.send_all(frames.headers(3))  # above the last stream of the final GOAWAY: ignored
            release.set()
            got += await read_all(stream)
            kinds = [(kind, stream_id) for kind, _flags, stream_id, _payload in frames.parse(got)]
            assert kinds.count((7, 0)) == 2, "two GOAWAY frames: one to announce, one to end"
            assert (0, 1) in kinds
            assert not [stream_id for _kind, stream_id in kinds if stream_id == 3]
            assert len(server.requests) == 1
            await running.drained()

    bounded(main)


def test_a_ping_behind_our_goodbye_draws_no_reset() -> None:
    """A reset would destroy what the client has not read yet, for example the last answer before a drain's end."""

    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])]) as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            await stream.send_all(PREFACE + frames.settings() + frames.headers(1) + frames.goaway(0))
            got = b""
            while data := await stream.receive_some(65536):
                got += data
            assert (0, 1) in [(kind, stream_id) for kind, _flags, stream_id, _payload in frames.parse(got)]
            for _ in range(3):
                await stream.send_all(frames.ping())
            assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            await trio.aclose_forcefully(stream)

    bounded(main)


def test_grace_ends_with_a_cut() -> None:
    async def never(exchange: Exchange) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with upstream(never) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, "h1") as peer:
                await peer.send("GET", "/")  # type: ignore[union-attr]
                await running.recorder.until(lambda: running.plane.stats()["requests_in_flight"] in (0, 1))
                running.plane.begin_drain(lameduck_s=0.0, grace_s=0.3)
                await running.drained()
                assert (await peer.receive()).is_cut  # type: ignore[union-attr]

    bounded(main)


# --- resources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C])
@pytest.mark.parametrize("down", ["h1", "h2"])
def test_everything_is_given_back_when_clients_have_left(down: str, up: UpstreamProtocol) -> None:
    async def main() -> None:
        async with upstream(hello, up) as server:
            service = make_service([server.port], protocol=up)
            async with gateway([service], settings=ProxySettings()) as running:
                for _ in range(5):
                    async with client(running.port, down) as peer:
                        assert (await peer.request("GET", "/")).status == 200
                # the listener's task, and the reader of a shared upstream connection
                tasks = 1 if up is UpstreamProtocol.HTTP else 2
                wanted = {"connections": 0, "requests_in_flight": 0, "upstream_connections": 1, "tasks": tasks}
                with trio.fail_after(5):
                    while not wanted.items() <= running.plane.stats().items():  # noqa: ASYNC110  # gauges have no event
                        await trio.sleep(0.01)  # the last goodbye may take a second (A18)

    bounded(main)


def test_memory_does_not_grow_with_the_size_of_a_body() -> None:
    size = 256 << 20

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        piece = bytes(1 << 16)

        async def serve(stream: trio.SocketStream) -> None:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            for _ in range(size // len(piece)):
                await stream.send_all(piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with gateway([make_service([port])]) as running:
                stream = await trio.open_tcp_stream("127.0.0.1", running.port)
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                await stream.receive_some(65536)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                got = 0
                while data := await stream.receive_some(1 << 18):
                    got += len(data)
                await stream.aclose()
                assert got > size - (1 << 17)
                assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10
            nursery.cancel_scope.cancel()

    bounded(main)


# --- settings and plugin -------------------------------------------------------------------------------------------


def test_settings_from_text() -> None:
    settings = from_text({"head_timeout_s": "2.5", "max_via_hops": "3"})
    assert (settings.head_timeout_s, settings.max_via_hops) == (2.5, 3)
    assert from_text({}) == ProxySettings()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("head_timeout", "1", "unknown (did you mean head_timeout_s?)"),
        ("colour", "1", "unknown"),
        ("max_via_hops", "1.5", "expected a whole number"),
        ("head_timeout_s", "soon", "expected a number"),
        ("head_timeout_s", "0", "expected a number above 0"),
        ("head_timeout_s", "inf", "expected a number"),
        ("connection_window_bytes", "1000", "expected at least 65535"),
    ],
)
def test_settings_that_cannot_be_used_are_named(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_text({name: text})
    assert f"proxy setting {name}" in str(caught.value)
    assert said in str(caught.value)


def test_plugin_names_its_data_plane_and_probers() -> None:
    assert datum_router_plugin_info().posture == "untrusted-downstream"
    assert [spec.name for spec in datum_router_data_planes()] == ["proxy"]
    assert {spec.type for spec in datum_router_health_checks()} == {"HTTP", "TCP", "GRPC"}
