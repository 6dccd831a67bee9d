"""Deadlines that are noticed within milliseconds, for the few tasks that ask for it.

Theory of operation. The sweep (`loop.SWEEP_S`) finds every deadline that has passed, up to a quarter of a second late:
right for limits of seconds, too coarse for one attempt of 50 ms. A task that has set such a deadline asks for an alarm.
Alarms stand in a heap; one trio task sleeps until the earliest. A task has at most one entry that counts: as long as
that is not later than its deadline nothing is added, and an alarm that comes too early is set anew. So a connection
whose requests all have a limit of a second costs the heap one entry a second, however many requests there are. Streams
of HTTP/2 have a task each, which is mostly done long before its alarm: entries of such tasks are dropped whenever the
heap has doubled. Who asks for no alarm pays nothing.

A deadline that is more than `WITHIN_S` away is left to the sweep: that is late by a fortieth of it at most. All others
are late by what trio's timer and a batch of the loop take: about `loop.BATCH_S` (2 ms) and its last step.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Final

import trio

from datum_router.reasons import Reason
from datum_router_proxy.task import Task

PRECISE: Final = frozenset((Reason.PER_TRY_TIMEOUT,))
"""What expires in time; an alarm that finds a later deadline of such a kind is set anew."""

WITHIN_S: Final = 10.0
"""How far away a deadline may be to be noticed in time, seconds."""
LEAST_KEPT: Final = 1_024
"""Entries that are kept without a look at whose they are."""


class Alarms:
    """The alarms of one loop. Single-threaded."""

    __slots__ = ("_earlier", "_heap", "_most", "_numbers", "_set")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Task]] = []
        self._set: dict[Task, float] = {}
        self._most = LEAST_KEPT
        self._numbers = itertools.count()
        self._earlier = trio.Event()

    def __len__(self) -> int:
        """Return how many tasks have an alarm."""
        return len(self._set)

    def add(self, task: Task) -> None:
        """Set an alarm for the deadline that `task` has now; O(log n), or O(1) if it has an earlier one."""
        when = task.deadline
        known = self._set.get(task)
        if known is not None and known <= when:
            return
        self._set[task] = when
        heap = self._heap
        heapq.heappush(heap, (when, next(self._numbers), task))
        if len(heap) > self._most:
            self._drop_done()
        if heap[0][2] is task:
            self._earlier.set()

    def _drop_done(self) -> None:
        """Forget tasks that are done, and entries that earlier ones have replaced; O(n), but only after n more."""
        kept = self._set
        for task in [task for task in kept if task.done]:
            del kept[task]
        self._heap[:] = [entry for entry in self._heap if kept.get(entry[2]) == entry[0]]
        heapq.heapify(self._heap)
        self._most = max(LEAST_KEPT, 2 * len(self._heap))

    def ring(self, now: float) -> None:
        """Wake the tasks whose deadline has passed."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            when, _, task = heapq.heappop(heap)
            if self._set.get(task) != when:
                continue  # an earlier one has taken its place
            del self._set[task]
            if task.deadline <= now:
                task.wake()
            elif not task.done and task.deadline < math.inf and task.deadline_reason in PRECISE:
                self.add(task)

    async def run(self, clock: Callable[[], float]) -> None:
        """Ring until cancelled.

        Args:
            clock: CLOCK_MONOTONIC seconds, that of the deadlines.
        """
        while True:
            if self._earlier.is_set():
                self._earlier = trio.Event()
            if self._heap:
                with trio.move_on_after(max(0.0, self._heap[0][0] - clock())):
                    await self._earlier.wait()
            else:
                await self._earlier.wait()
            self.ring(clock())
