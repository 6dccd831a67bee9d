"""What is told of a client's certificate can be read back, and hosts never lend each other their clients."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datum_router.model.listener import ClientAuth, Listener, TlsBinding
from datum_router.policy.client_cert_header import ClientCertificate, element
from datum_router.policy.peer_names import PeerNames
from datum_router.routing.client_guard import make_guard

TEXTS = st.text(max_size=12)


def parse(text: str) -> list[tuple[str, str]]:
    """Read one element, character by character: pairs until the end, with no comma outside of quotes."""
    pairs: list[tuple[str, str]] = []
    key, value, is_key, is_quoted, at = "", "", True, False, 0
    while at < len(text):
        one = text[at]
        if is_quoted:
            if one == "\\":
                at += 1
                value += text[at]
            elif one == '"':
                is_quoted = False
            else:
                value += one
        elif one == '"' and not is_key and not value:
            is_quoted = True
        elif one == "=" and is_key:
            is_key = False
        elif one == ";":
            pairs.append((key, value))
            key, value, is_key = "", "", True
        else:
            assert one not in ',"\\', text
            key, value = (key + one, value) if is_key else (key, value + one)
        at += 1
    assert not is_quoted
    return [*pairs, (key, value)]


@given(
    uris=st.lists(TEXTS, max_size=3), dns=st.lists(TEXTS, max_size=3), subject=st.lists(st.tuples(TEXTS, TEXTS)),
    by=st.lists(TEXTS, max_size=2),
)  # fmt: skip
def test_an_element_says_as_many_names_as_there_are_and_nothing_else(
    uris: list[str], dns: list[str], subject: list[tuple[str, str]], by: list[str]
) -> None:
    certificate = ClientCertificate(
        digest="0",
        names=PeerNames(uris=tuple(uris), dns=tuple(dns)),
        subject=tuple((("commonName", value),) for _, value in subject),
    )
    found = element(certificate, ("Subject", "URI", "DNS"), by=by)
    assert found.isascii()
    assert found.decode().isprintable()
    keys = [key for key, _ in parse(found.decode())]
    assert keys == ["By"] * len(by) + ["Hash", "Subject"] + ["URI"] * len(uris) + ["DNS"] * len(dns)


HOSTS = st.sampled_from(["a.x", "b.x", "a.b.x", "*.x", "*.b.x", "y"])
POLICIES = st.sampled_from([None, ClientAuth(ca_pem="1"), ClientAuth(ca_pem="2"), ClientAuth(is_required=False)])
REQUESTED = st.sampled_from(["a.x", "b.x", "a.b.x", "c.b.x", "c.x", "x", "y", "z"])


def asked(bindings: list[tuple[list[str], ClientAuth | None]], host: str) -> ClientAuth | None:
    """Return what a host asks: by the longest name that covers it, the first binding of that name."""
    found: tuple[int, ClientAuth | None] = (-1, bindings[0][1])
    for names, policy in bindings:
        for name in names:
            covers = host == name or (name.startswith("*.") and host.endswith(name[1:]) and len(host) > len(name) - 1)
            weight = 1000 if host == name else len(name)
            if covers and weight > found[0]:
                found = (weight, policy)
    return found[1]


@given(
    bindings=st.lists(st.tuples(st.lists(HOSTS, min_size=1, max_size=3), POLICIES), min_size=1, max_size=4),
    policy=POLICIES,
    host=REQUESTED,
    hostnames=st.lists(HOSTS, max_size=2),
)
def test_a_request_is_admitted_by_exactly_what_its_host_asks(
    bindings: list[tuple[list[str], ClientAuth | None]],
    policy: ClientAuth | None,
    host: str,
    hostnames: list[str],
) -> None:
    tls = tuple(TlsBinding(hostnames=tuple(names), client_auth=one) for names, one in bindings)
    guard = make_guard(Listener(name="https", tls=tls))
    if all(one is None for _, one in bindings):
        assert guard is None
        return
    assert guard is not None
    assert guard.admits(policy, host) is (asked(bindings, host) == policy)
    if guard.admits(policy, host, hostnames):
        assert guard.admits(policy, host)


def test_a_rule_of_a_wildcard_that_asks_is_not_had_by_a_host_that_does_not() -> None:
    required = ClientAuth(ca_pem="1")
    tls = (
        TlsBinding(hostnames=("*.shop.example",), client_auth=required),
        TlsBinding(hostnames=("open.shop.example",)),
    )
    guard = make_guard(Listener(name="https", tls=tls))
    assert guard is not None
    assert guard.admits(None, "open.shop.example", ("open.shop.example",))
    assert guard.admits(None, "open.shop.example")
    assert not guard.admits(None, "open.shop.example", ("*.shop.example",))
    assert not guard.admits(required, "open.shop.example")
    assert guard.admits(required, "a.b.shop.example", ("*.shop.example",))
