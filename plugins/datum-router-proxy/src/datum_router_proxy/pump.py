"""The pump under the pipeline: moves a request's body up and the response down, and parks if neither is possible.

One task does both, so that a request over HTTP/1 costs no task of its own and back-pressure needs no queue.
"""

from __future__ import annotations

import math

from datum_router.reasons import Reason
from datum_router_proxy.exchange import ClientGone, Downstream, Upstream, UpstreamEvent
from datum_router_proxy.loop import Loop, Task, current_task, park
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.trace import Trace


class Pump:
    """Stateless but for what it was made with; one per pipeline."""

    __slots__ = ("_loop", "_settings")

    def __init__(self, loop: Loop, settings: ProxySettings) -> None:
        self._loop = loop
        self._settings = settings

    async def next_event(self, downstream: Downstream, upstream: Upstream, trace: Trace) -> UpstreamEvent:
        """Return what comes next of the response, moving the request's body up meanwhile.

        Raises:
            UpstreamError, ClientGone, RemoteProtocolError, BodyTooLarge: Either side broke.
            DeadlineExpired: The request's deadline, or a side that moves too slowly.
        """
        body = trace.body
        turns = 0
        while True:
            could_give = upstream.is_writable  # asked first: to poll may flush, and what that frees must be noticed
            moved = not body.is_done and body.move(upstream, self._loop.now)
            could_take = downstream.is_writable
            if could_take:
                event = upstream.poll()
                if event is not None:
                    return event
            downstream.flush()
            upstream.flush()
            if downstream.is_gone:
                raise ClientGone
            task = current_task()
            if moved or (not could_take and downstream.is_writable) or (not could_give and upstream.is_writable):
                turns += 1
                if turns % self._settings.moves_per_turn:
                    continue
                task.wake()
            self._arm(task, downstream, trace)
            parked_at = self._loop.now
            await park()
            if trace.stalled_at is not None:
                slept_s = self._loop.now - parked_at
                trace.stalled_s += slept_s
                upstream.note_stall(slept_s)

    def _arm(self, task: Task, downstream: Downstream, trace: Trace) -> None:
        """Set the task's deadline to whatever comes first."""
        ends_at, reason = trace.deadline, Reason.REQUEST_TIMEOUT
        if not trace.body.is_done:
            limit = trace.body.limit_at()
            if limit is not None and limit < ends_at:
                ends_at, reason = limit, Reason.BODY_TIMEOUT
        if downstream.is_writable:
            trace.stalled_at = None
        else:
            # After a quiet time the last progress is long ago: the limit counts from when the client began to stall.
            if trace.stalled_at is None:
                trace.stalled_at = self._loop.now
            limit = max(trace.stalled_at, downstream.last_progress) + self._settings.write_timeout_s
            if limit < ends_at:
                ends_at, reason = limit, Reason.WRITE_TIMEOUT
        task.deadline, task.deadline_reason = ends_at, reason
        if trace.tries is not None:
            trace.tries.arm(task, self._loop)
        if trace.idle is not None:
            trace.idle.arm(task, trace.moved + downstream.has_started, self._loop.now)  # a head is a move, too

    async def flushed(self, downstream: Downstream) -> None:
        """Park until the client's side has taken everything."""
        downstream.flush()
        task = current_task()
        began_at = self._loop.now
        while not downstream.is_flushed:
            if downstream.is_gone:
                raise ClientGone
            task.deadline = max(began_at, downstream.last_progress) + self._settings.write_timeout_s
            task.deadline_reason = Reason.WRITE_TIMEOUT
            await park()
            downstream.flush()
        task.deadline = math.inf
