"""Scrapes: what they wait for, what is lost and what is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from datum_router.health.trial import TrialVerdict
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome
from datum_router.model.service import ServiceKey
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.observe.events import RequestEnded
from datum_router.policy.plugin_guard import PluginEvent, PluginEventKind, PluginHook, PluginPart
from datum_router.reasons import Reason
from datum_router.testing.factories import make_health_book
from datum_router_runtime import reporter as reporter_module
from datum_router_runtime.ipc import ControlChannel, Hello, Measure, Report
from datum_router_runtime.procfs import CpuClock, read_process
from datum_router_runtime.reporter import Reporter
from datum_router_runtime.settings import GatewaySettings
from datum_router_runtime.workers import Supervisor, WorkerLink

SERVICE = ServiceKey("ns/x")
ENDPOINT = EndpointKey("192.0.2.1:80")


def outcome(**fields: Any) -> Outcome:
    return Outcome(service=SERVICE, endpoint=ENDPOINT, **fields)


def cells(report: Report) -> dict[tuple[str, tuple[str, ...]], float]:
    return {cell.key: cell.value for cell in report.counters}


# --- the worker's side ---


def test_only_what_has_changed_is_reported() -> None:
    reporter = Reporter(has_access_log=False)
    meter = reporter.meter(protocol="h1", route="ns/r", service="ns/x")
    meter.ended(200, 0.1, 0, 0)
    reporter.rejected("h1", Reason.BAD_HEADER)
    gauge = Cell(names.CONNECTIONS.name, ("plain",), 3)
    first = reporter.take({}, cells=[gauge, Cell(names.ACCEPTED.name, ("plain",), 3)])
    assert [delta.codes[2] for delta in first.meters] == [1]
    assert cells(first) == {
        (names.REJECTED.name, ("h1", "bad_header")): 1,
        (names.ACCEPTED.name, ("plain",)): 3,
    }
    assert first.gauges == (gauge,)
    second = reporter.take({}, cells=[gauge, Cell(names.ACCEPTED.name, ("plain",), 0)])
    assert (second.meters, second.counters, second.gauges, second.gone) == ((), (), (), ())
    third = reporter.take({}, cells=[])
    assert third.gone == (gauge.key,)


def test_a_report_without_cells_says_nothing_of_gauges() -> None:
    reporter = Reporter(has_access_log=False)
    gauge = Cell(names.CONNECTIONS.name, ("plain",), 3)
    reporter.take({}, cells=[gauge])
    report = reporter.take({})
    assert (report.gauges, report.gone) == ((), ())


def test_what_happens_to_a_plugin_is_counted_and_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    reporter = Reporter(has_access_log=False)
    part = PluginPart(plugin="dist", hook=PluginHook.BALANCER, name="mine", route="ns/r")
    for kind in PluginEventKind:
        reporter.plugin_event(PluginEvent(kind=kind, part=part, seconds=0.25))
    assert cells(reporter.take({})) == {
        (names.PLUGIN_FAILURES.name, ("dist", "balancer")): 2,
        (names.PLUGIN_DISABLED.name, ("dist", "balancer")): 1,
    }
    said = [(record.message, vars(record)["plugin"], vars(record)["part"]) for record in caplog.records]
    assert said == [
        (message, "dist", "balancer mine of ns/r")
        for message in ("plugin blocked the loop", "plugin disabled", "plugin enabled again")
    ]


def test_attempts_are_counted_by_outcome_and_failures_by_reason() -> None:
    reporter = Reporter(has_access_log=False)
    for _ in range(3):
        reporter.attempt_ended(outcome(status=200))
    reporter.attempt_ended(outcome(status=500))
    reporter.attempt_ended(outcome(reason=Reason.CONNECT_FAILED))
    reporter.attempt_ended(outcome(reason=Reason.DOWNSTREAM_RESET))
    assert cells(reporter.take({})) == {
        (names.ATTEMPTS.name, ("ns/x", "success")): 3,
        (names.ATTEMPTS.name, ("ns/x", "server_error")): 1,
        (names.ATTEMPTS.name, ("ns/x", "gateway_error")): 1,
        (names.ATTEMPTS.name, ("ns/x", "none")): 1,
        (names.ATTEMPT_FAILURES.name, ("ns/x", "connect_failed")): 1,
        (names.ATTEMPT_FAILURES.name, ("ns/x", "downstream_reset")): 1,
    }
    assert cells(reporter.take({})) == {}


def test_attempts_that_health_does_not_see_for_want_of_room_are_counted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporter_module, "MAX_PENDING_RUNS", 2)
    reporter = Reporter(has_access_log=False)
    for status in (200, 500, 200, 500, 200):
        reporter.attempt_ended(outcome(status=status))
    report = reporter.take({})
    found = cells(report)
    assert found[(names.OUTCOMES_DROPPED.name, ())] == 3 - 1, "the last 500 joins the run before it"
    assert found[(names.ATTEMPTS.name, ("ns/x", "success"))] == 3
    assert found[(names.ATTEMPTS.name, ("ns/x", "server_error"))] == 2


def test_what_a_trial_has_told_is_reported_at_once_and_once() -> None:
    async def main() -> None:
        reporter = Reporter(has_access_log=False)
        verdict = TrialVerdict(service=SERVICE, endpoint=ENDPOINT, number=3, is_ok=True)
        reporter.trial_ended(verdict)
        with trio.fail_after(1):
            await reporter.wait_urgent()
        assert reporter.take({}).trials == (verdict,)
        assert reporter.take({}).trials == ()

    trio.run(main)


def test_events_are_wanted_only_by_an_access_log(caplog: pytest.LogCaptureFixture) -> None:
    event = RequestEnded(
        protocol="h1", listener="plain", method="GET", host="a.test", path="/", status=200, reason=Reason.ROUTED
    )
    with caplog.at_level("INFO", logger="datum_router.access"):
        assert not Reporter(has_access_log=False).wants_events
        Reporter(has_access_log=False).request_ended(event)
        assert caplog.records == []
        assert Reporter(has_access_log=True).wants_events
        Reporter(has_access_log=True).request_ended(event)
        assert [record.message for record in caplog.records] == ["request"]


# --- the supervisor's side ---


class Bench:
    """A supervisor and the far ends of two workers' control channels."""

    def __init__(self) -> None:
        self.supervisor = Supervisor(GatewaySettings(workers=2), book=make_health_book(), clock=trio.current_time)
        self.workers: list[ControlChannel] = []
        self.links: list[WorkerLink] = []
        for index in range(2):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            process: Any = SimpleNamespace(pid=4711 + index)
            link = WorkerLink(index, ControlChannel(ours), process)
            self.supervisor.links[index] = link
            self.links.append(link)
            self.workers.append(ControlChannel(theirs))

    async def answer(self, index: int, report: Callable[[int], Report]) -> None:
        """Be a worker: answer what is measured."""
        while True:
            message = await self.workers[index].receive()
            if isinstance(message, Measure):
                await self.workers[index].send(report(message.number))

    @property
    def rejected(self) -> float:
        return self.supervisor.ledger.counters().get((names.REJECTED.name, ("h1", "bad_header")), 0)


def drive(script: Callable[[Bench, trio.Nursery], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            async with trio.open_nursery() as nursery:
                for link in bench.links:
                    nursery.start_soon(bench.supervisor._read, link)
                    nursery.start_soon(bench.supervisor._write, link)
                for worker in bench.workers:
                    await worker.send(Hello(pid=1))
                await trio.testing.wait_all_tasks_blocked()
                await script(bench, nursery)
                nursery.cancel_scope.cancel()
        finally:
            for channel in (*(link.channel for link in bench.links), *bench.workers):
                channel.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))


def one_more(number: int) -> Report:
    return Report(counters=(Cell(names.REJECTED.name, ("h1", "bad_header"), 1),), answers=number)


def test_a_scrape_waits_for_every_worker() -> None:
    async def script(bench: Bench, nursery: trio.Nursery) -> None:
        nursery.start_soon(bench.answer, 0, one_more)
        nursery.start_soon(bench.answer, 1, one_more)
        assert await bench.supervisor.measure(timeout_s=5) == 0
        assert bench.rejected == 2

    drive(script)


def test_a_report_that_was_under_way_does_not_end_the_wait() -> None:
    async def script(bench: Bench, nursery: trio.Nursery) -> None:
        nursery.start_soon(bench.answer, 0, one_more)

        async def late() -> None:
            await bench.workers[1].send(one_more(0))
            await trio.sleep(1)
            await bench.answer(1, one_more)

        nursery.start_soon(late)
        assert await bench.supervisor.measure(timeout_s=5) == 0
        assert bench.rejected == 3

    drive(script)


def test_a_worker_that_hangs_holds_a_scrape_up_for_its_time_only() -> None:
    async def script(bench: Bench, nursery: trio.Nursery) -> None:
        nursery.start_soon(bench.answer, 0, one_more)
        started = trio.current_time()
        assert await bench.supervisor.measure(timeout_s=0.5) == 1
        assert trio.current_time() - started == pytest.approx(0.5)
        assert bench.rejected == 1
        nursery.start_soon(bench.answer, 1, one_more)  # what it had counted comes as it answers, late
        assert await bench.supervisor.measure(timeout_s=0.5) == 0
        assert bench.rejected == 4

    drive(script)


def test_scrapes_at_the_same_time_are_all_answered() -> None:
    async def script(bench: Bench, nursery: trio.Nursery) -> None:
        nursery.start_soon(bench.answer, 0, one_more)
        nursery.start_soon(bench.answer, 1, one_more)
        late: list[int] = []

        async def scrape() -> None:
            late.append(await bench.supervisor.measure(timeout_s=5))

        async with trio.open_nursery() as scrapes:
            for _ in range(5):
                scrapes.start_soon(scrape)
        assert late == [0] * 5

    drive(script)


def test_gauges_are_each_workers_last_word_and_go_when_they_are_gone() -> None:
    async def script(bench: Bench, nursery: trio.Nursery) -> None:
        gauge = Cell(names.CONNECTIONS.name, ("plain",), 3)
        await bench.workers[0].send(Report(gauges=(gauge,)))
        await bench.workers[0].send(Report())
        await trio.testing.wait_all_tasks_blocked()
        assert bench.links[0].cells == {gauge.key: 3}
        assert bench.links[1].cells == {}
        await bench.workers[0].send(Report(gone=(gauge.key,)))
        await trio.testing.wait_all_tasks_blocked()
        assert bench.links[0].cells == {}

    drive(script)


# --- the kernel's side ---


def test_what_a_process_uses_is_read_from_the_kernel() -> None:
    use = read_process(os.getpid())
    assert use is not None
    assert use.cpu_s > 0
    assert use.rss_bytes > 1_000_000
    assert 3 <= use.open_fds <= use.max_fds


def test_a_process_that_is_gone_is_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert read_process(process.pid) is None


def test_cpu_seconds_of_a_role_do_not_go_back_with_a_new_process() -> None:
    clock = CpuClock()
    assert clock.total_s("worker-0", 1, 5.0) == 5.0
    assert clock.total_s("worker-0", 1, 6.0) == 6.0
    assert clock.total_s("worker-0", 2, 0.5) == 6.5
    assert clock.total_s("worker-1", 3, 0.25) == 0.25
    assert clock.total_s("worker-0", 4, 0.0) == 6.5
