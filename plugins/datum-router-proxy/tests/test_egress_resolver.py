"""Names are asked for once, kept for as long as they say within limits, and never more than so many at once."""

from __future__ import annotations

import functools
import socket
from collections.abc import Awaitable, Callable, Sequence

import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio
import trio.lowlevel
import trio.testing

from datum_router.errors import ConfigError
from datum_router.model.egress import EgressReason
from datum_router.observe import names
from datum_router_proxy.egress.resolver import Asker, Lookup, NameResolver, NoAnswer, NotFound
from datum_router_proxy.loop import Loop
from datum_router_proxy.settings import ProxySettings, from_text

SETTINGS = ProxySettings()


class Servers:
    """What would be asked; `held` keeps answers back."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.held: trio.Event | None = None
        self.answer: Callable[[], tuple[Sequence[str], float]] = lambda: (["192.0.2.1"], 60.0)

    async def ask(self, name: str) -> tuple[Sequence[str], float]:
        self.asked.append(name)
        if self.held is not None:
            await self.held.wait()
        return self.answer()


class Bench:
    def __init__(self, settings: ProxySettings = SETTINGS) -> None:
        self.now = 1000.0
        self.loop = Loop(clock=lambda: self.now)
        self.servers = Servers()
        self.resolver = NameResolver(self.loop, settings, self.servers.ask)
        self.found: list[Lookup] = []

    async def _one(self, name: str) -> None:
        self.found.append(await self.resolver.resolve(name))

    def start(self, *asked: str) -> None:
        for name in asked:
            self.loop.spawn(self._one(name), name="test")

    async def done(self, count: int) -> list[Lookup]:
        with trio.fail_after(5):
            while len(self.found) < count:
                await trio.lowlevel.checkpoint()
        return self.found

    def counted(self) -> dict[str, float]:
        return {cell.labels[0]: cell.value for cell in self.resolver.take_cells()}


def running(settings: ProxySettings, script: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench(settings)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.loop.run)
            await trio.testing.wait_all_tasks_blocked()
            await script(bench)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_who_asks_meanwhile_gets_the_same_answer_and_later_it_is_known() -> None:
    async def script(bench: Bench) -> None:
        bench.servers.held = trio.Event()
        bench.start("a", "a", "b")
        await trio.testing.wait_all_tasks_blocked()
        bench.servers.held.set()
        assert [one.addresses for one in await bench.done(3)] == [("192.0.2.1",)] * 3
        bench.start("a")
        await bench.done(4)
        assert sorted(bench.servers.asked) == ["a", "b"]
        assert bench.counted() == {"answered": 2, "cached": 1}

    running(SETTINGS, script)


@pytest.mark.parametrize(("ttl_s", "kept_s"), [(0.0, 5.0), (60.0, 60.0), (86_400.0, 300.0)])
def test_an_answer_is_kept_for_its_ttl_within_limits(ttl_s: float, kept_s: float) -> None:
    async def script(bench: Bench) -> None:
        bench.servers.answer = lambda: (["192.0.2.1"], ttl_s)
        bench.start("a")
        await bench.done(1)
        bench.now += kept_s - 0.1
        bench.start("a")
        await bench.done(2)
        assert bench.servers.asked == ["a"]
        bench.now += 0.2
        bench.start("a")
        await bench.done(3)
        assert bench.servers.asked == ["a", "a"]

    running(SETTINGS, script)


def raising(error: Exception) -> tuple[Sequence[str], float]:
    raise error


@pytest.mark.parametrize(
    ("error", "reason", "result", "is_kept"),
    [
        (NotFound("a"), EgressReason.NAME_NOT_FOUND, "not_found", True),
        (NoAnswer("a"), EgressReason.RESOLUTION_FAILED, "failed", False),
        (trio.TooSlowError(), EgressReason.RESOLUTION_TIMEOUT, "timeout", False),
    ],
)
def test_a_failure_has_a_reason_and_only_absence_is_kept(
    error: Exception, reason: EgressReason, result: str, is_kept: bool
) -> None:
    async def script(bench: Bench) -> None:
        bench.servers.answer = functools.partial(raising, error)
        bench.start("a")
        assert [one.failure for one in await bench.done(1)] == [reason]
        bench.start("a")
        await bench.done(2)
        assert len(bench.servers.asked) == (1 if is_kept else 2)
        assert bench.counted()[result] == (1 if is_kept else 2)

    running(SETTINGS, script)


def test_servers_that_do_not_answer_are_not_waited_for_longer_than_the_limit() -> None:
    async def script(bench: Bench) -> None:
        bench.servers.held = trio.Event()
        bench.start("a")
        assert [one.failure for one in await bench.done(1)] == [EgressReason.RESOLUTION_TIMEOUT]

    running(ProxySettings(egress_lookup_timeout_s=0.01), script)


def test_more_names_at_once_than_the_limit_are_refused() -> None:
    async def script(bench: Bench) -> None:
        bench.servers.held = trio.Event()
        bench.start("a", "b", "c", "a")
        await trio.testing.wait_all_tasks_blocked()
        assert [one.failure for one in bench.found] == [EgressReason.TOO_MANY_LOOKUPS]
        bench.servers.held.set()
        await bench.done(4)
        assert bench.counted() == {"too_many": 1, "answered": 2}

    running(ProxySettings(egress_lookups=2), script)


def test_ten_thousand_addresses_are_cut_to_the_limit() -> None:
    async def script(bench: Bench) -> None:
        bench.servers.answer = lambda: ([f"192.0.{n // 256}.{n % 256}" for n in range(10_000)], 60.0)
        bench.start("a")
        (found,) = await bench.done(1)
        assert len(found.addresses) == 32
        assert bench.counted() == {"cut": 1}

    running(SETTINGS, script)


def test_names_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datum_router_proxy.egress.resolver.MAX_NAMES", 3)

    async def script(bench: Bench) -> None:
        for number in range(5):
            bench.start(f"n{number}")
            await bench.done(number + 1)
        bench.start("n4", "n0")
        await bench.done(7)
        assert bench.servers.asked == ["n0", "n1", "n2", "n3", "n4", "n0"]
        bench.resolver.forget()
        bench.start("n0")
        await bench.done(8)
        assert bench.servers.asked[-1] == "n0"

    running(SETTINGS, script)


# --- real questions ---------------------------------------------------------------------------------------------------


async def serve(sock: trio.socket.SocketType) -> None:
    with sock:
        while True:
            data, peer = await sock.recvfrom(4096)
            query = dns.message.from_wire(data)
            question = query.question[0]
            kind = "AAAA" if question.rdtype == 28 else "A"
            answer = dns.message.make_response(query)
            name = question.name.to_text()
            if name == "both.example.":
                text = "2001:db8::1" if kind == "AAAA" else "192.0.2.7"
                answer.answer.append(dns.rrset.from_text(question.name, 30 if kind == "A" else 20, "IN", kind, text))
            elif name == "alias.example.":
                answer.answer.append(dns.rrset.from_text(question.name, 9, "IN", "CNAME", "real.example."))
                if kind == "A":
                    answer.answer.append(dns.rrset.from_text("real.example.", 7, "IN", "A", "192.0.2.8"))
            elif name == "broken.example.":
                answer.set_rcode(dns.rcode.SERVFAIL)
            elif name != "empty.example.":
                answer.set_rcode(dns.rcode.NXDOMAIN)
            await sock.sendto(answer.to_wire(), peer)


def ask(name: str) -> tuple[Sequence[str], float]:
    async def main() -> tuple[Sequence[str], float]:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await sock.bind(("127.0.0.1", 0))
        settings = ProxySettings(egress_nameservers=f"127.0.0.1:{sock.getsockname()[1]}", egress_lookup_timeout_s=2.0)
        caught: Exception | None = None
        found: tuple[Sequence[str], float] = ((), 0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, sock)
            with trio.fail_after(5):
                try:
                    found = await Asker(settings)(name)
                except (NotFound, NoAnswer, trio.TooSlowError) as error:
                    caught = error
            nursery.cancel_scope.cancel()
        if caught is not None:
            raise caught
        return found

    return trio.run(main)


def test_both_kinds_of_addresses_are_asked_for_and_ipv4_comes_first() -> None:
    assert ask("both.example") == (["192.0.2.7", "2001:db8::1"], 20.0)


def test_an_alias_is_followed() -> None:
    assert ask("alias.example")[0] == ["192.0.2.8"]


@pytest.mark.parametrize(("name", "error"), [("gone.example", NotFound), ("empty.example", NotFound)])
def test_what_is_not_there_is_told_from_what_nobody_answers(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        ask(name)
    with pytest.raises((NoAnswer, trio.TooSlowError)):
        ask("broken.example")


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", ()),
        ("10.0.0.1", (("10.0.0.1", 53),)),
        ("10.0.0.1:5353, [fd00::1]:53,fd00::2", (("10.0.0.1", 5353), ("fd00::1", 53), ("fd00::2", 53))),
    ],
)
def test_name_servers_are_addresses_with_or_without_a_port(text: str, servers: tuple[tuple[str, int], ...]) -> None:
    assert ProxySettings(egress_nameservers=text).nameservers() == servers


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("egress_nameservers", "ns.example"),
        ("egress_nameservers", "10.0.0.1:0"),
        ("egress_nameservers", "10.0.0.1:x"),
        ("egress_closed", "10.0.0.0/99"),
        ("egress_ttl_min_s", "900"),
        ("egress_addresses", "0"),
    ],
)
def test_settings_that_cannot_be_used_are_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        from_text({name: text})


def test_every_result_of_a_lookup_is_a_value_of_the_metrics_label() -> None:
    assert {"answered", "cut", "cached", "not_found", "failed", "timeout", "too_many"} == set(
        names.LOOKUP_RESULT.values
    )
