"""The accept loop: limits, exhaustion, handshakes, updates, stopping without losing queued connections."""

from __future__ import annotations

import errno
import random
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping

import msgspec
import pytest
import trio
import trio.testing
import trustme

from datum_router.clock import ManualClock
from datum_router.model.listener import Listener, TlsBinding
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel
from datum_router_proxy.loop import Loop
from datum_router_proxy.server.listener import AcceptCounts, AcceptLimits, ListenerTask, _peer

CA = trustme.CA()


def binding(name: str) -> TlsBinding:
    cert = CA.issue_cert(name)
    return TlsBinding(
        hostnames=(name,),
        cert_pem=b"".join(blob.bytes() for blob in cert.cert_chain_pems).decode(),
        key_pem=cert.private_key_pem.bytes().decode(),
    )


PLAIN = Listener(name="plain")
SECURE = Listener(name="https", tls=(binding("a.example"),))


class ScriptedSocket(socket.socket):
    """A listening socket whose accept can be made to fail."""

    errors: list[int]
    always: int = 0
    accepts: int = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.accepts += 1
        if self.errors:
            raise OSError(self.errors.pop(0), "scripted")
        if self.always:
            raise OSError(self.always, "scripted")
        return super().accept()


OPEN: list[Bench] = []


@pytest.fixture(autouse=True)
def _close_benches() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


class Bench:
    """A listener with everything it reports."""

    def __init__(
        self,
        loop: Loop,
        listener: Listener = PLAIN,
        *,
        limits: AcceptLimits = AcceptLimits(),
        counts: AcceptCounts | None = None,
        attachments: Mapping[str, str] | None = None,
    ) -> None:
        OPEN.append(self)
        self.loop = loop
        self.channels: list[tuple[Channel, Listener]] = []
        self.rejected: list[tuple[str, Reason]] = []
        self.sock = ScriptedSocket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.errors = []
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(128)
        self.address = self.sock.getsockname()
        self.counts = counts if counts is not None else AcceptCounts()
        self.clients: list[socket.socket] = []
        self.task = ListenerTask(
            loop,
            listener,
            self.sock,
            lambda channel, listener: self.channels.append((channel, listener)),
            rejected=lambda protocol, reason: self.rejected.append((protocol, reason)),
            limits=limits,
            counts=self.counts,
            attachments=attachments,
        )

    def client(self) -> socket.socket:
        sock = socket.create_connection(self.address, timeout=10)
        self.clients.append(sock)
        return sock

    def close(self) -> None:
        for channel, _ in self.channels:
            channel.abort()
        for sock in self.clients:
            sock.close()


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


@pytest.fixture
def bench(loop: Loop) -> Bench:
    return Bench(loop)


def is_reset(sock: socket.socket) -> bool:
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def test_a_connection_is_handed_over_ready(loop: Loop, bench: Bench) -> None:
    client = bench.client()
    client.send(b"GET /")
    pump(loop, lambda: bool(bench.channels))
    channel, listener = bench.channels[0]
    assert listener is PLAIN
    assert channel.peer == client.getsockname()
    assert not channel.is_tls
    assert channel.alpn is None
    pump(loop, lambda: channel.readable)
    assert channel.recv() == b"GET /"
    channel.write(b"200")
    assert client.recv(10) == b"200"
    assert channel._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # type: ignore[attr-defined]


def test_counts_follow_connections_from_accept_to_close(loop: Loop, bench: Bench) -> None:
    for _ in range(3):
        bench.client()
    pump(loop, lambda: len(bench.channels) == 3)
    assert bench.task.connections == bench.counts.total == 3
    assert bench.counts.per_address == {"127.0.0.1": 3}
    bench.channels[0][0].close()
    bench.channels[1][0].abort()
    assert bench.task.connections == bench.counts.total == 1
    bench.channels[2][0].abort()
    assert bench.counts.per_address == {}


@pytest.mark.parametrize(
    "limits",
    [AcceptLimits(max_per_listener=2), AcceptLimits(max_total=2), AcceptLimits(max_per_address=2)],
    ids=["listener", "total", "address"],
)
def test_connections_over_a_limit_are_reset_and_counted_and_room_is_used_again(
    loop: Loop, limits: AcceptLimits
) -> None:
    bench = Bench(loop, limits=limits)
    clients = [bench.client() for _ in range(3)]
    pump(loop, lambda: bool(bench.rejected))
    assert bench.rejected == [("tcp", Reason.TOO_MANY_CONNECTIONS)]
    assert len(bench.channels) == 2
    assert is_reset(clients[2])
    bench.channels[0][0].close()
    bench.client()
    pump(loop, lambda: len(bench.channels) == 3)


def test_the_total_is_shared_among_listeners(loop: Loop) -> None:
    counts = AcceptCounts()
    limits = AcceptLimits(max_total=1)
    first, second = Bench(loop, limits=limits, counts=counts), Bench(loop, limits=limits, counts=counts)
    first.client()
    pump(loop, lambda: bool(first.channels))
    refused = second.client()
    pump(loop, lambda: bool(second.rejected))
    assert is_reset(refused)


def test_one_address_behind_a_trusted_proxy_is_not_limited_by_itself(loop: Loop) -> None:
    bench = Bench(loop, Listener(name="edge", trusted_hops=1), limits=AcceptLimits(max_per_address=1))
    for _ in range(3):
        bench.client()
    pump(loop, lambda: len(bench.channels) == 3)
    assert bench.rejected == []


def test_defaults_are_the_documented_ones() -> None:
    limits = AcceptLimits()
    assert (limits.max_per_listener, limits.max_total, limits.max_per_address) == (10_000, 50_000, 200)
    assert (limits.handshake_timeout_s, limits.max_handshakes_per_address) == (5.0, 100)
    assert (limits.backoff_min_s, limits.backoff_max_s, limits.accept_batch) == (0.05, 0.1, 64)


def test_others_run_between_two_batches_of_accepts(loop: Loop) -> None:
    bench = Bench(loop, limits=AcceptLimits(accept_batch=4))
    for _ in range(10):
        bench.client()
    loop._round()
    assert len(bench.channels) == 4
    loop._round()
    assert len(bench.channels) == 8
    pump(loop, lambda: len(bench.channels) == 10)


def test_an_aborted_connection_in_the_queue_is_ignored(loop: Loop, bench: Bench) -> None:
    bench.sock.errors = [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN]
    bench.client()
    pump(loop, lambda: len(bench.channels) == 1)
    assert bench.rejected == []
    assert bench.task.is_accepting


def test_a_handler_that_raises_costs_one_connection(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(loop)

    def refuse(_channel: Channel, _listener: Listener) -> None:
        raise ValueError("broken")

    fine = bench.task._on_connection
    bench.task._on_connection = refuse
    first = bench.client()
    pump(loop, lambda: bool(caplog.records))
    assert is_reset(first)
    bench.task._on_connection = fine
    bench.client()
    pump(loop, lambda: len(bench.channels) == 1)
    assert bench.counts.total == 1


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_exhausted_descriptors_make_it_sleep_not_spin_and_it_recovers(code: int) -> None:
    async def main() -> None:
        loop = Loop(clock=trio.current_time, rng=random.Random(1))
        bench = Bench(loop)
        bench.sock.always = code
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            bench.client()
            await trio.sleep(1.0)
            # Every 50 to 100 ms one attempt, and one more to shed a connection with the reserve descriptor.
            attempts = bench.sock.accepts
            assert 20 <= attempts <= 41
            assert set(bench.rejected) == {("tcp", Reason.TOO_MANY_CONNECTIONS)}
            assert bench.task.is_accepting
            bench.sock.always = 0
            await trio.sleep(0.11)
            assert len(bench.channels) == 1
            assert bench.task._reserve_fd >= 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_reserve_descriptor_lets_one_client_know(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = Loop(clock=trio.current_time, rng=random.Random(1))
        bench = Bench(loop)
        bench.sock.errors = [errno.EMFILE]  # once: the accept with the reserve given up succeeds
        client = bench.client()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            await trio.sleep(0.01)
            assert is_reset(client)
            bench.client()
            await trio.sleep(0.2)
            assert len(bench.channels) == 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert "out of descriptors" in caplog.text


def test_a_socket_that_is_no_listener_any_more_ends_the_task(loop: Loop, bench: Bench) -> None:
    bench.sock.errors = [errno.EINVAL]
    pump(loop, lambda: not bench.task.is_accepting)
    assert loop.tasks == 0


def test_stopping_accepts_what_is_queued_before_it_closes(loop: Loop, bench: Bench) -> None:
    clients = [bench.client() for _ in range(100)]
    bench.task.stop_accepting()
    bench.task.stop_accepting()
    pump(loop, lambda: not bench.task.is_accepting)
    assert len(bench.channels) == 100
    with pytest.raises(ConnectionRefusedError):
        bench.client()
    for channel, _ in bench.channels:
        channel.write(b"x")
    assert all(client.recv(1) == b"x" for client in clients)
    assert loop.tasks == 0


def test_abort_closes_at_once_and_leaves_open_connections(loop: Loop, bench: Bench) -> None:
    client = bench.client()
    pump(loop, lambda: bool(bench.channels))
    bench.task.abort()
    bench.task.abort()
    bench.channels[0][0].write(b"x")
    assert client.recv(1) == b"x"


def test_the_loop_lets_go_of_a_socket_that_somebody_else_holds(loop: Loop, bench: Bench) -> None:
    twin = bench.sock.dup()  # as the supervisor has it
    with twin:
        bench.task.stop_accepting()
        pump(loop, lambda: not bench.task.is_accepting)
        with socket.create_connection(twin.getsockname()):
            assert not select.select([loop._epoll.fileno()], [], [], 0)[0] or not loop.drain()


# --- tls ----------------------------------------------------------------------------------------------------


class TlsClient(threading.Thread):
    def __init__(self, bench: Bench, name: str, alpn: tuple[str, ...] = ("h2",)) -> None:
        super().__init__(daemon=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        CA.configure_trust(self.context)
        self.context.set_alpn_protocols(list(alpn))
        self.sock = bench.client()
        self.server_name = name
        self.answer = b""
        self.names: list[str] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.context.wrap_socket(self.sock, server_hostname=self.server_name) as secured:
                secured.sendall(b"hello")
                self.answer = secured.recv(100)
                certificate = secured.getpeercert()
                assert certificate is not None
                self.names = [str(entry[1]) for entry in certificate["subjectAltName"]]
        except Exception as exc:  # the test looks at it
            self.error = exc


def exchange(loop: Loop, bench: Bench, name: str) -> TlsClient:
    before = len(bench.channels)
    client = TlsClient(bench, name)
    pump(loop, lambda: len(bench.channels) > before)
    channel = bench.channels[-1][0]
    got = b""
    while got != b"hello":
        pump(loop, lambda: channel.readable)
        got += channel.recv() or b""
    channel.write(b"world")
    client.join(10)
    return client


def test_tls_connections_are_handed_over_after_the_handshake(loop: Loop) -> None:
    bench = Bench(loop, SECURE)
    client = exchange(loop, bench, "a.example")
    assert client.error is None
    assert client.answer == b"world"
    channel = bench.channels[0][0]
    assert channel.is_tls
    assert channel.alpn == "h2"
    assert channel.sni == "a.example"
    assert bench.counts.handshakes == {}


def test_an_update_changes_certificates_for_new_connections_and_a_bad_one_is_counted(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(loop, SECURE)
    broken = TlsBinding(hostnames=("a.example",), cert_pem=SECURE.tls[0].cert_pem, key_pem="junk")
    bench.task.update(Listener(name="https", tls=(broken, binding("b.example"))))
    assert bench.rejected == [("tls", Reason.INVALID_CERTIFICATE_REF)]
    assert "junk" not in str([record.__dict__ for record in caplog.records])
    assert exchange(loop, bench, "a.example").names == ["a.example"]
    assert exchange(loop, bench, "b.example").names == ["b.example"]
    assert bench.task.tls is not None
    assert bench.task.tls.problems[0].is_stale
    bench.task.update(PLAIN)
    client = bench.client()
    client.send(b"plain now")
    pump(loop, lambda: len(bench.channels) == 3)
    assert not bench.channels[2][0].is_tls


def test_a_stalled_handshake_is_closed_at_its_limit(loop: Loop, clock: ManualClock) -> None:
    bench = Bench(loop, SECURE)
    client = bench.client()
    pump(loop, lambda: bench.counts.total == 1)
    client.send(b"\x16\x03\x01")
    clock.advance(4.9)
    loop.sweep()
    while loop.drain():
        pass
    assert bench.counts.total == 1
    clock.advance(0.1)
    loop.sweep()
    pump(loop, lambda: bench.counts.total == 0)
    assert bench.rejected == [("tls", Reason.TLS_HANDSHAKE)]
    assert bench.channels == []
    assert bench.counts.handshakes == {}


def test_junk_instead_of_a_handshake_is_counted_and_closed(loop: Loop) -> None:
    bench = Bench(loop, SECURE)
    client = bench.client()
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    pump(loop, lambda: bool(bench.rejected))
    assert bench.rejected == [("tls", Reason.TLS_HANDSHAKE)]
    assert bench.counts.total == 0
    assert loop.failures == 0


def test_handshakes_of_one_address_are_limited(loop: Loop) -> None:
    bench = Bench(loop, SECURE, limits=AcceptLimits(max_handshakes_per_address=2))
    clients = [bench.client() for _ in range(3)]
    pump(loop, lambda: bool(bench.rejected))
    assert bench.rejected == [("tls", Reason.TOO_MANY_CONNECTIONS)]
    assert bench.counts.handshakes == {"127.0.0.1": 2}
    assert is_reset(clients[2])
    for client in clients:
        client.close()
    pump(loop, lambda: bench.counts.handshakes == {})
    assert bench.counts.total == 0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("192.0.2.1", 7), ("192.0.2.1", 7)),
        (("::ffff:192.0.2.1", 7, 0, 0), ("192.0.2.1", 7)),
        (("2001:db8::1", 7, 0, 0), ("2001:db8::1", 7)),
        (("::ffff:0", 7, 0, 0), ("::ffff:0", 7)),
        ("", ("", 0)),
    ],
)
def test_peers_have_one_spelling(address: object, expected: tuple[str, int]) -> None:
    assert _peer(address) == expected


# --- what is said before HTTP -------------------------------------------------------------------------------------

HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 50000 443\r\n"
BEHIND = Listener(name="behind", has_proxy_protocol=True, trusted_proxies=("127.0.0.0/8",))


def test_a_proxy_header_tells_the_client_and_what_follows_is_left(bench: Bench, loop: Loop) -> None:
    bench.task.update(BEHIND)
    client = bench.client()
    for piece in (HEADER[:3], HEADER[3:20], HEADER[20:] + b"GET"):
        client.sendall(piece)
        pump(loop, lambda: bool(bench.channels) or not loop.drain())
    pump(loop, lambda: bool(bench.channels))
    channel, _ = bench.channels[0]
    assert channel.peer == ("192.0.2.7", 50_000)
    pump(loop, lambda: channel.readable)
    assert channel.recv() == b"GET"
    assert bench.counts.per_address == {"192.0.2.7": 1}
    channel.close()
    assert bench.counts.per_address == {}
    assert bench.counts.handshakes == {}


@pytest.mark.parametrize(("listener", "said", "told"), [(PLAIN, b"", "127.0.0.1"), (BEHIND, HEADER, "192.0.2.7")])
def test_equal_addresses_of_two_attachments_are_two_clients(
    loop: Loop, listener: Listener, said: bytes, told: str
) -> None:
    """One VPC's client must not use up what another VPC's client of the same address may have."""
    counts, limits = AcceptCounts(), AcceptLimits(max_per_address=1)
    one = Bench(loop, listener, limits=limits, counts=counts, attachments={"lo": "blue/gateway"})
    other = Bench(loop, listener, limits=limits, counts=counts, attachments={"lo": "green/gateway"})
    for bench in (one, other):
        bench.client().sendall(said)
        pump(loop, lambda bench=bench: bool(bench.channels))  # type: ignore[misc]
        assert bench.rejected == []
    assert counts.per_address == {f"{told}%blue/gateway": 1, f"{told}%green/gateway": 1}
    one.client().sendall(said)
    pump(loop, lambda: bool(one.rejected))
    for bench in (one, other):
        bench.channels[0][0].close()
    assert (counts.per_address, counts.handshakes, counts.total) == ({}, {}, 0)


def test_the_limits_of_an_address_hold_for_the_one_that_a_header_tells(loop: Loop) -> None:
    bench = Bench(loop, BEHIND, limits=AcceptLimits(max_per_address=2))
    for _ in range(2):
        bench.client().sendall(HEADER)
    pump(loop, lambda: len(bench.channels) == 2)
    third = bench.client()
    third.sendall(HEADER)
    pump(loop, lambda: bool(bench.rejected))
    assert bench.rejected == [("tcp", Reason.TOO_MANY_CONNECTIONS)]
    bench.client().sendall(HEADER.replace(b".7 ", b".8 "))
    pump(loop, lambda: len(bench.channels) == 3)
    assert bench.counts.per_address == {"192.0.2.7": 2, "192.0.2.8": 1}


def test_a_peer_that_is_not_trusted_is_reset_before_it_says_anything(bench: Bench, loop: Loop) -> None:
    bench.task.update(Listener(name="behind", has_proxy_protocol=True, trusted_proxies=("192.0.2.0/24", "::1")))
    client = bench.client()
    pump(loop, lambda: bool(bench.rejected))
    assert bench.rejected == [("tcp", Reason.UNTRUSTED_PROXY)]
    assert is_reset(client)


def test_a_header_that_does_not_come_in_time_ends_the_connection(bench: Bench, loop: Loop, clock: ManualClock) -> None:
    bench.task.update(BEHIND)
    client = bench.client()
    client.sendall(HEADER[:10])
    pump(loop, lambda: bench.counts.handshakes == {"127.0.0.1": 1})
    loop.drain()
    clock.advance(6.0)
    loop.sweep()
    pump(loop, lambda: bool(bench.rejected))
    assert bench.rejected == [("tcp", Reason.BAD_PROXY_HEADER)]
    assert bench.counts.handshakes == {}


@pytest.mark.parametrize(
    ("networks", "hops", "seen"), [((), 1, 1), (("127.0.0.1",), 1, 1), (("192.0.2.0/24",), 1, 0), (("::/0",), 2, 0)]
)
def test_hops_are_believed_of_trusted_peers_alone(
    bench: Bench, loop: Loop, networks: tuple[str, ...], hops: int, seen: int
) -> None:
    bench.task.update(Listener(name="behind", trusted_hops=hops, trusted_proxies=networks))
    bench.client()
    pump(loop, lambda: bool(bench.channels))
    assert bench.channels[0][1].trusted_hops == seen


@pytest.mark.parametrize(("networks", "seen"), [((), 1), (("127.0.0.1",), 1), (("192.0.2.0/24",), 0)])
def test_who_has_not_said_all_when_proxies_come_to_be_believed_is_held_to_that(
    bench: Bench, loop: Loop, networks: tuple[str, ...], seen: int
) -> None:
    bench.task.update(BEHIND)
    client = bench.client()
    client.sendall(HEADER[:10])
    pump(loop, lambda: bench.counts.handshakes == {"127.0.0.1": 1})
    bench.task.update(Listener(name="behind", has_proxy_protocol=True, trusted_hops=1, trusted_proxies=networks))
    client.sendall(HEADER[10:])
    pump(loop, lambda: bool(bench.channels))
    assert bench.channels[0][1].trusted_hops == seen


def test_a_connection_knows_by_which_certificate_it_was_opened(bench: Bench, loop: Loop) -> None:
    one = msgspec.structs.replace(binding("a.example"), identity="one")
    bench.task.update(Listener(name="https", tls=(one,)))
    context = ssl.create_default_context()
    CA.configure_trust(context)

    def shake() -> None:
        with context.wrap_socket(bench.client(), server_hostname="a.example") as secured:
            secured.recv(1)

    thread = threading.Thread(target=shake, daemon=True)
    thread.start()
    pump(loop, lambda: bool(bench.channels))
    channel, listener = bench.channels[0]
    assert (listener.identity, channel.sni) == ("one", "a.example")
    channel.close()
    thread.join(10)
