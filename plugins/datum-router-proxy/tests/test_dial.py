"""Dialling endpoints: success, refusal, timeouts, TLS verification, clean-up."""

from __future__ import annotations

import math
import os
import random
import resource
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest
import trustme

from datum_router.clock import ManualClock
from datum_router.errors import UpstreamError
from datum_router.model.service import UpstreamTls
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, wait_readable
from datum_router_proxy.loop import DeadlineExpired, Loop, TaskCancelled, current_task
from datum_router_proxy.testing_peers import full_queue
from datum_router_proxy.upstream.connect import dial
from datum_router_proxy.upstream.trust import client_context

CA = trustme.CA()
CA_PEM = CA.cert_pem.bytes().decode()


def pump(loop: Loop, until: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    while not until():
        if loop.drain() or until():
            continue
        ready, _, _ = select.select([loop._epoll.fileno()], [], [], timeout_s)
        assert ready or until(), "nothing happened for too long"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def loop(clock: ManualClock) -> Iterator[Loop]:
    loop = Loop(clock=clock, rng=random.Random(1))
    yield loop
    if not loop.is_closed:
        loop._close()


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    address = str(request.param)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.create_server((address, 0), family=family)
    except OSError as exc:
        pytest.skip(f"no loopback address {address} here: {exc.strerror}")
    sock.settimeout(10)
    with sock:
        yield sock


@pytest.fixture
def server4() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(10)
        yield sock


class Dialled:
    """A dial on the loop and how it ended."""

    def __init__(
        self,
        loop: Loop,
        address: str,
        port: int,
        *,
        timeout_s: float = 5.0,
        tls: UpstreamTls | None = None,
        alpn: tuple[str, ...] = (),
        server_name: str = "",
        outer_deadline: float = math.inf,
    ) -> None:
        self.channel: Channel | None = None
        self.error: Exception | None = None
        self.deadline_after = 0.0

        async def work() -> None:
            task = current_task()
            task.deadline = outer_deadline
            task.deadline_reason = Reason.REQUEST_TIMEOUT
            try:
                self.channel = await dial(
                    loop, address, port, timeout_s=timeout_s, tls=tls, alpn=alpn, server_name=server_name
                )
            except (UpstreamError, DeadlineExpired, TaskCancelled) as exc:
                self.error = exc
            self.deadline_after = task.deadline

        self.task = loop.spawn(work(), name="dial")

    def upstream_error(self) -> UpstreamError:
        assert isinstance(self.error, UpstreamError)
        assert self.error.is_unprocessed
        return self.error


class TlsServer(threading.Thread):
    """Accepts one connection, shakes hands, echoes once."""

    def __init__(
        self, sock: socket.socket, name: str = "127.0.0.1", *, alpn: tuple[str, ...] = (), ca: trustme.CA = CA
    ) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(name).configure_cert(self.context)
        self.context.set_alpn_protocols(list(alpn))
        self.names: list[str | None] = []
        self.context.sni_callback = lambda _sock, name, _context: self.names.append(name)
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            near, _ = self.sock.accept()
            near.settimeout(10)
            with self.context.wrap_socket(near, server_side=True) as secured:
                secured.sendall(secured.recv(100).upper())
        except Exception as exc:  # the test looks at it
            self.error = exc


def test_a_dialled_channel_carries_bytes(loop: Loop, server: socket.socket) -> None:
    address, port = server.getsockname()[:2]
    dialled = Dialled(loop, address, port)
    pump(loop, lambda: dialled.task.done)
    channel = dialled.channel
    assert channel is not None
    assert channel.peer == (address, port)
    assert channel.reset_reason is Reason.UPSTREAM_RESET
    far, _ = server.accept()
    with far:
        channel.write(b"hello")
        assert far.recv(10) == b"hello"
        far.send(b"hi")
        pump(loop, lambda: channel.readable)
        assert channel.recv() == b"hi"
        assert channel._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # type: ignore[attr-defined]
    assert dialled.deadline_after == math.inf
    channel.close()


def test_a_refused_connection_says_so(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    dialled = Dialled(loop, "127.0.0.1", port)
    pump(loop, lambda: dialled.task.done)
    error = dialled.upstream_error()
    assert error.reason is Reason.CONNECT_FAILED
    assert error.status_hint == 502
    assert str(error) == f"endpoint 127.0.0.1 port {port}: connection refused"
    assert loop.descriptors == 0


def test_no_descriptors_left_is_no_fault_of_the_endpoint(loop: Loop, server4: socket.socket) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    address, port = server4.getsockname()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # below what is open: every new one is refused
    try:
        dialled = Dialled(loop, address, port)
        pump(loop, lambda: dialled.task.done)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    error = dialled.upstream_error()
    assert (error.reason, error.status_hint, error.is_unprocessed) == (Reason.LOCAL_RESOURCES, 503, True)
    assert str(error) == f"endpoint {address} port {port}: too many open files"


@pytest.mark.parametrize("address", ["localhost", "upstream.example", "127.1", "0x7f000001", "[::1]", ""])
def test_only_ip_literals_are_dialled(loop: Loop, address: str) -> None:
    dialled = Dialled(loop, address, 80)
    pump(loop, lambda: dialled.task.done)
    error = dialled.upstream_error()
    assert error.reason is Reason.CONNECT_FAILED
    assert "not an IP address" in str(error)


def test_a_port_out_of_range_is_a_failed_connect(loop: Loop) -> None:
    dialled = Dialled(loop, "127.0.0.1", 70_000)
    pump(loop, lambda: dialled.task.done)
    assert dialled.upstream_error().reason is Reason.CONNECT_FAILED


def test_no_descriptor_left_is_a_failed_connect(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> socket.socket:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(socket, "socket", refuse)
    dialled = Dialled(loop, "127.0.0.1", 80)
    pump(loop, lambda: dialled.task.done)
    assert "too many open files" in str(dialled.upstream_error())


@pytest.fixture
def blackhole() -> Iterator[tuple[str, int]]:
    with full_queue() as port:
        yield "127.0.0.1", port


def test_a_connect_without_answer_ends_at_the_timeout(
    loop: Loop, clock: ManualClock, blackhole: tuple[str, int]
) -> None:
    dialled = Dialled(loop, *blackhole, timeout_s=2.0)
    while loop.drain():
        pass
    clock.advance(1.9)
    loop.sweep()
    while loop.drain():
        pass
    assert not dialled.task.done
    clock.advance(0.1)
    loop.sweep()
    pump(loop, lambda: dialled.task.done)
    error = dialled.upstream_error()
    assert error.reason is Reason.CONNECT_TIMEOUT
    assert error.status_hint == 504
    assert loop.descriptors == 0
    assert dialled.deadline_after == math.inf


def test_the_tasks_own_earlier_deadline_stays_in_force(
    loop: Loop, clock: ManualClock, blackhole: tuple[str, int]
) -> None:
    dialled = Dialled(loop, *blackhole, timeout_s=5.0, outer_deadline=101.0)
    while loop.drain():
        pass
    clock.advance(1.0)
    loop.sweep()
    pump(loop, lambda: dialled.task.done)
    assert isinstance(dialled.error, DeadlineExpired)
    assert dialled.error.reason is Reason.REQUEST_TIMEOUT
    assert loop.descriptors == 0


def test_the_tasks_own_later_deadline_is_restored(loop: Loop, server4: socket.socket) -> None:
    dialled = Dialled(loop, *server4.getsockname(), timeout_s=5.0, outer_deadline=500.0)
    pump(loop, lambda: dialled.task.done)
    assert dialled.deadline_after == 500.0


def test_a_cancelled_dial_leaves_nothing_open(loop: Loop, blackhole: tuple[str, int]) -> None:
    dialled = Dialled(loop, *blackhole)
    while loop.drain():
        pass
    assert loop.descriptors == 1
    dialled.task.cancel(Reason.DRAINING)
    pump(loop, lambda: dialled.task.done)
    assert isinstance(dialled.error, TaskCancelled)
    assert loop.descriptors == 0


# --- tls ----------------------------------------------------------------------------------------------------


def test_tls_verifies_the_address_and_negotiates(loop: Loop, server4: socket.socket) -> None:
    peer = TlsServer(server4, alpn=("h2",))
    dialled = Dialled(loop, *server4.getsockname(), tls=UpstreamTls(ca_pem=CA_PEM), alpn=("h2", "http/1.1"))
    pump(loop, lambda: dialled.task.done)
    channel = dialled.channel
    assert channel is not None, dialled.error
    assert channel.is_tls
    assert channel.alpn == "h2"
    answers: list[bytes] = []

    async def ask() -> None:
        channel.task = current_task()
        channel.write(b"shout")
        data = None
        while data is None:
            await wait_readable(channel)
            data = channel.recv()
        answers.append(data)

    task = loop.spawn(ask(), name="ask")
    pump(loop, lambda: task.done)
    assert answers == [b"SHOUT"]
    assert peer.names == [None]  # an address is never sent as a server name
    channel.close()
    peer.join(10)


@pytest.mark.parametrize("way", ["setting", "argument"])
def test_the_server_name_is_sent_and_verified(loop: Loop, server4: socket.socket, way: str) -> None:
    peer = TlsServer(server4, "internal.example")
    tls = UpstreamTls(ca_pem=CA_PEM, server_name="internal.example" if way == "setting" else "")
    name = "internal.example" if way == "argument" else ""
    dialled = Dialled(loop, *server4.getsockname(), tls=tls, server_name=name)
    pump(loop, lambda: dialled.task.done)
    assert dialled.channel is not None, dialled.error
    assert peer.names == ["internal.example"]
    dialled.channel.abort()


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        (UpstreamTls(ca_pem=CA_PEM, server_name="other.example"), "certificate not trusted for other.example"),
        (UpstreamTls(ca_pem=trustme.CA().cert_pem.bytes().decode()), "certificate not trusted for 127.0.0.1"),
        (UpstreamTls(), "certificate not trusted for 127.0.0.1"),
    ],
    ids=["wrong name", "wrong CA", "system CAs"],
)
def test_a_certificate_that_does_not_fit_is_refused(
    loop: Loop, server4: socket.socket, tls: UpstreamTls, said: str
) -> None:
    peer = TlsServer(server4)
    dialled = Dialled(loop, *server4.getsockname(), tls=tls)
    pump(loop, lambda: dialled.task.done)
    error = dialled.upstream_error()
    assert error.reason is Reason.UPSTREAM_TLS
    assert error.status_hint == 502
    assert said in str(error)
    assert loop.descriptors == 0
    peer.join(10)
    assert peer.error is not None


def test_verification_can_be_switched_off(loop: Loop, server4: socket.socket) -> None:
    TlsServer(server4, "whatever.example", ca=trustme.CA())
    dialled = Dialled(loop, *server4.getsockname(), tls=UpstreamTls(is_verified=False))
    pump(loop, lambda: dialled.task.done)
    assert dialled.channel is not None, dialled.error
    dialled.channel.abort()


def test_a_plain_server_or_a_silent_end_fails_the_handshake(loop: Loop, server4: socket.socket) -> None:
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b""):
        dialled = Dialled(loop, *server4.getsockname(), tls=UpstreamTls(ca_pem=CA_PEM))
        while loop.drain():
            pass
        far, _ = server4.accept()
        with far:
            pump(loop, lambda far=far: bool(select.select([far], [], [], 0)[0]))  # type: ignore[misc]
            far.recv(1 << 16)
            far.sendall(answer)
        pump(loop, lambda dialled=dialled: dialled.task.done)  # type: ignore[misc]
        assert dialled.upstream_error().reason is Reason.UPSTREAM_TLS
        assert loop.descriptors == 0


def test_a_stalled_handshake_ends_at_the_same_timeout(loop: Loop, clock: ManualClock, server4: socket.socket) -> None:
    dialled = Dialled(loop, *server4.getsockname(), timeout_s=2.0, tls=UpstreamTls(ca_pem=CA_PEM))
    while loop.drain():
        pass
    clock.advance(2.0)
    loop.sweep()
    pump(loop, lambda: dialled.task.done)
    assert dialled.upstream_error().reason is Reason.CONNECT_TIMEOUT


def test_a_bad_ca_bundle_is_a_tls_failure(loop: Loop, server4: socket.socket) -> None:
    dialled = Dialled(loop, *server4.getsockname(), tls=UpstreamTls(ca_pem="not pem"))
    pump(loop, lambda: dialled.task.done)
    assert dialled.upstream_error().reason is Reason.UPSTREAM_TLS


def test_contexts_are_made_once_per_setting_and_are_strict() -> None:
    first = client_context(UpstreamTls(ca_pem=CA_PEM), ("h2",))
    assert client_context(UpstreamTls(ca_pem=CA_PEM), ("h2",)) is first
    assert client_context(UpstreamTls(ca_pem=CA_PEM), ("http/1.1",)) is not first
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert first.check_hostname
    assert not first.hostname_checks_common_name
    assert first.minimum_version is ssl.TLSVersion.TLSv1_2
    assert not first.options & ssl.OP_IGNORE_UNEXPECTED_EOF
    strict = client_context(UpstreamTls(ca_pem=CA_PEM, min_version="1.3"), ())
    assert strict.minimum_version is ssl.TLSVersion.TLSv1_3
