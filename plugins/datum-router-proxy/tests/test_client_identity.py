"""What is made of a client's certificate once the handshake is complete: dates, names, what is told."""

from __future__ import annotations

import contextlib
import datetime
import ssl

import pytest
import trustme

from datum_router.model.listener import ClientAuth, Listener, TlsBinding
from datum_router_proxy.client_identity import ClientRefused, ClientSession, admit
from datum_router_proxy.server.tls import ServerTls

CA = trustme.CA()
CA_PEM = CA.cert_pem.bytes().decode()
SERVER = CA.issue_cert("one.test")
CHAIN = b"".join(blob.bytes() for blob in SERVER.cert_chain_pems).decode()
KEY = SERVER.private_key_pem.bytes().decode()
NOW = datetime.datetime.now(datetime.UTC)
CLIENT = CA.issue_cert("client.test", not_after=NOW + datetime.timedelta(hours=1))


def binding(**auth: object) -> TlsBinding:
    policy = ClientAuth(ca_pem=CA_PEM, **auth)  # type: ignore[arg-type]
    return TlsBinding(hostnames=("one.test",), cert_pem=CHAIN, key_pem=KEY, client_auth=policy)


def handshake(one: TlsBinding, client: trustme.LeafCert | None = CLIENT) -> ssl.SSLObject:
    """Return the server's side of a complete handshake with the context of a binding."""
    tls = ServerTls(Listener(name="https", tls=(one,)))
    assert tls.problems == ()
    table = tls._table
    assert table is not None
    context = ssl.create_default_context(cadata=CA_PEM)
    if client is not None:
        client.configure_cert(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = table.by_binding[one].wrap_bio(up, down, server_side=True)
    other = context.wrap_bio(down, up, server_hostname="one.test")
    for _ in range(6):
        for side in (other, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return server


def test_a_session_is_held_to_the_dates_whenever_it_is_looked_at() -> None:
    """A resumed session is not verified anew by OpenSSL: its dates are."""
    server = handshake(binding())
    now = NOW.timestamp()
    session = admit(server, now=now)
    assert isinstance(session, ClientSession)
    assert (session.is_known, session.header) == (True, b"")
    with pytest.raises(ClientRefused, match="a certificate that has expired"):
        admit(server, now=now + 7200)


def test_nobody_is_known_where_nobody_need_be() -> None:
    session = admit(handshake(binding(is_required=False), None), now=NOW.timestamp())
    assert session is not None
    assert (session.is_known, session.header) == (False, b"")
    plain = TlsBinding(hostnames=("one.test",), cert_pem=CHAIN, key_pem=KEY)
    assert admit(handshake(plain), now=NOW.timestamp()) is None


def test_what_is_told_is_what_was_asked_for() -> None:
    asked = binding(is_forwarded=True, details=("DNS", "Cert", "Chain"))
    session = admit(handshake(asked), now=NOW.timestamp())
    assert session is not None
    keys = [pair.partition("=")[0] for pair in session.header.decode().split(";")]
    assert keys == ["Hash", "Cert", "Chain", "DNS"]
    assert session.header.endswith(b"DNS=client.test")
    with pytest.raises(ClientRefused, match=r"for client.test, which is not in subjectAltNames"):
        admit(handshake(binding(names=("other.test",))), now=NOW.timestamp())


def test_a_binding_whose_clients_cannot_be_verified_serves_nobody_and_no_older_one_in_its_place() -> None:
    plain = TlsBinding(hostnames=("one.test",), cert_pem=CHAIN, key_pem=KEY)
    tls = ServerTls(Listener(name="https", tls=(plain,)))
    bad = TlsBinding(
        hostnames=("one.test",), cert_pem=CHAIN, key_pem=KEY, client_auth=ClientAuth(ca_pem="# unresolved\n")
    )
    (problem,) = tls.update(Listener(name="https", tls=(bad,)))
    assert not problem.is_stale
    assert not tls.is_usable
    # The same policy with another certificate that does not fit: what served before serves on, and asks the same.
    tls = ServerTls(Listener(name="https", tls=(binding(),)))
    broken = TlsBinding(hostnames=("one.test",), cert_pem=CHAIN, key_pem=KEY[:100], client_auth=binding().client_auth)
    (problem,) = tls.update(Listener(name="https", tls=(broken,)))
    assert problem.is_stale
    assert tls.policy_for("one.test") == binding().client_auth
