"""The clock of one attempt at an endpoint: `policy.timeout.try_deadline` applied to a task."""

from __future__ import annotations

from datum_router.model.policy import TimeoutPolicy
from datum_router.policy.timeout import NO_DEADLINE, try_deadline
from datum_router.reasons import Reason
from datum_router_proxy.body import RequestBody
from datum_router_proxy.loop import Loop, Task


class TryClock:
    """Runs while it is not the client's turn.

    Attributes:
        is_answered: The response head has come.
    """

    __slots__ = ("_begun_at", "_body", "_policy", "_waited_before_s", "is_answered")

    def __init__(self, policy: TimeoutPolicy, begun_at: float, body: RequestBody | None = None) -> None:
        """Begin at `begun_at`, monotonic seconds.

        Args:
            body: The request's, None if it is here whole.
        """
        self._policy = policy
        self._begun_at = begun_at
        self._body = body
        self._waited_before_s = 0.0 if body is None else body.waited_s
        self.is_answered = False

    @property
    def ends_at(self) -> float:
        """When the attempt is over; infinity while we wait for the client's body."""
        body = self._body
        waited_s = 0.0
        if body is not None:
            if body.waiting_since is not None and not body.is_done:
                return NO_DEADLINE
            waited_s = body.waited_s - self._waited_before_s
        return try_deadline(self._policy, begun_at=self._begun_at, waited_s=waited_s, is_answered=self.is_answered)

    def arm(self, task: Task, loop: Loop) -> None:
        """Shorten the task's deadline to that of the attempt if that is the earlier one."""
        ends_at = self.ends_at
        if ends_at < task.deadline:
            task.deadline, task.deadline_reason = ends_at, Reason.PER_TRY_TIMEOUT
            loop.alarm(task)
