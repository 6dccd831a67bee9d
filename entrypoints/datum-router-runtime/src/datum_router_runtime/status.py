"""Statuses: what reading, compiling and gateways' reports come to, written to the cluster by the one that leads.

Theory of operation. `observe` is told of every view and result; it only notes which objects' statuses may differ. One
task looks at those one by one: it works out the status that an object ought to have now, and compares it with the one
that it has. Only a difference is written, by a few tasks at a time. So any number of changes to an object is one look,
and looking costs no request. Each waits `settle_s` first, so that what a gateway says of an edit is in the same write.

Whoever does not lead keeps its knowledge up to date and writes nothing. At the beginning of a term every object is
looked at once, behind whatever is edited meanwhile.

What was written is taken to be the object's status until another version of the object is read. If that has another
status than was written, somebody else writes it, too: it is written again a few times, then more and more rarely.
"""

from __future__ import annotations

import collections
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from http import HTTPStatus

import msgspec
import trio

from datum_router.compiler.compiler import CompileResult
from datum_router.errors import (
    ClusterConflict,
    ClusterError,
    ClusterForbidden,
    ClusterNotFound,
    ClusterRejected,
    ClusterUnavailable,
)
from datum_router.manifests.meta import ObjectKey, ObjectMeta, StatusPart
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.observe import names
from datum_router.plugins.cluster import Cluster, LeaseRecord, ObjectEvent, StatusWrite
from datum_router.reasons import Reason
from datum_router.reconcile.conditions import conditions_of, timestamp
from datum_router.reconcile.index import FactIndex
from datum_router.reconcile.leases import LEASE_KIND, reports_in
from datum_router.reconcile.notices import Notice, notices
from datum_router.reconcile.reports import IN_FORCE, ReportBook, Verdicts
from datum_router.reconcile.status import KINDS, desired_status, is_same_status, plain_status
from datum_router.reconcile.versions import FirstVersions
from datum_router.reconcile.workqueue import WorkQueue
from datum_router.registry.store import StoreView
from datum_router_runtime.settings import CONCURRENT_WRITES, SETTLE_S
from datum_router_runtime.turns import Signal

log = logging.getLogger(__name__)

WRITE_TIMEOUT_S = 60.0
"""One write, with its events, is given up after so long (seconds) and tried again."""
FORBIDDEN_RETRY_S = 60.0
"""A write that this process has no right to make is tried again after so long (seconds) at the earliest."""
FREE_REWRITES = 3
"""How often in a row a status that somebody else changed is written again at once; then later and later."""
MAX_REWRITE_S = 300.0
"""Longest wait before a status that somebody else keeps changing is written again (seconds)."""
EXPIRY_MARGIN_S = 0.1
"""After so long (seconds) a record that ran out has certainly done so."""

CONDITION_TYPES = frozenset(names.CONDITION.values)
"""Those that are counted; others may have put conditions of their own there."""


class Census(msgspec.Struct, frozen=True):
    """Objects by kind, and by kind, condition and its status as it was last read."""

    objects: collections.Counter[str]
    conditions: collections.Counter[tuple[str, str, str]]


class _Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A status that differs from what its object has."""

    write: StatusWrite
    status: StatusPart
    notices: Sequence[Notice]


class StatusWriter:
    """Keep the status of every object what it ought to be, while leading.

    Attributes:
        looks, look_s: Objects that were looked at, and the time that it took.
        writes: Statuses written, by kind.
        errors: Writes that failed, by kind and by what went wrong (`names.WRITE_ERROR`).
        events, event_errors: Events published, and those that could not be.
    """

    def __init__(
        self,
        cluster: Cluster,
        kinds: KindTable,
        *,
        is_leading: Callable[[], bool],
        rng: random.Random,
        settle_s: float = SETTLE_S,
        concurrency: int = CONCURRENT_WRITES,
        reports: Callable[[StoreView], Sequence[LeaseRecord]] = reports_in,
        clock: Callable[[], float] = trio.current_time,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a writer that knows nothing yet.

        Args:
            is_leading: Asked right before each write.
            rng: Spreads what is tried again.
            reports: What of a view gateways have written.
        """
        self._cluster = cluster
        self._rows: Mapping[str, ResourceKind] = {name: row for name in KINDS if (row := kinds.named(name)) is not None}
        self._is_leading = is_leading
        self._settle_s = settle_s
        self._concurrency = concurrency
        self._reports = reports
        self._clock = clock
        self._wall_clock = wall_clock
        self._queue: WorkQueue[ObjectKey] = WorkQueue(rng)
        self._index = FactIndex()
        self._versions = FirstVersions()
        self._book = ReportBook()
        self._verdicts = Verdicts({})
        self._refused: AbstractSet[ObjectKey] = frozenset()
        self._connections: Mapping[ObjectKey, int] = {}
        self._waiting: set[ObjectKey] = set()  # not in force everywhere when last looked at
        self._written: dict[ObjectKey, tuple[str, StatusPart]] = {}
        self._rewrites: dict[ObjectKey, int] = {}  # in a row, of statuses that were changed behind our back
        self._refusing: dict[ObjectKey, int] = {}  # the API broke on these: writes until then; -1: on them alone
        self._put_off: set[ObjectKey] = set()  # those of them that have waited, or wait now
        self._woken = Signal()
        self._reported = Signal()
        self._is_informed = False
        self._is_writing = False
        self._complaints: set[str] = set()
        self._census: Census | None = None
        self.looks = 0
        self.look_s = 0.0
        self.writes: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[tuple[str, str]] = collections.Counter()
        self.events = 0
        self.event_errors = 0

    # --- what is known -----------------------------------------------------------------------------------------------

    def observe(self, result: CompileResult | None, view: StoreView, seen: AbstractSet[ObjectKey]) -> None:
        """Take what was read and compiled: see `feed.Feed`. Never blocks."""
        self._census = None
        if result is None:
            changed = self._index.refresh(view, seen)
        else:
            changed = self._index.update(result, view, seen)
        refused = view.refused()
        for key in seen:
            if key.kind in KINDS:
                self._versions.note(key, self._index.metadata(key), is_refused=key in refused)
        if not self._is_informed or any(key.kind == LEASE_KIND for key in seen):
            changed |= self._take_reports(self._reports(view))
        self._queue_up(changed, is_urgent=self._is_informed)
        self._is_informed = True

    @property
    def gateways(self) -> Sequence[str]:
        """Return the names of the gateways whose reports count."""
        return sorted(self._verdicts.gateways)

    @property
    def depth(self) -> int:
        """Return how many objects wait to be looked at, or are being written."""
        return len(self._queue)

    @property
    def failing(self) -> int:
        """Return how many objects' last write failed."""
        return self._queue.failing

    def census(self) -> Census:
        """Return how many objects there are, and what their statuses say. O(objects) if anything was read since."""
        if self._census is None:
            self._census = Census(collections.Counter(), collections.Counter())
            objects, conditions = self._census.objects, self._census.conditions
            for key in self._index.objects():
                objects[key.kind] += 1
                for one in conditions_of(self._index.status(key)):
                    if one.type in CONDITION_TYPES:
                        conditions[key.kind, one.type, one.status] += 1
        return self._census

    def _take_reports(self, records: Sequence[LeaseRecord]) -> set[ObjectKey]:
        """Take gateways' records; return the objects that they may say something else of than before."""
        if not self._book.update(records, now=self._clock(), wall=self._wall_clock()):
            return set()
        return self._judge()

    def _judge(self) -> set[ObjectKey]:
        before = self._refused
        self._verdicts = self._book.verdicts(self._clock())
        self._refused = frozenset(self._verdicts.mentioned())
        counted, self._connections = self._connections, self._verdicts.connections()
        self._reported.notify()
        # What is in force everywhere stays so (`FirstVersions`): only the rest can hear anything new.
        recounted = {key for key, _ in counted.items() ^ self._connections.items()}
        return self._waiting | before | self._refused | recounted

    def _queue_up(self, keys: AbstractSet[ObjectKey], *, is_urgent: bool, after_s: float | None = None) -> None:
        if not self._is_writing or not keys:
            return
        now = self._clock()
        for key in keys:
            if key.kind in self._rows:
                self._queue.add(
                    key, now=now, after_s=self._settle_s if after_s is None else after_s, is_urgent=is_urgent
                )
        self._woken.notify()

    # --- writing -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until cancelled, which is to be done when this process does not lead any more.

        If it is cancelled, writes that are under way may be made or not.
        """
        self._is_writing = True
        self._queue.clear()
        self._written.clear()  # by another one in between, perhaps
        try:
            self._queue_up(set(self._index.objects()), is_urgent=False, after_s=0.0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_reports)
                slots = trio.Semaphore(self._concurrency)
                while True:
                    await slots.acquire()
                    key, planned = await self._next()
                    nursery.start_soon(self._write, key, planned, slots)
        finally:
            self._is_writing = False
            self._queue.clear()

    async def _watch_reports(self) -> None:
        """Look again when a gateway that ended without a word does not count any more."""
        while True:
            reported = self._reported.next
            with trio.move_on_after(self._book.next_expiry(self._clock()) + EXPIRY_MARGIN_S):
                await reported.wait()
                continue
            self._queue_up(self._judge(), is_urgent=False)

    async def _next(self) -> tuple[ObjectKey, _Planned]:
        """Return the next object whose status is to be written."""
        while True:
            woken = self._woken.next
            now = self._clock()
            key = self._queue.take(now)
            if key is None:
                with trio.move_on_after(max(0.0, self._queue.next_at() - now)):
                    await woken.wait()
                continue
            began = time.perf_counter()
            try:
                planned = self._look(key)
            except Exception:
                # A fault of ours: the others go on, and this one is tried again later and later.
                log.exception("status cannot be worked out", extra={"object": str(key)})
                self._fail(key, "internal")
                continue
            finally:
                self.looks += 1
                self.look_s += time.perf_counter() - began
            if planned is None:
                self._queue.done(key)
            elif key not in self._put_off and (patience_s := self._patience_s(key)):
                self._put_off.add(key)
                self._fail(key, "contested", at_least_s=patience_s)
            else:
                self._put_off.discard(key)
                return key, planned
            await trio.lowlevel.checkpoint()

    def _look(self, key: ObjectKey) -> _Planned | None:
        """Return what is to be written for an object, None if nothing is."""
        metadata = self._index.metadata(key)
        if metadata is None:
            self._waiting.discard(key)
            self._written.pop(key, None)
            self._rewrites.pop(key, None)
            self._put_off.discard(key)
            self._refusing.pop(key, None)
            return None
        old = self._status(key, metadata)
        is_refused = self._index.is_refused(key)
        verdict = self._versions.verdict(self._verdicts, key, metadata, status=old, is_refused=is_refused)
        if verdict == IN_FORCE:
            self._waiting.discard(key)
        else:
            self._waiting.add(key)
        refusals = tuple(self._verdicts.refusals_of(key, Reason.INVALID_CERTIFICATE_REF))
        notes = tuple(self._verdicts.notes_on(key))
        subject = self._index.subject(
            key,
            status=old,
            verdict=verdict,
            refusals=refusals,
            notes=notes,
            connections=self._connections.get(key, 0),
        )
        assert subject is not None  # it has metadata
        new = desired_status(subject, self._index.facts(key), now=timestamp(self._wall_clock()))
        if is_same_status(old, new):
            self._rewrites.pop(key, None)
            self._put_off.discard(key)
            return None
        row = self._rows[key.kind]
        write = StatusWrite(
            gvk=row.gvk,
            plural=row.plural,
            key=key,
            uid=metadata.uid,
            status=plain_status(new),
            version=metadata.resource_version,
        )
        return _Planned(write=write, status=new, notices=notices(old, new))

    def _status(self, key: ObjectKey, metadata: ObjectMeta) -> StatusPart | None:
        """Return the status that an object has: what was written, unless another version was read since."""
        written = self._written.get(key)
        if written is not None:
            if written[0] == metadata.resource_version:
                return written[1]
            del self._written[key]
            if not is_same_status(self._index.status(key), written[1]):
                self._rewrites[key] = self._rewrites.get(key, 0) + 1
        return self._index.status(key)

    def _patience_s(self, key: ObjectKey) -> float:
        """Return how long the next write of a status is to be put off that somebody else keeps changing."""
        excess = self._rewrites.get(key, 0) - FREE_REWRITES
        return min(2.0**excess, MAX_REWRITE_S) if excess > 0 else 0.0

    async def _write(self, key: ObjectKey, planned: _Planned, slots: trio.Semaphore) -> None:
        try:
            if not self._is_leading():
                # The end of the term is on its way; should it not come, the object is looked at again.
                self._queue.failed(key, now=self._clock())
                return
            with trio.move_on_after(WRITE_TIMEOUT_S) as scope:
                await self._cluster.write_status(planned.write)
            if scope.cancelled_caught:
                raise ClusterUnavailable(f"{key}: no answer within {WRITE_TIMEOUT_S:g} s")
        except ClusterError as error:
            self._take_error(key, error)
        except Exception:
            log.exception("status cannot be written", extra={"object": str(key)})
            self._fail(key, "internal")
        else:
            self.writes[key.kind] += 1
            self._refusing.pop(key, None)
            self._written[key] = (planned.write.version, planned.status)
            self._queue.done(key)
            await self._publish(planned)
        finally:
            slots.release()
            self._woken.notify()

    def _take_error(self, key: ObjectKey, error: ClusterError) -> None:
        now = self._clock()
        if isinstance(error, ClusterUnavailable) and self._is_its_own(key, error):
            self._fail(key, "unavailable", at_least_s=error.retry_after_s)
            log.warning("the API breaks on a status", extra={"object": str(key), "error": str(error)})
        elif isinstance(error, ClusterUnavailable):
            self.errors[key.kind, "unavailable"] += 1
            level = logging.DEBUG if self._queue.is_held(now) else logging.WARNING  # others failed with this one
            wait_s = self._queue.hold(key, now=now, at_least_s=error.retry_after_s)
            log.log(level, "the API takes no statuses", extra={"error": str(error), "wait_s": round(wait_s, 3)})
        elif isinstance(error, ClusterNotFound):
            self.errors[key.kind, "not_found"] += 1
            self._queue.done(key)  # deleted: reading will tell
        elif isinstance(error, ClusterRejected):
            self.errors[key.kind, "rejected"] += 1
            self._queue.gave_up(key)
            log.error("the API refuses a status", extra={"object": str(key), "error": str(error)})
        elif isinstance(error, ClusterForbidden):
            self._fail(key, "forbidden", at_least_s=FORBIDDEN_RETRY_S)
            if key.kind not in self._complaints:  # not for each object
                self._complaints.add(key.kind)
                log.error("statuses cannot be written", extra={"kind": key.kind, "error": str(error)})
        else:
            self._fail(key, "conflict" if isinstance(error, ClusterConflict) else "other", error.retry_after_s)
            log.debug("status was not written, will retry", extra={"object": str(key), "error": str(error)})

    def _is_its_own(self, key: ObjectKey, error: ClusterUnavailable) -> bool:
        """Tell whether the API breaks on this object while it takes others: etcd finds it too large, for example."""
        if error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
            return False
        written = self.writes.total()
        before = self._refusing.setdefault(key, written)
        if written > before >= 0:
            self._refusing[key] = before = -1  # from now on, until it is written
        return before < 0

    def _fail(self, key: ObjectKey, what: str, at_least_s: float = 0.0) -> None:
        self.errors[key.kind, what] += 1
        self._queue.failed(key, now=self._clock(), at_least_s=at_least_s)

    async def _publish(self, planned: _Planned) -> None:
        """Publish what goes with a status that was written; what cannot be is counted and forgotten."""
        write = planned.write
        for one in planned.notices:
            if not self._is_leading():
                return
            event = ObjectEvent(
                gvk=write.gvk,
                key=write.key,
                uid=write.uid,
                type=one.type,
                reason=one.reason,
                action=one.action,
                note=one.note,
            )
            try:
                with trio.fail_after(WRITE_TIMEOUT_S):
                    await self._cluster.publish(event)
            except Exception as error:  # noqa: BLE001 - an event is no reason to stop writing statuses
                self.event_errors += 1
                log.warning("event cannot be published", extra={"object": str(write.key), "error": str(error)})
            else:
                self.events += 1
