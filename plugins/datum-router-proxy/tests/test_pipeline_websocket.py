# ruff: noqa: SIM117  # nested contexts stand in the order of the story
"""WebSocket tunnels over every pairing, with the `websockets` library or raw peers at the ends."""

from __future__ import annotations

import contextlib

import h2.events
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from datum_router.model.service import UpstreamProtocol
from datum_router.reasons import Reason
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import H1Client, H2Client, client
from datum_router_proxy.testing_peers import (
    Exchange,
    bounded,
    gateway,
    make_service,
    upstream,
)
from datum_router_proxy.tunnel import FrameTracker
from datum_router_proxy.wire.websocket import accept_value

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    b"GET /chat HTTP/1.1\r\nhost: shop.example\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-key: " + KEY + b"\r\nsec-websocket-version: 13\r\n\r\n"
)


async def websocket_server(stream: trio.SocketStream) -> None:
    """Echo messages, speaking HTTP/1.1 through the `websockets` library."""
    protocol = ServerProtocol()
    while True:
        data = await stream.receive_some(65536)
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        for event in protocol.events_received():
            if hasattr(event, "path"):
                protocol.send_response(protocol.accept(event))
            elif event.opcode is Opcode.TEXT:
                protocol.send_text(event.data)
        for out in protocol.data_to_send():
            if out:
                await stream.send_all(out)
            else:
                await stream.send_eof()
        if not data:
            return


async def h2_echo(exchange: Exchange) -> None:
    """Echo bytes on an extended CONNECT stream."""
    pseudo = exchange.pseudo  # type: ignore[attr-defined]
    assert (pseudo[b":method"], pseudo[b":protocol"], pseudo[b":path"]) == (b"CONNECT", b"websocket", b"/chat")
    assert exchange.header(b"sec-websocket-key") is None
    await exchange.head(200)
    while (data := await exchange.read()) is not None:
        await exchange.data(data)
    await exchange.end()


async def open_h2_tunnel(peer: H2Client) -> int:
    return await peer.open(
        "CONNECT", "/chat", [(b"sec-websocket-version", b"13")], end=False, pseudo=[(b":protocol", b"websocket")]
    )


def test_h1_to_h1_carries_messages_and_the_closing_handshake() -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, websocket_server, listeners)
            async with gateway([make_service([port])]) as running:
                stream = await trio.open_tcp_stream("127.0.0.1", running.port)
                protocol = ClientProtocol(parse_uri("ws://shop.example/chat"))
                protocol.send_request(protocol.connect())
                got = []
                with trio.fail_after(5):
                    sent_text = False
                    while True:
                        for out in protocol.data_to_send():
                            if out:
                                await stream.send_all(out)
                            else:
                                await stream.send_eof()
                        data = await stream.receive_some(65536)
                        if not data:
                            protocol.receive_eof()
                            break
                        protocol.receive_data(data)
                        for event in protocol.events_received():
                            if getattr(event, "status_code", 0) == 101 and not sent_text:
                                sent_text = True
                                protocol.send_text(b"x" * 100_000)
                            elif getattr(event, "opcode", None) is Opcode.TEXT:
                                got.append(event.data)
                                protocol.send_close(1000)
                await stream.aclose()
                assert got == [b"x" * 100_000]
                assert protocol.close_code == 1000
                await running.recorder.until(lambda: len(running.recorder.events) == 1)
                event = running.recorder.events[0]
                assert (event.protocol, event.status, event.reason) == ("ws", 101, Reason.ROUTED)
                assert event.bytes_in > 100_000
            nursery.cancel_scope.cancel()

    bounded(main)


def test_h2_to_h1() -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, websocket_server, listeners)
            async with gateway([make_service([port])]) as running, client(running.port, "h2") as peer:
                assert isinstance(peer, H2Client)
                stream_id = await open_h2_tunnel(peer)
                frame = bytes((0x81, 0x85)) + b"\0\0\0\0" + b"hello"
                await peer.send(stream_id, frame)
                await peer.until(lambda: peer.answers[stream_id].body == b"\x81\x05hello")
                assert peer.answers[stream_id].status == 200
                await peer.send(stream_id, bytes((0x88, 0x82)) + b"\0\0\0\0" + b"\x03\xe8", end=True)
                answer = await peer.receive(stream_id)
                assert answer.body == b"\x81\x05hello\x88\x02\x03\xe8"
                assert not answer.is_cut
            nursery.cancel_scope.cancel()

    bounded(main)


async def h1_round_trip(peer: H1Client) -> None:
    await peer.stream.send_all(HANDSHAKE)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await peer.stream.receive_some(1000)
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"sec-websocket-accept: " + accept_value(KEY) + b"\r\n" in head
    await peer.stream.send_all(b"any bytes")
    assert await peer.stream.receive_some(1000) == b"any bytes"


def test_h1_to_h2_half_closes() -> None:
    async def main() -> None:
        async with upstream(h2_echo, UpstreamProtocol.H2C) as server:
            async with gateway([make_service([server.port], protocol=UpstreamProtocol.H2C)]) as running:
                async with client(running.port, "h1") as peer:
                    assert isinstance(peer, H1Client)
                    with trio.fail_after(5):
                        await h1_round_trip(peer)
                        await peer.stream.send_eof()
                        assert await peer.stream.receive_some(10) == b""

    bounded(main)


def test_h2_to_h2() -> None:
    async def main() -> None:
        async with upstream(h2_echo, UpstreamProtocol.H2C) as server:
            async with gateway([make_service([server.port], protocol=UpstreamProtocol.H2C)]) as running:
                async with client(running.port, "h2") as peer:
                    assert isinstance(peer, H2Client)
                    stream_id = await open_h2_tunnel(peer)
                    await peer.send(stream_id, b"any bytes")
                    await peer.until(lambda: peer.answers[stream_id].body == b"any bytes")
                    await peer.send(stream_id, b"!", end=True)
                    answer = await peer.receive(stream_id)
                    assert (answer.body, answer.is_cut) == (b"any bytes!", False)

    bounded(main)


def test_tunnel_goes_on_when_the_window_opens_and_the_upstream_has_nothing_new() -> None:
    # What the window held back leaves with its update; what waits unread in the upstream's socket must follow, though
    # no event tells of it any more.
    data = bytes(150_000)

    async def serve(stream: trio.SocketStream) -> None:
        head = await stream.receive_some(65536)
        key = head.split(b"sec-websocket-key: ")[1].split(b"\r\n")[0]
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-accept: " + accept_value(key) + b"\r\n\r\n" + data
        )
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some(1)

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with gateway([make_service([port])]) as running, client(running.port, "h2") as peer:
                assert isinstance(peer, H2Client)
                peer.auto_acknowledge = False
                stream_id = await open_h2_tunnel(peer)
                await peer.until(lambda: len(peer.answers[stream_id].body) == 65_535)
                for target in (None, stream_id):
                    peer.connection.increment_flow_control_window(100_000, target)
                await peer.flush()
                await peer.until(lambda: len(peer.answers[stream_id].body) == len(data))
            nursery.cancel_scope.cancel()

    bounded(main)


def test_upstream_without_extended_connect_is_502() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        await stream.send_all(connection.data_to_send())
        while data := await stream.receive_some(65536):
            events = connection.receive_data(data)
            assert not any(isinstance(event, h2.events.RequestReceived) for event in events)
            await stream.send_all(connection.data_to_send())

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with gateway([make_service([port], protocol=UpstreamProtocol.H2C)]) as running:
                async with client(running.port, "h1") as peer:
                    assert isinstance(peer, H1Client)
                    await peer.stream.send_all(HANDSHAKE)
                    answer = await peer.stream.receive_some(10_000)
                    assert answer.startswith(b"HTTP/1.1 502 ")
                    assert b"bad_upgrade" in answer
            nursery.cancel_scope.cancel()

    bounded(main)


@pytest.mark.parametrize("status", [200, 403])
def test_refused_handshake_is_an_ordinary_answer_but_never_a_tunnel(status: int) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.reply(status, b"no")

    async def main() -> None:
        async with upstream(app) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                await peer.stream.send_all(HANDSHAKE)
                assert (await peer.stream.receive_some(10_000)).startswith(b"HTTP/1.1 %d " % status)
            async with client(running.port, "h2") as peer:
                assert isinstance(peer, H2Client)
                stream_id = await open_h2_tunnel(peer)
                answer = await peer.receive(stream_id)
                assert answer.status == (502 if status == 200 else 403)

    bounded(main)


def test_wrong_accept_value_is_502() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(
            b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: wrong\r\n\r\n"
        )
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some(1)

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with gateway([make_service([port])]) as running, client(running.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                await peer.stream.send_all(HANDSHAKE)
                assert (await peer.stream.receive_some(10_000)).startswith(b"HTTP/1.1 502 ")
            nursery.cancel_scope.cancel()

    bounded(main)


def test_silent_tunnel_is_closed_after_its_idle_limit() -> None:
    async def main() -> None:
        settings = ProxySettings(tunnel_idle_timeout_s=0.2)
        async with upstream(h2_echo, UpstreamProtocol.H2C) as server:
            service = make_service([server.port], protocol=UpstreamProtocol.H2C)
            async with gateway([service], settings=settings) as running, client(running.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                await h1_round_trip(peer)
                with trio.fail_after(3), pytest.raises(trio.BrokenResourceError):
                    await peer.stream.receive_some(10)
                await running.recorder.until(lambda: len(running.recorder.events) == 1)
                assert running.recorder.events[0].reason is Reason.IDLE_TIMEOUT

    bounded(main)


def test_drain_says_going_away_between_frames() -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, websocket_server, listeners)
            async with gateway([make_service([port])]) as running, client(running.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                await peer.stream.send_all(HANDSHAKE)
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += await peer.stream.receive_some(1000)
                running.plane.begin_drain(lameduck_s=0.0, grace_s=5.0)
                with trio.fail_after(3):
                    frame = await peer.stream.receive_some(1000)
                    assert frame[:4] == b"\x88\x0c\x03\xe9"  # close, 1001
                    await peer.stream.send_all(b"\x88\x82\0\0\0\0\x03\xe9")
                    await peer.stream.send_eof()
                    await running.drained()
            nursery.cancel_scope.cancel()

    bounded(main)


def test_drain_ends_a_tunnel_whose_upstream_has_ended_already_without_waiting_for_the_client() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(
            b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "
            + accept_value(KEY)
            + b"\r\n\r\n"
        )
        await stream.send_eof()
        while await stream.receive_some(1000):
            pass

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with gateway([make_service([port])]) as running, client(running.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                await peer.stream.send_all(HANDSHAKE)
                head = b""
                with trio.fail_after(3):
                    while data := await peer.stream.receive_some(1000):
                        head += data
                    assert head.startswith(b"HTTP/1.1 101 ")
                    running.plane.begin_drain(lameduck_s=0.0, grace_s=60.0)  # its side is closed: no close frame fits
                    await running.drained()
                assert [event.reason for event in running.recorder.events] == [Reason.ROUTED]
            nursery.cancel_scope.cancel()

    bounded(main)


def test_frame_tracker_finds_boundaries_whatever_the_pieces() -> None:
    frames = [b"\x81\x05hello", b"\x82\x7e\x01\x00" + bytes(256), b"\x89\x00", b"\x81\x83mask" + b"abc",
              b"\x82\x7f" + (70_000).to_bytes(8, "big") + bytes(70_000)]  # fmt: skip
    for size in (1, 2, 3, 7, 1000, 100_000):
        tracker = FrameTracker()
        for frame in frames:
            for start in range(0, len(frame), size):
                assert start == 0 or not tracker.is_between_frames
                tracker.feed(frame[start : start + size])
            assert tracker.is_between_frames
    tracker = FrameTracker()
    tracker.feed(b"".join(frames))
    assert tracker.is_between_frames
