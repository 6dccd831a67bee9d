"""Leading: runs `reconcile.lease` over a cluster's Lease, and work for as long as this process is the one that leads.

Work is cancelled at the moment at which the lease can no longer be relied on, even if nothing has been heard. A process
that was stopped in between may wake up later than that: so work asks `is_leading` right before each act.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable

import trio

from datum_router.errors import ClusterConflict, ClusterError
from datum_router.plugins.cluster import Cluster, LeaseRecord
from datum_router.reconcile.lease import Elector, LeaseTimes, Read, Wait, Write
from datum_router_runtime.turns import Signal

log = logging.getLogger(__name__)

RELEASE_S = 3.0
"""How long a graceful end waits for the lease to be let go of (seconds); without it the next leader waits longer."""
STUCK_S = 30.0
"""If nothing was done about the lease for so long (seconds), this process is stuck."""


def boot_time() -> float:
    """Return seconds that go on while this process, or the whole machine, sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leader:
    """One candidate for a lease in the cluster's own namespace.

    Attributes:
        changed: Leading has begun or ended.
        terms: How often it has begun.
        failures: Reads and writes of the lease that failed.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        identity: str,
        lease: str,
        rng: random.Random,
        times: LeaseTimes | None = None,
        clock: Callable[[], float] = boot_time,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a candidate. Asks the cluster for its namespace, which may block.

        Args:
            identity: No other process should have it.
            lease: Name of the lease.
            clock: Monotonic seconds that go on while the process is stopped.
        """
        self._cluster = cluster
        self._times = times or LeaseTimes()
        self._namespace, self._lease = cluster.namespace, lease
        self._elector = Elector(identity=identity, namespace=self._namespace, name=lease, rng=rng, times=self._times)
        self._clock = clock
        self._wall_clock = wall_clock
        self._term: trio.CancelScope | None = None
        self._was_leading = False
        self._is_failing = False
        self._turned_at = clock()
        self.changed = Signal()
        self.terms = 0
        self.failures = 0

    @property
    def is_leading(self) -> bool:
        """Tell whether this process may act now; to be asked right before each act."""
        return self._elector.is_leading(self._clock())

    @property
    def is_stuck(self) -> bool:
        """Tell whether nothing has been done about the lease for far too long."""
        return self._clock() - self._turned_at > STUCK_S

    @property
    def holder(self) -> str:
        """Return who held the lease when it was last looked at; empty if nobody did."""
        return self._elector.holder

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Stand for election until cancelled, and do `work` in each term; then let go of the lease.

        Work is begun anew in each term. It has ended before the lease is let go of.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stand)
                await self._lead(work)
        finally:
            with trio.move_on_after(RELEASE_S, shield=True):
                await self._let_go()

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            changed = self.changed.next
            if self.is_leading:
                with trio.CancelScope() as scope:
                    self._term = scope
                    self._extend()
                    await work()
                self._term = None
                self._note()
                if scope.cancelled_caught:
                    continue
            await changed.wait()

    async def _stand(self) -> None:
        while True:
            now = self._clock()
            action = self._elector.step(now, wall=self._wall_clock())
            self._turned_at = now
            if isinstance(action, Wait):
                self._note()
                await trio.sleep(max(0.0, min(action.until, self._end_of_term(now)) - now))
            else:
                await self._act(action)
                self._note()

    def _end_of_term(self, now: float) -> float:
        until = self._elector.leads_until
        return until if until > now else float("inf")

    async def _act(self, action: Read | Write) -> None:
        try:
            # Half of the deadline, so that a renewal whose answer never comes can be tried again in time.
            with trio.fail_after(self._times.renew_deadline_s / 2):
                if isinstance(action, Read):
                    record = await self._cluster.read_lease(self._namespace, self._lease)
                    self._elector.observed(record, now=self._clock())
                else:
                    self._elector.written(await self._cluster.write_lease(action.record), now=self._clock())
        except (ClusterError, trio.TooSlowError) as error:
            self._elector.failed(now=self._clock())
            self.failures += 1
            if not self._is_failing and not isinstance(error, ClusterConflict):
                self._is_failing = True
                log.warning(
                    "lease cannot be read or written, will retry",
                    extra={"lease": self._lease, "error": str(error) or type(error).__name__},
                )
        else:
            if self._is_failing:
                log.info("lease can be read and written again", extra={"lease": self._lease})
            self._is_failing = False

    def _note(self) -> None:
        """Bring the term in line with what is known of the lease."""
        is_leading = self.is_leading
        if self._term is not None:
            self._extend()
        if is_leading == self._was_leading:
            return
        self._was_leading = is_leading
        if is_leading:
            self.terms += 1
        log.info("leading" if is_leading else "not leading any more", extra={"lease": self._lease})
        self.changed.notify()

    def _extend(self) -> None:
        if self._term is not None:
            self._term.deadline = trio.current_time() + (self._elector.leads_until - self._clock())

    async def _let_go(self) -> None:
        record = self._elector.resign(wall=self._wall_clock())
        self._note()
        if record is None:
            return
        try:
            try:
                await self._cluster.write_lease(record)
            except ClusterConflict:  # a renewal had been on its way
                self._elector.observed(await self._cluster.read_lease(self._namespace, self._lease), now=self._clock())
                again: LeaseRecord | None = self._elector.resign(wall=self._wall_clock())
                if again is not None:
                    await self._cluster.write_lease(again)
        except ClusterError as error:
            log.warning("lease cannot be let go of, it runs out by itself", extra={"error": str(error)})
