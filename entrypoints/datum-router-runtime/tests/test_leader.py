"""Leading: work runs in one process, is over before another may begin, and the lease is let go of at the end."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from datum_router.errors import ClusterConflict, ClusterForbidden, ClusterUnavailable
from datum_router.plugins.cluster import LeaseRecord
from datum_router.testing.cluster import FakeCluster
from datum_router_runtime.leader import STUCK_S, Leader

GONE = ClusterUnavailable("no answer")


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever levels other tests have set."""
    caplog.set_level("DEBUG", logger="datum_router_runtime.leader")


class Shift:
    """Work that notes when it was done."""

    def __init__(self) -> None:
        self.spells: list[tuple[float, float]] = []
        self.is_working = False

    async def work(self) -> None:
        assert not self.is_working
        self.is_working = True
        begun = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            self.is_working = False
            self.spells.append((begun, trio.current_time()))


def candidate(cluster: FakeCluster, name: str) -> Leader:
    return Leader(
        cluster,
        identity=name,
        lease="router-controller",
        rng=random.Random(name),
        clock=trio.current_time,
        wall_clock=lambda: 1.7e9 + trio.current_time(),
    )


def run(script: Callable[[], Awaitable[None]], *, limit_s: float = 10_000.0) -> None:
    async def main() -> None:
        with trio.fail_after(limit_s):
            await script()

    trio.run(main, clock=MockClock(autojump_threshold=0.0))


def holder_of(cluster: FakeCluster) -> str:
    record = cluster._leases["default", "router-controller"]
    return record.holder


def test_one_of_two_leads_and_the_other_takes_over_when_it_ends() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        one, other = candidate(cluster, "one"), candidate(cluster, "other")
        first, second = Shift(), Shift()
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as inner:
                inner.start_soon(one.run, first.work)
                await trio.sleep(1.0)
                nursery.start_soon(other.run, second.work)
                await trio.sleep(3600.0)
                assert first.is_working
                assert not second.is_working
                assert (one.is_leading, other.is_leading) == (True, False)
                assert (one.holder, other.holder) == ("one", "one")
                inner.cancel_scope.cancel()
            ended = trio.current_time()
            assert holder_of(cluster) == ""
            await trio.sleep(3.0)
            assert second.is_working, "the lease was let go of"
            assert first.spells == [(0.0, ended)]
            assert (one.terms, other.terms) == (1, 1)
            nursery.cancel_scope.cancel()

    run(script)


def test_nothing_is_written_at_rest_but_renewals() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        one, other = candidate(cluster, "one"), candidate(cluster, "other")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, Shift().work)
            await trio.sleep(1.0)
            nursery.start_soon(other.run, Shift().work)
            await trio.sleep(3599.5)
            assert {write.method for write in cluster.writes} == {"write_lease"}
            assert len(cluster.writes) == 1 + 1800, "one to begin with, and one every two seconds"
            nursery.cancel_scope.cancel()

    run(script)


def test_work_ends_when_the_lease_cannot_be_renewed_and_begins_anew_when_it_can() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        one = candidate(cluster, "one")
        shift = Shift()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, shift.work)
            await trio.sleep(60.5)
            cluster.fail("*", GONE, times=None)
            await trio.sleep(60.0)
            assert not one.is_leading
            assert shift.spells == [(0.0, 70.0)], "ten seconds after the last renewal that was answered"
            assert not one.is_stuck, "an API that is away is no fault of ours"
            cluster.heal()
            await trio.sleep(2.5)
            assert shift.is_working
            assert one.terms == 2
            nursery.cancel_scope.cancel()

    run(script)


def test_work_ends_in_time_even_if_the_api_never_answers() -> None:
    async def script() -> None:
        hangs = trio.Event()

        async def before(method: str) -> None:
            if hangs.is_set() and method.endswith("_lease"):
                await trio.sleep_forever()

        cluster = FakeCluster(before=before)
        one, other = candidate(cluster, "one"), candidate(cluster, "other")
        first, second = Shift(), Shift()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, first.work)
            await trio.sleep(60.5)
            hangs.set()
            await trio.sleep(15.0)
            ((_, ended),) = first.spells
            assert ended == 70.0
            nursery.start_soon(other.run, second.work)
            await trio.sleep(20.0)
            assert not second.is_working
            nursery.cancel_scope.cancel()

    run(script)


def test_a_leader_that_is_killed_is_followed_within_20_seconds() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        one, other = candidate(cluster, "one"), candidate(cluster, "other")
        first, second = Shift(), Shift()
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as inner:
                inner.start_soon(one.run, first.work)
                await trio.sleep(0.5)
                nursery.start_soon(other.run, second.work)
                await trio.sleep(100.0)
                cluster.fail("write_lease", GONE, times=1)  # the release of a process that is killed does not come
                cluster.fail("read_lease", GONE, times=1)
                inner.cancel_scope.cancel()
            killed = trio.current_time()
            await other.changed.next.wait()
            assert other.is_leading
            assert 10.0 < trio.current_time() - killed < 20.0
            nursery.cancel_scope.cancel()

    run(script)


def test_a_lease_that_another_one_took_ends_work_at_once() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        one = candidate(cluster, "one")
        shift = Shift()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, shift.work)
            await trio.sleep(10.5)
            there = await cluster.read_lease("default", "router-controller")
            assert there is not None
            thief = LeaseRecord(namespace="default", name="router-controller", holder="thief", version=there.version)
            await cluster.write_lease(thief)
            await trio.sleep(4.5)
            assert shift.spells == [(0.0, 14.0)], "one renewal is refused, then the lease is read"
            assert one.holder == "thief"
            nursery.cancel_scope.cancel()

    run(script)


def test_letting_go_survives_a_renewal_that_was_on_its_way() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        one = candidate(cluster, "one")
        shift = Shift()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, shift.work)
            await trio.sleep(10.5)
            cluster.fail("write_lease", GONE, is_applied=True)  # made, but not known to be
            await trio.sleep(2.0)
            assert one.failures == 1
            nursery.cancel_scope.cancel()
        assert holder_of(cluster) == ""

    run(script)


def test_a_candidate_without_rights_goes_on_asking(caplog: pytest.LogCaptureFixture) -> None:
    async def script() -> None:
        cluster = FakeCluster()
        one = candidate(cluster, "one")
        cluster.fail("read_lease", ClusterForbidden("may not get leases", status=403), times=100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, Shift().work)
            await trio.sleep(150.0)
            assert not one.is_leading
            assert not one.is_stuck
            await trio.sleep(100.0)
            assert one.is_leading
            nursery.cancel_scope.cancel()
        assert one.failures == 100

    run(script)
    warnings = [one for one in caplog.records if one.levelname == "WARNING"]
    assert [one.__dict__["error"] for one in warnings] == ["may not get leases"], "said once"


def test_a_conflict_at_the_end_that_is_another_ones_is_left_alone() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        one = candidate(cluster, "one")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, Shift().work)
            await trio.sleep(10.5)
            there = await cluster.read_lease("default", "router-controller")
            assert there is not None
            await cluster.write_lease(
                LeaseRecord(namespace="default", name="router-controller", holder="thief", version=there.version)
            )
            nursery.cancel_scope.cancel()
        assert holder_of(cluster) == "thief"

    run(script)


def test_work_that_comes_to_an_end_is_done_again_in_the_next_term_only() -> None:
    async def script() -> None:
        cluster = FakeCluster()
        one = candidate(cluster, "one")
        begun = []

        async def work() -> None:
            begun.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, work)
            await trio.sleep(60.5)
            assert begun == [0.0]
            cluster.fail("*", ClusterConflict("lost", status=409), times=None)
            await trio.sleep(30.0)
            cluster.heal()
            await trio.sleep(10.0)
            assert len(begun) == 2
            nursery.cancel_scope.cancel()

    run(script)


def test_a_process_that_does_nothing_about_the_lease_is_stuck() -> None:
    now = [0.0]
    one = Leader(
        FakeCluster(), identity="one", lease="l", rng=random.Random(1), clock=lambda: now[0], wall_clock=lambda: 0.0
    )
    assert not one.is_stuck
    now[0] = STUCK_S + 1
    assert one.is_stuck
