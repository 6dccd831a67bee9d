"""TLS: the channel over a real OpenSSL peer, certificate choice by server name, replacement of certificates."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.model.listener import Listener, TlsBinding
from datum_router_proxy.certificate import harden, pem_file
from datum_router_proxy.channel import ChannelError, PlainChannel, drain, wait_readable
from datum_router_proxy.loop import Loop, current_task, park
from datum_router_proxy.server.tls import ServerTls, accept_tls
from datum_router_proxy.tls_channel import TLS_FEEDS, TlsChannel
from datum_router_proxy.wire.client_hello import ClientHello

CA = trustme.CA()
OTHER_CA = trustme.CA()


def binding(*names: str, ca: trustme.CA = CA, hostnames: tuple[str, ...] | None = None) -> TlsBinding:
    cert = ca.issue_cert(*names)
    chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems).decode()
    return TlsBinding(
        hostnames=names if hostnames is None else hostnames,
        cert_pem=chain,
        key_pem=cert.private_key_pem.bytes().decode(),
    )


SHOP = binding("shop.example")
WILD = binding("*.shop.example")
DEFAULT = binding("default.example")
LISTENER = Listener(name="https", tls=(DEFAULT, SHOP, WILD))


def client_context(*, alpn: tuple[str, ...] = (), is_verified: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    harden(context)
    CA.configure_trust(context)
    if not is_verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def pump(loop: Loop, until: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    while not until():
        if loop.drain() or until():
            continue
        ready, _, _ = select.select([loop._epoll.fileno()], [], [], timeout_s)
        assert ready or until(), "nothing happened for too long"


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(rng=random.Random(1))
    yield loop
    if not loop.is_closed:
        loop._close()


class Peer(threading.Thread):
    """A blocking OpenSSL client in a thread: an independent implementation of our counterpart's socket handling."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, name: str | None, work: Callable[[ssl.SSLSocket], None]
    ) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.context = context
        self.server_name = name
        self.work = work
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.sock.settimeout(10)
            with self.context.wrap_socket(
                self.sock, server_hostname=self.server_name, suppress_ragged_eofs=False
            ) as secured:
                self.work(secured)
        except Exception as exc:  # the test looks at it
            self.error = exc


def connect(
    loop: Loop,
    work: Callable[[ssl.SSLSocket], None],
    *,
    tls: ServerTls | None = None,
    name: str | None = "shop.example",
    context: ssl.SSLContext | None = None,
) -> tuple[TlsChannel, Peer, list[Exception]]:
    """Shake hands as server with a client thread that then does `work`."""
    near, far = socket.socketpair()
    near.setblocking(False)
    raw = PlainChannel(loop, near)
    accepted: list[TlsChannel] = []
    errors: list[Exception] = []

    async def shake() -> None:
        raw.task = current_task()
        try:
            found = await accept_tls(raw, tls or ServerTls(LISTENER))
        except (ssl.SSLError, ChannelError) as exc:
            errors.append(exc)
        else:
            if found is None:
                errors.append(ConnectionError("the name was refused"))
            else:
                accepted.append(found[0])

    peer = Peer(far, context or client_context(), name, work)
    task = loop.spawn(shake(), name="handshake")
    pump(loop, lambda: task.done)
    raw.task = None
    channel = accepted[0] if accepted else TlsChannel(raw, context_of(ServerTls(LISTENER)), server_side=True)
    return channel, peer, errors


def context_of(tls: ServerTls, name: str = "shop.example") -> ssl.SSLContext:
    chosen = tls.choose(ClientHello(server_name=name))
    assert chosen is not None
    return chosen[0]


def wait_for(gate: threading.Event) -> None:
    assert gate.wait(10)


def nothing(secured: ssl.SSLSocket) -> None:
    """Stay until the server goes: a client that leaves at once may meet the server's session tickets with a reset."""
    with contextlib.suppress(OSError):
        secured.recv(1)


def finish(loop: Loop, channel: TlsChannel, peer: Peer) -> None:
    channel.close()
    while peer.is_alive() or loop.descriptors:
        loop.drain()
        peer.join(0.001)
    assert peer.error is None


# --- channel ---------------------------------------------------------------------------------------------------------


def test_handshake_negotiates_and_bytes_pass_both_ways(loop: Loop) -> None:
    got: list[bytes] = []

    def work(secured: ssl.SSLSocket) -> None:
        secured.sendall(b"ping")
        got.append(secured.recv(100))

    channel, peer, errors = connect(loop, work, context=client_context(alpn=("http/1.1", "h2")))
    assert errors == []
    assert channel.is_tls
    assert channel.alpn == "h2"  # the server's order counts
    assert channel.sni == "shop.example"
    assert channel.version == "TLSv1.3"
    pump(loop, lambda: channel.readable)
    data = channel.recv()
    while data is None:
        pump(loop, lambda: channel.readable)
        data = channel.recv()
    assert data == b"ping"
    assert channel.recv() is None
    channel.write(b"po", b"ng")
    finish(loop, channel, peer)
    assert got == [b"pong"]


def test_data_in_the_same_segment_as_the_end_of_the_handshake_is_readable(loop: Loop) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    channel = TlsChannel(PlainChannel(loop, near), context_of(ServerTls(LISTENER)), server_side=True)
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(received, sent, server_hostname="shop.example")

    async def shake() -> None:
        channel.task = current_task()
        await channel.handshake()

    task = loop.spawn(shake(), name="handshake")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    far.sendall(sent.read())
    pump(loop, lambda: loop._epoll is not None and bool(select.select([far], [], [], 0)[0]))
    received.write(far.recv(1 << 16))
    client.do_handshake()
    client.write(b"GET / at once")
    far.sendall(sent.read())
    pump(loop, lambda: task.done)
    assert channel.readable
    assert channel.recv() == b"GET / at once"
    channel.close()
    far.close()


class Counting:
    """Stands before an SSL object and notes how each read went."""

    def __init__(self, inner: ssl.SSLObject) -> None:
        self._inner = inner
        self.reads: list[int | None] = []
        self.writes = 0

    def read(self, size: int) -> bytes:
        self.reads.append(None)
        data = self._inner.read(size)
        self.reads[-1] = len(data)
        return data

    def write(self, data: bytes) -> int:
        self.writes += 1
        return self._inner.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_a_message_in_one_record_costs_one_read_and_an_answer_in_two_buffers_one_record(loop: Loop) -> None:
    go_on = threading.Event()
    got: list[bytes] = []

    def work(secured: ssl.SSLSocket) -> None:
        wait_for(go_on)
        for _ in range(3):
            secured.sendall(b"request")
            got.append(secured.recv(100))  # one record at a time

    channel, peer, _ = connect(loop, work)
    counting = Counting(channel._object)
    channel._object = counting  # type: ignore[assignment]
    go_on.set()
    for _ in range(3):
        data = None
        while data is None:
            pump(loop, lambda: channel.readable)
            data = channel.recv()
        assert data == b"request"
        channel.write(b"head ", b"body")
    finish(loop, channel, peer)
    assert got == [b"head body"] * 3
    assert counting.reads[:3] == [7, 7, 7]  # none of them found nothing; what follows is the end
    assert counting.writes == 3


def test_large_transfers_both_ways_at_once(loop: Loop) -> None:
    size = 6 * 1024 * 1024
    down, up = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    got_by_peer = bytearray()

    def work(secured: ssl.SSLSocket) -> None:
        # One thread for both directions: an SSLSocket is not made for two.
        secured.setblocking(False)
        offset = 0
        while len(got_by_peer) < size or offset < size:
            with contextlib.suppress(ssl.SSLWantReadError):
                got_by_peer.extend(secured.recv(1 << 16))
            if offset < size:
                with contextlib.suppress(ssl.SSLWantWriteError):
                    offset += secured.send(up[offset : offset + 16_000])
        secured.settimeout(10)

    channel, peer, errors = connect(loop, work)
    assert errors == []
    got = bytearray()
    most = 0

    async def both() -> None:
        nonlocal most
        channel.task = current_task()
        offset = 0
        while len(got) < size or offset < size or channel.buffered:
            if channel.readable and len(got) < size:
                got.extend(channel.recv() or b"")
            elif offset < size and not channel.buffered:
                channel.write(down[offset : offset + 200_000])
                offset += 200_000
                most = max(most, channel.buffered)
            else:
                await park()

    task = loop.spawn(both(), name="both")
    pump(loop, lambda: task.done, timeout_s=20)
    assert loop.failures == 0
    finish(loop, channel, peer)
    assert bytes(got) == up
    assert bytes(got_by_peer) == down
    assert most <= 200_000 + 13 * 64  # one write plus its record headers and tags


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=8), st.integers(1, 4096), st.integers(0, 2**32))
def test_every_byte_arrives_once_whatever_the_records_and_segments(chunks: list[int], step: int, seed: int) -> None:
    loop = Loop()
    rng = random.Random(seed)
    near, far = socket.socketpair()
    near.setblocking(False)
    channel = TlsChannel(PlainChannel(loop, near), context_of(ServerTls(LISTENER)), server_side=True)
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(received, sent, server_hostname="shop.example")
    got = bytearray()
    is_ended = False

    async def reader() -> None:
        nonlocal is_ended
        channel.task = current_task()
        await channel.handshake()
        while True:
            await wait_readable(channel)
            data = channel.recv(rng.randrange(1, 70_000))
            if data == b"":
                is_ended = True
                return
            got.extend(data or b"")

    task = loop.spawn(reader(), name="reader")

    def send_on() -> None:
        data = sent.read()
        for start in range(0, len(data), step):
            far.sendall(data[start : start + step])
            for _ in range(rng.randrange(3)):
                loop._round()

    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            send_on()
            while not select.select([far], [], [], 0)[0]:
                loop.drain()
            received.write(far.recv(1 << 16))
    payload = [rng.randbytes(length) for length in chunks]
    for data in payload:
        client.write(data)
        send_on()
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    send_on()
    pump(loop, lambda: task.done)
    channel.abort()
    far.close()
    loop._close()
    assert bytes(got) == b"".join(payload)
    assert is_ended


def test_an_end_without_close_notify_is_a_truncation_after_the_data(loop: Loop) -> None:
    def work(secured: ssl.SSLSocket) -> None:
        assert secured.recv(1) == b"?"  # the tickets are behind us
        secured.sendall(b"half an answer")
        with socket.socket(fileno=os.dup(secured.fileno())) as raw:
            raw.shutdown(socket.SHUT_WR)
        os.close(secured.detach())

    channel, _peer, errors = connect(loop, work)
    assert errors == []
    channel.write(b"?")
    pump(loop, lambda: channel.hangup)
    got = b""
    with pytest.raises(ChannelError, match="without close_notify") as caught:  # noqa: PT012  # data may come in parts
        while True:
            got += channel.recv() or b""
    assert got == b"half an answer"
    assert caught.value.is_truncated
    with pytest.raises(ChannelError):
        channel.recv()
    channel.abort()


def test_close_notify_is_a_clean_end(loop: Loop) -> None:
    def work(secured: ssl.SSLSocket) -> None:
        secured.sendall(b"done")
        secured.unwrap()

    channel, peer, _ = connect(loop, work)
    got = b""
    while True:
        pump(loop, lambda: channel.readable)
        data = channel.recv()
        if data == b"":
            break
        got += data or b""
    assert got == b"done"
    assert channel.readable
    assert channel.recv() == b""
    assert channel.hangup
    finish(loop, channel, peer)


def test_half_close_sends_close_notify_and_goes_on_reading_even_what_has_arrived_before(loop: Loop) -> None:
    def work(secured: ssl.SSLSocket) -> None:
        secured.sendall(b"before ")
        assert secured.recv(100) == b"request"
        assert secured.recv(100) == b""
        secured.sendall(b"after")

    channel, _peer, _ = connect(loop, work)
    pump(loop, lambda: channel.readable)
    channel.write(b"request")
    channel.finish_writes()
    channel.finish_writes()
    with pytest.raises(AssertionError):
        channel.write(b"x")
    got = b""
    while got != b"before after":
        pump(loop, lambda: channel.readable)
        got += channel.recv() or b""
    channel.abort()


def test_garbage_after_the_handshake_is_an_error_that_stays(loop: Loop) -> None:
    def work(secured: ssl.SSLSocket) -> None:
        with socket.socket(fileno=os.dup(secured.fileno())) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        nothing(secured)
        os.close(secured.detach())

    channel, _peer, _ = connect(loop, work)
    pump(loop, lambda: channel.readable)
    for _ in range(2):
        with pytest.raises(ChannelError, match="tls"):
            channel.recv()
        channel._raw.hangup = True
    with pytest.raises(ChannelError):
        channel.write(b"x")
    channel.abort()


def test_a_flood_of_records_without_data_is_cut_off(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    channel, peer, _ = connect(loop, lambda _secured: wait_for(gate))
    feeds = 0

    class Endless:
        """Stands for an SSL object that eats records for ever, as key updates make it do."""

        def read(self, _size: int) -> bytes:
            raise ssl.SSLWantReadError

        def pending(self) -> int:
            return 0

    def feed() -> bool:
        nonlocal feeds
        feeds += 1
        return True

    channel._object = Endless()  # type: ignore[assignment]
    monkeypatch.setattr(TlsChannel, "_feed", lambda _self: feed())
    with pytest.raises(ChannelError, match="too many records without data"):
        channel.recv()
    assert feeds == TLS_FEEDS
    channel.abort()
    gate.set()
    peer.join(10)


def test_a_client_that_speaks_http_fails_the_handshake(loop: Loop) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    channel = TlsChannel(PlainChannel(loop, near), context_of(ServerTls(LISTENER)), server_side=True)
    errors: list[str] = []

    async def shake() -> None:
        channel.task = current_task()
        try:
            await channel.handshake()
        except ssl.SSLError as exc:
            errors.append(exc.reason)

    far.sendall(b"GET / HTTP/1.1\r\n\r\n")
    task = loop.spawn(shake(), name="handshake")
    pump(loop, lambda: task.done)
    assert errors == ["HTTP_REQUEST"]
    channel.close()
    far.close()


def test_writing_under_back_pressure_waits_for_the_peer(loop: Loop) -> None:
    gate = threading.Event()
    total = 4 * 1024 * 1024
    got = bytearray()

    def work(secured: ssl.SSLSocket) -> None:
        gate.wait(10)
        while len(got) < total:
            got.extend(secured.recv(1 << 16))

    channel, peer, _ = connect(loop, work)
    chunk = bytes(65536)
    written = 0

    async def writer() -> None:
        nonlocal written
        channel.task = current_task()
        while written < total:
            channel.write(chunk)
            written += len(chunk)
            await drain(channel)

    task = loop.spawn(writer(), name="writer")
    while loop.drain():
        pass
    assert channel.buffered > 0
    assert written < total
    gate.set()
    pump(loop, lambda: task.done)
    finish(loop, channel, peer)
    assert len(got) == total


# --- certificate choice ----------------------------------------------------------------------------------------------


def names_in(secured: ssl.SSLSocket) -> list[str]:
    """Return the host names in the peer's certificate."""
    certificate = secured.getpeercert()
    assert certificate is not None
    return [str(entry[1]) for entry in certificate["subjectAltName"]]


def served_names(loop: Loop, tls: ServerTls, name: str | None) -> tuple[str, ...]:
    """Return the names in the certificate that a client asking for `name` gets; () if refused."""
    names: list[str] = []
    context = client_context()
    context.check_hostname = False

    def work(secured: ssl.SSLSocket) -> None:
        names.extend(names_in(secured))
        nothing(secured)

    channel, peer, errors = connect(loop, work, tls=tls, name=name, context=context)
    channel.abort()
    peer.join(10)
    assert bool(errors) == (not names)
    return tuple(names)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("shop.example", "shop.example"),
        ("SHOP.Example", "shop.example"),
        ("a.shop.example", "*.shop.example"),
        ("a.b.shop.example", "*.shop.example"),
        ("unknown.example", "default.example"),
        (None, "default.example"),
    ],
)
def test_the_certificate_is_chosen_exact_then_wildcard_then_default(
    loop: Loop, asked: str | None, expected: str
) -> None:
    assert served_names(loop, ServerTls(LISTENER), asked) == (expected,)


def test_without_any_usable_certificate_the_handshake_is_refused(loop: Loop) -> None:
    tls = ServerTls(Listener(name="https", tls=(TlsBinding(hostnames=("a.example",)),)))
    assert not tls.is_usable
    assert len(tls.problems) == 1
    assert served_names(loop, tls, "a.example") == ()


def test_a_broken_default_refuses_unknown_names_and_serves_the_others(loop: Loop) -> None:
    tls = ServerTls(Listener(name="https", tls=(TlsBinding(hostnames=("a.example",)), SHOP)))
    assert served_names(loop, tls, "shop.example") == ("shop.example",)
    assert served_names(loop, tls, "a.example") == ()


def test_an_update_serves_the_new_certificate_to_new_handshakes_only(loop: Loop) -> None:
    tls = ServerTls(Listener(name="https", tls=(SHOP,)))
    channel, peer, errors = connect(loop, nothing, tls=tls)
    assert errors == []
    renewed = binding("shop.example", "www.shop.example", hostnames=("shop.example",))
    assert tls.update(Listener(name="https", tls=(renewed,))) == ()
    assert served_names(loop, tls, "shop.example") == ("shop.example", "www.shop.example")
    finish(loop, channel, peer)


def test_an_unchanged_binding_keeps_its_context(loop: Loop) -> None:
    tls = ServerTls(LISTENER)
    before = tls._table.by_binding[SHOP]
    tls.update(Listener(name="https", tls=(SHOP,)))
    assert tls._table.by_binding[SHOP] is before
    tls.update(Listener(name="https", tls=(SHOP,), alpn=("http/1.1",)))
    assert tls._table.by_binding[SHOP] is not before


@pytest.mark.parametrize(
    ("cert_pem", "key_pem", "said"),
    [
        (SHOP.cert_pem, DEFAULT.key_pem, "do not belong together"),
        ("", SHOP.key_pem, "empty"),
        ("not a certificate", SHOP.key_pem, "cannot be read"),
        (SHOP.cert_pem, "not a key", "cannot be read"),
        (SHOP.cert_pem[:200], SHOP.key_pem, "cannot be read"),
    ],
)
def test_a_bad_pair_keeps_the_old_one_and_is_reported_without_key_text(
    loop: Loop, cert_pem: str, key_pem: str, said: str
) -> None:
    tls = ServerTls(Listener(name="https", tls=(DEFAULT, SHOP)))
    bad = TlsBinding(hostnames=("shop.example",), cert_pem=cert_pem, key_pem=key_pem)
    renewed = binding("default.example", "new.example", hostnames=("default.example",))
    (problem,) = tls.update(Listener(name="https", tls=(renewed, bad)))
    assert problem.index == 1
    assert problem.is_stale
    assert said in problem.message
    assert problem.message.startswith("listener https: tls[1]: ")
    assert "PRIVATE" not in problem.message
    assert served_names(loop, tls, "shop.example") == ("shop.example",)
    assert served_names(loop, tls, "default.example") == ("default.example", "new.example")
    # Mended later, it is used again.
    assert tls.update(Listener(name="https", tls=(renewed, SHOP))) == ()
    # A second bad update still finds the certificate in force.
    tls.update(Listener(name="https", tls=(renewed, bad)))
    assert served_names(loop, tls, "shop.example") == ("shop.example",)


def test_an_encrypted_key_is_refused_without_asking_anybody() -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(SHOP.key_pem.encode(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    ).decode()
    tls = ServerTls(Listener(name="https", tls=(TlsBinding(cert_pem=SHOP.cert_pem, key_pem=locked),)))
    assert "encrypted" in tls.problems[0].message


def test_protocol_floor_ciphers_and_options() -> None:
    context = context_of(ServerTls(LISTENER))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    names = [str(cipher["name"]) for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.2"]
    assert names
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in names)
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    strict = context_of(ServerTls(Listener(name="https", tls=(SHOP,), min_tls_version="1.3")))
    assert strict.minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_protocol_versions_are_refused(loop: Loop) -> None:
    context = client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    channel, peer, errors = connect(loop, nothing, context=context)
    assert errors
    channel.close()
    peer.join(10)
    assert isinstance(peer.error, (ssl.SSLError, OSError))


def test_no_common_alpn_is_http1(loop: Loop) -> None:
    channel, peer, errors = connect(loop, nothing, context=client_context(alpn=("spdy/3",)))
    assert errors == []
    assert channel.alpn is None
    finish(loop, channel, peer)


def test_pem_text_is_readable_by_path_and_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    with pem_file("text") as path, open(path, encoding="utf-8") as file:
        assert file.read() == "text"
    assert not os.path.exists(path)

    def refuse(_name: str, _flags: int) -> int:
        raise OSError("not here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pem_file("text") as path:
        with open(path, encoding="utf-8") as file:
            assert file.read() == "text"
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    assert not os.path.exists(os.path.dirname(path))


def test_a_binding_never_shows_its_key() -> None:
    assert "PRIVATE" not in repr(SHOP)
