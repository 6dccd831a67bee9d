"""The corpus of egress tricks gets the verdict that the policy says: from the pure decision, and from a gateway."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import h11
import pytest
import trio

from datum_router.egress.decide import EgressRequest, EgressTable, Verdict
from datum_router.egress.destination import BadDestination, Destination, parse_authority_form, parse_destination
from datum_router.model.egress import EgressListener, EgressMode, EgressSource
from datum_router.model.listener import Listener
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.observe import names as metric
from datum_router.routing.normalize import BadHost, BadPath, normalize_target, parse_authority
from datum_router_proxy.dataplane import ProxyDataPlane
from datum_router_proxy.egress import connection
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_peers import Recorder, make_snapshot
from datum_router_proxy.upstream import connect
from datum_router_proxy.wire import grammar
from tests.conformance.egress_corpus import Answers, Case, Corpus, compile_policies, load

TRICKS, DEFAULT_ALLOW = load("tricks.yaml"), load("default-allow.yaml")
BOTH = pytest.mark.parametrize("corpus", [TRICKS, DEFAULT_ALLOW], ids=["tricks", "default-allow"])
OUTSIDE = "93.184.216.34"
"""Leads to the test upstream: nothing that a machine has by itself is outside."""
SOURCE = EgressSource(namespaces=("default",))
PURE_PORT = 8080


# --- the pure decision ----------------------------------------------------------------------------------------


def read(case: Case, port: int) -> EgressRequest | str:
    """Return what is asked for, or why it is refused before anybody decides."""
    verb, target = case.words(port)
    if verb == "CONNECT":
        found: Destination | BadDestination = parse_authority_form(target)
        return "bad_destination" if isinstance(found, BadDestination) else EgressRequest(destination=found)
    if verb == "TLS":
        found = parse_destination(target, port)
        if isinstance(found, BadDestination) or found.address:
            return "bad_destination"
        return EgressRequest(destination=found, is_tls=True)
    match = grammar.ABSOLUTE_FORM.fullmatch(target.encode())
    if match is None or not target.startswith("http://"):
        return "bad_target"
    authority, rest = match.groups()
    parsed = parse_authority(authority) if grammar.AUTHORITY.fullmatch(authority) else BadHost("")
    if isinstance(parsed, BadHost):
        return "bad_host"
    found = parse_destination(parsed.host, parsed.port or 80)
    if isinstance(found, BadDestination):
        return "bad_destination"
    path = normalize_target(rest or b"/")
    assert not isinstance(path, BadPath)
    return EgressRequest(destination=found, method=verb, path=path.path)


def decide(table: EgressTable, request: EgressRequest, answers: Answers) -> Verdict:
    verdict = table.judge_name(SOURCE, request)
    if verdict.is_final:
        return verdict
    return table.judge_addresses(SOURCE, request, answers.ask(request.destination.name))


@BOTH
def test_every_trick_gets_the_verdict_of_the_policy(corpus: Corpus) -> None:
    table = EgressTable(compile_policies(corpus.specs(PURE_PORT)))
    answers = Answers(corpus.names)
    wrong = []
    for case in corpus.cases:
        asked = read(case, PURE_PORT)
        if isinstance(asked, str):
            found = ("deny", asked)
        else:
            verdict = decide(table, asked, answers)
            found = ("allow" if verdict.is_allowed else "deny", verdict.reason.value)
            assert verdict.is_final
            assert bool(verdict.addresses) == verdict.is_allowed
        if found != (case.verdict, case.reason):
            wrong.append((case.line, found, (case.verdict, case.reason)))
    assert wrong == []


@pytest.mark.parametrize(
    ("corpus", "destinations"),
    [
        (TRICKS, ["exfiltrated-data.attacker.example", "secret.cdn.example.test", "foo.localhost"]),
        (TRICKS, ["shut.ports.example.test", "never.ports.example.test", "a.ports.example.test:10"]),
        (DEFAULT_ALLOW, ["data.secret.example.test", "partner.example.test", "foo.localhost", "mail.example.test:25"]),
    ],
)
def test_no_name_server_hears_of_a_name_that_the_policy_cannot_allow(corpus: Corpus, destinations: list[str]) -> None:
    table = EgressTable(compile_policies(corpus.specs(PURE_PORT)))
    answers = Answers(corpus.names)
    for text in destinations:
        name, _, port = text.partition(":")
        request = EgressRequest(destination=Destination(name=name, port=int(port or PURE_PORT)))
        assert not decide(table, request, answers).is_allowed
    assert answers.asked == []


# --- a gateway --------------------------------------------------------------------------------------------------


class NameServer:
    """Answers A and AAAA on a loopback port; the answer changes with each question about a name, and has TTL 0."""

    def __init__(self, corpus: Corpus, sock: trio.socket.SocketType) -> None:
        self._answers = Answers(corpus.names)
        self._current: dict[str, tuple[str, ...]] = {}
        self._half: set[str] = set()
        self._sock = sock
        self.port: int = sock.getsockname()[1]

    async def run(self) -> None:
        with self._sock:
            while True:
                data, peer = await self._sock.recvfrom(4096)
                query = dns.message.from_wire(data)
                await self._sock.sendto(self.reply(query).to_wire(), peer)

    def reply(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        name = question.name.to_text().rstrip(".")
        if name in self._half:  # the other of A and AAAA for the same decision
            self._half.discard(name)
        else:
            self._half.add(name)
            self._current[name] = self._answers.ask(name)
        addresses = self._current[name]
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if not addresses:
            answer.set_rcode(dns.rcode.NXDOMAIN)
            return answer
        kind = "AAAA" if question.rdtype == 28 else "A"
        mine = [one for one in addresses if (":" in one) == (kind == "AAAA")]
        if mine:
            answer.answer.append(dns.rrset.from_text_list(question.name, 0, "IN", kind, mine))
        return answer


class Rig:
    """A gateway with both egress listeners, an upstream and a name server."""

    def __init__(self) -> None:
        self.plane: ProxyDataPlane
        self.proxy = 0
        self.tls = 0
        self.upstream = 0
        self.reached = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer whatever comes with what says that the upstream was reached."""
        self.reached += 1
        async with stream:
            first = await stream.receive_some(4096)
            if first.startswith((b"GET", b"POST", b"PUT")):
                body = b"reached"
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            elif first:
                await stream.send_all(b"reached")

    def counted(self) -> dict[tuple[str, str], int]:
        """Take decisions since the last call."""
        return {
            (cell.labels[0], cell.labels[1]): int(cell.value)
            for cell in self.plane.take_cells()
            if cell.metric == metric.EGRESS_DECISIONS.name
        }


@asynccontextmanager
async def rig(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    made = Rig()
    base = make_snapshot([], [])
    async with trio.open_nursery() as nursery:
        upstream = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        made.upstream = upstream.socket.getsockname()[1]
        policy = compile_policies(corpus.specs(made.upstream))
        base.data = SnapshotData(version=1, digest="x", egress=policy)
        nursery.start_soon(trio.serve_listeners, made.serve, [upstream])
        udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await udp.bind(("127.0.0.1", 0))
        server = NameServer(corpus, udp)
        nursery.start_soon(server.run)
        settings = ProxySettings(egress_nameservers=f"127.0.0.1:{server.port}", egress_ttl_min_s=0.000001)
        made.plane = ProxyDataPlane(Holder(base), Recorder(), settings)
        for mode in EgressMode:
            sock = socket.create_server(("127.0.0.1", 0))
            sock.setblocking(False)
            setattr(made, mode.value, sock.getsockname()[1])
            listener = Listener(
                name=f"egress-{mode.value}", egress=EgressListener(mode=mode, source="default/"), alpn=("http/1.1",)
            )
            made.plane.add_listener(listener, sock)
        monkeypatch.setattr(connection, "TLS_PORT", made.upstream)
        dial = connect._start
        monkeypatch.setattr(
            connect, "_start", lambda loop, to, *rest: dial(loop, "127.0.0.1" if to == OUTSIDE else to, *rest)
        )
        nursery.start_soon(made.plane.run)
        yield made
        nursery.cancel_scope.cancel()


def client_hello(name: str) -> bytes:
    """Return the first bytes of a handshake by OpenSSL; an address is put in as a name, which OpenSSL would not do."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    shown = name if not name[0].isdigit() else "x" * len(name)
    tls = context.wrap_bio(incoming, outgoing, server_hostname=shown)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read().replace(shown.encode(), name.encode())


async def whole_reply(stream: trio.SocketStream) -> None:
    """Read one answer to its end."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    parser.send(h11.EndOfMessage())
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            parser.receive_data(await stream.receive_some(4096))


async def ask(made: Rig, case: Case, *, is_used: bool) -> bytes:
    """Do what a case says and return what came back, all of it.

    Args:
        is_used: A connection to the proxy has carried a request before, which nobody decided about.
    """
    verb, target = case.words(made.upstream)
    async with await trio.open_tcp_stream("127.0.0.1", made.tls if verb == "TLS" else made.proxy) as stream:
        if verb == "TLS":
            await stream.send_all(client_hello(target))
        else:
            if is_used:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await whole_reply(stream)
            host = "proxied.example"
            await stream.send_all(f"{verb} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        if verb == "CONNECT" and case.verdict == "allow":
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some(4096)
            assert head.startswith(b"HTTP/1.1 200 ")
            await stream.send_all(b"hello through the tunnel")
        received = b""
        try:
            while data := await stream.receive_some(4096):
                received += data
        except trio.BrokenResourceError:
            received += b"<reset>"
        return received


@BOTH
@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
def test_every_trick_gets_the_same_verdict_from_a_gateway(
    corpus: Corpus, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = []

    async def script() -> None:
        with trio.fail_after(60):
            async with rig(corpus, monkeypatch) as made:
                for case in corpus.cases:
                    before = made.reached
                    received = await ask(made, case, is_used=is_used)
                    counted = made.counted()
                    is_reached = b"reached" in received
                    expected = {(case.verdict, case.reason): 1}
                    if case.reason in ("bad_host", "bad_target"):  # refused as HTTP: nobody had to decide
                        expected = {}
                        assert received.startswith(b"HTTP/1.1 400 "), case.line
                    if (is_reached, made.reached - before, counted) != (
                        case.verdict == "allow",
                        int(case.verdict == "allow"),
                        expected,
                    ):
                        wrong.append((case.line, received[:200], counted, case.comment))

    trio.run(script)
    assert wrong == []
