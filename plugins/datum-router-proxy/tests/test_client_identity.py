"""What is made of a client's certificate once the handshake is complete: dates, names, what is told."""

from __future__ import annotations

import contextlib
import datetime
import ssl

import pytest
import trustme

from datum_router.model.listener import ClientAuth, Listener, TlsBinding
from datum_router.routing.client_guard import make_guard
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
    server = table.by_binding[one].contexts[0].wrap_bio(up, down, server_side=True)
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


@pytest.mark.parametrize("is_sni_required", [False, True])
def test_who_is_asked_in_the_handshake_is_whom_requests_are_held_to(is_sni_required: bool) -> None:
    """A wildcard covers names of any depth on both sides; were it not so, a name in between would be asked nothing."""
    required, optional = ClientAuth(ca_pem=CA_PEM), ClientAuth(ca_pem=CA_PEM, is_required=False)
    policies = ((("front.test",), None), (("*.x", "y"), required), (("*.b.x",), optional), (("open.x", "*.z"), None))
    tls = tuple(
        TlsBinding(hostnames=names, cert_pem=CHAIN, key_pem=KEY, client_auth=policy) for names, policy in policies
    )
    listener = Listener(name="https", tls=tls, is_sni_required=is_sni_required)
    server, guard = ServerTls(listener), make_guard(listener)
    assert guard is not None
    expected = {
        "a.x": required, "a.c.x": required, "a.b.c.d.x": required, "b.x": required, "y": required, "a.b.x": optional,
        "a.a.b.x": optional, "open.x": None, "a.open.x": required, "a.b.z": None, "x": None, "front.test": None,
        "nobody.test": None,
    }  # fmt: skip
    assert {name: server.policy_for(name) for name in expected} == expected
    assert {name: guard.policy_of(name) for name in expected} == expected
