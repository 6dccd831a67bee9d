"""Session tickets: keys by secret and identity, rotation, and a fallback where they cannot be set."""

from __future__ import annotations

import contextlib
import ssl
import time
from unittest import mock

import msgspec
import pytest
import trustme

from datum_router.model.listener import ClientAuth, Listener, TlsBinding
from datum_router_proxy.client_identity import ClientSession, admit
from datum_router_proxy.server import tickets
from datum_router_proxy.server.tickets import KEY_BYTES, NAME_BYTES, derive_key, install_key
from datum_router_proxy.server.tls import ServerTls
from datum_router_proxy.wire.client_hello import ClientHello, read_client_hello

CA = trustme.CA()
ONE, TWO, THREE = (bytes((number,)) * 32 for number in (1, 2, 3))
VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"]
)


def binding(name: str, identity: str = "") -> TlsBinding:
    cert = CA.issue_cert(name)
    return TlsBinding(
        hostnames=(name,),
        cert_pem=b"".join(blob.bytes() for blob in cert.cert_chain_pems).decode(),
        key_pem=cert.private_key_pem.bytes().decode(),
        identity=identity or name,
    )


A, B = binding("a.test"), binding("b.test")
LISTENER = Listener(name="https", tls=(A, B))


class Client:
    """A client that keeps its session; talks to a server over memory."""

    def __init__(self, version: ssl.TLSVersion) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        CA.configure_trust(self.context)
        self.context.minimum_version = self.context.maximum_version = version
        self.session: ssl.SSLSession | None = None
        self.server: ssl.SSLObject | None = None

    def talk(self, server: ServerTls, name: str = "a.test") -> bool:
        """Shake hands as the data plane does, and exchange a byte; return whether the session was resumed."""
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.context.wrap_bio(to_client, to_server, server_hostname=name, session=self.session)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        hello = to_server.read()
        read = read_client_hello(hello)
        assert isinstance(read, ClientHello)
        chosen = server.choose(read)
        assert chosen is not None
        received = ssl.MemoryBIO()
        received.write(hello)
        ours = self.server = chosen[0].wrap_bio(received, to_client, server_side=True)
        for _ in range(4):
            for side in (ours, client):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                received.write(to_server.read())
        ours.write(b"x")
        assert client.read(1) == b"x"
        self.session = client.session
        return bool(client.session_reused)


@VERSIONS
def test_what_one_process_began_another_with_the_same_secret_resumes(version: ssl.TLSVersion) -> None:
    client = Client(version)
    assert client.talk(ServerTls(LISTENER, [ONE])) is False
    assert client.talk(ServerTls(LISTENER, [ONE])) is True
    assert client.talk(ServerTls(LISTENER, [TWO])) is False


@VERSIONS
def test_a_renewed_certificate_leaves_sessions_as_they_are(version: ssl.TLSVersion) -> None:
    server, client = ServerTls(LISTENER, [ONE]), Client(version)
    client.talk(server)
    assert server.update(Listener(name="https", tls=(binding("a.test"), B))) == ()
    assert client.talk(server) is True


@VERSIONS
def test_a_session_of_one_identity_resumes_nothing_at_another(version: ssl.TLSVersion) -> None:
    server, client = ServerTls(LISTENER, [ONE]), Client(version)
    client.talk(server, "a.test")
    client.context.check_hostname = False
    assert client.talk(server, "b.test") is False


CLIENTS, OTHERS = trustme.CA(), trustme.CA()


def asking(host: TlsBinding, ca: trustme.CA = CLIENTS, **auth: object) -> TlsBinding:
    policy = ClientAuth(ca_pem=ca.cert_pem.bytes().decode(), **auth)  # type: ignore[arg-type]
    return msgspec.structs.replace(host, client_auth=policy)


@VERSIONS
def test_no_ticket_is_a_way_around_the_certificates_that_a_host_asks_for(version: ssl.TLSVersion) -> None:
    """Workers share secrets, and A and B one identity: what is asked of clients keeps their tickets apart."""
    open_, closed = binding("a.test", "same"), asking(binding("b.test", "same"))
    listener = Listener(name="https", tls=(open_, closed))
    workers = [ServerTls(listener, [ONE]) for _ in range(2)]
    client = Client(version)
    client.context.check_hostname = False
    client.talk(workers[0], "a.test")
    assert client.talk(workers[1], "a.test") is True
    for worker in workers:
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            client.talk(worker, "b.test")
    CLIENTS.issue_cert("client.test").configure_cert(client.context)
    assert client.talk(workers[0], "b.test") is False
    assert client.talk(workers[1], "b.test") is True
    assert client.server is not None
    session = admit(client.server, now=time.time())
    assert isinstance(session, ClientSession)
    assert session.is_known, "the certificate comes with the session to the other worker"


@VERSIONS
@pytest.mark.parametrize(
    "change", [{"ca": OTHERS}, {"names": ("client.test",)}, {"is_required": False}], ids=["CA", "names", "mode"]
)
def test_what_is_asked_anew_is_asked_of_who_comes_back_too(version: ssl.TLSVersion, change: dict[str, object]) -> None:
    one = binding("a.test")
    before = ServerTls(Listener(name="https", tls=(asking(one),)), [ONE])
    after = ServerTls(Listener(name="https", tls=(asking(one, **change),)), [ONE])  # type: ignore[arg-type]
    client = Client(version)
    CLIENTS.issue_cert("client.test").configure_cert(client.context)
    client.talk(before)
    assert client.talk(ServerTls(Listener(name="https", tls=(asking(one),)), [ONE])) is True
    if change.get("ca") is OTHERS:
        with pytest.raises(ssl.SSLCertVerificationError):
            client.talk(after)
    else:
        assert client.talk(after) is False


@VERSIONS
def test_the_secret_before_is_still_taken_and_the_one_before_that_is_not(version: ssl.TLSVersion) -> None:
    server, client = ServerTls(LISTENER, [ONE]), Client(version)
    client.talk(server)
    server.set_secrets([TWO, ONE])
    assert client.talk(server) is True
    fresh = Client(version)
    fresh.talk(server)
    server.set_secrets([THREE, TWO])
    assert fresh.talk(server) is True, "what came after the change was made by the new one"
    old = Client(version)
    old.talk(ServerTls(LISTENER, [ONE]))
    assert old.talk(server) is False
    assert old.talk(server) is True


def test_keys_are_of_their_secret_and_identity_alone_and_of_the_right_size() -> None:
    keys = {derive_key(secret, identity) for secret in (ONE, TWO) for identity in ("a", "b", "")}
    assert len(keys) == 6
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert len({key[:NAME_BYTES] for key in keys}) == 6
    assert derive_key(ONE, "a") == derive_key(ONE, "a")


@pytest.mark.parametrize("broken", ["_openssl", "_pointer"])
def test_without_a_way_to_set_keys_each_process_has_its_own(broken: str) -> None:
    with mock.patch.object(tickets, broken, return_value=None):
        assert install_key(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), bytes(KEY_BYTES)) is False
        server, client = ServerTls(LISTENER, [ONE, TWO]), Client(ssl.TLSVersion.TLSv1_3)
        client.talk(server)
        assert client.talk(server) is True, "by OpenSSL's own keys"
        assert client.talk(ServerTls(LISTENER, [ONE, TWO])) is False


def test_what_is_no_context_of_openssl_is_not_believed_to_be_one() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    library = tickets._library()
    assert library is not None
    assert tickets._pointer(context) is not None
    with mock.patch.object(tickets, "_library") as other:
        other.return_value.SSL_CTX_get_options.return_value = int(context.options) ^ 1
        assert tickets._pointer(context) is None
