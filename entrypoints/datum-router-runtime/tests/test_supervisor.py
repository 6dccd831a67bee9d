import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from datum_router.compiler.compiler import CompileResult
from datum_router.health.trial import TrialVerdict
from datum_router.health.view import OutcomeBatch
from datum_router.model.listener import Listener
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import OutlierPolicy
from datum_router.model.snapshot import SnapshotData
from datum_router.reasons import Reason
from datum_router.testing.factories import make_health_book, make_service
from datum_router_runtime.ipc import (
    ControlChannel,
    Hello,
    LinkFailed,
    Message,
    Programmed,
    Report,
    TicketSecrets,
)
from datum_router_runtime.settings import GatewaySettings
from datum_router_runtime.sockets import bind_group
from datum_router_runtime.workers import BIND_PATIENCE_S, OUTBOX_LIMIT, Supervisor, WorkerLink

PLAIN = Listener(name="plain", host="127.0.0.1", port=0)


def snapshot(version: int) -> CompileResult:
    return CompileResult(data=SnapshotData(version=version, digest=f"d{version}", listeners=(PLAIN,)))


class Bench:
    """A supervisor and the far end of one worker's control channel."""

    def __init__(self) -> None:
        self.now = 0.0
        self.supervisor = Supervisor(GatewaySettings(), book=make_health_book(), clock=lambda: self.now)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        process: Any = SimpleNamespace(pid=4711)
        self.link = WorkerLink(0, ControlChannel(ours), process)
        self.supervisor.links[0] = self.link
        self.worker = ControlChannel(theirs)

    async def say(self, *messages: Message) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.supervisor._read, self.link)
            for message in messages:
                await self.worker.send(message)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    def sent(self) -> list[str]:
        descriptors = [fd for _, fd in self.link.outbox]
        return [
            type(message).__name__ + ("+fd" if fd is not None else "")
            for message, fd in zip(self.messages(), descriptors, strict=True)
        ]

    def messages(self) -> list[Message]:
        """Return what is on its way to the worker."""
        decode = self.link.channel._decoder.decode
        return [decode(one[4:]) if isinstance(one, bytes) else one for one, _ in self.link.outbox]

    def close(self) -> None:
        for group in self.supervisor.groups.values():
            group.close()
        self.link.channel.close()
        self.worker.close()


def drive(script: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            await script(bench)
        finally:
            bench.close()

    trio.run(main)


def test_a_listener_that_was_bound_before_anything_was_published_reaches_a_worker_that_came_first() -> None:
    async def script(one: Bench) -> None:
        one.supervisor.adopt(bind_group(PLAIN, 1))
        await one.say(Hello(pid=1))
        assert one.sent() == ["TicketSecrets", "ListenerSocket+fd"]
        one.supervisor.publish(snapshot(1))
        assert one.sent() == ["TicketSecrets", "ListenerSocket+fd", "FullSnapshot"]

    drive(script)


def test_a_port_that_workers_have_yet_to_let_go_of_is_not_blamed_on_another_process() -> None:
    async def script(bench: Bench) -> None:
        supervisor = bench.supervisor
        supervisor.publish(snapshot(1))
        with supervisor.groups["plain"].sockets[0].dup() as held:  # as a worker has it
            port = held.getsockname()[1]
            listener = Listener(name=f"http-{port}", host="0.0.0.0", port=port)
            data = SnapshotData(version=2, digest="d2", listeners=(listener,))
            supervisor.publish(CompileResult(data=data))
            message = supervisor.listener_problems[listener.name].message
            assert message == f"listener http-{port}: port {port} is still that of plain"
            supervisor._bind_listeners(data)
            assert "is in use by another process" in supervisor.listener_problems[listener.name].message
        supervisor._bind_listeners(data)
        assert not supervisor.listener_problems
        assert set(supervisor.groups) == {listener.name}

    drive(script)


def test_a_port_that_cannot_be_had_keeps_a_gateway_from_being_ready_for_a_while_and_never_again() -> None:
    async def script(bench: Bench) -> None:
        supervisor = bench.supervisor
        with socket.create_server(("127.0.0.1", 0)) as busy:
            port = busy.getsockname()[1]
            taken = Listener(name="taken", host="127.0.0.1", port=port)

            async def serve(version: int, *listeners: Listener) -> list[str]:
                supervisor.publish(
                    CompileResult(data=SnapshotData(version=version, digest=f"d{version}", listeners=listeners))
                )
                await bench.say(Hello(pid=1), Programmed(version=version, digest=f"d{version}"))
                return supervisor.not_ready_reasons()

            (reason,) = await serve(1, PLAIN, taken)
            assert "is in use by another process" in reason
            assert supervisor.listener_problems["taken"].reason is Reason.PORT_UNAVAILABLE
            bench.now += BIND_PATIENCE_S
            assert supervisor.not_ready_reasons() == []
            assert len(await serve(2, taken)) == 1, "with no other listener there is nothing to be ready for"
            assert await serve(3, PLAIN) == []
            bench.now += 1
            assert await serve(4, PLAIN, taken) == []
            assert set(supervisor.listener_problems) == {"taken"}

    drive(script)


def test_a_listener_that_is_bound_at_last_is_news() -> None:
    async def script(bench: Bench) -> None:
        supervisor = bench.supervisor
        with socket.create_server(("127.0.0.1", 0)) as busy:
            data = SnapshotData(listeners=(Listener(name="taken", host="127.0.0.1", port=busy.getsockname()[1]),))
            supervisor.publish(CompileResult(data=data))
            news = supervisor.force_changed.next
            supervisor._bind_listeners(data)
            assert not news.is_set(), "nothing is different"
        supervisor._bind_listeners(data)
        assert news.is_set()

    drive(script)


def test_a_worker_that_comes_later_gets_listeners_and_the_whole_snapshot() -> None:
    async def script(one: Bench) -> None:
        one.supervisor.publish(snapshot(1))
        one.link.outbox.clear()
        await one.say(Hello(pid=1))
        assert one.sent() == ["TicketSecrets", "ListenerSocket+fd", "FullSnapshot"]
        assert one.supervisor.not_ready_reasons() == ["no worker serves a snapshot yet"]
        await one.say(Programmed(version=1, digest="d1"))
        assert one.supervisor.not_ready_reasons() == []

    drive(script)


def test_changes_go_as_deltas_and_a_worker_out_of_step_gets_the_whole() -> None:
    async def script(one: Bench) -> None:
        one.supervisor.publish(snapshot(1))
        await one.say(Hello(pid=1))
        one.link.outbox.clear()
        one.supervisor.publish(snapshot(2))
        assert one.sent() == ["DeltaSnapshot"]
        await one.say(Programmed(version=2, digest=""))
        assert one.sent() == ["DeltaSnapshot", "FullSnapshot"]

    drive(script)


def test_a_delta_that_did_not_fit_is_not_taken_for_a_snapshot_in_force() -> None:
    async def script(one: Bench) -> None:
        one.supervisor.publish(snapshot(1))
        await one.say(Hello(pid=1))
        one.supervisor.publish(snapshot(2))
        one.supervisor.publish(snapshot(3))
        one.link.outbox.clear()
        await one.say(Programmed(version=2, digest=""))
        assert one.link.version == 0
        assert not one.link.programmed.is_set()
        await one.say(Programmed(version=3, digest=""))
        assert one.sent() == ["FullSnapshot"]
        await one.say(Programmed(version=3, digest="d3"))
        assert one.link.version == 3
        assert one.link.programmed.is_set()

    drive(script)


def test_a_worker_that_does_not_read_gets_one_full_snapshot_in_place_of_what_it_missed() -> None:
    async def script(one: Bench) -> None:
        one.supervisor.publish(snapshot(1))
        await one.say(Hello(pid=1))
        one.link.outbox.clear()
        for version in range(2, OUTBOX_LIMIT + 10):
            one.supervisor.publish(snapshot(version))
        assert len(one.link.outbox) <= OUTBOX_LIMIT
        assert "FullSnapshot" in one.sent()

    drive(script)


def test_a_worker_that_is_being_replaced_gets_every_change_and_may_lag_until_it_is_gone() -> None:
    async def script(one: Bench) -> None:
        supervisor = one.supervisor
        supervisor.publish(snapshot(1))
        await one.say(Hello(pid=1), Programmed(version=1, digest="d1"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        process: Any = SimpleNamespace(pid=4712)
        successor = WorkerLink(0, ControlChannel(ours), process)
        one.link.has_successor = True
        supervisor.retiring.add(supervisor.links.pop(0))
        supervisor.links[0] = successor
        try:
            assert supervisor.lagging_workers() == 0, "its place is filled as long as the old one serves"
            assert [status.pid for status in supervisor.worker_status()] == [4712, 4711]
            one.link.outbox.clear()
            supervisor.publish(snapshot(2))
            assert one.sent() == ["DeltaSnapshot"]
            assert supervisor.lagging_workers() == 1
            assert supervisor.not_ready_reasons() == []
            one.link.outbox.clear()
            supervisor.drain()
            assert one.sent() == ["Drain"]
            assert one.link.drain_begun.is_set()
        finally:
            successor.channel.close()
            theirs.close()

    drive(script)


def test_a_worker_told_to_drain_gets_no_listener_any_more() -> None:
    async def script(one: Bench) -> None:
        one.supervisor.publish(snapshot(1))
        one.link.outbox.clear()
        await one.say(Hello(pid=1))
        one.link.drain(lameduck_s=0.0, grace_s=1.0)
        assert one.sent() == ["TicketSecrets", "FullSnapshot", "Drain"]

    drive(script)


def test_a_snapshot_that_cannot_be_linked_is_a_diagnostic_until_the_next_one() -> None:
    async def script(one: Bench) -> None:
        one.supervisor.publish(snapshot(1))
        await one.say(Hello(pid=1), Programmed(version=1, digest="d1"), LinkFailed(version=2, error="ValueError: x"))
        problem = one.supervisor.link_problem
        assert problem is not None
        assert problem.reason is Reason.PLUGIN_FAILED
        assert "ValueError: x" in problem.message
        assert one.sent().count("FullSnapshot") == 2
        one.supervisor.publish(snapshot(3))
        assert one.supervisor.link_problem is None

    drive(script)


def test_worker_deaths_beyond_the_limit_make_the_gateway_not_ready_until_they_are_old() -> None:
    async def script(one: Bench) -> None:
        one.supervisor.restarts.extend(float(second) for second in range(6))
        one.now = 6.0
        assert one.supervisor.is_crash_looping
        one.now = 61.5
        assert not one.supervisor.is_crash_looping

    drive(script)


def test_what_a_trial_has_told_closes_the_breaker_on_every_worker() -> None:
    async def script(one: Bench) -> None:
        service = make_service(endpoints=1, outlier=OutlierPolicy())
        endpoint = service.endpoints[0].key
        data = SnapshotData(version=1, digest="d1", services={service.key: service})
        one.supervisor.publish(CompileResult(data=data))
        failures = OutcomeBatch(service=service.key, endpoint=endpoint, runs=((OutcomeClass.GATEWAY_ERROR, 5),))
        await one.say(Hello(pid=1), Report(outcomes=(failures,)))
        one.now = 30.0
        one.supervisor.publish_health(one.supervisor.book.expire(one.now))
        one.link.outbox.clear()
        verdict = TrialVerdict(service=service.key, endpoint=endpoint, number=1, is_ok=True)
        await one.say(Report(trials=(verdict,)))
        assert one.sent() == ["HealthUpdates"]
        assert one.supervisor.book.view(service.key).is_usable(endpoint)
        counters = one.supervisor.totals()
        assert [
            counters[f"datum_router_health_changes_total|{change}"] for change in ("half_open", "trial_passed")
        ] == [
            1,
            1,
        ]

    drive(script)


def test_secrets_of_tickets_are_replaced_one_after_another_and_told_to_nobody_else() -> None:
    async def script(one: Bench) -> None:
        await one.say(Hello(pid=1))
        one.link.outbox.clear()
        told: list[tuple[bytes, ...]] = []
        for _ in range(3):
            one.supervisor.rotate_tickets()
            (message,) = one.messages()
            one.link.outbox.clear()
            assert isinstance(message, TicketSecrets)
            told.append(message.secrets)
            assert not any(secret.hex() in repr(message) or str(secret) in repr(message) for secret in message.secrets)
        assert [len(secrets) for secrets in told] == [2, 2, 2]
        assert told[0][0] == told[1][1], "the one before is still taken"
        assert told[1][0] == told[2][1]
        assert len({secret for secrets in told for secret in secrets}) == 4
        assert {len(secret) for secrets in told for secret in secrets} == {32}

    drive(script)
