"""The cluster in memory: it holds to what every cluster must, and fails as it is told to."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from datum_router.errors import ClusterConflict, ClusterNotFound, ClusterUnavailable
from datum_router.plugins.cluster import LeaseRecord
from datum_router.testing.cluster import ClusterConformance, FakeCluster, FakeStage, run_now
from datum_router.testing.cluster.conformance import SERVICE, SERVICES, Body, key, service, status


class TestFakeCluster(ClusterConformance):
    def run(self, body: Body) -> None:
        cluster = FakeCluster(unserved=["Nothing"])

        async def main() -> None:
            await body(cluster, FakeStage(cluster))

        run_now(main())


def uid_of(raw: Mapping[str, object]) -> str:
    metadata = raw["metadata"]
    assert isinstance(metadata, Mapping)
    return str(metadata["uid"])


def test_a_failure_comes_as_often_as_it_was_asked_for() -> None:
    cluster = FakeCluster()
    uid = uid_of(cluster.put(service("default"), plural=SERVICES))
    write = status("default", uid, {"ready": True})
    cluster.fail("write_status", ClusterUnavailable("no answer"), times=2)
    for _ in range(2):
        with pytest.raises(ClusterUnavailable, match="no answer"):
            run_now(cluster.write_status(write))
    assert cluster.status_of(SERVICES, key("default")) == {}
    run_now(cluster.write_status(write))
    assert cluster.status_of(SERVICES, key("default")) == {"ready": True}
    assert [one.method for one in cluster.writes] == ["write_status"]


def test_everything_fails_until_it_is_healed() -> None:
    cluster = FakeCluster()
    cluster.fail("*", ClusterUnavailable("no answer"), times=None)
    for _ in range(3):
        with pytest.raises(ClusterUnavailable):
            run_now(cluster.get(SERVICE, SERVICES, key("default")))
    with pytest.raises(ClusterUnavailable):
        run_now(cluster.read_lease("default", "leader"))
    cluster.heal()
    assert run_now(cluster.read_lease("default", "leader")) is None


def test_a_write_whose_answer_is_lost_has_happened() -> None:
    cluster = FakeCluster()
    cluster.fail("write_lease", ClusterUnavailable("no answer"), is_applied=True)
    record = LeaseRecord(namespace="default", name="leader", holder="one")
    with pytest.raises(ClusterUnavailable):
        run_now(cluster.write_lease(record))
    found = run_now(cluster.read_lease("default", "leader"))
    assert found is not None
    assert found.holder == "one"
    with pytest.raises(ClusterConflict):
        run_now(cluster.write_lease(record))


def test_a_watcher_is_told_of_each_change_and_of_the_end() -> None:
    cluster = FakeCluster()
    seen: list[tuple[object, bool]] = []
    cluster.watchers.append(lambda raw, is_gone: seen.append((raw.get("status"), is_gone)))
    uid = uid_of(cluster.put(service("default"), plural=SERVICES))
    for _ in range(2):  # the second changes nothing
        run_now(cluster.write_status(status("default", uid, {"ready": True})))
    cluster.remove(SERVICES, key("default"))
    assert seen == [(None, False), ({"ready": True}, False), ({"ready": True}, True)]


def test_a_write_into_a_namespace_that_is_gone_is_not_found() -> None:
    cluster = FakeCluster(namespaces=["here"])
    cluster.put(service("here"), plural=SERVICES)
    with pytest.raises(ClusterNotFound, match="namespace there: not found"):
        run_now(cluster.apply(service("there"), plural=SERVICES, manager="user", is_forced=False))
    with pytest.raises(ClusterNotFound):
        run_now(cluster.write_lease(LeaseRecord(namespace="there", name="leader")))


def test_what_is_given_and_returned_is_not_what_is_kept() -> None:
    cluster = FakeCluster()
    raw = service("default")
    cluster.put(raw, plural=SERVICES)
    first = run_now(cluster.get(SERVICE, SERVICES, key("default")))
    assert first is not None
    for one in (raw, first):
        spec = one["spec"]
        assert isinstance(spec, dict)
        spec["port"] = 1
    again = run_now(cluster.get(SERVICE, SERVICES, key("default")))
    assert again is not None
    spec = again["spec"]
    assert isinstance(spec, dict)
    assert spec["port"] == 8080


def test_each_call_waits_where_the_test_says() -> None:
    entered: list[str] = []

    async def before(method: str) -> None:
        entered.append(method)

    cluster = FakeCluster(before=before)
    run_now(cluster.read_lease("default", "leader"))
    run_now(cluster.apply(service("default"), plural=SERVICES, manager="user", is_forced=False))
    assert entered == ["read_lease", "apply"]
