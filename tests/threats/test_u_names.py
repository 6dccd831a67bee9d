"""Row U14: names of destinations, and the name servers that answer for them.

An upstream by name is what a client of the egress listener asks for. Its name server is the attacker's here.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rrset
import pytest
import trio

from datum_router.model.egress import EgressListener, EgressMode, EgressPolicy, EgressRule
from datum_router.model.listener import Listener
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.observe import names
from datum_router_proxy.dataplane import ProxyDataPlane
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_peers import Recorder, make_snapshot

NAME = "api.attacker.example"
OPEN = EgressRule(name="default/out", namespace="default", networks=("0.0.0.0/0", "::/0"))
OPENED = EgressRule(name="default/lab", namespace="default", networks=("127.0.0.1/32",))
SILENT = object()
Answer = Callable[[str, int], "list[str] | object"]


class Attack:
    """A gateway, an upstream that should not be reached, and a name server that answers as a test says."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.questions = 0
        self.upstream = 0
        self.proxy = 0
        self.reached = 0
        self.plane: ProxyDataPlane

    async def names(self, sock: trio.socket.SocketType) -> None:
        with sock:
            while True:
                data, peer = await sock.recvfrom(4096)
                query = dns.message.from_wire(data)
                question = query.question[0]
                kind = "AAAA" if question.rdtype == 28 else "A"
                self.questions += kind == "A"
                said = self.answer(kind, self.questions)
                if said is SILENT:
                    continue
                reply = dns.message.make_response(query)
                reply.flags |= dns.flags.RA
                assert isinstance(said, list)
                if said:
                    reply.answer.append(dns.rrset.from_text_list(question.name, 0, "IN", kind, said))
                with trio.move_on_after(5):
                    await sock.sendto(reply.to_wire(max_size=65_000), peer)

    async def serve(self, stream: trio.SocketStream) -> None:
        self.reached += 1
        await stream.aclose()

    async def connect(self, target: str = "") -> tuple[bytes, str]:
        """Ask for a tunnel; return the status and why."""
        target = target or f"{NAME}:{self.upstream}"
        async with await trio.open_tcp_stream("127.0.0.1", self.proxy) as stream:
            await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            reply = await stream.receive_some(65_536)
        return reply[9:12], reply.rpartition(b": ")[2].decode().strip()

    def lookups(self) -> dict[str, float]:
        cells = [cell for cell in self.plane.take_cells() if cell.metric == names.EGRESS_LOOKUPS.name]
        return {cell.labels[0]: cell.value for cell in cells}


@asynccontextmanager
async def attack(answer: Answer, *rules: EgressRule, **settings: float) -> AsyncIterator[Attack]:
    made = Attack(answer)
    async with trio.open_nursery() as nursery:
        upstream = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        made.upstream = upstream.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, made.serve, [upstream])
        udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await udp.bind(("127.0.0.1", 0))
        nursery.start_soon(made.names, udp)
        snapshot = make_snapshot([], [])
        snapshot.data = SnapshotData(version=1, digest="x", egress=EgressPolicy(rules=rules or (OPEN,)))
        servers = f"127.0.0.1:{udp.getsockname()[1]}"
        made.plane = ProxyDataPlane(
            Holder(snapshot),
            Recorder(),
            ProxySettings(egress_nameservers=servers, **settings),  # type: ignore[arg-type]  # numbers by name
        )
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        made.proxy = sock.getsockname()[1]
        egress = EgressListener(mode=EgressMode.PROXY, source="default/")
        made.plane.add_listener(Listener(name="egress", egress=egress, alpn=("http/1.1",)), sock)
        nursery.start_soon(made.plane.run)
        with trio.fail_after(20):
            yield made
        nursery.cancel_scope.cancel()


def only(*addresses: str) -> Answer:
    return lambda kind, _number: [one for one in addresses if (":" in one) == (kind == "AAAA")]


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "0.0.0.0", "169.254.169.254", "10.96.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1"],
)
def test_u14_a_name_that_leads_inside_is_not_dialled(address: str) -> None:
    async def script() -> None:
        async with attack(only(address)) as made:
            assert await made.connect() == (b"403", "closed_address")
            assert made.reached == 0

    trio.run(script)


def test_u14_a_name_server_that_answers_otherwise_a_moment_later_gains_nothing() -> None:
    async def script() -> None:
        # The first answer is where the policy opens the way; every later one is the metadata service.
        def answer(kind: str, number: int) -> list[str]:
            return [] if kind == "AAAA" else ["127.0.0.1" if number == 1 else "169.254.169.254"]

        async with attack(answer, OPENED, OPEN, egress_ttl_min_s=0.000001) as made:
            assert (await made.connect())[0] == b"200"
            for _ in range(2):
                assert await made.connect() == (b"403", "closed_address")
            assert made.questions == 3, "each decision looked it up once, and dialled what it had judged"
            assert made.reached <= 1

    trio.run(script)


def test_u14_a_name_is_asked_for_once_in_its_time() -> None:
    async def script() -> None:
        async with attack(only("127.0.0.1"), OPENED) as made:
            for _ in range(3):
                assert (await made.connect())[0] == b"200"
            assert made.questions == 1
            assert made.lookups() == {"answered": 1, "cached": 2}

    trio.run(script)


def test_u14_a_name_server_that_does_not_answer_costs_its_own_client_a_while_and_nobody_else() -> None:
    async def script() -> None:
        async with attack(lambda _kind, _number: SILENT, OPENED, egress_lookup_timeout_s=0.5) as made:
            answers: list[tuple[bytes, str]] = []

            async def ask() -> None:
                answers.append(await made.connect())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                assert (await made.connect(f"127.0.0.1:{made.upstream}"))[0] == b"200", "no name, no wait"
                assert answers == []
            assert answers == [(b"504", "resolution_timeout")]
            assert made.lookups() == {"timeout": 1}

    trio.run(script)


def test_u14_more_names_at_once_than_the_limit_are_refused_at_once() -> None:
    async def script() -> None:
        silent: Answer = lambda _kind, _number: SILENT  # noqa: E731  # one line says it all
        async with attack(silent, egress_lookup_timeout_s=1.0, egress_lookups=2) as made:
            answers: list[tuple[bytes, str]] = []

            async def ask(number: int) -> None:
                answers.append(await made.connect(f"n{number}.attacker.example:443"))

            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(ask, number)
            assert sorted(answers) == [(b"503", "too_many_lookups")] * 3 + [(b"504", "resolution_timeout")] * 2

    trio.run(script)


def test_u14_of_many_addresses_a_few_are_looked_at() -> None:
    async def script() -> None:
        many = [f"10.{n // 256}.{n % 256}.1" for n in range(3_000)]  # 48 KB of records, the most that fits a datagram
        async with attack(lambda kind, _number: [] if kind == "AAAA" else many) as made:
            assert await made.connect() == (b"403", "closed_address")
            assert made.lookups() == {"cut": 1}

    trio.run(script)


def test_u14_a_client_that_leaves_while_a_name_is_looked_up_leaves_nothing_behind() -> None:
    async def script() -> None:
        async with attack(lambda _kind, _number: SILENT, egress_lookup_timeout_s=0.3) as made:
            before = made.plane.stats()["tasks"]
            stream = await trio.open_tcp_stream("127.0.0.1", made.proxy)
            await stream.send_all(f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            while not made.questions:  # noqa: ASYNC110  # the name server tells nobody
                await trio.sleep(0.01)
            await stream.aclose()
            while made.plane.stats()["tasks"] != before or made.plane.stats()["connections"]:  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert made.lookups() == {"timeout": 1}

    trio.run(script)
