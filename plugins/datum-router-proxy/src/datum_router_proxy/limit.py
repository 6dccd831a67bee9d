"""Clocks that shorten the deadline of a request's task: that of one attempt, and that of silence."""

from __future__ import annotations

from datum_router.model.policy import TimeoutPolicy
from datum_router.policy.timeout import NO_DEADLINE, try_deadline
from datum_router.reasons import Reason
from datum_router_proxy.body import RequestBody
from datum_router_proxy.loop import Loop, Task


class TryClock:
    """The clock of one attempt (`policy.timeout.try_deadline`): stands while it is the client's turn.

    Attributes:
        is_answered: The response head has come.
    """

    __slots__ = ("_begun_at", "_body", "_policy", "_waited_before_s", "is_answered")

    def __init__(self, policy: TimeoutPolicy, begun_at: float, body: RequestBody) -> None:
        self._policy = policy
        self._begun_at = begun_at
        self._body = body
        self._waited_before_s = body.waited_s
        self.is_answered = False

    @property
    def ends_at(self) -> float:
        """When the attempt is over; infinity while we wait for the client's body."""
        body = self._body
        if body.is_awaited:
            return NO_DEADLINE
        waited_s = body.waited_s - self._waited_before_s
        return try_deadline(self._policy, begun_at=self._begun_at, waited_s=waited_s, is_answered=self.is_answered)

    def arm(self, task: Task, loop: Loop) -> None:
        """Shorten the task's deadline to that of the attempt if that is the earlier one."""
        ends_at = self.ends_at
        if ends_at < task.deadline:
            task.deadline, task.deadline_reason = ends_at, Reason.PER_TRY_TIMEOUT
            loop.alarm(task)


class IdleClock:
    """Runs while no byte of the request or of its response moves."""

    __slots__ = ("_idle_s", "_moved", "_moved_at")

    def __init__(self, idle_s: float, now: float) -> None:
        self._idle_s = idle_s
        self._moved = 0
        self._moved_at = now

    def arm(self, task: Task, moved: int, now: float) -> None:
        """Shorten the task's deadline if the silence would end it sooner.

        Args:
            moved: Bytes that have been moved both ways so far, or anything else that grows with each move.
        """
        if moved != self._moved:
            self._moved = moved
            self._moved_at = now
        ends_at = self._moved_at + self._idle_s
        if ends_at < task.deadline:
            task.deadline, task.deadline_reason = ends_at, Reason.STREAM_IDLE_TIMEOUT
