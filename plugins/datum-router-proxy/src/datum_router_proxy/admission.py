"""Load shedding: looks how old the event loop's queue is, and keeps requests out while it is too old.

Theory of operation. A *canary* is sent through the queue: an event of a descriptor of our own, which the kernel puts
behind those that wait already, and then a step of a task, which the loop puts behind those that are due. The time until
that step is the age of the queue. `policy.shedding` makes of it the share of requests that are let in. In quiet times
four canaries a second are sent, fifty while the queue is old.

Of a request that comes over an idle connection of HTTP/1 it is known how long it has waited (`Loop.arrivals`). While
there are more of them than the loop takes at once, those that have waited for too long are put off, unread: that costs
next to nothing, and no share need be guessed.

To say that a request is not let in costs as much as serving it: so its answer, 503, is *held* back for `HOLD_S`, and no
more than `RELEASES_PER_S` are said in a second. Its connection, or its stream out of `max_concurrent_streams`, can ask
nothing meanwhile: that makes refusing cheap. With more than `MAX_HELD` held the rest is answered at once, or waits
where it is.

Health checks of the gateway and its admin pages are served by the supervisor, another process: nothing of this is about
them. Requests under way, tunnels and streams that are open are never cut.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from datum_router.model.request import LocalReply
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.policy.shedding import RETRY_AFTER_S, STATUS, Patience, Shedder
from datum_router.reasons import Reason
from datum_router_proxy.loop import Deferrable, Loop, Task, park

CALM_S: Final = 0.25
"""Seconds between two canaries while the queue is young."""
ALERT_S: Final = 0.02
HOLD_S: Final = 0.5
"""How long (seconds) the answer to a request that is not let in is held back at least."""
RELEASES_PER_S: Final = 500
"""Such answers in one second, by one worker: about 3 % of its time."""
MAX_HELD: Final = 10_000
"""Requests held back at once, by one worker."""

SHED: Final = LocalReply(
    status=STATUS,
    reason=Reason.OVERLOADED,
    detail="the router has more to do than it can",
    headers=((b"retry-after", b"%d" % RETRY_AFTER_S),),
)
"""What requests that are not let in are told."""


class _HeldTask:
    """A request that a task serves."""

    __slots__ = ("is_deferred", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.is_deferred = True

    def defer(self) -> bool:
        """Do nothing: its answer is held back already."""
        return self.is_deferred

    def release(self) -> None:
        """Let its client be told."""
        self.is_deferred = False
        self.task.wake()


class Admission:
    """Lets requests in or not; one per process.

    Attributes:
        shedder: Decides; who asks it `admits` may look at its `is_shedding` first.
        patience: Decides about those of whom it is known how long they have waited.
        reply: What to say to whom it does not admit; held back by `hold`.
    """

    __slots__ = (
        "_clock", "_credit", "_fd", "_held", "_loop", "_sent_at", "_shed", "_task", "patience", "reply",
        "shedder",
    )  # fmt: skip

    def __init__(self, loop: Loop, *, target_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Watch a loop.

        Args:
            target_s: Age of the queue that is put up with, 0 = shed nothing.
            clock: That of the loop.
        """
        self._loop = loop
        self._clock = clock
        self.shedder = Shedder(target_s)
        self.patience = Patience(target_s)
        loop.on_backlog = self.put_off
        self.reply = SHED
        self._held: deque[tuple[float, Deferrable]] = deque()  # when the answer may be given, and to whom
        self._credit = 0.0
        self._shed = 0
        self._fd = -1
        self._sent_at: float | None = None
        self._task: Task | None = None

    @property
    def tasks(self) -> int:
        """Return how many tasks of the loop are ours."""
        return 0 if self._task is None or self._task.done else 1

    # --- the canary -------------------------------------------------------------------------------------------------

    def handle(self, events: int) -> None:
        """Take the canary out of the kernel's queue and put it into that of the loop (see `loop.Pollable`)."""
        if self._task is not None:
            self._task.wake()

    def abort(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def start(self) -> None:
        """Make what canaries go through."""
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop.register(self._fd, self, select.EPOLLIN | select.EPOLLET)
        self._task = self._loop.spawn(self._arrive(), name="canary")

    async def watch(self) -> None:
        """Send canaries, and say what is held back; for trio, until cancelled."""
        self.start()
        before = self._clock()
        try:
            while self._fd >= 0:
                await trio.sleep(ALERT_S if self.shedder.is_alert or self._held else CALM_S)
                now = self._clock()
                self.beat(now - before)
                before = now
        finally:
            self._loop.forget(self._fd)
            self.abort()

    def beat(self, passed_s: float) -> None:
        """Send a canary if none is on its way, and release whom it is time for."""
        now = self._clock()
        if self._sent_at is not None:
            self.shedder.note_waiting(now - self._sent_at, now)
        elif self._fd >= 0:
            self._sent_at = now
            os.eventfd_write(self._fd, 1)
        self._release(now, passed_s)

    async def _arrive(self) -> None:
        while True:
            await park()
            if self._sent_at is not None:
                sent_at, self._sent_at = self._sent_at, None
                self.shedder.note(self._loop.now - sent_at, self._loop.now)

    # --- whom is not let in -----------------------------------------------------------------------------------------

    async def hold(self, task: Task) -> None:
        """Hold a request back that was not let in; returns when its answer may be given.

        Raises:
            DeadlineExpired: The request's own time is over.
            TaskCancelled: It is cut off.
        """
        self._shed += 1
        if len(self._held) >= MAX_HELD:
            return
        held = _HeldTask(task)
        self._held.append((self._clock() + HOLD_S, held))
        try:
            while held.is_deferred:
                await park()
        finally:
            held.is_deferred = False

    def put_off(self) -> None:
        """Hold those back who have waited for their turn for too long; see `Loop.on_backlog`."""
        loop = self._loop
        now = loop.now
        arrivals = loop.arrivals
        limit_s = self.patience.limit_s(now - arrivals[0].noted_at, now)
        while arrivals and now - arrivals[0].noted_at > limit_s and len(self._held) < MAX_HELD:
            one = arrivals.popleft()
            waiting = one.deferrable
            if waiting is not None and waiting.defer():
                self._shed += 1
                self._held.append((now + HOLD_S, waiting))
                one.is_noted = False
            else:
                loop.eager.append(one)

    def _release(self, now: float, passed_s: float) -> None:
        self._credit = min(RELEASES_PER_S * CALM_S, self._credit + RELEASES_PER_S * passed_s)
        while self._held and self._credit >= 1.0 and self._held[0][0] <= now:
            _, held = self._held.popleft()
            if held.is_deferred:  # else its client has left
                self._credit -= 1.0
                held.release()

    def take_cells(self) -> list[Cell]:
        """Return what was counted since the last call, and gauges."""
        cells: list[Cell] = []
        if self._shed:
            cells.append(Cell(names.SHED.name, (), self._shed))
            self._shed = 0
        if self.shedder.is_shedding or self.patience.is_overloaded(self._clock()):
            cells.append(Cell(names.SHEDDING.name, (), 1))
        return cells
