"""Writes what is said of joined clusters into their Leases: what differs, each in its time, and nothing else.

A cluster that stands otherwise is told within `MIN_PAUSE_S`; the same in other words or numbers within `MINOR_PAUSE_S`.
So a cluster that comes and goes, or whose complaints differ each time, costs a bounded number of writes. Of one that is
just being read what was said before stays: a daemon that starts has no news.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import trio

from datum_router.discovery.report import (
    CLUSTER_LABELS,
    ClusterReport,
    Facts,
    is_urgent,
    lease_name,
    read_record,
    record_of,
    report_of,
)
from datum_router.discovery.standing import Phase
from datum_router.errors import ClusterConflict, ClusterError
from datum_router.plugins.cluster import Cluster, LeaseRecord
from datum_router_runtime.turns import Signal

log = logging.getLogger(__name__)

MIN_PAUSE_S = 5.0
"""The Lease of one cluster is not written more often (seconds)."""
MINOR_PAUSE_S = 15.0
"""Nor more often than that for other words or numbers alone."""
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


class ClusterReports:
    """Keep the Leases of joined clusters.

    Attributes:
        writes: Leases that were written and removed, by `put` and `remove`.
        errors: Writes that failed, by the error's class.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        is_leading: Callable[[], bool],
        wall_clock: Callable[[], float],
        interval_s: float,
        writes: Counter[str],
        errors: Counter[str],
    ) -> None:
        """Take what is counted in, so that counts outlive a term.

        Args:
            wall_clock: Unix seconds.
            interval_s: How often all Leases are read, beside before they are written.
        """
        self._cluster = cluster
        self._is_leading = is_leading
        self._wall_clock = wall_clock
        self._interval_s = interval_s
        self.writes = writes
        self.errors = errors
        self._there: dict[str, LeaseRecord] = {}  # by their names
        self._wanted: Mapping[str, Facts] | None = None  # by the same; None: not known yet
        self._settled: dict[str, tuple[Facts, str]] = {}  # what a version of a Lease says already
        self._not_before: dict[str, float] = {}  # trio seconds
        self._written_at: dict[str, float] = {}
        self._tries: Counter[str] = Counter()
        self._changed = Signal()

    async def load(self) -> bool:
        """Read all Leases there are; tell whether that worked."""
        try:
            found = await self._cluster.list_leases(self._cluster.namespace, labels=CLUSTER_LABELS)
        except ClusterError as error:
            log.warning("reports on clusters cannot be read, will retry", extra={"error": str(error)})
            return False
        self._there = {record.name: record for record in found}
        return True

    def remembered(self, cluster: str) -> ClusterReport | None:
        """Return what was said of a cluster last, if anything was."""
        record = self._there.get(lease_name(cluster))
        return None if record is None else read_record(record)

    def want(self, facts: Iterable[Facts]) -> None:
        """Take what is known of all joined clusters; Leases of others are removed."""
        self._wanted = {lease_name(one.name): one for one in facts}
        self._changed.notify()

    async def run(self) -> None:
        """Write until cancelled; a write may then have happened or not."""
        resync_at = trio.current_time() + self._interval_s
        while True:
            waiting = self._changed.next
            wake_at = await self._write_due()
            with trio.move_on_at(min(wake_at, resync_at)):
                await waiting.wait()
            if trio.current_time() >= resync_at:
                await self.load()
                resync_at = trio.current_time() + self._interval_s

    async def _write_due(self) -> float:
        """Write what is due; return when something else will be, in trio seconds."""
        wake_at = float("inf")
        for name in sorted({*self._there, *(self._wanted or {})}):
            wanted = self._wanted
            if wanted is None or not self._is_leading():
                return float("inf")
            facts, there = wanted.get(name), self._there.get(name)
            now = trio.current_time()
            if facts is None:
                due_at, record = self._not_before.get(name, now), None
            else:
                if there is not None and self._settled.get(name) == (facts, there.version):
                    continue
                before = None if there is None else read_record(there)
                if facts.phase is Phase.CONNECTING and before is not None and _is_of(before, facts):
                    continue
                report = report_of(facts, before, now=self._wall_clock())
                record = self._record(report, there)
                if there is not None and _is_same(there, record):
                    self._settled[name] = (facts, there.version)
                    continue
                pause_s = MIN_PAUSE_S if is_urgent(before, report) else MINOR_PAUSE_S
                due_at = max(self._written_at.get(name, now - pause_s) + pause_s, self._not_before.get(name, now))
            if due_at > now:
                wake_at = min(wake_at, due_at)
                continue
            if not await self._write(name, record):
                wake_at = min(wake_at, self._not_before[name])
        return wake_at

    def _record(self, report: ClusterReport, there: LeaseRecord | None) -> LeaseRecord:
        version = "" if there is None else there.version
        return record_of(report, self._cluster.namespace, now=self._wall_clock(), version=version)

    async def _write(self, name: str, record: LeaseRecord | None) -> bool:
        """Write or remove (None) a Lease; tell whether that worked."""
        try:
            if record is not None:
                self._there[name] = await self._cluster.write_lease(record)
                self.writes["put"] += 1
            else:
                await self._cluster.delete_lease(self._there[name])
                del self._there[name]
                self.writes["remove"] += 1
        except ClusterError as error:
            self._put_off(name, error)
            if isinstance(error, ClusterConflict):
                await self._look_again(name)
            return False
        self._tries.pop(name, None)
        self._not_before.pop(name, None)
        if record is None:
            self._written_at.pop(name, None)
            self._settled.pop(name, None)
        else:
            self._written_at[name] = trio.current_time()
        return True

    async def _look_again(self, name: str) -> None:
        """Read a Lease that is another one than was thought. One that is not ours is left alone."""
        try:
            found = await self._cluster.read_lease(self._cluster.namespace, name)
        except ClusterError:
            return
        if found is None:
            self._there.pop(name, None)
        elif found.labels.items() >= CLUSTER_LABELS.items():
            self._there[name] = found
        else:
            self._there.pop(name, None)
            log.warning("a lease of somebody else has the name of a report on a cluster", extra={"lease": name})

    def _put_off(self, name: str, error: ClusterError) -> None:
        self.errors[type(error).__name__] += 1
        count = self._tries[name]
        self._tries[name] += 1
        wait_s = max(min(FIRST_BACKOFF_S * 2 ** min(count, 20), MAX_BACKOFF_S), error.retry_after_s)
        self._not_before[name] = trio.current_time() + wait_s
        if not count:
            log.warning(
                "a report on a cluster cannot be written, will retry", extra={"lease": name, "error": str(error)}
            )


def _is_of(report: ClusterReport, facts: Facts) -> bool:
    return report.secret is not None and report.secret.uid == facts.uid


def _is_same(there: LeaseRecord, wanted: LeaseRecord) -> bool:
    return (
        dict(there.labels) == dict(wanted.labels)
        and dict(there.annotations) == dict(wanted.annotations)
        and [(one.kind, one.name, one.uid) for one in there.owners]
        == [(one.kind, one.name, one.uid) for one in wanted.owners]
    )
