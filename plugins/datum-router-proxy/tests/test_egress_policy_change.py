"""Outbound tunnels that are open when the policy changes: what is denied now ends, all else goes on."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import logging
import ssl
from collections.abc import Callable, Iterator

import h2.events
import msgspec
import pytest
import trio

from datum_router.egress.destination import parse_destination
from datum_router.model.egress import (
    EgressAttachment,
    EgressListener,
    EgressMode,
    EgressPolicy,
    EgressProtocol,
    EgressRule,
)
from datum_router.model.listener import Listener
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.reasons import Reason
from datum_router_proxy.egress import connection
from datum_router_proxy.egress.desk import EgressDesk
from datum_router_proxy.egress.dialing import dial_one
from datum_router_proxy.egress.resolver import NameResolver
from datum_router_proxy.egress.tunnels import SLICE_S, OpenTunnels
from datum_router_proxy.loop import Loop, TaskCancelled, current_task, park
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_egress import NAME, H2Client, Rig, allow, echo, in_trio, rig, until
from datum_router_proxy.testing_peers import Recorder, make_snapshot
from datum_router_proxy.wire.websocket import accept_value

DENY = EgressRule(name="default/no", namespace="default", is_allow=False)
DENY_NAME = EgressRule(name="default/no", namespace="default", is_allow=False, hostnames=(NAME,))


def client_hello() -> bytes:
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=NAME).do_handshake()
    return outgoing.read()


HELLO = client_hello()


async def is_reset(stream: trio.SocketStream) -> bool:
    """Wait for the end of a tunnel and tell whether it was cut, as against closed."""
    try:
        assert await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True
    return False


async def judged(made: Rig) -> None:
    """Return when all open tunnels were judged by the policy in force."""
    tunnels = made.plane._egress.tunnels
    with trio.fail_after(5):
        while tunnels._judged_by is not made.plane._egress.desk.policy or tunnels._has_late:
            await trio.lowlevel.checkpoint()


async def still_works(stream: trio.SocketStream) -> bool:
    await stream.send_all(b"still there")
    return await until(stream, b"there") == b"still there"


ENDS: dict[str, tuple[tuple[EgressRule, ...], str]] = {
    "no rule is left": ((), "no_policy"),
    "a Deny before it": ((DENY, allow()), "denied_by_rule"),
    "another name": ((allow(hostnames=("other.example.test",)),), "denied_by_default"),
    "another network": ((allow(networks=("127.0.0.2/32",)),), "denied_by_default"),
    "another port": ((allow(ports=(1,)),), "denied_by_default"),
    "no network that opens loopback": ((allow(networks=()),), "closed_address"),
    "another source": ((allow(attachments=("default/prod",)),), "no_policy"),
    "methods, which nobody can read": ((allow(methods=("GET",)),), "denied_by_default"),
    "TLS alone, and nobody has looked": ((allow(protocols=(EgressProtocol.TLS,)),), "not_tls"),
}


@pytest.mark.parametrize(("rules", "because"), ENDS.values(), ids=ENDS)
@in_trio
async def test_a_tunnel_that_is_denied_now_is_cut_counted_and_logged(
    rules: tuple[EgressRule, ...], because: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="datum_router_proxy.egress.desk")
    async with rig() as made:
        stream = await made.tunnel()
        assert await still_works(stream)
        assert made.decisions() == [("allow", "allowed_by_rule")]
        made.use(*rules)
        assert await is_reset(stream)
        await made.recorder.until(lambda: bool(made.tunnels()))
        target, to = f"{NAME}:{made.upstream}", f"127.0.0.1:{made.upstream}"
        assert [one[:3] for one in made.tunnels()] == [("h1", target, "policy_changed")]
        assert made.tunnels()[0][4] == to
        cells = made.plane.take_cells()
        assert [cell.labels for cell in cells if cell.metric == "datum_gateway_egress_decisions_total"] == [
            ("deny", "policy_changed")
        ]
        assert not any(cell.value for cell in cells if cell.metric == "datum_gateway_egress_connections")
    (line,) = [one for one in caplog.records if one.message == "egress decision"]
    assert (line.verdict, line.reason, line.because, line.destination) == (  # type: ignore[attr-defined]  # extra fields
        "deny",
        "policy_changed",
        because,
        target,
    )


STAYS = {
    "the same by another object": (allow(),),
    "another rule": (allow(name="default/other"),),
    "a Deny of something else": (msgspec.structs.replace(DENY, ports=(1,)), allow()),
    "a rate, which is for what begins": (allow(rate=0.001, burst=1),),
}


@pytest.mark.parametrize("rules", STAYS.values(), ids=STAYS)
@in_trio
async def test_a_tunnel_that_is_still_allowed_goes_on_as_the_tunnel_of_the_rule_that_allows_it(
    rules: tuple[EgressRule, ...],
) -> None:
    async with rig() as made:
        streams = [await made.tunnel() for _ in range(3)]
        made.decisions()
        made.use(*rules)
        await judged(made)
        for stream in streams:
            assert await still_works(stream)
        assert made.decisions() == []
        name = rules[-1].name
        assert {policy: count for policy, count in made.gauge().items() if count} == {name: 3}
        for stream in streams:
            await stream.send_eof()
        await made.recorder.until(lambda: len(made.tunnels()) == 3)
        assert {one[3] for one in made.tunnels()} == {f"egress:{name}"}
        assert not any(made.gauge().values())


@in_trio
async def test_it_is_the_address_that_was_dialled_that_has_to_stay_allowed() -> None:
    async with rig(addresses=("127.0.0.9", "127.0.0.1")) as made:  # nobody is at the first
        stream = await made.tunnel()
        made.use(allow(networks=("127.0.0.1/32",)))
        await judged(made)
        assert await still_works(stream)
        made.use(allow(networks=("127.0.0.9/32",)))
        assert await is_reset(stream)


@in_trio
async def test_whose_traffic_it_is_is_asked_anew() -> None:
    def policy(**labels: str) -> SnapshotData:
        attachment = EgressAttachment(name="default/prod", addresses=("127.0.0.1",), labels=labels)
        rule = allow(attachments=("default/prod",), source_labels={"tier": "web"})
        return SnapshotData(version=2, digest="y", egress=EgressPolicy(rules=(rule,), attachments=(attachment,)))

    async with rig() as made:
        made.holder.current.data = policy(tier="web")
        stream = await made.tunnel()
        made.holder.current.data = policy(tier="web", other="1")
        await judged(made)
        assert await still_works(stream)
        made.holder.current.data = policy(tier="db")
        assert await is_reset(stream)


@in_trio
async def test_what_was_seen_to_be_tls_may_become_allowed_as_tls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    as_tls = allow(protocols=(EgressProtocol.HTTPS,))
    async with rig(as_tls) as made:
        monkeypatch.setattr(connection, "original_destination", lambda _channel: ("127.0.0.1", made.upstream))
        asked = await made.tunnel()
        redirected = await made.connect(EgressMode.TLS)
        for stream in (asked, redirected):
            await stream.send_all(HELLO)
            assert await until(stream, HELLO) == HELLO
        for rule in (allow(), as_tls):  # as anything in between: it is known all the same
            made.use(rule)
            await judged(made)
        for stream in (asked, redirected):
            assert await still_works(stream)
        made.use(DENY, as_tls)
        for stream in (asked, redirected):
            assert await is_reset(stream)
        await made.recorder.until(lambda: len(made.tunnels()) == 2)
        assert {one[2] for one in made.tunnels()} == {"policy_changed"}


@in_trio
async def test_of_an_http2_connection_only_the_tunnels_that_are_denied_end() -> None:
    async with rig(allow(), allow(name="default/literal", hostnames=())) as made:
        client = H2Client(await made.connect())
        numbers = []
        for host in (NAME, "127.0.0.1"):
            numbers.append(await client.request((":method", "CONNECT"), (":authority", f"{host}:{made.upstream}")))
            assert await client.status(numbers[-1]) == b"200"
        ends, stays = numbers
        made.use(DENY_NAME, allow(name="default/literal", hostnames=()))
        reset = await client.next(h2.events.StreamReset, ends)
        assert reset.error_code == 8  # type: ignore[attr-defined]  # CANCEL (RFC 9113 section 7)
        client.engine.send_data(stays, b"still there")
        await client.flush()
        assert await client.data(stays, 11) == b"still there"
        assert made.gauge() == {"default/api": 0, "default/literal": 1}
        assert [(one[0], one[2]) for one in made.tunnels()] == [("h2", "policy_changed")]


async def websocket(stream: trio.SocketStream) -> None:
    """Accept a WebSocket whatever it asks for, and give back its bytes."""
    head = await until(stream, b"\r\n\r\n")
    key = head.lower().partition(b"sec-websocket-key: ")[2]
    key = head[len(head) - len(key) :].partition(b"\r\n")[0]
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_value(key) + b"\r\n\r\n"
    )
    await echo(stream)


async def open_websocket(made: Rig, path: str) -> trio.SocketStream:
    """Have a WebSocket to the destination made through the proxy."""
    stream = await made.connect()
    await stream.send_all(
        f"GET http://{NAME}:{made.upstream}{path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n\r\n".encode()
    )
    assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return stream


@in_trio
async def test_a_websocket_through_the_proxy_is_a_tunnel_too() -> None:
    async with rig(allow(methods=("GET",), paths=("/chat",)), handler=websocket) as made:
        stream = await open_websocket(made, "/chat/1")
        made.use(allow(methods=("GET",), paths=("/chat/1",)))
        await judged(made)
        assert await still_works(stream)
        assert made.gauge() == {"default/api": 1}
        made.use(allow(methods=("GET",), paths=("/other",)))
        assert await is_reset(stream)
        await made.recorder.until(lambda: bool(made.recorder.events))
        assert [str(one.reason) for one in made.recorder.events] == ["policy_changed"]
        assert made.gauge() == {"default/api": 0}


@in_trio
async def test_a_websocket_stays_if_the_address_that_it_leads_to_is_still_allowed() -> None:
    addresses = ("127.0.0.9", "127.0.0.1")  # nobody listens at the first one
    async with rig(handler=websocket, addresses=addresses) as made:
        stream = await open_websocket(made, "/")
        made.use(allow(networks=("127.0.0.1/32",)))
        await judged(made)
        assert await still_works(stream)
        made.use(allow(networks=("127.0.0.9/32",)))
        assert await is_reset(stream)


@in_trio
async def test_who_was_on_the_way_in_when_the_policy_changed_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as made:

        async def dial(*args: object, **values: object) -> object:
            made.use(DENY)
            await made.plane._loop.in_trio(functools.partial(judged, made))
            return await dial_one(*args, **values)  # type: ignore[arg-type]  # as they are

        stream = await made.tunnel()
        monkeypatch.setattr(connection, "dial_one", dial)
        late = await made.tunnel()
        assert await is_reset(stream)
        assert await is_reset(late)


# --- many of them -----------------------------------------------------------------------------------------------


class Many:
    """Tunnels without bytes on a loop of their own, and a clock that goes on by a tenth of a slice when it is read."""

    def __init__(self, count: int) -> None:
        snapshot = make_snapshot([], [])
        self.holder = Holder(snapshot)
        self.loop = Loop()
        self.desk = EgressDesk(
            self.loop, self.holder, ProxySettings(), NameResolver(self.loop, ProxySettings()), Recorder()
        )
        self.tunnels = OpenTunnels(self.loop, self.desk, {}, self._clock)
        self.now = 0.0
        self.ended: list[Reason] = []
        self.use(allow())
        listener = Listener(name="out", egress=EgressListener(mode=EgressMode.PROXY, source="default/"))
        for number in range(count):
            self.loop.spawn(self._tunnel(listener), name=f"tunnel {number}")
        self.settle()

    def _clock(self) -> float:
        self.now += SLICE_S / 10
        return self.now

    async def _tunnel(self, listener: Listener) -> None:
        decision = await self.desk.decide(listener, "127.0.0.1", parse_destination("127.0.0.1", 443))
        opened = self.tunnels.open(decision, listener, decision.verdict.addresses)
        try:
            while True:
                await park()
        except TaskCancelled as error:
            self.ended.append(error.reason)
        finally:
            self.tunnels.close(opened)

    def use(self, *rules: EgressRule) -> None:
        """Put these in force, for any name."""
        rules = tuple(msgspec.structs.replace(rule, hostnames=()) for rule in rules)
        self.holder.current.data = SnapshotData(version=2, digest="y", egress=EgressPolicy(rules=rules))

    def settle(self) -> None:
        """Run the loop until it has nothing to do."""
        while self.loop.drain():
            pass


@pytest.fixture
def many() -> Iterator[Many]:
    made = Many(200)
    made.tunnels.look()
    made.settle()
    yield made
    made.loop._close()


def watch(many: Many, see: Callable[[], None]) -> None:
    """Have a task that takes turns with the others call `see` until all tunnels were judged."""

    async def turns() -> None:
        while many.tunnels._is_judging:
            see()
            current_task().wake()
            await park()

    many.loop.spawn(turns(), name="turns")


def test_many_tunnels_are_judged_in_slices_and_others_run_in_between(many: Many) -> None:
    many.use(DENY)
    many.tunnels.look()
    seen: list[int] = []
    watch(many, lambda: seen.append(len(many.tunnels._open)))
    many.settle()
    assert many.ended == [Reason.POLICY_CHANGED] * 200
    steps = [before - after for before, after in itertools.pairwise(seen)]
    assert 15 <= len(seen) <= 30, "the clock allows ten in a slice, or eleven"
    assert max(steps) <= 11
    assert many.loop.tasks == 0
    many.tunnels.look()
    assert many.loop.tasks == 0, "nothing is left to be judged"


def test_a_policy_that_changes_while_tunnels_are_judged_is_the_one_that_counts(many: Many) -> None:
    allowed = many.desk.policy
    many.use(DENY)
    many.tunnels.look()

    def change() -> None:
        if len(many.tunnels._open) < 100:
            many.holder.current.data = SnapshotData(version=3, digest="z", egress=allowed)

    watch(many, change)
    many.settle()
    gone = len(many.ended)
    assert 100 < gone < 120
    many.tunnels.look()
    many.settle()
    assert len(many.ended) == gone, "the others are allowed again"
    assert all(one.decision.judged_by is allowed for one in many.tunnels._open)
    many.use()
    many.tunnels.look()
    many.settle()
    assert len(many.ended) == 200


def test_nothing_is_judged_while_nothing_has_changed(many: Many) -> None:
    before = many.now
    many.tunnels.look()
    assert (many.loop.tasks, many.now) == (200, before)
