# ruff: noqa: SIM117  # nested contexts stand in the order of the story
"""A client's certificate that ends while its connection is open, or before its session is resumed."""

from __future__ import annotations

import datetime
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trustme

from datum_router.clock import ManualClock
from datum_router.model.listener import ClientAuth, Listener, TlsBinding
from datum_router.observe import names
from datum_router.reasons import Reason
from datum_router_proxy import testing as frames
from datum_router_proxy.server.clients import EXPIRED_SLICE, ClientDates
from datum_router_proxy.testing_clients import H1Client
from datum_router_proxy.testing_peers import Exchange, Gateway, bounded, gateway, make_service, upstream
from datum_router_proxy.wire.http2 import PREFACE

HOUR_S = 3600.0
CA = trustme.CA()
SERVER = CA.issue_cert("shop.example")
NOW = datetime.datetime.now(datetime.UTC)
LASTING = CA.issue_cert("lasting.example", not_after=NOW + datetime.timedelta(hours=10))
ENDING = CA.issue_cert("ending.example", not_after=NOW + datetime.timedelta(hours=1))
both_modes = pytest.mark.parametrize("is_required", [True, False], ids=["required", "optional"])


def listener(*, is_required: bool = True) -> Listener:
    binding = TlsBinding(
        hostnames=("shop.example",),
        cert_pem=b"".join(blob.bytes() for blob in SERVER.cert_chain_pems).decode(),
        key_pem=SERVER.private_key_pem.bytes().decode(),
        client_auth=ClientAuth(ca_pem=CA.cert_pem.bytes().decode(), is_required=is_required),
    )
    return Listener(name="test", tls=(binding,), hostnames=("shop.example",))


def context(shown: trustme.LeafCert | None, protocol: str = "http/1.1") -> ssl.SSLContext:
    made = ssl.create_default_context()
    CA.configure_trust(made)
    made.set_alpn_protocols([protocol])
    if shown is not None:
        shown.configure_cert(made)
    return made


@asynccontextmanager
async def connected(
    running: Gateway, shown: trustme.LeafCert | None, protocol: str = "http/1.1"
) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    raw = await trio.open_tcp_stream("127.0.0.1", running.port)
    stream = trio.SSLStream(raw, context(shown, protocol), server_hostname="shop.example", https_compatible=True)
    await stream.do_handshake()
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(raw)


def verdicts(running: Gateway) -> dict[str, float]:
    """Take what was counted since the last call."""
    cells = [cell for cell in running.plane.take_cells() if cell.metric == names.CLIENT_CERTIFICATES.name]
    return {cell.labels[1]: cell.value for cell in cells}


async def answer(exchange: Exchange) -> None:
    await exchange.reply(200, b"ok")


class Slow:
    """An application that answers requests with `x-slow` when it is told to."""

    def __init__(self) -> None:
        self.arrived, self.release = trio.Event(), trio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.header(b"x-slow"):
            self.arrived.set()
            await self.release.wait()
        await exchange.reply(200, b"ok")


@both_modes
def test_http1_ends_after_the_answer_under_way_and_idle_connections_at_once(
    is_required: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="datum_router_proxy.server.clients")

    async def main() -> None:
        app, wall = Slow(), ManualClock(NOW.timestamp())
        async with upstream(app) as server:
            async with gateway(
                [make_service([server.port])], listener=listener(is_required=is_required), wall_clock=wall
            ) as running:
                async with (
                    connected(running, ENDING) as one,
                    connected(running, ENDING) as idle,
                    connected(running, LASTING) as other,
                ):
                    busy, bystander = H1Client(one), H1Client(other)  # type: ignore[arg-type]  # any stream does
                    for peer in (busy, bystander):
                        assert (await peer.request("GET", "/")).header(b"connection") is None
                    await busy.send("GET", "/", [(b"x-slow", b"1")])
                    await app.arrived.wait()
                    assert verdicts(running) == {"accepted": 3}
                    wall.advance(HOUR_S + 1)
                    assert await idle.receive_some(1) == b""
                    app.release.set()
                    last = await busy.receive()
                    assert (last.status, last.body, last.header(b"connection")) == (200, b"ok", b"close")
                    assert await one.receive_some(1) == b""
                    assert (await bystander.request("GET", "/")).header(b"connection") is None
                    assert verdicts(running) == {"expired": 2}
                    assert not running.recorder.rejections

    bounded(main)
    said = [one.message for one in caplog.records if one.name == "datum_router_proxy.server.clients"]
    assert said == ["client certificate expired on an open connection"] * 2


def test_http2_says_goaway_and_ends_after_its_last_stream() -> None:
    """The `h2` library ends a connection at GOAWAY, so this client is made of bare frames."""
    fields = ((b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"shop.example"))

    async def main() -> None:
        app, wall = Slow(), ManualClock(NOW.timestamp())
        async with upstream(app) as server:
            async with gateway([make_service([server.port])], listener=listener(), wall_clock=wall) as running:
                async with connected(running, ENDING, "h2") as stream:
                    await stream.send_all(PREFACE + frames.settings() + frames.headers(1, (*fields, (b"x-slow", b"1"))))
                    await app.arrived.wait()
                    wall.advance(HOUR_S + 1)
                    got = b""
                    while frames.goaway(1) not in got:
                        got += await stream.receive_some(65_536)
                    await stream.send_all(frames.headers(3, fields))  # above the last stream of GOAWAY: ignored
                    app.release.set()
                    while data := await stream.receive_some(65_536):
                        got += data
                    seen = [(kind, number) for kind, _flags, number, _payload in frames.parse(got)]
                    assert seen.count((7, 0)) == 2, "two GOAWAY frames: one to announce, one to end"
                    assert (0, 1) in seen
                    assert not [number for _kind, number in seen if number == 3]
                    assert len(server.requests) == 1
                    assert verdicts(running) == {"accepted": 1, "expired": 1}

    bounded(main)


def test_who_has_shown_no_certificate_has_none_that_ends() -> None:
    async def main() -> None:
        wall = ManualClock(NOW.timestamp())
        async with upstream(answer) as server:
            async with gateway(
                [make_service([server.port])], listener=listener(is_required=False), wall_clock=wall
            ) as running:
                async with connected(running, None) as nobody, connected(running, ENDING) as ending:
                    wall.advance(HOUR_S + 1)
                    assert await ending.receive_some(1) == b""
                    peer = H1Client(nobody)  # type: ignore[arg-type]  # any stream does
                    assert (await peer.request("GET", "/")).header(b"connection") is None

    bounded(main)


@both_modes
@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_revives_no_certificate_that_has_ended(is_required: bool, most: ssl.TLSVersion) -> None:
    """OpenSSL verifies nothing anew when it resumes: what the ticket holds is looked at by us."""

    def resume(port: int, made: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bytes]:
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        with sock, made.wrap_socket(sock, server_hostname="shop.example", session=session) as secured:
            assert secured.session_reused is (session is not None)
            try:
                secured.sendall(b"GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n")
                said = secured.recv(12)
            except (ConnectionError, ssl.SSLError):
                said = b""
            return secured.session, said

    async def main() -> None:
        wall = ManualClock(NOW.timestamp())
        made = context(ENDING)
        made.maximum_version = most
        async with upstream(answer) as server:
            async with gateway(
                [make_service([server.port])], listener=listener(is_required=is_required), wall_clock=wall
            ) as running:
                session, said = await trio.to_thread.run_sync(resume, running.port, made, None)
                assert said == b"HTTP/1.1 200"
                _, said = await trio.to_thread.run_sync(resume, running.port, made, session)
                assert said == b"HTTP/1.1 200"
                wall.advance(HOUR_S + 1)
                _, said = await trio.to_thread.run_sync(resume, running.port, made, session)
                assert said == b""
                assert running.recorder.rejections == [("tls", Reason.CLIENT_CERTIFICATE)]
                assert verdicts(running) == {"accepted": 2, "refused": 1}

    bounded(main)


class Fake:
    """A connection as `ClientDates` sees one."""

    serving = object()

    def __init__(self, ends_at: float) -> None:
        self.channel = self.client = self
        self.is_known, self.ends_at, self.peer = True, ends_at, ("192.0.2.1", 1)
        self.listener = Listener(name="test")
        self.told = self.finished = 0

    def begin_drain(self) -> None:
        self.told += 1

    def finish_drain(self) -> None:
        self.finished += 1


def test_many_that_end_at_once_are_told_in_slices_and_once() -> None:
    async def main() -> None:
        clock = ManualClock(100.0)
        dates = ClientDates(clock)
        ending = [Fake(101.0) for _ in range(EXPIRED_SLICE * 3)]
        lasting, new = Fake(200.0), Fake(101.0)
        new.serving = None  # type: ignore[assignment]  # it has not said yet what it speaks
        for one in (*ending, lasting, new):
            dates.watch(one)  # type: ignore[arg-type]  # it has what is looked at
        clock.now = 101.0
        await dates.end_expired()
        assert not any(one.told for one in ending), "a certificate is good in the second of its end"
        clock.now = 102.0
        told: list[int] = []
        async with trio.open_nursery() as nursery:

            async def others() -> None:
                while not all(one.told for one in ending):
                    told.append(sum(one.told for one in ending))
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(others)
            nursery.start_soon(dates.end_expired)
        assert any(told)
        assert all(one % EXPIRED_SLICE == 0 and one < len(ending) for one in told)
        assert (lasting.told, new.told) == (0, 0)
        new.serving = object()
        await dates.end_expired()
        await dates.end_expired()
        assert (lasting.told, new.told) == (0, 1)
        assert {one.told for one in ending} == {1}
        assert {one.finished for one in ending} == {3}, "who is still there is told at each look"
        for one in ending:
            dates.forget(one)  # type: ignore[arg-type]
        clock.now = 50.0  # a clock that is set back ends nobody, and brings nobody back
        await dates.end_expired()
        assert {one.finished for one in ending} == {3}, "and who has ended is not"
        assert [cell.value for cell in dates.take_cells()] == [len(ending) + 1]
        assert list(dates.take_cells()) == []

    trio.run(main)
