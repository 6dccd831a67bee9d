"""Tasks of the private loop: coroutines driven by `send(None)`, how they park, and how they are woken.

The states and invariants are told in `loop`, which drives what stands here.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Final, Generic, TypeVar

import trio

from datum_router.errors import DatumRouterError
from datum_router.reasons import Reason

T = TypeVar("T")

_REQUEST_TIMEOUT: Final = Reason.REQUEST_TIMEOUT


class DeadlineExpired(DatumRouterError):
    """Report in a task that its deadline passed; `reason` is the task's `deadline_reason` of that moment."""


class TaskCancelled(DatumRouterError):
    """Report in a task that somebody cancelled it; `reason` says why."""


class _Park:
    """Awaiting it yields once. The iterator is a tuple's: both steps stay in C (95 ns; a generator takes 128)."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return iter(_ONCE)  # type: ignore[return-value]  # any iterator will do for `await`


_ONCE = (None,)
_PARK = _Park()


def park() -> Awaitable[None]:
    """Return an awaitable that suspends the current task until it is woken; wake-ups may be spurious.

    Raises:
        DeadlineExpired: The task's deadline passed. The deadline is taken off, so that clean-up can park again.
        TaskCancelled: `Task.cancel` was called.
    """
    return _PARK


class Current:
    """Holds the running task. A module global against the rule: like `asyncio`'s, it is the only way for code
    deep in a call chain to reach its task without a parameter; it is set for the time of one step only.
    """

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: Task | None = None


CURRENT = Current()


def current_task() -> Task:
    """Return the task whose step is running; RuntimeError outside of one."""
    task = CURRENT.task
    if task is None:
        raise RuntimeError("current_task: called outside a task of the loop, expected to run within one")
    return task


class Bell:
    """Rings trio when work is queued while the loop waits. Edge-triggered, so the eventfd is never read."""

    __slots__ = ("fd", "is_armed")

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.is_armed = False

    def ring(self) -> None:
        """Make the epoll readable; the loop arms the bell again before its next wait."""
        self.is_armed = False
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Give the descriptor back; ringing does nothing from then on."""
        os.close(self.fd)
        self.fd = -1


class Task:
    """A coroutine on the loop.

    Attributes:
        deadline: CLOCK_MONOTONIC seconds; when passed, `park()` raises DeadlineExpired once. `math.inf` = none.
        deadline_reason: What expires then; becomes the exception's reason.
        done: True once the coroutine has returned, raised or been closed.
        coro, is_queued, is_started, pending: For the loop only.
    """

    __slots__ = (
        "_bell",
        "_queue",
        "coro",
        "deadline",
        "deadline_reason",
        "done",
        "is_queued",
        "is_started",
        "name",
        "pending",
    )

    def __init__(self, coro: Coroutine[object, None, None], name: str, queue: deque[Task], bell: Bell) -> None:
        self._queue = queue
        self._bell = bell
        self.coro = coro
        self.is_queued = False
        self.is_started = False
        self.pending: TaskCancelled | None = None
        self.name = name
        self.done = False
        self.deadline = math.inf
        self.deadline_reason = _REQUEST_TIMEOUT

    def wake(self) -> None:
        """Make `park()` return soon. Idempotent, cheap, allowed at any time from the loop's thread."""
        if self.is_queued or self.done:
            return
        self.is_queued = True
        self._queue.append(self)
        if self._bell.is_armed:
            self._bell.ring()

    def cancel(self, reason: Reason) -> None:
        """Make the current or next `park()` raise TaskCancelled(reason). The first reason stands until delivered."""
        if self.done:
            return
        if self.pending is None:
            self.pending = TaskCancelled(f"task {self.name}: cancelled", reason=reason)
        self.wake()

    def __repr__(self) -> str:
        return f"<Task {self.name}{' done' if self.done else ''}>"


class Call(Generic[T]):
    """One call from a task into trio: runs there, keeps what came out, wakes the task."""

    __slots__ = ("error", "fn", "is_done", "result", "scope", "task")

    def __init__(self, fn: Callable[[], Awaitable[T]], task: Task) -> None:
        self.fn = fn
        self.task = task
        self.scope = trio.CancelScope()
        self.is_done = False
        self.result: T | None = None
        self.error: Exception | None = None

    async def run(self) -> None:
        """Run in trio's nursery; trio's own cancellation passes through and ends the loop as well."""
        try:
            with self.scope:
                self.result = await self.fn()
        except Exception as exc:  # noqa: BLE001  # it is raised again in the task that asked
            self.error = exc
        self.is_done = True
        self.task.wake()
