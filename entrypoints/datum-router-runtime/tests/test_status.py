"""Statuses: written once for each difference, by the leader alone, and never twice for nothing."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import pytest
import trio

from datum_router.errors import (
    ClusterConflict,
    ClusterForbidden,
    ClusterRejected,
    ClusterUnavailable,
)
from datum_router.reconcile.reports import Refusal
from datum_router.reconcile.workqueue import MAX_HOLD_S
from datum_router.testing.cluster import FakeCluster
from datum_router_runtime.status import FORBIDDEN_RETRY_S, StatusWriter
from tests.controllers import Line, Process, conditions, events, key_of, put, report, route, service, simulate, statuses

GONE = ClusterUnavailable("no answer")
NEWEST = 10**9
"""A version that is higher than any."""


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever levels other tests have set."""
    caplog.set_level("DEBUG", logger="datum_router_runtime.status")


def many(cluster: FakeCluster, count: int) -> None:
    service(cluster)
    for number in range(count):
        route(cluster, f"r{number}")


def count_of(cluster: FakeCluster) -> collections.Counter[str]:
    return collections.Counter(write.key.name for write in statuses(cluster))


# --- at rest and after an edit ---------------------------------------------------------------------------------------


def test_nothing_is_written_at_rest_for_an_hour_but_the_lease() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 50)
        put(cluster, "VPCRoute", "bad", {"destinations": [{"vpcServiceRef": {"name": "gone"}}]})
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            process.records = [report("gw", NEWEST)]
            await trio.sleep(30.0)
            assert count_of(cluster) == {"api": 1, "bad": 1, **{f"r{number}": 1 for number in range(50)}}
            cluster.writes.clear()
            await trio.sleep(3600.0)
            assert {write.method for write in cluster.writes} == {"write_lease"}
            assert process.writer.depth == 0
            nursery.cancel_scope.cancel()

    simulate(script)


def test_an_edit_is_one_write_of_one_object_with_gateways_word_in_it() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 50)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            process.records = [report("gw", NEWEST)]
            await trio.sleep(30.0)
            process.say(report("gw", cluster._version))
            await trio.sleep(30.0)
            cluster.writes.clear()
            looks = process.writer.looks
            key = route(cluster, "r7", timeoutSeconds=3)
            await trio.sleep(0.1)  # as long as a gateway takes
            process.say(report("gw", cluster._version))
            await trio.sleep(30.0)
            (write,) = statuses(cluster)
            assert write.key == key
            assert conditions(cluster, key)["Programmed"] == "True Programmed"
            assert write.status["observedGeneration"] == 2
            assert process.writer.looks - looks <= 3, "the others are not even looked at"
            nursery.cancel_scope.cancel()

    simulate(script)


def test_a_gateway_that_is_late_is_a_second_write() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 3)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            process.records = [report("gw", NEWEST)]
            await trio.sleep(10.0)
            process.say(report("gw", cluster._version))
            await trio.sleep(10.0)
            cluster.writes.clear()
            key = route(cluster, "r1", timeoutSeconds=3)
            await trio.sleep(10.0)
            assert conditions(cluster, key)["Programmed"] == "False Pending"
            process.say(report("gw", cluster._version))
            await trio.sleep(10.0)
            assert conditions(cluster, key)["Programmed"] == "True Programmed"
            assert len(statuses(cluster)) == 2
            assert events(cluster) == [], "waiting is no failure"
            nursery.cancel_scope.cancel()

    simulate(script)


def test_a_status_that_somebody_spoilt_is_written_anew() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        key = service(cluster)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(10.0)
            good = dict(cluster.status_of("vpcservices", key))
            cluster.writes.clear()
            raw = dict(cluster.objects("vpcservices")[0])
            cluster.put({**raw, "status": {"ready": False}}, plural="vpcservices")
            await trio.sleep(10.0)
            assert len(statuses(cluster)) == 1
            again = dict(cluster.status_of("vpcservices", key))
            assert again["ready"] is good["ready"] is True
            nursery.cancel_scope.cancel()

    simulate(script)


def test_a_status_that_somebody_keeps_changing_is_written_more_and_more_rarely() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        key = service(cluster)
        service(cluster, "other")
        process = Process(cluster)
        is_meddling = [True]

        def meddle(raw: Mapping[str, Any], _is_gone: bool) -> None:
            """Take `ready` back whenever it is said."""
            status = raw.get("status", {})
            if is_meddling[0] and raw["metadata"]["name"] == "api" and status.get("ready"):
                cluster.put({**raw, "status": {**status, "ready": False}}, plural="vpcservices")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(10.0)
            cluster.watchers.append(meddle)
            service(cluster, port=81)
            await trio.sleep(3600.0)
            times = len([write for write in statuses(cluster) if write.key == key])
            assert 8 < times < 30, "not five a second"
            assert process.writer.errors["VPCService", "contested"] > 5
            assert len(statuses(cluster)) - times == 1, "nobody else is held up, or written again"
            is_meddling[0] = False
            await trio.sleep(400.0)
            assert cluster.status_of("vpcservices", key)["ready"] is True
            assert process.writer.failing == 0
            before = len(statuses(cluster))
            service(cluster, port=82)
            await trio.sleep(1.0)
            assert len(statuses(cluster)) == before + 1, "forgotten"
            nursery.cancel_scope.cancel()

    simulate(script)


def test_an_object_that_is_edited_often_is_not_contested() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        service(cluster)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(10.0)
            for number in range(50):
                service(cluster, port=1000 + number)
                await trio.sleep(0.3)
            await trio.sleep(5.0)
            assert process.writer.errors.total() == 0
            assert len(statuses(cluster)) > 40
            nursery.cancel_scope.cancel()

    simulate(script)


def test_an_object_that_goes_takes_its_place_in_the_queue_with_it() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        key = service(cluster)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(10.0)
            cluster.writes.clear()
            service(cluster, port=81)
            cluster.remove("vpcservices", key)
            await trio.sleep(10.0)
            assert statuses(cluster) == []
            assert process.writer.depth == 0
            service(cluster, port=82)
            await trio.sleep(10.0)
            (write,) = statuses(cluster)
            assert write.uid != ""
            assert write.status["observedGeneration"] == 1
            nursery.cancel_scope.cancel()

    simulate(script)


def test_an_edit_overtakes_what_a_new_leader_has_to_look_at() -> None:
    async def script() -> None:
        slow = True

        async def before(method: str) -> None:
            if method == "write_status" and slow:
                await trio.sleep(1.0)

        cluster = FakeCluster(before=before)
        many(cluster, 200)
        process = Process(cluster, concurrency=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(10.0)
            assert len(statuses(cluster)) < 30
            route(cluster, "new")
            await trio.sleep(3.0)
            assert "new" in count_of(cluster)
            await trio.sleep(200.0)
            assert len(count_of(cluster)) == 202
            nursery.cancel_scope.cancel()

    simulate(script)


# --- leading ---------------------------------------------------------------------------------------------------------


def test_only_the_leader_writes_and_the_next_one_goes_on_where_it_stopped() -> None:
    async def script() -> None:
        async def before(method: str) -> None:
            if method == "write_status":
                await trio.sleep(0.2)

        cluster = FakeCluster(before=before)
        many(cluster, 100)
        one, other = Process(cluster, "one", concurrency=2), Process(cluster, "other", concurrency=2)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as inner:
                inner.start_soon(one.run)
                await trio.sleep(0.5)
                nursery.start_soon(other.run)
                await trio.sleep(4.0)
                assert other.writer.writes.total() == 0
                inner.cancel_scope.cancel()
            done = len(statuses(cluster))
            assert 10 < done < 100
            await trio.sleep(60.0)
            assert one.writer.writes.total() + other.writer.writes.total() == 101
            assert set(count_of(cluster).values()) == {1}, "nothing is written twice"
            nursery.cancel_scope.cancel()

    simulate(script)


def test_a_leader_that_is_cut_off_writes_nothing_once_another_one_may() -> None:
    async def script() -> None:
        is_cut = False

        async def before(method: str) -> None:
            await trio.sleep(0.3)

        async def before_cut(method: str) -> None:
            await trio.sleep(0.2)
            while is_cut:  # noqa: ASYNC110 - calls do not come back for as long as it is
                await trio.sleep(0.5)
            await trio.sleep(0.1)

        cluster = FakeCluster()
        many(cluster, 300)
        lines = {"one": Line(cluster, before_cut), "other": Line(cluster, before)}
        one = Process(cluster, "one", api=lines["one"], concurrency=2)
        other = Process(cluster, "other", api=lines["other"], concurrency=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            await trio.sleep(1.0)
            nursery.start_soon(other.run)
            await trio.sleep(10.0)
            is_cut = True
            await trio.sleep(60.0)
            is_cut = False
            await trio.sleep(60.0)
            written = {name: [at for at, what in line.calls if what == "write_status"] for name, line in lines.items()}
            assert len(written["one"]) > 10
            assert len(written["other"]) > 200
            assert max(written["one"]) < 11.5, "a call that hangs is cut off with the term"
            assert 20.0 < min(written["other"]) < 35.0
            assert other.leader.is_leading
            assert not one.leader.is_leading
            assert set(count_of(cluster).values()) == {1}
            nursery.cancel_scope.cancel()

    simulate(script)


def test_who_does_not_lead_right_before_a_write_does_not_write() -> None:
    """As after a SIGSTOP: the check comes first, whatever else has not happened yet."""

    async def script() -> None:
        cluster = FakeCluster()
        service(cluster)
        leads = [True]
        process = Process(cluster)
        writer = process.writer
        writer._is_leading = lambda: leads[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            leads[0] = False
            await trio.sleep(30.0)
            assert statuses(cluster) == []
            leads[0] = True
            await trio.sleep(60.0)
            assert len(statuses(cluster)) == 1, "it was put back, not lost"
            nursery.cancel_scope.cancel()

    simulate(script)


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_api_that_is_away_for_a_minute_is_asked_now_and_then_and_caught_up_with_once() -> None:
    async def script() -> None:
        calls: list[tuple[float, str]] = []

        async def before(method: str) -> None:
            calls.append((trio.current_time(), method))

        cluster = FakeCluster(before=before)
        many(cluster, 300)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(30.0)
            cluster.writes.clear()
            cluster.fail("*", GONE, times=None)
            process.watch.is_cut = True
            for number in range(300):
                route(cluster, f"r{number}", timeoutSeconds=3)
            service(cluster, port=81)
            gone_at = trio.current_time()
            process.watch.catch_up()  # the edits were seen just before
            process.watch.is_cut = True
            await trio.sleep(60.0)
            asked = [method for at, method in calls if at > gone_at and method == "write_status"]
            assert len(asked) < 60, "a few, not one for each object again and again"
            cluster.heal()
            process.watch.catch_up()
            back_at = trio.current_time()
            await trio.sleep(30.0)
            assert set(count_of(cluster).values()) == {1}
            assert len(count_of(cluster)) == 301
            took_s = max(at for at, method in calls if method == "write_status") - back_at
            assert took_s < MAX_HOLD_S + 5.0
            assert process.writer.depth == 0
            nursery.cancel_scope.cancel()

    simulate(script)


def test_an_api_that_asks_to_wait_is_waited_for() -> None:
    async def script() -> None:
        times: list[float] = []

        async def before(method: str) -> None:
            if method == "write_status":
                times.append(trio.current_time())

        cluster = FakeCluster(before=before)
        service(cluster)
        cluster.fail("write_status", ClusterUnavailable("too many requests", status=429, retry_after_s=17.0))
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(60.0)
            assert len(times) == 2
            assert times[1] - times[0] >= 17.0
            nursery.cancel_scope.cancel()

    simulate(script)


def test_an_object_whose_write_fails_waits_longer_each_time_and_holds_nobody_up() -> None:
    async def script() -> None:
        times: list[float] = []

        class Picky(FakeCluster):
            async def write_status(self, write) -> None:  # type: ignore[no-untyped-def]
                if write.key.name == "r1" and len(times) < 8:
                    times.append(trio.current_time())
                    raise ClusterConflict("made anew", status=409)
                await super().write_status(write)

        cluster = Picky()
        many(cluster, 20)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(1.0)
            assert len(count_of(cluster)) >= 20
            await trio.sleep(60.0)
            assert count_of(cluster)["r1"] == 1
            assert len(times) == 8
            assert times[-1] - times[-2] > times[1] - times[0]
            assert process.writer.errors["VPCRoute", "conflict"] == 8
            assert process.writer.failing == 0
            nursery.cancel_scope.cancel()

    simulate(script)


def test_an_object_that_the_api_breaks_on_holds_nobody_up() -> None:
    async def script() -> None:
        tries: list[float] = []

        class Picky(FakeCluster):
            async def write_status(self, write) -> None:  # type: ignore[no-untyped-def]
                if write.key.name == "r1":
                    tries.append(trio.current_time())
                    raise ClusterUnavailable("etcdserver: request is too large", status=500)
                await super().write_status(write)

        cluster = Picky()
        many(cluster, 20)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            for number in range(60):
                service(cluster, port=1000 + number)  # something else is written meanwhile
                await trio.sleep(10.0)
                assert conditions(cluster, key_of("VPCService", "api"))
            assert len(tries) < 30
            assert process.writer.errors["VPCRoute", "unavailable"] == len(tries)
            assert count_of(cluster)["api"] == 60
            nursery.cancel_scope.cancel()

    simulate(script)


def test_a_status_that_the_api_refuses_is_not_tried_again_before_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    async def script() -> None:
        cluster = FakeCluster()
        service(cluster)
        cluster.fail("write_status", ClusterRejected("status.ready: unknown", status=422))
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(600.0)
            assert statuses(cluster) == []
            assert process.writer.errors["VPCService", "rejected"] == 1
            service(cluster, port=81)
            await trio.sleep(10.0)
            assert len(statuses(cluster)) == 1
            nursery.cancel_scope.cancel()

    simulate(script)
    assert "the API refuses a status" in caplog.text


def test_a_lack_of_rights_is_said_once_and_tried_again_rarely(caplog: pytest.LogCaptureFixture) -> None:
    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 10)
        cluster.fail("write_status", ClusterForbidden("may not patch vpcroutes/status", status=403), times=50)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(FORBIDDEN_RETRY_S - 1.0)
            assert process.writer.errors.total() == 11
            await trio.sleep(1000.0)
            assert len(statuses(cluster)) == 11
            nursery.cancel_scope.cancel()

    simulate(script)
    said = [one for one in caplog.records if one.message == "statuses cannot be written"]
    assert len(said) == 2, "once for each kind"


def test_a_fault_of_ours_costs_one_object_its_status_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = StatusWriter._look

    def look(self: StatusWriter, key):  # type: ignore[no-untyped-def]
        if key.name == "r1":
            raise AssertionError("a bug of ours")
        return whole(self, key)

    monkeypatch.setattr(StatusWriter, "_look", look)

    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 5)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(30.0)
            assert set(count_of(cluster)) == {"api", "r0", "r2", "r3", "r4"}
            assert 3 < process.writer.errors["VPCRoute", "internal"] < 20
            nursery.cancel_scope.cancel()

    simulate(script)
    assert "status cannot be worked out" in caplog.text


def test_a_write_that_never_ends_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def script() -> None:
        hangs = [True]

        async def before(method: str) -> None:
            if method == "write_status" and hangs[0]:
                hangs[0] = False
                await trio.sleep_forever()

        cluster = FakeCluster(before=before)
        service(cluster)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(50.0)
            assert statuses(cluster) == []
            await trio.sleep(60.0)
            assert len(statuses(cluster)) == 1
            nursery.cancel_scope.cancel()

    simulate(script)


# --- events and reports ----------------------------------------------------------------------------------------------


def test_what_a_user_must_see_is_an_event_once() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 2)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            process.records = [report("gw", NEWEST)]
            await trio.sleep(10.0)
            assert events(cluster) == []
            route(cluster, "r1", to="gone")
            await trio.sleep(10.0)
            route(cluster, "r1", to="gone", timeoutSeconds=3)
            await trio.sleep(10.0)
            route(cluster, "r1")
            await trio.sleep(10.0)
            told = [(one.type, one.reason, one.key.name) for one in events(cluster)]
            assert told == [("Warning", "VPCServiceNotFound", "r1"), ("Normal", "ResolvedRefs", "r1")]
            assert all(one.uid and one.note for one in events(cluster))
            assert process.writer.events == 2
            nursery.cancel_scope.cancel()

    simulate(script)


def test_an_event_that_cannot_be_published_costs_no_status() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        cluster.fail("publish", ClusterForbidden("may not create events", status=403), times=None)
        for number in range(5):
            route(cluster, f"r{number}", to="gone")
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(10.0)
            assert len(statuses(cluster)) == 5
            assert process.writer.event_errors == 5
            nursery.cancel_scope.cancel()

    simulate(script)


def test_a_gateway_that_refuses_an_object_is_named() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 2)
        refusal = Refusal(
            kind="VPCRoute", namespace="default", name="r1", reason="RegexUnavailable", message="no engine here"
        )
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            process.records = [report("gw", NEWEST)]
            await trio.sleep(10.0)
            cluster.writes.clear()
            process.say(report("gw", NEWEST, refused=(refusal,)))
            await trio.sleep(10.0)
            (write,) = statuses(cluster)
            assert conditions(cluster, write.key)["Programmed"] == "False RegexUnavailable"
            process.say(report("gw", NEWEST))
            await trio.sleep(10.0)
            assert conditions(cluster, write.key)["Programmed"] == "True Programmed"
            assert [one.type for one in events(cluster)] == ["Warning", "Normal"]
            assert process.writer.gateways == ["gw"]
            nursery.cancel_scope.cancel()

    simulate(script)


def test_gateways_that_come_and_go_are_no_reason_to_write() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 20)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            process.records = [report("gw-1", NEWEST)]
            await trio.sleep(10.0)
            cluster.writes.clear()
            process.say()
            await trio.sleep(10.0)
            process.say(report("gw-2", NEWEST))
            await trio.sleep(10.0)
            assert statuses(cluster) == []
            nursery.cancel_scope.cancel()

    simulate(script)


def test_a_gateway_that_died_holds_an_edit_up_only_until_its_record_runs_out() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 3)
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            process.records = [report("dead", NEWEST), report("gw", NEWEST)]
            await trio.sleep(10.0)
            dead = report("dead", cluster._version)
            process.say(dead, report("gw", cluster._version))
            await trio.sleep(10.0)
            key = route(cluster, "r1", timeoutSeconds=3)
            process.say(dead, report("gw", cluster._version))
            await trio.sleep(100.0)
            assert conditions(cluster, key)["Programmed"] == "False Pending"
            await trio.sleep(250.0)
            assert conditions(cluster, key)["Programmed"] == "True Programmed"
            nursery.cancel_scope.cancel()

    simulate(script)


def test_what_is_known_is_counted_by_kind_and_condition() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        many(cluster, 3)
        route(cluster, "lost", to="gone")
        put(cluster, "VPCEgress", "out", {"connectorRef": {"name": "never-good"}})
        process = Process(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run)
            await trio.sleep(10.0)
            counts = process.writer.census().conditions
            assert counts["VPCRoute", "ResolvedRefs", "True"] == 3
            assert counts["VPCRoute", "ResolvedRefs", "False"] == 1
            assert counts["VPCEgress", "Accepted", "False"] == 1, "of objects that were never good, too"
            assert process.writer.census().objects == {"VPCRoute": 4, "VPCService": 1, "VPCEgress": 1}
            route(cluster, "fifth")
            await trio.sleep(1.0)
            assert process.writer.census().objects["VPCRoute"] == 5
            nursery.cancel_scope.cancel()

    simulate(script)
